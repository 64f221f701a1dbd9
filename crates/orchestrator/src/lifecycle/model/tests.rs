//! The searches, and the proof that they see something: with a defence taken away each finds the failure.

use super::{
    CONNECTION,
    checker::search,
    world::{Bounds, Flaw},
};
use crate::killswitch::Reach;

/// States beyond which a search is too long for every run of the tests.
const MOST: usize = 3_000_000;
/// States beyond which a search is too long at all.
const MOST_OF_ALL: usize = 200_000_000;

/// One agent; all that can befall it, once.
const ONE: Bounds = Bounds {
    agents: 1,
    slots: 1,
    max_retries: 1,
    crashes: 1,
    kills: 1,
    kill_alls: 1,
    offline_kills: 0,
    hold: true,
    releases: 1,
    one_task: false,
    failures: 1,
    faults: 1,
    groups: true,
    containers: false,
    reach: Reach::Everything,
    flaw: None,
};

/// One agent, a crash, a kill, an attempt and a launch that fail.
const KILLED: Bounds = Bounds {
    kill_alls: 0,
    releases: 0,
    ..ONE
};

/// One agent, a crash, a kill-all with a hold that is released, an attempt that fails.
const HELD: Bounds = Bounds {
    kills: 0,
    faults: 0,
    ..ONE
};

/// One agent and a daemon that is killed twice.
const CRASHES: Bounds = Bounds {
    crashes: 2,
    faults: 0,
    ..KILLED
};

/// One agent, killed while there is no daemon, and a daemon after it that is killed, too.
const OFFLINE: Bounds = Bounds {
    offline_kills: 1,
    kills: 0,
    crashes: 2,
    ..KILLED
};

/// One agent in a container, killed by name and with all others.
const CONTAINER: Bounds = Bounds {
    containers: true,
    crashes: 0,
    releases: 0,
    ..ONE
};

/// Two agents that want the one slot, and a kill-all with a hold.
const TWO: Bounds = Bounds {
    agents: 2,
    crashes: 0,
    kills: 0,
    max_retries: 0,
    failures: 0,
    faults: 0,
    ..ONE
};

/// A kill-all without a hold: agents come while it goes on.
const NEWCOMERS: Bounds = Bounds {
    hold: false,
    releases: 0,
    ..TWO
};

/// A kill-all of one task with a hold: the other task's agent is held and not killed.
const ONE_TASK: Bounds = Bounds {
    one_task: true,
    ..TWO
};

/// Two agents, one slot, a crash, and one look that fails.
const TAKEN_OVER: Bounds = Bounds {
    crashes: 1,
    faults: 1,
    kill_alls: 0,
    ..TWO
};

/// Searches all of it, and says how much that was.
fn holds(name: &str, bounds: Bounds, most: usize) {
    let begun = std::time::Instant::now();
    let report = search(&bounds, most);
    println!(
        "{name}: {} states, {} steps, {} deep, in {:.1?}",
        report.states,
        report.steps,
        report.depth,
        begun.elapsed()
    );
    if let Some((what, path)) = report.wrong {
        panic!("{name}: {what}\n{path}");
    }
}

/// Takes a defence away and expects this promise to be found broken.
fn breaks(promise: &str, flaw: Flaw, bounds: Bounds) {
    let flawed = Bounds {
        flaw: Some(flaw),
        ..bounds
    };
    let report = search(&flawed, MOST);
    let (what, path) = report
        .wrong
        .unwrap_or_else(|| panic!("{} states, and {flaw:?} makes no difference", report.states));
    println!("{flaw:?}: {what}, after {} states", report.states);
    assert!(
        what.starts_with(promise),
        "{flaw:?} breaks another: {what}\n{path}"
    );
}

#[test]
fn one_agent_and_all_that_can_befall_it() {
    holds("one", ONE, MOST);
}

#[test]
fn one_agent_that_is_killed() {
    holds("killed", KILLED, MOST);
}

#[test]
fn one_agent_that_is_held() {
    holds("held", HELD, MOST);
}

#[test]
fn one_agent_without_groups() {
    let bounds = Bounds {
        groups: false,
        ..KILLED
    };
    holds("without groups", bounds, MOST);
}

#[test]
fn one_agent_and_two_crashes() {
    holds("two crashes", CRASHES, MOST);
}

#[test]
fn one_agent_that_is_killed_without_a_daemon() {
    holds("without a daemon", OFFLINE, MOST);
}

#[test]
fn one_agent_in_a_container() {
    holds("container", CONTAINER, MOST);
}

#[test]
fn two_agents_and_a_hold() {
    holds("two", TWO, MOST);
    let reach = Reach::Connection(*CONNECTION);
    holds("a connection's", Bounds { reach, ..TWO }, MOST);
    holds("one task's", ONE_TASK, MOST);
}

#[test]
fn two_agents_and_a_kill_all_without_a_hold() {
    holds("newcomers", NEWCOMERS, MOST);
}

#[test]
fn two_agents_are_taken_over() {
    holds("taken over", TAKEN_OVER, MOST);
}

#[test]
#[ignore = "minutes: just model"]
fn all_at_once() {
    let without_groups = Bounds {
        groups: false,
        ..ONE
    };
    holds("without groups", without_groups, MOST_OF_ALL);
    let container = Bounds {
        containers: true,
        ..ONE
    };
    holds("in a container", container, MOST_OF_ALL);
    let crashes = Bounds {
        crashes: 2,
        releases: 0,
        ..ONE
    };
    holds("two crashes", crashes, MOST_OF_ALL);
    let two = Bounds { crashes: 1, ..TWO };
    holds("two agents and a crash", two, MOST_OF_ALL);
    let tried_again = Bounds {
        failures: 1,
        max_retries: 1,
        kills: 1,
        ..NEWCOMERS
    };
    holds("two agents and a retry", tried_again, MOST_OF_ALL);
}

#[test]
fn a3_an_agent_that_cannot_be_examined_is_not_dead() {
    breaks("no lost slot", Flaw::UnknownIsDead, TAKEN_OVER);
}

#[test]
fn a5_who_runs_is_looked_for_before_it_is_started() {
    breaks("no lost slot", Flaw::NotExamined, KILLED);
}

#[test]
fn a6_nothing_goes_before_it_is_on_record() {
    breaks("no double", Flaw::GoBeforeRecord, KILLED);
}

#[test]
fn a6_no_shim_outlives_its_daemon_without_a_word() {
    breaks("no double", Flaw::ShimOutlivesDaemon, KILLED);
}

#[test]
fn a6_an_attempt_that_a_crash_cut_short_does_not_count() {
    let once = Bounds {
        max_retries: 0,
        ..KILLED
    };
    holds("no retries", once, MOST);
    breaks("a crash alone fails nobody", Flaw::CrashCounts, once);
}

#[test]
fn a6_a_late_shim_does_not_speak_for_the_next() {
    breaks(
        "a crash alone fails nobody",
        Flaw::LateShimLeavesFiles,
        CRASHES,
    );
}

#[test]
fn a8_nobody_is_told_of_a_death_before_it_is_proven() {
    breaks("no survivor", Flaw::AnswerBeforeProof, KILLED);
}

#[test]
fn a9_a_launch_asks_the_gate() {
    breaks("no survivor", Flaw::GateNotAsked, KILLED);
}

#[test]
fn a9_the_hold_is_asked_after_the_launch() {
    breaks("a hold holds", Flaw::NoHoldAfterLaunch, ONE_TASK);
}

#[test]
fn a9_the_hold_is_asked_under_its_lock() {
    breaks("a hold holds", Flaw::NoHoldAtGo, ONE_TASK);
}

#[test]
fn a9_the_hold_is_on_disk_before_it_is_answered() {
    breaks("a hold holds", Flaw::HoldNotOnDisk, HELD);
}

#[test]
fn a9_a_kill_all_looks_twice() {
    breaks("no survivor", Flaw::NoSecondLook, NEWCOMERS);
}

#[test]
fn a9_word_of_a_kill_is_on_disk_before_it_is_answered() {
    breaks("no survivor", Flaw::NoWord, KILLED);
}

#[test]
fn a9_nothing_follows_what_had_ended_before_a_kill_without_a_daemon() {
    breaks("no survivor", Flaw::EndedStartsAgain, OFFLINE);
}

#[test]
fn a22_work_is_salvaged_before_its_tree_goes() {
    breaks("no lost work", Flaw::RemovedBeforeSalvage, KILLED);
}

#[test]
fn a28_a_slot_is_free_when_death_is_proven() {
    breaks("no lost slot", Flaw::SlotFreedBeforeProof, KILLED);
}

#[test]
fn a28_a_slot_is_kept_over_a_restart() {
    breaks("no lost slot", Flaw::SlotNotTakenOver, TAKEN_OVER);
}

#[test]
fn a32_an_init_that_comes_late_runs_nothing() {
    breaks("no double", Flaw::LateInitRuns, CONTAINER);
}

#[test]
fn a36_a_death_is_recorded_after_its_proof() {
    breaks("terminal is final", Flaw::RecordBeforeProof, KILLED);
}
