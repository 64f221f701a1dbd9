//! A peer that was turned out and let in again: what it had started by its old connection it can kill, and nothing else.

use mosaic_types::{ErrorCode, agent::ObservedState, command::CommandType};
use serde_json::json;

use super::Peer;
use crate::rig::Spoke;

/// A38: else its hub would be told that there is no such agent, and take that for a death.
#[tokio::test]
async fn a38_a_peer_that_was_let_in_again_kills_what_it_left_behind() {
    let spoke = Spoke::start().await;
    let (mut peer, other) = (Peer::of(&spoke).await, Peer::of(&spoke).await);
    let (one, more) = (peer.idle(&spoke).await, peer.idle(&spoke).await);
    let others = other.idle(&spoke).await;
    peer.turned_out_and_let_in(&spoke).await;
    let own = peer.idle(&spoke).await;

    let seen = peer.status(one).await.unwrap_err();
    assert_eq!(seen.code, ErrorCode::UnknownAgent);
    let kill = json!({"agentId": one});
    let strangers = other.ask(CommandType::AgentKill, &kill).await;
    assert_eq!(strangers.unwrap_err().code, ErrorCode::UnknownAgent);
    let killed = peer.ask(CommandType::AgentKill, &kill).await;
    assert_eq!(killed.unwrap()["outcome"], "killed");

    let report = peer.ask(CommandType::AgentKillAll, &json!({})).await;
    let report = report.unwrap();
    assert_eq!(report["killed"], 2, "{report}");
    for agent in [one, more, own] {
        let status = spoke.finished(agent).await;
        assert_eq!(status.state, ObservedState::Killed);
    }
    let spared = spoke.status(others).await;
    assert_eq!(spared.state, ObservedState::Running);
    spoke.stop().await;
}
