//! A source repository, an agent that uses git as agents do, and the questions the tests ask.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use mosaic_orchestrator::worktree::{
    BranchName, HarvestRequest, Landing, Prepared, RepositoryUrl, WorkResult, WorktreeConfig,
    WorktreeError, Worktrees,
};
use mosaic_types::AgentId;
use tempfile::TempDir;

pub(super) const NOW: i64 = 1_800_000_000;

/// Runs git without the machine's configuration.
pub(super) fn git_output(dir: &Path, arguments: &[&str]) -> Output {
    Command::new("git")
        .args([
            "-c",
            "init.defaultBranch=main",
            "-c",
            "protocol.file.allow=always",
        ])
        .args(arguments)
        .current_dir(dir)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("HOME", "/nonexistent")
        .env("LC_ALL", "C")
        .env("GIT_AUTHOR_DATE", "1700000000 +0200")
        .env("GIT_COMMITTER_DATE", "1700000000 +0200")
        .output()
        .unwrap()
}

pub(super) fn git(dir: &Path, arguments: &[&str]) -> String {
    let output = git_output(dir, arguments);
    assert!(
        output.status.success(),
        "git {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned()
}

pub(super) fn write(dir: &Path, name: &str, content: impl AsRef<[u8]>) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Commits everything as somebody.
pub(super) fn commit_all(dir: &Path, message: &str) -> String {
    git(dir, &["add", "-A"]);
    git(
        dir,
        &[
            "-c",
            "user.name=Someone",
            "-c",
            "user.email=s@example.org",
            "commit",
            "-q",
            "-m",
            message,
        ],
    );
    git(dir, &["rev-parse", "HEAD"])
}

pub(super) struct World {
    pub(super) dir: TempDir,
    pub(super) worktrees: Worktrees,
    pub(super) source: PathBuf,
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(super) async fn with(adjust: impl FnOnce(&mut WorktreeConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        fs::create_dir(&source).unwrap();
        git(&source, &["init", "-q"]);
        write(&source, "README", "hello\nworld\n");
        write(&source, "src/a.txt", "one\ntwo\nthree\n");
        write(&source, ".gitignore", "target/\n*.log\n");
        commit_all(&source, "first");
        let mut config = WorktreeConfig::new(&dir.path().join("data"));
        adjust(&mut config);
        let worktrees = Worktrees::open(config).await.unwrap();
        Self {
            dir,
            worktrees,
            source,
        }
    }

    pub(super) fn url(&self) -> RepositoryUrl {
        RepositoryUrl::parse(&format!("file://{}", self.source.display())).unwrap()
    }

    pub(super) fn mirror(&self) -> PathBuf {
        self.worktrees.mirror_path(&self.url())
    }

    pub(super) async fn prepare(&self) -> (AgentId, Prepared) {
        let agent = AgentId::generate();
        let prepared = self.try_prepare(&agent, "main").await.unwrap();
        (agent, prepared)
    }

    pub(super) async fn try_prepare(
        &self,
        agent: &AgentId,
        branch: &str,
    ) -> Result<Prepared, WorktreeError> {
        self.worktrees
            .prepare(
                agent,
                &self.url(),
                &BranchName::parse(branch).unwrap(),
                || {},
            )
            .await
    }

    pub(super) async fn harvest(&self, agent: AgentId) -> WorkResult {
        self.bring_home(agent, Landing::Branch).await
    }

    pub(super) async fn salvage(&self, agent: AgentId) -> WorkResult {
        self.bring_home(agent, Landing::Salvage).await
    }

    async fn bring_home(&self, agent: AgentId, landing: Landing) -> WorkResult {
        let request = HarvestRequest {
            agent,
            now_secs: NOW,
            landing,
        };
        self.worktrees.harvest(&request).await.unwrap()
    }

    /// A ref of the mirror, as git sees it.
    pub(super) fn mirror_tip(&self, reference: &str) -> Option<String> {
        let output = git_output(&self.mirror(), &["rev-parse", "--verify", "-q", reference]);
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    pub(super) fn fsck(&self) {
        let said = git_output(
            &self.mirror(),
            &["fsck", "--full", "--strict", "--no-dangling"],
        );
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&said.stdout),
            String::from_utf8_lossy(&said.stderr)
        );
        assert!(
            said.status.success()
                && text
                    .lines()
                    .all(|line| line.starts_with("notice: HEAD points to an unborn branch")),
            "{text}"
        );
    }
}

/// A harvest that may be refused.
pub(super) async fn try_harvest(
    world: &World,
    agent: AgentId,
) -> Result<WorkResult, WorktreeError> {
    let request = HarvestRequest {
        agent,
        now_secs: NOW,
        landing: Landing::Branch,
    };
    world.worktrees.harvest(&request).await
}

/// The agent's own commit, by its own configured identity.
pub(super) fn agent_commit(work: &Path, message: &str) -> String {
    git(work, &["add", "-A"]);
    git(work, &["commit", "-q", "-m", message]);
    git(work, &["rev-parse", "HEAD"])
}
