//! What can go wrong with a working tree, each with a stable code and, where a peer's input is to
//! blame, the field.

use std::{io, path::PathBuf};

use mosaic_types::ErrorCode;
use thiserror::Error;

use super::address::{BranchName, RepositoryUrl};

/// A failure of the worktree part.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WorktreeError {
    /// Nothing is at the URL.
    #[error("repository {repository} does not exist")]
    RepositoryNotFound {
        /// The repository asked for.
        repository: RepositoryUrl,
    },
    /// The path leads through a loop of symbolic links.
    #[error("path of repository {repository} is a loop of symbolic links")]
    RepositoryPathLoop {
        /// The repository asked for.
        repository: RepositoryUrl,
    },
    /// Something is at the URL, but no git repository.
    #[error("{repository} is not a git repository")]
    NotARepository {
        /// The repository asked for.
        repository: RepositoryUrl,
        /// What libgit2 said.
        #[source]
        source: Option<git2::Error>,
    },
    /// The repository has no commit on any branch.
    #[error("repository {repository} is empty")]
    RepositoryEmpty {
        /// The repository asked for.
        repository: RepositoryUrl,
    },
    /// It is a repository, but one that git takes only in part.
    #[error("repository {repository} cannot be used: {detail}")]
    RepositoryUnsound {
        /// The repository asked for.
        repository: RepositoryUrl,
        /// What is wrong with it, bounded.
        detail: String,
    },
    /// The directory belongs to another user, whose configuration is not to be trusted.
    #[error("repository {repository} is owned by another user")]
    RepositoryForeignOwner {
        /// The repository asked for.
        repository: RepositoryUrl,
    },
    /// This process, or the credential it has, may not read the repository.
    #[error("access to repository {repository} is denied: {detail}")]
    RepositoryDenied {
        /// The repository asked for.
        repository: RepositoryUrl,
        /// What the system or the server said, bounded and redacted.
        detail: String,
    },
    /// The repository could not be fetched; may pass.
    #[error("repository {repository} cannot be reached: {detail}")]
    RepositoryUnreachable {
        /// The repository asked for.
        repository: RepositoryUrl,
        /// What the tool or the server said, bounded and redacted.
        detail: String,
    },
    /// The repository was reached, and does not take the branch.
    #[error("repository {repository} refuses the branch: {detail}")]
    BranchRefused {
        /// The repository asked for.
        repository: RepositoryUrl,
        /// Why, in git's or the server's words, bounded and redacted.
        detail: String,
    },
    /// Fetching took longer than configured.
    #[error("fetching repository {repository} exceeded {limit_secs} s")]
    FetchTimedOut {
        /// The repository asked for.
        repository: RepositoryUrl,
        /// The configured limit.
        limit_secs: u64,
    },
    /// The remote has no such branch.
    #[error("repository {repository} has no branch {branch}")]
    BranchNotFound {
        /// The repository asked for.
        repository: RepositoryUrl,
        /// The branch asked for.
        branch: BranchName,
    },
    /// The git program, needed for https and ssh, is not installed.
    #[error("git program {program:?} is not installed")]
    GitMissing {
        /// The program of the configuration.
        program: PathBuf,
    },
    /// A credential of the spoke's configuration cannot be used.
    #[error("credential file {path:?} is unusable: {reason}")]
    Credential {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A credential's repository pattern is not a glob.
    #[error("credential pattern {pattern:?} is not a glob")]
    CredentialPattern {
        /// The pattern of the configuration.
        pattern: String,
        /// Why.
        #[source]
        source: mosaic_federation::command::GlobError,
    },
    /// A rule of what may be pushed is none.
    #[error("rule {pattern:?} of what may be pushed is unusable: {reason}")]
    PushRule {
        /// The pattern of the configuration.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process holds the repository's lock for too long.
    #[error("mirror {mirror:?} stayed locked for {waited_secs} s")]
    MirrorBusy {
        /// The mirror.
        mirror: PathBuf,
        /// How long was waited.
        waited_secs: u64,
    },
    /// The agent was prepared for another repository or branch.
    #[error("agent has a working tree of {repository} at {branch} already")]
    PreparedOtherwise {
        /// The repository of the tree that is there.
        repository: RepositoryUrl,
        /// The branch of the tree that is there.
        branch: BranchName,
    },
    /// There is no working tree, nor a record of one.
    #[error("agent has no working tree")]
    NotPrepared,
    /// A record of ours cannot be read.
    #[error("record {path:?} is unreadable")]
    Record {
        /// The record.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The tree or the agent's objects exceed a limit of the configuration; everything is kept.
    #[error("{what} exceeds the limit of {limit}")]
    TooLarge {
        /// What was measured.
        what: &'static str,
        /// The limit, in the unit of `what`.
        limit: u64,
    },
    /// The disk is full.
    #[error("disk is full while {operation}")]
    DiskFull {
        /// What was being done.
        operation: &'static str,
    },
    /// The data folder refuses writes.
    #[error("{path:?} is not writable while {operation}")]
    Unwritable {
        /// What was being done.
        operation: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// Another failure of the file system.
    #[error("{operation} failed at {path:?}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another failure of libgit2.
    #[error("{operation} failed")]
    Git {
        /// What was being done.
        operation: &'static str,
        /// Why.
        #[source]
        source: git2::Error,
    },
    /// A blocking task ended without an answer, as at shutdown.
    #[error("{operation} was interrupted")]
    Interrupted {
        /// What was being done.
        operation: &'static str,
    },
}

impl WorktreeError {
    /// The stable code for clients.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::RepositoryNotFound { .. }
            | Self::RepositoryPathLoop { .. }
            | Self::NotARepository { .. }
            | Self::RepositoryEmpty { .. }
            | Self::RepositoryUnsound { .. }
            | Self::RepositoryForeignOwner { .. }
            | Self::RepositoryDenied { .. } => ErrorCode::UnknownRepository,
            Self::RepositoryUnreachable { .. }
            | Self::FetchTimedOut { .. }
            | Self::GitMissing { .. }
            | Self::MirrorBusy { .. } => ErrorCode::RepositoryUnavailable,
            Self::BranchNotFound { .. } => ErrorCode::UnknownBranch,
            Self::PreparedOtherwise { .. } | Self::BranchRefused { .. } => ErrorCode::Conflict,
            Self::DiskFull { .. } => ErrorCode::DiskFull,
            Self::Credential { .. }
            | Self::CredentialPattern { .. }
            | Self::PushRule { .. }
            | Self::NotPrepared
            | Self::Record { .. }
            | Self::TooLarge { .. }
            | Self::Unwritable { .. }
            | Self::Io { .. }
            | Self::Git { .. }
            | Self::Interrupted { .. } => ErrorCode::Internal,
        }
    }

    /// The field of the spawn payload that is to blame, if one is.
    #[must_use]
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Self::RepositoryNotFound { .. }
            | Self::RepositoryPathLoop { .. }
            | Self::NotARepository { .. }
            | Self::RepositoryEmpty { .. }
            | Self::RepositoryUnsound { .. }
            | Self::RepositoryForeignOwner { .. }
            | Self::RepositoryDenied { .. }
            | Self::RepositoryUnreachable { .. }
            | Self::FetchTimedOut { .. }
            | Self::GitMissing { .. } => Some("context.repository"),
            Self::BranchNotFound { .. } => Some("context.branch"),
            _ => None,
        }
    }

    /// Whether the same request may succeed later without anybody changing it.
    #[must_use]
    pub fn retryable(&self) -> bool {
        matches!(
            self,
            Self::RepositoryUnreachable { .. }
                | Self::FetchTimedOut { .. }
                | Self::MirrorBusy { .. }
                | Self::DiskFull { .. }
                | Self::Interrupted { .. }
        )
    }

    pub(super) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { operation }
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::Unwritable { operation, path }
            }
            _ => Self::Io {
                operation,
                path,
                source,
            },
        }
    }

    pub(super) fn git(operation: &'static str) -> impl FnOnce(git2::Error) -> Self {
        // libgit2 keeps errno only in its text.
        move |source| match source.message() {
            text if text.contains("No space left") || text.contains("quota exceeded") => {
                Self::DiskFull { operation }
            }
            _ => Self::Git { operation, source },
        }
    }
}
