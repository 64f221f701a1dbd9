//! Whether the grant includes what a command asks for. What is not named is not granted (F14).

use mosaic_types::{
    ErrorCode, Refusal, RuntimeName,
    command::{CommandType, NetworkPolicy, SandboxKind, SpawnOptions, SpawnPayload},
    grant::{Caps, Grants},
};

use super::{
    AddressedCommand, CommandPayload, Refused, admit::CommandParts, repository::RepositoryGlobs,
};

/// The runtime of a spawn that names none.
const DEFAULT_RUNTIME: &str = "claude";

/// What a spoke takes for what a spawn leaves out, as far as grants depend on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpawnDefaults {
    /// The sandbox. `None` on a node which does not know, because it forwards: a spawn that names no sandbox
    /// then needs a grant of all of them.
    pub sandbox: Option<SandboxKind>,
}

/// A command that the peer may give, with its payload typed and within bounds and caps.
#[derive(Debug, Clone)]
pub struct GrantedCommand {
    pub(super) parts: CommandParts,
    pub(super) caps: Caps,
}

impl AddressedCommand {
    /// Checks the command against what the peer was granted, and reads its payload.
    ///
    /// # Errors
    /// A refusal which names the member at fault.
    pub fn authorise(
        self,
        grants: &Grants,
        defaults: &SpawnDefaults,
    ) -> Result<GrantedCommand, Refused> {
        let command_type = self.body.command_type;
        let payload = if grants.commands.contains(&command_type) {
            CommandPayload::parse(command_type, &self.body.payload)
        } else {
            Err(Refusal::field(
                ErrorCode::NotGranted,
                "commandType",
                format!("{command_type} is not granted"),
            ))
        };
        let checked = payload.and_then(|payload| {
            if let CommandPayload::Spawn(spawn) = &payload {
                check_spawn(spawn, grants, defaults)?;
            }
            Ok(payload)
        });
        match checked {
            Ok(payload) => Ok(GrantedCommand {
                caps: grants.caps.clone(),
                parts: CommandParts::new(self, payload),
            }),
            Err(refusal) => Err(Refused {
                refusal,
                message_id: Some(self.body.message_id),
                digest: self.digest,
            }),
        }
    }
}

impl GrantedCommand {
    /// What it asks for.
    #[must_use]
    pub fn command_type(&self) -> CommandType {
        self.parts.payload.command_type()
    }

    /// Its payload, for what a quota needs to know; nothing is to be done for it yet.
    #[must_use]
    pub fn payload(&self) -> &CommandPayload {
        &self.parts.payload
    }
}

fn not_granted(field: &str, message: impl Into<String>) -> Refusal {
    Refusal::field(ErrorCode::NotGranted, field, message)
}

/// A peer that asks for a secret which is not granted, or not there: the same answer, so that nobody learns which
/// secrets exist.
#[must_use]
pub fn secret_not_granted() -> Refusal {
    not_granted("options.secrets", "a secret is not granted")
}

fn check_spawn(
    spawn: &SpawnPayload,
    grants: &Grants,
    defaults: &SpawnDefaults,
) -> Result<(), Refusal> {
    // A grant with a glob that does not parse grants no repository.
    let included = RepositoryGlobs::new(&grants.repositories)
        .is_ok_and(|globs| globs.include(&spawn.context.repository));
    if !included {
        return Err(not_granted(
            "context.repository",
            "the repository is not granted",
        ));
    }
    let runtime = match &spawn.runtime {
        Some(runtime) => Some(runtime.clone()),
        None => DEFAULT_RUNTIME.parse::<RuntimeName>().ok(),
    };
    let included = runtime
        .as_ref()
        .is_some_and(|name| grants.runtimes.iter().any(|pattern| pattern.matches(name)));
    if !included {
        return Err(not_granted("runtime", "the runtime is not granted"));
    }
    let absent = SpawnOptions::default();
    let options = spawn.options.as_ref().unwrap_or(&absent);
    let included = match options.sandbox.or(defaults.sandbox) {
        Some(sandbox) => grants.sandboxes.contains(&sandbox),
        None => [SandboxKind::Process, SandboxKind::Docker]
            .iter()
            .all(|sandbox| grants.sandboxes.contains(sandbox)),
    };
    if !included {
        return Err(not_granted("options.sandbox", "the sandbox is not granted"));
    }
    let mut secrets = options.secrets.iter().flatten();
    if secrets.any(|name| !grants.secrets.contains(name)) {
        return Err(secret_not_granted());
    }
    if options.push == Some(true) && !grants.push {
        return Err(not_granted("options.push", "pushing is not granted"));
    }
    check_caps(options, &grants.caps)
}

fn check_caps(options: &SpawnOptions, caps: &Caps) -> Result<(), Refusal> {
    fn at_most<T: PartialOrd + std::fmt::Display>(
        field: &str,
        asked: Option<T>,
        cap: Option<T>,
    ) -> Result<(), Refusal> {
        match (asked, cap) {
            (None, _) | (_, None) => Ok(()),
            (Some(asked), Some(cap)) if asked <= cap => Ok(()),
            // What cannot be compared ends here, too.
            (Some(asked), Some(cap)) => Err(Refusal::field(
                ErrorCode::GrantExceeded,
                field,
                format!("{asked} is above the granted {cap}"),
            )),
        }
    }
    at_most(
        "options.timeoutSecs",
        options.timeout_secs,
        Some(caps.max_timeout_secs),
    )?;
    at_most(
        "options.maxRetries",
        options.max_retries,
        Some(caps.max_retries),
    )?;
    at_most("options.memoryMb", options.memory_mb, caps.max_memory_mb)?;
    at_most("options.cpus", options.cpus, caps.max_cpus)?;
    at_most("options.budgetUsd", options.budget_usd, caps.max_budget_usd)?;
    at_most(
        "options.budgetTokens",
        options.budget_tokens,
        caps.max_budget_tokens,
    )?;
    at_most("options.leaseSecs", options.lease_secs, caps.max_lease_secs)?;
    if let Some(network) = &options.network
        && !caps.network.covers(network)
    {
        return Err(Refusal::field(
            ErrorCode::GrantExceeded,
            "options.network",
            "it reaches more than is granted",
        ));
    }
    Ok(())
}

/// The options that a spawn runs with: what it names, else the spoke's default, and never above the caps. A cap
/// holds for what was left out as well: a spoke's default above it is lowered, and no limit becomes the cap.
#[must_use]
pub(super) fn bounded_options(
    asked: Option<&SpawnOptions>,
    defaults: &SpawnOptions,
    caps: &Caps,
) -> SpawnOptions {
    fn least<T: PartialOrd + Copy>(value: Option<T>, cap: Option<T>) -> Option<T> {
        match (value, cap) {
            (Some(value), Some(cap)) => Some(if value < cap { value } else { cap }),
            (value, cap) => value.or(cap),
        }
    }
    let absent = SpawnOptions::default();
    let asked = asked.unwrap_or(&absent);
    let network = asked.network.as_ref().or(defaults.network.as_ref());
    SpawnOptions {
        sandbox: asked.sandbox.or(defaults.sandbox),
        timeout_secs: least(
            asked.timeout_secs.or(defaults.timeout_secs),
            Some(caps.max_timeout_secs),
        ),
        max_retries: asked
            .max_retries
            .or(defaults.max_retries)
            .map(|retries| retries.min(caps.max_retries)),
        lease_secs: least(
            asked.lease_secs.or(defaults.lease_secs),
            caps.max_lease_secs,
        ),
        memory_mb: least(asked.memory_mb.or(defaults.memory_mb), caps.max_memory_mb),
        cpus: least(asked.cpus.or(defaults.cpus), caps.max_cpus),
        // A default that is not within the cap gives way to it: there is no order to find a least one by.
        network: match network {
            Some(network) if caps.network.covers(network) => Some(network.clone()),
            Some(_) => Some(caps.network.clone()),
            None => (caps.network != NetworkPolicy::Open).then(|| caps.network.clone()),
        },
        budget_usd: least(
            asked.budget_usd.or(defaults.budget_usd),
            caps.max_budget_usd,
        ),
        secrets: asked.secrets.clone(),
        push: asked.push,
        budget_tokens: least(
            asked.budget_tokens.or(defaults.budget_tokens),
            caps.max_budget_tokens,
        ),
    }
}
