//! Containers of ours that no record knows: left by a reply that was lost, by a daemon that was killed, or by an engine
//! that was away when its agent was cleaned up (A1). Only what carries our instance's label is touched (A12), and never
//! the newborn (A10): an agent is known, and a slot held, before the engine is asked for its container, and the engine
//! is asked for its list before either is looked at.

use std::{collections::HashSet, fs};

use mosaic_types::AgentId;
use tracing::warn;

use super::{
    DockerSandbox, EngineError,
    container::{LABEL_AGENT, LABEL_INSTANCE, LABEL_SLOT},
    pool::FOLDER,
};

impl DockerSandbox {
    /// Removes the containers that are neither an agent's nor waiting for one. `known` is asked after the engine was:
    /// whoever came meanwhile is in it. Says how many it removed.
    ///
    /// # Errors
    /// [`EngineError`], the first; every container was tried, and the next sweep takes up what was left.
    pub async fn sweep(
        &self,
        known: impl FnOnce() -> HashSet<AgentId> + Send,
    ) -> Result<usize, EngineError> {
        let label = format!("{LABEL_INSTANCE}={}", self.instance);
        let found = self.engine.labelled(&label).await?;
        // A slot that is taken between the two is its agent's, who is known by then.
        let slots = self.slots();
        let known = known();
        // What waited for an agent and has one now is known by that agent's own files.
        let mut taken = HashSet::new();
        let mut some_unread = false;
        for agent in &known {
            match self.container_of(*agent) {
                Ok(container) => taken.extend(container.map(|container| container.id)),
                // What cannot be read now may name any of those that waited.
                Err(error) => {
                    warn!(%agent, error = &error as &dyn std::error::Error, "containers that waited are left alone");
                    some_unread = true;
                }
            }
        }
        let mut removed = 0;
        let mut failed = None;
        for container in found {
            let label = |name| container.labels.get(name);
            let agent = label(LABEL_AGENT).and_then(|agent| agent.parse::<AgentId>().ok());
            let slot = label(LABEL_SLOT);
            if taken.contains(&container.id)
                || agent.is_some_and(|agent| known.contains(&agent))
                || slot.is_some_and(|slot| some_unread || slots.contains(slot))
            {
                continue;
            }
            warn!(
                container = container.id,
                "removing a container that no record knows"
            );
            if let Err(error) = self.engine.remove(&container.id).await {
                let out_of_reach = error.status().is_none();
                failed.get_or_insert(error);
                if out_of_reach {
                    break;
                }
                continue;
            }
            if let Some(slot) = slot {
                self.remove_slot_remains(slot).await;
            }
            removed += 1;
        }
        self.sweep_slot_folders().await;
        failed.map_or(Ok(removed), Err)
    }

    /// Removes what slots that nobody holds have left on disk and in the groups.
    async fn sweep_slot_folders(&self) {
        let groups = self.launcher.tree.groups_in(FOLDER);
        let names = |dir| {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .filter_map(|entry| entry.file_name().into_string().ok())
        };
        let found: HashSet<String> = groups
            .into_iter()
            .chain([self.data_dir.join(FOLDER)])
            .flat_map(names)
            .collect();
        let held = self.slots();
        for slot in found.difference(&held) {
            self.remove_slot_remains(slot).await;
        }
    }
}
