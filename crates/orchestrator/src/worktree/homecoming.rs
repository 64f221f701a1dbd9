//! Bringing an agent's work home: objects into the mirror, refs that hold them, and the proof that
//! nothing is left behind.

use std::{collections::BTreeSet, fs, io::Write, path::Path};

use git2::{Commit, Oid, Repository, Signature, Sort, Time, Tree};
use mosaic_types::AgentId;

use super::{
    KeptWhy, Landing, Limits, NotBroughtHome, WhyNot,
    checkout::{AgentDirs, Record},
    error::WorktreeError,
    gather::{self, Gathered},
    mirror::{agent_ref, salvage_ref},
    snapshot::{self, CheckedOut},
};

mod linked;

/// How many refs besides its branch are made for an agent. Each is a file of the mirror for good.
const MAX_OTHER_REFS: usize = 1000;

/// An agent's whole state, in a repository of the host.
pub(super) struct State {
    pub(super) gathered: Gathered,
    pub(super) base: Oid,
    /// The agent's own last commit.
    pub(super) head: Oid,
    /// The working tree.
    pub(super) tree: Oid,
    pub(super) missed: Vec<NotBroughtHome>,
}

/// Where work came to lie in the mirror.
pub(super) struct Landed {
    pub(super) head: Oid,
    pub(super) uncommitted: Option<Oid>,
    pub(super) refs: Vec<String>,
    pub(super) missed: Vec<NotBroughtHome>,
}

/// Reads everything of a dead agent. Changes nothing of it and nothing of the mirror.
pub(super) fn examine(
    dirs: &AgentDirs,
    agent: &AgentId,
    record: &Record,
    mirror: &Path,
    limits: &Limits,
) -> Result<State, WorktreeError> {
    let failed = || WorktreeError::git("reading the agent's commits");
    let work = dirs.work();
    if !fs::symlink_metadata(&work).is_ok_and(|found| found.is_dir()) {
        return Err(WorktreeError::NotPrepared);
    }
    let (mut gathered, index) = gather::gather(&work, &dirs.harvest(), mirror, limits)?;
    let base = Oid::from_str(&record.base_commit).map_err(failed())?;
    let own_branch = gathered.tips.get(&format!("heads/mosaic/{agent}")).copied();
    let mut head = gathered.head.or(own_branch).unwrap_or(base);
    let head_tree = gathered
        .repository
        .find_commit(head)
        .and_then(|commit| commit.tree())
        .map_err(failed())?;
    let taken = snapshot::take(
        &gathered,
        index.as_ref(),
        &work,
        Some(&head_tree),
        &CheckedOut::read(&dirs.checked_out()),
        limits,
    )?;
    // A clean tree on an older commit, say of `main`, is no reason to hide what the agent's own
    // branch holds.
    if taken.tree == head_tree.id()
        && let Some(tip) = own_branch
        && gathered
            .repository
            .graph_descendant_of(tip, head)
            .map_err(failed())?
    {
        head = tip;
    }
    let tree = if taken.tree == head_tree.id() {
        gathered
            .repository
            .find_commit(head)
            .and_then(|commit| commit.tree())
            .map_err(failed())?
            .id()
    } else {
        taken.tree
    };
    let mut missed = std::mem::take(&mut gathered.missed);
    missed.extend(taken.missed);
    missed.extend(linked::not_walked(&gathered.linked, dirs, &missed));
    drop(head_tree);
    Ok(State {
        gathered,
        base,
        head,
        tree,
        missed,
    })
}

/// Imports everything and sets the refs. Wants the mirror's lock.
pub(super) fn land(
    state: &State,
    mirror: &Repository,
    agent: &AgentId,
    landing: Landing,
    now_secs: i64,
) -> Result<Landed, WorktreeError> {
    let failed = || WorktreeError::git("committing the agent's uncommitted work");
    let own = &state.gathered.repository;
    let head = own.find_commit(state.head).map_err(failed())?;
    let uncommitted = if head.tree_id() == state.tree {
        None
    } else {
        let tree = own.find_tree(state.tree).map_err(failed())?;
        let known = [agent_ref(agent), salvage_ref(agent)];
        let message = format!(
            "Uncommitted work of agent {agent}\n\nLeft in the working tree when the agent ended; committed by Mosaic.\n"
        );
        Some(commit_once(
            own,
            mirror,
            &known,
            &head,
            &tree,
            &message,
            (agent, now_secs),
        )?)
    };
    let mut tips = state.gathered.tips.clone();
    tips.remove(&format!("heads/mosaic/{agent}"));
    if let Some(staged) = state.gathered.staged
        && staged != state.tree
        && staged != head.tree_id()
        && let Ok(tree) = own.find_tree(staged)
    {
        let known = [other_ref(agent, "index")];
        let message =
            format!("Staged by agent {agent}\n\nThe index as it was when the agent ended.\n");
        let commit = commit_once(
            own,
            mirror,
            &known,
            &head,
            &tree,
            &message,
            (agent, now_secs),
        )?;
        tips.insert("index".to_owned(), commit);
    }
    // Its own branch may have been left behind by a rebase or a reset in progress.
    if let Some(tip) = state.gathered.tips.get(&format!("heads/mosaic/{agent}")) {
        tips.insert(format!("heads/mosaic/{agent}"), *tip);
    }

    let newest = uncommitted.unwrap_or(state.head);
    let mut wanted: BTreeSet<Oid> = tips.values().copied().collect();
    wanted.extend([newest, state.head]);
    import(own, mirror, &wanted, state.base)?;

    let mut refs = Vec::new();
    let branch_tip = if landing == Landing::Branch {
        newest
    } else {
        state.head
    };
    refs.push(set_ref(mirror, agent, &agent_ref(agent), branch_tip)?);
    if landing == Landing::Salvage {
        refs.push(set_ref(mirror, agent, &salvage_ref(agent), newest)?);
    }
    let mut holders = remote_tips(mirror)?;
    holders.extend([branch_tip, newest]);
    let unheld = unheld(mirror, &holders, &tips.values().copied().collect())?;
    tips.retain(|_, tip| unheld.contains(tip));
    let mut missed = state.missed.clone();
    if tips.len() > MAX_OTHER_REFS {
        missed.push(NotBroughtHome::new(b".git/refs", WhyNot::TooMany));
    }
    for (name, tip) in tips.into_iter().take(MAX_OTHER_REFS) {
        let name = other_ref(agent, &name);
        // A branch `a` of an earlier attempt may be in the way of `a/b`.
        refs.push(match set_ref(mirror, agent, &name, tip) {
            Ok(name) => name,
            Err(_) => set_ref(
                mirror,
                agent,
                &other_ref(agent, &format!("tips/{tip}")),
                tip,
            )?,
        });
    }
    Ok(Landed {
        head: newest,
        uncommitted,
        refs,
        missed,
    })
}

fn other_ref(agent: &AgentId, name: &str) -> String {
    format!("refs/mosaic/agents/{agent}/{name}")
}

/// Commits a tree, unless one of the refs holds that very commit from an earlier attempt.
fn commit_once(
    own: &Repository,
    mirror: &Repository,
    known: &[String],
    parent: &Commit<'_>,
    tree: &Tree<'_>,
    message: &str,
    (agent, now_secs): (&AgentId, i64),
) -> Result<Oid, WorktreeError> {
    let failed = || WorktreeError::git("committing the agent's uncommitted work");
    for name in known {
        if let Ok(id) = mirror.refname_to_id(name)
            && let Ok(commit) = mirror.find_commit(id)
            && commit.tree_id() == tree.id()
            && commit.parent_ids().eq([parent.id()])
            && commit.message_bytes() == message.as_bytes()
        {
            return Ok(id);
        }
    }
    let who = Signature::new(
        &format!("Mosaic {agent}"),
        &format!("{agent}@agents.mosaic.invalid"),
        &Time::new(now_secs, 0),
    )
    .map_err(failed())?;
    own.commit(None, &who, &who, message, tree, &[parent])
        .map_err(failed())
}

/// Copies what the mirror lacks as one pack. The mirror's own indexer computes every id anew from the
/// content, so an object under a false name cannot get in.
fn import(
    own: &Repository,
    mirror: &Repository,
    tips: &BTreeSet<Oid>,
    base: Oid,
) -> Result<(), WorktreeError> {
    let failed = || WorktreeError::git("importing the agent's objects");
    let present = mirror.odb().map_err(failed())?;
    let mut walk = own.revwalk().map_err(failed())?;
    walk.set_sorting(Sort::TOPOLOGICAL).map_err(failed())?;
    let mut any = false;
    for tip in tips {
        if !present.exists(*tip) {
            walk.push(*tip).map_err(failed())?;
            any = true;
        }
    }
    if !any {
        return Ok(());
    }
    walk.hide(base).map_err(failed())?;
    let mut builder = own.packbuilder().map_err(failed())?;
    builder.insert_walk(&mut walk).map_err(failed())?;
    let packs = mirror.path().join("objects/pack");
    let before = names(&packs);
    let mut writer = present.packwriter().map_err(failed())?;
    let mut written = Ok(());
    let built = builder.foreach(|bytes| {
        written = writer.write_all(bytes);
        written.is_ok()
    });
    written.map_err(WorktreeError::io("importing the agent's objects", &packs))?;
    built.map_err(failed())?;
    writer.commit().map_err(failed())?;
    // The agent's copy goes once this is said to be safe: it must survive a power cut.
    for name in names(&packs).difference(&before) {
        let path = packs.join(name);
        fs::File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(WorktreeError::io("syncing the agent's objects", &path))?;
    }
    fs::File::open(&packs)
        .and_then(|dir| dir.sync_all())
        .map_err(WorktreeError::io("syncing the agent's objects", &packs))?;
    present.refresh().map_err(failed())
}

fn names(dir: &Path) -> BTreeSet<std::ffi::OsString> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name())
        .collect()
}

/// Moves a ref; what it held and the new tip does not contain stays held by another.
fn set_ref(
    mirror: &Repository,
    agent: &AgentId,
    name: &str,
    tip: Oid,
) -> Result<String, WorktreeError> {
    let failed = || WorktreeError::git("setting a ref of the mirror");
    if let Ok(old) = mirror.refname_to_id(name) {
        if old == tip {
            return Ok(name.to_owned());
        }
        if !mirror.graph_descendant_of(tip, old).map_err(failed())? {
            let previous = format!("refs/mosaic/previous/{agent}/{old}");
            mirror
                .reference(&previous, old, true, "kept")
                .map_err(failed())?;
        }
    }
    mirror
        .reference(name, tip, true, "agent's work")
        .map_err(failed())?;
    Ok(name.to_owned())
}

fn own_refs(mirror: &Repository, agent: &AgentId) -> Result<Vec<Oid>, WorktreeError> {
    let failed = || WorktreeError::git("reading the mirror's refs");
    let mut held = Vec::new();
    for glob in [
        agent_ref(agent),
        salvage_ref(agent),
        format!("refs/mosaic/agents/{agent}/*"),
        format!("refs/mosaic/previous/{agent}/*"),
    ] {
        for reference in mirror.references_glob(&glob).map_err(failed())? {
            held.extend(reference.map_err(failed())?.target());
        }
    }
    Ok(held)
}

/// Those of the ids that are commits; a ref of an agent could hold nothing else.
fn commits(mirror: &Repository, ids: &[Oid]) -> Vec<Oid> {
    ids.iter()
        .copied()
        .filter(|id| mirror.find_commit(*id).is_ok())
        .collect()
}

fn remote_tips(mirror: &Repository) -> Result<BTreeSet<Oid>, WorktreeError> {
    let failed = || WorktreeError::git("reading the mirror's refs");
    let mut tips = BTreeSet::new();
    for glob in ["refs/remotes/origin/*", "refs/tags/*"] {
        for reference in mirror.references_glob(glob).map_err(failed())? {
            if let Ok(tip) = reference.and_then(|reference| reference.peel_to_commit()) {
                tips.insert(tip.id());
            }
        }
    }
    Ok(tips)
}

/// Those of the commits that are not in the mirror, or not reachable from one of the holders. One walk for all of
/// them: an agent may have made as many refs as it liked.
fn unheld(
    mirror: &Repository,
    holders: &BTreeSet<Oid>,
    commits: &BTreeSet<Oid>,
) -> Result<BTreeSet<Oid>, WorktreeError> {
    let failed = || WorktreeError::git("reading the mirror's refs");
    let present = mirror.odb().map_err(failed())?;
    let mut walk = mirror.revwalk().map_err(failed())?;
    let mut unheld = BTreeSet::new();
    let mut any = false;
    for commit in commits.difference(holders) {
        if present.exists(*commit) {
            walk.push(*commit).map_err(failed())?;
            any = true;
        } else {
            unheld.insert(*commit);
        }
    }
    if any {
        for holder in holders {
            walk.hide(*holder).map_err(failed())?;
        }
        for commit in walk {
            let commit = commit.map_err(failed())?;
            if commits.contains(&commit) {
                unheld.insert(commit);
            }
        }
    }
    Ok(unheld)
}

/// Why the tree must stay; `None` when every part of it is reachable from a ref (A23).
pub(super) fn unsecured(
    state: &State,
    mirror: &Repository,
    agent: &AgentId,
) -> Result<Option<KeptWhy>, WorktreeError> {
    if !state.missed.is_empty() {
        return Ok(Some(KeptWhy::NotBroughtHome {
            items: state.missed.clone(),
        }));
    }
    let own = own_refs(mirror, agent)?;
    let mut holders = remote_tips(mirror)?;
    holders.extend(commits(mirror, &own));
    let mut tips: BTreeSet<Oid> = state.gathered.tips.values().copied().collect();
    tips.insert(state.head);
    let unheld = unheld(mirror, &holders, &tips)?;
    if unheld.contains(&state.head) {
        return Ok(Some(KeptWhy::Unreferenced {
            what: "HEAD".to_owned(),
        }));
    }
    let lost = state
        .gathered
        .tips
        .iter()
        .find(|(_, tip)| unheld.contains(tip));
    if let Some((name, _)) = lost {
        return Ok(Some(KeptWhy::Unreferenced { what: name.clone() }));
    }
    let mut trees: BTreeSet<Oid> = BTreeSet::new();
    for commit in own.into_iter().chain([state.head]) {
        if let Ok(commit) = mirror.find_commit(commit) {
            trees.insert(commit.tree_id());
        }
    }
    if !trees.contains(&state.tree) {
        return Ok(Some(KeptWhy::Uncommitted));
    }
    if state
        .gathered
        .staged
        .is_some_and(|staged| !trees.contains(&staged))
    {
        return Ok(Some(KeptWhy::Unreferenced {
            what: "index".to_owned(),
        }));
    }
    Ok(None)
}
