use mosaic_types::{Timestamp, audit::Actor};

use super::*;

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
    let word = |agent| Words {
        agents: [(agent, order())].into(),
        ..Words::default()
    };
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
