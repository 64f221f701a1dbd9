//! Starts a hub and stops it: store, tasks, router, serve, drain.

use std::io;

use axum::Router;
use mosaic_node::{Node, OpenError};
use mosaic_store::StoreError;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{api, handler::HubHandler, routing::Routing};

pub use crate::config::Config;

/// Why a hub does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The node's identity, store or tokens.
    #[error("failed to open the node")]
    Open(#[from] OpenError),
    /// What the hub remembers of agents.
    #[error("failed to load where agents are")]
    Load(#[from] StoreError),
    /// The listener.
    #[error("failed to learn the address listened on")]
    Listener(#[source] io::Error),
}

/// Why a hub stopped other than by request.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The server failed.
    #[error("failed to serve")]
    Serve(#[source] io::Error),
    /// A task of the hub panicked.
    #[error("failed to join a task")]
    Join(#[from] tokio::task::JoinError),
}

/// A hub that serves.
#[derive(Debug)]
pub struct Running {
    node: Node,
    url: String,
    shutdown: CancellationToken,
    server: JoinHandle<io::Result<()>>,
    ledger: JoinHandle<()>,
    background: JoinHandle<()>,
    ledger_shutdown: CancellationToken,
}

/// Starts a hub on `listener`. It serves until `shutdown`.
///
/// # Errors
/// See [`StartError`]; nothing runs then.
pub async fn start(
    config: Config,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<Running, StartError> {
    let address = listener.local_addr().map_err(StartError::Listener)?;
    let node = Node::open(config.node()).await?;
    let url = format!("http://{address}");
    if config.public_url.is_none() {
        node.set_public_url(url.clone());
    }
    // The ledger outlives the server, so that what the last requests did is written down.
    let ledger_shutdown = CancellationToken::new();
    let (routing, ledger) =
        Routing::open(node.clone(), shutdown.clone(), ledger_shutdown.clone()).await?;
    let router = routes(&node, routing);
    let server = tokio::spawn(mosaic_node::serve(
        listener,
        router,
        config.limits,
        shutdown.clone(),
    ));
    let ledger = tokio::spawn(ledger);
    let background = tokio::spawn({
        let (node, shutdown) = (node.clone(), shutdown.clone());
        async move {
            node.background(shutdown).await;
        }
    });
    tracing::info!(instance = %node.instance_id(), %url, "hub started");
    Ok(Running {
        node,
        url,
        shutdown,
        server,
        ledger,
        background,
        ledger_shutdown,
    })
}

fn routes(node: &Node, routing: Routing) -> Router {
    let handler = HubHandler {
        node: node.clone(),
        routing: routing.clone(),
    };
    let router = Router::new()
        .nest("/api/v1", api::routes(node.clone(), routing))
        .merge(mosaic_node::federation_routes(
            node.clone(),
            std::sync::Arc::new(handler),
        ))
        .merge(mosaic_node::health_routes(node.clone(), || async {
            Ok(())
        }));
    mosaic_node::fallback(router)
}

impl Running {
    /// The node.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Waits until it was told to stop, lets requests under way finish, and closes the store.
    ///
    /// # Errors
    /// See [`RunError`]; everything is stopped then too.
    pub async fn wait(self) -> Result<(), RunError> {
        let served = self.server.await;
        // A server that failed takes the rest down with it.
        self.shutdown.cancel();
        let background = self.background.await;
        self.ledger_shutdown.cancel();
        let ledger = self.ledger.await;
        self.node.close().await;
        served?.map_err(RunError::Serve)?;
        background?;
        ledger?;
        Ok(())
    }
}

/// Logs to standard error; `RUST_LOG` filters, `info` if it says nothing.
pub fn init_logging(json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    // A second initialisation in one process changes nothing.
    let initialised = if json {
        logs.json().try_init()
    } else {
        logs.try_init()
    };
    drop(initialised);
}

/// A token that SIGINT or SIGTERM cancels.
///
/// # Errors
/// The handlers cannot be installed.
pub fn shutdown_on_signals() -> io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let shutdown = CancellationToken::new();
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let token = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        token.cancel();
    });
    Ok(shutdown)
}
