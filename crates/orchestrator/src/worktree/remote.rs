//! Fetching over https and ssh: the git CLI as a child that knows nothing of the machine's
//! configuration, may speak one protocol, and gets its secret neither by argv nor from a peer.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use globset::{Glob, GlobMatcher};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
};

use super::{
    Transport, WorktreeConfig,
    address::{BranchName, RepositoryUrl},
    error::WorktreeError,
    lock::MirrorLock,
    mirror::REFSPECS,
};

const MAX_OUTPUT_BYTES: u64 = 64 << 10;
const MAX_DETAIL_CHARS: usize = 400;

/// A credential of the spoke's configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Credential {
    /// Glob over the canonical repository URL, such as `https://git.example.org/team/*`.
    pub repositories: String,
    /// What to present.
    #[serde(flatten)]
    pub kind: CredentialKind,
}

/// What is presented to a remote. Files must not be readable by others.
#[derive(Debug, Clone, Serialize, Deserialize)]
// The kind refuses unknown members for both: with a flattened member the outer one cannot.
#[serde(
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    tag = "type",
    deny_unknown_fields
)]
pub enum CredentialKind {
    /// A private key without a passphrase, and the hosts' known keys.
    Ssh {
        /// The private key.
        key_file: PathBuf,
        /// In the format of `ssh_known_hosts`; a host that is not in it is refused.
        known_hosts_file: PathBuf,
    },
    /// A token, sent as the password of HTTP basic authentication.
    Token {
        /// The user name that goes with it, such as `x-access-token`.
        user: String,
        /// A file that holds the token and nothing else.
        token_file: PathBuf,
    },
}

/// A child's environment, and the secrets in it that must not be repeated.
struct Environment {
    variables: Vec<(OsString, OsString)>,
    secrets: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Remotes {
    git: PathBuf,
    ssh: PathBuf,
    home: PathBuf,
    credentials: Vec<(GlobMatcher, CredentialKind)>,
}

impl Remotes {
    pub(super) fn new(config: &WorktreeConfig) -> Result<Self, WorktreeError> {
        let mut credentials = Vec::new();
        for credential in &config.credentials {
            let glob = Glob::new(&credential.repositories).map_err(|source| {
                WorktreeError::CredentialPattern {
                    pattern: credential.repositories.clone(),
                    source,
                }
            })?;
            credentials.push((glob.compile_matcher(), credential.kind.clone()));
        }
        Ok(Self {
            git: config.git_program.clone(),
            ssh: config.ssh_program.clone(),
            home: config.mirrors_dir.clone(),
            credentials,
        })
    }

    /// Fetches into `mirror`, whose lock the child shares. Answers with the remote's default branch if
    /// that was asked for.
    pub(super) async fn fetch(
        &self,
        url: &RepositoryUrl,
        mirror: &Path,
        lock: &MirrorLock,
        limit: Duration,
        want_default: bool,
    ) -> Result<Option<BranchName>, WorktreeError> {
        let environment = self.environment(url)?;
        let run = |arguments: Vec<OsString>| {
            self.run(url, mirror, Some(lock), limit, arguments, &environment)
        };
        let mut arguments: Vec<OsString> = [
            "fetch",
            "--quiet",
            "--prune",
            "--no-tags",
            "--no-recurse-submodules",
            "--no-write-fetch-head",
            "--no-auto-maintenance",
            "--",
            url.as_str(),
        ]
        .map(OsString::from)
        .to_vec();
        arguments.extend(REFSPECS.map(OsString::from));
        run(arguments).await?;
        if !want_default {
            return Ok(None);
        }
        let heads = run(["ls-remote", "--symref", "--", url.as_str(), "HEAD"]
            .map(OsString::from)
            .to_vec())
        .await?;
        Ok(heads.lines().find_map(|line| {
            let name = line
                .strip_prefix("ref: refs/heads/")?
                .strip_suffix("\tHEAD")?;
            BranchName::parse(name).ok()
        }))
    }

    /// Pushes one ref of `mirror`, of which the child only reads, and never by force.
    pub(super) async fn push(
        &self,
        url: &RepositoryUrl,
        mirror: &Path,
        refspec: &str,
        limit: Duration,
    ) -> Result<(), WorktreeError> {
        let environment = self.environment(url)?;
        let arguments = [
            "push",
            "--quiet",
            "--no-verify",
            "--no-follow-tags",
            "--no-signed",
            "--no-force",
            "--recurse-submodules=no",
            "--",
            url.as_str(),
            refspec,
        ]
        .map(OsString::from)
        .to_vec();
        self.run(url, mirror, None, limit, arguments, &environment)
            .await
            .map(drop)
    }

    /// The child's whole environment.
    fn environment(&self, url: &RepositoryUrl) -> Result<Environment, WorktreeError> {
        let mut settings: Vec<(String, String)> = vec![
            ("protocol.allow".into(), "never".into()),
            (
                format!("protocol.{}.allow", url.transport().protocol()),
                "always".into(),
            ),
            ("core.hooksPath".into(), "/dev/null".into()),
            ("core.fsmonitor".into(), "false".into()),
            ("gc.auto".into(), "0".into()),
            ("maintenance.auto".into(), "false".into()),
            ("fetch.recurseSubmodules".into(), "false".into()),
            ("fetch.fsckObjects".into(), "false".into()),
            ("credential.helper".into(), String::new()),
            // A redirect would carry the credential, or the request, to a host nobody chose.
            ("http.followRedirects".into(), "false".into()),
            ("http.lowSpeedLimit".into(), "1".into()),
            ("http.lowSpeedTime".into(), "60".into()),
        ];
        let credential = self
            .credentials
            .iter()
            .find(|(glob, kind)| {
                let fits = matches!(
                    (url.transport(), kind),
                    (Transport::Ssh, CredentialKind::Ssh { .. })
                        | (Transport::Https, CredentialKind::Token { .. })
                );
                fits && glob.is_match(url.as_str())
            })
            .map(|(_, kind)| kind);
        let mut secrets = Vec::new();
        let mut ssh = vec![
            quoted(&self.ssh),
            "-F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=yes -o IdentityAgent=none".to_owned(),
            "-o ForwardAgent=no -o ClearAllForwardings=yes -o PermitLocalCommand=no -o ConnectTimeout=20".to_owned(),
        ];
        match credential {
            Some(CredentialKind::Ssh {
                key_file,
                known_hosts_file,
            }) => {
                private(key_file)?;
                ssh.push(format!("-o IdentitiesOnly=yes -i {}", quoted(key_file)));
                ssh.push(format!(
                    "-o UserKnownHostsFile={}",
                    quoted(known_hosts_file)
                ));
            }
            Some(CredentialKind::Token { user, token_file }) => {
                private(token_file)?;
                let token =
                    fs::read_to_string(token_file).map_err(|_| WorktreeError::Credential {
                        path: token_file.clone(),
                        reason: "not readable",
                    })?;
                let token = token.trim();
                if token.is_empty() || token.contains(char::is_control) {
                    return Err(WorktreeError::Credential {
                        path: token_file.clone(),
                        reason: "not one line with a token",
                    });
                }
                let basic = data_encoding::BASE64.encode(format!("{user}:{token}").as_bytes());
                settings.push((
                    format!(
                        "http.{}.extraHeader",
                        url.https_origin().unwrap_or_default()
                    ),
                    format!("Authorization: Basic {basic}"),
                ));
                secrets.extend([token.to_owned(), basic]);
            }
            None => {}
        }
        let mut environment: Vec<(OsString, OsString)> = vec![
            ("HOME".into(), self.home.clone().into()),
            ("LC_ALL".into(), "C".into()),
            ("GIT_CONFIG_NOSYSTEM".into(), "1".into()),
            ("GIT_CONFIG_SYSTEM".into(), "/dev/null".into()),
            ("GIT_CONFIG_GLOBAL".into(), "/dev/null".into()),
            ("GIT_ATTR_NOSYSTEM".into(), "1".into()),
            ("GIT_TERMINAL_PROMPT".into(), "0".into()),
            ("GIT_PROTOCOL_FROM_USER".into(), "0".into()),
            ("GIT_SSH_COMMAND".into(), ssh.join(" ").into()),
            ("GIT_SSH_VARIANT".into(), "ssh".into()),
            ("GIT_CONFIG_COUNT".into(), settings.len().to_string().into()),
        ];
        if let Some(path) = std::env::var_os("PATH") {
            environment.push(("PATH".into(), path));
        }
        for (index, (key, value)) in settings.into_iter().enumerate() {
            environment.push((format!("GIT_CONFIG_KEY_{index}").into(), key.into()));
            environment.push((format!("GIT_CONFIG_VALUE_{index}").into(), value.into()));
        }
        Ok(Environment {
            variables: environment,
            secrets,
        })
    }

    async fn run(
        &self,
        url: &RepositoryUrl,
        mirror: &Path,
        lock: Option<&MirrorLock>,
        limit: Duration,
        arguments: Vec<OsString>,
        environment: &Environment,
    ) -> Result<String, WorktreeError> {
        // Its stdin is our lock, which is empty: should we be killed, the mirror stays locked until the
        // child is done writing.
        let stdin = match lock {
            Some(lock) => Stdio::from(
                lock.share()
                    .map_err(WorktreeError::io("sharing the mirror's lock", mirror))?,
            ),
            None => Stdio::null(),
        };
        let mut child = Command::new(&self.git)
            .args(&arguments)
            .current_dir(mirror)
            .env_clear()
            .envs(
                environment
                    .variables
                    .iter()
                    .map(|(key, value)| (key, value)),
            )
            .env("GIT_DIR", mirror)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => WorktreeError::GitMissing {
                    program: self.git.clone(),
                },
                _ => WorktreeError::io("starting git", &self.git)(error),
            })?;
        let group = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let work = async { tokio::join!(child.wait(), bounded(stdout), bounded(stderr)) };
        let Ok((status, stdout, stderr)) = tokio::time::timeout(limit, work).await else {
            // Not yet waited for, so the group's id is still its own.
            if let Some(group) = group {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = child.wait().await;
            return Err(WorktreeError::FetchTimedOut {
                repository: url.clone(),
                limit_secs: limit.as_secs(),
            });
        };
        let status = status.map_err(WorktreeError::io("waiting for git", &self.git))?;
        if status.success() {
            return Ok(stdout);
        }
        Err(failure(url, &redacted(&stderr, &environment.secrets)))
    }
}

async fn bounded(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        let _ = (&mut pipe)
            .take(MAX_OUTPUT_BYTES)
            .read_to_end(&mut bytes)
            .await;
        // The rest is read and dropped, so that the child does not block on a full pipe.
        let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A single-quoted word for the shell that git runs `GIT_SSH_COMMAND` with.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', "'\\''"))
}

fn private(path: &Path) -> Result<(), WorktreeError> {
    let unusable = |reason| WorktreeError::Credential {
        path: path.to_owned(),
        reason,
    };
    let found = fs::metadata(path).map_err(|_| unusable("not readable"))?;
    if found.permissions().mode() & 0o077 != 0 {
        return Err(unusable("readable by others"));
    }
    Ok(())
}

fn redacted(text: &str, secrets: &[String]) -> String {
    let mut text = text.to_owned();
    for secret in secrets {
        text = text.replace(secret.as_str(), "[redacted]");
    }
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines
        .join("; ")
        .chars()
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .take(MAX_DETAIL_CHARS)
        .collect()
}

fn failure(url: &RepositoryUrl, detail: &str) -> WorktreeError {
    let repository = url.clone();
    let lower = detail.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    if says(&["no space left", "disk quota"]) {
        WorktreeError::DiskFull {
            operation: "fetching",
        }
    } else if says(&[
        "authentication failed",
        "could not read username",
        "permission denied",
        "host key verification",
        "error: 401",
        "error: 403",
    ]) {
        WorktreeError::RepositoryDenied {
            repository,
            detail: detail.to_owned(),
        }
    } else if says(&["does not appear to be a git repository"]) {
        WorktreeError::NotARepository {
            repository,
            source: None,
        }
    } else if says(&["not found", "does not exist"]) {
        WorktreeError::RepositoryNotFound { repository }
    } else {
        WorktreeError::RepositoryUnreachable {
            repository,
            detail: detail.to_owned(),
        }
    }
}
