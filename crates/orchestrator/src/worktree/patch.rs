//! The work as mails that `git am` takes: `git format-patch --stdout`, built from objects alone.
//!
//! Where plain `git am` would misread what `git format-patch` writes, this says it otherwise: a file
//! with CR LF line ends goes as a binary patch (`git am` strips the CR), and a line of a message which
//! looks like a patch, a header or the start of a mail is indented by one space. A commit without
//! changes has no mail: `git am` stops at one.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Write},
    path::Path,
};

use git2::{Commit, Delta, Diff, DiffOptions, ErrorClass, Oid, Patch, Repository, Tree};
use jiff::{Timestamp, fmt::rfc2822::DateTimePrinter, tz};
use tracing::warn;

use super::{CommitSummary, PatchForm, PatchSummary, error::WorktreeError};

mod range;

pub(super) use range::{Range, range};

const FIRST_LINE_DATE: &str = "Mon Sep 17 00:00:00 2001";

/// How much of a text that the agent chose is told, in characters.
const TOLD_CHARS: usize = 500;

/// The start of a text that the agent chose, without control characters: what tells of its work is kept and signed
/// as a whole.
pub(crate) fn told(text: &str) -> String {
    let mut characters = text.chars();
    let mut start: String = characters
        .by_ref()
        .take(TOLD_CHARS)
        .map(|character| {
            if character.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                character
            }
        })
        .collect();
    if characters.next().is_some() {
        start.pop();
        start.push('…');
    }
    start
}

/// What is told of a commit.
pub(super) fn summary(commit: &Commit<'_>) -> CommitSummary {
    let author = commit.author();
    CommitSummary {
        id: commit.id().to_string(),
        author: told(&format!(
            "{} <{}>",
            String::from_utf8_lossy(author.name_bytes()),
            String::from_utf8_lossy(author.email_bytes())
        )),
        subject: told(&subject_and_body(&message(commit)).0),
        time_secs: author.when().seconds(),
    }
}

/// Counts of base..head: files, inserted lines, deleted lines.
pub(super) fn stats(
    repository: &Repository,
    base: Oid,
    head: Oid,
) -> Result<(usize, usize, usize), WorktreeError> {
    let failed = || WorktreeError::git("comparing the agent's work with its base");
    let tree = |id: Oid| repository.find_commit(id).and_then(|commit| commit.tree());
    let (old, new) = (tree(base).map_err(failed())?, tree(head).map_err(failed())?);
    let diff = diff(repository, &old, &new, false).map_err(failed())?;
    let stats = diff.stats().map_err(failed())?;
    Ok((stats.files_changed(), stats.insertions(), stats.deletions()))
}

/// Counts what is written and refuses more than the limit.
pub(super) struct Bounded<W> {
    inner: W,
    written: u64,
    limit: u64,
}

impl<W> Bounded<W> {
    pub(super) fn new(inner: W, limit: u64) -> Self {
        Self {
            inner,
            written: 0,
            limit,
        }
    }

    pub(super) fn into_inner(self) -> W {
        self.inner
    }
}

impl<W: Write> Write for Bounded<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.written = self
            .written
            .saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if self.written > self.limit {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        self.inner.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes the patch file of base..head. `None` when it would exceed `limit` bytes, or if a commit has what git cannot
/// compare: what comes again at every try is no reason to keep the work from being told of.
pub(super) fn write(
    repository: &Repository,
    range: &Range,
    (base, head): (Oid, Oid),
    path: &Path,
    limit: u64,
) -> Result<Option<PatchSummary>, WorktreeError> {
    let mails = Mails::of(repository, range, (base, head))?;
    let temporary = path.with_extension("patch.tmp");
    let written = write_mails(repository, &mails.mails, &temporary, limit).and_then(|bytes| {
        fs::rename(&temporary, path)?;
        Ok(bytes)
    });
    if written.is_err() {
        // On a full disk it has what was free, and more than this needs some of it.
        let _ = fs::remove_file(&temporary);
    }
    match written {
        Ok(bytes) => Ok(Some(PatchSummary {
            path: path.to_owned(),
            bytes,
            form: range.form,
            mails: mails.mails.len(),
            commits_without_changes: mails.without_changes,
        })),
        Err(Failure::Io(error)) if error.kind() == io::ErrorKind::FileTooLarge => Ok(None),
        Err(Failure::Io(error)) => Err(WorktreeError::io("writing the patch", path)(error)),
        Err(Failure::Git(error)) if error.class() == ErrorClass::Invalid => {
            warn!(%error, "no patch of an agent's work");
            Ok(None)
        }
        Err(Failure::Git(error)) => Err(WorktreeError::git("writing the patch")(error)),
    }
}

/// A commit, the tree that it changes, and what is said of it.
type Mail<'r> = (Commit<'r>, Tree<'r>, Vec<u8>);

/// What a patch is made of.
struct Mails<'r> {
    mails: Vec<Mail<'r>>,
    without_changes: usize,
}

impl<'r> Mails<'r> {
    fn of(
        repository: &'r Repository,
        range: &Range,
        (base, head): (Oid, Oid),
    ) -> Result<Self, WorktreeError> {
        let failed = || WorktreeError::git("writing the patch");
        let find = |id: Oid| repository.find_commit(id).map_err(failed());
        let sources: Vec<(Oid, Oid)> = match range.form {
            PatchForm::Commits => {
                let parents = std::iter::once(&base).chain(&range.commits);
                parents
                    .copied()
                    .zip(range.commits.iter().copied())
                    .collect()
            }
            PatchForm::Squashed => vec![(base, head)],
        };
        let mut mails = Vec::new();
        let mut without_changes = 0_usize;
        for (parent, id) in sources {
            let commit = find(id)?;
            let old = find(parent)?.tree().map_err(failed())?;
            if old.id() == commit.tree_id() {
                without_changes += 1;
                continue;
            }
            let text = match range.form {
                PatchForm::Commits => message(&commit),
                PatchForm::Squashed => squashed_message(repository, range)?,
            };
            mails.push((commit, old, text));
        }
        Ok(Self {
            mails,
            without_changes,
        })
    }
}

/// Gives how many bytes were written.
fn write_mails(
    repository: &Repository,
    mails: &[Mail<'_>],
    path: &Path,
    limit: u64,
) -> Result<u64, Failure> {
    let mut out = Bounded::new(io::BufWriter::new(fs::File::create(path)?), limit);
    let total = mails.len();
    for (index, (commit, old, text)) in mails.iter().enumerate() {
        let numbering = if total == 1 {
            "PATCH".to_owned()
        } else {
            format!("PATCH {}/{total}", index + 1)
        };
        write_head(&mut out, commit, &numbering, text)?;
        write_changes(repository, &mut out, old, commit)?;
    }
    out.flush()?;
    Ok(out.written)
}

enum Failure {
    Io(io::Error),
    Git(git2::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<git2::Error> for Failure {
    fn from(error: git2::Error) -> Self {
        Self::Git(error)
    }
}

fn message(commit: &Commit<'_>) -> Vec<u8> {
    // A NUL would end the message for `git am`.
    let bytes = commit.message_bytes();
    String::from_utf8_lossy(bytes)
        .replace('\0', "\u{fffd}")
        .into_bytes()
}

fn squashed_message(repository: &Repository, range: &Range) -> Result<Vec<u8>, WorktreeError> {
    let mut text =
        "Squash of the agent's commits\n\nThe history is whole on the branch:\n\n".to_owned();
    for id in range.commits.iter().take(200) {
        let commit = repository
            .find_commit(*id)
            .map_err(WorktreeError::git("writing the patch"))?;
        let (subject, _) = subject_and_body(&message(&commit));
        let _ = writeln!(text, "* {}", told(&subject));
    }
    Ok(text.into_bytes())
}

/// The first paragraph on one line, and the rest.
fn subject_and_body(message: &[u8]) -> (String, String) {
    let text = String::from_utf8_lossy(message).replace("\r\n", "\n");
    let text = text.trim_start_matches(['\n', ' ', '\t']);
    let (subject, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let words: Vec<&str> = subject.split_whitespace().collect();
    (words.join(" "), body.trim_matches('\n').to_owned())
}

fn write_head(
    out: &mut impl Write,
    commit: &Commit<'_>,
    numbering: &str,
    text: &[u8],
) -> Result<(), Failure> {
    let author = commit.author();
    let name = String::from_utf8_lossy(author.name_bytes()).replace(|c: char| c.is_control(), " ");
    let email = String::from_utf8_lossy(author.email_bytes())
        .replace(|c: char| c.is_control() || c == '>', "");
    let (subject, body) = subject_and_body(text);
    writeln!(out, "From {} {FIRST_LINE_DATE}", commit.id())?;
    writeln!(out, "From: {} <{email}>", display_name(&name))?;
    writeln!(out, "Date: {}", date(author.when()))?;
    writeln!(
        out,
        "Subject: [{numbering}] {}",
        encoded(&subject, "Subject: [PATCH 000/000] ".len())
    )?;
    out.write_all(b"MIME-Version: 1.0\nContent-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit\n\n")?;
    let mut before_text = true;
    for line in body.lines() {
        let guard = if is_misread(line, before_text) {
            " "
        } else {
            ""
        };
        before_text = before_text && line.trim().is_empty();
        writeln!(out, "{guard}{line}")?;
    }
    out.write_all(b"---\n")?;
    Ok(())
}

/// Lines which `git mailsplit` or `git mailinfo` would take for something else than text.
fn is_misread(line: &str, before_text: bool) -> bool {
    let header = || {
        line.split_once(':').is_some_and(|(name, _)| {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        })
    };
    line.starts_with("---")
        || line.starts_with("diff -")
        || line.starts_with("Index: ")
        || line.starts_with("From ")
        || line.starts_with(">From ")
        || (before_text && (header() || line.starts_with('[')))
}

fn date(when: git2::Time) -> String {
    let offset = tz::Offset::from_seconds(when.offset_minutes().saturating_mul(60))
        .unwrap_or(tz::Offset::UTC);
    let zoned = Timestamp::from_second(when.seconds())
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .to_zoned(tz::TimeZone::fixed(offset));
    DateTimePrinter::new()
        .zoned_to_string(&zoned)
        .unwrap_or_else(|_| "Thu, 1 Jan 1970 00:00:00 +0000".to_owned())
}

fn display_name(name: &str) -> String {
    if !name.is_ascii() {
        return encoded(name, "From: ".len());
    }
    if name.contains([
        '(', ')', '<', '>', '[', ']', ':', ';', '@', '\\', ',', '.', '"',
    ]) {
        return format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""));
    }
    if name.contains("=?") {
        encoded(name, "From: ".len())
    } else {
        name.to_owned()
    }
}

/// RFC 2047 encoded words of at most 75 characters where the text is not plain ASCII.
fn encoded(text: &str, column: usize) -> String {
    if text.is_ascii() && !text.contains("=?") {
        return text.to_owned();
    }
    const START: &str = "=?UTF-8?q?";
    let mut out = START.to_owned();
    let mut width = column + START.len();
    for character in text.chars() {
        let mut buffer = [0; 4];
        let mut piece = String::new();
        for byte in character.encode_utf8(&mut buffer).bytes() {
            if byte.is_ascii_alphanumeric() || b"!*+-/".contains(&byte) {
                piece.push(char::from(byte));
            } else {
                let _ = write!(piece, "={byte:02X}");
            }
        }
        if width + piece.len() + 2 > 75 {
            out.push_str("?=\n ");
            out.push_str(START);
            width = 1 + START.len();
        }
        width += piece.len();
        out.push_str(&piece);
    }
    out.push_str("?=");
    out
}

fn diff<'r>(
    repository: &'r Repository,
    old: &Tree<'_>,
    new: &Tree<'_>,
    binary: bool,
) -> Result<Diff<'r>, git2::Error> {
    let mut options = DiffOptions::new();
    options
        .context_lines(3)
        .id_abbrev(40)
        .show_binary(true)
        .force_binary(binary)
        .ignore_submodules(false)
        .old_prefix("a/")
        .new_prefix("b/");
    repository.diff_tree_to_tree(Some(old), Some(new), Some(&mut options))
}

fn write_changes(
    repository: &Repository,
    out: &mut impl Write,
    old: &Tree<'_>,
    commit: &Commit<'_>,
) -> Result<(), Failure> {
    let new = commit.tree()?;
    let text = diff(repository, old, &new, false)?;
    let binary = diff(repository, old, &new, true)?;
    out.write_all(b"\n")?;
    for (index, delta) in text.deltas().enumerate() {
        if delta.status() == Delta::Unmodified {
            continue;
        }
        let Some(mut patch) = Patch::from_diff(&text, index)? else {
            continue;
        };
        let bytes = patch.to_buf()?;
        if !is_mangled(&bytes) {
            out.write_all(&bytes)?;
        } else if let Some(mut patch) = Patch::from_diff(&binary, index)? {
            out.write_all(&patch.to_buf()?)?;
        }
    }
    out.write_all(b"-- \nmosaic\n\n")?;
    Ok(())
}

/// Whether `git am` would change these lines on their way: it drops a CR before the line's end, and
/// ends a line at a NUL.
fn is_mangled(patch: &[u8]) -> bool {
    patch.contains(&0) || patch.windows(2).any(|pair| pair == b"\r\n")
}
