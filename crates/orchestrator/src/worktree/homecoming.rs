//! Bringing an agent's work home: objects into the mirror, refs that hold them, and the proof that
//! nothing is left behind.

use std::{collections::BTreeSet, fs, path::Path};

use git2::{Commit, Oid, Repository, Signature, Time, Tree};
use mosaic_types::AgentId;

use super::{
    Landing, Limits, NotBroughtHome, WhyNot,
    checkout::{AgentDirs, Record},
    error::WorktreeError,
    gather::{self, Gathered},
    mirror::{agent_ref, salvage_ref},
    snapshot::{self, CheckedOut},
    tags,
    trees::Trees,
};

mod holding;
mod importing;
mod linked;

pub(super) use holding::unsecured;
use holding::{remote_tags, remote_tips, unheld};
use importing::Wanted;

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
    /// What the remote's tags pointed to when it began.
    pub(super) given_tags: BTreeSet<Oid>,
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
        given_tags: dirs.read_given_tags(),
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
    trees: &mut Trees,
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
    let mut commits: BTreeSet<Oid> = tips.values().copied().collect();
    commits.extend([newest, state.head]);
    let mut of_remote = remote_tags(mirror)?;
    of_remote.extend(&state.given_tags);
    let tags = state.gathered.tags.iter();
    let tags: Vec<(&String, &Oid)> = tags.filter(|(_, tag)| !of_remote.contains(tag)).collect();
    let wanted = Wanted {
        commits,
        tags: tags.iter().map(|(_, tag)| **tag).collect(),
        base: state.base,
    };
    importing::import(own, mirror, &wanted, trees)?;

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
    tips.extend(tags.into_iter().map(|(name, tag)| (name.clone(), *tag)));
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
        if !contains(mirror, tip, old).map_err(failed())? {
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

/// Whether what is new holds what was there before. Nothing holds a tag but its ref.
fn contains(mirror: &Repository, new: Oid, old: Oid) -> Result<bool, git2::Error> {
    match tags::follow(mirror, new) {
        Some(new) if mirror.find_commit(old).is_ok() => {
            Ok(new.commit == old || mirror.graph_descendant_of(new.commit, old)?)
        }
        _ => Ok(false),
    }
}
