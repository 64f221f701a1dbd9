//! Whom a kill-all takes: by task, by label, by the time it was ordered; and never anybody else's.

use std::collections::BTreeSet;

use mosaic_types::{AgentId, ErrorCode, Timestamp, agent::ObservedState, command::CommandType};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    peers::{Peer, refusal_of},
    rig::Spoke,
};

/// Goes on until it is told to end by itself.
const PATIENT: &str = "echo at-work; while ! test -e go; do sleep 0.05; done";

/// Whoever was struck, rightly or not, does not complete.
async fn goes_on(spoke: &Spoke, agent: AgentId) {
    let go = spoke.data_dir().join(format!("agents/{agent}/work/go"));
    std::fs::write(go, "").unwrap();
    let status = spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Completed, "{status:?}");
}

async fn labelled(peer: &Peer, spoke: &Spoke, labels: Value) -> AgentId {
    let agent = AgentId::generate();
    let mut body = spoke.spawn_body(agent, PATIENT);
    body["labels"] = labels;
    peer.ask(CommandType::AgentSpawn, &body).await.unwrap();
    spoke.wrote(agent, "at-work").await;
    agent
}

fn taken(report: &Value) -> BTreeSet<String> {
    let agents = report["agents"].as_array().unwrap().iter();
    agents
        .map(|agent| agent["agentId"].as_str().unwrap().to_owned())
        .collect()
}

async fn runs(spoke: &Spoke, agent: AgentId) {
    assert_eq!(spoke.status(agent).await.state, ObservedState::Running);
}

#[tokio::test]
async fn a_kill_all_by_label_takes_those_that_have_it_and_are_the_callers() {
    let spoke = Spoke::start().await;
    let (one, two) = (Peer::of(&spoke).await, Peer::of(&spoke).await);
    let core = labelled(&one, &spoke, json!({"team": "core", "tier": "1"})).await;
    let edge = labelled(&one, &spoke, json!({"team": "edge"})).await;
    let bare = labelled(&one, &spoke, json!({})).await;
    let others = labelled(&two, &spoke, json!({"team": "core"})).await;
    assert_eq!(spoke.status(core).await.labels["tier"], "1");

    let list = |label: &str| json!({ "label": label });
    let page = one.ask(CommandType::AgentList, &list("team=core")).await;
    assert_eq!(taken(&page.unwrap()), [core.to_string()].into());
    let (_, page) = spoke
        .call(Method::GET, "/agents?label=team%3Dcore", None)
        .await;
    let both = BTreeSet::from([core.to_string(), others.to_string()]);
    assert_eq!(taken(&page), both);
    let refused = refusal_of(one.ask(CommandType::AgentList, &list("Team")).await);
    assert_eq!(refused.0, ErrorCode::InvalidRequest);

    let label = json!({"label": {"key": "team", "value": "core"}});
    let report = one.ask(CommandType::AgentKillAll, &label).await.unwrap();
    assert_eq!(taken(&report), [core.to_string()].into());
    for agent in [edge, bare, others] {
        runs(&spoke, agent).await;
    }
    // The spoke's own operator reaches everybody's.
    let path = "/agents/kill-all";
    let (_, report) = spoke.call(Method::POST, path, Some(label)).await;
    assert_eq!(taken(&report), [others.to_string()].into());
    for agent in [edge, bare] {
        goes_on(&spoke, agent).await;
    }
    for killed in [core, others] {
        spoke.finished(killed).await;
    }
    one.stop().await;
    two.stop().await;
    spoke.stop().await;
}

/// A38: an order that comes late takes who was there when it was given, and nobody after.
#[tokio::test]
async fn a38_a_late_kill_all_spares_who_was_asked_for_after_it() {
    let spoke = Spoke::start().await;
    let peer = Peer::of(&spoke).await;
    let old = peer.idle(&spoke).await;
    let ordered_at = Timestamp::now();
    while Timestamp::now() <= ordered_at {
        tokio::task::yield_now().await;
    }
    let new = labelled(&peer, &spoke, json!({})).await;
    let order = json!({ "before": ordered_at });
    // Twice is one kill.
    for expected in [BTreeSet::from([old.to_string()]), BTreeSet::new()] {
        let report = peer.ask(CommandType::AgentKillAll, &order).await.unwrap();
        assert_eq!(taken(&report), expected, "{report}");
        assert_eq!(report["unverified"], 0);
        runs(&spoke, new).await;
        spoke.finished(old).await;
    }
    goes_on(&spoke, new).await;
    peer.stop().await;
    spoke.stop().await;
}

/// A9: what was signed before a kill and comes after it, does not start.
#[tokio::test]
async fn a9_a_spawn_that_a_kill_has_overtaken_is_refused() {
    let spoke = Spoke::start().await;
    let (peer, other) = (Peer::of(&spoke).await, Peer::of(&spoke).await);
    // In place of a spawn from before: an order from later.
    let later = Timestamp::now().saturating_add(std::time::Duration::from_secs(60));
    let order = json!({"taskId": "T-1", "before": later});
    peer.ask(CommandType::AgentKillAll, &order).await.unwrap();
    let agent = AgentId::generate();
    let mut body = spoke.spawn_body(agent, "true");
    let refused = refusal_of(peer.ask(CommandType::AgentSpawn, &body).await);
    assert_eq!(refused.0, ErrorCode::Expired);
    let wanted = json!({ "agentId": agent });
    let refused = refusal_of(peer.ask(CommandType::AgentStatus, &wanted).await);
    assert_eq!(refused.0, ErrorCode::UnknownAgent, "nothing of it exists");
    let unhindered = other.spawn(&spoke, "true").await;
    spoke.finished(unhindered).await;
    body["taskId"] = json!("T-2");
    peer.ask(CommandType::AgentSpawn, &body).await.unwrap();
    let status = spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Completed);
    peer.stop().await;
    other.stop().await;
    spoke.stop().await;
}

/// F8: whatever a peer orders, the spoke's own agents go on.
#[tokio::test]
async fn f8_no_command_of_a_peer_stops_a_local_agent() {
    let spoke = Spoke::start().await;
    let peer = Peer::of(&spoke).await;
    let local = AgentId::generate();
    let mut body = spoke.spawn_body(local, PATIENT);
    body["labels"] = json!({"team": "core"});
    spoke.call(Method::POST, "/agents/spawn", Some(body)).await;
    spoke.wrote(local, "at-work").await;
    let kill = json!({ "agentId": local });
    let refused = refusal_of(peer.ask(CommandType::AgentKill, &kill).await);
    assert_eq!(refused.0, ErrorCode::UnknownAgent);
    let later = Timestamp::now().saturating_add(std::time::Duration::from_secs(60));
    for scope in [
        json!({"hold": true}),
        json!({"taskId": "T-1"}),
        json!({"label": {"key": "team", "value": "core"}}),
        json!({ "before": later }),
    ] {
        let report = peer.ask(CommandType::AgentKillAll, &scope).await.unwrap();
        assert_eq!(taken(&report), BTreeSet::new(), "{scope}");
        runs(&spoke, local).await;
    }
    let renew = json!({"agentIds": [local], "leaseSecs": 5});
    let refused = refusal_of(peer.ask(CommandType::AgentRenew, &renew).await);
    assert_eq!(refused.0, ErrorCode::UnknownAgent);
    // Nor do they hold its spawns, or overtake them.
    let after = spoke.spawn("true").await;
    assert_eq!(spoke.finished(after).await.state, ObservedState::Completed);
    goes_on(&spoke, local).await;
    peer.stop().await;
    spoke.stop().await;
}
