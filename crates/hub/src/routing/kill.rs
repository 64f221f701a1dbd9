//! Killing. Nothing here waits for the store, and every record is made after the answer.

use std::{sync::Arc, time::Instant};

use futures_util::{StreamExt, stream::FuturesUnordered};
use mosaic_node::Operator;
use mosaic_types::{
    AgentId, ConnectionId, KillIntentId, Refusal, Timestamp,
    api::{FederationKillAll, KillAllRequest, KillRequest, SpokeKillAll},
    command::{CommandType, KillAllPayload, KillAllReport, KillPayload, KillReport},
    connection::{Connection, ConnectionState},
    kill::KillTarget,
};
use tokio::task::JoinHandle;

use super::{
    Failure, KILL_ALL_LIMIT, KILL_AND_CLEANUP_LIMIT, KILL_LIMIT, Routing, STORE_LIMIT, Sending,
    carry_through,
    deliver::{Tried, of_kill, of_kill_all},
    intents::{Delivery, NewKill, cut_reason},
    proof::{Heard, insist_on_proof, recount, summarise, with_word, without_hold},
    require_about, unknown_agent,
};

/// States in which a peer is asked to kill. A suspended one too: suspension says what the peer may ask, and a kill
/// must always be possible; the spoke decides.
pub(super) const KILLABLE: [ConnectionState; 2] =
    [ConnectionState::Active, ConnectionState::Suspended];

/// The connection as one that commands may be sent by, which the peer client asks for.
pub(super) fn usable(connection: &Connection) -> Connection {
    Connection {
        state: ConnectionState::Active,
        ..connection.clone()
    }
}

impl Routing {
    /// Kills one agent and answers with the spoke's proof.
    ///
    /// # Errors
    /// `unknown-agent` if every spoke says so; `peer-unreachable` if the spoke that has it, or one that might, gave
    /// no verifiable answer; `connection-not-active` if the connection has ended; the spoke's refusal.
    pub async fn kill(
        &self,
        operator: &Operator,
        agent: AgentId,
        request: KillRequest,
    ) -> Result<KillReport, Refusal> {
        let (routing, operator) = (self.clone(), operator.clone());
        carry_through(async move { routing.forward_kill(&operator, agent, request).await }).await
    }

    async fn forward_kill(
        &self,
        operator: &Operator,
        agent: AgentId,
        request: KillRequest,
    ) -> Result<KillReport, Refusal> {
        let payload = KillPayload {
            agent_id: agent,
            reason: request.reason.map(cut_reason),
            wait_for_cleanup: request.wait_for_cleanup,
        };
        match self.locate_for_kill(agent).await {
            Some(connection) => {
                let id = connection.connection_id;
                match self.way_to(&connection) {
                    Ok(way) => self.kill_or_keep(operator, &way, id, &payload).await,
                    Err(refusal) => {
                        let kind = CommandType::AgentKill;
                        self.audit_unsent(operator, kind, Some(agent), Some(id), Some(&refusal));
                        Err(refusal)
                    }
                }
            }
            None => self.kill_anywhere(operator, &payload).await,
        }
    }

    async fn locate_for_kill(&self, agent: AgentId) -> Option<Arc<Connection>> {
        match tokio::time::timeout(STORE_LIMIT, self.locate(agent)).await {
            Ok(Ok(connection)) => Some(connection),
            Ok(Err(refusal)) => {
                tracing::debug!(%refusal, %agent, "the agent's place is not on record");
                None
            }
            Err(_) => {
                tracing::warn!(%agent, "the store is too slow to say where the agent is");
                None
            }
        }
    }

    /// Kills an agent that came by the connection `at`, at the spoke that `way` leads to. What it does not prove is kept,
    /// and the answer says so.
    async fn kill_or_keep(
        &self,
        operator: &Operator,
        way: &Connection,
        at: ConnectionId,
        payload: &KillPayload,
    ) -> Result<KillReport, Refusal> {
        let order = new_kill(operator, at, payload);
        let sending = self.kill_at(operator, way, payload);
        let tried = self.try_kill(&order, sending).await;
        let kept = self.conclude(&order, &tried, &of_kill(&tried.answer));
        let Some(kept) = kept else {
            return tried.answer.map_err(Refusal::from);
        };
        let word = self.word_of(&kept).await;
        match tried.answer {
            Ok(report) => Ok(with_word(report, &word)),
            Err(failure) => Err(not_proven(failure.refusal, kept.err(), &word)),
        }
    }

    async fn kill_at(
        &self,
        operator: &Operator,
        connection: &Connection,
        payload: &KillPayload,
    ) -> Result<KillReport, Failure> {
        let id = connection.connection_id;
        let detail = serde_json::json!({ "reason": payload.reason });
        let sending = Sending::new(
            operator,
            id,
            Some(payload.agent_id),
            CommandType::AgentKill,
            detail,
        );
        let limit = if payload.wait_for_cleanup {
            KILL_AND_CLEANUP_LIMIT
        } else {
            KILL_LIMIT
        };
        let answer: Result<KillReport, Failure> = self
            .call(
                &usable(connection),
                sending.record.message_id,
                CommandType::AgentKill,
                payload,
                limit,
            )
            .await
            .and_then(|told: KillReport| {
                require_about(payload.agent_id, told.agent_id).map(|()| told)
            });
        self.record_later(operator, sending, answer.as_ref().err());
        let mut report = insist_on_proof(answer?);
        self.note_deaths(connection, std::slice::from_ref(&report));
        if let Some(status) = report.status.take() {
            let at = self.place_at(connection, payload.agent_id).unwrap_or(id);
            report.status = Some(Box::new(self.take_in(at, *status)));
        }
        Ok(report)
    }

    /// Nobody here knows where the agent is: every spoke is asked to kill it, and the one that has it answers.
    /// Only a proven death is taken at once. Anything else waits until all were heard, because the agent may live
    /// at the one that is silent; what is asked of that one is kept meanwhile.
    async fn kill_anywhere(
        &self,
        operator: &Operator,
        payload: &KillPayload,
    ) -> Result<KillReport, Refusal> {
        let mut asked: FuturesUnordered<_> = self
            .spokes(&KILLABLE)
            .into_iter()
            .map(|spoke| {
                let (routing, operator) = (self.clone(), operator.clone());
                let payload = payload.clone();
                // Tasks of their own: one spoke's answer must not take back the order to the others.
                tokio::spawn(async move {
                    let order = new_kill(&operator, spoke.connection_id, &payload);
                    let sending = routing.kill_at(&operator, &spoke, &payload);
                    let tried = routing.try_kill(&order, sending).await;
                    Asked {
                        spoke,
                        order,
                        tried,
                    }
                })
            })
            .collect();
        if asked.is_empty() {
            let refusal = unknown_agent();
            let (kind, agent) = (CommandType::AgentKill, payload.agent_id);
            self.audit_unsent(operator, kind, Some(agent), None, Some(&refusal));
            return Err(refusal);
        }
        let mut heard = Heard::default();
        let mut open = Vec::new();
        while let Some(joined) = asked.next().await {
            let Ok(one) = joined.inspect_err(|error| {
                tracing::error!(%error, "a kill was not carried through");
            }) else {
                let it = "a spoke whose kill failed here";
                heard.silent.push(it.to_owned());
                continue;
            };
            let proven = heard.take(&one.spoke.name, &one.tried.answer);
            if one.tried.is_over(&of_kill(&one.tried.answer)) {
                self.conclude_of(&one);
            } else {
                open.push(one);
            }
            if let Some(report) = proven {
                self.not_needed_of(open, asked);
                return Ok(report);
            }
        }
        // It may live at one that did not prove it: each of them is asked again.
        let kept: Vec<_> = open
            .iter()
            .filter_map(|one| self.conclude_of(one))
            .collect();
        let words = kept.iter().map(|kept| self.word_of(kept));
        let words = futures_util::future::join_all(words).await.join("; ");
        let not_kept = kept.into_iter().find_map(Result::err);
        match heard.verdict() {
            verdict if words.is_empty() => verdict,
            Ok(report) => Ok(with_word(report, &words)),
            Err(refusal) => Err(not_proven(refusal, not_kept, &words)),
        }
    }

    fn conclude_of(&self, one: &Asked) -> Option<Result<KillIntentId, Refusal>> {
        self.conclude(&one.order, &one.tried, &of_kill(&one.tried.answer))
    }

    /// One spoke has proven the death: of what was asked of the others nothing is left. Those that have not answered yet
    /// are waited for behind the answer.
    fn not_needed_of(&self, open: Vec<Asked>, mut asked: FuturesUnordered<JoinHandle<Asked>>) {
        for one in open {
            self.not_needed(&one.tried);
        }
        let routing = self.clone();
        tokio::spawn(async move {
            while let Some(joined) = asked.next().await {
                match joined {
                    Ok(one) if one.tried.is_over(&of_kill(&one.tried.answer)) => {
                        routing.conclude_of(&one);
                    }
                    Ok(one) => routing.not_needed(&one.tried),
                    Err(error) => tracing::error!(%error, "a kill was not carried through"),
                }
            }
        });
    }

    /// Kills all agents in scope at all spokes at once. It always answers: `complete` says whether every spoke
    /// proved every death, and a spoke that gave no verifiable answer in 7 s is named.
    ///
    /// # Errors
    /// `unknown-connection` or `connection-not-active` if the request names a connection that is not there or has
    /// ended; `invalid-request` if its label is none.
    pub async fn kill_all(
        &self,
        operator: &Operator,
        request: KillAllRequest,
    ) -> Result<FederationKillAll, Refusal> {
        let (routing, operator) = (self.clone(), operator.clone());
        carry_through(async move { routing.forward_kill_all(&operator, request).await }).await
    }

    async fn forward_kill_all(
        &self,
        operator: &Operator,
        request: KillAllRequest,
    ) -> Result<FederationKillAll, Refusal> {
        let start = Instant::now();
        let (spokes, out_of_reach) = match self.reach(&request) {
            Ok(reach) => reach,
            Err(refusal) => {
                let (kind, id) = (CommandType::AgentKillAll, request.connection_id);
                self.audit_unsent(operator, kind, None, id, Some(&refusal));
                return Err(refusal);
            }
        };
        if spokes.is_empty() {
            self.audit_unsent(operator, CommandType::AgentKillAll, None, None, None);
        }
        let payload = KillAllPayload {
            task_id: request.task_id,
            hold: request.hold,
            reason: request.reason.map(cut_reason),
            label: request.label,
            before: None,
        };
        let asked = spokes
            .iter()
            .map(|spoke| self.kill_all_at(operator, spoke, &payload));
        let (mut spokes, lost) = futures_util::future::join(
            futures_util::future::join_all(asked),
            self.still_in_scope(out_of_reach, &payload),
        )
        .await;
        spokes.extend(lost);
        Ok(summarise(
            spokes,
            payload.hold,
            start.elapsed().as_micros().try_into().unwrap_or(u64::MAX),
        ))
    }

    async fn kill_all_at(
        &self,
        operator: &Operator,
        connection: &Connection,
        payload: &KillAllPayload,
    ) -> SpokeKillAll {
        let id = connection.connection_id;
        let detail = serde_json::json!({
            "taskId": payload.task_id, "label": payload.label, "hold": payload.hold,
            "reason": payload.reason,
        });
        let sending = Sending::new(operator, id, None, CommandType::AgentKillAll, detail);
        let order = NewKill {
            connection: id,
            target: KillTarget::All {
                task_id: payload.task_id.clone(),
                label: payload.label.clone(),
            },
            hold: payload.hold,
            reason: payload.reason.clone(),
            author: operator.actor(),
            ordered_at: sending.record.issued_at,
        };
        let message_id = sending.record.message_id;
        let spoke = usable(connection);
        let kind = CommandType::AgentKillAll;
        let calling = self.call::<KillAllReport>(&spoke, message_id, kind, payload, KILL_ALL_LIMIT);
        let calling = async {
            let report = recount(calling.await?);
            self.note_deaths(connection, &report.agents);
            Ok(report)
        };
        let tried = self.try_kill(&order, calling).await;
        self.record_later(operator, sending, tried.answer.as_ref().err());
        let delivery = of_kill_all(&tried.answer, payload.hold);
        let kept = self.conclude(&order, &tried, &delivery);
        let (report, mut error) = match tried.answer {
            Ok(report) => (Some(report), None),
            Err(failure) => (None, Some(failure.refusal)),
        };
        // Of deaths the report says it itself.
        if let (Some(report), Delivery::Open { refusal, .. }) = (&report, delivery)
            && without_hold(report, payload.hold).is_some()
        {
            error = Some(refusal);
        }
        if let Some(kept) = &kept {
            let word = self.word_of(kept).await;
            error = match error {
                Some(refusal) => Some(not_proven(refusal, kept.clone().err(), &word)),
                // The report tells of the deaths that are not proven; that nothing is kept of them is told here.
                None => kept.clone().err(),
            };
        }
        SpokeKillAll {
            connection_id: id,
            name: connection.name.clone(),
            report,
            error,
            pending: kept
                .and_then(Result::ok)
                .filter(|id| self.inner.intents.is_pending(*id)),
        }
    }

    /// By which connection the agents that came by this one are killed: by itself; or, once it has ended, by the one that
    /// leads to the same spoke now, because a kill reaches what the same peer has left behind.
    pub(super) fn way_to(&self, connection: &Arc<Connection>) -> Result<Arc<Connection>, Refusal> {
        let Err(refusal) = require_killable(connection) else {
            return Ok(Arc::clone(connection));
        };
        let now = self.node().connections().by_peer(&connection.peer);
        now.filter(|now| KILLABLE.contains(&now.state))
            .ok_or(refusal)
    }

    fn record_later(&self, operator: &Operator, sending: Sending, failure: Option<&Failure>) {
        let (record, audit) = sending.outcome(operator, failure, Timestamp::now());
        self.inner.ledger.command(record);
        self.node().audit().record_later(audit);
    }
}

/// A kill that was sent to a spoke which may have the agent.
struct Asked {
    spoke: Arc<Connection>,
    order: NewKill,
    tried: Tried<KillReport>,
}

pub(super) fn require_killable(connection: &Connection) -> Result<(), Refusal> {
    if KILLABLE.contains(&connection.state) {
        return Ok(());
    }
    super::require_active(connection)
}

fn new_kill(operator: &Operator, connection: ConnectionId, payload: &KillPayload) -> NewKill {
    NewKill {
        connection,
        target: KillTarget::Agent {
            agent_id: payload.agent_id,
        },
        hold: false,
        reason: payload.reason.clone(),
        author: operator.actor(),
        ordered_at: Timestamp::now(),
    }
}

/// A kill that is not proven, with what becomes of it. If it could not be kept, that is the worse news.
fn not_proven(refusal: Refusal, not_kept: Option<Refusal>, word: &str) -> Refusal {
    let message = format!("{}; {word}", refusal.message);
    match not_kept {
        Some(why) => Refusal::new(why.code, message),
        None => Refusal { message, ..refusal },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    // A30: of one agent in a hundred that cannot be proven dead a spoke tells after so long, with the proofs of the others.
    #[test]
    fn a30_a_spoke_has_time_to_say_what_it_could_not_prove() {
        let (proof, store) = (Duration::from_secs(5), Duration::from_secs(2));
        let on_the_way = Duration::from_secs(1);
        assert!(KILL_ALL_LIMIT > proof + on_the_way);
        assert!(KILL_LIMIT > proof + store + on_the_way);
    }
}
