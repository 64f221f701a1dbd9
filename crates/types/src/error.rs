//! Stable error codes: the part of a refusal that programs may rely on.

use serde::{Deserialize, Serialize};

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal, $retryable:literal;)*) => {
        /// A stable code of a refusal or failure, the same over HTTP (problem+json `code`) and in signed
        /// responses (`error.code`).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
        }

        impl ErrorCode {
            /// Every code, for documentation and tests.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The code as it is written on the wire.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The HTTP status that goes with it on the operators' API.
            #[must_use]
            pub fn http_status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// Whether the same request may succeed later, unchanged.
            #[must_use]
            pub fn retryable(self) -> bool {
                match self { $(Self::$name => $retryable,)* }
            }
        }
    };
}

error_codes! {
    /// No credentials, or ones that are not known. Says no more on purpose.
    Unauthorized = "unauthorized", 401, false;
    /// The token's role is too small.
    Forbidden = "forbidden", 403, false;
    /// No such route.
    NotFound = "not-found", 404, false;
    /// The route exists, the method does not.
    MethodNotAllowed = "method-not-allowed", 405, false;
    /// The body is not `application/json`.
    UnsupportedMediaType = "unsupported-media-type", 415, false;
    /// The body is larger than the limit.
    BodyTooLarge = "body-too-large", 413, false;
    /// The request did not arrive whole within the time limit.
    RequestTimeout = "request-timeout", 408, true;
    /// The body is not what the route or command takes; `field` names where.
    InvalidRequest = "invalid-request", 400, false;
    /// A signed body's `to` is not this instance.
    WrongRecipient = "wrong-recipient", 400, false;
    /// A signed body's `from` is not the peer whose key signed it.
    WrongSender = "wrong-sender", 400, false;
    /// A signed body is expired, or valid for longer than 300 s.
    Expired = "expired", 400, false;
    /// A signed body is issued in the future; the clocks differ.
    NotYetValid = "not-yet-valid", 400, true;
    /// No hop is left.
    HopLimit = "hop-limit", 400, false;
    /// The protocol version ranges do not meet.
    ProtocolUnsupported = "protocol-unsupported", 400, false;
    /// A message id, agent id or connection was used before with other content.
    Conflict = "conflict", 409, false;
    /// The message was claimed, and its outcome is not on record (yet): ask for the effect, don't repeat it.
    OutcomeUnknown = "outcome-unknown", 409, true;
    /// The node's clock was set back: whether the message was executed before cannot be told, so it is not executed.
    ClockSetBack = "clock-set-back", 503, true;
    /// A connection was changed by somebody else meanwhile.
    VersionConflict = "version-conflict", 409, true;
    /// The connection's state does not allow it.
    ConnectionNotActive = "connection-not-active", 409, false;
    /// No connection of that id.
    UnknownConnection = "unknown-connection", 404, false;
    /// The peering token is unknown, expired or used.
    InvalidToken = "invalid-token", 400, false;
    /// The grant does not include this command, repository, runtime, sandbox or secret.
    NotGranted = "not-granted", 403, false;
    /// A value is above the grant's cap.
    GrantExceeded = "grant-exceeded", 403, false;
    /// The connection's quota (agents at once, spawns a minute) is used up for now.
    QuotaExceeded = "quota-exceeded", 429, true;
    /// The connection's or the spoke's budget of the day is used up; it begins anew at midnight UTC.
    BudgetExhausted = "budget-exhausted", 429, true;
    /// A bounded table or queue is full.
    Overloaded = "overloaded", 503, true;
    /// Spawns are held until an operator releases the hold.
    Held = "held", 409, true;
    /// Free disk space is below the watermark.
    DiskFull = "disk-full", 507, true;
    /// No agent of that id (that the caller may see).
    UnknownAgent = "unknown-agent", 404, false;
    /// The agent has not ended, so there is no result.
    NotEnded = "not-ended", 409, true;
    /// The agent left no result of that kind.
    NoResult = "no-result", 404, false;
    /// The repository URL is not one served here, or nothing is there.
    UnknownRepository = "unknown-repository", 400, false;
    /// The repository could not be reached.
    RepositoryUnavailable = "repository-unavailable", 503, true;
    /// The branch does not exist, or its name is not legal.
    UnknownBranch = "unknown-branch", 400, false;
    /// The spoke has no such runtime, or the operator has not enabled it.
    UnknownRuntime = "unknown-runtime", 400, false;
    /// The runtime is configured, but its program is not installed.
    RuntimeUnavailable = "runtime-unavailable", 503, true;
    /// The sandbox is not one that this spoke offers.
    UnknownSandbox = "unknown-sandbox", 400, false;
    /// An option that this spoke's sandbox cannot enforce.
    UnsupportedOption = "unsupported-option", 400, false;
    /// The peer did not answer, or not with a verifiable answer.
    PeerUnreachable = "peer-unreachable", 502, true;
    /// No command of that message id.
    UnknownCommand = "unknown-command", 404, false;
    /// The store cannot be read or written.
    StoreUnavailable = "store-unavailable", 503, true;
    /// The node is shutting down.
    ShuttingDown = "shutting-down", 503, true;
    /// A fault of ours; the log has the details.
    Internal = "internal", 500, true;
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refusal or failure as a peer or client sees it: a code, a safe text, and the field at fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[error("{message} ({code})")]
pub struct Refusal {
    /// The stable code.
    pub code: ErrorCode,
    /// For a person; holds nothing that the caller may not know.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// The member of the request at fault, as a path such as `context.branch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

impl Refusal {
    /// A refusal that names no field.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retryable: code.retryable(),
            field: None,
        }
    }

    /// A refusal because of one member of the request.
    #[must_use]
    pub fn field(code: ErrorCode, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: Some(field.into()),
            ..Self::new(code, message)
        }
    }
}

/// RFC 9457 problem details, the body of every error of the HTTP APIs (`application/problem+json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// A URI reference that identifies the code: `/problems/<code>`.
    #[serde(rename = "type")]
    pub type_uri: String,
    /// The code's short meaning.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong with this request.
    pub detail: String,
    /// The stable code.
    pub code: ErrorCode,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// The member of the request at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self {
            type_uri: format!("/problems/{}", refusal.code),
            title: refusal.code.as_str().replace('-', " "),
            status: refusal.code.http_status(),
            detail: refusal.message,
            code: refusal.code,
            retryable: refusal.retryable,
            field: refusal.field,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_code_is_the_serialised_one() {
        for code in ErrorCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }

    #[test]
    fn every_code_is_documented_with_its_status() {
        let protocol = include_str!("../../../docs/protocol.md");
        for code in ErrorCode::ALL {
            let retry = if code.retryable() { "yes" } else { "no" };
            let row = format!("| `{code}` | {} | {retry} |", code.http_status());
            assert!(protocol.contains(&row), "docs/protocol.md lacks: {row}");
        }
    }
}
