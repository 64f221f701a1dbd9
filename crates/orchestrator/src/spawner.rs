//! Makes one attempt run: working tree, sandbox, go. Undoes what it began when it cannot go on.
//!
//! The record says `spawning` before anything here happens, the gate is asked before the first process, and the
//! hold is asked before and after it. Nothing of the agent's runs before the last of these checks.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use mosaic_node::with_causes;
use mosaic_store::AgentRecord;
use mosaic_types::{
    agent::{DeathProof, ProofMethod, Usage},
    command::{NetworkPolicy, SandboxKind, SpawnOptions},
    egress::{EgressRuleError, parse_rules},
};
use thiserror::Error;
use tokio::sync::SemaphorePermit;
use tracing::{info, warn};

use crate::{
    aside::aside,
    crash_points::crash_point,
    killswitch,
    layout::AgentLayout,
    lifecycle::{Cell, gate::LaunchRefused},
    runtime::{
        Invocation, InvocationError, Prompt, PromptError, PromptParts, ResolveError,
        SecretChoiceError,
    },
    sandbox::{
        Bind, EgressRules, LaunchSpec, Network, ResourceLimits, Sandbox, SandboxError,
        SandboxHandle, egress::set_proxy_variables,
    },
    surroundings::Surroundings,
    worktree::{
        BranchName, BranchNameError, Prepared, RepositoryUrl, RepositoryUrlError, WorktreeError,
    },
};

/// How long a sandbox may take to come up.
const INIT_WITHIN: Duration = Duration::from_secs(20);

/// Why an attempt does not run. Whatever it is, nothing of it runs.
#[derive(Debug)]
pub enum SpawnFailed {
    /// A kill was ordered.
    Ordered,
    /// Spawns are held.
    Held,
    /// Something went wrong.
    Broken {
        /// What, safe to show.
        detail: String,
        /// Whether another attempt may work.
        retryable: bool,
        /// How it is known that nothing runs.
        proof: DeathProof,
    },
}

/// What can go wrong on the way.
#[derive(Debug, Error)]
enum StepError {
    #[error("repository is not usable")]
    Repository(#[from] RepositoryUrlError),
    #[error("branch is not usable")]
    Branch(#[from] BranchNameError),
    #[error("failed to prepare the working tree")]
    Worktree(#[from] WorktreeError),
    #[error("failed to make the agent's folders")]
    Folders(#[source] std::io::Error),
    #[error("failed to write the prompt")]
    PromptFile(#[source] std::io::Error),
    #[error("runtime is not usable")]
    Runtime(#[from] ResolveError),
    #[error("failed to compose the prompt")]
    Prompt(#[from] PromptError),
    #[error("failed to choose the secrets")]
    Secrets(#[from] SecretChoiceError),
    #[error("failed to prepare the runtime")]
    Invocation(#[from] InvocationError),
    #[error("the sandbox `{0}` is not on offer any more")]
    NotOffered(SandboxKind),
    #[error("network is not usable")]
    Network(#[source] EgressRuleError),
    #[error("failed to start the sandbox")]
    Sandbox(#[from] SandboxError),
}

impl StepError {
    fn retryable(&self) -> bool {
        match self {
            Self::Worktree(error) => error.retryable(),
            Self::Folders(_)
            | Self::PromptFile(_)
            | Self::Invocation(InvocationError::Secret { .. }) => true,
            Self::Sandbox(SandboxError::Engine(error)) => error.retryable(),
            Self::Sandbox(error) => !matches!(error, SandboxError::InvalidLaunch { .. }),
            Self::NotOffered(_)
            | Self::Repository(_)
            | Self::Network(_)
            | Self::Branch(_)
            | Self::Runtime(_)
            | Self::Prompt(_)
            | Self::Secrets(_)
            | Self::Invocation(_) => false,
        }
    }
}

/// Makes the attempt that `record` describes ready to run: everything is there, and nothing of the agent's runs
/// before [`let_go`].
///
/// # Errors
/// [`SpawnFailed`]. Unless a kill was ordered, what was started is proven dead.
pub async fn launch(
    around: &Surroundings,
    cell: &Cell,
    record: &AgentRecord,
    layout: &AgentLayout,
) -> Result<Arc<dyn SandboxHandle>, SpawnFailed> {
    let prepared = tokio::select! {
        biased;
        // A kill does not wait for a fetch.
        () = cell.kill_answered.cancelled() => return Err(SpawnFailed::Ordered),
        prepared = prepare(around, cell, record, layout) => prepared,
    };
    let (sandbox, spec) = prepared.map_err(|error| broken(&error))?;
    let _turn = tokio::select! {
        biased;
        () = cell.kill_answered.cancelled() => return Err(SpawnFailed::Ordered),
        turn = turn_to_start(around, sandbox.kind()) => turn,
    };
    killswitch::heed(around);
    if around.hold.covers(cell.scope()) {
        return Err(SpawnFailed::Held);
    }
    // Groups are made and a process is started, which takes a while where a machine is busy.
    let handle = aside(|| {
        let prepared = sandbox
            .prepare(spec)
            .map_err(|error| broken(&error.into()))?;
        crash_point("spawn.prepared");
        match cell.gate.launch(|| sandbox.spawn(prepared)) {
            Ok(handle) => Ok(handle),
            Err(LaunchRefused::Ordered) => Err(SpawnFailed::Ordered),
            Err(LaunchRefused::Failed(error)) => Err(broken(&error.into())),
        }
    })?;
    crash_point("spawn.launched");
    match handle.init_started(INIT_WITHIN).await {
        Ok(()) => {
            crash_point("spawn.init-started");
            Ok(handle)
        }
        Err(error) => Err(undo(
            around,
            cell,
            record.options.sandbox,
            handle.as_ref(),
            Some(error),
        )
        .await),
    }
}

/// Waits until few enough others come up.
async fn turn_to_start(around: &Surroundings, kind: SandboxKind) -> Option<SemaphorePermit<'_>> {
    match kind {
        // Never closed.
        SandboxKind::Process => {
            let turn = around.launches.acquire().await.ok();
            around.priority.stand_aside().await;
            turn
        }
        SandboxKind::Docker => None,
    }
}

/// Lets a launched agent run, unless a kill or a hold came meanwhile.
///
/// # Errors
/// As [`launch`].
pub async fn let_go(
    around: &Surroundings,
    cell: &Cell,
    record: &AgentRecord,
    handle: &dyn SandboxHandle,
) -> Result<(), SpawnFailed> {
    let kind = record.options.sandbox;
    killswitch::heed(around);
    // No hold can be set and answered between the look and the word.
    match around.hold.unless_held(cell.scope(), || handle.go()) {
        Some(Ok(())) => {
            crash_point("spawn.let-go");
            Ok(())
        }
        Some(Err(error)) => Err(undo(around, cell, kind, handle, Some(error)).await),
        None => Err(undo(around, cell, kind, handle, None).await),
    }
}

/// Undoes a launch because of an error, or else of a hold. After a kill order the proof is the killswitch's.
async fn undo(
    around: &Surroundings,
    cell: &Cell,
    kind: Option<SandboxKind>,
    handle: &dyn SandboxHandle,
    error: Option<SandboxError>,
) -> SpawnFailed {
    if cell.gate.ordered().is_some() {
        return SpawnFailed::Ordered;
    }
    let proof = killswitch::kill_and_prove(handle).await;
    if let Err(error) = around
        .sandboxes
        .cleanup(kind, cell.scope(), cell.agent_id)
        .await
    {
        warn!(agent = %cell.agent_id, error = &error as &dyn std::error::Error, "failed to clean up a launch");
    }
    cell.attempt_over(proof.clone());
    match error {
        None => SpawnFailed::Held,
        Some(error) => {
            let error = StepError::Sandbox(error);
            SpawnFailed::Broken {
                detail: with_causes(&error),
                retryable: error.retryable(),
                proof,
            }
        }
    }
}

/// Makes everything that a launch needs on disk.
async fn prepare(
    around: &Surroundings,
    cell: &Cell,
    record: &AgentRecord,
    layout: &AgentLayout,
) -> Result<(Arc<dyn Sandbox>, LaunchSpec), StepError> {
    let kind = record
        .options
        .sandbox
        .unwrap_or(around.sandboxes.default_kind());
    let sandbox = around
        .sandboxes
        .of(kind)
        .ok_or(StepError::NotOffered(kind))?;
    let request = &record.request;
    let repository = RepositoryUrl::parse(&request.context.repository)?;
    let branch = BranchName::parse(&request.context.branch)?;
    let runtime = record.status.runtime.to_string();
    let tree = around
        .worktrees
        .prepare(&record.agent_id, &repository, &branch, || {
            sandbox.announce(&runtime);
        })
        .await?;
    crash_point("spawn.tree-ready");
    layout.make().map_err(StepError::Folders)?;
    let invocation = invocation(around, record, &tree)?;
    let stdin = match &invocation.stdin {
        Some(prompt) => {
            fs::write(layout.prompt(), prompt).map_err(StepError::PromptFile)?;
            Some(layout.prompt())
        }
        None => None,
    };
    info!(agent = %record.agent_id, attempt = record.status.attempt, base = tree.base_commit, "tree is ready");
    let mut spec = launch_spec(around, cell, record, layout, &tree, invocation, stdin)?;
    if sandbox.containment().limits.pids {
        spec.limits.pids = Some(around.limits.max_processes);
    }
    sandbox.hand_over(&spec).await?;
    Ok((sandbox, spec))
}

fn invocation(
    around: &Surroundings,
    record: &AgentRecord,
    tree: &Prepared,
) -> Result<Invocation, StepError> {
    let context = &record.request.context;
    let prompt = Prompt::compose(&PromptParts {
        task_id: &record.request.task_id,
        agent_type: record.request.agent_type,
        branch: &tree.branch,
        work_items: &context.work_items,
        skills: context.skills.as_deref().unwrap_or_default(),
        instructions: context.instructions.as_deref(),
    })?;
    let runtime = match record.status.sandbox {
        SandboxKind::Process => around.runtimes.resolve(&record.status.runtime)?,
        SandboxKind::Docker => around.runtimes.resolve_in_image(&record.status.runtime)?,
    };
    let runtime = runtime.with_secrets(record.options.secrets.iter().flatten())?;
    let budget_usd = record
        .options
        .budget_usd
        .filter(|_| !runtime.config().budget_args.is_empty())
        .map(|budget| left_of(budget, &record.status.usage));
    Ok(runtime.invocation(&prompt, budget_usd)?)
}

/// What is left of a budget after the attempts before; never nothing, which would be no amount. Whether there is
/// to be an attempt was asked before.
fn left_of(budget_usd: f64, usage: &Usage) -> f64 {
    const LEAST_USD: f64 = 1e-6;
    match usage.cost_usd {
        Some(cost_usd) => (budget_usd - cost_usd).max(LEAST_USD.min(budget_usd)),
        None => budget_usd,
    }
}

fn launch_spec(
    around: &Surroundings,
    cell: &Cell,
    record: &AgentRecord,
    layout: &AgentLayout,
    tree: &Prepared,
    invocation: Invocation,
    stdin: Option<PathBuf>,
) -> Result<LaunchSpec, StepError> {
    let options = &record.options;
    let request = &record.request;
    let mut argv = vec![invocation.program.to_string_lossy().into_owned()];
    argv.extend(invocation.args);
    // What is no text was not meant for an agent.
    let mut env: BTreeMap<String, String> = invocation
        .env
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.into_string().ok()?)))
        .collect();
    env.insert(
        "HOME".to_owned(),
        layout.home().to_string_lossy().into_owned(),
    );
    env.insert("TMPDIR".to_owned(), "/tmp".to_owned());
    env.insert("MOSAIC_AGENT_ID".to_owned(), request.agent_id.to_string());
    env.insert("MOSAIC_TASK_ID".to_owned(), request.task_id.to_string());
    let network = network(around, options)?;
    if matches!(network, Network::Allow(_)) {
        set_proxy_variables(&mut env);
    }
    let mut binds = vec![
        Bind::writable(&tree.workdir),
        Bind::writable(layout.home()),
        Bind::read_only(&tree.mirror_objects),
    ];
    binds.extend(invocation.read_only_paths.into_iter().map(Bind::read_only));
    let mut masked = vec![around.layout.data_dir().to_owned()];
    masked.extend(around.masked.iter().cloned());
    Ok(LaunchSpec {
        agent_id: cell.agent_id,
        scope: cell.scope(),
        agent_dir: layout.run_dir(),
        argv,
        env,
        cwd: tree.workdir.clone(),
        stdin,
        binds,
        masked,
        network,
        limits: ResourceLimits {
            memory_mb: options.memory_mb,
            cpus: options.cpus,
            pids: None,
        },
        spool_max_bytes: around.limits.spool_max_bytes,
        warm: Some(record.status.runtime.to_string()),
        masks: invocation.masks,
    })
}

fn network(around: &Surroundings, options: &SpawnOptions) -> Result<Network, StepError> {
    Ok(match &options.network {
        Some(NetworkPolicy::None) => Network::None,
        Some(NetworkPolicy::Open) | None => Network::Host,
        Some(NetworkPolicy::Allow(list)) => Network::Allow(EgressRules {
            allow: parse_rules(list).map_err(|(_, error)| StepError::Network(error))?,
            private: around.egress.private_hosts.clone(),
        }),
    })
}

/// A failure before any process was started.
fn broken(error: &StepError) -> SpawnFailed {
    SpawnFailed::Broken {
        detail: with_causes(error),
        retryable: error.retryable(),
        proof: killswitch::proof_of(ProofMethod::NeverStarted, Instant::now()),
    }
}
