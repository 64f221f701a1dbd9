//! A value inside a JSON string. Encoders agree on what a string means, not on how it is written: each escapes what it
//! has to and, to be safe in a web page or in ASCII, more of its own choice.
//!
//! An encoder writes every string in its one way, so a value has one form for each encoder, and not one for each way to
//! mix their escapes.

use std::fmt::Write;

use Hex::{Lower, Upper};

/// How the digits of `\uXXXX` are written.
#[derive(Clone, Copy)]
enum Hex {
    Lower,
    Upper,
}

/// What an encoder escapes beyond what it has to.
struct Encoder {
    /// These, as `\uXXXX`; but `/` as `\/`.
    own: &'static str,
    hex: Hex,
    /// All from this character on, as one or two `\uXXXX`.
    from: Option<(char, Hex)>,
}

const fn encoder(own: &'static str, hex: Hex, from: Option<(char, Hex)>) -> Encoder {
    Encoder { own, hex, from }
}

const ASCII: Option<(char, Hex)> = Some(('\u{80}', Lower));
const ASCII_UPPER: Option<(char, Hex)> = Some(('\u{80}', Upper));
/// All that fits into one escape is left as it is.
const BMP_UPPER: Option<(char, Hex)> = Some(('\u{10000}', Upper));

/// No more than it has to: `JSON.stringify`, serde's, and an agent's own output.
const PLAIN: Encoder = encoder("", Lower, None);

const ENCODERS: [Encoder; 13] = [
    PLAIN,
    // Python's; and of Java's and C++'s those that are told to write ASCII.
    encoder("\u{7f}", Lower, ASCII),
    encoder("", Upper, ASCII_UPPER),
    // Swift's; PHP's, which may be told to leave Unicode as it is, or to be safe in HTML (`JSON_HEX_…`).
    encoder("/", Lower, None),
    encoder("/", Lower, ASCII),
    encoder("/<>&'\"", Upper, ASCII),
    // Safe in HTML: Go's and Rails's; Gson's; Python's in a template of Flask and of Django.
    encoder("<>&\u{2028}\u{2029}", Lower, None),
    encoder("<>&'=\u{2028}\u{2029}", Lower, None),
    encoder("<>&'\u{7f}", Lower, ASCII),
    encoder("<>&", Upper, ASCII),
    // .NET's, by default, with all of Unicode allowed, and relaxed.
    encoder("<>&'\"+`\u{7f}", Upper, ASCII_UPPER),
    encoder("<>&'\"+`\u{7f}\u{2028}\u{2029}", Upper, BMP_UPPER),
    encoder("\u{7f}\u{2028}\u{2029}", Upper, BMP_UPPER),
];

/// A text in a string, and in a string in a string: of the same encoder, or one of the two a plain one. At most 50.
pub(super) fn strings(text: &str, add: &mut impl FnMut(String)) {
    let plain = PLAIN.string(text);
    for encoder in ENCODERS {
        let once = encoder.string(text);
        add(encoder.string(&once));
        // A program's answer in an agent's output, and an answer in a program's log.
        add(PLAIN.string(&once));
        add(encoder.string(&plain));
        add(once);
    }
}

impl Encoder {
    fn string(&self, text: &str) -> String {
        let mut string = String::with_capacity(text.len() + 8);
        for c in text.chars() {
            match c {
                '/' if self.own.contains(c) => string.push_str("\\/"),
                c if self.own.contains(c) => self.hex.escape(c, &mut string),
                '"' | '\\' => string.extend(['\\', c]),
                '\n' => string.push_str("\\n"),
                '\r' => string.push_str("\\r"),
                '\t' => string.push_str("\\t"),
                '\u{8}' => string.push_str("\\b"),
                '\u{c}' => string.push_str("\\f"),
                c if c < ' ' => self
                    .from
                    .map_or(Lower, |(_, hex)| hex)
                    .escape(c, &mut string),
                c => match self.from {
                    Some((from, hex)) if c >= from => hex.escape(c, &mut string),
                    _ => string.push(c),
                },
            }
        }
        string
    }
}

impl Hex {
    /// As UTF-16: a character beyond U+FFFF is two escapes.
    fn escape(self, c: char, string: &mut String) {
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = match self {
                Lower => write!(string, "\\u{unit:04x}"),
                Upper => write!(string, "\\u{unit:04X}"),
            };
        }
    }
}
