//! Where things lie in a spoke's data folder.
//!
//! ```text
//! <data>/identity.key store.db admin.token      the node
//! <data>/mirrors/<hash>.git                     one bare mirror for each repository
//! <data>/hold/                                  sentinels of holds
//! <data>/kills.jsonl                            word of kills that the store may not know yet, also by others
//! <data>/agents/<agentId>/run/                  shim: spool, identities, exit record; prompt
//! <data>/agents/<agentId>/home/                 HOME of the agent
//! <data>/agents/<agentId>/work/                 its working tree
//! <data>/agents/<agentId>/worktree/             record of the tree, the patch
//! ```

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use mosaic_types::AgentId;

use crate::sandbox;

/// A spoke's data folder.
#[derive(Debug, Clone)]
pub struct Layout {
    data_dir: PathBuf,
}

impl Layout {
    /// The layout of this folder. Absolute, because agents see its paths too.
    #[must_use]
    pub fn new(data_dir: PathBuf) -> Self {
        Self { data_dir }
    }

    /// The folder itself.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// One agent's part of it.
    #[must_use]
    pub fn agent(&self, agent_id: AgentId) -> AgentLayout {
        AgentLayout {
            root: self.data_dir.join("agents").join(agent_id.to_string()),
        }
    }
}

/// One agent's part of the data folder.
#[derive(Debug, Clone)]
pub struct AgentLayout {
    root: PathBuf,
}

impl AgentLayout {
    /// All of it.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The shim's folder, hidden from the agent.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.root.join("run")
    }

    /// The output of all attempts.
    #[must_use]
    pub fn spool(&self) -> PathBuf {
        sandbox::spool_path(&self.run_dir())
    }

    /// What the agent reads from its standard input.
    #[must_use]
    pub fn prompt(&self) -> PathBuf {
        self.run_dir().join("prompt")
    }

    /// The agent's HOME.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.root.join("home")
    }

    /// Makes the folders that the spawner fills, readable by this user only.
    ///
    /// # Errors
    /// What the file system said.
    pub fn make(&self) -> io::Result<()> {
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(self.run_dir())?;
        private.create(self.home())
    }
}
