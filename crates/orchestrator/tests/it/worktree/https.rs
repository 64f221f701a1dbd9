//! A remote over https, with a real git server behind real TLS, and what becomes of work when it is in trouble.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use data_encoding::BASE64;
use mosaic_orchestrator::worktree::{
    BranchName, Credential, CredentialKind, HarvestRequest, Landing, PushResult, PushRule,
    RepositoryUrl, WorktreeConfig, WorktreeError, Worktrees,
};
use mosaic_types::{AgentId, ErrorCode};
use tokio::io::AsyncReadExt;

use super::support::*;
use crate::{
    git_server::{GitServer, Trouble, USER},
    rig::PATIENCE,
    sandbox::rig::write_program,
};

const TOKEN: &str = "t0ken-of-the-spoke";
/// For what is to succeed.
const LONG_SECS: u64 = 60;
/// For what hangs.
const SHORT_SECS: u64 = 2;
/// How much of what a fetch or a push is answered is sent before the trouble begins.
const SOME_BYTES: usize = 100_000;

const FETCH_REFS: &str = "info/refs?service=git-upload-pack";
const FETCH_PACK: &str = "POST /bare.git/git-upload-pack";
const PUSH_REFS: &str = "info/refs?service=git-receive-pack";
const PUSH_PACK: &str = "POST /bare.git/git-receive-pack";

/// A server with one bare repository, and a spoke's trees of it.
struct Remote {
    world: World,
    server: GitServer,
    config: WorktreeConfig,
    worktrees: Worktrees,
    url: RepositoryUrl,
}

impl Remote {
    async fn new() -> Option<Self> {
        let world = World::new().await;
        let dir = world.dir.path();
        // So many objects that git keeps them as a pack, and so much that it is sent in pieces.
        for n in 0..150 {
            write(&world.source, &format!("many/{n}"), n.to_string());
        }
        write(&world.source, "large", noise(1 << 20));
        commit_all(&world.source, "much");
        git(dir, &["clone", "-q", "--bare", "source", "bare.git"]);
        let server = GitServer::start(dir, TOKEN)?;
        let config = config(dir, &server);
        let url = RepositoryUrl::parse(&server.url("bare.git")).unwrap();
        Some(Self {
            worktrees: Worktrees::open(config.clone()).await.unwrap(),
            config,
            world,
            server,
            url,
        })
    }

    /// Fetches for the first time what is in such trouble, which fails with this; and then again without it.
    async fn not_fetched(&self, part: &str, trouble: Trouble, code: ErrorCode, says: &str) {
        let dir = self.world.dir.path().join(AgentId::generate().to_string());
        let data = WorktreeConfig::new(&dir);
        let mut config = WorktreeConfig {
            mirrors_dir: data.mirrors_dir,
            agents_dir: data.agents_dir,
            ..self.config.clone()
        };
        let newcomer = Worktrees::open(config.clone()).await.unwrap();
        if matches!(trouble, Trouble::Stuck(_)) {
            config.fetch_timeout_secs = SHORT_SECS;
        }
        let troubled = Worktrees::open(config).await.unwrap();
        self.server.trouble(part, trouble);
        fails(prepare(&troubled, &self.url, "main").await, code, says);
        self.server.calm();
        let mirror = newcomer.mirror_path(&self.url);
        assert_eq!(unfinished(&mirror), Vec::<PathBuf>::new());
        prepare(&newcomer, &self.url, "main").await.unwrap();
        git(&mirror, &["fsck", "--full", "--strict"]);
    }

    fn bare(&self) -> PathBuf {
        self.world.dir.path().join("bare.git")
    }

    async fn prepare(&self, branch: &str) -> Result<AgentId, WorktreeError> {
        prepare(&self.worktrees, &self.url, branch).await
    }

    /// An agent that was prepared, has worked and is home.
    async fn with_work(&self) -> (AgentId, String) {
        let agent = self.prepare("main").await.unwrap();
        let work = self.worktrees.workdir(&agent);
        write(&work, "made", noise(2 << 20));
        agent_commit(&work, "made");
        let request = HarvestRequest {
            agent,
            now_secs: NOW,
            landing: Landing::Branch,
        };
        let result = self.worktrees.harvest(&request).await.unwrap();
        (agent, result.head_commit)
    }

    /// Pushes, which is not to succeed; why it has not.
    async fn not_pushed(&self, agent: AgentId) -> String {
        let pushed = self.worktrees.push(&agent).await.unwrap().unwrap();
        let why = pushed.why_not.expect("it is not pushed");
        no_credential(&why);
        why
    }

    /// Pushes, and looks for the commit there.
    async fn pushed(&self, agent: AgentId, commit: &str) {
        let reference = there(agent);
        let expected = PushResult {
            reference: reference.clone(),
            commit: commit.to_owned(),
            why_not: None,
        };
        let pushed = self.worktrees.push(&agent).await.unwrap();
        assert_eq!(pushed, Some(expected));
        assert_eq!(git(&self.bare(), &["rev-parse", &reference]), commit);
    }

    /// What the repository has of an agent's branch.
    fn has(&self, agent: AgentId) -> String {
        let reference = there(agent);
        git(
            &self.bare(),
            &["for-each-ref", "--format=%(objectname)", &reference],
        )
    }

    /// The work is on its branch here, whole.
    fn is_kept(&self, agent: AgentId, commit: &str) {
        let mirror = self.worktrees.mirror_path(&self.url);
        let branch = format!("refs/heads/mosaic/{agent}");
        assert_eq!(git(&mirror, &["rev-parse", &branch]), commit);
        git(&mirror, &["fsck", "--full", "--strict"]);
    }
}

/// The agent's branch as the repository is to call it.
fn there(agent: AgentId) -> String {
    format!("refs/heads/mosaic/{agent}")
}

fn config(dir: &Path, server: &GitServer) -> WorktreeConfig {
    let token_file = token_file(dir);
    fs::write(&token_file, format!("{TOKEN}\n")).unwrap();
    fs::set_permissions(&token_file, fs::Permissions::from_mode(0o600)).unwrap();
    let repositories = server.url("*");
    let mut config = WorktreeConfig::new(&dir.join("https-data"));
    config.git_program = server.git(dir);
    config.fetch_timeout_secs = LONG_SECS;
    config.credentials = vec![Credential {
        repositories: repositories.clone(),
        kind: CredentialKind::Token {
            user: USER.to_owned(),
            token_file,
        },
    }];
    config.pushes = vec![PushRule {
        repositories,
        branch_prefix: "mosaic/".to_owned(),
        timeout_secs: LONG_SECS,
    }];
    config
}

fn token_file(dir: &Path) -> PathBuf {
    dir.join("token")
}

/// Bytes that do not get smaller.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(bytes).collect()
}

async fn prepare(
    worktrees: &Worktrees,
    url: &RepositoryUrl,
    branch: &str,
) -> Result<AgentId, WorktreeError> {
    let agent = AgentId::generate();
    let branch = BranchName::parse(branch).unwrap();
    worktrees
        .prepare(&agent, url, &branch, || {})
        .await
        .map(|_| agent)
}

/// What git writes of a pack before it is one.
fn unfinished(mirror: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(mirror.join("objects/pack")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| {
            path.file_name()
                .unwrap()
                .as_encoded_bytes()
                .starts_with(b"tmp_")
        })
        .collect()
}

/// Neither the token nor what stands for it on the wire.
fn no_credential(text: &str) {
    let basic = BASE64.encode(format!("{USER}:{TOKEN}").as_bytes());
    for secret in [TOKEN, &basic] {
        assert!(!text.contains(secret), "{text}");
    }
}

/// A failure that says this, is of this code and holds no credential.
fn fails(result: Result<AgentId, WorktreeError>, code: ErrorCode, says: &str) {
    let error = result.unwrap_err();
    let text = format!("{error} {error:?}");
    no_credential(&text);
    let told = (error.code(), error.field(), error.retryable());
    let retryable = code == ErrorCode::RepositoryUnavailable;
    let expected = (code, Some("context.repository"), retryable);
    assert_eq!(told, expected, "{error}");
    assert!(error.to_string().contains(says), "{error}");
}

#[tokio::test]
async fn a_branch_is_fetched_and_pushed_over_https() {
    let Some(remote) = Remote::new().await else {
        return;
    };
    remote.prepare("HEAD").await.unwrap();
    let error = remote.prepare("nope").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::UnknownBranch);
    let gone = RepositoryUrl::parse(&remote.server.url("gone.git")).unwrap();
    let missing = prepare(&remote.worktrees, &gone, "main").await;
    fails(missing, ErrorCode::UnknownRepository, "does not exist");

    let (agent, commit) = remote.with_work().await;
    // Twice is as good as once.
    remote.pushed(agent, &commit).await;
    remote.pushed(agent, &commit).await;
    // What somebody else put there stays.
    let (other, _) = remote.with_work().await;
    git(&remote.bare(), &["update-ref", &there(other), &commit]);
    let why = remote.not_pushed(other).await;
    let refused = "refuses the branch: it has another one of that name";
    assert!(why.ends_with(refused), "{why}");
    assert_eq!(remote.has(other), commit);
    // So does a repository whose hook wants nothing.
    let (third, _) = remote.with_work().await;
    let hook = remote.bare().join("hooks/pre-receive");
    let talk = "for i in $(seq 100); do echo we take nothing today; done";
    write_program(&hook, &format!("#!/bin/sh\n{talk}\nexit 1\n"));
    let why = remote.not_pushed(third).await;
    let refused = "refuses the branch: pre-receive hook declined";
    assert!(why.ends_with(refused), "{why}");
}

#[tokio::test]
async fn a_wrong_credential_is_denied_and_the_work_is_pushed_with_the_right_one() {
    let Some(remote) = Remote::new().await else {
        return;
    };
    let (agent, commit) = remote.with_work().await;
    let file = token_file(remote.world.dir.path());
    let asked = remote.server.asked("");
    fs::write(&file, "another").unwrap();
    let refused = remote.prepare("main").await;
    let says = "does not take the credential";
    fails(refused, ErrorCode::UnknownRepository, says);
    let why = remote.not_pushed(agent).await;
    assert!(why.contains(says), "{why}");
    let mut without = remote.config.clone();
    without.credentials.clear();
    let without = Worktrees::open(without).await.unwrap();
    let refused = prepare(&without, &remote.url, "main").await;
    fails(refused, ErrorCode::UnknownRepository, "none is configured");
    assert_eq!(remote.server.asked(""), asked);
    remote.is_kept(agent, &commit);
    fs::write(&file, TOKEN).unwrap();
    remote.pushed(agent, &commit).await;
}

#[tokio::test]
async fn a_server_that_repeats_the_credential_tells_it_to_nobody_else() {
    let Some(remote) = Remote::new().await else {
        return;
    };
    let (agent, commit) = remote.with_work().await;
    for (status, code) in [
        (403, ErrorCode::UnknownRepository),
        (500, ErrorCode::RepositoryUnavailable),
    ] {
        let repeated = Trouble::Repeated(status);
        remote
            .not_fetched("GET ", repeated.clone(), code, "[redacted]")
            .await;
        remote.server.trouble("GET ", repeated);
        let why = remote.not_pushed(agent).await;
        assert!(why.contains("[redacted]"), "{why}");
        remote.server.calm();
    }
    remote.is_kept(agent, &commit);
    remote.pushed(agent, &commit).await;
}

#[tokio::test]
async fn a_server_of_an_unknown_ca_or_of_another_name_is_sent_nothing() {
    let Some(remote) = Remote::new().await else {
        return;
    };
    let dir = remote.world.dir.path();
    let (agent, commit) = remote.with_work().await;
    let Some(stranger) = GitServer::start(dir, TOKEN) else {
        return;
    };
    let mut config = remote.config.clone();
    config.credentials[0].repositories = "https://**".to_owned();
    let worktrees = Worktrees::open(config).await.unwrap();
    let asked = remote.server.asked("");
    let by_name = remote.url.as_str().replace("127.0.0.1", "localhost");
    for url in [stranger.url("bare.git"), by_name] {
        let url = RepositoryUrl::parse(&url).unwrap();
        let refused = prepare(&worktrees, &url, "main").await;
        fails(refused, ErrorCode::RepositoryUnavailable, "certificate");
    }
    assert!(stranger.connections() > 0);
    // From here on git knows the stranger's CA in place of the server's.
    stranger.git(dir);
    let why = remote.not_pushed(agent).await;
    assert!(why.contains("certificate"), "{why}");
    assert_eq!((stranger.asked(""), remote.server.asked("")), (0, asked));
    remote.is_kept(agent, &commit);
    remote.server.git(dir);
    remote.pushed(agent, &commit).await;
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let Some(remote) = Remote::new().await else {
        return;
    };
    let (agent, commit) = remote.with_work().await;
    let Some(elsewhere) = GitServer::start(remote.world.dir.path(), TOKEN) else {
        return;
    };
    let redirected = |part: &str| {
        let path = part.trim_start_matches("POST /bare.git/");
        Trouble::Redirected(elsewhere.url(&format!("bare.git/{path}")))
    };
    let unavailable = ErrorCode::RepositoryUnavailable;
    for part in [FETCH_REFS, FETCH_PACK] {
        remote
            .not_fetched(
                part,
                redirected(part),
                unavailable,
                "redirects, which is not followed",
            )
            .await;
    }
    for part in [PUSH_REFS, PUSH_PACK] {
        remote.server.trouble(part, redirected(part));
        let why = remote.not_pushed(agent).await;
        assert!(why.contains("redirects, which is not followed"), "{why}");
        remote.server.calm();
    }
    assert_eq!(elsewhere.connections(), 0);
    assert_eq!(remote.has(agent), "");
    remote.is_kept(agent, &commit);
    remote.pushed(agent, &commit).await;
}

#[tokio::test]
async fn a_connection_that_breaks_is_told_of_and_leaves_nothing_half_done() {
    let Some(remote) = Remote::new().await else {
        return;
    };
    let (agent, commit) = remote.with_work().await;
    let unavailable = ErrorCode::RepositoryUnavailable;
    for (part, trouble) in [
        (FETCH_REFS, Trouble::Unheard),
        (FETCH_REFS, Trouble::Cut(10)),
        (FETCH_PACK, Trouble::Unheard),
        (FETCH_PACK, Trouble::Cut(SOME_BYTES)),
    ] {
        remote
            .not_fetched(part, trouble, unavailable, "cannot be reached")
            .await;
    }
    for (part, trouble) in [
        (PUSH_REFS, Trouble::Unheard),
        (PUSH_REFS, Trouble::Cut(10)),
        (PUSH_PACK, Trouble::Unheard),
    ] {
        remote.server.trouble(part, trouble);
        let why = remote.not_pushed(agent).await;
        assert!(why.contains("cannot be reached"), "{why}");
        remote.server.calm();
        assert_eq!(remote.has(agent), "");
    }
    remote.is_kept(agent, &commit);
    remote.pushed(agent, &commit).await;
    // What a git has left that was killed goes with the next fetch.
    let mirror = remote.worktrees.mirror_path(&remote.url);
    fs::write(mirror.join("objects/pack/tmp_pack_left"), "PACK").unwrap();
    remote.prepare("main").await.unwrap();
    assert_eq!(unfinished(&mirror), Vec::<PathBuf>::new());
}

/// What the repository has is not told to be missing.
#[tokio::test]
async fn a_push_whose_answer_is_lost_is_asked_after() {
    let Some(remote) = Remote::new().await else {
        return;
    };
    for bytes in [0, 10] {
        let (agent, commit) = remote.with_work().await;
        remote.server.trouble(PUSH_PACK, Trouble::Cut(bytes));
        remote.pushed(agent, &commit).await;
        remote.server.calm();
        remote.pushed(agent, &commit).await;
    }
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_in_time() {
    let Some(remote) = Remote::new().await else {
        return;
    };
    let (agent, commit) = remote.with_work().await;
    let unavailable = ErrorCode::RepositoryUnavailable;
    let exceeded = format!("exceeded {SHORT_SECS} s");
    for (part, bytes) in [(FETCH_REFS, 10), (FETCH_PACK, SOME_BYTES)] {
        let stuck = Trouble::Stuck(bytes);
        remote
            .not_fetched(part, stuck, unavailable, &exceeded)
            .await;
        remote.server.until_stuck(0).await;
    }
    let mut config = remote.config.clone();
    config.fetch_timeout_secs = SHORT_SECS;
    config.pushes[0].timeout_secs = SHORT_SECS;
    let impatient = Worktrees::open(config).await.unwrap();
    for part in [PUSH_REFS, PUSH_PACK] {
        remote.server.trouble(part, Trouble::Stuck(0));
        let pushed = impatient.push(&agent).await.unwrap().unwrap();
        let why = format!("it took longer than {SHORT_SECS} s");
        assert_eq!(pushed.why_not, Some(why));
        remote.server.until_stuck(0).await;
        remote.server.calm();
    }
    // One that takes a connection and never says a word.
    let mute = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("https://{}/bare.git", mute.local_addr().unwrap());
    let url = RepositoryUrl::parse(&url).unwrap();
    fails(
        prepare(&impatient, &url, "main").await,
        unavailable,
        &exceeded,
    );
    remote.is_kept(agent, &commit);
    remote.pushed(agent, &commit).await;
}

/// As when its agent is killed: what hangs holds up nobody, and its processes end with it.
#[tokio::test]
async fn a_fetch_that_nobody_waits_for_any_more_ends_with_all_its_processes() {
    let dir = tempfile::tempdir().unwrap();
    let config = WorktreeConfig::new(dir.path());
    let worktrees = Worktrees::open(config).await.unwrap();
    let mute = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await;
    let mute = mute.unwrap();
    let url = format!("https://{}/bare.git", mute.local_addr().unwrap());
    let url = RepositoryUrl::parse(&url).unwrap();
    let mut stream = tokio::select! {
        prepared = prepare(&worktrees, &url, "main") => panic!("{prepared:?}"),
        accepted = mute.accept() => accepted.unwrap().0,
    };
    // Whoever has the connection is not git itself, but what it has started.
    let mut said = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await;
    assert!(ended.is_ok(), "it still waits for an answer");
}
