//! The bundle is one that real git takes, as small as the work, and holds what was salvaged.

use std::{fs, path::PathBuf};

use mosaic_orchestrator::worktree::{BundleOf, RemovalMode, WorktreeError};
use mosaic_types::AgentId;

use super::support::*;

/// A clone of the source, as an operator has it.
fn clone(world: &World) -> PathBuf {
    let ours = world.dir.path().join("ours");
    git(world.dir.path(), &["clone", "-q", "source", "ours"]);
    ours
}

async fn bundle(world: &World, agent: AgentId, of: BundleOf) -> PathBuf {
    let made = world.worktrees.bundle(&agent, of).await.unwrap();
    made.expect("there is work")
}

#[tokio::test]
async fn git_verifies_and_fetches_the_bundle_of_a_branch() {
    let world = World::new().await;
    let big: Vec<u8> = (0..1_000_000_u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    write(&world.source, "big", &big);
    commit_all(&world.source, "big");
    let ours = clone(&world);
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    write(work, "src/a.txt", "one\nTWO\nthree\n");
    let first = agent_commit(work, "one commit");
    git(work, &["checkout", "-q", "-b", "side", "HEAD~1"]);
    write(work, "side", "s\n");
    agent_commit(work, "on the side");
    git(work, &["checkout", "-q", &format!("mosaic/{agent}")]);
    git(work, &["merge", "-q", "--no-edit", "side"]);
    write(work, "left", "uncommitted\n");
    let result = world.harvest(agent).await;
    // It is made from the mirror: the tree is not needed any more.
    world
        .worktrees
        .remove(&agent, RemovalMode::OnlySecured)
        .await
        .unwrap();
    let file = bundle(&world, agent, BundleOf::Branch).await;
    let name = file.to_str().unwrap();
    assert!(
        fs::metadata(&file).unwrap().len() < 4096,
        "the base is not in it"
    );
    git(&ours, &["bundle", "verify", "-q", name]);
    let branch = format!("refs/heads/mosaic/{agent}");
    let heads = git(&ours, &["bundle", "list-heads", name]);
    assert_eq!(heads, format!("{} {branch}", result.head_commit));
    git(&ours, &["fetch", "-q", name, &format!("{branch}:{branch}")]);
    assert_eq!(git(&ours, &["rev-parse", &branch]), result.head_commit);
    git(&ours, &["merge-base", "--is-ancestor", &first, &branch]);
    git(&ours, &["fsck", "--full", "--strict"]);
    assert_eq!(
        git(&ours, &["show", &format!("{branch}:left")]),
        "uncommitted"
    );

    // Nothing of it is made twice, and nothing half made is taken for a bundle.
    let made = fs::metadata(&file).unwrap().modified().unwrap();
    bundle(&world, agent, BundleOf::Branch).await;
    assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), made);
    fs::write(&file, "# v2 git bundle\n").unwrap();
    bundle(&world, agent, BundleOf::Branch).await;
    git(&ours, &["bundle", "verify", "-q", name]);

    // Where the base is not, git says so.
    let stranger = world.dir.path().join("stranger");
    fs::create_dir(&stranger).unwrap();
    git(&stranger, &["init", "-q"]);
    let refused = git_output(&stranger, &["bundle", "verify", name]);
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains(&prepared.base_commit), "{said}");
}

// A22: what a killed agent had not committed is listed, and comes back.
#[tokio::test]
async fn a22_what_was_salvaged_is_listed_and_fetched() {
    let world = World::new().await;
    let ours = clone(&world);
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    write(work, "committed", "c\n");
    let commit = agent_commit(work, "committed");
    write(work, "stashed", "s\n");
    git(work, &["add", "-A"]);
    git(work, &["stash", "-q"]);
    git(work, &["branch", "other"]);
    git(work, &["checkout", "-q", "other"]);
    write(work, "other", "o\n");
    let other = agent_commit(work, "on another branch");
    git(work, &["checkout", "-q", &format!("mosaic/{agent}")]);
    write(work, "uncommitted", "u\n");
    write(work, "src/a.txt", "changed\n");
    let result = world.salvage(agent).await;
    let (held, more) = world.worktrees.salvaged(&agent).await.unwrap();
    assert!(!more);
    let salvage = format!("refs/mosaic/salvage/{agent}");
    let beside = format!("refs/mosaic/agents/{agent}");
    let told: Vec<_> = held
        .iter()
        .map(|held| (held.name.as_str(), held.commits, held.files_changed))
        .collect();
    assert_eq!(
        told[..3],
        [
            (format!("refs/heads/mosaic/{agent}").as_str(), 1, 1),
            (salvage.as_str(), 2, 3),
            (format!("{beside}/heads/other").as_str(), 2, 2),
        ]
    );
    assert!(
        told.iter()
            .any(|(name, ..)| *name == format!("{beside}/stash")),
        "{told:?}"
    );
    assert_eq!(held[0].commit, commit);
    assert_eq!(held[1].commit, result.head_commit);
    assert_eq!(held[2].commit, other);
    assert_eq!(held[2].subject, "on another branch");

    let file = bundle(&world, agent, BundleOf::Salvaged).await;
    let name = file.to_str().unwrap();
    git(&ours, &["fetch", "-q", name, "refs/mosaic/*:refs/mosaic/*"]);
    assert_eq!(
        git(&ours, &["show", &format!("{salvage}:uncommitted")]),
        "u"
    );
    assert_eq!(
        git(&ours, &["show", &format!("{beside}/stash:stashed")]),
        "s"
    );
    assert_eq!(
        git(&ours, &["show", &format!("{beside}/heads/other:other")]),
        "o"
    );
    git(&ours, &["fsck", "--full", "--strict"]);
    // The branch alone has no more than was committed.
    let file = bundle(&world, agent, BundleOf::Branch).await;
    let heads = git(&ours, &["bundle", "list-heads", file.to_str().unwrap()]);
    assert_eq!(heads, format!("{commit} refs/heads/mosaic/{agent}"));
}

#[tokio::test]
async fn no_work_is_no_bundle_and_a_large_one_is_refused() {
    let world = World::with(|config| config.limits.max_bundle_bytes = 2000).await;
    let (agent, prepared) = world.prepare().await;
    world.salvage(agent).await;
    for of in [BundleOf::Branch, BundleOf::Salvaged] {
        assert!(world.worktrees.bundle(&agent, of).await.unwrap().is_none());
    }
    assert_eq!(world.worktrees.salvaged(&agent).await.unwrap().0, []);
    let noise: String = (0..2000_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_string())
        .collect();
    write(&prepared.workdir, "noise", noise);
    agent_commit(&prepared.workdir, "noise");
    world.harvest(agent).await;
    let refused = world.worktrees.bundle(&agent, BundleOf::Branch).await;
    assert!(
        matches!(refused, Err(WorktreeError::TooLarge { .. })),
        "{refused:?}"
    );
    let notes = prepared.workdir.parent().unwrap().join("worktree");
    let left: Vec<_> = fs::read_dir(notes)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("bundle"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let nobody = AgentId::generate();
    let refused = world.worktrees.bundle(&nobody, BundleOf::Branch).await;
    assert!(matches!(refused, Err(WorktreeError::NotPrepared)));
}
