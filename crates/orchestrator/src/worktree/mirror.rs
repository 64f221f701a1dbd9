//! The mirror: one bare repository per remote repository, owned and written by the host alone.
//!
//! ```text
//! refs/remotes/origin/*            the remote's branches, as of the last fetch
//! refs/tags/*                      the remote's tags
//! refs/heads/mosaic/<agent>        an agent's commits
//! refs/mosaic/salvage/<agent>      what a killed agent had not committed
//! refs/mosaic/agents/<agent>/*     its other refs, stashes, and unfinished operations
//! refs/mosaic/previous/<agent>/*   tips that one of the above had before and does not contain now
//! ```
//!
//! Nothing is ever pruned or repacked here: the agents' repositories borrow these objects.

use std::{
    cell::Cell,
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use git2::{
    AutotagOption, Config, Direction, ErrorCode, FetchOptions, FetchPrune, Oid, RemoteCallbacks,
    Repository, RepositoryInitOptions,
};
use mosaic_types::AgentId;

use super::{
    address::{BranchName, RepositoryUrl},
    error::WorktreeError,
    trees::Trees,
};

const CONFIG: &str = "\
[core]
\trepositoryformatversion = 0
\tbare = true
\thooksPath = /dev/null
\tattributesFile = /dev/null
\texcludesFile = /dev/null
\tlogAllRefUpdates = false
[gc]
\tauto = 0
[maintenance]
\tauto = false
";

/// Settings that libgit2 knows and the git CLI warns about.
const LIBGIT2_CONFIG: &str = "\
[core]
\tfsyncObjectFiles = true
";
const LIBGIT2_CONFIG_NAME: &str = "libgit2.config";

/// What is fetched, for both transports.
pub(super) const REFSPECS: [&str; 2] = [
    "+refs/heads/*:refs/remotes/origin/*",
    "+refs/tags/*:refs/tags/*",
];

pub(super) fn agent_ref(agent: &AgentId) -> String {
    format!("refs/heads/mosaic/{agent}")
}

pub(super) fn salvage_ref(agent: &AgentId) -> String {
    format!("refs/mosaic/salvage/{agent}")
}

/// Opens a repository of the host with *only* its own configuration file: what the machine's users
/// configured must not change a patch.
pub(super) fn open_own(git_dir: &Path) -> Result<Repository, WorktreeError> {
    let failed = || WorktreeError::git("opening a repository of the host");
    let repository = Repository::open_bare(git_dir).map_err(failed())?;
    let mut config = Config::open(&git_dir.join("config")).map_err(failed())?;
    let more = git_dir.join(LIBGIT2_CONFIG_NAME);
    if more.exists() {
        config
            .add_file(&more, git2::ConfigLevel::App, false)
            .map_err(failed())?;
    }
    repository.set_config(&config).map_err(failed())?;
    Ok(repository)
}

/// Opens the mirror, making it first where it is missing. Wants the mirror's lock.
pub(super) fn open_or_create(path: &Path) -> Result<Repository, WorktreeError> {
    if !path.join("HEAD").exists() {
        let mut options = RepositoryInitOptions::new();
        options.bare(true).mkpath(true).external_template(false);
        Repository::init_opts(path, &options).map_err(WorktreeError::git("making the mirror"))?;
    }
    for (name, text) in [("config", CONFIG), (LIBGIT2_CONFIG_NAME, LIBGIT2_CONFIG)] {
        let config = path.join(name);
        if fs::read(&config).ok().as_deref() != Some(text.as_bytes()) {
            fs::write(&config, text)
                .map_err(WorktreeError::io("configuring the mirror", &config))?;
        }
    }
    open_own(path)
}

/// Fetches from a directory of this machine by libgit2, which runs nothing of the source's.
/// Answers with the remote's default branch, when it has one.
pub(super) fn fetch_local(
    mirror: &Repository,
    url: &RepositoryUrl,
    limit: Duration,
) -> Result<Option<BranchName>, WorktreeError> {
    let source = url.local_path().unwrap_or_default();
    readable_directory(url, &source)?;
    let source = open_source(url, &source)?;
    let deadline = Instant::now().checked_add(limit);
    let timed_out = Cell::new(false);
    let in_time = || {
        let late = deadline.is_some_and(|deadline| Instant::now() > deadline);
        timed_out.set(timed_out.get() || late);
        !late
    };
    let failed = |error: git2::Error| {
        if timed_out.get() {
            WorktreeError::FetchTimedOut {
                repository: url.clone(),
                limit_secs: limit.as_secs(),
            }
        } else {
            not_fetched(url, error)
        }
    };
    let mut remote = mirror
        .remote_anonymous(url.as_str())
        .map_err(WorktreeError::git("configuring the mirror"))?;
    remote.connect(Direction::Fetch).map_err(failed)?;
    let default = remote.default_branch().ok().and_then(|name| {
        let text = std::str::from_utf8(&name).ok()?;
        BranchName::parse(text.strip_prefix("refs/heads/")?).ok()
    });
    let heads = remote.list().map_err(failed)?;
    let tips: Vec<Oid> = heads.iter().map(git2::RemoteHead::oid).collect();
    let names: BTreeSet<Vec<u8>> = heads
        .iter()
        .map(|head| head.name().as_bytes().to_vec())
        .collect();
    remote.disconnect().map_err(failed)?;
    measure_news(mirror, &source, &tips, in_time).map_err(|error| match error {
        WorktreeError::Git { source, .. } => failed(source),
        WorktreeError::TooLarge { .. } => WorktreeError::RepositoryUnsound {
            repository: url.clone(),
            detail: error.to_string(),
        },
        error => error,
    })?;
    // Before the fetch: `a` that is gone must not be in the way of a new `a/b`.
    prune(mirror, &names)?;
    let mut callbacks = RemoteCallbacks::new();
    callbacks.transfer_progress(|_| in_time());
    let mut options = FetchOptions::new();
    options
        .remote_callbacks(callbacks)
        .prune(FetchPrune::Off)
        .update_fetchhead(false)
        .download_tags(AutotagOption::None);
    remote
        .fetch(&REFSPECS, Some(&mut options), None)
        .map_err(failed)?;
    Ok(default)
}

/// Looks at the trees of what a fetch would bring: libgit2 packs them in this process, by calls within calls, one for
/// each level. Where nothing is new there is nothing to look at.
fn measure_news(
    mirror: &Repository,
    source: &Repository,
    tips: &[Oid],
    in_time: impl Fn() -> bool,
) -> Result<(), WorktreeError> {
    let failed = || WorktreeError::git("looking at what is to be fetched");
    let present = mirror.odb().map_err(failed())?;
    let new = tips.iter().filter(|tip| !present.exists(**tip));
    let mut walk = source.revwalk().map_err(failed())?;
    let mut trees = Trees::of_any_size();
    let mut any = false;
    for tip in new {
        let object = source.find_object(*tip, None).map_err(failed())?;
        // A tag may be of anything.
        let object = match object.as_tag() {
            Some(tag) => tag.peel().map_err(failed())?,
            None => object,
        };
        match object.kind() {
            Some(git2::ObjectType::Commit) => {
                walk.push(object.id()).map_err(failed())?;
                any = true;
            }
            Some(git2::ObjectType::Tree) => trees.of_tree(source, object.id())?,
            _ => {}
        }
    }
    if !any {
        return Ok(());
    }
    // What came before was looked at then, wherever its branch is by now.
    for (_, tip) in remote_refs(mirror)? {
        let known = source.find_object(tip, None);
        if let Ok(commit) = known.and_then(|known| known.peel_to_commit()) {
            walk.hide(commit.id()).map_err(failed())?;
        }
    }
    for commit in walk {
        if !in_time() {
            return Err(failed()(git2::Error::from_str("it took too long")));
        }
        trees.of_commit(source, commit.map_err(failed())?)?;
    }
    Ok(())
}

/// Whether a directory of this machine is a repository that has the branch.
pub(super) fn check_local(url: &RepositoryUrl, branch: &BranchName) -> Result<(), WorktreeError> {
    let source = url.local_path().unwrap_or_default();
    readable_directory(url, &source)?;
    let repository = open_source(url, &source)?;
    let found = if branch.is_default() {
        repository.head().is_ok()
    } else {
        repository
            .find_reference(&format!("refs/heads/{branch}"))
            .is_ok()
    };
    if found {
        return Ok(());
    }
    let any = repository
        .references_glob("refs/heads/*")
        .map_err(WorktreeError::git("reading the repository's branches"))?
        .next()
        .is_some();
    Err(if any {
        WorktreeError::BranchNotFound {
            repository: url.clone(),
            branch: branch.clone(),
        }
    } else {
        WorktreeError::RepositoryEmpty {
            repository: url.clone(),
        }
    })
}

/// Opens a repository of this machine that is to be fetched from.
fn open_source(url: &RepositoryUrl, source: &Path) -> Result<Repository, WorktreeError> {
    let repository = Repository::open_ext(
        source,
        git2::RepositoryOpenFlags::NO_SEARCH,
        std::iter::empty::<&Path>(),
    )
    .map_err(|error| not_opened(url, error))?;
    // What is cut off there is missing for good: git could not walk the agent's history, nor we bring it home.
    if repository.is_shallow() {
        return Err(WorktreeError::RepositoryUnsound {
            repository: url.clone(),
            detail:
                "it is a shallow clone: fetch the rest of its history (`git fetch --unshallow`)"
                    .to_owned(),
        });
    }
    // To git it is none then, and libgit2 would only say in the middle of a fetch that something is missing.
    let unsound = |detail: String| WorktreeError::RepositoryUnsound {
        repository: url.clone(),
        detail,
    };
    let head = repository
        .find_reference("HEAD")
        .map_err(|_| unsound("its HEAD is unreadable".to_owned()))?;
    match head.target() {
        Some(id) if repository.find_object(id, None).is_err() => {
            Err(unsound(format!("its HEAD is {id}, which is not there")))
        }
        _ => {
            drop(head);
            Ok(repository)
        }
    }
}

/// Drops the names of the remote's branches and tags that it does not have any more; never an object.
fn prune(mirror: &Repository, remote: &BTreeSet<Vec<u8>>) -> Result<(), WorktreeError> {
    let failed = || WorktreeError::git("pruning the remote's branches");
    for (ours, theirs) in [
        ("refs/remotes/origin/", "refs/heads/"),
        ("refs/tags/", "refs/tags/"),
    ] {
        for reference in mirror
            .references_glob(&format!("{ours}*"))
            .map_err(failed())?
        {
            let mut reference = reference.map_err(failed())?;
            let short = reference.name_bytes().strip_prefix(ours.as_bytes());
            let there = [theirs.as_bytes(), short.unwrap_or_default()].concat();
            if !remote.contains(&there) {
                reference.delete().map_err(failed())?;
            }
        }
    }
    Ok(())
}

fn readable_directory(url: &RepositoryUrl, source: &Path) -> Result<(), WorktreeError> {
    const ELOOP: i32 = 40;
    let repository = url.clone();
    match fs::metadata(source) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(WorktreeError::NotARepository {
            repository,
            source: None,
        }),
        Err(error) if error.raw_os_error() == Some(ELOOP) => {
            Err(WorktreeError::RepositoryPathLoop { repository })
        }
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(WorktreeError::RepositoryDenied {
                repository,
                detail: "permission denied".to_owned(),
            })
        }
        Err(_) => Err(WorktreeError::RepositoryNotFound { repository }),
    }
}

fn not_opened(url: &RepositoryUrl, source: git2::Error) -> WorktreeError {
    let repository = url.clone();
    if source.code() == ErrorCode::Owner {
        WorktreeError::RepositoryForeignOwner { repository }
    } else {
        WorktreeError::NotARepository {
            repository,
            source: Some(source),
        }
    }
}

fn not_fetched(url: &RepositoryUrl, error: git2::Error) -> WorktreeError {
    if error.code() == ErrorCode::Owner {
        return WorktreeError::RepositoryForeignOwner {
            repository: url.clone(),
        };
    }
    match WorktreeError::git("fetching")(error) {
        WorktreeError::Git { source, .. } => WorktreeError::RepositoryUnreachable {
            repository: url.clone(),
            detail: source.message().chars().take(300).collect(),
        },
        other => other,
    }
}

/// The commit of a branch in the mirror, as of the last fetch.
pub(super) fn resolve(
    mirror: &Repository,
    url: &RepositoryUrl,
    branch: &BranchName,
    default: Option<&BranchName>,
) -> Result<Oid, WorktreeError> {
    let wanted = if branch.is_default() {
        default
    } else {
        Some(branch)
    };
    let found = wanted.and_then(|name| {
        let reference = mirror
            .find_reference(&format!("refs/remotes/origin/{name}"))
            .ok()?;
        Some(reference.peel_to_commit().ok()?.id())
    });
    if let Some(found) = found {
        return Ok(found);
    }
    let any = mirror
        .references_glob("refs/remotes/origin/*")
        .map_err(WorktreeError::git("reading the mirror's branches"))?
        .next()
        .is_some();
    Err(if any {
        WorktreeError::BranchNotFound {
            repository: url.clone(),
            branch: branch.clone(),
        }
    } else {
        WorktreeError::RepositoryEmpty {
            repository: url.clone(),
        }
    })
}

/// The remote's branches and tags in the mirror, as (name, target).
pub(super) fn remote_refs(mirror: &Repository) -> Result<Vec<(Vec<u8>, Oid)>, WorktreeError> {
    let failed = || WorktreeError::git("reading the mirror's branches");
    let mut refs = Vec::new();
    for glob in ["refs/remotes/origin/*", "refs/tags/*"] {
        for reference in mirror.references_glob(glob).map_err(failed())? {
            let reference = reference.map_err(failed())?;
            if let Some(target) = reference.target() {
                refs.push((reference.name_bytes().to_vec(), target));
            }
        }
    }
    refs.sort();
    Ok(refs)
}

pub(super) fn objects_dir(mirror: &Path) -> PathBuf {
    mirror.join("objects")
}
