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

use mosaic_federation::command::RepositoryGlobs;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    time::Instant,
};
use tracing::warn;

use super::{
    Transport, WorktreeConfig,
    address::{BranchName, RepositoryUrl},
    blocking,
    error::WorktreeError,
    lock::MirrorLock,
    mirror::{REFSPECS, objects_dir},
};

const MAX_OUTPUT_BYTES: u64 = 64 << 10;
const MAX_DETAIL_CHARS: usize = 400;
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];

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

/// What a child, or one after another, is started for.
struct Errand<'a> {
    url: &'a RepositoryUrl,
    mirror: &'a Path,
    lock: Option<&'a MirrorLock>,
    limit: Duration,
    /// When the limit of all of it is reached.
    until: Instant,
    environment: Environment,
}

#[derive(Debug)]
pub(super) struct Remotes {
    git: PathBuf,
    ssh: PathBuf,
    home: PathBuf,
    credentials: Vec<(RepositoryGlobs, CredentialKind)>,
}

impl Remotes {
    pub(super) fn new(config: &WorktreeConfig) -> Result<Self, WorktreeError> {
        let mut credentials = Vec::new();
        for credential in &config.credentials {
            // As in grants: whoever may name a repository must not lead a credential to another host.
            let pattern = &credential.repositories;
            let globs = RepositoryGlobs::new(std::slice::from_ref(pattern));
            let globs = globs.map_err(|source| WorktreeError::CredentialPattern {
                pattern: pattern.clone(),
                source,
            })?;
            credentials.push((globs, credential.kind.clone()));
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
        let errand = self.errand(url, mirror, Some(lock), limit)?;
        // Of a fetch that was killed.
        remove_unfinished(mirror).await?;
        let options = [
            "fetch",
            "--quiet",
            "--prune",
            "--no-tags",
            "--no-recurse-submodules",
            "--no-write-fetch-head",
            "--no-auto-maintenance",
            "--",
            url.as_str(),
        ];
        let fetched = self
            .run(&errand, &[&options[..], &REFSPECS[..]].concat())
            .await;
        if fetched.is_err() {
            remove_unfinished(mirror).await?;
        }
        fetched?;
        if !want_default {
            return Ok(None);
        }
        let heads = self
            .run(
                &errand,
                &["ls-remote", "--symref", "--", url.as_str(), "HEAD"],
            )
            .await?;
        Ok(heads.lines().find_map(|line| {
            let name = line
                .strip_prefix("ref: refs/heads/")?
                .strip_suffix("\tHEAD")?;
            BranchName::parse(name).ok()
        }))
    }

    /// Pushes one ref of `mirror`, of which the child only reads, and never by force. Where it is not known what came
    /// of it, the remote is asked.
    pub(super) async fn push(
        &self,
        url: &RepositoryUrl,
        mirror: &Path,
        refspec: &str,
        limit: Duration,
    ) -> Result<(), WorktreeError> {
        let errand = self.errand(url, mirror, None, limit)?;
        let options = [
            "push",
            "--no-verify",
            "--no-follow-tags",
            "--no-signed",
            "--no-force",
            "--recurse-submodules=no",
        ];
        let what = ["--", url.as_str(), refspec];
        let pushed = self
            .run(&errand, &[&options[..], &["--quiet"], &what].concat())
            .await;
        let Err(error @ WorktreeError::RepositoryUnreachable { .. }) = pushed else {
            return pushed.map(drop);
        };
        // The answer may have been lost, and not the push.
        let asking = [&options[..], &["--dry-run", "--porcelain"], &what].concat();
        match self.run(&errand, &asking).await {
            Ok(told) if told.lines().any(|line| line.starts_with("=\t")) => Ok(()),
            _ => Err(error),
        }
    }

    fn errand<'a>(
        &self,
        url: &'a RepositoryUrl,
        mirror: &'a Path,
        lock: Option<&'a MirrorLock>,
        limit: Duration,
    ) -> Result<Errand<'a>, WorktreeError> {
        Ok(Errand {
            url,
            mirror,
            lock,
            limit,
            until: Instant::now() + limit,
            environment: self.environment(url)?,
        })
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
            .find(|(globs, kind)| {
                let fits = matches!(
                    (url.transport(), kind),
                    (Transport::Ssh, CredentialKind::Ssh { .. })
                        | (Transport::Https, CredentialKind::Token { .. })
                );
                fits && globs.include(url.as_str())
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

    /// Runs git once for the errand; what it said.
    async fn run(&self, errand: &Errand<'_>, arguments: &[&str]) -> Result<String, WorktreeError> {
        let mut child = self.start(errand, arguments)?;
        // After the child, to go before it: while it has not been waited for, the group's id is its own.
        let group = Group::of(&child);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let work = async { tokio::join!(child.wait(), bounded(stdout), bounded(stderr)) };
        let Ok((status, stdout, stderr)) = tokio::time::timeout_at(errand.until, work).await else {
            drop(group);
            let _ = child.wait().await;
            return Err(WorktreeError::FetchTimedOut {
                repository: errand.url.clone(),
                limit_secs: errand.limit.as_secs(),
            });
        };
        group.has_ended();
        let status = status.map_err(WorktreeError::io("waiting for git", &self.git))?;
        if status.success() {
            return Ok(stdout);
        }
        let secrets = &errand.environment.secrets;
        Err(failure(
            errand.url,
            &redacted(&stderr, secrets),
            !secrets.is_empty(),
        ))
    }

    fn start(&self, errand: &Errand<'_>, arguments: &[&str]) -> Result<Child, WorktreeError> {
        let mirror = errand.mirror;
        // Its stdin is our lock, which is empty: should we be killed, the mirror stays locked until the
        // child is done writing.
        let stdin = match errand.lock {
            Some(lock) => Stdio::from(
                lock.share()
                    .map_err(WorktreeError::io("sharing the mirror's lock", mirror))?,
            ),
            None => Stdio::null(),
        };
        let variables = errand.environment.variables.iter();
        Command::new(&self.git)
            .args(arguments)
            .current_dir(mirror)
            .env_clear()
            .envs(variables.map(|(key, value)| (key, value)))
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
            })
    }
}

/// A child's process group, which is ended when this is dropped: by a time limit, or because nobody waits any more, as
/// after a kill. What the child started would hang on where it hung.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        Self(pid.and_then(Pid::from_raw))
    }

    /// Nothing of it is left, and its id may be somebody else's soon.
    fn has_ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Removes what git has written of packs that did not become one: it stays when a connection breaks or git is killed,
/// and a mirror is never cleaned up otherwise. Wants the mirror's lock.
async fn remove_unfinished(mirror: &Path) -> Result<(), WorktreeError> {
    let packs = objects_dir(mirror).join("pack");
    blocking("removing what is left of a fetch", move || {
        for entry in fs::read_dir(packs).into_iter().flatten().flatten() {
            if !entry.file_name().as_encoded_bytes().starts_with(b"tmp_") {
                continue;
            }
            if let Err(error) = fs::remove_file(entry.path()) {
                warn!(path = %entry.path().display(), %error, "could not remove what is left of a fetch");
            }
        }
        Ok(())
    })
    .await
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
        .collect()
}

/// What git's words mean; `presented` says whether it had a token to present.
fn failure(url: &RepositoryUrl, words: &str, presented: bool) -> WorktreeError {
    let repository = url.clone();
    let bounded = |words: &str| words.chars().take(MAX_DETAIL_CHARS).collect::<String>();
    // Behind whatever a hook has to say.
    if let Some(refusal) = push_refusal(words) {
        let detail = bounded(refusal);
        return WorktreeError::BranchRefused { repository, detail };
    }
    let detail = &bounded(words);
    let lower = detail.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    if says(&["no space left", "disk quota"]) {
        WorktreeError::DiskFull {
            operation: "fetching",
        }
    } else if says(&["could not read username"]) {
        // Git tells only that it has nobody to ask for another one.
        let detail = if presented {
            "the server does not take the credential that is configured"
        } else {
            "the server wants a credential, and none is configured"
        };
        WorktreeError::RepositoryDenied {
            repository,
            detail: detail.to_owned(),
        }
    } else if says(&[
        "authentication failed",
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
        let redirects = REDIRECTS
            .iter()
            .any(|status| lower.contains(&format!("error: {status}")));
        let detail = if redirects {
            format!("it redirects, which is not followed: {detail}")
        } else {
            detail.to_owned()
        };
        WorktreeError::RepositoryUnreachable { repository, detail }
    }
}

/// Why a push was refused, of what git says: `! [remote rejected] ours -> theirs (why)`. What comes from the other side
/// begins otherwise.
fn push_refusal(words: &str) -> Option<&str> {
    let line = words.split("; ").find_map(|line| {
        line.strip_prefix("! [rejected]")
            .or_else(|| line.strip_prefix("! [remote rejected]"))
    })?;
    let (_, why) = line.strip_suffix(')')?.rsplit_once(" (")?;
    Some(match why {
        "non-fast-forward" | "fetch first" => "it has another one of that name",
        other => other,
    })
}
