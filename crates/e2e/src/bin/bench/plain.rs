//! What `agent.status` is compared with: the same route of the same axum over the same HTTP client, with the same JSON
//! in and out, but nothing signed, verified, claimed, stored or authenticated.

use std::{fs, io, io::Read as _, net::Ipv4Addr, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{
    Json, Router,
    extract::{self, State},
    http::StatusCode,
    routing::{get, post},
    serve::ListenerExt as _,
};
use mosaic_types::{AgentId, agent::AgentStatus, api::FederationAgent, command::AgentRef};
use tokio::net::TcpListener;

const ASK_LIMIT: Duration = Duration::from_secs(5);

/// Answers with the status in `status` until standard input ends. Prints the URL of the server that forwards.
pub(crate) fn serve(status: &Path) -> anyhow::Result<()> {
    let agent: FederationAgent = serde_json::from_slice(&fs::read(status)?)?;
    // As `mosaic dev` has it: both servers on one runtime.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let url = runtime.block_on(start(agent))?;
    println!("{url}");
    io::stdin().read_to_end(&mut Vec::new())?;
    runtime.shutdown_background();
    Ok(())
}

async fn start(agent: FederationAgent) -> anyhow::Result<String> {
    let spoke = Router::new()
        .route("/commands", post(answer))
        .with_state(Arc::new(agent.status.clone()));
    let spoke = run(spoke).await?;
    let hub = Router::new()
        .route("/api/v1/federation/agents/{agentId}/status", get(forward))
        .with_state(Arc::new(Hub {
            client: client()?,
            spoke: format!("{spoke}/commands"),
            agent,
        }));
    run(hub).await
}

async fn run(router: Router) -> anyhow::Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let listener = listener.tap_io(|stream| {
        // One that fails is a connection that is gone.
        let _ = stream.set_nodelay(true);
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(format!("http://{address}"))
}

/// The client with the settings that nodes use for their peers.
fn client() -> anyhow::Result<reqwest::Client> {
    // It fails if there is one already, which will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .user_agent("bench")
        .connect_timeout(Duration::from_secs(2))
        .pool_idle_timeout(Duration::from_secs(8))
        .pool_max_idle_per_host(64)
        .tcp_nodelay(true)
        .tls_certs_only([])
        .build()
        .context("failed to build the client")
}

struct Hub {
    client: reqwest::Client,
    spoke: String,
    agent: FederationAgent,
}

async fn forward(
    State(hub): State<Arc<Hub>>,
    extract::Path(agent_id): extract::Path<AgentId>,
) -> Result<Json<FederationAgent>, StatusCode> {
    let asked = hub
        .client
        .post(&hub.spoke)
        .timeout(ASK_LIMIT)
        .json(&AgentRef { agent_id })
        .send()
        .await
        .map_err(|_| StatusCode::BAD_GATEWAY)?;
    let status = asked.json().await.map_err(|_| StatusCode::BAD_GATEWAY)?;
    Ok(Json(FederationAgent {
        connection_id: hub.agent.connection_id,
        spoke: hub.agent.spoke.clone(),
        status,
        kill_pending: false,
    }))
}

async fn answer(
    State(status): State<Arc<AgentStatus>>,
    Json(_asked): Json<AgentRef>,
) -> Json<AgentStatus> {
    Json(AgentStatus::clone(&status))
}
