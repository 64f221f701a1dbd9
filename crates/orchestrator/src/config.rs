//! Configuration of a spoke: one TOML file and a few flags, parsed once, refused before anything is bound.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use mosaic_node::HttpLimits;
use mosaic_types::{
    SecretName,
    command::SandboxKind,
    egress::{EgressRule, MAX_RULES},
};
use serde::Deserialize;
use thiserror::Error;

use crate::{
    runtime::RuntimeConfig,
    sandbox::{DockerSettings, EngineKind, SandboxError},
    secrets::SecretConfig,
    worktree::{Credential, PushRule},
};

/// Why a configuration is refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("failed to read {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("failed to understand {path:?}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: toml::de::Error,
    },
    /// A setting of the sandboxes cannot be.
    #[error("failed to check the sandboxes")]
    Sandbox(#[source] SandboxError),
    /// A value is out of its range.
    #[error("{name} must be {expected}")]
    Range {
        /// The setting.
        name: &'static str,
        /// What it may be.
        expected: &'static str,
    },
}

/// Configuration of a spoke.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// What it calls itself.
    #[serde(default = "default_name")]
    pub name: String,
    /// Where it keeps everything.
    pub data_dir: PathBuf,
    /// Where it listens.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// How peers reach it; `http://<listen>` if absent.
    #[serde(default)]
    pub public_url: Option<String>,
    /// Whether peers may be at private or loopback addresses.
    #[serde(default)]
    pub allow_private_peers: bool,
    /// Whether the runtime `shell` exists: it runs what a peer sends.
    #[serde(default)]
    pub enable_shell: bool,
    /// Runtimes besides the built-in `claude`, or instead of it.
    #[serde(default)]
    pub runtimes: Vec<RuntimeConfig>,
    /// Credentials for git.
    #[serde(default)]
    pub git_credentials: Vec<Credential>,
    /// Where agents' branches may be pushed.
    #[serde(default)]
    pub push: Vec<PushRule>,
    /// The sandboxes.
    #[serde(default)]
    pub sandbox: SandboxSettings,
    /// Limits.
    #[serde(default)]
    pub limits: Limits,
    /// Bounds of its server; no setting of the file.
    #[serde(skip)]
    pub http: HttpLimits,
    /// What agents with an allow-list may reach.
    #[serde(default)]
    pub egress: EgressSettings,
    /// Secrets that runtimes and spawns refer to by name.
    #[serde(default)]
    pub secrets: BTreeMap<SecretName, SecretConfig>,
}

/// What agents with an allow-list may reach.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct EgressSettings {
    /// The allow-list of a spawn that names no network; an open network if absent.
    pub default: Option<Vec<EgressRule>>,
    /// What may lead to an address that is not public, where an agent's list allows it.
    pub private_hosts: Vec<EgressRule>,
}

/// Settings of the sandboxes. What is not of `docker` is the process sandbox's.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct SandboxSettings {
    /// Use this engine or none; the best one found if absent.
    pub engine: Option<EngineKind>,
    /// Do without a cgroup even where there could be one.
    pub without_cgroup: bool,
    /// What no agent may see, besides the data folder and the usual places of credentials.
    pub masked: Vec<PathBuf>,
    /// What a spawn gets that names no sandbox: `process` or `docker`; `process` if absent.
    pub default: Option<SandboxKind>,
    /// Containers. Not on offer if absent.
    pub docker: Option<DockerSettings>,
    /// The executable of shims and inits; what is found beside this process's own if absent.
    #[serde(skip)]
    pub program: Option<PathBuf>,
}

/// Limits of a spoke.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Limits {
    /// Agents that run at once.
    pub max_running: usize,
    /// Agents that wait at once.
    pub max_queued: usize,
    /// `timeoutSecs` where a spawn names none.
    pub default_timeout_secs: u64,
    /// Longest `timeoutSecs`, whoever asks.
    pub max_timeout_secs: u64,
    /// Most `maxRetries`, whoever asks.
    pub max_retries: u32,
    /// Processes and threads of one agent, where that can be enforced.
    pub max_processes: u64,
    /// Output kept of one attempt, in bytes.
    pub spool_max_bytes: u64,
    /// Free disk space below which spawns are refused, in MiB.
    pub min_free_disk_mb: u64,
    /// How long an ended agent stays on record, in seconds.
    pub retention_secs: u64,
    /// How many ended agents stay on record.
    pub retention_agents: u64,
    /// How often record and reality are compared while the spoke runs, in seconds.
    pub reconcile_secs: u64,
    /// What all agents together may cost in a day of UTC, in US dollars; not bounded if absent.
    pub budget_usd_per_day: Option<f64>,
    /// The tokens that all agents together may use in a day of UTC; not bounded if absent.
    pub budget_tokens_per_day: Option<u64>,
    /// Shortest `leaseSecs`.
    pub min_lease_secs: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_running: 16,
            max_queued: 1024,
            default_timeout_secs: 3600,
            max_timeout_secs: 86_400,
            max_retries: 10,
            max_processes: 4096,
            spool_max_bytes: 256 << 20,
            min_free_disk_mb: 256,
            retention_secs: 30 * 86_400,
            retention_agents: 10_000,
            reconcile_secs: 60,
            budget_usd_per_day: None,
            budget_tokens_per_day: None,
            min_lease_secs: 5,
        }
    }
}

/// Longest `leaseSecs`, of every spoke.
pub(crate) const MAX_LEASE_SECS: u64 = 86_400;

fn default_name() -> String {
    "orchestrator".to_owned()
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7420))
}

impl Config {
    /// Reads a TOML file.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(path: &std::path::Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let config: Self = toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source,
        })?;
        config.check()?;
        Ok(config)
    }

    /// A spoke for development and tests: process sandbox, `shell` enabled, peers on loopback, many agents.
    #[must_use]
    pub fn dev(data_dir: PathBuf, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            data_dir,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            public_url: None,
            allow_private_peers: true,
            enable_shell: true,
            runtimes: Vec::new(),
            git_credentials: Vec::new(),
            push: Vec::new(),
            sandbox: SandboxSettings::default(),
            limits: Limits {
                max_running: 256,
                ..Limits::default()
            },
            http: HttpLimits::default(),
            egress: EgressSettings::default(),
            secrets: BTreeMap::new(),
        }
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`ConfigError::Range`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let range = |name, good: bool, expected| {
            if good {
                Ok(())
            } else {
                Err(ConfigError::Range { name, expected })
            }
        };
        range(
            "name",
            (1..=64).contains(&self.name.chars().count()),
            "1 to 64 characters",
        )?;
        range(
            "sandbox.default",
            self.sandbox.default != Some(SandboxKind::Docker) || self.sandbox.docker.is_some(),
            "a sandbox that is on offer; `docker` needs the table `sandbox.docker`",
        )?;
        if let Some(docker) = &self.sandbox.docker {
            docker.check().map_err(ConfigError::Sandbox)?;
        }
        range(
            "limits.max-running",
            (1..=100_000).contains(&self.limits.max_running),
            "1 to 100000",
        )?;
        range(
            "limits.max-queued",
            self.limits.max_queued <= 1_000_000,
            "at most 1000000",
        )?;
        range(
            "limits.reconcile-secs",
            (1..=86_400).contains(&self.limits.reconcile_secs),
            "1 to 86400",
        )?;
        range(
            "limits.default-timeout-secs",
            (1..=self.limits.max_timeout_secs).contains(&self.limits.default_timeout_secs),
            "from 1 to limits.max-timeout-secs",
        )?;
        let rules = self.egress.default.as_ref().map_or(1, Vec::len);
        range(
            "egress.default",
            (1..=MAX_RULES).contains(&rules),
            "1 to 64 rules",
        )?;
        range(
            "egress.private-hosts",
            self.egress.private_hosts.len() <= MAX_RULES,
            "at most 64 rules",
        )?;
        range(
            "limits.budget-usd-per-day",
            self.limits
                .budget_usd_per_day
                .is_none_or(|usd| usd.is_finite() && usd > 0.0),
            "a finite number above zero",
        )?;
        range(
            "limits.budget-tokens-per-day",
            self.limits.budget_tokens_per_day != Some(0),
            "above zero",
        )?;
        range(
            "limits.min-lease-secs",
            (1..=MAX_LEASE_SECS).contains(&self.limits.min_lease_secs),
            "1 to 86400",
        )
    }

    /// Every runtime that is configured, `shell` among them if it is enabled. `claude` is built in.
    #[must_use]
    pub fn runtime_configs(&self) -> Vec<RuntimeConfig> {
        let mut configs = self.runtimes.clone();
        if self.enable_shell {
            configs.push(RuntimeConfig::shell());
        }
        configs
    }
}

/// Places of credentials that no agent needs to see, below a home folder.
pub(crate) const SECRET_PLACES: &[&str] = &[
    ".ssh",
    ".gnupg",
    ".aws",
    ".azure",
    ".config/gcloud",
    ".config/gh",
    ".docker",
    ".kube",
    ".netrc",
    ".git-credentials",
    ".cargo/credentials.toml",
    ".npmrc",
    ".pypirc",
    ".claude",
    ".claude.json",
    ".local/state/mosaic",
];

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../../deploy/mosaic-orchestrator.toml");

    fn parse(text: &str) -> Config {
        let config: Config = toml::from_str(text).unwrap();
        config.check().unwrap();
        config
    }

    #[test]
    fn the_example_is_taken_as_it_is() {
        let config = parse(EXAMPLE);
        assert_eq!(
            format!("{:?}", config.limits),
            format!("{:?}", Limits::default())
        );
        assert!(!config.enable_shell && !config.allow_private_peers);
    }

    #[test]
    fn what_the_example_shows_commented_out_is_taken_and_says_the_defaults() {
        let uncommented: String = EXAMPLE
            .lines()
            .map(|line| {
                let bare = line.strip_prefix("# ").unwrap_or(line);
                let is_setting = bare.starts_with('[') || bare.contains(" = ");
                format!("{}\n", if is_setting { bare } else { line })
            })
            .collect();
        let (plain, shown) = (parse(EXAMPLE), parse(&uncommented));
        assert_eq!(format!("{:?}", shown.limits), format!("{:?}", plain.limits));
        assert_eq!((&shown.name, shown.listen), (&plain.name, plain.listen));
        assert_eq!(shown.git_credentials.len(), 2);
        let docker = DockerSettings::of_image("mosaic-agent:1");
        assert_eq!(
            format!("{:?}", shown.sandbox.docker),
            format!("{:?}", Some(docker))
        );
        assert_eq!(shown.runtimes.len(), 1);
        assert_eq!(shown.secrets.len(), 2);
        shown.runtimes[0].validate().unwrap();
        assert_eq!(shown.egress.default.unwrap().len(), 2);
        assert_eq!(shown.egress.private_hosts.len(), 1);
    }

    #[test]
    fn what_is_unknown_is_refused_everywhere() {
        for text in [
            "data-dir = '/x'\nlissten = '127.0.0.1:1'",
            "data-dir = '/x'\n[limits]\nmax_running = 1",
            "data-dir = '/x'\n[[git-credentials]]\nrepositories = 'https://x/**'\ntype = 'token'\n\
             user = 'u'\ntoken-file = '/t'\nkey-file = '/k'",
            "data-dir = '/x'\n[[runtimes]]\nname = 'x'\nprogram = 'x'\nshell = true",
            "data-dir = '/x'\n[egress]\nallow = ['a.org']",
            "data-dir = '/x'\n[egress]\ndefault = ['127.1']",
            "data-dir = '/x'\n[egress]\nprivate-hosts = ['http://localhost']",
        ] {
            assert!(toml::from_str::<Config>(text).is_err(), "{text}");
        }
    }
}
