//! An agent's own repository: a complete one, whose only tie to the mirror is a read-only list of
//! objects it may borrow.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use git2::{ErrorClass, Oid, Repository, build::CheckoutBuilder};
use mosaic_types::AgentId;
use serde::{Deserialize, Serialize};

use super::{
    Limits,
    address::{BranchName, RepositoryUrl},
    error::WorktreeError,
    patch::told,
    removal,
    trees::Trees,
};

/// What was prepared for an agent; kept beside the tree, out of the agent's reach.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    pub(super) version: u32,
    pub(super) repository: RepositoryUrl,
    pub(super) branch: BranchName,
    pub(super) base_commit: String,
}

/// Where an agent's things lie.
#[derive(Debug, Clone)]
pub(super) struct AgentDirs {
    pub(super) root: PathBuf,
}

impl AgentDirs {
    pub(super) fn new(agents: &Path, agent: &AgentId) -> Self {
        Self {
            root: agents.join(agent.to_string()),
        }
    }

    pub(super) fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// The agent's HOME, which others make and remove.
    pub(super) fn home(&self) -> PathBuf {
        self.root.join("home")
    }

    pub(super) fn being_prepared(&self) -> PathBuf {
        self.root.join("work.preparing")
    }

    /// A tree that is secured and goes: never read again.
    pub(super) fn being_removed(&self) -> PathBuf {
        self.root.join("work.removing")
    }

    /// The host's own notes on the tree.
    pub(super) fn notes(&self) -> PathBuf {
        self.root.join("worktree")
    }

    fn record(&self) -> PathBuf {
        self.notes().join("prepared.json")
    }

    pub(super) fn patch(&self) -> PathBuf {
        self.notes().join("result.patch")
    }

    /// The index as the host wrote it: what was checked out, and how the files looked then.
    pub(super) fn checked_out(&self) -> PathBuf {
        self.notes().join("checked-out.index")
    }

    fn given_tags(&self) -> PathBuf {
        self.notes().join("tags")
    }

    /// What the tags pointed to that the agent was given: the remote's, wherever it has moved them since. Where that was
    /// not noted, none.
    pub(super) fn read_given_tags(&self) -> BTreeSet<Oid> {
        let noted = fs::read_to_string(self.given_tags()).unwrap_or_default();
        let ids = noted.lines().map(Oid::from_str);
        ids.filter_map(Result::ok).collect()
    }

    fn write_given_tags(&self, refs: &[(Vec<u8>, Oid)]) -> Result<(), WorktreeError> {
        let path = self.given_tags();
        let tags = refs
            .iter()
            .filter(|(name, _)| name.starts_with(b"refs/tags/"));
        let noted: String = tags.map(|(_, target)| format!("{target}\n")).collect();
        if noted.is_empty() && !path.exists() {
            return Ok(());
        }
        fs::write(&path, noted).map_err(WorktreeError::io("noting the tags of the remote", &path))
    }

    pub(super) fn harvest(&self) -> PathBuf {
        self.notes().join("harvest")
    }

    pub(super) fn read_record(&self) -> Result<Option<Record>, WorktreeError> {
        let path = self.record();
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| WorktreeError::Record { path, source }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(WorktreeError::io("reading the agent's record", path)(error)),
        }
    }

    pub(super) fn write_record(&self, record: &Record) -> Result<(), WorktreeError> {
        let path = self.record();
        let failed = || WorktreeError::io("writing the agent's record", &path);
        fs::create_dir_all(self.notes()).map_err(failed())?;
        let bytes = serde_json::to_vec(record).map_err(|source| WorktreeError::Record {
            path: path.clone(),
            source,
        })?;
        let temporary = path.with_extension("tmp");
        let mut file = fs::File::create(&temporary).map_err(failed())?;
        file.write_all(&bytes)
            .and_then(|()| file.sync_all())
            .map_err(failed())?;
        fs::rename(&temporary, &path).map_err(failed())
    }
}

/// What an agent's repository is made from.
pub(super) struct Plan<'a> {
    pub(super) agent: &'a AgentId,
    pub(super) repository: &'a RepositoryUrl,
    pub(super) mirror_objects: &'a Path,
    pub(super) refs: &'a [(Vec<u8>, Oid)],
    pub(super) tip: Oid,
    pub(super) limits: &'a Limits,
}

/// Builds the tree beside its place and moves it there at once, so that a crash leaves nothing or all.
pub(super) fn build(dirs: &AgentDirs, plan: &Plan<'_>) -> Result<(), WorktreeError> {
    let temporary = dirs.being_prepared();
    removal::remove_tree(&temporary)?;
    let checked_out = dirs.checked_out();
    dirs.write_given_tags(plan.refs)?;
    let built = build_at(&temporary, plan).and_then(|()| {
        fs::copy(temporary.join(".git/index"), &checked_out)
            .map(drop)
            .map_err(WorktreeError::io(
                "noting what was checked out",
                &checked_out,
            ))
    });
    if built.is_err() {
        // The error of the making matters more than what its remains do.
        let _ = removal::remove_tree(&temporary);
        return built;
    }
    let work = dirs.work();
    fs::rename(&temporary, &work).map_err(WorktreeError::io(
        "putting the working tree into place",
        &work,
    ))
}

/// The folders of a repository, each after the one that it is in
/// ([gitrepository-layout](https://git-scm.com/docs/gitrepository-layout)).
const SKELETON: [&str; 10] = [
    "",
    "hooks",
    "info",
    "objects",
    "objects/info",
    "objects/pack",
    "refs",
    "refs/heads",
    "refs/heads/mosaic",
    "refs/tags",
];

/// Writes a repository without objects of its own. Written out, since an agent waits for it: a library's would make a
/// general one first, and each file of that twice.
fn lay_out(git_dir: &Path, plan: &Plan<'_>) -> Result<(), WorktreeError> {
    const WRITING: &str = "writing the agent's repository";
    for name in SKELETON {
        let folder = git_dir.join(name);
        fs::create_dir(&folder).map_err(WorktreeError::io(WRITING, &folder))?;
    }
    let mut alternates = plan.mirror_objects.as_os_str().as_encoded_bytes().to_vec();
    alternates.push(b'\n');
    let mut packed = b"# pack-refs with: sorted \n".to_vec();
    for (name, target) in plan.refs {
        packed.extend_from_slice(format!("{target} ").as_bytes());
        packed.extend_from_slice(name);
        packed.push(b'\n');
    }
    let branch = format!("refs/heads/mosaic/{}", plan.agent);
    let files = [
        ("HEAD", format!("ref: {branch}\n").into_bytes()),
        ("config", config(plan).into_bytes()),
        ("objects/info/alternates", alternates),
        ("packed-refs", packed),
        (&branch, format!("{}\n", plan.tip).into_bytes()),
    ];
    for (name, bytes) in files {
        let file = git_dir.join(name);
        fs::write(&file, bytes).map_err(WorktreeError::io(WRITING, &file))?;
    }
    Ok(())
}

fn build_at(path: &Path, plan: &Plan<'_>) -> Result<(), WorktreeError> {
    fs::create_dir_all(path).map_err(WorktreeError::io("making the working tree", path))?;
    let git_dir = path.join(".git");
    lay_out(&git_dir, plan)?;
    let failed = || WorktreeError::git("checking out the working tree");
    let repository = Repository::open(path).map_err(failed())?;
    repository
        .set_config(&git2::Config::open(&git_dir.join("config")).map_err(failed())?)
        .map_err(failed())?;
    measure(&repository, plan)?;
    let commit = repository.find_commit(plan.tip).map_err(failed())?;
    let mut checkout = CheckoutBuilder::new();
    checkout.force();
    repository
        .checkout_tree(commit.as_object(), Some(&mut checkout))
        .map_err(|error| match error.class() {
            // The only configuration that is read here and is not ours is `.gitmodules`.
            ErrorClass::Submodule | ErrorClass::Config => WorktreeError::RepositoryUnsound {
                repository: plan.repository.clone(),
                detail: format!("git refuses its .gitmodules: {}", told(error.message())),
            },
            _ => failed()(error),
        })
}

/// A few objects can be more paths than there is room for.
fn measure(repository: &Repository, plan: &Plan<'_>) -> Result<(), WorktreeError> {
    let measured = Trees::new(plan.limits).of_commit(repository, plan.tip);
    measured.map_err(|error| match error {
        WorktreeError::TooLarge { .. } => WorktreeError::RepositoryUnsound {
            repository: plan.repository.clone(),
            detail: error.to_string(),
        },
        error => error,
    })
}

fn config(plan: &Plan<'_>) -> String {
    // A RepositoryUrl has no quote, no backslash and no line break to escape here.
    format!(
        "\
[core]
\trepositoryformatversion = 0
\tfilemode = true
\tbare = false
\tlogallrefupdates = true
\tfsmonitor = false
[user]
\tname = Mosaic agent {agent}
\temail = {agent}@agents.mosaic.invalid
[gc]
\tauto = 0
[maintenance]
\tauto = false
[remote \"origin\"]
\turl = \"{url}\"
\tfetch = +refs/heads/*:refs/remotes/origin/*
",
        agent = plan.agent,
        url = plan.repository.as_str().replace('"', "%22"),
    )
}
