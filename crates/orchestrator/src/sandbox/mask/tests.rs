use std::sync::Arc;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE},
};
use proptest::prelude::*;

use super::{forms, *};

const TOKEN: &str = "npm_R4nd\"om/Tök+en\\9";
const PEM: &str = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj\nMzEfYyjiWA4R4/M2\n-----END PRIVATE KEY-----";

fn finder(secrets: &[(&str, &str)]) -> Arc<Finder> {
    let masks: Vec<_> = secrets
        .iter()
        .map(|(name, value)| Mask::new(name, value).unwrap())
        .collect();
    Finder::new(&masks).unwrap().unwrap()
}

fn stream(secrets: &[(&str, &str)]) -> StreamMask {
    StreamMask::new(&finder(secrets))
}

/// What is told of a text that comes in pieces of this size.
fn told(secrets: &[(&str, &str)], text: &[u8], size: usize) -> String {
    told_in_pieces(stream(secrets), text.chunks(size))
}

fn told_in_pieces<'a>(
    mut stream: StreamMask,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> String {
    let mut out = Vec::new();
    for piece in pieces {
        out.extend(stream.push(piece));
    }
    out.extend(stream.give_way());
    String::from_utf8(out).unwrap()
}

#[test]
fn nothing_to_find_is_no_finder() {
    assert!(Finder::new(&[]).unwrap().is_none());
}

#[test]
fn a_value_that_cannot_be_told_from_other_text_is_refused() {
    assert_eq!(Mask::new("x", "short-1"), Err(Unmaskable::TooShort));
    assert_eq!(
        Mask::new("x", "00000000000000"),
        Err(Unmaskable::TooUniform)
    );
    assert_eq!(Mask::new("x", "abcdabcdabcd"), Err(Unmaskable::TooUniform));
    let mask = Mask::new("x", "hunter-22").unwrap();
    assert!(!format!("{mask:?}").contains("hunter"));
}

#[test]
fn each_form_is_masked_however_it_is_cut() {
    let json = serde_json::to_string(TOKEN).unwrap();
    let json = json.trim_matches('"');
    let twice = serde_json::to_string(json).unwrap();
    let forms = [
        TOKEN.to_owned(),
        json.to_owned(),
        twice.trim_matches('"').to_owned(),
        json.replace('ö', "\\u00f6"),
        "npm_R4nd%22om%2FT%C3%B6k%2Ben%5C9".to_owned(),
        "npm_R4nd%22om%2fT%c3%b6k%2ben%5c9".to_owned(),
        "npm_R4nd%22om/T%C3%B6k%2Ben%5C9".to_owned(),
        STANDARD.encode(TOKEN),
        STANDARD_NO_PAD.encode(TOKEN),
        URL_SAFE.encode(TOKEN),
    ];
    for form in forms {
        let text = format!("<{form}>");
        for size in 1..=text.len() {
            let told = told(&[("npm-token", TOKEN)], text.as_bytes(), size);
            assert_eq!(told, "<[secret:npm-token]>", "{form} by {size}");
        }
    }
}

/// Has every character that some encoder escapes of its own choice.
const ODD: &str = "p&ss<w0rd>1/x+y='`\"\\ö😀z";

/// [`ODD`] as encoders write it, in the order of ours, and that in a string of one that escapes no more than it has to.
/// Nothing here is by our code: the first two are Python's own output, the others by hand.
const ENCODED: [(&str, &str); 13] = [
    (
        r#"p&ss<w0rd>1/x+y='`\"\\ö😀z"#,
        r#"p&ss<w0rd>1/x+y='`\\\"\\\\ö😀z"#,
    ),
    (
        r#"p&ss<w0rd>1/x+y='`\"\\\u00f6\ud83d\ude00z"#,
        r#"p&ss<w0rd>1/x+y='`\\\"\\\\\\u00f6\\ud83d\\ude00z"#,
    ),
    (
        r#"p&ss<w0rd>1/x+y='`\"\\\u00F6\uD83D\uDE00z"#,
        r#"p&ss<w0rd>1/x+y='`\\\"\\\\\\u00F6\\uD83D\\uDE00z"#,
    ),
    (
        r#"p&ss<w0rd>1\/x+y='`\"\\ö😀z"#,
        r#"p&ss<w0rd>1\\/x+y='`\\\"\\\\ö😀z"#,
    ),
    (
        r#"p&ss<w0rd>1\/x+y='`\"\\\u00f6\ud83d\ude00z"#,
        r#"p&ss<w0rd>1\\/x+y='`\\\"\\\\\\u00f6\\ud83d\\ude00z"#,
    ),
    (
        r#"p\u0026ss\u003Cw0rd\u003E1\/x+y=\u0027`\u0022\\\u00f6\ud83d\ude00z"#,
        r#"p\\u0026ss\\u003Cw0rd\\u003E1\\/x+y=\\u0027`\\u0022\\\\\\u00f6\\ud83d\\ude00z"#,
    ),
    (
        r#"p\u0026ss\u003cw0rd\u003e1/x+y='`\"\\ö😀z"#,
        r#"p\\u0026ss\\u003cw0rd\\u003e1/x+y='`\\\"\\\\ö😀z"#,
    ),
    (
        r#"p\u0026ss\u003cw0rd\u003e1/x+y\u003d\u0027`\"\\ö😀z"#,
        r#"p\\u0026ss\\u003cw0rd\\u003e1/x+y\\u003d\\u0027`\\\"\\\\ö😀z"#,
    ),
    (
        r#"p\u0026ss\u003cw0rd\u003e1/x+y=\u0027`\"\\\u00f6\ud83d\ude00z"#,
        r#"p\\u0026ss\\u003cw0rd\\u003e1/x+y=\\u0027`\\\"\\\\\\u00f6\\ud83d\\ude00z"#,
    ),
    (
        r#"p\u0026ss\u003Cw0rd\u003E1/x+y='`\"\\\u00f6\ud83d\ude00z"#,
        r#"p\\u0026ss\\u003Cw0rd\\u003E1/x+y='`\\\"\\\\\\u00f6\\ud83d\\ude00z"#,
    ),
    (
        r#"p\u0026ss\u003Cw0rd\u003E1/x\u002By=\u0027\u0060\u0022\\\u00F6\uD83D\uDE00z"#,
        r#"p\\u0026ss\\u003Cw0rd\\u003E1/x\\u002By=\\u0027\\u0060\\u0022\\\\\\u00F6\\uD83D\\uDE00z"#,
    ),
    (
        r#"p\u0026ss\u003Cw0rd\u003E1/x\u002By=\u0027\u0060\u0022\\ö\uD83D\uDE00z"#,
        r#"p\\u0026ss\\u003Cw0rd\\u003E1/x\\u002By=\\u0027\\u0060\\u0022\\\\ö\\uD83D\\uDE00z"#,
    ),
    (
        r#"p&ss<w0rd>1/x+y='`\"\\ö\uD83D\uDE00z"#,
        r#"p&ss<w0rd>1/x+y='`\\\"\\\\ö\\uD83D\\uDE00z"#,
    ),
];

/// Whole, cut in two at each place, and byte by byte.
fn assert_masked(secret: &str, form: &str) {
    let text = format!(r#"{{"v":"{form}"}}"#);
    let masked = r#"{"v":"[secret:t]"}"#;
    let finder = finder(&[("t", secret)]);
    for cut in 0..=text.len() {
        let (before, after) = text.as_bytes().split_at(cut);
        let told = told_in_pieces(StreamMask::new(&finder), [before, after]);
        assert_eq!(told, masked, "{form} cut at {cut}");
    }
    let told = told_in_pieces(StreamMask::new(&finder), text.as_bytes().chunks(1));
    assert_eq!(told, masked, "{form} byte by byte");
}

#[test]
fn a_json_string_is_masked_whatever_its_encoder_escapes() {
    for (once, _) in ENCODED {
        assert_masked(ODD, once);
    }
}

#[test]
fn a_json_string_in_a_json_string_is_masked_whatever_their_encoders_escape() {
    for (_, twice) in ENCODED {
        assert_masked(ODD, twice);
    }
    // Both of one encoder, where that makes a difference.
    for twice in [
        r#"p&ss<w0rd>1\\\/x+y='`\\\"\\\\ö😀z"#,
        r#"p&ss<w0rd>1\\\/x+y='`\\\"\\\\\\u00f6\\ud83d\\ude00z"#,
        r#"p\\u0026ss\\u003Cw0rd\\u003E1\\\/x+y=\\u0027`\\u0022\\\\\\u00f6\\ud83d\\ude00z"#,
    ] {
        assert_masked(ODD, twice);
    }
    // The outer one alone escapes more than it has to.
    for twice in [
        r#"p\u0026ss\u003cw0rd\u003e1/x+y='`\\\"\\\\ö😀z"#,
        r#"p&ss<w0rd>1\/x+y='`\\\"\\\\\u00f6\ud83d\ude00z"#,
        r#"p\u0026ss\u003Cw0rd\u003E1/x\u002By=\u0027\u0060\\\u0022\\\\\u00F6\uD83D\uDE00z"#,
    ] {
        assert_masked(ODD, twice);
    }
}

#[test]
fn an_escape_at_either_end_is_masked_with_the_rest() {
    for form in [
        r"\/<run-4711>\/",
        r"\\/<run-4711>\\/",
        r"\\\/<run-4711>\\\/",
    ] {
        assert_masked("/<run-4711>/", form);
    }
    for form in [
        r"\u003crun/4711\u003e",
        r"\\u003crun/4711\\u003e",
        r"\u003Crun/4711\u003E",
    ] {
        assert_masked("<run/4711>", form);
    }
}

#[test]
fn what_is_no_printable_character_is_masked_as_it_is_escaped() {
    let secret = "a\u{1b}b\u{7f}c\u{2028}d\n4711";
    for form in [
        "a\\u001bb\u{7f}c\u{2028}d\\n4711",
        "a\\u001bb\u{7f}c\\u2028d\\n4711",
        r"a\u001bb\u007fc\u2028d\n4711",
        r"a\u001Bb\u007Fc\u2028d\n4711",
    ] {
        assert_masked(secret, form);
    }
}

#[test]
fn the_forms_of_a_value_are_few() {
    // Of one line, and long enough that its base64 is wrapped.
    let odd = format!("/\u{8}\t\u{1b}\u{7f}\u{2028} ~!{}", ODD.repeat(5));
    let forms = forms::of(&odd).len();
    assert!((60..=59 + 34).contains(&forms), "{forms}");
    let plain = forms::of("ghp_R4ndom0123456789").len();
    assert!(plain <= 9, "{plain}");
}

#[test]
fn base64_is_masked_at_each_place_in_a_longer_text() {
    for before in 0..6 {
        for after in 0..4 {
            let text = format!("{}{TOKEN}{}", "u".repeat(before), ":".repeat(after));
            let told = told(&[("t", TOKEN)], STANDARD.encode(&text).as_bytes(), 7);
            let rest = told.replace("[secret:t]", "");
            assert!(told.contains("[secret:t]"), "{before} {after}: {told}");
            // What is around it, and a character that the value has part in at each end.
            assert!(rest.len() <= (before + after) * 4 / 3 + 8, "{told}");
        }
    }
    let wrapped = |text: &str, width: usize| -> String {
        let encoded = STANDARD.encode(text);
        let lines: Vec<_> = encoded
            .as_bytes()
            .chunks(width)
            .map(|line| std::str::from_utf8(line).unwrap())
            .collect();
        lines.join("\n")
    };
    for width in [64, 76] {
        assert_eq!(
            told(&[("key", PEM)], wrapped(PEM, width).as_bytes(), 5),
            "[secret:key]"
        );
        let with_line_end = told(
            &[("key", PEM)],
            wrapped(&format!("{PEM}\n"), width).as_bytes(),
            5,
        );
        assert!(with_line_end.starts_with("[secret:key]"), "{with_line_end}");
        assert!(with_line_end.len() < 20, "{with_line_end}");
    }
}

#[test]
fn the_lines_of_a_key_are_masked_one_by_one_and_its_frame_is_not() {
    assert_eq!(told(&[("key", PEM)], PEM.as_bytes(), 11), "[secret:key]");
    let line = "  MIIEvQIBADANBgkqhkiG9w0BAQEFAASC\r\n";
    assert_eq!(
        told(&[("key", PEM)], line.as_bytes(), 3),
        "  [secret:key]\r\n"
    );
    let other = "-----BEGIN PRIVATE KEY-----\nAAAA\n";
    assert_eq!(told(&[("key", PEM)], other.as_bytes(), 3), other);
    let json = serde_json::to_string(&serde_json::json!({ "text": PEM })).unwrap();
    let masked = told(&[("key", PEM)], json.as_bytes(), 64);
    assert_eq!(masked, r#"{"text":"[secret:key]"}"#);
}

#[test]
fn the_longest_of_several_is_masked() {
    let secrets = [
        ("password", "hunter-2222"),
        ("url", "postgres://u:hunter-2222@db/x"),
    ];
    let told = |text: &str| told(&secrets, text.as_bytes(), 2);
    assert_eq!(told("postgres://u:hunter-2222@db/x"), "[secret:url]");
    assert_eq!(
        told("postgres://u:hunter-2222@db/y"),
        "postgres://u:[secret:password]@db/y"
    );
    assert_eq!(
        told("hunter-2222hunter-2222"),
        "[secret:password][secret:password]"
    );
}

#[test]
fn what_begins_no_secret_is_told_at_once() {
    let mut stream = stream(&[("key", PEM), ("t", "hunter-2222")]);
    assert_eq!(stream.push(b"Continue? "), b"Continue? ");
    assert!(!stream.waits());
    assert_eq!(stream.push(b"line\nh"), b"line\n");
    assert!(stream.waits());
    assert_eq!(stream.push(b"ello\n"), b"hello\n");
    assert!(!stream.waits());
}

#[test]
fn a_pause_never_tells_more_than_half_and_the_rest_is_masked() {
    let secret = "hunter-2222-abcd";
    for pause in 1..secret.len() {
        let mut stream = stream(&[("t", secret)]);
        let (before, after) = secret.split_at(pause);
        let mut out = stream.push(before.as_bytes());
        assert!(out.is_empty(), "{pause}");
        out.extend(stream.give_way());
        assert!(!stream.waits());
        out.extend(stream.give_way());
        out.extend(stream.push(after.as_bytes()));
        out.extend(stream.push(b"!\n"));
        let told = String::from_utf8(out).unwrap();
        let clear = told.replace("[secret:t]", "");
        assert!(clear.len() <= secret.len() / 2 + 2, "{pause}: {told}");
        assert!(told.ends_with("[secret:t]!\n"), "{pause}: {told}");
        assert!(secret.starts_with(clear.trim_end_matches("!\n")), "{told}");
    }
}

#[test]
fn a_beginning_that_was_none_is_told_once() {
    let mut stream = stream(&[("t", "hunter-2222-abcd")]);
    let mut out = stream.push(b"a hunt");
    assert_eq!(out, b"a ");
    out.extend(stream.give_way());
    out.extend(stream.push(b"ing dog\n"));
    assert_eq!(String::from_utf8(out).unwrap(), "a hunting dog\n");
}

/// A31
#[test]
fn a31_a_line_of_one_mebibyte_of_beginnings_is_whole() {
    let secret = format!("{}hunter", "abab".repeat(200));
    let mut stream = stream(&[("t", &secret)]);
    let line = "ab".repeat(1 << 19);
    let mut out = Vec::new();
    for piece in line.as_bytes().chunks(65_536) {
        out.extend(stream.push(piece));
    }
    out.extend(stream.push(b"\n"));
    assert_eq!(out.len(), line.len() + 1);
    assert!(out.starts_with(line.as_bytes()));
}

#[test]
fn the_largest_secret_can_be_looked_for() {
    let secret: String = (0..1024u32)
        .map(|line| STANDARD.encode(line.wrapping_mul(0x9e37_79b1).to_le_bytes().repeat(12)) + "\n")
        .collect();
    let secret = secret.get(..64 << 10).unwrap();
    let mut stream = stream(&[("t", secret)]);
    let mut out = stream.push(secret.as_bytes());
    out.extend(stream.give_way());
    assert_eq!(String::from_utf8(out).unwrap(), "[secret:t]");
}

proptest! {
    /// Text of the same letters comes out as it went in but for the secrets, however it is cut and whatever pauses
    /// there are: without pauses as if nothing were cut at all.
    #[test]
    fn cuts_change_nothing(
        text in "(abcde|abcdefgh|fgh|a|b|\n|YWJj|abcdefghij){0,40}",
        sizes in prop::collection::vec(1_usize..20, 1..20),
    ) {
        let secrets = [("one", "abcdefgh"), ("two", "abcdefghij"), ("three", "fghabcde")];
        let whole = told(&secrets, text.as_bytes(), usize::MAX);
        let mut stream = stream(&secrets);
        let mut out = Vec::new();
        let mut rest = text.as_bytes();
        for size in sizes.iter().cycle() {
            if rest.is_empty() { break }
            let (piece, after) = rest.split_at((*size).min(rest.len()));
            out.extend(stream.push(piece));
            rest = after;
        }
        out.extend(stream.give_way());
        prop_assert_eq!(String::from_utf8(out).unwrap(), &*whole);
        prop_assert!(!whole.contains("abcdefgh"));
    }

    #[test]
    fn every_form_of_anything_is_found(value in "[ -~äöü😀\u{2028}\n]{8,60}", before in "[ -~]{0,9}") {
        prop_assume!(Mask::new("t", &value).is_ok());
        let finder = finder(&[("t", &value)]);
        for form in forms::of(&value) {
            let mut text = before.clone().into_bytes();
            text.extend(&form);
            let told = told_in_pieces(StreamMask::new(&finder), text.chunks(13));
            prop_assert!(!told.as_bytes().windows(form.len()).any(|part| part == form), "{}", told);
        }
    }
}
