//! Quota, claim, and the command that a handler may execute.

use std::time::Duration;

use mosaic_types::{
    ConnectionId, ErrorCode, InstanceId, MessageId, Refusal, Timestamp,
    command::{CommandType, SpawnOptions},
    grant::Caps,
};
use serde_json::value::RawValue;

use super::{
    AddressedCommand, CommandPayload, GrantedCommand, Refused, authorise::bounded_options,
    body::lateness,
};
use crate::{CLOCK_SKEW_SECS, replay::KillClaim};

/// What a peer uses of its quota now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Its agents that are queued, spawning, running or killing.
    pub active_agents: u32,
    /// Its spawns that were admitted in the last 60 s.
    pub spawns_last_minute: u32,
}

#[derive(Debug, Clone)]
pub(super) struct CommandParts {
    peer: InstanceId,
    connection_id: ConnectionId,
    message_id: MessageId,
    pub(super) payload: CommandPayload,
    issued_at: Timestamp,
    expires_at: Timestamp,
    hops_left: u8,
    traceparent: Option<String>,
    on_behalf_of: Option<Box<RawValue>>,
    digest: [u8; 32],
}

impl CommandParts {
    pub(super) fn new(addressed: AddressedCommand, payload: CommandPayload) -> Self {
        let body = addressed.body;
        Self {
            peer: addressed.peer,
            connection_id: addressed.connection_id,
            message_id: body.message_id,
            payload,
            issued_at: body.issued_at,
            expires_at: body.expires_at,
            hops_left: body.hops_left,
            traceparent: body.traceparent,
            on_behalf_of: body.on_behalf_of,
            digest: addressed.digest,
        }
    }

    fn refuse(&self, refusal: Refusal) -> Refused {
        Refused {
            refusal,
            message_id: Some(self.message_id),
            digest: self.digest,
        }
    }

    fn claim_request(&self) -> ClaimRequest {
        let command_type = self.payload.command_type();
        ClaimRequest {
            peer: self.peer.clone(),
            message_id: self.message_id,
            digest: self.digest,
            // Well past the last moment at which it is taken: what was taken just before that is claimed after it.
            expires_at: self
                .expires_at
                .saturating_add(lateness(command_type) + Duration::from_secs(CLOCK_SKEW_SECS)),
            is_kill: command_type.is_kill(),
        }
    }
}

impl GrantedCommand {
    /// What would be claimed, for a look at whether it was claimed before: a repetition that was answered once
    /// need not fit into the quota again.
    #[must_use]
    pub fn claim_request(&self) -> ClaimRequest {
        self.parts.claim_request()
    }

    /// Checks the quota that is part of the grant by which the command was authorised. Only a spawn uses it;
    /// nothing that kills is ever held up by it.
    ///
    /// # Errors
    /// `quota-exceeded`.
    pub fn within(self, usage: &Usage) -> Result<ClaimableCommand, Refused> {
        let exceeded = |message: String| {
            self.parts
                .refuse(Refusal::new(ErrorCode::QuotaExceeded, message))
        };
        if self.command_type() == CommandType::AgentSpawn {
            let (agents, spawns) = (self.caps.max_agents, self.caps.spawns_per_minute);
            if usage.active_agents >= agents {
                return Err(exceeded(format!("{agents} agents at once are granted")));
            }
            if usage.spawns_last_minute >= spawns {
                return Err(exceeded(format!("{spawns} spawns a minute are granted")));
            }
        }
        Ok(ClaimableCommand(self))
    }
}

/// What is to be claimed, so that a command is executed at most once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRequest {
    pub(crate) peer: InstanceId,
    pub(crate) message_id: MessageId,
    pub(crate) digest: [u8; 32],
    pub(crate) expires_at: Timestamp,
    pub(crate) is_kill: bool,
}

impl ClaimRequest {
    /// The peer, by its verified key (F16: a response is kept under it, too).
    #[must_use]
    pub fn peer(&self) -> &InstanceId {
        &self.peer
    }

    /// The signed message id (F10).
    #[must_use]
    pub fn message_id(&self) -> MessageId {
        self.message_id
    }

    /// The request's digest: the same id with another digest is a conflict.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Until when the claim must be kept (F12): the command's expiry and the clock skew.
    #[must_use]
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// Whether it is of a command that kills.
    #[must_use]
    pub fn is_kill(&self) -> bool {
        self.is_kill
    }
}

/// How the claim came out, where it came out well.
#[derive(Debug)]
pub enum Claimed {
    /// The store has claimed it durably, for the first time. To be made from that outcome and no other.
    Fresh,
    /// It is claimed in memory. For kills alone.
    InMemory(KillClaim),
}

/// A command within the quota. It has to be claimed before it may be executed.
#[derive(Debug, Clone)]
pub struct ClaimableCommand(GrantedCommand);

impl ClaimableCommand {
    /// What it asks for.
    #[must_use]
    pub fn command_type(&self) -> CommandType {
        self.0.command_type()
    }

    /// Its payload, for what must be known before it is claimed; nothing is to be done for it yet.
    #[must_use]
    pub fn payload(&self) -> &CommandPayload {
        self.0.payload()
    }

    /// What to claim.
    #[must_use]
    pub fn claim_request(&self) -> ClaimRequest {
        self.0.claim_request()
    }

    /// A refusal of this command, because the claim did not come out well.
    #[must_use]
    pub fn refuse(&self, refusal: Refusal) -> Refused {
        self.0.parts.refuse(refusal)
    }

    /// Admits the command.
    ///
    /// # Errors
    /// `internal` if the claim in memory is not one of this very command. Such a claim is never of anything but a
    /// kill.
    pub fn admit(self, outcome: Claimed) -> Result<AdmittedCommand, Refused> {
        match outcome {
            Claimed::Fresh => Ok(AdmittedCommand { command: self.0 }),
            Claimed::InMemory(claim)
                if self.command_type().is_kill() && *claim.request() == self.claim_request() =>
            {
                Ok(AdmittedCommand { command: self.0 })
            }
            Claimed::InMemory(_) => Err(self.refuse(Refusal::new(
                ErrorCode::Internal,
                "the command was not claimed",
            ))),
        }
    }
}

/// A command that was verified, authorised and claimed: the only thing that a handler executes.
#[derive(Debug, Clone)]
pub struct AdmittedCommand {
    command: GrantedCommand,
}

impl AdmittedCommand {
    /// Who gave it, by the verified key and nothing in the body (F8).
    #[must_use]
    pub fn peer(&self) -> &InstanceId {
        &self.command.parts.peer
    }

    /// The connection by which it came.
    #[must_use]
    pub fn connection_id(&self) -> ConnectionId {
        self.command.parts.connection_id
    }

    /// Its id.
    #[must_use]
    pub fn message_id(&self) -> MessageId {
        self.command.parts.message_id
    }

    /// What it asks for.
    #[must_use]
    pub fn command_type(&self) -> CommandType {
        self.command.command_type()
    }

    /// Its payload.
    #[must_use]
    pub fn payload(&self) -> &CommandPayload {
        &self.command.parts.payload
    }

    /// Its payload, to keep.
    #[must_use]
    pub fn into_payload(self) -> CommandPayload {
        self.command.parts.payload
    }

    /// When it was issued, by the peer's clock.
    #[must_use]
    pub fn issued_at(&self) -> Timestamp {
        self.command.parts.issued_at
    }

    /// When it expires: a spawn is not begun after this.
    #[must_use]
    pub fn deadline(&self) -> Timestamp {
        self.command.parts.expires_at
    }

    /// How many more hops it may take (F24: inside the signed bytes). A forwarder sends one less, and refuses at
    /// zero with `hop-limit`.
    #[must_use]
    pub fn hops_left(&self) -> u8 {
        self.command.parts.hops_left
    }

    /// The W3C trace context, if it has one.
    #[must_use]
    pub fn traceparent(&self) -> Option<&str> {
        self.command.parts.traceparent.as_deref()
    }

    /// The envelope that it was forwarded for, byte for byte and not verified here.
    #[must_use]
    pub fn on_behalf_of(&self) -> Option<&RawValue> {
        self.command.parts.on_behalf_of.as_deref()
    }

    /// The request's digest, for the response.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.command.parts.digest
    }

    /// The caps of the grant by which it was authorised.
    #[must_use]
    pub fn caps(&self) -> &Caps {
        &self.command.caps
    }

    /// The options a spawn runs with: what it names, else `defaults`, and never above the caps. A cap holds for
    /// what was left out as well. For other commands, `defaults` within the caps.
    #[must_use]
    pub fn bounded_options(&self, defaults: &SpawnOptions) -> SpawnOptions {
        let asked = match self.payload() {
            CommandPayload::Spawn(spawn) => spawn.options.as_ref(),
            _ => None,
        };
        bounded_options(asked, defaults, &self.command.caps)
    }
}
