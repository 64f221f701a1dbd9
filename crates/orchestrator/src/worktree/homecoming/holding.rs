//! What the mirror's refs hold, and whether that is all of an agent's work.

use std::collections::BTreeSet;

use git2::{Oid, Repository};
use mosaic_types::AgentId;

use super::{
    super::{
        KeptWhy,
        error::WorktreeError,
        mirror::{agent_ref, salvage_ref},
        tags,
    },
    State,
};

/// What an agent's refs point to: commits, and annotated tags.
fn own_refs(mirror: &Repository, agent: &AgentId) -> Result<BTreeSet<Oid>, WorktreeError> {
    let others = ["agents", "previous"].map(|of| format!("refs/mosaic/{of}/{agent}/*"));
    let [agents, previous] = others;
    targets(
        mirror,
        &[agent_ref(agent), salvage_ref(agent), agents, previous],
    )
}

/// What the remote's tags point to. An annotated one is held by its ref alone: no commit leads to it.
pub(super) fn remote_tags(mirror: &Repository) -> Result<BTreeSet<Oid>, WorktreeError> {
    targets(mirror, &["refs/tags/*".to_owned()])
}

fn targets(mirror: &Repository, globs: &[String]) -> Result<BTreeSet<Oid>, WorktreeError> {
    let failed = || WorktreeError::git("reading the mirror's refs");
    let mut targets = BTreeSet::new();
    for glob in globs {
        for reference in mirror.references_glob(glob).map_err(failed())? {
            targets.extend(reference.map_err(failed())?.target());
        }
    }
    Ok(targets)
}

/// The commits that these are, or lead to.
fn commits(mirror: &Repository, ids: &BTreeSet<Oid>) -> BTreeSet<Oid> {
    let followed = ids.iter().filter_map(|id| tags::follow(mirror, *id));
    followed.map(|followed| followed.commit).collect()
}

pub(super) fn remote_tips(mirror: &Repository) -> Result<BTreeSet<Oid>, WorktreeError> {
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
pub(super) fn unheld(
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
pub(in super::super) fn unsecured(
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
    let mut tagged = remote_tags(mirror)?;
    tagged.extend(own.iter().chain(&state.given_tags));
    let tips = state.gathered.tips.iter();
    let tags = state.gathered.tags.iter();
    let lost = tips
        .filter(|(_, tip)| unheld.contains(tip))
        .chain(tags.filter(|(_, tag)| !tagged.contains(tag)))
        .next();
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
