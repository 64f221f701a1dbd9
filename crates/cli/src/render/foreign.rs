//! Text that others wrote: agents, peers, whoever answers at a URL. None of it may act on the operator's terminal.

/// Whether a character can do something else than be seen: controls (escape sequences start with one), and those that
/// change the direction of text, which make it read as something else.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
        )
}

/// One line that can only be seen.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .filter_map(|c| match c {
            '\t' | '\n' | '\r' => Some(' '),
            c if acts(c) => None,
            c => Some(c),
        })
        .collect()
}

/// One line in which colours pass, and nothing else that acts. Colours end with the line.
pub(crate) fn colours(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut rest = line;
    let mut coloured = false;
    while let Some(c) = rest.chars().next() {
        if let Some(length) = colour(rest) {
            text.push_str(&rest[..length]);
            rest = &rest[length..];
            coloured = true;
            continue;
        }
        if c == '\t' || !acts(c) {
            text.push(c);
        }
        rest = &rest[c.len_utf8()..];
    }
    if coloured {
        text.push_str("\u{1b}[0m");
    }
    text
}

/// Length of the colour sequence (SGR) that the text starts with.
fn colour(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\u{1b}[")?;
    let length = parameters
        .bytes()
        .position(|byte| !(byte.is_ascii_digit() || byte == b';' || byte == b':'))?;
    (parameters.as_bytes().get(length) == Some(&b'm')).then_some(length + 3)
}

/// JSON in which nothing acts either: JSON itself escapes only the oldest controls.
pub(crate) fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if acts(c) {
            // All of them are below U+10000, and can only be inside of a string.
            text.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            text.push(c);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sets the clipboard, moves the cursor, rings, starts a sequence by one C1 control, turns text around.
    const HOSTILE: &str = "a\u{1b}]52;c;cm0=\u{7}b\u{1b}[2Jc\u{9b}1Ad\u{202e}e\rf\u{8}g";

    #[test]
    fn nothing_that_acts_is_left() {
        assert_eq!(clean(HOSTILE), "a]52;c;cm0=b[2Jc1Ade fg");
        assert_eq!(clean("tab\tand\nline"), "tab and line");
    }

    #[test]
    fn only_colours_pass() {
        assert_eq!(colours(HOSTILE), "a]52;c;cm0=b[2Jc1Adefg");
        assert_eq!(
            colours("\u{1b}[1;31mred\u{1b}[m\tplain"),
            "\u{1b}[1;31mred\u{1b}[m\tplain\u{1b}[0m"
        );
        assert_eq!(colours("\u{1b}[31"), "[31");
        assert_eq!(colours("\u{1b}[?25lx"), "[?25lx");
    }

    #[test]
    fn json_means_the_same_and_does_nothing() {
        let json = serde_json::to_string(HOSTILE).unwrap();
        let escaped = escaped(&json);
        assert!(!escaped.chars().any(acts), "{escaped}");
        assert_eq!(
            serde_json::from_str::<String>(&escaped).unwrap(),
            HOSTILE.to_owned()
        );
    }
}
