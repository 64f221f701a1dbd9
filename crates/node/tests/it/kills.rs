use std::sync::atomic::{AtomicUsize, Ordering};

use mosaic_node::HttpLimits;
use mosaic_types::{ErrorCode, command::CommandType, grant::Grants};
use serde_json::{Value, json};

use crate::harness::{Pair, Running, agent, repositories, soon, spawn_payload};

/// Promise 1: no flood of other commands can starve a kill.
#[tokio::test]
async fn a_kill_is_served_while_every_other_permit_is_taken() {
    let limits = HttpLimits {
        max_commands: 4,
        reserved_kills: 2,
        ..HttpLimits::default()
    };
    let pair = Pair::connected_with(Grants::full(repositories()), limits).await;
    pair.spoke.handler.shut();
    let blocking: Vec<_> = (0..4)
        .map(|_| pair.seal(CommandType::AgentStatus, &agent()))
        .collect();
    let flood = futures_util::future::join_all(blocking.iter().map(|each| pair.send(each)));
    let kills = async {
        soon(pair.spoke.handler.until_waiting(4)).await;
        for (command_type, payload) in [
            (CommandType::AgentKill, agent()),
            (CommandType::AgentKillAll, json!({ "hold": true })),
        ] {
            let kill = pair.seal(command_type, &payload);
            let answer = soon(pair.send(&kill)).await;
            assert_eq!(
                pair.data::<Value>(&kill, &answer)["command"],
                command_type.as_str()
            );
        }
        pair.spoke.handler.gate.add_permits(4);
    };
    tokio::join!(flood, kills);
    pair.stop().await;
}

/// Promise 1: a kill needs no store; promise 2: nor is it executed twice without one.
#[tokio::test]
async fn a_kill_is_executed_once_with_the_store_gone() {
    let pair = Pair::connected().await;
    pair.spoke.node.store().close().await;
    let kill = pair.seal(CommandType::AgentKill, &agent());
    let answer = soon(pair.send(&kill)).await;
    assert_eq!(pair.data::<Value>(&kill, &answer)["count"], 1);
    assert_eq!(soon(pair.send(&kill)).await, answer);
    assert_eq!(pair.spoke.handler.executed(), 1);
    let spawn = pair.seal(CommandType::AgentSpawn, &spawn_payload());
    let refused = soon(pair.send(&spawn)).await;
    assert_eq!(pair.refusal(&spawn, &refused).code, ErrorCode::ShuttingDown);
    assert_eq!(
        pair.spoke.handler.executed(),
        1,
        "a spawn that is not claimed is not executed"
    );
    pair.stop().await;
}

#[tokio::test]
async fn a_repeated_kill_gets_the_same_bytes_and_another_one_a_conflict() {
    use mosaic_federation::command::CommandBuilder;
    let pair = Pair::connected().await;
    let kill = pair.seal(CommandType::AgentKill, &agent());
    let answer = pair.send(&kill).await;
    assert_eq!(pair.send(&kill).await, answer);
    let other = CommandBuilder::new(pair.spoke.node.instance_id(), CommandType::AgentKill)
        .message_id(kill.message_id)
        .seal(
            pair.hub.node.identity(),
            &agent(),
            mosaic_types::Timestamp::now(),
        )
        .unwrap();
    let refused = pair.send(&other).await;
    assert_eq!(pair.refusal(&other, &refused).code, ErrorCode::Conflict);
    assert_eq!(pair.spoke.handler.executed_of(CommandType::AgentKill), 1);
    pair.stop().await;
}

/// Promise 1: a hub whose every call to a spoke hangs can still kill there.
#[tokio::test]
async fn calls_that_hang_leave_the_caller_a_way_to_kill() {
    let pair = Pair::connected().await;
    pair.spoke.handler.shut();
    let (peers, to_spoke) = (pair.hub.node.peers(), pair.to_spoke());
    let call = |command_type, payload: &Value| {
        let (peers, to_spoke, payload) = (peers.clone(), to_spoke.clone(), payload.clone());
        async move {
            let call = mosaic_node::CommandCall {
                message_id: None,
                command_type,
                payload: &payload,
                timeout: std::time::Duration::from_secs(60),
                issued_at: None,
            };
            peers.command::<Value, _>(&to_spoke, call).await
        }
    };
    let hanging: Vec<_> = (0..120)
        .map(|_| tokio::spawn(call(CommandType::AgentStatus, &agent())))
        .collect();
    soon(pair.spoke.handler.until_waiting(96)).await;
    let killed = soon(call(CommandType::AgentKill, &agent())).await.unwrap();
    assert_eq!(killed.data["command"], "agent.kill");
    let waiting = *pair.spoke.handler.waiting.borrow();
    assert_eq!(waiting, 96, "no more are under way at once");
    pair.spoke.handler.gate.add_permits(120);
    for each in hanging {
        soon(each).await.unwrap().unwrap();
    }
    pair.stop().await;
}

/// What waits to be put on record is bounded; past it a kill is executed all the same.
#[tokio::test]
async fn a_kill_that_cannot_be_put_on_record_is_executed() {
    let limits = HttpLimits {
        reserved_kills: 0,
        ..HttpLimits::default()
    };
    let pair = Pair::connected_with(Grants::full(repositories()), limits).await;
    let kill = pair.seal(CommandType::AgentKill, &agent());
    let answer = pair.send(&kill).await;
    assert_eq!(pair.data::<Value>(&kill, &answer)["count"], 1);
    let Pair { hub, spoke } = pair;
    let dir = spoke.stop().await;
    let spoke = Running::start_in(dir, "spoke").await;
    let now = mosaic_types::Timestamp::now();
    let claims = spoke.node.store().unexpired_claims(now, 10).await.unwrap();
    assert!(claims.is_empty(), "{claims:?}");
    spoke.stop().await;
    hub.stop().await;
}

fn waiting_kill() -> Value {
    json!({ "agentId": mosaic_types::AgentId::generate(), "waitForCleanup": true })
}

/// Promise 1: however many kills of a peer take long, those of another begin.
#[tokio::test]
async fn a_peer_cannot_take_the_permits_of_anothers_kills() {
    let limits = HttpLimits {
        max_commands: 2,
        reserved_kills: 4,
        kill_permit_hold: std::time::Duration::from_secs(3600),
        ..HttpLimits::default()
    };
    let pair = Pair::connected_with(Grants::full(repositories()), limits).await;
    let other = Running::start("other").await;
    let invite = pair.spoke.invite(Grants::full(repositories())).await;
    assert_eq!(other.connect(&invite.token).await.0, 201);
    pair.spoke.handler.shut();
    let kills: Vec<_> = (0..8)
        .map(|_| pair.seal(CommandType::AgentKill, &waiting_kill()))
        .collect();
    let flood = futures_util::future::join_all(kills.iter().map(|each| pair.send(each)));
    let another = async {
        soon(pair.spoke.handler.until_waiting(1)).await;
        let spoke = other.node.connections().list().remove(0);
        let call = mosaic_node::CommandCall {
            message_id: None,
            command_type: CommandType::AgentKill,
            payload: &agent(),
            timeout: std::time::Duration::from_secs(20),
            issued_at: None,
        };
        let answer = other.node.peers().command::<Value, _>(&spoke, call).await;
        assert_eq!(answer.unwrap().data["command"], "agent.kill");
        pair.spoke.handler.gate.add_permits(8);
    };
    let (answers, ()) = tokio::join!(flood, another);
    for (kill, answer) in kills.iter().zip(&answers) {
        pair.data::<Value>(kill, answer);
    }
    pair.stop().await;
    other.stop().await;
}

/// F22: kills of a peer that wait for a permit are few, whether or not somebody waits for their answers.
#[tokio::test]
async fn f22_a_peers_kills_that_wait_for_a_permit_are_bounded() {
    let limits = HttpLimits {
        reserved_kills: 4,
        max_waiting_kills: 1,
        kill_permit_hold: std::time::Duration::from_secs(3600),
        ..HttpLimits::default()
    };
    let pair = Pair::connected_with(Grants::full(repositories()), limits).await;
    pair.spoke.handler.shut();
    let kills: Vec<_> = (0..3)
        .map(|_| pair.seal(CommandType::AgentKill, &waiting_kill()))
        .collect();
    let first = pair.send(&kills[0]);
    let others = async {
        soon(pair.spoke.handler.until_waiting(1)).await;
        let (second, third) = (pair.send(&kills[1]), pair.send(&kills[2]));
        tokio::pin!(second, third);
        let (refused, answer, kill) = tokio::select! {
            answer = &mut second => (&kills[1], answer, &kills[2]),
            answer = &mut third => (&kills[2], answer, &kills[1]),
        };
        assert_eq!(pair.refusal(refused, &answer).code, ErrorCode::Overloaded);
        pair.spoke.handler.gate.add_permits(2);
        let waited = if kill.message_id == kills[1].message_id {
            second.await
        } else {
            third.await
        };
        pair.data::<Value>(kill, &waited);
    };
    let (answer, ()) = tokio::join!(first, others);
    pair.data::<Value>(&kills[0], &answer);
    pair.stop().await;
}

/// Promise 1: a kill that waits for a clean-up keeps no other kill of the same peer waiting.
#[tokio::test]
async fn a_kill_that_waits_for_a_clean_up_gives_its_permit_back() {
    let limits = HttpLimits {
        max_commands: 1,
        reserved_kills: 1,
        kill_permit_hold: std::time::Duration::from_millis(1),
        ..HttpLimits::default()
    };
    let pair = Pair::connected_with(Grants::full(repositories()), limits).await;
    pair.spoke.handler.shut();
    let slow = pair.seal(CommandType::AgentKill, &waiting_kill());
    let slow_answer = pair.send(&slow);
    let others = async {
        soon(pair.spoke.handler.until_waiting(1)).await;
        for _ in 0..3 {
            let kill = pair.seal(CommandType::AgentKill, &agent());
            pair.data::<Value>(&kill, &soon(pair.send(&kill)).await);
        }
        pair.spoke.handler.gate.add_permits(1);
    };
    let (answer, ()) = tokio::join!(slow_answer, others);
    pair.data::<Value>(&slow, &answer);
    pair.stop().await;
}

/// A30: what is asked during a kill begins once the kill has its answer. Other kills go on, and so do renewals (A37) and
/// spawns (A9), however many questions wait.
#[tokio::test]
async fn a30_what_a_peer_asks_during_a_kill_begins_after_it() {
    let hour = std::time::Duration::from_secs(3600);
    let limits = HttpLimits {
        max_commands: 2,
        kill_permit_hold: hour,
        stand_aside: hour,
        ..HttpLimits::default()
    };
    let pair = Pair::connected_with(Grants::full(repositories()), limits).await;
    let handler = &pair.spoke.handler;
    handler.shut();
    let slow = pair.seal(CommandType::AgentKill, &waiting_kill());
    let asked = pair.seal(CommandType::AgentResult, &agent());
    let streamed = pair.seal(CommandType::AgentResult, &agent());
    let answered = AtomicUsize::new(0);
    let asking = async {
        soon(handler.until_waiting(1)).await;
        let answer = pair.send(&asked).await;
        answered.fetch_add(1, Ordering::SeqCst);
        answer
    };
    let opening = async {
        soon(handler.until_waiting(1)).await;
        let bytes = streamed.bytes.clone();
        let answer = pair.spoke.post("/federation/v1/streams", bytes).await;
        answered.fetch_add(1, Ordering::SeqCst);
        answer
    };
    let others = async {
        let all_are_heard = async {
            while handler.heard.load(Ordering::SeqCst) < 3 {
                tokio::task::yield_now().await;
            }
        };
        soon(all_are_heard).await;
        // While these come and go, so could the others.
        for _ in 0..8 {
            let kill = pair.seal(CommandType::AgentKill, &agent());
            pair.data::<Value>(&kill, &soon(pair.send(&kill)).await);
        }
        let renewal = json!({ "agentIds": [mosaic_types::AgentId::generate()], "leaseSecs": 60 });
        let renewal = pair.seal(CommandType::AgentRenew, &renewal);
        pair.data::<Value>(&renewal, &soon(pair.send(&renewal)).await);
        let spawn = pair.seal(CommandType::AgentSpawn, &spawn_payload());
        pair.data::<Value>(&spawn, &soon(pair.send(&spawn)).await);
        assert_eq!(handler.executed_of(CommandType::AgentResult), 0);
        assert_eq!(answered.load(Ordering::SeqCst), 0);
        handler.gate.add_permits(1);
    };
    let (killed, asked_of, opened, ()) = tokio::join!(pair.send(&slow), asking, opening, others);
    pair.data::<Value>(&slow, &killed);
    let refusal = pair.refusal(&asked, &asked_of);
    assert_eq!(refusal.code, ErrorCode::UnknownAgent);
    let refusal = pair.refusal(&streamed, &opened);
    assert_eq!(refusal.code, ErrorCode::InvalidRequest);
    pair.stop().await;
}

/// F10: a captured kill-all that is sent again after a restart does not kill what is newer.
#[tokio::test]
async fn f10_a_kill_of_before_a_restart_is_not_executed_again() {
    let pair = Pair::connected().await;
    let kill = pair.seal(CommandType::AgentKillAll, &json!({ "hold": true }));
    let answer = pair.send(&kill).await;
    let Pair { hub, spoke } = pair;
    let spoke = Running::start_in(spoke.stop().await, "spoke").await;
    let pair = Pair { hub, spoke };
    assert_eq!(pair.send(&kill).await, answer, "the answer that was kept");
    assert_eq!(pair.spoke.handler.executed(), 0);
    let fresh = pair.seal(CommandType::AgentKillAll, &json!({ "hold": true }));
    pair.data::<Value>(&fresh, &pair.send(&fresh).await);
    assert_eq!(pair.spoke.handler.executed(), 1);
    pair.stop().await;
}

/// No quota holds a kill up.
#[tokio::test]
async fn a_kill_takes_no_quota() {
    let mut grants = Grants::full(repositories());
    (grants.caps.max_agents, grants.caps.spawns_per_minute) = (0, 0);
    let pair = Pair::connected_with(grants, HttpLimits::default()).await;
    let kill = pair.seal(CommandType::AgentKill, &agent());
    let answer = pair.send(&kill).await;
    assert_eq!(pair.data::<Value>(&kill, &answer)["count"], 1);
    pair.stop().await;
}
