//! The payload of each command, typed and within its bounds.

use mosaic_types::{
    ErrorCode, Refusal,
    command::{
        AgentRef, CommandType, KillAllPayload, KillPayload, ListPayload, MAX_REASON_CHARS,
        PingPayload, RenewPayload, ResultPayload, SpawnPayload, WatchPayload,
    },
    label::{self, Label, LabelError},
};
use serde_json::value::RawValue;

use crate::strict_json;

const MAX_WORK_ITEMS: usize = 100;
const MAX_WORK_ITEM_BYTES: usize = 16 << 10;
const MAX_INSTRUCTIONS_BYTES: usize = 256 << 10;
const MAX_SKILLS: usize = 50;
const MAX_SKILL_BYTES: usize = 128;
const MAX_BRANCH_BYTES: usize = 255;
const MAX_PAGE: u32 = 500;
const MAX_SECRETS: usize = 16;
/// Longest lease in seconds: a day. The shortest is the spoke's to say.
const MAX_LEASE_SECS: u64 = 86_400;
/// Most agents of one renewal.
const MAX_RENEWED: usize = 256;

/// What a command asks for. A handler never sees JSON.
#[derive(Debug, Clone, PartialEq)]
pub enum CommandPayload {
    /// `agent.spawn`
    Spawn(Box<SpawnPayload>),
    /// `agent.status`
    Status(AgentRef),
    /// `agent.list`
    List(ListPayload),
    /// `agent.kill`
    Kill(KillPayload),
    /// `agent.killAll`
    KillAll(KillAllPayload),
    /// `agent.watch`
    Watch(WatchPayload),
    /// `agent.result`
    Result(ResultPayload),
    /// `agent.renew`
    Renew(RenewPayload),
    /// `instance.ping`
    Ping(PingPayload),
}

impl CommandPayload {
    /// The command that it is the payload of.
    #[must_use]
    pub fn command_type(&self) -> CommandType {
        match self {
            Self::Spawn(_) => CommandType::AgentSpawn,
            Self::Status(_) => CommandType::AgentStatus,
            Self::List(_) => CommandType::AgentList,
            Self::Kill(_) => CommandType::AgentKill,
            Self::KillAll(_) => CommandType::AgentKillAll,
            Self::Watch(_) => CommandType::AgentWatch,
            Self::Result(_) => CommandType::AgentResult,
            Self::Renew(_) => CommandType::AgentRenew,
            Self::Ping(_) => CommandType::InstancePing,
        }
    }

    /// Reads the payload of a command. A spawn by an operator's own API goes through here as well.
    ///
    /// # Errors
    /// `invalid-request` with the member at fault, such as `context.workItems[3]`.
    pub fn parse(command_type: CommandType, json: &RawValue) -> Result<Self, Refusal> {
        let payload = match command_type {
            CommandType::AgentSpawn => Self::Spawn(read(json)?),
            CommandType::AgentStatus => Self::Status(read(json)?),
            CommandType::AgentList => Self::List(read(json)?),
            CommandType::AgentKill => Self::Kill(read(json)?),
            CommandType::AgentKillAll => Self::KillAll(read(json)?),
            CommandType::AgentWatch => Self::Watch(read(json)?),
            CommandType::AgentResult => Self::Result(read(json)?),
            CommandType::AgentRenew => Self::Renew(read(json)?),
            CommandType::InstancePing => Self::Ping(read(json)?),
        };
        payload.bounded()
    }

    /// Checks the bounds that the type does not express, and cuts what is documented to be cut.
    ///
    /// # Errors
    /// `invalid-request` with the member at fault.
    pub fn bounded(mut self) -> Result<Self, Refusal> {
        match &mut self {
            Self::Spawn(spawn) => check_spawn(spawn)?,
            Self::List(list) => {
                if list
                    .limit
                    .is_some_and(|limit| limit == 0 || limit > MAX_PAGE)
                {
                    return Err(invalid("limit", format!("not 1 to {MAX_PAGE}")));
                }
                check_label(list.label.as_ref())?;
            }
            // A kill is never refused for a reason that is too long.
            Self::Kill(kill) => cut(&mut kill.reason),
            Self::KillAll(kill) => {
                cut(&mut kill.reason);
                check_label(kill.label.as_ref())?;
            }
            Self::Renew(renew) => {
                if !(1..=MAX_RENEWED).contains(&renew.agent_ids.len()) {
                    return Err(invalid("agentIds", format!("not 1 to {MAX_RENEWED}")));
                }
                check_lease("leaseSecs", Some(renew.lease_secs))?;
            }
            Self::Status(_) | Self::Watch(_) | Self::Result(_) | Self::Ping(_) => {}
        }
        Ok(self)
    }
}

fn read<T: serde::de::DeserializeOwned>(json: &RawValue) -> Result<T, Refusal> {
    strict_json::from_str(json.get()).map_err(|fault| fault.into_refusal(""))
}

fn invalid(field: impl Into<String>, message: impl Into<String>) -> Refusal {
    Refusal::field(ErrorCode::InvalidRequest, field, message)
}

fn cut(reason: &mut Option<String>) {
    if let Some(reason) = reason
        && let Some((end, _)) = reason.char_indices().nth(MAX_REASON_CHARS)
    {
        reason.truncate(end);
    }
}

fn check_label(label: Option<&Label>) -> Result<(), Refusal> {
    label
        .map_or(Ok(()), Label::check)
        .map_err(|fault| invalid("label", fault.to_string()))
}

fn check_lease(field: &str, lease_secs: Option<u64>) -> Result<(), Refusal> {
    match lease_secs {
        Some(secs) if secs == 0 || secs > MAX_LEASE_SECS => {
            Err(invalid(field, format!("not 1 to {MAX_LEASE_SECS}")))
        }
        Some(_) | None => Ok(()),
    }
}

fn check_text(field: &str, text: &str, max_bytes: usize) -> Result<(), Refusal> {
    if text.len() > max_bytes {
        return Err(invalid(field, format!("longer than {max_bytes} bytes")));
    }
    if text.contains('\0') {
        return Err(invalid(field, "holds a NUL"));
    }
    Ok(())
}

fn check_spawn(spawn: &SpawnPayload) -> Result<(), Refusal> {
    let context = &spawn.context;
    super::repository::check(&context.repository)
        .map_err(|fault| invalid("context.repository", fault.to_string()))?;
    if context.branch.is_empty() {
        return Err(invalid("context.branch", "empty"));
    }
    check_text("context.branch", &context.branch, MAX_BRANCH_BYTES)?;
    if context.work_items.len() > MAX_WORK_ITEMS {
        return Err(invalid(
            "context.workItems",
            format!("more than {MAX_WORK_ITEMS}"),
        ));
    }
    for (index, item) in context.work_items.iter().enumerate() {
        let field = format!("context.workItems[{index}]");
        check_text(&field, item, MAX_WORK_ITEM_BYTES)?;
    }
    let skills = context.skills.as_deref().unwrap_or_default();
    if skills.len() > MAX_SKILLS {
        return Err(invalid("context.skills", format!("more than {MAX_SKILLS}")));
    }
    for (index, skill) in skills.iter().enumerate() {
        let field = format!("context.skills[{index}]");
        check_text(&field, skill, MAX_SKILL_BYTES)?;
        if skill.is_empty() || skill.chars().any(char::is_control) {
            return Err(invalid(field, "empty, or holds a control character"));
        }
    }
    if let Some(instructions) = &context.instructions {
        check_text("context.instructions", instructions, MAX_INSTRUCTIONS_BYTES)?;
    }
    label::check_all(&spawn.labels).map_err(|(key, fault)| {
        // A key that is no key is not repeated.
        let field = match (key, fault) {
            (Some(key), LabelError::Value) => format!("labels.{key}"),
            _ => "labels".to_owned(),
        };
        invalid(field, fault.to_string())
    })?;
    let Some(options) = &spawn.options else {
        return Ok(());
    };
    check_lease("options.leaseSecs", options.lease_secs)?;
    if options.timeout_secs == Some(0) {
        return Err(invalid("options.timeoutSecs", "zero"));
    }
    if options.memory_mb == Some(0) {
        return Err(invalid("options.memoryMb", "zero"));
    }
    if let Some(network) = &options.network {
        network
            .check()
            .map_err(|fault| invalid("options.network", fault))?;
    }
    if let Some(secrets) = &options.secrets {
        let different: std::collections::BTreeSet<_> = secrets.iter().collect();
        if secrets.len() > MAX_SECRETS || different.len() < secrets.len() {
            let message = format!("more than {MAX_SECRETS}, or one twice");
            return Err(invalid("options.secrets", message));
        }
    }
    if options.budget_tokens == Some(0) {
        return Err(invalid("options.budgetTokens", "zero"));
    }
    for (field, amount) in [
        ("options.cpus", options.cpus),
        ("options.budgetUsd", options.budget_usd),
    ] {
        if amount.is_some_and(|amount| !(amount.is_finite() && amount > 0.0)) {
            return Err(invalid(field, "not a finite number above zero"));
        }
    }
    Ok(())
}
