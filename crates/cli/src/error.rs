//! How a run of `mosaic` ends: the exit codes, and the failures behind them.

use std::{io, path::PathBuf, process::ExitCode};

use mosaic_types::{AgentId, error::Problem};

/// An exit code. The table is in `mosaic --help` too; scripts rely on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: done.
    Ok,
    /// 1: failed on this side.
    Failure,
    /// 2: the command line is wrong.
    Usage,
    /// 3: the node refused.
    Refused,
    /// 4: the node, or a spoke behind it, was not reached.
    Unreachable,
    /// 5: a death was not proven; of a kill-all also: a spoke was not reached, or does not hold spawns for good.
    KillIncomplete,
    /// 6: the agent that was followed failed or was killed.
    AgentNotCompleted,
    /// 7: the audit trail is not sound.
    AuditBad,
    /// 130: interrupted by Ctrl-C.
    Interrupted,
}

impl Exit {
    /// The number.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::Unreachable => 4,
            Self::KillIncomplete => 5,
            Self::AgentNotCompleted => 6,
            Self::AuditBad => 7,
            Self::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// Threads or timers.
    #[error("failed to start the runtime")]
    Runtime(#[source] io::Error),
    /// No node is named and no `mosaic dev` runs.
    #[error(
        "no node to talk to: name one by --hub URL and --token-file FILE (MOSAIC_HUB, MOSAIC_TOKEN_FILE), or start `mosaic dev`"
    )]
    NoNode,
    /// A node is named, its token is not.
    #[error(
        "no token for {url}: name a file by --token-file (MOSAIC_TOKEN_FILE), or set MOSAIC_TOKEN"
    )]
    NoToken {
        /// The node.
        url: String,
    },
    /// An argument that clap cannot check.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// A file could not be read or written.
    #[error("failed to {action} {}", path.display())]
    File {
        /// `read`, `write`, ...
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("failed to understand {}", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The HTTP client could not be made.
    #[error("failed to prepare the HTTP client")]
    Client(#[source] reqwest::Error),
    /// The node refused.
    #[error("{}", .0.detail)]
    Refused(Box<Problem>),
    /// A kill that failed, and after which the agent may live.
    #[error(transparent)]
    NotProven(Box<CliError>),
    /// A spawn that failed, and after which the agent may run.
    #[error("agent {agent} may run all the same")]
    MayRun {
        /// The agent.
        agent: AgentId,
        /// How it failed.
        source: Box<CliError>,
    },
    /// No answer.
    #[error("failed to reach {url}")]
    Unreachable {
        /// The node.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// A stream broke and could not be opened again.
    #[error("the event stream from {url} broke and could not be resumed")]
    StreamLost {
        /// The node.
        url: String,
    },
    /// An answer that is not one of this API.
    #[error("{url} answered with something else than this API: {why}")]
    Malformed {
        /// The node.
        url: String,
        /// What it was.
        why: String,
    },
    /// Standard output or input.
    #[error("failed to use standard input or output")]
    Stdio(#[from] io::Error),
    /// Output as JSON.
    #[error("failed to write JSON")]
    Json(#[from] serde_json::Error),
    /// `git am`.
    #[error("`git am` did not take the patch (status {status}); it is undone by `git am --abort`")]
    GitAm {
        /// Exit status.
        status: String,
    },
    /// `git fetch` of a bundle.
    #[error("`git fetch` did not take the bundle (status {status})")]
    GitFetch {
        /// Exit status.
        status: String,
    },
    /// The repository that one stands in lacks the commit that a bundle builds on.
    #[error(
        "the commit {commit} that the agent started from is not in this repository; fetch it first: `git fetch {repository} {branch}`"
    )]
    NoBase {
        /// The commit.
        commit: String,
        /// Where it came from.
        repository: String,
        /// From which branch.
        branch: String,
    },
    /// Nothing was saved beside the agent's branch.
    #[error("the agent's patch has nothing that was salvaged: it was not killed, or had no work")]
    NotSalvaged,
    /// `git` is not there.
    #[error("failed to run git; apply it elsewhere: `mosaic result AGENT --patch | git am`")]
    Git(#[source] io::Error),
    /// A hub of `dev` or `demo`.
    #[error("failed to start the hub")]
    StartHub(#[source] Box<mosaic_hub::app::StartError>),
    /// A spoke of `dev` or `demo`.
    #[error("failed to start {name}")]
    StartSpoke {
        /// Which.
        name: String,
        /// Why.
        source: Box<mosaic_orchestrator::app::StartError>,
    },
    /// A node of `dev` or `demo` ended badly.
    #[error("{name} did not stop in order: {why}")]
    Stop {
        /// Which.
        name: String,
        /// Why.
        why: String,
    },
    /// Something of `demo` did not prove itself.
    #[error("{step}: {why}")]
    Demo {
        /// What was shown.
        step: &'static str,
        /// What did not hold.
        why: String,
    },
}

/// An argument that clap cannot check.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UsageError {
    /// A short agent id that fits none.
    #[error("no agent's id starts or ends with `{0}`")]
    NoSuchAgent(String),
    /// A short agent id that fits several.
    #[error("more than one agent's id starts or ends with `{0}`")]
    AmbiguousAgent(String),
    /// A text that can be no agent id.
    #[error("`{0}` is no agent id, nor at least 4 hexadecimal digits of one")]
    NotAnAgent(String),
    /// No connection of that id or name.
    #[error("no connection has the id or name `{0}`")]
    NoSuchConnection(String),
    /// Several connections of that name.
    #[error("more than one connection has the name `{0}`; name it by its id")]
    AmbiguousConnection(String),
    /// No connection was named and there is not exactly one.
    #[error("there are {0} active connections to spokes; name one by --connection")]
    NameConnection(usize),
    /// A node's name that the ready file does not have.
    #[error("`{0}` is neither a URL nor a node of the `mosaic dev` that runs")]
    NoSuchNode(String),
    /// Several spokes.
    #[error("this is for a spoke: name one by --node")]
    NameSpoke,
    /// An image where there are no containers.
    #[error("--image is for --sandbox docker")]
    ImageOfNone,
}

impl CliError {
    /// The exit code.
    pub(crate) fn exit(&self) -> Exit {
        use mosaic_types::ErrorCode;
        match self {
            Self::Usage(_) | Self::NoNode | Self::NoToken { .. } => Exit::Usage,
            Self::NotProven(_) => Exit::KillIncomplete,
            Self::MayRun { source, .. } => source.exit(),
            Self::Refused(problem) if problem.code == ErrorCode::PeerUnreachable => {
                Exit::Unreachable
            }
            Self::Refused(_) => Exit::Refused,
            Self::Unreachable { .. } | Self::StreamLost { .. } => Exit::Unreachable,
            _ => Exit::Failure,
        }
    }

    /// Whether what was asked for may have been done all the same: an answer did not come, or does not say.
    pub(crate) fn outcome_unknown(&self) -> bool {
        use mosaic_types::ErrorCode;
        match self {
            // Without a connection nothing was sent.
            Self::Unreachable { source, .. } => !source.is_connect(),
            Self::Malformed { .. } => true,
            Self::Refused(problem) => matches!(
                problem.code,
                ErrorCode::PeerUnreachable
                    | ErrorCode::OutcomeUnknown
                    | ErrorCode::StoreUnavailable
                    | ErrorCode::ShuttingDown
                    | ErrorCode::Internal
            ),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use mosaic_types::{ErrorCode, Refusal};

    use super::*;

    #[test]
    fn exit_codes_are_those_that_are_documented() {
        let refused = |code| CliError::Refused(Box::new(Refusal::new(code, "x").into()));
        for (error, code) in [
            (CliError::NoNode, 2),
            (CliError::Usage(UsageError::NameConnection(2)), 2),
            (refused(ErrorCode::UnknownAgent), 3),
            (refused(ErrorCode::Unauthorized), 3),
            (refused(ErrorCode::PeerUnreachable), 4),
            (CliError::StreamLost { url: String::new() }, 4),
            (
                CliError::GitAm {
                    status: String::new(),
                },
                1,
            ),
        ] {
            assert_eq!(error.exit().code(), code, "{error}");
        }
        for (exit, code) in [
            (Exit::Ok, 0),
            (Exit::KillIncomplete, 5),
            (Exit::AgentNotCompleted, 6),
            (Exit::AuditBad, 7),
        ] {
            assert_eq!(exit.code(), code);
        }
    }
}
