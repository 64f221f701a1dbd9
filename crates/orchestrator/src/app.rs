//! Puts a spoke together: configuration → node and sandbox → take-over of what runs → routes → serve → drain.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use mosaic_node::{Node, NodeConfig, OpenError, fallback, federation_routes, health_routes, serve};
use mosaic_types::{
    Timestamp,
    command::{NetworkPolicy, SandboxKind},
    connection::NodeRole,
};
use nix::unistd::{User, geteuid};
use thiserror::Error;
use tokio::{net::TcpListener, sync::Semaphore, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use crate::{
    admission::Admission,
    agents::Agents,
    api,
    budget::Budgets,
    commands::Commands,
    hold::{Hold, HoldError},
    kill_journal::{JournalError, KillJournal},
    killswitch::{self, Killswitch},
    layout::Layout,
    leases::LeaseWatch,
    lifecycle::{Drivers, Fleet, lease::LeaseClock},
    reconciler::{ReconcileError, Reconciler},
    retention::Retention,
    runtime::{self, HostEnv, RuntimeCatalog, RuntimeConfig},
    sandbox::{
        Bind, DockerSandbox, Network, PoolSettings, ProcessSandbox, ProcessSandboxConfig, Program,
        Sandbox, SandboxError, Sandboxes, Scope, Tree, WarmSettings,
    },
    secrets::{SecretConfigError, SecretPlace, Secrets},
    surroundings::Surroundings,
    tail::TailWatcher,
    worktree::{CredentialKind, WorktreeConfig, WorktreeError, Worktrees},
};

pub use crate::config::{Config, ConfigError};

/// How many harvests and clean-ups run at once.
const CHORES_AT_ONCE: usize = 2;

/// How many agents come up at once: one for each processor.
fn launches_at_once() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

/// Why a spoke does not start. Agents of an earlier run go on all the same.
#[derive(Debug, Error)]
pub enum StartError {
    /// The configuration is refused.
    #[error("failed to check the configuration")]
    Config(#[from] ConfigError),
    /// A runtime's configuration is refused.
    #[error("failed to read the runtimes")]
    Runtimes(#[from] runtime::ConfigError),
    /// A secret's configuration is refused.
    #[error("failed to read the secrets")]
    Secrets(#[from] SecretConfigError),
    /// The data folder cannot be found.
    #[error("failed to find the data folder {path:?}")]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The node cannot be opened.
    #[error("failed to open the node")]
    Node(#[from] OpenError),
    /// There is nothing that contains agents.
    #[error("failed to find a containment for agents")]
    Sandbox(#[source] SandboxError),
    /// A pool of waiting containers is for no runtime.
    #[error("failed to find the runtime of a pool of containers")]
    WarmRuntime(#[source] runtime::ResolveError),
    /// No sandbox is on offer.
    #[error("there is no sandbox on offer")]
    NoSandbox,
    /// Containment detection broke off.
    #[error("failed to finish looking for a containment")]
    Interrupted(#[source] tokio::task::JoinError),
    /// The working trees cannot be opened.
    #[error("failed to open the working trees")]
    Worktrees(#[from] WorktreeError),
    /// The holds cannot be opened.
    #[error("failed to open the holds")]
    Hold(#[from] HoldError),
    /// Word of kills cannot be read: starting without it could start a killed agent again.
    #[error("failed to open the journal of kills")]
    Kills(#[from] JournalError),
    /// What was spent today cannot be read: starting without it would give it out again.
    #[error("failed to read what was spent today")]
    Budgets(#[source] mosaic_store::StoreError),
    /// What an earlier run left cannot be taken over.
    #[error("failed to take over what runs")]
    TakeOver(#[from] ReconcileError),
    /// What leases are measured by cannot be read.
    #[error("failed to read the boot id")]
    Clock(#[source] std::io::Error),
    /// The listener has no address.
    #[error("failed to read the listener's address")]
    Address(#[source] std::io::Error),
}

/// A spoke that serves.
#[derive(Debug)]
pub struct Running {
    node: Node,
    address: SocketAddr,
    url: String,
    containment: String,
    killswitch: Killswitch,
    sandboxes: Sandboxes,
    server: JoinHandle<std::io::Result<()>>,
    tasks: TaskTracker,
}

impl Running {
    /// The node.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How peers and operators reach it.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What contains its agents.
    #[must_use]
    pub fn containment(&self) -> &str {
        &self.containment
    }

    /// How many containers wait for agents of a runtime.
    #[must_use]
    pub fn waiting_containers(&self, runtime: &str) -> usize {
        self.sandboxes
            .docker()
            .map_or(0, |docker| docker.waiting(runtime))
    }

    /// Its killswitch, for a host that embeds it.
    #[must_use]
    pub fn killswitch(&self) -> &Killswitch {
        &self.killswitch
    }

    /// Serves until the shutdown that it was started with, and drains. Agents go on: their drivers are let go,
    /// and the next start adopts them.
    ///
    /// # Errors
    /// If the listener failed.
    pub async fn wait(self) -> std::io::Result<()> {
        let served = self.server.await;
        self.tasks.close();
        self.tasks.wait().await;
        if let Some(docker) = self.sandboxes.docker() {
            docker.drain().await;
        }
        self.killswitch.words_left().await;
        if let Err(error) = self.sandboxes.release() {
            debug!(
                error = &error as &dyn std::error::Error,
                "something lives on"
            );
        }
        // Last: it gives up the lock of the data folder.
        self.node.close().await;
        served.unwrap_or_else(|error| Err(std::io::Error::other(error)))
    }
}

/// Starts a spoke on a listener.
///
/// # Errors
/// [`StartError`]; then nothing is served.
pub async fn start(
    config: Config,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<Running, StartError> {
    config.check()?;
    let host_env = HostEnv::new(std::env::vars_os());
    let secrets = Secrets::new(config.secrets.clone(), &host_env)?;
    for (name, error) in secrets.faults() {
        warn!(%name, error = &error as &dyn std::error::Error, "no agent can be given this secret");
    }
    let runtimes = RuntimeCatalog::with_secrets(config.runtime_configs(), host_env, secrets)?;
    let address = listener.local_addr().map_err(StartError::Address)?;
    let url = config
        .public_url
        .clone()
        .unwrap_or_else(|| format!("http://{address}"));
    let node = Node::open(NodeConfig {
        data_dir: config.data_dir.clone(),
        name: config.name.clone(),
        role: NodeRole::Orchestrator,
        public_url: Some(url.clone()),
        allow_private_peers: config.allow_private_peers,
        limits: config.http.clone(),
    })
    .await?;
    let data_dir = node
        .data_dir()
        .canonicalize()
        .map_err(|source| StartError::DataDir {
            path: config.data_dir.clone(),
            source,
        })?;
    let layout = Layout::new(data_dir.clone());
    let sandboxes = find_sandboxes(&config, &runtimes, &node, &data_dir).await?;
    let containment = sandboxes.describe();
    info!(name = config.name, instance = %node.instance_id(), containment, "starting");

    let worktrees = Worktrees::open(WorktreeConfig {
        credentials: config.git_credentials.clone(),
        pushes: config.push.clone(),
        ..WorktreeConfig::new(&data_dir)
    })
    .await?;
    let hold = Arc::new(Hold::open(&data_dir)?);
    let (kills, killed) = KillJournal::open(&data_dir)?;
    let limits = config.limits.clone();
    let fleet = Arc::new(Fleet::new(limits.max_running + limits.max_queued));
    let budgets = Budgets::load(node.clone(), &limits, Timestamp::now()).await;
    let budgets = Arc::new(budgets.map_err(StartError::Budgets)?);
    let around = Arc::new(Surroundings {
        fleet: Arc::clone(&fleet),
        store: Arc::clone(node.store()),
        sandboxes: sandboxes.clone(),
        worktrees,
        runtimes,
        hold: Arc::clone(&hold),
        kills: Arc::new(kills),
        words: TaskTracker::new(),
        slots: Arc::new(Semaphore::new(limits.max_running)),
        launches: Semaphore::new(launches_at_once()),
        priority: node.priority().clone(),
        chores: Arc::new(Semaphore::new(CHORES_AT_ONCE)),
        tails: Arc::new(TailWatcher::start()),
        layout,
        masked: masked(&config),
        limits,
        egress: config.egress.clone(),
        budgets: Arc::clone(&budgets),
        audit: node.audit().clone(),
        clock: LeaseClock::new().map_err(StartError::Clock)?,
        past_orders: killswitch::PastOrders::default(),
    });
    let tasks = TaskTracker::new();
    let drivers = Drivers::new(tasks.clone(), shutdown.clone());
    let reconciler = Reconciler::new(
        Arc::clone(&around),
        killed,
        node.audit().clone(),
        drivers.clone(),
    );
    let retention = Retention::new(Arc::clone(&around));
    let around_hold = Arc::clone(&hold);
    let found = reconciler.take_over().await?;
    info!(?found, "took over");

    let killswitch = Killswitch::new(Arc::clone(&around), node.audit().clone());
    let leases = LeaseWatch::new(Arc::clone(&around), killswitch.clone());
    tasks.spawn(leases.run(shutdown.clone()));
    let commands = Arc::new(Commands {
        node: node.clone(),
        admission: Arc::new(Admission::new(Arc::clone(&around), drivers)),
        agents: Agents::new(around),
        killswitch: killswitch.clone(),
        hold,
    });
    let router = fallback(
        federation_routes(node.clone(), Arc::clone(&commands) as _)
            .merge(health_routes(node.clone(), || async { Ok(()) }))
            .merge(api::routes(commands)),
    );
    tasks.spawn(node.background(shutdown.clone()));
    tasks.spawn(retention.run(shutdown.clone()));
    tasks.spawn(reconciler.keep_at_it(shutdown.clone()));
    if let Some(docker) = sandboxes.docker().cloned() {
        let (hold, stop) = (Arc::clone(&around_hold), shutdown.clone());
        tasks.spawn(docker.keep_warm(move || !hold.covers(Scope::Local), stop));
    }
    tasks.spawn(budgets.run(shutdown.clone()));
    let http_limits = node.limits().clone();
    let server = tokio::spawn(serve(listener, router, http_limits, shutdown));
    Ok(Running {
        node,
        address,
        url,
        containment,
        killswitch,
        sandboxes,
        server,
        tasks,
    })
}

/// Finds the sandboxes that this host offers. Where containers are configured, processes may be missing.
async fn find_sandboxes(
    config: &Config,
    runtimes: &RuntimeCatalog,
    node: &Node,
    data_dir: &Path,
) -> Result<Sandboxes, StartError> {
    // The hash's first characters tell this instance's cgroup from others' on the same machine.
    let instance: String = node.instance_id().as_str().chars().take(15).collect();
    let named = config.sandbox.program.clone();
    let program = tokio::task::spawn_blocking(|| named.map_or_else(Program::find, Program::at))
        .await
        .map_err(StartError::Interrupted)?;
    let settings = ProcessSandboxConfig {
        data_dir: data_dir.to_owned(),
        instance,
        engine: config.sandbox.engine,
        without_cgroup: config.sandbox.without_cgroup,
        program: program.clone(),
    };
    let detected = tokio::task::spawn_blocking(move || {
        let process = ProcessSandbox::detect(&settings);
        let tree = match &process {
            Ok(process) => Ok(process.tree().clone()),
            Err(_) => Tree::of(&settings),
        };
        (process, tree)
    })
    .await;
    let (process, tree) = detected.map_err(StartError::Interrupted)?;
    let Some(docker) = &config.sandbox.docker else {
        let process = process.map_err(StartError::Sandbox)?;
        return Sandboxes::new(Some(process), None, SandboxKind::Process)
            .ok_or(StartError::NoSandbox);
    };
    if let Err(error) = &process {
        info!(
            error = error as &dyn std::error::Error,
            "processes are not on offer"
        );
    }
    let warm = docker
        .warm
        .iter()
        .map(|pool| warm_settings(pool, runtimes))
        .collect::<Result<_, _>>()?;
    let docker = DockerSandbox::open(
        docker.clone(),
        warm,
        tree.map_err(StartError::Sandbox)?,
        data_dir,
        node.instance_id().to_string(),
        program,
    )
    .await
    .map_err(StartError::Sandbox)?;
    let default = config.sandbox.default.unwrap_or(SandboxKind::Process);
    Sandboxes::new(process.ok(), Some(docker), default).ok_or(StartError::NoSandbox)
}

/// A pool of waiting containers, with what its runtime needs of the host.
fn warm_settings(
    pool: &PoolSettings,
    runtimes: &RuntimeCatalog,
) -> Result<WarmSettings, StartError> {
    let runtime = runtimes
        .resolve_in_image(&pool.runtime)
        .map_err(StartError::WarmRuntime)?;
    Ok(WarmSettings {
        name: pool.runtime.to_string(),
        size: pool.size,
        network: match pool.network {
            NetworkPolicy::Open => Network::Host,
            // What a list lets through comes by a socket.
            NetworkPolicy::None | NetworkPolicy::Allow(_) => Network::None,
        },
        binds: runtime
            .read_only_paths()
            .into_iter()
            .map(Bind::read_only)
            .collect(),
    })
}

fn masked(config: &Config) -> Vec<PathBuf> {
    let of_env = std::env::var_os("HOME").map(PathBuf::from);
    let usual = homes(of_env).into_iter().flat_map(|home| {
        crate::config::SECRET_PLACES
            .iter()
            .map(move |place| home.join(place))
    });
    config
        .sandbox
        .masked
        .iter()
        .cloned()
        .chain(usual)
        .chain(secret_files(config))
        .collect()
}

/// The daemon's homes: that of its environment, which a service may lack or have another of, and that of its user.
fn homes(of_env: Option<PathBuf>) -> Vec<PathBuf> {
    let user = User::from_uid(geteuid()).unwrap_or_else(|error| {
        warn!(
            error = &error as &dyn std::error::Error,
            "failed to look for the home of the daemon's user"
        );
        None
    });
    let of_user = user.map(|user| user.dir).filter(|home| is_open(home));
    let mut homes: Vec<_> = of_env
        .into_iter()
        .chain(of_user)
        .filter(|home| home.is_absolute())
        .collect();
    homes.dedup();
    homes
}

/// Whether there may be something in a home. One that is closed to the daemon is closed to its agents, and one of a
/// service may be no directory: looking below it would fail each launch.
fn is_open(home: &Path) -> bool {
    home.join(".").metadata().map_or_else(
        |error| {
            !matches!(
                error.kind(),
                ErrorKind::NotADirectory | ErrorKind::PermissionDenied
            )
        },
        |home| home.is_dir(),
    )
}

/// The files of secrets: an agent has the daemon's user, so that no mode keeps it from reading them.
fn secret_files(config: &Config) -> impl Iterator<Item = PathBuf> {
    let named = config
        .secrets
        .values()
        .filter_map(|secret| match &secret.place {
            SecretPlace::File(file) => Some(file.clone()),
            SecretPlace::Env(_) => None,
        });
    let of_runtimes = config.runtimes.iter().flat_map(RuntimeConfig::secret_files);
    let of_git = config
        .git_credentials
        .iter()
        .map(|credential| match &credential.kind {
            CredentialKind::Ssh { key_file, .. } => key_file.clone(),
            CredentialKind::Token { token_file, .. } => token_file.clone(),
        });
    named.chain(of_runtimes.map(Path::to_owned)).chain(of_git)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_home_is_masked_whatever_the_environment_says() {
        let home = User::from_uid(geteuid()).unwrap().unwrap().dir;
        let elsewhere = PathBuf::from("/elsewhere");
        let both = vec![elsewhere.clone(), home.clone()];
        assert_eq!(homes(Some(elsewhere)), both);
        for of_env in [None, Some(PathBuf::new()), Some(home.clone())] {
            assert_eq!(homes(of_env), vec![home.clone()]);
        }
    }

    #[test]
    fn a_home_that_is_none_fails_no_launch() {
        assert!(!is_open(Path::new("/dev/null")));
        let folder = tempfile::tempdir().unwrap();
        assert!(is_open(folder.path()));
        // It may be made yet.
        assert!(is_open(&folder.path().join("later")));
    }
}
