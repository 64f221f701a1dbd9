//! By a clock that moves when everybody waits, so nothing here takes time.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::{sync::oneshot, task::JoinHandle, time::sleep};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn priority() -> (KillPriority, HttpLimits) {
    let limits = HttpLimits {
        turns: 2,
        ..HttpLimits::default()
    };
    (KillPriority::new(&limits), limits)
}

/// A kill that has begun, and goes on until it is told to end.
async fn kill(priority: &KillPriority) -> (oneshot::Sender<()>, JoinHandle<()>) {
    let (end, ending) = oneshot::channel();
    let (begun, beginning) = oneshot::channel();
    let priority = priority.clone();
    let killing = tokio::spawn(async move {
        let kill = async {
            begun.send(()).unwrap();
            ending.await.unwrap();
        };
        priority.first(kill).await;
    });
    beginning.await.unwrap();
    (end, killing)
}

/// Work that takes an hour each, and how much of it has begun.
fn works(priority: &KillPriority, count: usize) -> Arc<AtomicUsize> {
    let begun = Arc::new(AtomicUsize::new(0));
    for _ in 0..count {
        let (priority, begun) = (priority.clone(), Arc::clone(&begun));
        tokio::spawn(async move {
            let work = async {
                begun.fetch_add(1, Ordering::SeqCst);
                sleep(HOUR).await;
            };
            priority.in_turn(work).await;
        });
    }
    begun
}

#[tokio::test(start_paused = true)]
async fn without_a_kill_everybody_is_served_at_once() {
    let (priority, limits) = priority();
    let begun = works(&priority, 8);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(begun.load(Ordering::SeqCst), 8);
    let (end, killing) = kill(&priority).await;
    end.send(()).unwrap();
    killing.await.unwrap();
    sleep(limits.by_turns).await;
    let later = works(&priority, 8);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(later.load(Ordering::SeqCst), 8, "it is long ago");
}

#[tokio::test(start_paused = true)]
async fn a30_who_asks_during_a_kill_begins_after_it_and_a_few_at_a_time() {
    let (priority, limits) = priority();
    let (end, killing) = kill(&priority).await;
    let during = works(&priority, 3);
    sleep(limits.stand_aside / 2).await;
    assert_eq!(during.load(Ordering::SeqCst), 0, "a kill is under way");
    end.send(()).unwrap();
    killing.await.unwrap();
    let after = works(&priority, 3);
    let begun = || during.load(Ordering::SeqCst) + after.load(Ordering::SeqCst);
    sleep(limits.turn_hold / 2).await;
    assert_eq!(begun(), 2);
    sleep(limits.turn_hold).await;
    assert_eq!(begun(), 4, "what takes long keeps nobody's turn");
    sleep(limits.turn_hold).await;
    assert_eq!(begun(), 6);
}

#[tokio::test(start_paused = true)]
async fn a30_kills_without_end_stop_nobody() {
    let (priority, limits) = priority();
    let kills = tokio::spawn({
        let priority = priority.clone();
        async move {
            loop {
                let one = priority.first(sleep(limits.kill_permit_hold / 2));
                let other = priority.first(sleep(limits.kill_permit_hold / 3));
                tokio::join!(one, other);
            }
        }
    });
    tokio::task::yield_now().await;
    let begun = works(&priority, 8);
    sleep(limits.stand_aside / 2).await;
    assert_eq!(begun.load(Ordering::SeqCst), 0);
    // Four times two, each after the hold of the turns before it.
    sleep((limits.stand_aside + limits.turn_hold) * 4).await;
    assert_eq!(begun.load(Ordering::SeqCst), 8);
    kills.abort();
}

#[tokio::test(start_paused = true)]
async fn a_kill_that_waits_for_a_clean_up_has_nobody_stand_aside() {
    let (priority, limits) = priority();
    let (_end, _killing) = kill(&priority).await;
    sleep(limits.kill_permit_hold + limits.by_turns).await;
    let begun = works(&priority, 8);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(begun.load(Ordering::SeqCst), 8);
}

#[tokio::test(start_paused = true)]
async fn a_kill_that_is_given_up_is_over() {
    let (priority, limits) = priority();
    let (_end, killing) = kill(&priority).await;
    killing.abort();
    let _ = killing.await;
    let begun = works(&priority, 2);
    sleep(limits.stand_aside / 2).await;
    assert_eq!(begun.load(Ordering::SeqCst), 2);
}
