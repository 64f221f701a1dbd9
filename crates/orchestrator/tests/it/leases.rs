//! Leases: an agent whose hub is gone is stopped, as by a kill.

use std::time::{Duration, Instant};

use mosaic_types::{
    AgentId, ErrorCode,
    agent::{EndReason, ObservedState, ProofMethod},
    command::CommandType,
};
use serde_json::{Value, json};

use crate::{
    peers::{Peer, grants, refusal_of},
    rig::{FOREVER, Spoke, git},
};

async fn spoke() -> Spoke {
    Spoke::start_with(|config| config.limits.min_lease_secs = 1).await
}

fn leased(spoke: &Spoke, agent: AgentId, script: &str, secs: u64) -> Value {
    let mut body = spoke.spawn_body(agent, script);
    body["options"] = json!({ "leaseSecs": secs });
    body
}

async fn spawn(peer: &Peer, spoke: &Spoke, script: &str, secs: u64) -> AgentId {
    let agent = AgentId::generate();
    let body = leased(spoke, agent, script, secs);
    let accepted = peer.ask(CommandType::AgentSpawn, &body).await.unwrap();
    assert_eq!(accepted["leaseSecs"], secs);
    agent
}

/// Renews an agent's lease for as long as something takes, however slow the machine is.
async fn meanwhile_renewed<T>(
    peer: &Peer,
    agent: AgentId,
    secs: u64,
    work: impl Future<Output = T>,
) -> T {
    let renew = json!({"agentIds": [agent], "leaseSecs": secs});
    let renewing = async {
        loop {
            peer.ask(CommandType::AgentRenew, &renew).await.unwrap();
        }
    };
    tokio::select! {
        done = work => done,
        () = renewing => unreachable!(),
    }
}

/// A37: with the proof, the salvage and the record of a kill.
#[tokio::test]
async fn a37_an_agent_whose_lease_runs_out_is_stopped_as_by_a_kill() {
    let spoke = spoke().await;
    let peer = Peer::of(&spoke).await;
    let script = "echo precious > half-done; echo written; exec sleep 1000";
    let agent = spawn(&peer, &spoke, script, 3).await;
    meanwhile_renewed(&peer, agent, 3, spoke.wrote(agent, "written")).await;
    assert_eq!(spoke.status(agent).await.lease_secs, Some(3));
    let status = spoke.finished(agent).await;
    assert_eq!(
        (status.state, status.reason),
        (ObservedState::Killed, Some(EndReason::LeaseExpired)),
        "{status:?}"
    );
    assert!(status.death.is_some());
    let work = status.work.as_ref().unwrap();
    let saved = format!("{}:half-done", work.git_ref);
    assert_eq!(git(&spoke.mirror(), &["show", &saved]), "precious");
    let entries = spoke.node().store().audit_entries(0, 1000).await.unwrap();
    let told = entries
        .iter()
        .map(|entry| serde_json::from_str::<Value>(&entry.event_json).unwrap())
        .find(|event| event["action"] == "killswitch.kill")
        .unwrap();
    assert_eq!(
        (&told["actor"]["kind"], &told["subject"]),
        (&json!("system"), &json!(agent.to_string()))
    );
    peer.stop().await;
    spoke.stop().await;
}

#[tokio::test]
async fn a37_a_lease_that_is_renewed_goes_on() {
    let spoke = spoke().await;
    let peer = Peer::of(&spoke).await;
    let script = "echo at-work; while ! test -e go; do sleep 0.05; done";
    let begun = Instant::now();
    let agent = spawn(&peer, &spoke, script, 3).await;
    let renew = json!({"agentIds": [agent, AgentId::generate()], "leaseSecs": 3});
    while begun.elapsed() < Duration::from_secs(4) {
        let report = peer.ask(CommandType::AgentRenew, &renew).await.unwrap();
        assert_eq!(report["agents"][0]["outcome"], "renewed");
        assert_eq!(report["agents"][1]["outcome"], "unknown-agent");
    }
    meanwhile_renewed(&peer, agent, 3, spoke.wrote(agent, "at-work")).await;
    let go = spoke.data_dir().join(format!("agents/{agent}/work/go"));
    std::fs::write(go, "").unwrap();
    let status = meanwhile_renewed(&peer, agent, 3, spoke.finished(agent)).await;
    assert_eq!(status.state, ObservedState::Completed);
    let report = peer.ask(CommandType::AgentRenew, &renew).await.unwrap();
    assert_eq!(report["agents"][0]["outcome"], "ended");
    let kept = spoke.node().store().leases().await.unwrap();
    assert!(kept.is_empty(), "of ended agents nothing is kept: {kept:?}");
    peer.stop().await;
    spoke.stop().await;
}

/// F8: nobody keeps alive, or finds out about, what is another's.
#[tokio::test]
async fn f8_only_the_owner_renews() {
    let spoke = spoke().await;
    let (owner, other) = (Peer::of(&spoke).await, Peer::of(&spoke).await);
    let agent = spawn(&owner, &spoke, FOREVER, 2).await;
    let local = spoke.spawn(FOREVER).await;
    for (peer, wanted) in [(&other, agent), (&owner, local)] {
        let renew = json!({"agentIds": [wanted], "leaseSecs": 2});
        let refused = refusal_of(peer.ask(CommandType::AgentRenew, &renew).await);
        assert_eq!(
            refused,
            (ErrorCode::UnknownAgent, Some("agentIds".to_owned()))
        );
    }
    let unleased = owner.spawn(&spoke, FOREVER).await;
    let renew = json!({"agentIds": [unleased], "leaseSecs": 2});
    let report = owner.ask(CommandType::AgentRenew, &renew).await.unwrap();
    assert_eq!(report["agents"][0]["outcome"], "no-lease");
    let status = spoke.finished(agent).await;
    assert_eq!(status.reason, Some(EndReason::LeaseExpired));
    for alive in [unleased, local] {
        let state = spoke.status(alive).await.state;
        assert!(!state.known().unwrap().is_terminal(), "{state}");
        spoke.kill(alive).await;
        spoke.finished(alive).await;
    }
    owner.stop().await;
    other.stop().await;
    spoke.stop().await;
}

#[tokio::test]
async fn a37_a_lease_counts_in_the_queue() {
    let spoke = Spoke::start_with(|config| {
        config.limits.min_lease_secs = 1;
        config.limits.max_running = 1;
    })
    .await;
    let peer = Peer::of(&spoke).await;
    let running = spoke.spawn(FOREVER).await;
    spoke.wrote(running, "at-work").await;
    let queued = spawn(&peer, &spoke, FOREVER, 1).await;
    let status = spoke.finished(queued).await;
    assert_eq!(status.reason, Some(EndReason::LeaseExpired));
    assert_eq!(status.death.unwrap().method, ProofMethod::NeverStarted);
    spoke.kill(running).await;
    spoke.finished(running).await;
    peer.stop().await;
    spoke.stop().await;
}

#[tokio::test]
async fn f14_a_grant_can_impose_a_lease() {
    let spoke = spoke().await;
    let mut granted = grants(&spoke);
    granted.caps.max_lease_secs = Some(2);
    let peer = Peer::with(&spoke, granted).await;
    let body = leased(&spoke, AgentId::generate(), FOREVER, 3);
    let refused = refusal_of(peer.ask(CommandType::AgentSpawn, &body).await);
    let field = Some("options.leaseSecs".to_owned());
    assert_eq!(refused, (ErrorCode::GrantExceeded, field));

    let agent = AgentId::generate();
    let body = spoke.spawn_body(agent, FOREVER);
    for existing in [false, true] {
        let accepted = peer.ask(CommandType::AgentSpawn, &body).await.unwrap();
        assert_eq!(
            (&accepted["leaseSecs"], &accepted["existing"]),
            (&json!(2), &json!(existing))
        );
    }
    let status = spoke.finished(agent).await;
    assert_eq!(status.reason, Some(EndReason::LeaseExpired));
    peer.stop().await;
    spoke.stop().await;
}

#[tokio::test]
async fn a_lease_that_cannot_be_kept_is_refused_by_name() {
    let spoke = Spoke::start().await;
    let peer = Peer::of(&spoke).await;
    for secs in [0, 4, 86_401] {
        let body = leased(&spoke, AgentId::generate(), FOREVER, secs);
        let refused = refusal_of(peer.ask(CommandType::AgentSpawn, &body).await);
        let field = Some("options.leaseSecs".to_owned());
        assert_eq!(refused, (ErrorCode::InvalidRequest, field), "{secs}");
    }
    for (renew, field) in [
        (json!({"agentIds": [], "leaseSecs": 5}), "agentIds"),
        (
            json!({"agentIds": [AgentId::generate()], "leaseSecs": 0}),
            "leaseSecs",
        ),
    ] {
        let refused = refusal_of(peer.ask(CommandType::AgentRenew, &renew).await);
        let field = Some(field.to_owned());
        assert_eq!(refused, (ErrorCode::InvalidRequest, field));
    }
    peer.stop().await;
    spoke.stop().await;
}
