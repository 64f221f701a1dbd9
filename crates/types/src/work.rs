//! The forms in which an ended agent's work is handed over.

use serde::{Deserialize, Serialize};

/// The form in which an agent's work is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResultForm {
    /// Mails for `git am`.
    #[default]
    Patch,
    /// A git bundle, which `git fetch` takes: every commit as the agent made it.
    Bundle,
}

/// What the mirror of a spoke holds of an agent besides its branch, and its branch too, if that has commits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Salvaged {
    /// Refs with something that the agent's base has not: its branch first, then what it had not committed when it
    /// was killed, then its other branches, stashes and unfinished operations. At most 200.
    pub refs: Vec<SalvagedRef>,
    /// Whether there are more; a bundle of what was salvaged has them all.
    pub more: bool,
}

/// A ref of a spoke's mirror that holds work of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SalvagedRef {
    /// The ref in full.
    pub git_ref: String,
    /// The commit that it points to, 40 hex digits.
    pub commit: String,
    /// First paragraph of that commit's message on one line, at most 500 characters.
    pub subject: String,
    /// Commits since the agent's base.
    pub commits: u64,
    /// Files that differ from the agent's base.
    pub files_changed: u64,
}

/// What came of pushing an agent's branch to its repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pushed {
    /// The ref at the repository.
    pub git_ref: String,
    /// The commit, 40 hex digits.
    pub commit: String,
    /// Why the repository does not have it; absent if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}
