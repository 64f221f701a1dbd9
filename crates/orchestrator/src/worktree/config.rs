//! Where trees and mirrors lie, how remotes are reached, and how much may come home.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Credential, PushRule};

/// Where trees and mirrors lie, and how remotes are reached.
#[derive(Debug, Clone)]
pub struct WorktreeConfig {
    /// Directory of the mirrors; made when missing.
    pub mirrors_dir: PathBuf,
    /// Directory of the agents; an agent's tree is `<agents_dir>/<agentId>/work`. Made when missing.
    pub agents_dir: PathBuf,
    /// The git program, used for https and ssh alone.
    pub git_program: PathBuf,
    /// The ssh program.
    pub ssh_program: PathBuf,
    /// Credentials by repository; the first that matches is used.
    pub credentials: Vec<Credential>,
    /// Time limit of one fetch, seconds.
    pub fetch_timeout_secs: u64,
    /// How long to wait for another process that holds a mirror, seconds.
    pub lock_timeout_secs: u64,
    /// Where agents' branches may be pushed; the first that matches holds.
    pub pushes: Vec<PushRule>,
    /// Bounds on what one agent may bring home.
    pub limits: Limits,
}

impl WorktreeConfig {
    /// The defaults, under one data directory.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        Self {
            mirrors_dir: data_dir.join("mirrors"),
            agents_dir: data_dir.join("agents"),
            git_program: PathBuf::from("git"),
            ssh_program: PathBuf::from("ssh"),
            credentials: Vec::new(),
            fetch_timeout_secs: 600,
            lock_timeout_secs: 600,
            pushes: Vec::new(),
            limits: Limits::default(),
        }
    }
}

/// Bounds on what one agent may bring home.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Limits {
    /// A larger file stays uncommitted and is reported, and the tree is kept; bytes.
    pub max_file_bytes: u64,
    /// Files and directories in the tree, by path, and in that of every commit; objects in the agent's repository.
    pub max_files: u64,
    /// All objects of the agent's repository, compressed; bytes.
    pub max_objects_bytes: u64,
    /// A larger patch is not written; the branch has it all the same; bytes.
    pub max_patch_bytes: u64,
    /// A larger bundle is not made; the mirror has the work all the same; bytes.
    pub max_bundle_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_file_bytes: 256 << 20,
            max_files: 2_000_000,
            max_objects_bytes: 8 << 30,
            max_patch_bytes: 256 << 20,
            max_bundle_bytes: 1 << 30,
        }
    }
}
