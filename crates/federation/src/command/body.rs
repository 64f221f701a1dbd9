//! The signed body of a command: its form, addresses and times.

use std::{borrow::Cow, str::FromStr, time::Duration};

use mosaic_types::{
    ConnectionId, ErrorCode, InstanceId, MessageId, Refusal, Timestamp, command::CommandType,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{MAX_HOPS, MAX_TTL_SECS};
use crate::{CLOCK_SKEW_SECS, strict_json};

/// Most bytes of `onBehalfOf`.
pub(super) const MAX_ON_BEHALF_OF_BYTES: usize = 512 << 10;

/// A command that its sender may give, addressed to this instance, and valid now. Not authorised yet.
#[derive(Debug, Clone)]
pub struct AddressedCommand {
    pub(super) peer: InstanceId,
    pub(super) connection_id: ConnectionId,
    pub(super) digest: [u8; 32],
    pub(super) body: Body,
}

impl AddressedCommand {
    /// What it asks for.
    #[must_use]
    pub fn command_type(&self) -> CommandType {
        self.body.command_type
    }

    /// Its id.
    #[must_use]
    pub fn message_id(&self) -> MessageId {
        self.body.message_id
    }
}

#[derive(Debug, Clone)]
pub(super) struct Body {
    pub(super) message_id: MessageId,
    pub(super) command_type: CommandType,
    pub(super) payload: Box<RawValue>,
    pub(super) issued_at: Timestamp,
    pub(super) expires_at: Timestamp,
    pub(super) hops_left: u8,
    pub(super) traceparent: Option<String>,
    pub(super) on_behalf_of: Option<Box<RawValue>>,
}

/// The members as they stand, so that a fault in one can be told by its name. Every time is required: one that
/// is absent or cannot be read is never taken for none (F4).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireBody<'a> {
    #[serde(borrow)]
    message_id: Cow<'a, str>,
    #[serde(borrow)]
    from: Cow<'a, str>,
    #[serde(borrow)]
    to: Cow<'a, str>,
    #[serde(borrow)]
    command_type: Cow<'a, str>,
    #[serde(borrow)]
    payload: &'a RawValue,
    #[serde(borrow)]
    issued_at: Cow<'a, str>,
    #[serde(borrow)]
    expires_at: Cow<'a, str>,
    hops_left: u64,
    #[serde(borrow, default)]
    traceparent: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    on_behalf_of: Option<&'a RawValue>,
}

type BodyRefusal = (Refusal, Option<MessageId>);

pub(super) fn parse(
    bytes: &[u8],
    peer: &InstanceId,
    me: &InstanceId,
    now: Timestamp,
) -> Result<Body, BodyRefusal> {
    if !strict_json::nests_within(bytes, strict_json::MAX_DEPTH) {
        let refusal = Refusal::new(ErrorCode::InvalidRequest, "the body nests too deeply");
        return Err((refusal, None));
    }
    let wire: WireBody<'_> =
        strict_json::from_slice(bytes).map_err(|fault| (fault.into_refusal(""), None))?;
    let message_id: MessageId = member("messageId", &wire.message_id).map_err(|r| (r, None))?;
    check(wire, message_id, peer, me, now).map_err(|refusal| (refusal, Some(message_id)))
}

fn check(
    wire: WireBody<'_>,
    message_id: MessageId,
    peer: &InstanceId,
    me: &InstanceId,
    now: Timestamp,
) -> Result<Body, Refusal> {
    let from: InstanceId = member("from", &wire.from)?;
    if from != *peer {
        return Err(Refusal::field(
            ErrorCode::WrongSender,
            "from",
            "the signing key belongs to another instance",
        ));
    }
    let to: InstanceId = member("to", &wire.to)?;
    if to != *me {
        return Err(Refusal::field(
            ErrorCode::WrongRecipient,
            "to",
            "this is another instance",
        ));
    }
    let command_type = member("commandType", &wire.command_type)?;
    let issued_at = member("issuedAt", &wire.issued_at)?;
    let expires_at = member("expiresAt", &wire.expires_at)?;
    check_times(issued_at, expires_at, now, lateness(command_type))?;
    let hops_left = u8::try_from(wire.hops_left)
        .ok()
        .filter(|hops| *hops <= MAX_HOPS)
        .ok_or_else(|| invalid("hopsLeft", format!("more than {MAX_HOPS}")))?;
    let traceparent = wire.traceparent.map(Cow::into_owned);
    if let Some(traceparent) = &traceparent
        && !is_traceparent(traceparent)
    {
        return Err(invalid("traceparent", "not a W3C trace context"));
    }
    let on_behalf_of = wire.on_behalf_of.map(ToOwned::to_owned);
    if let Some(original) = &on_behalf_of {
        if original.get().len() > MAX_ON_BEHALF_OF_BYTES {
            return Err(invalid("onBehalfOf", "too large"));
        }
        if !original.get().starts_with('{') {
            return Err(invalid("onBehalfOf", "not an envelope"));
        }
    }
    Ok(Body {
        message_id,
        command_type,
        payload: wire.payload.to_owned(),
        issued_at,
        expires_at,
        hops_left,
        traceparent,
        on_behalf_of,
    })
}

/// How much longer than it says a command is good. A kill says but seconds, and a caller whose clock is behind by no
/// more than another's may be ahead must be able to kill.
pub(super) fn lateness(command_type: CommandType) -> Duration {
    Duration::from_secs(if command_type.is_kill() {
        CLOCK_SKEW_SECS
    } else {
        0
    })
}

/// A window of (0, 300 s] that began at most 30 s in the future and has not ended, but for `lateness`.
pub(crate) fn check_times(
    issued_at: Timestamp,
    expires_at: Timestamp,
    now: Timestamp,
    lateness: Duration,
) -> Result<(), Refusal> {
    let longest = issued_at.saturating_add(Duration::from_secs(MAX_TTL_SECS));
    if expires_at <= issued_at || expires_at > longest {
        return Err(Refusal::field(
            ErrorCode::Expired,
            "expiresAt",
            format!("not within {MAX_TTL_SECS} s after issuedAt"),
        ));
    }
    if issued_at > now.saturating_add(Duration::from_secs(CLOCK_SKEW_SECS)) {
        return Err(Refusal::field(
            ErrorCode::NotYetValid,
            "issuedAt",
            format!("in the future of this instance, whose clock reads {now}"),
        ));
    }
    if expires_at.saturating_add(lateness) <= now {
        return Err(Refusal::field(
            ErrorCode::Expired,
            "expiresAt",
            format!("in the past of this instance, whose clock reads {now}"),
        ));
    }
    Ok(())
}

fn invalid(field: &str, message: impl Into<String>) -> Refusal {
    Refusal::field(ErrorCode::InvalidRequest, field, message)
}

fn member<T>(field: &str, text: &str) -> Result<T, Refusal>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    text.parse()
        .map_err(|error: T::Err| invalid(field, error.to_string()))
}

/// Version 00 of the W3C trace context: `00-<32 hex>-<16 hex>-<2 hex>`, lower case, ids not all zero.
fn is_traceparent(text: &str) -> bool {
    let mut parts = text.split('-');
    let mut hex = |chars: usize| {
        parts.next().filter(|part| {
            part.len() == chars
                && part
                    .bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        })
    };
    let nonzero = |part: &str| part.bytes().any(|byte| byte != b'0');
    let sound = hex(2) == Some("00")
        && hex(32).is_some_and(nonzero)
        && hex(16).is_some_and(nonzero)
        && hex(2).is_some();
    sound && parts.next().is_none()
}

impl strict_json::Fault {
    /// As a refusal; `prefix` is the path of the text that was read.
    pub(crate) fn into_refusal(self, prefix: &str) -> Refusal {
        let field = match (prefix.is_empty(), self.field.is_empty()) {
            (_, true) => prefix.to_owned(),
            (true, false) => self.field,
            (false, false) => format!("{prefix}.{}", self.field),
        };
        if field.is_empty() {
            Refusal::new(ErrorCode::InvalidRequest, self.reason)
        } else {
            Refusal::field(ErrorCode::InvalidRequest, field, self.reason)
        }
    }
}
