//! Peers whose clocks are off.

use std::time::Duration;

use mosaic_federation::{command::CommandBuilder, response::verify_response};
use mosaic_types::{AgentId, ErrorCode, Refusal, Timestamp, command::CommandType};
use serde_json::{Value, json};

use super::Peer;
use crate::rig::Spoke;

/// A clock that is off by so many seconds.
fn off(seconds: i64) -> Timestamp {
    let by = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        Timestamp::now().saturating_sub(by)
    } else {
        Timestamp::now().saturating_add(by)
    }
}

impl Peer {
    /// Asks, by a clock that is off.
    async fn ask_off(
        &self,
        spoke: &Spoke,
        seconds: i64,
        kind: CommandType,
        payload: &Value,
    ) -> Result<Value, Refusal> {
        let ttl = if kind.is_kill() { 5 } else { 120 };
        let command = CommandBuilder::new(spoke.node().instance_id(), kind)
            .ttl_secs(ttl)
            .seal(self.node.identity(), payload, off(seconds))
            .unwrap();
        let url = format!("{}/federation/v1/commands", spoke.url);
        let sent = reqwest::Client::new().post(url).body(command.bytes.clone());
        let answer = sent.send().await.unwrap().bytes().await.unwrap();
        let me = self.node.instance_id();
        let verified = verify_response(&answer, &self.connection, me, &command, Timestamp::now());
        let read = verified.unwrap().read::<Value>().unwrap();
        read.map_err(mosaic_federation::response::PeerRefusal::into_refusal)
    }
}

/// A kill by a clock that is too far off is refused by name, and hinders nobody else's.
#[tokio::test]
async fn a_kill_by_a_clock_that_is_off_is_refused_by_name_or_executed() {
    let spoke = Spoke::start().await;
    let (peer, right) = (Peer::of(&spoke).await, Peer::of(&spoke).await);
    let agents = [peer.idle(&spoke).await, peer.idle(&spoke).await];
    let others = [right.idle(&spoke).await, right.idle(&spoke).await];
    let one = |agent: AgentId| json!({"agentId": agent});
    for (seconds, code, field) in [
        (40, ErrorCode::NotYetValid, "issuedAt"),
        (86_400, ErrorCode::NotYetValid, "issuedAt"),
        (-40, ErrorCode::Expired, "expiresAt"),
        (-86_400, ErrorCode::Expired, "expiresAt"),
    ] {
        for (kind, payload) in [
            (CommandType::AgentKill, one(agents[0])),
            (CommandType::AgentKillAll, json!({"hold": true})),
        ] {
            let refused = peer.ask_off(&spoke, seconds, kind, &payload).await;
            let refused = refused.unwrap_err();
            assert_eq!(
                (refused.code, refused.field.as_deref()),
                (code, Some(field))
            );
            assert!(
                refused.message.contains("whose clock reads 20"),
                "{refused:?}"
            );
        }
    }
    for agent in agents.iter().chain(&others) {
        assert!(spoke.runs(*agent), "nothing of it was executed");
    }
    // The other peer's, and the operator's own.
    let report = right.ask(CommandType::AgentKill, &one(others[0])).await;
    assert_eq!(report.unwrap()["outcome"], "killed");
    assert_eq!(spoke.kill(others[1]).await["outcome"], "killed");
    // And by clocks that are no further off than they may be, in both directions.
    for (agent, seconds) in [(agents[0], 25), (agents[1], -25)] {
        let kill = CommandType::AgentKill;
        let report = peer.ask_off(&spoke, seconds, kill, &one(agent)).await;
        assert_eq!(report.unwrap()["outcome"], "killed", "{seconds}");
        assert!(!spoke.runs(agent));
    }
    for agent in agents.into_iter().chain(others) {
        spoke.finished(agent).await;
    }
    peer.stop().await;
    right.stop().await;
    spoke.stop().await;
}

/// A38: one that comes after its time takes who was there when it was given, and nobody who was asked for since.
#[tokio::test]
async fn a38_a_kill_all_after_its_time_spares_who_was_asked_for_after_it() {
    let spoke = Spoke::start().await;
    let peer = Peer::of(&spoke).await;
    let early = AgentId::generate();
    let body = spoke.spawn_body(early, super::FOREVER);
    let spawned = peer
        .ask_off(&spoke, -25, CommandType::AgentSpawn, &body)
        .await;
    spawned.unwrap();
    spoke.wrote(early, "at-work").await;
    let late = peer.idle(&spoke).await;
    let all = peer
        .ask_off(&spoke, -20, CommandType::AgentKillAll, &json!({}))
        .await;
    let all = all.unwrap();
    assert_eq!(
        (&all["killed"], &all["unverified"]),
        (&json!(1), &json!(0)),
        "{all:#}"
    );
    assert!(!spoke.runs(early) && spoke.runs(late));
    // In time, it takes all.
    let all = peer
        .ask_off(&spoke, 0, CommandType::AgentKillAll, &json!({}))
        .await;
    assert_eq!(all.unwrap()["killed"], 1);
    assert!(!spoke.runs(late));
    spoke.finished(early).await;
    spoke.finished(late).await;
    peer.stop().await;
    spoke.stop().await;
}
