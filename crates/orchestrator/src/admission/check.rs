//! What an agent and its spoke must satisfy before it may exist. Each refusal names the field at fault.

use std::path::Path;

use mosaic_types::{
    ErrorCode, Refusal, RuntimeName, Timestamp,
    command::{NetworkPolicy, SandboxKind, SpawnOptions, SpawnPayload},
};
use tracing::warn;

use super::Requester;
use crate::{
    config::MAX_LEASE_SECS,
    killswitch::Spawn,
    runtime::{Prompt, PromptError, PromptParts, ResolveError, ResolvedRuntime},
    sandbox::Scope,
    surroundings::Surroundings,
    worktree::{BranchName, RepositoryUrl, WorktreeError},
};

const RUNTIME_BY_DEFAULT: &str = "claude";

/// Checks what does not depend on the request.
pub(super) fn spoke(around: &Surroundings, requester: &Requester) -> Result<(), Refusal> {
    let scope = requester
        .connection_id
        .map_or(Scope::Local, Scope::Connection);
    if around.hold.covers(scope) {
        return Err(held());
    }
    disk(around)
}

/// Refuses a spawn that a kill has overtaken: one of the same peer on the way, or one of the operator here.
pub(super) fn overtaken(
    around: &Surroundings,
    requester: &Requester,
    request: &SpawnPayload,
) -> Result<(), Refusal> {
    let spawn = Spawn {
        agent: request.agent_id,
        task: &request.task_id,
        labels: &request.labels,
    };
    let orders = &around.past_orders;
    orders.refuse_here(requester.connection_id, spawn, requester.received)?;
    match (requester.connection_id, requester.issued_at) {
        (Some(connection), Some(issued_at)) => orders.refuse(connection, spawn, issued_at),
        _ => Ok(()),
    }
}

/// Checks the lease that was asked for. One that the grant imposes is its operator's to know.
pub(super) fn lease(
    around: &Surroundings,
    requester: &Requester,
    request: &SpawnPayload,
) -> Result<(), Refusal> {
    const FIELD: &str = "options.leaseSecs";
    let asked = request
        .options
        .as_ref()
        .and_then(|options| options.lease_secs);
    let Some(secs) = asked else {
        return Ok(());
    };
    if requester.connection_id.is_none() {
        let why = "a lease is renewed by the peer that asked for the agent; here nobody would";
        return Err(Refusal::field(ErrorCode::UnsupportedOption, FIELD, why));
    }
    let least = around.limits.min_lease_secs;
    if !(least..=MAX_LEASE_SECS).contains(&secs) {
        let why = format!("must be {least} to {MAX_LEASE_SECS}");
        return Err(Refusal::field(ErrorCode::InvalidRequest, FIELD, why));
    }
    Ok(())
}

pub(super) fn held() -> Refusal {
    Refusal::new(
        ErrorCode::Held,
        "spawns are held until the spoke's operator releases the hold",
    )
}

/// Whether there is room on the disk for one more launch: asked before an agent is accepted, and before each
/// attempt (A26).
///
/// # Errors
/// `disk-full`, which may pass.
pub(crate) fn disk(around: &Surroundings) -> Result<(), Refusal> {
    let free_mb = free_disk_mb(around.layout.data_dir());
    let needed_mb = around.limits.min_free_disk_mb;
    if free_mb.is_some_and(|free_mb| free_mb < needed_mb) {
        return Err(Refusal::new(
            ErrorCode::DiskFull,
            format!("less than {needed_mb} MiB of disk space are free"),
        ));
    }
    Ok(())
}

pub(super) async fn request(
    around: &Surroundings,
    request: &SpawnPayload,
    requester: &Requester,
) -> Result<RuntimeName, Refusal> {
    let options = &requester.options;
    let context = &request.context;
    let repository = RepositoryUrl::parse(&context.repository).map_err(|error| {
        Refusal::field(
            ErrorCode::UnknownRepository,
            "context.repository",
            error.to_string(),
        )
    })?;
    let branch = BranchName::parse(&context.branch).map_err(|error| {
        Refusal::field(
            ErrorCode::UnknownBranch,
            "context.branch",
            error.to_string(),
        )
    })?;
    let kind = options.sandbox.unwrap_or(around.sandboxes.default_kind());
    let (name, runtime) = runtime(around, request, kind)?;
    let absent = SpawnOptions::default();
    let asked = request.options.as_ref().unwrap_or(&absent);
    check_options(around, asked, options)?;
    if options.push == Some(true) && !around.worktrees.pushes_to(&repository) {
        return Err(Refusal::field(
            ErrorCode::UnsupportedOption,
            "options.push",
            "this spoke does not push to this repository",
        ));
    }
    check_budgets(&runtime, asked, options)?;
    if runtime.config().tells_usage() {
        around
            .budgets
            .admit(requester.connection_id, Timestamp::now())?;
    }
    around
        .worktrees
        .check(&repository, &branch)
        .await
        .map_err(|error| worktree_refusal(&error))?;
    Ok(name)
}

fn runtime(
    around: &Surroundings,
    request: &SpawnPayload,
    kind: SandboxKind,
) -> Result<(RuntimeName, ResolvedRuntime), Refusal> {
    let name = match &request.runtime {
        Some(name) => name.clone(),
        None => RUNTIME_BY_DEFAULT
            .parse()
            .map_err(|_| Refusal::new(ErrorCode::Internal, "the default runtime has no name"))?,
    };
    let resolved = match kind {
        SandboxKind::Process => around.runtimes.resolve(&name),
        SandboxKind::Docker => around.runtimes.resolve_in_image(&name),
    };
    let runtime = resolved.map_err(|error| {
        let code = match error {
            ResolveError::Unknown { .. } => ErrorCode::UnknownRuntime,
            ResolveError::Unavailable { .. } => ErrorCode::RuntimeUnavailable,
        };
        Refusal::field(code, "runtime", error.to_string())
    })?;
    let context = &request.context;
    let prompt = Prompt::compose(&PromptParts {
        task_id: &request.task_id,
        agent_type: request.agent_type,
        branch: &context.branch,
        work_items: &context.work_items,
        skills: context.skills.as_deref().unwrap_or_default(),
        instructions: context.instructions.as_deref(),
    })
    .map_err(|error| prompt_refusal(&error))?;
    runtime
        .check_prompt(&prompt)
        .map_err(|error| prompt_refusal(&error))?;
    Ok((name, runtime))
}

/// Checks the options that an agent would run with. What it did not ask for comes from a default or from a cap of
/// the grant, and whoever is refused for it is told so.
fn check_options(
    around: &Surroundings,
    asked: &SpawnOptions,
    options: &SpawnOptions,
) -> Result<(), Refusal> {
    let limits = &around.limits;
    let invalid = |field: &str, message: &str| {
        Err(Refusal::field(
            ErrorCode::InvalidRequest,
            format!("options.{field}"),
            message,
        ))
    };
    let unsupported = |field: &str, message: &str, was_asked: bool| {
        let message = if was_asked {
            message.to_owned()
        } else {
            format!("the grant caps it, and {message}")
        };
        Err(Refusal::field(
            ErrorCode::UnsupportedOption,
            format!("options.{field}"),
            message,
        ))
    };
    let kind = options.sandbox.unwrap_or(around.sandboxes.default_kind());
    let Some(sandbox) = around.sandboxes.of(kind) else {
        return Err(Refusal::field(
            ErrorCode::UnknownSandbox,
            "options.sandbox",
            format!(
                "this spoke offers the sandbox `{}`",
                around.sandboxes.default_kind()
            ),
        ));
    };
    let enforced = sandbox.containment().limits;
    if options
        .timeout_secs
        .is_some_and(|secs| secs == 0 || secs > limits.max_timeout_secs)
    {
        let range = format!("must be 1 to {}", limits.max_timeout_secs);
        return invalid("timeoutSecs", &range);
    }
    if options
        .max_retries
        .is_some_and(|retries| retries > limits.max_retries)
    {
        return invalid(
            "maxRetries",
            &format!("must be 0 to {}", limits.max_retries),
        );
    }
    if options.memory_mb.is_some_and(|mb| mb < 16) {
        return invalid("memoryMb", "must be at least 16");
    }
    if options
        .cpus
        .is_some_and(|cpus| !cpus.is_finite() || !(0.01..=1024.0).contains(&cpus))
    {
        return invalid("cpus", "must be 0.01 to 1024");
    }
    if options.memory_mb.is_some() && !enforced.memory {
        let was_asked = asked.memory_mb.is_some();
        return unsupported("memoryMb", "this spoke cannot limit memory", was_asked);
    }
    if options.cpus.is_some() && !enforced.cpu {
        let was_asked = asked.cpus.is_some();
        return unsupported("cpus", "this spoke cannot limit CPU", was_asked);
    }
    if let Some(network @ NetworkPolicy::Allow(_)) = &options.network {
        if let Err(fault) = network.check() {
            return invalid("network", &fault);
        }
        if !sandbox.containment().egress {
            let whose = match &asked.network {
                Some(_) => "",
                None => ", which the grant or this spoke's default asks for",
            };
            return Err(Refusal::field(
                ErrorCode::UnsupportedOption,
                "options.network",
                format!("this spoke cannot keep an agent to an allow-list{whose}"),
            ));
        }
    }
    Ok(())
}

/// A budget is held against what the runtime tells that it uses; one in US dollars may be kept by the runtime
/// itself. What cannot be kept is refused.
fn check_budgets(
    runtime: &ResolvedRuntime,
    asked: &SpawnOptions,
    options: &SpawnOptions,
) -> Result<(), Refusal> {
    let config = runtime.config();
    let tells_usage = config.tells_usage();
    let usd = Asked {
        field: "options.budgetUsd",
        by_spawn: asked.budget_usd.is_some(),
        is_amount: options
            .budget_usd
            .is_some_and(|usd| usd.is_finite() && usd > 0.0),
        is_kept: tells_usage || !config.budget_args.is_empty(),
    };
    let tokens = Asked {
        field: "options.budgetTokens",
        by_spawn: asked.budget_tokens.is_some(),
        is_amount: options.budget_tokens.is_some_and(|tokens| tokens > 0),
        is_kept: tells_usage,
    };
    if options.budget_usd.is_some() {
        check_budget(&config.name, &usd)?;
    }
    if options.budget_tokens.is_some() {
        check_budget(&config.name, &tokens)?;
    }
    Ok(())
}

/// A budget that an agent is to have, by its spawn's wish or by the grant.
struct Asked {
    field: &'static str,
    by_spawn: bool,
    is_amount: bool,
    is_kept: bool,
}

fn check_budget(name: &RuntimeName, budget: &Asked) -> Result<(), Refusal> {
    let (code, field, message) = match (budget.by_spawn, budget.is_kept) {
        (_, true) if budget.is_amount => return Ok(()),
        (true, true) => (
            ErrorCode::InvalidRequest,
            budget.field,
            "must be above 0".to_owned(),
        ),
        (true, false) => (
            ErrorCode::UnsupportedOption,
            budget.field,
            format!("the runtime `{name}` cannot keep a budget"),
        ),
        (false, true) => (
            ErrorCode::GrantExceeded,
            budget.field,
            "the grant leaves no budget".to_owned(),
        ),
        (false, false) => (
            ErrorCode::UnsupportedOption,
            "runtime",
            format!("the grant caps the budget, and the runtime `{name}` cannot keep one"),
        ),
    };
    Err(Refusal::field(code, field, message))
}

/// Free disk space for this user, in MiB; `None` if the system does not tell.
fn free_disk_mb(dir: &Path) -> Option<u64> {
    match rustix::fs::statvfs(dir) {
        Ok(stat) => Some(stat.f_bavail.saturating_mul(stat.f_frsize) >> 20),
        Err(error) => {
            warn!(
                ?dir,
                error = &error as &dyn std::error::Error,
                "failed to ask for free disk space"
            );
            None
        }
    }
}

fn prompt_refusal(error: &PromptError) -> Refusal {
    Refusal::field(ErrorCode::InvalidRequest, error.field(), error.to_string())
}

/// A worktree's failure as the caller sees it.
#[must_use]
fn worktree_refusal(error: &WorktreeError) -> Refusal {
    let code = error.code();
    match error.field() {
        Some(field) => Refusal::field(code, field, error.to_string()),
        None => Refusal::new(code, error.to_string()),
    }
}
