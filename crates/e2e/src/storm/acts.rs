//! The operations: what is asked, and what the answers claim.

use mosaic_types::AgentId;
use serde_json::{Value, json};

use super::{
    SLOTS, Storm, WAITING, books,
    ledger::Held,
    lives,
    plan::{Act, Birth, SPOKES, Way},
};
use crate::api::{Answer, Node};

impl Storm {
    /// One operation, and the holds that its answer claims.
    pub(super) async fn act(&self, act: Act, body: Option<Value>) -> Option<Vec<Held>> {
        match act {
            Act::Spawn(birth) => self.spawn(&birth, &body?).await,
            Act::Kill { agent, by_hub } => self.kill(agent, by_hub).await,
            Act::KillAll { way, task, hold } => return self.kill_all(way, task, hold).await,
            Act::Release { spoke } => {
                let answer = self
                    .ask(&self.spokes[spoke], "POST", "/hold/release", None)
                    .await;
                self.told(&format!("release at {spoke}"), answer.as_ref());
            }
            Act::Look { agent, by_hub } => self.look(agent, by_hub).await,
        }
        None
    }

    async fn ask(
        &self,
        node: &Node,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Option<Answer> {
        let answer = node.try_call(method, path, body).await.ok();
        if answer.is_none() {
            self.ledger.count(|counts| counts.unanswered += 1);
        }
        answer
    }

    fn told(&self, what: &str, answer: Option<&Answer>) {
        let how = match answer {
            Some(answer) if answer.status >= 300 => {
                format!("{} {}", answer.status, answer.body["code"])
            }
            Some(answer) => answer.status.to_string(),
            None => "no answer".to_owned(),
        };
        self.ledger.note(format!("{what}: {how}"));
    }

    async fn spawn(&self, birth: &Birth, body: &Value) {
        let agent = self.ids[birth.agent];
        let node = if birth.by_hub {
            &self.hub
        } else {
            &self.spokes[birth.spoke]
        };
        let path = format!("{}/spawn", node.agents_path());
        let answer = self.ask(node, "POST", &path, Some(body.clone())).await;
        self.told(&format!("spawn {birth:?} {agent}"), answer.as_ref());
        let accepted = answer.is_some_and(|answer| answer.status == 202);
        self.ledger.count(|counts| {
            counts.spawns += 1;
            counts.accepted += usize::from(accepted);
            counts.contained += usize::from(birth.contained && self.engine.is_some());
        });
        if accepted {
            self.ledger.change(agent, |known| known.accepted = true);
        }
    }

    /// The node to ask about an agent.
    fn about(&self, number: usize, by_hub: bool) -> Option<(AgentId, &Node)> {
        let agent = *self.ids.get(number)?;
        let spoke = self.ledger.agents().get(&agent)?.birth.spoke;
        Some((
            agent,
            if by_hub {
                &self.hub
            } else {
                &self.spokes[spoke]
            },
        ))
    }

    async fn kill(&self, number: usize, by_hub: bool) {
        let Some((agent, node)) = self.about(number, by_hub) else {
            return;
        };
        self.note_work(agent);
        let path = format!("{}/{agent}/kill", node.agents_path());
        let answer = self.ask(node, "POST", &path, None).await;
        self.ledger.count(|counts| counts.kills += 1);
        let outcome = answer.as_ref().map(|answer| answer.body["outcome"].clone());
        self.told(
            &format!("kill {number} {agent} by {} {outcome:?}", node.name),
            answer.as_ref(),
        );
        if let Some(answer) = answer.filter(|answer| answer.status == 200) {
            self.killed(&answer.body);
            self.survivors().await;
        }
    }

    /// An agent's part of a kill's answer.
    pub(super) fn killed(&self, report: &Value) {
        let Some(agent) = report["agentId"].as_str().and_then(|id| id.parse().ok()) else {
            return self
                .ledger
                .violated(format!("an answer about nobody: {report}"));
        };
        match report["outcome"].as_str() {
            Some("killed") => {
                self.ledger.count(|counts| counts.deaths += 1);
                self.ledger.change(agent, |known| {
                    known.killed = true;
                    known.dead = true;
                });
            }
            Some("already-ended") => self.ledger.change(agent, |known| known.dead = true),
            _ => self.ledger.count(|counts| counts.unverified += 1),
        }
    }

    async fn kill_all(&self, way: Way, task: Option<u64>, hold: bool) -> Option<Vec<Held>> {
        let node = match way {
            Way::Hub => &self.hub,
            Way::Spoke(spoke) => &self.spokes[spoke],
        };
        for agent in self.ids.iter().rev().take(SPOKES * (SLOTS + WAITING)) {
            self.note_work(*agent);
        }
        let mut request = json!({"hold": hold});
        if let Some(task) = task {
            request["taskId"] = json!(format!("T-{task}"));
        }
        let path = format!("{}/kill-all", node.agents_path());
        let answer = self.ask(node, "POST", &path, Some(request)).await;
        self.ledger.count(|counts| counts.kill_alls += 1);
        self.told(
            &format!("kill-all by {} of {task:?}, hold: {hold}", node.name),
            answer.as_ref(),
        );
        let body = answer.filter(|answer| answer.status == 200)?.body;
        let reports: Vec<(usize, Value)> = match way {
            Way::Spoke(spoke) => vec![(spoke, body)],
            Way::Hub => body["spokes"]
                .as_array()?
                .iter()
                .filter_map(|told| {
                    let spoke = self
                        .connections
                        .iter()
                        .position(|connection| told["connectionId"] == **connection)?;
                    Some((spoke, told.get("report")?.clone()))
                })
                .collect(),
        };
        for agent in reports
            .iter()
            .filter_map(|(_, report)| report["agents"].as_array())
            .flatten()
        {
            self.killed(agent);
        }
        let let_go: Vec<_> = reports
            .iter()
            .map(|(spoke, _)| books::running(&self.spokes[*spoke]))
            .collect();
        let sight = self.survivors().await;
        let held = reports
            .iter()
            .zip(let_go)
            .filter(|((_, report), _)| hold && report["holdDurable"] == true)
            .map(|((spoke, _), let_go)| Held {
                let_go,
                spoke: *spoke,
                everything: way != Way::Hub,
                running: sight
                    .attempts()
                    .flat_map(|(agent, spaces)| {
                        spaces.iter().map(move |space| (agent, space.clone()))
                    })
                    .collect(),
            });
        Some(held.collect())
    }

    async fn look(&self, number: usize, by_hub: bool) {
        let Some((agent, node)) = self.about(number, by_hub) else {
            return;
        };
        let path = format!("{}/{agent}/status", node.agents_path());
        let answer = self.ask(node, "GET", &path, None).await;
        if let Some(state) = answer
            .as_ref()
            .and_then(|answer| answer.body["state"].as_str())
        {
            self.ledger.saw(agent, state, &node.name);
        }
    }

    /// Remembers that an agent has written its file, if it has.
    pub(super) fn note_work(&self, agent: AgentId) {
        let written = |spoke: &Node| {
            let tree = spoke.data_dir.join(format!("agents/{agent}/work"));
            std::fs::metadata(tree.join(lives::work_file(agent))).is_ok_and(|file| file.len() > 0)
        };
        if self.spokes.iter().any(written) {
            self.ledger.change(agent, |known| known.wrote = true);
        }
    }
}
