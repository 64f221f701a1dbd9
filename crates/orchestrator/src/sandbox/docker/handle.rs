//! One agent's container: held by its shim and its init like every sandbox, brought up by the engine.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use mosaic_types::AgentId;
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::{
    EngineError,
    container::{Description, LABEL_INSTANCE, LABEL_LAUNCH},
    engine::Engine,
};
use crate::{
    crash_points::crash_point,
    sandbox::{
        Death, ExitRecord, SandboxError, SandboxHandle, Scope,
        handle::{ShimHandle, ShimVoice},
    },
};

/// How long the kernel alone may take, before the engine is asked to help.
const KERNEL_ALONE: Duration = Duration::from_millis(500);

/// See [`SandboxHandle`].
#[derive(Debug)]
pub(super) struct DockerHandle {
    shim: Arc<ShimHandle>,
    engine: Arc<Engine>,
    name: String,
    /// Whose containers are ours, by [`LABEL_INSTANCE`].
    instance: String,
    making: Making,
}

/// How an agent comes by its container.
#[derive(Debug)]
pub(super) enum Making {
    /// It is made and started for this launch.
    Now(Box<Description>),
    /// It was there before: the engine's id of it.
    Before(String),
}

impl DockerHandle {
    pub(super) fn new(
        shim: Arc<ShimHandle>,
        engine: Arc<Engine>,
        name: String,
        instance: String,
        making: Making,
    ) -> Self {
        Self {
            shim,
            engine,
            name,
            instance,
            making,
        }
    }

    async fn come_up(&self) -> Result<(), SandboxError> {
        let mut voice = self.shim.listen()?;
        match &self.making {
            Making::Before(id) => {
                self.shim.hear_ready(&mut voice).await?;
                self.rename_later(id.clone());
            }
            Making::Now(description) => self.start(description, &mut voice).await?,
        }
        self.shim.hold_init()
    }

    async fn start(
        &self,
        description: &Description,
        voice: &mut ShimVoice,
    ) -> Result<(), SandboxError> {
        let bringing_up = BringingUp {
            shim: Arc::clone(&self.shim),
            engine: Arc::clone(&self.engine),
            name: self.name.clone(),
            description: description.clone(),
        };
        let (listens, listening) = oneshot::channel();
        let up = tokio::spawn(bringing_up.run(listening));
        // A shim that is killed says so at once, whatever the engine is at.
        self.shim.hear_listening(voice).await?;
        let _ = listens.send(());
        let ready = self.shim.hear_ready(voice);
        tokio::pin!(ready);
        tokio::select! {
            biased;
            ready = &mut ready => ready,
            up = up => {
                match up {
                    Ok(started) => started?,
                    Err(error) => return Err(SandboxError::StartFailed {
                        detail: format!("the start broke off: {error}"),
                    }),
                }
                ready.await
            }
        }
    }

    /// Gives a container that was there before its agent's name. Nobody waits for it: it is known by the agent's
    /// files.
    fn rename_later(&self, id: String) {
        let (engine, name) = (Arc::clone(&self.engine), self.name.clone());
        tokio::spawn(async move {
            if let Err(error) = engine.rename(&id, &name).await {
                warn!(
                    name,
                    error = &error as &dyn std::error::Error,
                    "failed to name a container after its agent"
                );
            }
            crash_point("container.renamed");
        });
    }
}

/// What makes and starts one container, in a task of its own: whoever waits for it may be cancelled, and what an engine
/// was asked for must be looked at when it answers (A32).
struct BringingUp {
    shim: Arc<ShimHandle>,
    engine: Arc<Engine>,
    name: String,
    description: Description,
}

impl BringingUp {
    /// Makes the container, and starts it once the shim listens.
    async fn run(self, listening: oneshot::Receiver<()>) -> Result<(), EngineError> {
        let Some(id) = self.create().await? else {
            return Ok(());
        };
        crash_point("container.made");
        if listening.await.is_err() || self.shim.was_killed() {
            self.discard(&id).await;
            return Ok(());
        }
        let started = self.engine.start(&id).await;
        crash_point("container.started");
        if self.shim.was_killed() {
            // Its init found no shim and has ended, or will.
            self.discard(&id).await;
            return Ok(());
        }
        started
    }

    /// Makes the container, or takes up the one that an answer which was lost has made (A4). `None` if nobody waits for it
    /// any more: what has the name now may be the next attempt's, and at work.
    async fn create(&self) -> Result<Option<String>, EngineError> {
        let name = &self.name;
        let cgroupfs = self.engine.facts().await?.cgroupfs;
        let image = self.engine.image(self.description.image()).await?;
        let body = self.description.body(cgroupfs, &image.volumes);
        if self.shim.was_killed() {
            return Ok(None);
        }
        let first = self.engine.create(name, body.clone()).await;
        let in_doubt = |error: &EngineError| error.is_doubtful() || error.status() == Some(409);
        if !first.as_ref().is_err_and(in_doubt) {
            return first.map(Some);
        }
        let Some(found) = self.engine.inspect(name).await? else {
            return first.map(Some);
        };
        let labels = found.config.and_then(|config| config.labels);
        let label = |name| labels.as_ref().and_then(|labels| labels.get(name));
        let (instance, launch) = (label(LABEL_INSTANCE), label(LABEL_LAUNCH));
        let Some(id) = found
            .id
            .filter(|_| instance == Some(&self.description.instance))
        else {
            // Another spoke's, of an agent with the same id.
            return first.map(Some);
        };
        if launch.map(String::as_str) == self.description.launch() {
            return Ok(Some(id));
        }
        if self.shim.was_killed() {
            return Ok(None);
        }
        // An earlier attempt's, whose shim is gone: nothing of it can run.
        warn!(name, "removing the container of an earlier attempt");
        self.engine.remove(&id).await?;
        self.engine.create(name, body).await.map(Some)
    }

    /// Removes a container that nobody waits for any more: the clean-up may have been there before it.
    async fn discard(&self, id: &str) {
        debug!(agent = %self.shim.agent_id(), "a container was made that nobody waits for any more");
        if let Err(error) = self.engine.remove(id).await {
            warn!(
                name = self.name,
                error = &error as &dyn std::error::Error,
                "a late container is left to the sweep"
            );
        }
    }
}

#[async_trait]
impl SandboxHandle for DockerHandle {
    fn agent_id(&self) -> AgentId {
        self.shim.agent_id()
    }

    fn scope(&self) -> Scope {
        self.shim.scope()
    }

    fn spool_path(&self) -> PathBuf {
        self.shim.spool_path()
    }

    async fn init_started(&self, time_limit: Duration) -> Result<(), SandboxError> {
        // Before the time counts. What waits for an agent needs no engine, and no turn.
        let _turn = match &self.making {
            Making::Before(_) => None,
            Making::Now(_) => tokio::select! {
                biased;
                () = self.shim.shim_ended() => None,
                turn = self.engine.turn_to_start() => turn,
            },
        };
        tokio::time::timeout(time_limit, self.come_up())
            .await
            .map_err(|_| SandboxError::StartTimedOut(time_limit))?
    }

    fn go(&self) -> Result<(), SandboxError> {
        self.shim.go()
    }

    fn end(&self) -> Result<(), SandboxError> {
        self.shim.end()
    }

    fn end_groups(&self) -> Result<(), SandboxError> {
        self.shim.end_groups()
    }

    async fn prove_dead(&self, deadline: Instant) -> Death {
        let alone = deadline.min(Instant::now() + KERNEL_ALONE);
        let death = self.shim.prove_dead(alone).await;
        if death.is_proven() || alone == deadline {
            return death;
        }
        if self.shim.was_killed() {
            self.shim.thaw_members();
            let (engine, name) = (Arc::clone(&self.engine), self.name.clone());
            let instance = self.instance.clone();
            let given = match &self.making {
                Making::Before(id) => Some(id.clone()),
                Making::Now(_) => None,
            };
            tokio::spawn(async move {
                let ours = match given {
                    Some(id) => Ok(Some(id)),
                    None => engine.owned(&name, (LABEL_INSTANCE, &instance)).await,
                };
                let killed = match ours {
                    Ok(Some(id)) => engine.kill(&id).await,
                    Ok(None) => Ok(()),
                    Err(error) => Err(error),
                };
                if let Err(error) = killed {
                    warn!(
                        name,
                        error = &error as &dyn std::error::Error,
                        "the engine was no help with a kill"
                    );
                }
            });
        }
        self.shim.prove_dead(deadline).await
    }

    async fn wait_exit(&self) -> Result<ExitRecord, SandboxError> {
        self.shim.wait_exit().await
    }
}
