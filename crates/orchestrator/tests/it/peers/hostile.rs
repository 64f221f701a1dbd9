//! Whatever an agent writes can be signed, sent and verified.

use super::*;

/// F21: a peer that resumes after what it has seen gets past whatever an agent writes.
#[tokio::test]
async fn f21_hostile_output_can_be_signed_and_resumed() {
    let spoke = Spoke::start().await;
    let peer = Peer::of(&spoke).await;
    for (script, character) in [
        ("head -c 4194304 /dev/zero | tr '\\0' '\\1'; echo", '\u{1}'),
        (
            "head -c 4194304 /dev/zero | tr '\\0' '\\377'; echo",
            '\u{fffd}',
        ),
        ("head -c 4194304 /dev/zero | tr '\\0' '\"'; echo", '"'),
    ] {
        let agent = peer.spawn(&spoke, &format!("{script}; echo end")).await;
        assert_eq!(
            spoke.finished(agent).await.state,
            ObservedState::Completed,
            "{script}"
        );
        let batches = peer.batches(agent, None).await;
        let told = output(&batches);
        assert_eq!(told.last(), Some(&("end", false)), "{script}");
        let line: usize = told.iter().map(|(line, _)| line.chars().count()).sum();
        assert_eq!(line, (4 << 20) + 3, "{script}");
        let parts = &told[..told.len() - 1];
        assert!(
            parts
                .iter()
                .all(|(line, _)| line.chars().all(|found| found == character))
        );
        assert!(parts[..parts.len() - 1].iter().all(|(_, open)| *open));
        assert!(!parts[parts.len() - 1].1, "the line is over");

        let all: Vec<_> = batches.iter().flatten().cloned().collect();
        for (seen, event) in all.iter().enumerate() {
            let rest = peer.batches(agent, Some(event.id)).await;
            let rest: Vec<_> = rest.into_iter().flatten().map(|event| event.id).collect();
            let expected: Vec<_> = all[seen + 1..].iter().map(|event| event.id).collect();
            assert_eq!(rest, expected, "{script}: after {}", event.id);
        }
    }
    peer.stop().await;
    spoke.stop().await;
}

/// A31.
#[tokio::test]
async fn f21_an_ordinary_line_of_one_mebibyte_is_one_event_of_a_peer() {
    let spoke = Spoke::start().await;
    let peer = Peer::of(&spoke).await;
    let agent = peer
        .spawn(
            &spoke,
            "head -c 1048576 /dev/zero | tr '\\0' x; echo; echo end",
        )
        .await;
    let batches = peer.batches(agent, None).await;
    let told = output(&batches);
    assert_eq!(told.len(), 2);
    assert_eq!((told[0].0.len(), told[0].1), (1 << 20, false));
    peer.stop().await;
    spoke.stop().await;
}

#[tokio::test]
async fn f21_a_hostile_patch_comes_home_through_a_peer() {
    let spoke = Spoke::start().await;
    let peer = Peer::of(&spoke).await;
    let script =
        "for i in $(seq 2000); do head -c 3000 /dev/zero | tr '\\0' '\\1'; echo; done > ones";
    let agent = peer.spawn(&spoke, script).await;
    let work = spoke.finished(agent).await.work.unwrap();
    let patch = peer.patch(agent).await;
    assert_eq!(patch.len() as u64, work.patch_bytes);
    let file = spoke.data_dir().join("taken-home.patch");
    std::fs::write(&file, patch).unwrap();
    git(spoke.repository(), &["am", "-q", file.to_str().unwrap()]);
    assert_eq!(
        git(spoke.repository(), &["rev-parse", "HEAD^{tree}"]),
        git(
            &spoke.mirror(),
            &["rev-parse", &format!("{}^{{tree}}", work.git_ref)]
        )
    );
    peer.stop().await;
    spoke.stop().await;
}

#[tokio::test]
async fn f21_hostile_commits_can_be_listed_told_and_fetched() {
    let spoke = Spoke::start().await;
    let peer = Peer::of(&spoke).await;
    let script = "head -c 1048576 /dev/zero | tr '\\0' '\\1' > /tmp/subject; \
        tree=$(git rev-parse HEAD^{tree}); head=$(git rev-parse HEAD); \
        for i in $(seq 40); do \
            head=$(git commit-tree -p $head -F /tmp/subject $tree); done; \
        git reset -q --hard $head; echo work > work; git add work; git commit -q -F /tmp/subject";
    let agent = peer.spawn(&spoke, script).await;
    let status = spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Completed, "{status:?}");
    let work = peer.status(agent).await.unwrap().work.unwrap();
    assert_eq!(work.commits.len(), 41);
    for commit in &work.commits {
        assert!(commit.subject.chars().count() <= 500);
        assert!(commit.author.chars().count() <= 500);
    }
    assert_eq!(peer.listed().await, HashSet::from([agent]));
    let patch = peer.patch(agent).await;
    assert_eq!(patch.len() as u64, work.patch_bytes);
    peer.stop().await;
    spoke.stop().await;
}

/// A page that would be too large to sign ends early, and says so.
#[tokio::test]
async fn f21_pages_of_a_list_are_bounded_by_what_can_be_signed() {
    let spoke = Spoke::start().await;
    let peer = Peer::of(&spoke).await;
    let mut sample = {
        let agent = peer.spawn(&spoke, "echo work > work").await;
        spoke.finished(agent).await;
        let store = spoke.node().store();
        store.agent(agent).await.unwrap().unwrap()
    };
    let mut all = HashSet::from([sample.agent_id]);
    let detail = "\u{1}".repeat(100_000);
    for _ in 0..50 {
        let agent = AgentId::generate();
        all.insert(agent);
        sample.agent_id = agent;
        sample.request.agent_id = agent;
        sample.status.agent_id = agent;
        sample.status.detail = Some(detail.clone());
        let audit = AuditEvent {
            at: sample.status.queued_at,
            actor: Actor::System,
            action: "test".to_owned(),
            subject: None,
            outcome: "ok".to_owned(),
            detail: json!({}),
        };
        let inserted = spoke.node().store().insert_agent(sample.clone(), audit);
        inserted.await.unwrap();
    }
    let mut seen = Vec::new();
    let mut wanted = json!({"limit": 500});
    loop {
        let page = peer.page(wanted.clone()).await;
        seen.extend(page.agents.iter().map(|agent| agent.agent_id));
        if !page.more {
            break;
        }
        wanted["before"] = json!(seen.last().unwrap());
    }
    assert!(
        seen.is_sorted_by(|left, right| left > right),
        "no gap, nothing twice"
    );
    assert_eq!(seen.into_iter().collect::<HashSet<_>>(), all);
    let three = peer.page(json!({"limit": 3})).await;
    assert_eq!((three.agents.len(), three.more), (3, true));
    peer.stop().await;
    spoke.stop().await;
}
