//! What every node is: an identity, its connections, its operators, its store and its audit trail.

use std::{
    future::Future,
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use mosaic_federation::identity::{Identity, IdentityError};
use mosaic_store::{Claim, SharedStore, StoreError, sqlite::SqliteStore};
use mosaic_types::{InstanceId, Timestamp, connection::NodeRole};
use thiserror::Error;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    audit_log::{AuditLog, SpillError},
    connections::Connections,
    endpoint::well_known::OwnIdentity,
    limits::HttpLimits,
    operators::{Operators, OperatorsError},
    peer_client::{BuildClientError, PeerClient},
    peering,
    priority::KillPriority,
};

/// Claims that have expired are forgotten this often.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// Claims of before a restart that are taken up, so that a kill is not executed again.
const MAX_EARLIER_CLAIMS: u32 = 32_768;

/// How long work under way may take when the node closes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// How to open a node.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The folder that holds all that the node keeps; made with mode 0700 if it is missing.
    pub data_dir: PathBuf,
    /// What the node calls itself to its peers.
    pub name: String,
    /// What it is.
    pub role: NodeRole,
    /// Where peers reach it, as scheme, host and port; `None` if only it reaches them.
    pub public_url: Option<String>,
    /// Whether it connects to private addresses, and without TLS (F18).
    pub allow_private_peers: bool,
    /// Bounds of the endpoint.
    pub limits: HttpLimits,
}

/// Why a node cannot be opened. Nothing is left half done: opening it again goes on where this ended.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The data folder.
    #[error("failed to make the data folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The identity.
    #[error("failed to open the identity")]
    Identity(#[source] IdentityError),
    /// The store.
    #[error("failed to open the store")]
    Store(#[source] StoreError),
    /// Claims in the store.
    #[error("failed to load the claims of before")]
    Claims(#[source] StoreError),
    /// Connections in the store.
    #[error("failed to load the connections")]
    Connections(#[source] StoreError),
    /// Operators' tokens.
    #[error("failed to open the operators' tokens")]
    Operators(#[source] OperatorsError),
    /// Audit entries that an earlier run kept back.
    #[error("failed to take up the audit entries that were kept back")]
    Audit(#[source] SpillError),
    /// The client for peers.
    #[error("failed to make the peer client")]
    PeerClient(#[source] BuildClientError),
    /// A blocking step did not end.
    #[error("failed to finish opening")]
    Interrupted(#[source] tokio::task::JoinError),
}

/// A node. Cheap to clone; all clones are the same node.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    config: NodeConfig,
    identity: Arc<Identity>,
    own_identity: OwnIdentity,
    public_url: RwLock<Option<String>>,
    store: SharedStore,
    connections: Connections,
    operators: Operators,
    audit: AuditLog,
    peers: PeerClient,
    priority: KillPriority,
    tasks: TaskTracker,
    /// Claims of before a restart, until the endpoint takes them.
    earlier_claims: Mutex<Vec<Claim>>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("name", &self.inner.config.name)
            .field("instance_id", self.instance_id())
            .finish_non_exhaustive()
    }
}

impl Node {
    /// Opens a node: its folder, identity and store, all that is cached, and the first operator's token.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(config: NodeConfig) -> Result<Self, OpenError> {
        let folder = config.data_dir.clone();
        let opening = tokio::task::spawn_blocking(move || {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder)
                .map_err(|source| OpenError::Folder {
                    path: folder.clone(),
                    source,
                })?;
            let identity = Identity::load_or_create(&folder).map_err(OpenError::Identity)?;
            let store = SqliteStore::open(&folder, mosaic_store::Limits::default())
                .map_err(OpenError::Store)?;
            Ok::<_, OpenError>((identity, store))
        });
        let (identity, store) = opening.await.map_err(OpenError::Interrupted)??;
        let store: SharedStore = Arc::new(store);
        let earlier_claims = store.unexpired_claims(Timestamp::now(), MAX_EARLIER_CLAIMS);
        let earlier_claims = earlier_claims.await.map_err(OpenError::Claims)?;
        let connections = Connections::load(Arc::clone(&store))
            .await
            .map_err(OpenError::Connections)?;
        let operators = Operators::open(Arc::clone(&store), &config.data_dir)
            .await
            .map_err(OpenError::Operators)?;
        let audit =
            AuditLog::open(Arc::clone(&store), &config.data_dir).map_err(OpenError::Audit)?;
        let identity = Arc::new(identity);
        let peers = PeerClient::new(
            Arc::clone(&identity),
            Arc::clone(&store),
            audit.clone(),
            config.allow_private_peers,
        )
        .map_err(OpenError::PeerClient)?;
        Ok(Self {
            inner: Arc::new(Inner {
                priority: KillPriority::new(&config.limits),
                public_url: RwLock::new(config.public_url.clone()),
                own_identity: OwnIdentity::default(),
                config,
                identity,
                store,
                connections,
                operators,
                audit,
                peers,
                tasks: TaskTracker::new(),
                earlier_claims: Mutex::new(earlier_claims),
            }),
        })
    }

    /// The key that the node signs with.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    /// The node's id.
    #[must_use]
    pub fn instance_id(&self) -> &InstanceId {
        self.inner.identity.instance_id()
    }

    /// What it calls itself.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.config.name
    }

    /// What it is.
    #[must_use]
    pub fn role(&self) -> NodeRole {
        self.inner.config.role
    }

    /// The folder that holds all that it keeps.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.inner.config.data_dir
    }

    /// Bounds of its endpoint.
    #[must_use]
    pub fn limits(&self) -> &HttpLimits {
        &self.inner.config.limits
    }

    /// Whether it connects to private addresses.
    #[must_use]
    pub fn allow_private_peers(&self) -> bool {
        self.inner.config.allow_private_peers
    }

    /// Its store.
    #[must_use]
    pub fn store(&self) -> &SharedStore {
        &self.inner.store
    }

    /// Its connections.
    #[must_use]
    pub fn connections(&self) -> &Connections {
        &self.inner.connections
    }

    /// Its operators.
    #[must_use]
    pub fn operators(&self) -> &Operators {
        &self.inner.operators
    }

    /// The client by which it commands its peers.
    #[must_use]
    pub fn peers(&self) -> &PeerClient {
        &self.inner.peers
    }

    /// The way to its audit trail.
    #[must_use]
    pub fn audit(&self) -> &AuditLog {
        &self.inner.audit
    }

    /// What lets kills go first here.
    #[must_use]
    pub fn priority(&self) -> &KillPriority {
        &self.inner.priority
    }

    /// Where peers reach it.
    #[must_use]
    pub fn public_url(&self) -> Option<String> {
        self.inner
            .public_url
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Says where peers reach it, which may be known only once a port is bound.
    pub fn set_public_url(&self, url: String) {
        *self
            .inner
            .public_url
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Some(url);
        self.inner.own_identity.forget();
    }

    pub(crate) fn own_identity(&self) -> &OwnIdentity {
        &self.inner.own_identity
    }

    /// Work that outlives the request that asked for it; [`close`](Self::close) waits for it.
    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.inner.tasks
    }

    /// What peers had asked for before a restart and may ask for again.
    pub(crate) fn take_earlier_claims(&self) -> Vec<Claim> {
        let claims = self.inner.earlier_claims.lock();
        std::mem::take(&mut *claims.unwrap_or_else(PoisonError::into_inner))
    }

    /// What goes on as long as the node does, until `shutdown`: stores audit entries that were kept back, forgets
    /// expired claims, and asks again for connections that wait at the other side.
    pub fn background(
        &self,
        shutdown: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        let node = self.clone();
        async move {
            tokio::join!(
                node.audit().run(shutdown.clone()),
                sweep(&node, &shutdown),
                peering::ask_again(&node, &shutdown),
            );
            node.audit().sum_refusals(Timestamp::now(), true);
        }
    }

    /// Waits for work under way, stores what was kept back, and closes the store.
    pub async fn close(&self) {
        self.inner.tasks.close();
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.inner.tasks.wait()).await;
        self.audit().sum_refusals(Timestamp::now(), true);
        let flushed = tokio::time::timeout(CLOSE_TIMEOUT, self.audit().flush()).await;
        if !matches!(flushed, Ok(Ok(()))) {
            self.audit().spill().await;
        }
        self.store().close().await;
    }
}

async fn sweep(node: &Node, shutdown: &CancellationToken) {
    let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let now = Timestamp::now();
        node.audit().sum_refusals(now, false);
        if let Err(error) = node.store().sweep_claims(now).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "failed to sweep expired claims"
            );
        }
    }
}
