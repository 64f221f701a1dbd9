//! Why a verb of the store was not done.
//!
//! An error means that nothing of the verb was done. The first group are answers that a caller acts on; the
//! rest say what the machine underneath did. An error is cheap to clone, because the verbs of one group share
//! the error of their commit.

use std::{path::PathBuf, sync::Arc};

use mosaic_types::{agent::AgentState, connection::ConnectionState};
use rusqlite::ErrorCode;
use thiserror::Error;

/// See the module documentation.
#[derive(Debug, Clone, Error)]
pub enum StoreError {
    // ---- answers that a caller acts on ----
    /// A bounded table has no room, and nothing in it may go (F12). Try again after a sweep.
    #[error("the table is full")]
    Full,
    /// The stored version is another than the one that the change was made to. Read again.
    #[error("the stored version is another")]
    VersionConflict,
    /// The invitation was used before, or is past its expiry.
    #[error("the invitation is spent")]
    InviteSpent,
    /// The table of an agent's states forbids the move.
    #[error("an agent cannot move from {from} to {to}")]
    IllegalMove {
        /// The stored state.
        from: AgentState,
        /// The state asked for.
        to: AgentState,
    },
    /// The table of a connection's states forbids the move.
    #[error("a connection cannot move from {from} to {to}")]
    IllegalConnectionMove {
        /// The stored state.
        from: ConnectionState,
        /// The state asked for.
        to: ConnectionState,
    },
    /// It is not there.
    #[error("not found")]
    NotFound,
    /// The key is taken by something else; or, of a witnessed head, it contradicts what the peer showed before.
    #[error("conflicts with what is stored")]
    Conflict,
    /// Longer than may be stored.
    #[error("longer than the {limit_bytes} bytes that may be stored")]
    TooLarge {
        /// The bound in bytes.
        limit_bytes: usize,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// The queue is full. Nothing was done; try again.
    #[error("the store's queue is full")]
    Busy,

    // ---- opening ----
    /// Another process has this data folder.
    #[error("data folder {} is in use by another process", folder.display())]
    InUse {
        /// The data folder.
        folder: PathBuf,
    },
    /// A file or folder cannot be created, locked or protected.
    #[error("failed to prepare {}", path.display())]
    Prepare {
        /// What could not be prepared.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The file is not a store of ours.
    #[error("{} is not a store of this program", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a later release.
    #[error("the store has schema {found}, and this release knows up to {known}")]
    SchemaTooNew {
        /// The file's schema version.
        found: i64,
        /// The latest version known here.
        known: i64,
    },
    /// A step from one schema version to the next failed; the file is as it was.
    #[error("failed to migrate the store to schema {to}")]
    Migrate {
        /// The version that the step makes.
        to: i64,
        /// What SQLite said.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// The database cannot be opened or configured.
    #[error("failed to open the database")]
    Open(#[source] Arc<rusqlite::Error>),
    /// A thread of the store cannot be started.
    #[error("failed to start a thread of the store")]
    StartThread(#[source] Arc<std::io::Error>),

    // ---- the machine ----
    /// No space is left. Works again when there is.
    #[error("the disk is full")]
    DiskFull(#[source] Arc<rusqlite::Error>),
    /// The database cannot be written: read-only, permissions, or an I/O error.
    #[error("the database cannot be written")]
    Unwritable(#[source] Arc<rusqlite::Error>),
    /// SQLite says that the file is damaged.
    #[error("the database is damaged")]
    Corrupt(#[source] Arc<rusqlite::Error>),
    /// What is stored cannot be read back as what it should be.
    #[error("the stored {what} is malformed")]
    Malformed {
        /// What was read.
        what: &'static str,
    },
    /// What is stored is not the JSON that it should be.
    #[error("failed to decode the stored {what}")]
    Decode {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: Arc<serde_json::Error>,
    },
    /// A value cannot be written as JSON.
    #[error("failed to encode the {what}")]
    Encode {
        /// What was to be written.
        what: &'static str,
        /// Why it cannot.
        #[source]
        source: Arc<serde_json::Error>,
    },
    /// The trail holds an entry that this process did not write: somebody else writes to the file.
    #[error("the audit trail already has an entry {seq}")]
    AuditDiverged {
        /// The number that should have been free.
        seq: u64,
    },
    /// The verb panicked; its changes were undone.
    #[error("the verb panicked")]
    Panicked,

    // ---- operations ----
    /// A group's transaction could not begin.
    #[error("failed to begin a transaction")]
    Begin(#[source] Arc<rusqlite::Error>),
    /// A verb's savepoint could not be set or released.
    #[error("failed to set a savepoint")]
    Savepoint(#[source] Arc<rusqlite::Error>),
    /// The group could not be committed; nothing of it is stored.
    #[error("failed to commit")]
    Commit(#[source] Arc<rusqlite::Error>),
    /// The transaction was lost to the failure of another verb of its group; nothing of it is stored.
    #[error("the transaction was rolled back")]
    RolledBack,
    /// On claims.
    #[error("failed to claim a message")]
    Claims(#[source] Arc<rusqlite::Error>),
    /// On kept responses.
    #[error("failed to keep a response")]
    Responses(#[source] Arc<rusqlite::Error>),
    /// On connections.
    #[error("failed to read or write connections")]
    Connections(#[source] Arc<rusqlite::Error>),
    /// On invitations.
    #[error("failed to read or write invitations")]
    Invites(#[source] Arc<rusqlite::Error>),
    /// On agents.
    #[error("failed to read or write agents")]
    Agents(#[source] Arc<rusqlite::Error>),
    /// On remote agents.
    #[error("failed to read or write remote agents")]
    RemoteAgents(#[source] Arc<rusqlite::Error>),
    /// On sent commands.
    #[error("failed to read or write sent commands")]
    Commands(#[source] Arc<rusqlite::Error>),
    /// On leases.
    #[error("failed to read or write leases")]
    Leases(#[source] Arc<rusqlite::Error>),
    /// On kept kills.
    #[error("failed to read or write kept kills")]
    KillIntents(#[source] Arc<rusqlite::Error>),
    /// On operators' tokens.
    #[error("failed to read or write tokens")]
    Tokens(#[source] Arc<rusqlite::Error>),
    /// On the audit trail.
    #[error("failed to read or write the audit trail")]
    Audit(#[source] Arc<rusqlite::Error>),
    /// On what agents spent.
    #[error("failed to read or write what agents spent")]
    Spending(#[source] Arc<rusqlite::Error>),
    /// On witnessed heads.
    #[error("failed to read or write witnessed heads")]
    Witnesses(#[source] Arc<rusqlite::Error>),
    /// On the check of health.
    #[error("failed to write and read the health row")]
    Check(#[source] Arc<rusqlite::Error>),
}

impl StoreError {
    /// Turns an error of SQLite into the operation's, or into what the machine underneath did.
    pub(crate) fn of(
        operation: fn(Arc<rusqlite::Error>) -> Self,
    ) -> impl Fn(rusqlite::Error) -> Self {
        move |error| {
            let machine = match error.sqlite_error_code() {
                Some(ErrorCode::DiskFull) => Self::DiskFull,
                Some(
                    ErrorCode::ReadOnly
                    | ErrorCode::PermissionDenied
                    | ErrorCode::CannotOpen
                    | ErrorCode::SystemIoFailure,
                ) => Self::Unwritable,
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt,
                _ => operation,
            };
            machine(Arc::new(error))
        }
    }
}
