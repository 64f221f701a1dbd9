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

fn told() -> AuditEvent {
    AuditEvent {
        at: Timestamp::from_unix_millis(0),
        actor: Actor::System,
        action: "killswitch.kill-all".to_owned(),
        subject: None,
        outcome: "ok".to_owned(),
        detail: serde_json::Value::Null,
    }
}

/// What a kill without a daemon leaves that found this agent alive.
fn everything(found: AgentId) -> Words {
    Words {
        everything: Some(order()),
        told: vec![told()],
        ..word(found)
    }
}

/// The daemon kills, too, before it has looked: its own word comes behind another's, in whose midst nobody may begin.
#[test]
fn a9_word_of_another_is_heard_whole_whatever_is_written_behind_it() {
    let data = tempfile::tempdir().unwrap();
    let (journal, _) = KillJournal::open(data.path()).unwrap();
    let [theirs, own] = [(); 2].map(|()| AgentId::generate());
    leave(data.path(), everything(theirs)).unwrap();
    journal.append(&[own], &order()).unwrap();
    // As a file does that has grown too large.
    journal.retain(|_| true).unwrap();
    let (_, words) = KillJournal::open(data.path()).unwrap();
    assert!(words.everything.is_some() && words.agents.contains_key(&theirs));
    leave(data.path(), everything(theirs)).unwrap();
    journal.append(&[own], &order()).unwrap();
    let news = journal.news().unwrap();
    assert!(news.everything.is_some() && news.agents.contains_key(&theirs));
    assert_eq!(journal.told(), [told(), told()]);
    assert!(journal.news().is_none());
}

/// A full disk cuts off a word of our own: another's that comes behind it is found where it is.
#[test]
fn a9_word_of_another_behind_a_line_that_was_cut_off_is_heard_whole() {
    let data = tempfile::tempdir().unwrap();
    let (journal, _) = KillJournal::open(data.path()).unwrap();
    let [theirs, own] = [(); 2].map(|()| AgentId::generate());
    let mut file = append_to(&data.path().join("kills.jsonl")).unwrap();
    file.write_all(format!("\n{{\"agentId\":\"{own}\",\"ord").as_bytes())
        .unwrap();
    leave(data.path(), everything(theirs)).unwrap();
    journal.append(&[own], &order()).unwrap();
    journal.retain(|_| true).unwrap();
    let news = journal.news().unwrap();
    assert!(news.everything.is_some() && news.agents.contains_key(&theirs));
    assert_eq!(journal.told(), [told()]);
}

#[test]
fn a9_a_line_that_is_still_being_written_is_heard_when_it_is_whole() {
    let data = tempfile::tempdir().unwrap();
    let (journal, _) = KillJournal::open(data.path()).unwrap();
    let words = Words {
        everything: Some(order()),
        ..Words::default()
    };
    let line = words.to_bytes().unwrap();
    let (begun, rest) = line.split_at(40);
    let mut file = append_to(&data.path().join("kills.jsonl")).unwrap();
    file.write_all(begun).unwrap();
    assert_eq!(journal.news().unwrap(), Words::default());
    assert!(journal.news().is_none(), "nothing more yet");
    file.write_all(rest).unwrap();
    assert_eq!(journal.news().unwrap(), words);
    assert!(journal.is_for_everything());
}

#[test]
fn an_order_for_everything_becomes_one_for_each_and_means_nobody_else_after_a_crash() {
    let data = tempfile::tempdir().unwrap();
    let [theirs, waits, ended] = [(); 3].map(|()| AgentId::generate());
    leave(data.path(), everything(theirs)).unwrap();
    let (journal, _) = KillJournal::open(data.path()).unwrap();
    assert!(journal.is_for_everything());
    let mut orders = word(waits);
    orders.add(ended, Word::NoMore(order()));
    journal.assign(&orders).unwrap();
    assert!(!journal.is_for_everything());
    let (journal, words) = KillJournal::open(data.path()).unwrap();
    let at = Some(Timestamp::from_unix_millis(1));
    assert_eq!(words.on(waits, at), Some(Word::Kill(order())));
    assert_eq!(words.on(theirs, at), Some(Word::Kill(order())));
    assert_eq!(words.on(ended, at), Some(Word::NoMore(order())));
    // Its attempt is not there any more: another was to follow.
    assert_eq!(words.on(ended, None), Some(Word::Kill(order())));
    assert_eq!(words.on(AgentId::generate(), None), None);
    assert_eq!(journal.told(), [told()], "that is still to be told");
}

#[test]
fn an_order_for_everything_spares_what_had_ended_and_nothing_that_is_there() {
    let at = Timestamp::from_unix_millis;
    let order = KillOrder {
        at: at(10),
        ..order()
    };
    let words = Words {
        everything: Some(order.clone()),
        ..Words::default()
    };
    let agent = AgentId::generate();
    let kill = Some(Word::Kill(order.clone()));
    assert_eq!(words.on(agent, None), kill);
    assert_eq!(words.on(agent, Some(at(11))), kill);
    assert_eq!(words.on(agent, Some(at(10))), Some(Word::NoMore(order)));
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
    journal.settle(&word(own), 0).unwrap();
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
    journal.settle(&word(own), 0).unwrap_err();
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
    leave(data.path(), everything(others)).unwrap();
    let news = journal.news().unwrap();
    assert!(news.agents.contains_key(&others) && news.everything.is_some());
    assert_eq!(journal.told(), [told()]);
    assert!(journal.news().is_none());
    // A line that comes before the rewriting, and after it.
    let late = AgentId::generate();
    leave(data.path(), word(late)).unwrap();
    journal.settle(&word(own), 1).unwrap();
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
    journal.settle(&Words::default(), 0).unwrap();
    for journal in [&journal, &KillJournal::open(data.path()).unwrap().0] {
        assert!(journal.names(young));
        assert!(!journal.names(old) && !journal.names(done));
    }
}
