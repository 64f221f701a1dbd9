//! What an operator says about containers.

use std::{fmt, path::PathBuf, str::FromStr};

use mosaic_types::{RuntimeName, command::NetworkPolicy};
use serde::Deserialize;

use crate::sandbox::SandboxError;

/// Whose processes an agent's are, inside and on the host: never root's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ContainerUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// The user of agents where the spoke is root's.
const UNPRIVILEGED: u32 = 10_001;

impl Default for ContainerUser {
    fn default() -> Self {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        if uid.is_root() {
            Self {
                uid: UNPRIVILEGED,
                gid: UNPRIVILEGED,
            }
        } else {
            Self {
                uid: uid.as_raw(),
                gid: gid.as_raw(),
            }
        }
    }
}

impl fmt::Display for ContainerUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

/// The text is no `uid:gid` above 0.
#[derive(Debug, thiserror::Error)]
#[error("must be `uid:gid`, two numbers above 0")]
pub struct NoUser;

impl FromStr for ContainerUser {
    type Err = NoUser;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (uid, gid) = text.split_once(':').ok_or(NoUser)?;
        let number = |text: &str| text.parse().ok().filter(|number: &u32| *number > 0);
        Ok(Self {
            uid: number(uid).ok_or(NoUser)?,
            gid: number(gid).ok_or(NoUser)?,
        })
    }
}

impl TryFrom<String> for ContainerUser {
    type Error = NoUser;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// The most containers that may wait in one pool.
const MAX_POOL: usize = 64;

/// One `[[sandbox.docker.warm]]`: containers that wait for the agents of a runtime.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PoolSettings {
    /// The runtime.
    pub runtime: RuntimeName,
    /// How many wait; at most 64.
    pub size: usize,
    /// Which agents may take one: those whose network is `open`, or, with `none`, those with none or an allow-list.
    #[serde(default = "open")]
    pub network: NetworkPolicy,
}

fn open() -> NetworkPolicy {
    NetworkPolicy::Open
}

/// The table `[sandbox.docker]`. Where it is, containers are on offer.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DockerSettings {
    /// The image that agents run in. It must be on this machine: nothing is pulled.
    pub image: String,
    /// The engine's socket.
    #[serde(default = "default_socket")]
    pub socket: PathBuf,
    /// Whose processes agents' are.
    #[serde(default)]
    pub user: ContainerUser,
    /// The engine's network for agents whose network is open.
    #[serde(default = "default_network")]
    pub network: String,
    /// Where programs are looked for in the image.
    #[serde(default = "default_path")]
    pub path: String,
    /// Size of `/tmp` in MiB.
    #[serde(default = "default_tmp_mb")]
    pub tmp_mb: u64,
    /// Containers that wait for agents. Needs a spoke that is root's.
    #[serde(default)]
    pub warm: Vec<PoolSettings>,
    /// How long the engine may take for one answer, in seconds.
    #[serde(default = "default_call_timeout_secs")]
    pub call_timeout_secs: u64,
}

fn default_socket() -> PathBuf {
    PathBuf::from("/var/run/docker.sock")
}

fn default_network() -> String {
    "bridge".to_owned()
}

fn default_path() -> String {
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()
}

fn default_tmp_mb() -> u64 {
    1024
}

fn default_call_timeout_secs() -> u64 {
    15
}

impl DockerSettings {
    /// The defaults, with this image.
    #[must_use]
    pub fn of_image(image: impl Into<String>) -> Self {
        Self {
            image: image.into(),
            socket: default_socket(),
            user: ContainerUser::default(),
            network: default_network(),
            path: default_path(),
            tmp_mb: default_tmp_mb(),
            warm: Vec::new(),
            call_timeout_secs: default_call_timeout_secs(),
        }
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`SandboxError::InvalidLaunch`] which names the setting.
    pub fn check(&self) -> Result<(), SandboxError> {
        let refuse = |reason: &str| {
            Err(SandboxError::InvalidLaunch {
                reason: format!("sandbox.docker.{reason}"),
            })
        };
        if self.image.is_empty() {
            return refuse("image must name an image");
        }
        if !self.socket.is_absolute() {
            return refuse("socket must be an absolute path");
        }
        let mode = self.network.split(':').next().unwrap_or_default();
        if self.network.is_empty() || ["host", "container"].contains(&mode) {
            return refuse(
                "network must be a network of the engine, not the host's or another container's",
            );
        }
        if !(1..=300).contains(&self.call_timeout_secs) {
            return refuse("call-timeout-secs must be 1 to 300");
        }
        if self.tmp_mb == 0 {
            return refuse("tmp-mb must be at least 1");
        }
        if self.warm.iter().any(|pool| pool.size > MAX_POOL) {
            return refuse("warm.size must be at most 64");
        }
        let lists = |pool: &PoolSettings| matches!(pool.network, NetworkPolicy::Allow(_));
        if self.warm.iter().any(lists) {
            return refuse("warm.network must be `open` or `none`, which serves allow-lists too");
        }
        let own = rustix::process::geteuid();
        if !own.is_root() && own.as_raw() != self.user.uid {
            return refuse("user must be the spoke's own, since only root can give its files away");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DockerSettings, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn root_is_nobody_to_be() {
        for user in [
            "0:0",
            "0:1",
            "1000:0",
            "root",
            "1000",
            "-1:5",
            "4294967296:1",
        ] {
            assert!(
                parse(&format!("image = 'x'\nuser = '{user}'")).is_err(),
                "{user}"
            );
        }
        let settings = parse("image = 'x'\nuser = '1000:1001'").unwrap();
        assert_eq!(settings.user.to_string(), "1000:1001");
    }

    #[test]
    fn a35_the_networks_of_others_are_refused() {
        for network in ["host", "container:abc", ""] {
            let settings = DockerSettings {
                network: network.to_owned(),
                ..DockerSettings::of_image("x")
            };
            assert!(settings.check().is_err(), "{network}");
        }
        DockerSettings::of_image("x").check().unwrap();
    }
}
