use super::{
    turns::{FIRST_PAUSE, LONGEST_PAUSE, pause},
    *,
};

use proptest::prelude::*;

async fn intents(max_pending: u64) -> (tempfile::TempDir, mosaic_node::Node, Intents) {
    let folder = tempfile::tempdir().unwrap();
    let node = mosaic_node::Node::open(mosaic_node::NodeConfig {
        data_dir: folder.path().join("hub"),
        name: "hub".to_owned(),
        role: mosaic_types::connection::NodeRole::Hub,
        public_url: None,
        allow_private_peers: true,
        limits: mosaic_node::HttpLimits::default(),
    })
    .await
    .unwrap();
    let limits = mosaic_store::Limits {
        max_pending_kills: max_pending,
        ..mosaic_store::Limits::default()
    };
    let intents = Intents::new(node.clone(), &limits);
    (folder, node, intents)
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_unix_millis(millis)
}

fn all(connection: ConnectionId, millis: i64) -> NewKill {
    NewKill {
        connection,
        target: KillTarget::All {
            task_id: None,
            label: None,
        },
        hold: false,
        reason: None,
        author: Actor::System,
        ordered_at: at(millis),
    }
}

fn as_of(order: &NewKill) -> Delivered {
    order.into()
}

fn open(signed: bool) -> Delivery {
    let refusal = Refusal::new(ErrorCode::PeerUnreachable, "x");
    Delivery::Open {
        refusal,
        signed,
        silent: !signed,
    }
}

#[tokio::test]
async fn one_order_about_the_same_is_one_kill_and_the_later_counts() {
    let (_folder, node, intents) = intents(9).await;
    let (here, now) = (ConnectionId::generate(), Instant::now());
    let id = intents.keep(&all(here, 1), false, now).unwrap();
    let later = NewKill {
        hold: true,
        ..all(here, 5)
    };
    assert_eq!(intents.keep(&later, false, now).unwrap(), id);
    // The answer to the first proves nothing of the second.
    intents.answered(id, as_of(&all(here, 1)), &Delivery::Proven(json!(1)), at(6));
    let kept = intents.get(id).unwrap();
    assert_eq!(
        (kept.state, kept.ordered_at, kept.hold, kept.delivered_at),
        (KillIntentState::Pending, at(5), true, None)
    );
    intents.answered(id, as_of(&later), &Delivery::Proven(json!(1)), at(7));
    assert_eq!(intents.get(id).unwrap().state, KillIntentState::Proven);
    assert_eq!(intents.rounds(here), None, "nothing is pending any more");
    // What is settled is not kept again, and not taken back.
    assert!(intents.cancel(id, Actor::System, at(8)).is_none());
    assert_ne!(intents.keep(&all(here, 9), false, now).unwrap(), id);
    node.close().await;
}

/// A30: only what is on disk as it stands is told as durable.
#[tokio::test]
async fn a30_an_order_that_was_taken_in_is_not_on_disk_until_it_is_written() {
    let (_folder, node, intents) = intents(9).await;
    let (here, now) = (ConnectionId::generate(), Instant::now());
    let id = intents.keep(&all(here, 1), false, now).unwrap();
    let is_durable = || intents.get(id).unwrap().durable;
    let write = || {
        let taken = intents.take_unsaved();
        assert_eq!(taken.len(), 1);
        taken[0].hold
    };
    assert!(!write());
    intents.written(id, true);
    assert!(is_durable());
    let with_hold = NewKill {
        hold: true,
        ..all(here, 5)
    };
    intents.keep(&all(here, 2), false, now).unwrap();
    assert!(!is_durable());
    // While that is written a later one comes.
    assert!(!write());
    intents.keep(&with_hold, false, now).unwrap();
    intents.written(id, true);
    assert!(!is_durable(), "the later order is not on disk");
    assert!(write());
    intents.written(id, true);
    assert!(is_durable());
    node.close().await;
}

/// A9: what was ordered with a hold is not settled by the answer to an order without one.
#[tokio::test]
async fn a9_an_answer_to_an_order_without_hold_settles_none_with_one() {
    let (_folder, node, intents) = intents(9).await;
    let (here, now) = (ConnectionId::generate(), Instant::now());
    let with_hold = NewKill {
        hold: true,
        ..all(here, 1)
    };
    let id = intents.keep(&with_hold, false, now).unwrap();
    let without = all(here, 5);
    assert_eq!(intents.keep(&without, true, now).unwrap(), id);
    let proven = Delivery::Proven(json!(1));
    intents.answered(id, as_of(&without), &proven, at(6));
    let kept = intents.get(id).unwrap();
    assert_eq!(
        (kept.state, kept.delivered_at),
        (KillIntentState::Pending, None)
    );
    intents.answered(id, (&kept).into(), &proven, at(7));
    assert_eq!(intents.get(id).unwrap().state, KillIntentState::Proven);
    node.close().await;
}

/// F21: one that was kept when reasons were not cut can be sent all the same.
#[tokio::test]
async fn f21_what_is_on_record_is_small_enough_to_be_sent() {
    let (_folder, node, intents) = intents(9).await;
    let (here, now) = (ConnectionId::generate(), Instant::now());
    let id = intents.keep(&all(here, 1), false, now).unwrap();
    let on_record = KillIntent {
        intent_id: KillIntentId::generate(),
        reason: Some("x".repeat(800_000)),
        ..intents.get(id).unwrap()
    };
    let id = on_record.intent_id;
    intents.load(vec![on_record], now);
    let reason = intents.get(id).unwrap().reason.unwrap();
    assert_eq!(reason, "x".repeat(MAX_REASON_CHARS));
    node.close().await;
}

#[tokio::test]
async fn f12_a_full_table_refuses_and_evicts_nothing() {
    let (_folder, node, intents) = intents(1).await;
    let (here, now) = (ConnectionId::generate(), Instant::now());
    let id = intents.keep(&all(here, 1), false, now).unwrap();
    let refusal = intents.keep(&all(ConnectionId::generate(), 1), false, now);
    assert_eq!(refusal.unwrap_err().code, ErrorCode::Overloaded);
    assert_eq!(intents.keep(&all(here, 2), false, now).unwrap(), id);
    intents.cancel(id, Actor::System, at(3)).unwrap();
    assert!(intents.keep(&all(here, 4), false, now).is_ok());
    node.close().await;
}

#[tokio::test]
async fn f23_a_spoke_that_is_heard_is_tried_at_once() {
    let (_folder, node, intents) = intents(9).await;
    let (here, start) = (ConnectionId::generate(), Instant::now());
    let id = intents.keep(&all(here, 1), false, start).unwrap();
    let mut now = start;
    for _ in 0..20 {
        let (due, _) = intents.due(now);
        assert_eq!(due, [here]);
        assert!(intents.due(now).0.is_empty(), "one delivery at a time");
        intents.answered(id, as_of(&all(here, 1)), &open(false), at(2));
        intents.round_over(here, now);
        let (due, next) = intents.due(now);
        assert!(due.is_empty());
        let pause = next.unwrap().duration_since(now);
        assert!(pause <= LONGEST_PAUSE, "{pause:?}");
        now += pause;
    }
    intents.due(now);
    intents.round_over(here, now);
    // Whoever comes with another command waits for this one, which is tried at once.
    let press = |now| intents.press(here, UnderWay::Passes, now);
    assert!(intents.is_undelivered(here, UnderWay::Passes));
    let round = press(now).unwrap();
    assert_eq!(intents.due(now).0, [here]);
    // Who comes while it is under way waits for the next, which follows at once.
    assert_eq!(press(now), Some(round + 1));
    intents.answered(id, as_of(&all(here, 1)), &open(false), at(2));
    intents.round_over(here, now);
    assert_eq!(intents.rounds(here), Some(round));
    assert_eq!(intents.due(now).0, [here]);
    intents.answered(id, as_of(&all(here, 1)), &open(true), at(2));
    intents.round_over(here, now);
    assert_eq!(intents.rounds(here), Some(round + 1));
    assert_eq!(press(now), None, "it came to the spoke");
    assert!(intents.due(now).0.is_empty());
    now += FIRST_PAUSE;
    intents.heard(here, now);
    assert_eq!(intents.due(now).0, [here]);
    node.close().await;
}

/// A38: what is under way may be lost: it is sent again when the spoke is heard, or is to be sent a spawn, and only then.
#[tokio::test]
async fn a38_an_order_under_way_is_delivered_once_the_spoke_is_heard() {
    let (_folder, node, intents) = intents(9).await;
    let now = Instant::now();
    let is_left_alone = |spoke| {
        assert_eq!(intents.due(now), (Vec::new(), None));
        assert!(intents.for_spoke(spoke).is_empty());
    };
    let is_delivered = |spoke| {
        assert_eq!(intents.due(now).0, [spoke]);
        assert_eq!(intents.for_spoke(spoke).len(), 1);
    };
    let heard = ConnectionId::generate();
    intents.keep(&all(heard, 1), true, now).unwrap();
    is_left_alone(heard);
    intents.heard(ConnectionId::generate(), now);
    is_left_alone(heard);
    intents.heard(heard, now);
    is_delivered(heard);
    // Until the order itself has come to nothing it holds up spawns only.
    assert!(!intents.is_undelivered(heard, UnderWay::Passes));
    assert!(intents.is_undelivered(heard, UnderWay::Counts));

    let asked = ConnectionId::generate();
    intents.keep(&all(asked, 1), true, now).unwrap();
    assert_eq!(intents.press(asked, UnderWay::Passes, now), None);
    is_left_alone(asked);
    assert!(intents.press(asked, UnderWay::Counts, now).is_some());
    is_delivered(asked);

    let silent = ConnectionId::generate();
    let id = intents.keep(&all(silent, 1), true, now).unwrap();
    is_left_alone(silent);
    intents.release(id, now);
    assert!(intents.press(silent, UnderWay::Passes, now).is_some());
    is_delivered(silent);
    node.close().await;
}

/// A38: one that is delivered already goes on being delivered while it is ordered again.
#[tokio::test]
async fn a38_an_order_that_is_given_again_holds_up_no_delivery() {
    let (_folder, node, intents) = intents(9).await;
    let (here, now) = (ConnectionId::generate(), Instant::now());
    let id = intents.keep(&all(here, 1), false, now).unwrap();
    assert_eq!(intents.keep(&all(here, 5), true, now).unwrap(), id);
    assert!(intents.is_undelivered(here, UnderWay::Passes));
    assert_eq!(intents.due(now).0, [here]);
    // It is two orders: what becomes of one takes no other back.
    intents.withdraw(id, at(6));
    assert!(intents.is_pending(id));
    let other = intents.keep(&all(ConnectionId::generate(), 1), true, now);
    let other = other.unwrap();
    intents.withdraw(other, at(6));
    assert!(!intents.is_pending(other));
    node.close().await;
}

#[tokio::test]
async fn a38_a_kept_kill_all_is_about_who_was_asked_for_before_it() {
    let (_folder, node, intents) = intents(9).await;
    let (here, now) = (ConnectionId::generate(), Instant::now());
    let order = NewKill {
        target: KillTarget::All {
            task_id: Some("T-1".parse().unwrap()),
            label: Some("team=core".parse().unwrap()),
        },
        ..all(here, 10)
    };
    intents.keep(&order, false, now).unwrap();
    let core = BTreeMap::from([("team".to_owned(), "core".to_owned())]);
    let covers = |connection, task: &str, labels: &BTreeMap<String, String>, millis| {
        intents.covers(Known {
            agent: AgentId::generate(),
            connection,
            task: &task.parse().unwrap(),
            labels,
            asked_at: at(millis),
        })
    };
    assert!(covers(here, "T-1", &core, 10));
    assert!(!covers(here, "T-1", &core, 11));
    assert!(!covers(here, "T-2", &core, 10));
    assert!(!covers(here, "T-1", &BTreeMap::new(), 10));
    assert!(!covers(ConnectionId::generate(), "T-1", &core, 10));
    node.close().await;
}

proptest! {
    #[test]
    fn pauses_are_bounded(failures in 1_u32..=u32::MAX, random: u8) {
        prop_assert!(pause(failures, random) >= FIRST_PAUSE / 2);
        prop_assert!(pause(failures, random) <= LONGEST_PAUSE);
        prop_assert!(pause(failures.saturating_add(1), 0) >= pause(failures, 0));
    }
}
