//! A whole spoke whose repositories are on a git server over https: work goes to and fro, and the spoke's credential is
//! in nothing that anybody reads.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use data_encoding::BASE64;
use mosaic_types::{
    AgentId,
    agent::{AgentStatus, EndReason, ObservedState},
};
use reqwest::{Method, StatusCode};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    git_server::{GitServer, Trouble, USER},
    rig::{Spoke, git},
};

const WORK: &str = "echo work > work; git add work; git commit -qm work";
const PUSH: &str = "service=git-receive-pack";
const FETCH: &str = "service=git-upload-pack";

/// A spoke of its own process, which logs all that it can, and a server with a repository.
struct Remote {
    folder: TempDir,
    token: String,
    server: GitServer,
    spoke: Spoke,
}

impl Remote {
    async fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        git(dir, &["init", "-q", "-b", "main", "source"]);
        git(
            &dir.join("source"),
            &["commit", "-q", "--allow-empty", "-m", "first"],
        );
        git(dir, &["clone", "-q", "--bare", "source", "bare.git"]);
        let token = format!("token-{}", AgentId::generate());
        let server = GitServer::start(dir, &token)?;
        let token_file = dir.join("token");
        fs::write(&token_file, &token).unwrap();
        fs::set_permissions(&token_file, fs::Permissions::from_mode(0o600)).unwrap();
        let repositories = server.url("*");
        let settings = format!(
            "[[git-credentials]]\nrepositories = {repositories:?}\ntype = \"token\"\nuser = {USER:?}\n\
             token-file = {token_file:?}\n[[push]]\nrepositories = {repositories:?}\n"
        );
        let programs = dir.join("programs");
        fs::create_dir(&programs).unwrap();
        server.git(&programs);
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}", programs.display());
        let log = File::create(dir.join("log")).unwrap();
        let spoke = Spoke::start_process_as(&settings, |command| {
            command
                .env("RUST_LOG", "trace")
                .env("PATH", path)
                .stderr(log);
        })
        .await;
        Some(Self {
            folder,
            token,
            server,
            spoke,
        })
    }

    async fn spawn(&self) -> AgentId {
        let agent = AgentId::generate();
        let mut body = self.spoke.spawn_body(agent, WORK);
        body["context"]["repository"] = json!(self.server.url("bare.git"));
        body["options"] = json!({ "push": true, "maxRetries": 1 });
        let (code, answer) = self
            .spoke
            .call(Method::POST, "/agents/spawn", Some(body))
            .await;
        assert_eq!(code, StatusCode::ACCEPTED, "{answer}");
        agent
    }

    async fn finished(&self) -> (AgentId, AgentStatus) {
        let agent = self.spawn().await;
        (agent, self.spoke.finished(agent).await)
    }

    /// The repository's branches.
    fn branches(&self) -> String {
        let format = "--format=%(objectname) %(refname)";
        git(
            &self.folder.path().join("bare.git"),
            &["for-each-ref", format],
        )
    }

    /// Neither the token nor what stands for it on the wire is in anything that the spoke says or keeps.
    async fn tells_nobody(&self, agents: &[AgentId]) {
        let mut seen = Vec::new();
        for agent in agents {
            let events = self.spoke.follow(*agent, None, |_| false).await;
            seen.push((format!("events of {agent}"), events.into_bytes()));
        }
        let of_agents = agents
            .iter()
            .flat_map(|agent| ["status", "result"].map(|what| format!("/agents/{agent}/{what}")));
        let others = ["/agents", "/api/v1/audit?limit=1000"].map(str::to_owned);
        for path in of_agents.chain(others) {
            let (_, answer) = self.spoke.call(Method::GET, &path, None).await;
            seen.push((path, answer.to_string().into_bytes()));
        }
        files(self.spoke.data_dir(), &mut seen);
        let log = fs::read(self.folder.path().join("log")).unwrap();
        assert!(holds(&log, "TRACE"));
        seen.push(("log".to_owned(), log));
        for secret in self.secrets() {
            for (name, text) in &seen {
                assert!(!holds(text, &secret), "{name} holds {secret}");
            }
        }
    }

    fn secrets(&self) -> [String; 2] {
        let basic = BASE64.encode(format!("{USER}:{}", self.token).as_bytes());
        // Without its last letters, which depend on what follows.
        [self.token.clone(), basic[..basic.len() - 4].to_owned()]
    }

    /// No process has it on its command line, by which every user of the machine would see it.
    fn on_no_command_line(&self) {
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            for secret in self.secrets() {
                assert!(!holds(&command, &secret), "{:?} shows it", entry.path());
            }
        }
    }
}

fn holds(text: &[u8], part: &str) -> bool {
    text.windows(part.len())
        .any(|found| found == part.as_bytes())
}

/// Every file below a folder.
fn files(dir: &Path, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files(&path, found);
        } else if kind.is_file() {
            found.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
}

#[tokio::test]
async fn work_comes_and_goes_over_https_and_the_credential_is_told_to_nobody() {
    let Some(remote) = Remote::start().await else {
        return;
    };
    let (pushed, status) = remote.finished().await;
    assert_eq!(status.state, ObservedState::Completed, "{status:#?}");
    let work = status.work.unwrap();
    let push = work.pushed.unwrap();
    assert_eq!((push.why_not, &push.commit), (None, &work.head_commit));
    let branches = remote.branches();
    assert!(
        branches.contains(&format!("{} {}", push.commit, push.git_ref)),
        "{branches}"
    );

    // What the server does not take is here all the same, and it is said why.
    remote.server.trouble(PUSH, Trouble::Repeated(403));
    let (refused, status) = remote.finished().await;
    remote.server.calm();
    assert_eq!(status.state, ObservedState::Completed, "{status:#?}");
    let work = status.work.unwrap();
    let why = work.pushed.unwrap().why_not.unwrap();
    assert!(why.contains("403") && why.contains("[redacted]"), "{why}");
    assert_eq!(
        git(&remote.spoke.mirror(), &["rev-parse", &work.git_ref]),
        work.head_commit
    );
    let result = format!("/agents/{refused}/result");
    let (code, result) = remote.spoke.call(Method::GET, &result, None).await;
    assert_eq!(code, StatusCode::OK, "{result}");
    assert!(
        result["patch"]["content"]
            .as_str()
            .is_some_and(|patch| patch.contains("+work")),
        "{result}"
    );
    assert_eq!(remote.branches(), branches);

    // What cannot be fetched is tried again if that may help, and then fails by name.
    let mut failed = Vec::new();
    for (answer, attempts) in [(403, 1), (500, 2)] {
        remote.server.trouble(FETCH, Trouble::Repeated(answer));
        let (agent, status) = remote.finished().await;
        remote.server.calm();
        let ended = (status.reason, status.attempt);
        assert_eq!(
            ended,
            (Some(EndReason::SpawnFailed), attempts),
            "{status:#?}"
        );
        let detail = status.detail.unwrap();
        assert!(
            detail.contains(remote.server.url("bare.git").as_str()),
            "{detail}"
        );
        assert!(detail.contains("[redacted]"), "{detail}");
        failed.push(agent);
    }
    remote
        .tells_nobody(&[vec![pushed, refused], failed].concat())
        .await;
    remote.spoke.stop().await;
}

#[tokio::test]
async fn a_kill_does_not_wait_for_a_server_that_hangs() {
    let Some(remote) = Remote::start().await else {
        return;
    };
    remote.server.trouble(FETCH, Trouble::Stuck(10));
    let agent = remote.spawn().await;
    remote.server.until_stuck(1).await;
    remote.on_no_command_line();
    remote.spoke.kill(agent).await;
    let status = remote.spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Killed, "{status:#?}");
    remote.server.until_stuck(0).await;
    remote.server.calm();
    let (next, status) = remote.finished().await;
    assert_eq!(status.state, ObservedState::Completed, "{status:#?}");
    remote.tells_nobody(&[agent, next]).await;
    remote.spoke.stop().await;
}
