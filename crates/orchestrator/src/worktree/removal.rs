//! Removing what an agent left: only once its work is secured, never through a symbolic link, never
//! outside its directory.

use std::{fs, io, path::Path};

use mosaic_types::AgentId;
use serde::{Deserialize, Serialize};

use crate::crash_points::crash_point;

use super::{
    NotBroughtHome, WorktreeError, Worktrees, checkout::AgentDirs, gather::enterable, homecoming,
};

/// Deeper directories are first moved up: the agent chose the depth, and each level costs a file
/// descriptor and path bytes.
const MAX_DEPTH: usize = 64;
const MAX_PATH_BYTES: usize = 2048;

/// What is to happen to work that is nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemovalMode {
    /// Remove only what is reachable from a ref of the mirror.
    OnlySecured,
    /// Remove all the same: an operator's explicit wish.
    Discard,
}

/// What became of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "outcome")]
pub enum Removal {
    /// It is gone, now or since long.
    Removed,
    /// It is still there.
    Kept {
        /// Why.
        why: KeptWhy,
    },
}

/// Why a tree was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "reason")]
pub enum KeptWhy {
    /// The tree differs from every commit that is referenced.
    Uncommitted,
    /// A commit of the agent is not reachable from any ref.
    Unreferenced {
        /// The branch, or what else held it.
        what: String,
    },
    /// Parts could not be brought home.
    NotBroughtHome {
        /// Which.
        items: Vec<NotBroughtHome>,
    },
    /// There is no record of how the tree came to be.
    NoRecord,
}

impl Worktrees {
    /// Removes a dead agent's tree. The record and the patch stay.
    ///
    /// # Errors
    /// What could not be read or removed; no tree at all is no error.
    pub async fn remove(
        &self,
        agent: &AgentId,
        mode: RemovalMode,
    ) -> Result<Removal, WorktreeError> {
        let agent = *agent;
        let dirs = AgentDirs::new(&self.inner.config.agents_dir, &agent);
        let own_dir = fs::symlink_metadata(&dirs.root).is_ok_and(|found| found.is_dir());
        if !own_dir {
            return Ok(Removal::Removed);
        }
        if fs::symlink_metadata(dirs.work()).is_err() {
            // A removal that broke off left what was secured before.
            return self
                .inner
                .clearing
                .run("removing the working tree", move || {
                    remove_tree(&dirs.being_removed())?;
                    Ok(Removal::Removed)
                })
                .await;
        }
        if mode == RemovalMode::OnlySecured {
            if dirs.read_record()?.is_none() {
                return Ok(Removal::Kept {
                    why: KeptWhy::NoRecord,
                });
            }
            let why = self
                .on_dead(agent, move |home| {
                    homecoming::unsecured(&home.state, &home.mirror, &agent)
                })
                .await?;
            if let Some(why) = why {
                return Ok(Removal::Kept { why });
            }
        }
        let turn = self.inner.agents.lock(&agent.to_string()).await;
        self.inner
            .clearing
            .run("removing the working tree", move || {
                remove_tree(&dirs.being_prepared())?;
                remove_tree(&dirs.harvest())?;
                // All of it at once: half a tree would be taken for what the agent left, and brought home over the whole.
                let aside = dirs.being_removed();
                remove_tree(&aside)?;
                fs::rename(dirs.work(), &aside)
                    .map_err(WorktreeError::io("removing a tree", dirs.work()))?;
                crash_point("clean-up.tree-aside");
                remove_tree(&aside)?;
                drop(turn);
                Ok(Removal::Removed)
            })
            .await
    }

    /// Whether a dead agent may have worked in its HOME, in a tree that is linked to its own.
    ///
    /// # Errors
    /// What could not be read.
    pub async fn may_need_home(&self, agent: &AgentId) -> Result<bool, WorktreeError> {
        self.on_dead(*agent, |home| {
            let mut missed = home.state.missed.iter();
            Ok(missed.any(NotBroughtHome::is_in_home))
        })
        .await
    }
}

/// Removes a directory with all it holds; a symbolic link or a file at `path` is removed itself.
/// Nothing there is fine.
pub(super) fn remove_tree(path: &Path) -> Result<(), WorktreeError> {
    let failed = || WorktreeError::io("removing a tree", path);
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return fs::remove_file(path).map_err(failed()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed()(error)),
    }
    flatten(path);
    fs::remove_dir_all(path).map_err(failed())
}

/// Gives back the permissions that an agent took from directories, whose owner we are, and moves
/// deep ones up. Best effort: what remains in the way shows when removing.
fn flatten(root: &Path) {
    let mut pending = vec![(root.to_owned(), 0)];
    let mut hoisted = 0_u64;
    while let Some((dir, depth)) = pending.pop() {
        enterable(&dir);
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let child = entry.path();
            if depth < MAX_DEPTH && child.as_os_str().len() < MAX_PATH_BYTES {
                pending.push((child, depth + 1));
                continue;
            }
            enterable(&child);
            for _ in 0..1000 {
                let place = root.join(format!("hoisted-{hoisted}"));
                hoisted += 1;
                if fs::symlink_metadata(&place).is_err() && fs::rename(&child, &place).is_ok() {
                    pending.push((place, 1));
                    break;
                }
            }
        }
    }
}
