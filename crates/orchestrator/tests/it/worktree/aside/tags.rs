//! Tags of an agent: annotated ones are objects of their own, and some are of no commit.

use mosaic_orchestrator::worktree::{BundleOf, KeptWhy, Removal, WhyNot};

use super::super::support::{World, agent_commit, git, write};
use super::{missed, removed};

#[tokio::test]
async fn a22_annotated_tags_come_home_as_they_are() {
    let world = World::new().await;
    let who = ["-c", "user.name=S", "-c", "user.email=s@example.org"];
    git(
        &world.source,
        &[
            who.as_slice(),
            &["tag", "-a", "v1.0", "-m", "of the remote"],
        ]
        .concat(),
    );
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    write(work, "README", "work\n");
    let commit = agent_commit(work, "work");
    git(work, &["tag", "-a", "v2.0", "-m", "what is new in it"]);
    git(
        work,
        &["tag", "-a", "v2.0-signed-off", "-m", "of a tag", "v2.0"],
    );
    // Of what the remote has as well.
    git(
        work,
        &[
            "tag",
            "-a",
            "v1.1",
            "-m",
            "the text alone is new",
            "origin/main",
        ],
    );
    git(work, &["tag", "light"]);
    git(work, &["update-ref", "refs/other/tag", "v2.0"]);
    let told = |removal| match removal {
        Removal::Kept { why } => why,
        Removal::Removed => panic!("removed"),
    };
    assert!(matches!(
        told(removed(&world, agent).await),
        KeptWhy::Unreferenced { .. }
    ));
    let mut refs = Vec::new();
    // May be repeated.
    for _ in 0..2 {
        let result = world.harvest(agent).await;
        assert_eq!(result.not_brought_home, []);
        refs = result.refs;
    }
    let mirror = world.mirror();
    let kept = |name: &str| format!("refs/mosaic/agents/{agent}/{name}");
    for (name, text) in [
        ("tags/v2.0", "what is new in it"),
        ("tags/v2.0-signed-off", "of a tag"),
        ("tags/v1.1", "the text alone is new"),
        ("other/tag", "what is new in it"),
    ] {
        let name = kept(name);
        assert!(refs.contains(&name), "{name}");
        let shown = git(&mirror, &["cat-file", "tag", &name]);
        assert!(shown.ends_with(text), "{shown}");
    }
    assert_eq!(
        world.mirror_tip(&kept("tags/v2.0-signed-off^{commit}")),
        Some(commit.clone())
    );
    // Those of the remote are where they were, and a tag without a text is its commit.
    assert_eq!(world.mirror_tip(&kept("tags/v1.0")), None);
    assert_eq!(world.mirror_tip(&kept("tags/light")), None);
    world.fsck();

    let (held, _) = world.worktrees.salvaged(&agent).await.unwrap();
    let tag = held.iter().find(|held| held.name == kept("tags/v2.0"));
    assert_eq!(tag.unwrap().commit, commit);
    let bundle = world.worktrees.bundle(&agent, BundleOf::Salvaged).await;
    let bundle = bundle.unwrap().unwrap();
    let fetched = format!("{}:refs/tags/fetched", kept("tags/v2.0-signed-off"));
    git(
        &world.source,
        &["fetch", "-q", bundle.to_str().unwrap(), &fetched],
    );
    let shown = git(&world.source, &["cat-file", "tag", "fetched"]);
    assert!(shown.ends_with("of a tag"), "{shown}");

    // One that is replaced is kept beside the new one.
    let old = world.mirror_tip(&kept("tags/v2.0")).unwrap();
    git(work, &["tag", "-f", "-a", "v2.0", "-m", "again"]);
    world.harvest(agent).await;
    let shown = git(&mirror, &["cat-file", "tag", &kept("tags/v2.0")]);
    assert!(shown.ends_with("again"), "{shown}");
    let previous = format!("refs/mosaic/previous/{agent}/{old}");
    assert_eq!(world.mirror_tip(&previous), Some(old));
    assert_eq!(removed(&world, agent).await, Removal::Removed);
}

// An agent's tag that is nowhere else keeps its tree, as anything of an agent's does.
#[tokio::test]
async fn a23_an_annotated_tag_that_is_nowhere_else_keeps_the_tree() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    world.harvest(agent).await;
    git(&prepared.workdir, &["tag", "-a", "v2.0", "-m", "a text"]);
    let kept = Removal::Kept {
        why: KeptWhy::Unreferenced {
            what: "tags/v2.0".to_owned(),
        },
    };
    assert_eq!(removed(&world, agent).await, kept);
    world.harvest(agent).await;
    assert_eq!(removed(&world, agent).await, Removal::Removed);
}

/// A tag that says `nightly` is another one each day.
#[tokio::test]
async fn a_tag_that_the_remote_has_moved_since_is_no_work_of_the_agents() {
    let world = World::new().await;
    let tag = |text: &str| {
        let who = ["-c", "user.name=S", "-c", "user.email=s@example.org"];
        let making = ["tag", "-f", "-a", "nightly", "-m", text];
        git(&world.source, &[who.as_slice(), &making].concat());
    };
    tag("of one day");
    let (before_harvest, _) = world.prepare().await;
    let (before_removal, _) = world.prepare().await;
    world.harvest(before_removal).await;
    tag("of the next day");
    let (_, _) = world.prepare().await;
    let result = world.harvest(before_harvest).await;
    assert_eq!(result.refs, [format!("refs/heads/mosaic/{before_harvest}")]);
    for agent in [before_harvest, before_removal] {
        assert_eq!(removed(&world, agent).await, Removal::Removed);
    }
}

#[tokio::test]
async fn a23_tags_that_cannot_come_home_keep_the_tree() {
    let world = World::new().await;
    // Those of the remote are safe there, whatever they are of.
    git(&world.source, &["tag", "blob", "HEAD:README"]);
    git(&world.source, &["tag", "tree", "HEAD:src"]);
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    git(work, &["tag", "same", "HEAD:README"]);
    world.harvest(agent).await;
    assert_eq!(removed(&world, agent).await, Removal::Removed);

    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    write(work, "note", "only here\n");
    let blob = git(work, &["hash-object", "-w", "note"]);
    std::fs::remove_file(work.join("note")).unwrap();
    git(work, &["tag", "note", &blob]);
    git(
        work,
        &["tag", "-a", "text", "-m", "of a blob", "HEAD:README"],
    );
    write(
        work,
        ".git/refs/tags/gone",
        format!("{}\n", "12".repeat(20)),
    );
    let result = world.harvest(agent).await;
    let told: Vec<(&str, WhyNot)> = result
        .not_brought_home
        .iter()
        .map(|missed| (missed.path.as_str(), missed.why))
        .collect();
    let expected = ["tags/gone", "tags/note", "tags/text"];
    assert_eq!(told, expected.map(|name| (name, WhyNot::MissingObjects)));
    assert_eq!(missed(removed(&world, agent).await).len(), 3);
}
