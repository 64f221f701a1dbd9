//! The same with agents in containers, and at the steps that only these have. All points of a test share one engine.

use super::*;
use crate::docker::engine;

/// In what brings a container up, beside the launch that waits for it.
const BRINGING_UP: &[&str] = &["container.made", "container.started"];
/// In a launch that takes a container which was there before.
const TAKING: &[&str] = &[
    "slot.taken",
    "slot.assigned",
    "spawn.prepared",
    "spawn.launched",
    "container.renamed",
    "spawn.init-started",
    "spawn.let-go",
];
/// In the making of a container that is to wait.
const FILLING: &[&str] = &[
    "slot.container-made",
    "slot.container-started",
    "slot.waits",
];
const CLEAN_UP: &[&str] = &["clean-up.container-gone", "clean-up.slot-gone"];

/// The points that only containers pass.
pub(super) const OWN: &[&str] = &[
    "container.made",
    "container.started",
    "container.renamed",
    "slot.taken",
    "slot.assigned",
    "slot.container-made",
    "slot.container-started",
    "slot.waits",
    "clean-up.container-gone",
    "clean-up.slot-gone",
];

#[test]
fn every_crash_point_of_containers_is_crashed_at() {
    let crashed: BTreeSet<&str> = [BRINGING_UP, TAKING, FILLING, CLEAN_UP]
        .concat()
        .into_iter()
        .collect();
    for point in OWN {
        assert!(crashed.contains(point), "{point}");
    }
}

#[tokio::test]
async fn a1_a6_a_crash_at_any_step_of_a_containers_spawn_is_one_agent_that_runs_once() {
    let Some(engine) = engine::start().await else {
        return;
    };
    in_a_spawn(&Home::Containers(&engine), &[SPAWN, BRINGING_UP].concat()).await;
}

#[tokio::test]
async fn a6_a_crash_at_any_step_of_taking_a_container_that_waits_is_one_agent_that_runs_once() {
    let Some(engine) = engine::start().await else {
        return;
    };
    in_a_spawn(&Home::Waiting(&engine), TAKING).await;
}

#[tokio::test]
async fn a27_what_a_crash_in_a_containers_spawn_left_can_be_killed_at_once() {
    let Some(engine) = engine::start().await else {
        return;
    };
    in_a_spawn_then_killed(&Home::Containers(&engine), &[SPAWN, BRINGING_UP].concat()).await;
    in_a_spawn_then_killed(&Home::Waiting(&engine), TAKING).await;
}

#[tokio::test]
async fn a5_a_crash_at_any_step_of_a_retry_in_a_container_is_one_attempt_more() {
    let Some(engine) = engine::start().await else {
        return;
    };
    in_a_retry(&Home::Containers(&engine), RETRY).await;
    in_a_retry(
        &Home::Waiting(&engine),
        &["retry.cleaned", "retry.requeued"],
    )
    .await;
}

#[tokio::test]
async fn a23_a_crash_at_any_step_of_a_containers_end_loses_no_work_and_leaves_nothing() {
    let Some(engine) = engine::start().await else {
        return;
    };
    in_an_end(&Home::Containers(&engine), &[END, &CLEAN_UP[..1]].concat()).await;
    in_an_end(&Home::Waiting(&engine), CLEAN_UP).await;
}

#[tokio::test]
async fn a8_a_crash_before_word_of_a_containers_kill_is_left_promises_nothing() {
    let Some(engine) = engine::start().await else {
        return;
    };
    in_a_kill_unheard(&Home::Containers(&engine), KILL_UNHEARD).await;
}

#[tokio::test]
async fn a22_a_crash_after_word_of_a_containers_kill_is_left_loses_no_work() {
    let Some(engine) = engine::start().await else {
        return;
    };
    in_a_kill(&Home::Containers(&engine), &[KILL, &CLEAN_UP[..1]].concat()).await;
    in_a_kill(&Home::Waiting(&engine), CLEAN_UP).await;
}

#[tokio::test]
async fn a7_a_crash_at_any_step_of_a_take_over_of_containers_is_made_good_by_the_next() {
    let Some(engine) = engine::start().await else {
        return;
    };
    in_a_take_over(&Home::Containers(&engine), TAKE_OVER).await;
    in_a_hold(&Home::Containers(&engine), &[HOLD_UNHEARD, HOLD].concat()).await;
}

/// A1: what was to wait for agents goes, and another takes its place.
#[tokio::test]
async fn a1_a_crash_while_a_container_is_made_ready_leaves_none_that_nobody_holds() {
    let Some(engine) = engine::start().await else {
        return;
    };
    let home = Home::Waiting(&engine);
    for point in FILLING {
        let mut spoke = home.start().await;
        let agent = spoke
            .spawn("echo at-work; until [ -e go ]; do sleep 0.05; done")
            .await;
        spoke.wrote(agent, "at-work").await;
        spoke.crash();
        let before = engine.containers();
        spoke.start_again(|command| arm(command, point));
        assert_eq!(spoke.died().await.signal(), Some(9), "{point}");
        let now = engine.containers();
        assert!(now.iter().any(|name| !before.contains(name)), "{point}");
        spoke.restart().await;
        std::fs::write(spoke.data_dir().join(format!("agents/{agent}/work/go")), "").unwrap();
        sound(&home, spoke, agent, ObservedState::Completed, point).await;
    }
}
