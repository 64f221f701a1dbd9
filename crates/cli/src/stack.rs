//! A hub and its spokes in this process, for `dev` and `demo`: started, connected, stopped.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use mosaic_hub::api::AgentsParams;
use mosaic_orchestrator::{app as spoke, sandbox::DockerSettings};
use mosaic_types::{
    ConnectionId,
    agent::{AgentStatus, CleanupKind},
    api::{ConnectRequest, HoldReleaseRequest, InviteRequest, KillAllRequest},
    audit::Actor,
    command::{KillAllReport, SandboxKind},
    connection::{Connection, ConnectionState},
    grant::Grants,
};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    client::{Client, KilledAll, Target},
    error::CliError,
    ready::{Ready, ReadyHub, ReadySpoke},
};

const PORTS: &str = "ports.json";
/// Names the spokes that an orderly stop put on hold.
const HOLDS: &str = "held-by-stop.json";
/// How long an orderly stop waits for what comes after the proofs of death.
const CLEARING: Duration = Duration::from_secs(15);
const CLEARING_PAUSE: Duration = Duration::from_millis(20);

/// The ports used before in a data folder, so that connections made then still hold.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
struct Ports(BTreeMap<String, u16>);

impl Ports {
    fn read(dir: &Path) -> Self {
        // Without the file, or with a spoilt one, other ports are found: nothing depends on it.
        fs::read(dir.join(PORTS))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    fn write(&self, dir: &Path) -> Result<(), CliError> {
        let path = dir.join(PORTS);
        fs::write(&path, serde_json::to_vec(self)?).map_err(|source| CliError::File {
            action: "write",
            path,
            source,
        })
    }

    /// Binds the port of `name`: the one that is asked for, else the one used before, else any.
    async fn bind(&mut self, name: &str, asked: Option<u16>) -> io::Result<TcpListener> {
        let at = |port| TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let listener = match (asked, self.0.get(name)) {
            (Some(port), _) => at(port).await?,
            (None, Some(port)) => match at(*port).await {
                Ok(listener) => listener,
                Err(_) => at(0).await?,
            },
            (None, None) => at(0).await?,
        };
        self.0
            .insert(name.to_owned(), listener.local_addr()?.port());
        Ok(listener)
    }
}

/// A spoke that runs, and a client of it by its admin's token.
struct Spoke {
    name: String,
    running: spoke::Running,
    client: Client,
    token: String,
}

/// A hub and its spokes.
pub(crate) struct Stack {
    hub: mosaic_hub::app::Running,
    hub_client: Client,
    hub_token: String,
    spokes: Vec<Spoke>,
    shutdown: CancellationToken,
}

impl Stack {
    /// Starts a hub and `spokes` spokes with their data below `dir`, not yet connected. What was started is stopped
    /// again if the rest fails. With an image, agents live in containers of it unless they ask for something else.
    pub(crate) async fn start(
        dir: &Path,
        spokes: u8,
        port: Option<u16>,
        image: Option<&str>,
    ) -> Result<Self, CliError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| CliError::File {
                action: "make",
                path: dir.to_owned(),
                source,
            })?;
        let mut ports = Ports::read(dir);
        let shutdown = CancellationToken::new();
        let listener = ports.bind("hub", port).await?;
        let data = dir.join("hub");
        let config = mosaic_hub::app::Config::dev(data.clone(), "hub");
        let hub = Box::pin(mosaic_hub::app::start(config, listener, shutdown.clone()))
            .await
            .map_err(|source| CliError::StartHub(Box::new(source)))?;
        let hub_token = admin_token(&data)?;
        let hub_client = client(hub.url(), &hub_token, false)?;
        let mut stack = Self {
            hub,
            hub_client,
            hub_token,
            spokes: Vec::new(),
            shutdown,
        };
        for number in 1..=spokes {
            if let Err(error) = stack.add_spoke(dir, number, &mut ports, image).await {
                drop(stack.stop().await);
                return Err(error);
            }
        }
        ports.write(dir)?;
        Ok(stack)
    }

    async fn add_spoke(
        &mut self,
        dir: &Path,
        number: u8,
        ports: &mut Ports,
        image: Option<&str>,
    ) -> Result<(), CliError> {
        let name = format!("spoke-{number}");
        let listener = ports.bind(&name, None).await?;
        let data = dir.join(&name);
        let mut config = spoke::Config::dev(data.clone(), &name);
        if let Some(image) = image {
            config.sandbox.docker = Some(DockerSettings::of_image(image));
            config.sandbox.default = Some(SandboxKind::Docker);
        }
        let running = Box::pin(spoke::start(config, listener, self.shutdown.clone()))
            .await
            .map_err(|source| CliError::StartSpoke {
                name: name.clone(),
                source: Box::new(source),
            })?;
        let token = admin_token(&data)?;
        let client = client(running.url(), &token, true)?;
        self.spokes.push(Spoke {
            name,
            running,
            client,
            token,
        });
        Ok(())
    }

    /// A client of the hub.
    pub(crate) fn hub(&self) -> &Client {
        &self.hub_client
    }

    /// Clients of the spokes, with their names.
    pub(crate) fn spokes(&self) -> impl Iterator<Item = (&str, &Client)> {
        self.spokes
            .iter()
            .map(|spoke| (spoke.name.as_str(), &spoke.client))
    }

    /// Notes in `dir` which spokes are not held yet, before [`kill_all`](Self::kill_all) holds them.
    pub(crate) async fn note_holds(&self, dir: &Path) -> Result<(), CliError> {
        let mut ours = Vec::new();
        for spoke in &self.spokes {
            if !spoke.client.hold().await?.all {
                ours.push(spoke.name.clone());
            }
        }
        let path = dir.join(HOLDS);
        fs::write(&path, serde_json::to_vec(&ours)?).map_err(|source| CliError::File {
            action: "write",
            path,
            source,
        })
    }

    /// Releases the holds that an orderly stop in `dir` made, and no others.
    pub(crate) async fn release_noted(&self, dir: &Path) -> Result<(), CliError> {
        let path = dir.join(HOLDS);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => {
                return Err(CliError::File {
                    action: "read",
                    path,
                    source,
                });
            }
        };
        let ours: Vec<String> =
            serde_json::from_slice(&bytes).map_err(|source| CliError::Parse {
                path: path.clone(),
                source,
            })?;
        for spoke in self
            .spokes
            .iter()
            .filter(|spoke| ours.contains(&spoke.name))
        {
            let kept = spoke.client.hold().await?.connections;
            spoke.client.release(&HoldReleaseRequest::default()).await?;
            // The release took these too. They were an operator's, and no agent runs that this could kill.
            for connection in kept {
                let again = KillAllRequest {
                    connection_id: Some(connection),
                    hold: true,
                    reason: Some("held before `mosaic dev` stopped".to_owned()),
                    ..KillAllRequest::default()
                };
                spoke.client.kill_all(&again).await?;
            }
        }
        fs::remove_file(&path).map_err(|source| CliError::File {
            action: "remove",
            path,
            source,
        })
    }

    /// What contains the agents of each spoke.
    pub(crate) fn containment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.spokes
            .iter()
            .map(|spoke| (spoke.name.as_str(), spoke.running.containment()))
    }

    /// The ids of the spokes' instances.
    pub(crate) fn instances(&self) -> Vec<String> {
        let id = |spoke: &Spoke| spoke.running.node().instance_id().to_string();
        self.spokes.iter().map(id).collect()
    }

    /// Connects the hub to every spoke, by a peering token that grants everything, unless it is connected already.
    pub(crate) async fn connect(&self) -> Result<Ready, CliError> {
        let mut spokes = Vec::new();
        for spoke in &self.spokes {
            spokes.push(ReadySpoke {
                url: spoke.running.url().to_owned(),
                token: spoke.token.clone(),
                instance_id: spoke.running.node().instance_id().clone(),
                connection_id: self.connect_spoke(spoke).await?,
            });
        }
        let hub = ReadyHub {
            url: self.hub.url().to_owned(),
            token: self.hub_token.clone(),
            instance_id: self.hub.node().instance_id().clone(),
        };
        Ok(Ready { hub, spokes })
    }

    async fn connect_spoke(&self, spoke: &Spoke) -> Result<ConnectionId, CliError> {
        if let Some(known) = self
            .hub
            .node()
            .connections()
            .by_peer(spoke.running.node().instance_id())
            && known.state == ConnectionState::Active
        {
            self.follow_url(&known, spoke.running.url()).await?;
            return Ok(known.connection_id);
        }
        // `**` leaves no repository out, `file://` ones included: this is the operator's own machine.
        let request = InviteRequest {
            grants: Grants::full(vec!["**".to_owned()]),
            ttl_secs: Some(60),
        };
        let invite = spoke.client.invite(&request).await?;
        let request = ConnectRequest {
            token: Some(invite.token),
            ..ConnectRequest::default()
        };
        Ok(self.hub_client.connect(&request).await?.connection_id)
    }

    /// A spoke that came back at another port is still the same spoke.
    async fn follow_url(&self, known: &Connection, url: &str) -> Result<(), CliError> {
        if known.url.as_deref() == Some(url) {
            return Ok(());
        }
        let url = url.to_owned();
        let moved = self
            .hub
            .node()
            .connections()
            .change(
                known.connection_id,
                Actor::System,
                move |connection, now| {
                    Ok::<_, mosaic_types::Refusal>(Connection {
                        url: Some(url.clone()),
                        updated_at: now,
                        version: connection.version + 1,
                        ..connection.clone()
                    })
                },
            )
            .await;
        moved
            .map(drop)
            .map_err(|refusal| CliError::Refused(Box::new(refusal.into())))
    }

    /// Kills every agent at every spoke, by the spokes' own killswitches, and holds spawns: one that is on its way
    /// must not start behind the kill. Each spoke's report, or why there is none.
    pub(crate) async fn kill_all(&self) -> Vec<(String, Result<KillAllReport, CliError>)> {
        let request = KillAllRequest {
            reason: Some("`mosaic` stops".to_owned()),
            hold: true,
            ..KillAllRequest::default()
        };
        let kills = self.spokes.iter().map(async |spoke| {
            let report = match spoke.client.kill_all(&request).await {
                Ok(KilledAll::Spoke(report)) => Ok(report),
                Ok(KilledAll::Hub(_)) => Err(CliError::Malformed {
                    url: spoke.client.url().to_owned(),
                    why: "a spoke answered as a hub".to_owned(),
                }),
                Err(error) => Err(error),
            };
            (spoke.name.clone(), report)
        });
        futures_util::future::join_all(kills).await
    }

    /// Waits until every agent, all having ended, is cleared up: an engine of containers needs a while to let go of
    /// theirs. How many are not after a while.
    pub(crate) async fn cleared(&self) -> usize {
        let params = AgentsParams {
            limit: Some(500),
            ..AgentsParams::default()
        };
        let deadline = tokio::time::Instant::now() + CLEARING;
        loop {
            let mut left = 0;
            for spoke in &self.spokes {
                // One that does not tell is not waited for.
                if let Ok(listed) = spoke.client.agents(&params).await {
                    let agents = listed.agents().into_iter();
                    left += agents.filter(|(_, status)| !is_cleared(status)).count();
                }
            }
            if left == 0 || tokio::time::Instant::now() >= deadline {
                return left;
            }
            tokio::time::sleep(CLEARING_PAUSE).await;
        }
    }

    /// Stops all nodes in order: requests under way finish, stores are closed. Agents are not touched.
    pub(crate) async fn stop(self) -> Result<(), CliError> {
        self.shutdown.cancel();
        let mut first = None;
        for spoke in self.spokes {
            if let Err(error) = spoke.running.wait().await {
                first.get_or_insert(CliError::Stop {
                    name: spoke.name,
                    why: error.to_string(),
                });
            }
        }
        if let Err(error) = self.hub.wait().await {
            let why = mosaic_node::with_causes(&error);
            first.get_or_insert(CliError::Stop {
                name: "the hub".to_owned(),
                why,
            });
        }
        first.map_or(Ok(()), Err)
    }
}

/// Whether the last step of an agent's clean-up was tried.
fn is_cleared(status: &AgentStatus) -> bool {
    let mut steps = status.cleanup.iter();
    steps.any(|done| done.step == CleanupKind::Worktree)
}

fn client(url: &str, token: &str, spoke: bool) -> Result<Client, CliError> {
    Client::new(Target {
        url: url.to_owned(),
        token: token.to_owned(),
        spoke: Some(spoke),
    })
}

fn admin_token(data_dir: &Path) -> Result<String, CliError> {
    let path: PathBuf = data_dir.join("admin.token");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(source) => Err(CliError::File {
            action: "read",
            path,
            source,
        }),
    }
}
