//! Remotes over ssh and https, with the real git CLI.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use mosaic_orchestrator::worktree::{
    BranchName, Credential, CredentialKind, RepositoryUrl, WorktreeConfig, WorktreeError, Worktrees,
};
use mosaic_types::{AgentId, ErrorCode};

use super::support::*;

fn executable(path: &Path, text: &str) -> PathBuf {
    // By a process of its own: while this one holds the file open for writing, a child that another test forks holds
    // it too, and it cannot be executed ("text file busy").
    let mut writing = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    writing
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    assert!(writing.wait().unwrap().success());
    path.to_owned()
}

fn secret(path: &Path, text: &str) -> PathBuf {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_owned()
}

async fn fetch(worktrees: &Worktrees, url: &str, branch: &str) -> Result<AgentId, WorktreeError> {
    let agent = AgentId::generate();
    let url = RepositoryUrl::parse(url).unwrap();
    worktrees
        .prepare(&agent, &url, &BranchName::parse(branch).unwrap(), || {})
        .await
        .map(|_| agent)
}

/// An ssh whose every host is this machine: it runs the remote command as sshd would.
pub(super) fn local_ssh(dir: &Path) -> PathBuf {
    let log = dir.join("ssh.log");
    executable(
        &dir.join("it's ssh"),
        &format!(
            "#!/bin/sh\nprintf '%s\\n' \"$@\" > '{}'\nenv > '{}.env'\nfor last; do :; done\nexec sh -c \"$last\"\n",
            log.display(),
            log.display()
        ),
    )
}

#[tokio::test]
async fn ssh_remotes_are_fetched_with_the_spokes_key_alone() {
    let seed = World::new().await;
    let dir = seed.dir.path();
    let mut config = WorktreeConfig::new(&dir.join("ssh-data"));
    config.ssh_program = local_ssh(dir);
    config.credentials = vec![Credential {
        repositories: "ssh://git@host.example/**".to_owned(),
        kind: CredentialKind::Ssh {
            key_file: secret(&dir.join("the key"), "key"),
            known_hosts_file: dir.join("known"),
        },
    }];
    let worktrees = Worktrees::open(config).await.unwrap();
    let url = format!("ssh://git@host.example{}", seed.source.display());
    let agent = fetch(&worktrees, &url, "main").await.unwrap();
    let work = worktrees.workdir(&agent);
    assert_eq!(git(&work, &["status", "--porcelain"]), "");
    assert_eq!(git(&work, &["config", "remote.origin.url"]), url);
    let arguments = fs::read_to_string(dir.join("ssh.log")).unwrap();
    for expected in [
        "the key",
        "StrictHostKeyChecking=yes",
        "BatchMode=yes",
        "IdentityAgent=none",
        "/dev/null",
    ] {
        assert!(arguments.contains(expected), "{expected} in {arguments}");
    }
    let environment = fs::read_to_string(dir.join("ssh.log.env")).unwrap();
    assert!(!environment.contains("CARGO"), "{environment}");

    // The default branch, a missing one, a pruned one, a missing repository.
    fetch(&worktrees, &url, "HEAD").await.unwrap();
    let error = fetch(&worktrees, &url, "nope").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::UnknownBranch);
    git(&seed.source, &["branch", "a"]);
    fetch(&worktrees, &url, "a").await.unwrap();
    git(&seed.source, &["branch", "-m", "a", "a/b"]);
    fetch(&worktrees, &url, "a/b").await.unwrap();
    let error = fetch(&worktrees, &url, "a").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::UnknownBranch);
    let error = fetch(&worktrees, "ssh://git@host.example/no/where", "main")
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.field()),
        (ErrorCode::UnknownRepository, Some("context.repository"))
    );
    let mirror = worktrees.mirror_path(&RepositoryUrl::parse(&url).unwrap());
    git(&mirror, &["fsck", "--strict"]);
}

#[tokio::test]
async fn a_token_is_neither_in_argv_nor_in_errors() {
    let dir = tempfile::tempdir().unwrap();
    let seen = dir.path().join("seen");
    let mut config = WorktreeConfig::new(&dir.path().join("data"));
    // Says what it was started with, and spits the secret out as a careless server would.
    config.git_program = executable(
        &dir.path().join("git"),
        &format!(
            "#!/bin/sh\nprintf '%s\\n' \"$@\" > '{0}.argv'\nenv > '{0}.env'\necho \"fatal: bad hunter2 $GIT_CONFIG_VALUE_12\" >&2\nexit 128\n",
            seen.display()
        ),
    );
    config.credentials = vec![Credential {
        repositories: "https://git.example/team/*".to_owned(),
        kind: CredentialKind::Token {
            user: "x".to_owned(),
            token_file: secret(&dir.path().join("token"), "hunter2\n"),
        },
    }];
    let worktrees = Worktrees::open(config).await.unwrap();
    let error = fetch(&worktrees, "https://git.example/team/repo", "main")
        .await
        .unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(
        !text.contains("hunter2") && !text.contains("eDpodW50ZXIy"),
        "{text}"
    );
    assert!(text.contains("redacted"), "{text}");
    let argv = fs::read_to_string(dir.path().join("seen.argv")).unwrap();
    assert!(!argv.contains("hunter2") && !argv.contains("eDpodW50ZXIy"));
    assert!(argv.contains("--\nhttps://git.example/team/repo"), "{argv}");
    let environment = fs::read_to_string(dir.path().join("seen.env")).unwrap();
    assert!(environment.contains("Authorization: Basic eDpodW50ZXIy"));
    assert!(environment.contains("http.https://git.example/.extraHeader"));
    for expected in [
        "GIT_CONFIG_NOSYSTEM=1",
        "GIT_TERMINAL_PROMPT=0",
        "GIT_CONFIG_GLOBAL=/dev/null",
    ] {
        assert!(environment.contains(expected));
    }
    // Another repository of the same host gets no token.
    for other in ["other/repo", "team/below/repo"] {
        fetch(&worktrees, &format!("https://git.example/{other}"), "main")
            .await
            .unwrap_err();
        let environment = fs::read_to_string(dir.path().join("seen.env")).unwrap();
        assert!(!environment.contains("Authorization"), "{other}");
    }
}

/// Whoever may name a repository must not choose the host that a token goes to.
#[tokio::test]
async fn a_credentials_star_stops_at_a_slash() {
    let dir = tempfile::tempdir().unwrap();
    let seen = dir.path().join("seen");
    let of = |repositories: &str| {
        let mut config = WorktreeConfig::new(&dir.path().join("data"));
        config.git_program = dir.path().join("git");
        config.credentials = vec![Credential {
            repositories: repositories.to_owned(),
            kind: CredentialKind::Token {
                user: "x".to_owned(),
                token_file: dir.path().join("token"),
            },
        }];
        Worktrees::open(config)
    };
    executable(
        &dir.path().join("git"),
        &format!("#!/bin/sh\nenv > '{}'\nexit 128\n", seen.display()),
    );
    secret(&dir.path().join("token"), "hunter2\n");
    let worktrees = of("https://*.example.org/**").await.unwrap();
    for (url, is_given) in [
        ("https://git.example.org/team/repo", true),
        ("https://evil.test/x.example.org/repo", false),
        ("https://evil.test/.example.org/repo", false),
    ] {
        fetch(&worktrees, url, "main").await.unwrap_err();
        let environment = fs::read_to_string(&seen).unwrap();
        assert_eq!(environment.contains("Authorization"), is_given, "{url}");
    }
    // A class would match a slash.
    let error = of("https://[!a]/**").await.unwrap_err();
    assert!(
        matches!(error, WorktreeError::CredentialPattern { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn unusable_tools_and_credentials_are_clear_errors() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = WorktreeConfig::new(&dir.path().join("data"));
    config.git_program = PathBuf::from("/nonexistent/git");
    let worktrees = Worktrees::open(config.clone()).await.unwrap();
    let error = fetch(&worktrees, "https://git.example/a", "main")
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.field()),
        (ErrorCode::RepositoryUnavailable, Some("context.repository"))
    );

    let token_file = secret(&dir.path().join("token"), "t");
    fs::set_permissions(&token_file, fs::Permissions::from_mode(0o644)).unwrap();
    config.credentials = vec![Credential {
        repositories: "https://**".to_owned(),
        kind: CredentialKind::Token {
            user: "x".to_owned(),
            token_file,
        },
    }];
    let worktrees = Worktrees::open(config.clone()).await.unwrap();
    let error = fetch(&worktrees, "https://git.example/a", "main")
        .await
        .unwrap_err();
    assert_eq!(error.code(), ErrorCode::Internal);

    config.credentials[0].repositories = "[".to_owned();
    assert_eq!(
        Worktrees::open(config).await.unwrap_err().code(),
        ErrorCode::Internal
    );
}

#[tokio::test]
async fn a_remote_that_hangs_is_given_up_and_its_processes_ended() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = WorktreeConfig::new(&dir.path().join("data"));
    let pids = dir.path().join("pids");
    config.git_program = executable(
        &dir.path().join("git"),
        &format!(
            "#!/bin/sh\nsleep 1000 &\necho $$ $! > '{}'\nwait\n",
            pids.display()
        ),
    );
    config.fetch_timeout_secs = 3;
    let worktrees = Worktrees::open(config).await.unwrap();
    let error = fetch(&worktrees, "https://git.example/a", "main")
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.retryable()),
        (ErrorCode::RepositoryUnavailable, true)
    );
    for pid in fs::read_to_string(&pids).unwrap().split_whitespace() {
        let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
        // Killed already; the kernel says when it is over.
        if let Ok(fd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
            let mut polled = [rustix::event::PollFd::new(
                &fd,
                rustix::event::PollFlags::IN,
            )];
            let limit = rustix::event::Timespec {
                tv_sec: 30,
                tv_nsec: 0,
            };
            assert_eq!(
                rustix::event::poll(&mut polled, Some(&limit)).unwrap(),
                1,
                "{pid:?} lives"
            );
        }
    }
}

#[tokio::test]
async fn nobody_listens_at_the_remote() {
    let dir = tempfile::tempdir().unwrap();
    let worktrees = Worktrees::open(WorktreeConfig::new(dir.path()))
        .await
        .unwrap();
    let error = fetch(&worktrees, "https://127.0.0.1:1/a", "main")
        .await
        .unwrap_err();
    assert!(error.retryable(), "{error}");
    assert_eq!(error.field(), Some("context.repository"));
}

#[tokio::test]
async fn an_unwritable_data_folder_is_said_at_once() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let error = Worktrees::open(WorktreeConfig::new(&dir.path().join("file")))
        .await
        .unwrap_err();
    assert_eq!(error.code(), ErrorCode::Internal);
    let readonly = Worktrees::open(WorktreeConfig::new(Path::new("/proc/nothing")))
        .await
        .unwrap_err();
    assert!(
        matches!(readonly.code(), ErrorCode::Internal),
        "{readonly:?}"
    );
}
