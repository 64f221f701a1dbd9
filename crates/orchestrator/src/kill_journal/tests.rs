use std::cell::RefCell;

use mosaic_types::{Timestamp, audit::Actor};

use super::*;

type Act = Box<dyn FnOnce() -> io::Result<()>>;

thread_local! {
    /// What this test's thread does when it has come so far.
    static ACT: RefCell<Option<(Step, Act)>> = const { RefCell::new(None) };
}

pub(super) fn reached(step: Step) -> io::Result<()> {
    match ACT.take() {
        Some((at, act)) if at == step => act(),
        other => {
            ACT.set(other);
            Ok(())
        }
    }
}

fn at(step: Step, act: impl FnOnce() -> io::Result<()> + 'static) {
    ACT.set(Some((step, Box::new(act))));
}

fn order() -> KillOrder {
    KillOrder {
        note: Some("enough".to_owned()),
        ..KillOrder::of_a_torn_line()
    }
}

#[test]
fn a_kill_outlives_the_process_that_answered_it() {
    let data = tempfile::tempdir().unwrap();
    let (journal, killed) = KillJournal::open(data.path()).unwrap();
    assert!(killed.agents.is_empty());
    let agents = [AgentId::generate(), AgentId::generate()];
    journal.append(&agents, &order()).unwrap();
    let (journal, killed) = KillJournal::open(data.path()).unwrap();
    assert_eq!(killed.agents.get(&agents[0]), Some(&order()));
    assert_eq!(killed.agents.len(), 2);
    journal.retain(|agent| agent == agents[1]).unwrap();
    let third = AgentId::generate();
    journal.append(&[third], &order()).unwrap();
    let (_, killed) = KillJournal::open(data.path()).unwrap();
    assert!(killed.agents.contains_key(&agents[1]) && killed.agents.contains_key(&third));
    assert_eq!(killed.agents.len(), 2);
}

#[test]
fn a_torn_line_kills_whom_it_names() {
    let data = tempfile::tempdir().unwrap();
    let (journal, _) = KillJournal::open(data.path()).unwrap();
    let agent = AgentId::generate();
    journal.append(&[agent], &order()).unwrap();
    let path = data.path().join("kills.jsonl");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..60]).unwrap();
    let (_, killed) = KillJournal::open(data.path()).unwrap();
    assert!(killed.agents.contains_key(&agent));
    fs::write(&path, &whole[..30]).unwrap();
    assert!(KillJournal::open(data.path()).unwrap().1.agents.is_empty());
}

/// As a full disk cuts it off: the next word is not swallowed by it.
#[test]
fn a_word_after_a_torn_line_is_whole() {
    let data = tempfile::tempdir().unwrap();
    let (journal, _) = KillJournal::open(data.path()).unwrap();
    let [torn, whole] = [(); 2].map(|()| AgentId::generate());
    let path = data.path().join("kills.jsonl");
    fs::write(&path, format!("{{\"agentId\":\"{torn}\",\"ord")).unwrap();
    journal.append(&[whole], &order()).unwrap();
    let (_, killed) = KillJournal::open(data.path()).unwrap();
    assert_eq!(killed.agents.get(&whole), Some(&order()));
    assert!(killed.agents.contains_key(&torn));
}

fn word(agent: AgentId) -> Words {
    Words {
        agents: [(agent, order())].into(),
        ..Words::default()
    }
}

/// A daemon that hangs while it rewrites has the lock for longer than a kill without a daemon waits.
#[test]
fn what_is_left_while_another_hangs_over_a_rewriting_is_kept() {
    let data = tempfile::tempdir().unwrap();
    let (journal, _) = KillJournal::open(data.path()).unwrap();
    let [own, late] = [(); 2].map(|()| AgentId::generate());
    journal.append(&[own], &order()).unwrap();
    let folder = data.path().to_owned();
    at(Step::Rewritten, move || {
        leave(&folder, word(late)).unwrap();
        Ok(())
    });
    journal.settle(&[(own, order())].into()).unwrap();
    let news = journal.news().unwrap();
    assert_eq!(news.agents.get(&late), Some(&order()));
    let (_, killed) = KillJournal::open(data.path()).unwrap();
    assert_eq!(killed.agents.len(), 2);
}

/// The other half: who has written into a file that is no longer in place writes again.
#[test]
fn what_is_left_in_a_file_that_was_replaced_is_left_again() {
    let data = tempfile::tempdir().unwrap();
    let (path, fresh) = (data.path().join("kills.jsonl"), data.path().join("fresh"));
    let replaced = path.clone();
    at(Step::Left, move || {
        fs::write(&fresh, "").unwrap();
        fs::rename(&fresh, &replaced)
    });
    let agent = AgentId::generate();
    leave(data.path(), word(agent)).unwrap();
    let (_, killed) = KillJournal::open(data.path()).unwrap();
    assert!(killed.agents.contains_key(&agent));
}

/// No descriptor is left for the folder, say: the rewritten file is in place, and the words that follow go there.
#[test]
fn a_rewriting_that_fails_late_leaves_no_word_behind() {
    let data = tempfile::tempdir().unwrap();
    let (journal, _) = KillJournal::open(data.path()).unwrap();
    let [own, later] = [(); 2].map(|()| AgentId::generate());
    journal.append(&[own], &order()).unwrap();
    at(Step::Replaced, || Err(io::ErrorKind::Other.into()));
    journal.settle(&[(own, order())].into()).unwrap_err();
    journal.append(&[later], &order()).unwrap();
    let (_, killed) = KillJournal::open(data.path()).unwrap();
    assert!(killed.agents.contains_key(&own) && killed.agents.contains_key(&later));
}

#[test]
fn what_another_process_leaves_is_news_once_and_outlives_a_rewriting() {
    let data = tempfile::tempdir().unwrap();
    let (journal, _) = KillJournal::open(data.path()).unwrap();
    let (own, others) = (AgentId::generate(), AgentId::generate());
    journal.append(&[own], &order()).unwrap();
    assert!(journal.news().is_none(), "its own words are no news");
    let told = AuditEvent {
        at: Timestamp::now(),
        actor: Actor::System,
        action: "killswitch.kill-all".to_owned(),
        subject: None,
        outcome: "ok".to_owned(),
        detail: serde_json::Value::Null,
    };
    let everything = Words {
        agents: [(others, order())].into(),
        everything: Some(order()),
        told: vec![told.clone()],
    };
    leave(data.path(), everything).unwrap();
    let news = journal.news().unwrap();
    assert_eq!(news.agents.len(), 2);
    assert!(news.everything.is_some());
    assert_eq!(journal.told(), std::slice::from_ref(&told));
    assert!(journal.news().is_none());
    // A line that comes before the rewriting, and after it.
    let late = AgentId::generate();
    leave(data.path(), word(late)).unwrap();
    journal.settle(&[(own, order())].into()).unwrap();
    assert_eq!(journal.told(), []);
    let later = AgentId::generate();
    leave(data.path(), word(later)).unwrap();
    journal.append(&[own], &order()).unwrap();
    let news = journal.news().unwrap();
    let mut named: Vec<_> = news.agents.into_keys().collect();
    named.sort();
    let mut wanted = vec![own, late, later];
    wanted.sort();
    assert_eq!(named, wanted);
    assert!(news.everything.is_none() && news.told.is_empty());
}

#[test]
fn who_was_killed_before_it_was_on_record_is_remembered_for_a_day() {
    let data = tempfile::tempdir().unwrap();
    let (journal, _) = KillJournal::open(data.path()).unwrap();
    let fresh = KillOrder {
        at: Timestamp::now(),
        ..order()
    };
    let [old, young, done] = [(); 3].map(|()| AgentId::generate());
    journal.append(&[old], &order()).unwrap();
    journal.append(&[young, done], &fresh).unwrap();
    let (journal, _) = KillJournal::open(data.path()).unwrap();
    journal.recorded(done);
    journal.retain(|_| false).unwrap();
    journal.settle(&[].into()).unwrap();
    for journal in [&journal, &KillJournal::open(data.path()).unwrap().0] {
        assert!(journal.names(young));
        assert!(!journal.names(old) && !journal.names(done));
    }
}
