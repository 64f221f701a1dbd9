//! What an agent's work came to: what was brought home, and what could not be.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// An agent's work, as it lies in the mirror.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkResult {
    /// The commit the agent started from.
    pub base_commit: String,
    /// The tip of the work: the agent's last commit, or its uncommitted work on top of that.
    pub head_commit: String,
    /// The ref of the mirror that points to it, in full: the agent's branch or its salvage ref.
    pub reference: String,
    /// The commits since the base, oldest first.
    pub commits: Vec<CommitSummary>,
    /// Whether the last commit is uncommitted work which Mosaic committed.
    pub uncommitted_committed: bool,
    /// Files that differ from the base.
    pub files_changed: usize,
    /// Lines added since the base.
    pub insertions: usize,
    /// Lines removed since the base.
    pub deletions: usize,
    /// The patch; absent when it would exceed the limit, or if a commit has what git cannot compare.
    pub patch: Option<PatchSummary>,
    /// Every ref of the mirror that was set, in full.
    pub refs: Vec<String>,
    /// What could not be brought home; while there is any, the tree is not removed.
    pub not_brought_home: Vec<NotBroughtHome>,
}

/// One commit of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CommitSummary {
    /// Full hex id.
    pub id: String,
    /// `name <email>` of the author.
    pub author: String,
    /// The message's first paragraph on one line.
    pub subject: String,
    /// The author's time, Unix seconds; whatever the agent wrote.
    pub time_secs: i64,
}

/// How the patch tells the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PatchForm {
    /// One mail for each commit.
    Commits,
    /// The history has merges, does not start at the base, or is longer than a patch may have mails: one mail for the
    /// whole difference.
    Squashed,
}

/// The patch file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PatchSummary {
    /// The file, in mbox form for `git am`.
    pub path: PathBuf,
    /// Its size, bytes; zero when there are no changes.
    pub bytes: u64,
    /// How it tells the history.
    pub form: PatchForm,
    /// Mails in it.
    pub mails: usize,
    /// Commits without changes, which have no mail: `git am` stops at an empty one.
    pub commits_without_changes: usize,
}

/// A part of an agent's tree that could not be brought home. The tree is kept for its sake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NotBroughtHome {
    /// Its path in the tree, or its ref, or `~/` and its path in the agent's HOME; bytes that are not UTF-8 are replaced.
    pub path: String,
    /// Why.
    pub why: WhyNot,
}

impl NotBroughtHome {
    pub(super) fn new(path: &[u8], why: WhyNot) -> Self {
        Self {
            path: String::from_utf8_lossy(path).into_owned(),
            why,
        }
    }

    /// Whether it lies in the agent's HOME, which is kept with the tree then.
    #[must_use]
    pub fn is_in_home(&self) -> bool {
        self.why == WhyNot::NestedRepository && self.path.starts_with("~/")
    }
}

/// Why a part of an agent's tree could not be brought home.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WhyNot {
    /// `.git`, or its `objects`, is not a directory any more; the files were taken.
    NoGitDirectory,
    /// It cannot be read, or is not as git writes it.
    Unreadable,
    /// Objects that it needs are not there; or it leads to no commit, as a tag of a file does.
    MissingObjects,
    /// A file over the limit.
    TooLarge,
    /// Directories nested too deep.
    TooDeep,
    /// Git refuses a file of this name.
    NameRefused,
    /// A repository within the tree: its files were taken, its history was not. Or a further working tree of the
    /// agent's, in an ignored folder or in its HOME: its commits were taken, its files were not.
    NestedRepository,
    /// More refs than are kept of one agent.
    TooMany,
    /// Something in the directory of a submodule, which is a link to another repository; or that repository, in `.git`.
    Submodule,
    /// Contents that `git lfs` or `git annex` keeps in `.git` beside the objects; what points to them was taken.
    LargeFiles,
}
