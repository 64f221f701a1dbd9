//! The forms in which programs print a value.

use std::{collections::BTreeSet, fmt::Write};

use super::is_varied;
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD},
};

mod json;

/// The shortest line of a longer value that is looked for by itself.
const MIN_LINE_BYTES: usize = 16;
/// Where `base64` and PEM break their lines.
const WRAPPED_AT: [usize; 2] = [64, 76];

/// Every form of a value, each once. However odd the value, they are at most 59 by [`spelled`] and 34 by [`encoded`],
/// and 59 for each line; a value without anything to escape has less than 10.
pub(super) fn of(value: &str) -> BTreeSet<Vec<u8>> {
    let mut forms = BTreeSet::new();
    let mut add = |form: String| {
        forms.insert(form.into_bytes());
    };
    spelled(value, &mut add);
    encoded(value, &mut add);
    if value.contains('\n') {
        let lines = value.lines().map(str::trim);
        for line in lines.filter(|line| line.len() >= MIN_LINE_BYTES && is_varied(line)) {
            // The frame of a PEM file is no secret, and would be found in any other.
            if !line.starts_with("-----") {
                spelled(line, &mut add);
            }
        }
    }
    forms
}

/// As it is, in JSON, in a URL.
fn spelled(text: &str, add: &mut impl FnMut(String)) {
    add(text.to_owned());
    json::strings(text, add);
    let unreserved = "-._~";
    for (kept, upper) in [
        (unreserved, true),
        (unreserved, false),
        ("-._~!'()*", true),
        ("-._~/", true),
    ] {
        let percent = in_url(text, kept, upper);
        add(percent.replace("%20", "+"));
        add(percent);
    }
}

fn in_url(text: &str, kept: &str, upper: bool) -> String {
    let mut escaped = String::with_capacity(text.len() + 8);
    for byte in text.bytes() {
        let c = char::from(byte);
        let _ = match upper {
            _ if c.is_ascii_alphanumeric() || kept.contains(c) => {
                escaped.push(c);
                Ok(())
            }
            true => write!(escaped, "%{byte:02X}"),
            false => write!(escaped, "%{byte:02x}"),
        };
    }
    escaped
}

/// In base64: as a text of its own, and inside a longer one.
fn encoded(value: &str, add: &mut impl FnMut(String)) {
    for (padded, bare) in [(STANDARD, STANDARD_NO_PAD), (URL_SAFE, URL_SAFE_NO_PAD)] {
        let own = bare.encode(value);
        for width in WRAPPED_AT {
            if own.len() > width {
                // What `echo "$SECRET" | base64` says differs in its last characters.
                let inner = own.get(..value.len() * 8 / 6).unwrap_or_default();
                for text in [inner, &own, &padded.encode(value)] {
                    for line_end in ["\n", "\\n"] {
                        add(wrapped(text, width, line_end));
                    }
                }
            }
        }
        add(padded.encode(value));
        add(own);
        for before in 0..3 {
            let mut longer = vec![0; before];
            longer.extend_from_slice(value.as_bytes());
            let text = bare.encode(&longer);
            // The characters that hold bits of the value alone.
            let (start, end) = ((before * 8).div_ceil(6), longer.len() * 8 / 6);
            add(text.get(start..end).unwrap_or_default().to_owned());
        }
    }
}

/// Base64 is ASCII, so that any place is one between characters.
fn wrapped(text: &str, width: usize, line_end: &str) -> String {
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(width)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .collect();
    lines.join(line_end)
}
