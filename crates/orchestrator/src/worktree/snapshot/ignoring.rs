//! What git does not show: the rules of every `.gitignore` from the root down to a directory, as git reads them.
//!
//! Not as libgit2 does, which drops a rule with `!` unless it finds the rule that this one takes back. What is
//! ignored goes with the tree, so to ignore more than git does is to lose work.

use gix_ignore::glob::{Pattern, pattern, wildmatch};

/// Rules that hold at once, bytes. What is beyond is as if it were not there, and more is taken.
const MAX_BYTES: usize = 4 << 20;

/// The rules of one file.
struct Rules {
    patterns: Vec<Pattern>,
    bytes: usize,
    /// Where a path within the file's directory starts.
    start: usize,
}

/// The rules that hold in the directory that is being walked.
#[derive(Default)]
pub(super) struct Ignoring {
    files: Vec<Rules>,
}

impl Ignoring {
    /// Goes into a directory, of this path in the tree, with these rules. What it gives is for [`Ignoring::leave`].
    pub(super) fn enter(&mut self, dir: &[u8], rules: Option<Vec<u8>>) -> usize {
        let outside = self.files.len();
        let held: usize = self.files.iter().map(|rules| rules.bytes).sum();
        if let Some(mut text) = rules.filter(|text| !text.is_empty()) {
            // The last line ends as the others do.
            text.push(b'\n');
            if held + text.len() <= MAX_BYTES {
                self.files.push(Rules {
                    patterns: gix_ignore::parse(&text, false)
                        .map(|(pattern, _, _)| pattern)
                        .collect(),
                    bytes: text.len(),
                    start: if dir.is_empty() { 0 } else { dir.len() + 1 },
                });
            }
        }
        outside
    }

    pub(super) fn leave(&mut self, outside: usize) {
        self.files.truncate(outside);
    }

    /// Whether an entry of that directory is ignored. What lies in a directory that is, is so whatever its rules say:
    /// that is for the caller to remember.
    pub(super) fn is_ignored(&self, path: &[u8], is_dir: bool) -> bool {
        for rules in self.files.iter().rev() {
            let Some(path) = path.get(rules.start..) else {
                continue;
            };
            let mut last_first = rules.patterns.iter().rev();
            let last = last_first.find(|rule| matches(rule, path, is_dir));
            if let Some(last) = last {
                return !last.is_negative();
            }
        }
        false
    }
}

/// As git does it: what comes before the first wildcard is compared and left away on both sides, so that a `**` right
/// behind it is at the start.
fn matches(rule: &Pattern, path: &[u8], is_dir: bool) -> bool {
    if rule.mode.contains(pattern::Mode::MUST_BE_DIR) && !is_dir {
        return false;
    }
    let whole_path = rule.mode.contains(pattern::Mode::ABSOLUTE)
        || !rule.mode.contains(pattern::Mode::NO_SUB_DIR);
    if !whole_path {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        return rule.matches(name.into(), wildmatch::Mode::empty());
    }
    let text = rule.text.as_slice();
    // An escape was a wildcard too, before the parser took it away.
    let escaped = !rule.mode.contains(pattern::Mode::ABSOLUTE)
        && !rule.is_negative()
        && matches!(text.first(), Some(b'!' | b'#'));
    let literal = match rule.first_wildcard_pos {
        Some(_) if escaped => 0,
        position => position.unwrap_or(text.len()),
    };
    let (literal, text) = text.split_at(literal);
    path.strip_prefix(literal).is_some_and(|rest| {
        gix_ignore::glob::wildmatch(
            text.into(),
            rest.into(),
            wildmatch::Mode::NO_MATCH_SLASH_LITERAL,
        )
    })
}

#[cfg(test)]
mod tests;
