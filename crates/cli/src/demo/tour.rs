//! The steps of the tour. Each says what it shows, shows it, and checks it.

use std::time::{Duration, Instant};

use mosaic_hub::api::{AgentsParams, SpawnRequest};
use mosaic_types::{
    AgentId, ConnectionId,
    agent::{AgentStatus, ObservedState},
    api::{KillAllRequest, KillRequest},
    command::{AgentType, KillOutcome, SpawnContext},
    event::{AgentEvent, EventKind},
};
use serde::Serialize;

use super::{Voice, failed, key, repository::Chosen, script};
use crate::{
    client::{Client, EventFeed, KilledAll},
    error::CliError,
    ready::Ready,
    render::{self, DIM, micros, styled},
    stack::Stack,
};

/// How long an agent may take to do what a step waits for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Lines of the patch that are shown.
const PATCH_LINES: usize = 28;
/// Agents of the last step.
const CROWD: usize = 5;

/// What the tour is given.
pub(super) struct Tour<'a> {
    pub(super) stack: &'a Stack,
    pub(super) voice: Voice,
    pub(super) chosen: &'a Chosen,
    pub(super) marker: String,
    pub(super) wait_for_key: bool,
}

/// What the tour measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Figures {
    /// The repository.
    repository: String,
    /// Length of the first agent's patch.
    patch_bytes: u64,
    /// From the key press, or the request, to the answer with the proof, at the operator.
    kill_micros: u64,
    /// From the order to the proof, at the spoke.
    kill_proof_micros: u64,
    /// The same for all of the last step, at the hub.
    kill_all_micros: u64,
    /// How many that were.
    kill_all_agents: u64,
    /// Entries of all audit trails.
    audit_entries: u64,
}

impl Tour<'_> {
    /// Walks all of it.
    pub(super) async fn run(&self) -> Result<Figures, CliError> {
        let ready = self.meet().await?;
        let [first, second] = self.spokes(&ready)?;
        let patch_bytes = self.work(first).await?;
        let (kill_micros, kill_proof_micros) = self.kill_one(second).await?;
        let (kill_all_micros, kill_all_agents) = self.kill_crowd(&[first, second]).await?;
        let audit_entries = self.audit().await?;
        Ok(Figures {
            repository: self.chosen.url.clone(),
            patch_bytes,
            kill_micros,
            kill_proof_micros,
            kill_all_micros,
            kill_all_agents,
            audit_entries,
        })
    }

    fn hub(&self) -> &Client {
        self.stack.hub()
    }

    fn spokes(&self, ready: &Ready) -> Result<[ConnectionId; 2], CliError> {
        let ids: Vec<_> = ready
            .spokes
            .iter()
            .map(|spoke| spoke.connection_id)
            .collect();
        ids.try_into()
            .map_err(|_| failed("connecting", "there are not two spokes"))
    }

    async fn meet(&self) -> Result<Ready, CliError> {
        self.voice
            .step("A hub and two spokes, connected by peering tokens")?;
        let ready = self.stack.connect().await?;
        self.voice.say(format!("  hub      {}", ready.hub.url))?;
        for spoke in &ready.spokes {
            let pong = self.hub().ping(spoke.connection_id).await?;
            let contained: Vec<_> = pong
                .sandboxes
                .iter()
                .map(|sandbox| sandbox.containment.as_str())
                .collect();
            let contained = styled(DIM, contained.join("; "));
            self.voice
                .say(format!("  {}  {}  {contained}", pong.name, spoke.url))?;
        }
        self.voice.good("each answered a signed ping")?;
        Ok(ready)
    }

    async fn spawn(&self, spoke: ConnectionId, script: String) -> Result<AgentId, CliError> {
        let parse = |error: mosaic_types::IdError| failed("spawning", error.to_string());
        let request = SpawnRequest {
            connection_id: spoke,
            agent_id: None,
            task_id: "tour".parse().map_err(parse)?,
            agent_type: AgentType::Worker,
            runtime: Some("shell".parse().map_err(parse)?),
            context: SpawnContext {
                repository: self.chosen.url.clone(),
                branch: self.chosen.branch.clone(),
                work_items: vec!["Take part in the tour".to_owned()],
                skills: None,
                instructions: Some(script),
            },
            options: None,
            labels: std::collections::BTreeMap::new(),
        };
        Ok(self.hub().spawn(&request).await?.agent_id)
    }

    async fn work(&self, spoke: ConnectionId) -> Result<u64, CliError> {
        const STEP: &str = "an agent at work";
        self.voice
            .step("An agent works on a real repository, at spoke-1")?;
        let Chosen { url, branch, how } = self.chosen;
        self.voice.say(format!(
            "  {url} at {branch} {}",
            styled(DIM, format!("({how})"))
        ))?;
        let agent = self.spawn(spoke, script::survey()).await?;
        let mut feed = EventFeed::open(self.hub().clone(), agent, true).await?;
        let ended = within(STEP, async {
            while let Some(event) = feed.next().await? {
                self.show(&event)?;
            }
            feed.ended()
                .cloned()
                .ok_or_else(|| failed(STEP, "its stream ended before it did"))
        })
        .await?;
        if ended.state != ObservedState::Completed {
            return Err(failed(STEP, why_not(&ended)));
        }
        let result = within(STEP, self.hub().result(agent)).await?;
        let bytes = result.patch.as_ref().map_or(0, |patch| patch.total_bytes);
        let holds =
            |patch: &mosaic_types::command::PatchPart| patch.content.contains(script::REPORT);
        if !result.patch.as_ref().is_some_and(holds) {
            return Err(failed(STEP, format!("its patch has no {}", script::REPORT)));
        }
        self.voice.good(format!(
            "completed; its work came back as a patch of {bytes} bytes"
        ))?;
        if !self.voice.json {
            render::patch(&result, PATCH_LINES)?;
        }
        Ok(bytes)
    }

    async fn kill_one(&self, spoke: ConnectionId) -> Result<(u64, u64), CliError> {
        const STEP: &str = "a kill";
        self.voice
            .step("A second one, at spoke-2, is killed in the middle of its work")?;
        let agent = self.spawn(spoke, script::endless(&self.marker)).await?;
        let mut feed = EventFeed::open(self.hub().clone(), agent, true).await?;
        within(STEP, self.show_lines(&mut feed, 3)).await?;
        let pressed = if self.wait_for_key {
            self.voice
                .say(styled(render::BOLD, "  press Enter to kill it"))?;
            let pressed = tokio::select! {
                pressed = key::pressed() => pressed,
                shown = self.show_lines(&mut feed, usize::MAX) => {
                    shown?;
                    return Err(failed(STEP, "it ended before it was killed"));
                }
            };
            Some(pressed)
        } else {
            None
        };
        let start = pressed.unwrap_or_else(Instant::now);
        let request = KillRequest {
            reason: Some("the tour".to_owned()),
            ..KillRequest::default()
        };
        let report = self.hub().kill(agent, &request).await?;
        let elapsed = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let Some(proof) = report
            .proof
            .filter(|_| report.outcome == KillOutcome::Killed)
        else {
            let why = report
                .detail
                .unwrap_or_else(|| "its death is not proven".to_owned());
            return Err(failed(STEP, why));
        };
        let from = if pressed.is_some() {
            "key press"
        } else {
            "request"
        };
        self.voice.good(format!(
            "from {from} to proven death: {} {}",
            styled(render::BOLD, micros(elapsed)),
            styled(
                DIM,
                format!(
                    "(the kernel's part at the spoke: {})",
                    micros(proof.elapsed_micros)
                )
            ),
        ))?;
        within(STEP, self.until_killed(STEP, &mut feed)).await?;
        Ok((elapsed, proof.elapsed_micros))
    }

    async fn kill_crowd(&self, spokes: &[ConnectionId; 2]) -> Result<(u64, u64), CliError> {
        const STEP: &str = "a kill-all";
        self.voice
            .step("Five more, at both spokes, fall to one kill-all")?;
        let starts = (0..CROWD).map(async |number| {
            let agent = self
                .spawn(spokes[number % 2], script::endless(&self.marker))
                .await?;
            let mut feed = EventFeed::open(self.hub().clone(), agent, true).await?;
            while let Some(event) = feed.next().await? {
                if matches!(event.kind, EventKind::Output { .. }) {
                    return Ok(feed);
                }
            }
            Err(failed(STEP, "an agent ended before it was killed"))
        });
        let mut feeds = within(STEP, futures_util::future::try_join_all(starts)).await?;
        self.voice
            .say(format!("  {} agents at work", feeds.len()))?;
        let request = KillAllRequest {
            reason: Some("the tour".to_owned()),
            ..KillAllRequest::default()
        };
        let report = self.hub().kill_all(&request).await?;
        let KilledAll::Hub(all) = &report else {
            return Err(failed(STEP, "the hub answered as a spoke"));
        };
        if !self.voice.json {
            render::killed_all(&report, request.hold)?;
        }
        if !all.complete || all.killed != CROWD as u64 {
            return Err(failed(
                STEP,
                format!("{} of {CROWD} are proven dead", all.killed),
            ));
        }
        self.voice.good(format!(
            "{} agents at {} spokes, from order to the last proof: {}",
            all.killed,
            all.spokes.len(),
            styled(render::BOLD, micros(all.elapsed_micros)),
        ))?;
        for feed in &mut feeds {
            within(STEP, self.until_killed(STEP, feed)).await?;
        }
        let params = AgentsParams {
            active: Some(true),
            ..AgentsParams::default()
        };
        let active = self.hub().agents(&params).await?;
        if !active.agents().is_empty() {
            return Err(failed(
                STEP,
                format!("{} agents are still active", active.agents().len()),
            ));
        }
        Ok((all.elapsed_micros, all.killed))
    }

    async fn audit(&self) -> Result<u64, CliError> {
        const STEP: &str = "the audit trails";
        self.voice
            .step("What happened is on record, in chains of hashes")?;
        let nodes = std::iter::once(("hub", self.hub())).chain(self.stack.spokes());
        let mut entries = 0;
        for (name, client) in nodes {
            let instance = client.instance().await?.instance_id;
            let witnessed = self.hub().witnessed_of(&instance).await?;
            let verdict = client.audit_verify(witnessed).await?;
            if !verdict.valid || verdict.entries == 0 {
                let why = verdict.fault.unwrap_or_else(|| "it is empty".to_owned());
                return Err(failed(STEP, format!("{name}: {why}")));
            }
            entries += verdict.entries;
            self.voice.good(format!(
                "{name}: {} entries verified, head {}",
                verdict.entries,
                render::head(&verdict.head)
            ))?;
        }
        Ok(entries)
    }

    fn show(&self, event: &AgentEvent) -> Result<(), CliError> {
        if let Some(text) = render::event_line(event) {
            return self.voice.say(format!("  {} {text}", styled(DIM, "│")));
        }
        if let EventKind::Status { status } = &event.kind {
            let state = render::state(status.state);
            return self.voice.say(format!("  {} {state}", styled(DIM, "├─")));
        }
        Ok(())
    }

    /// Shows an agent's events until it has written so many lines, or has ended.
    async fn show_lines(&self, feed: &mut EventFeed, lines: usize) -> Result<(), CliError> {
        let mut seen = 0;
        while seen < lines {
            let Some(event) = feed.next().await? else {
                return Ok(());
            };
            self.show(&event)?;
            seen += usize::from(matches!(event.kind, EventKind::Output { .. }));
        }
        Ok(())
    }

    /// Reads on until the agent is recorded as killed.
    async fn until_killed(&self, step: &'static str, feed: &mut EventFeed) -> Result<(), CliError> {
        while feed.next().await?.is_some() {}
        match feed.ended() {
            Some(ended) if ended.state == ObservedState::Killed => Ok(()),
            Some(ended) => Err(failed(step, why_not(ended))),
            None => Err(failed(step, "its stream ended before it was recorded")),
        }
    }
}

fn why_not(ended: &AgentStatus) -> String {
    let detail = ended.detail.as_deref().unwrap_or("no reason is given");
    format!("agent {} is {}: {detail}", ended.agent_id, ended.state)
}

async fn within<T>(
    step: &'static str,
    work: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => Err(failed(
            step,
            format!("nothing came of it in {} s", PATIENCE.as_secs()),
        )),
    }
}
