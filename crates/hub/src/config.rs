//! Configuration of a hub: a TOML file, and flags or variables that go before it. Read once, and refused before
//! anything is bound or written. It holds no secrets: keys and tokens live in the data folder.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::Parser;
use mosaic_node::{HttpLimits, NodeConfig};
use mosaic_types::connection::NodeRole;
use serde::Deserialize;

/// Where a hub listens if nothing is said.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7600";
const DEFAULT_NAME: &str = "hub";
const MAX_NAME_CHARS: usize = 64;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("failed to read the configuration {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what a hub takes.
    #[error("failed to understand the configuration {}", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        source: toml::de::Error,
    },
    /// No data folder is named.
    #[error(
        "no `data-dir` is configured: name one in the file, by --data-dir or MOSAIC_HUB_DATA_DIR"
    )]
    NoDataDir,
    /// A value is not legal.
    #[error("`{field}` is not legal: {why}")]
    Illegal {
        /// Which.
        field: &'static str,
        /// What it must be.
        why: &'static str,
    },
}

/// A hub: decides and routes, serves its operators and their spokes.
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "mosaic-hub", version)]
pub struct Flags {
    /// Configuration file (TOML)
    #[arg(long, env = "MOSAIC_HUB_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where keys, tokens and the store live; made with mode 0700 if it is not there
    #[arg(long, env = "MOSAIC_HUB_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address to listen on [default: 127.0.0.1:7600]
    #[arg(long, env = "MOSAIC_HUB_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Name that peers see [default: hub]
    #[arg(long, env = "MOSAIC_HUB_NAME")]
    pub name: Option<String>,
    /// URL at which peers reach this hub
    #[arg(long, env = "MOSAIC_HUB_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,
    /// Allow peers at private and loopback addresses
    #[arg(long, env = "MOSAIC_HUB_ALLOW_PRIVATE_PEERS")]
    pub allow_private_peers: bool,
    /// Log as JSON, one object a line
    #[arg(long, env = "MOSAIC_HUB_LOG_JSON")]
    pub log_json: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct File {
    data_dir: Option<PathBuf>,
    listen: Option<SocketAddr>,
    name: Option<String>,
    public_url: Option<String>,
    allow_private_peers: bool,
    log_json: bool,
}

/// A configuration that was checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where keys, tokens and the store live.
    pub data_dir: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Name that peers see.
    pub name: String,
    /// URL at which peers reach this hub; the listening address if absent.
    pub public_url: Option<String>,
    /// Whether peers may be at private and loopback addresses.
    pub allow_private_peers: bool,
    /// Whether to log as JSON.
    pub log_json: bool,
    /// Limits of the server.
    pub limits: HttpLimits,
}

impl Config {
    /// Reads the file that the flags name, and lets the flags go before it.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(flags: Flags) -> Result<Self, ConfigError> {
        let file = flags
            .config
            .as_deref()
            .map(read)
            .transpose()?
            .unwrap_or_default();
        let config = Self {
            data_dir: flags
                .data_dir
                .or(file.data_dir)
                .ok_or(ConfigError::NoDataDir)?,
            listen: match flags.listen.or(file.listen) {
                Some(listen) => listen,
                None => DEFAULT_LISTEN.parse().map_err(|_| ConfigError::Illegal {
                    field: "listen",
                    why: "it must be an address and a port",
                })?,
            },
            name: flags
                .name
                .or(file.name)
                .unwrap_or_else(|| DEFAULT_NAME.to_owned()),
            public_url: flags.public_url.or(file.public_url),
            allow_private_peers: flags.allow_private_peers || file.allow_private_peers,
            log_json: flags.log_json || file.log_json,
            limits: HttpLimits::default(),
        };
        config.check()?;
        Ok(config)
    }

    /// For `mosaic dev` and tests: loopback peers are allowed, and the listener is the caller's.
    #[must_use]
    pub fn dev(data_dir: PathBuf, name: &str) -> Self {
        Self {
            data_dir,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            name: name.to_owned(),
            public_url: None,
            allow_private_peers: true,
            log_json: false,
            limits: HttpLimits::default(),
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let printable = self.name.chars().all(|c| !c.is_control());
        if self.name.is_empty() || self.name.chars().count() > MAX_NAME_CHARS || !printable {
            return Err(ConfigError::Illegal {
                field: "name",
                why: "it must have 1 to 64 characters, none of them a control character",
            });
        }
        if self.data_dir.as_os_str().is_empty() {
            return Err(ConfigError::NoDataDir);
        }
        if self
            .public_url
            .as_deref()
            .is_some_and(|url| !is_origin(url))
        {
            return Err(ConfigError::Illegal {
                field: "public-url",
                why: "it must be http:// or https://, a host and perhaps a port, and nothing else",
            });
        }
        Ok(())
    }

    pub(crate) fn node(&self) -> NodeConfig {
        NodeConfig {
            data_dir: self.data_dir.clone(),
            name: self.name.clone(),
            role: NodeRole::Hub,
            public_url: self.public_url.clone(),
            allow_private_peers: self.allow_private_peers,
            limits: self.limits.clone(),
        }
    }
}

fn is_origin(url: &str) -> bool {
    let Ok(uri) = url.parse::<axum::http::Uri>() else {
        return false;
    };
    let plain = uri.path() == "/" && uri.query().is_none() && !url.contains('#');
    let host = uri
        .authority()
        .is_some_and(|a| !a.host().is_empty() && !a.as_str().contains('@'));
    matches!(uri.scheme_str(), Some("http" | "https")) && host && plain
}

fn read(path: &Path) -> Result<File, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    toml::from_str(&text).map_err(|source| ConfigError::Parse {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(file: &str) -> (tempfile::TempDir, Flags) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hub.toml");
        std::fs::write(&path, file).unwrap();
        (
            dir,
            Flags {
                config: Some(path),
                ..Flags::default()
            },
        )
    }

    #[test]
    fn flags_go_before_the_file_and_the_file_before_defaults() {
        let (_dir, mut flags) =
            flags("data-dir = '/srv/hub'\nname = 'file'\npublic-url = 'https://hub.example'\n");
        flags.name = Some("flag".to_owned());
        let config = Config::load(flags).unwrap();
        assert_eq!(config.name, "flag");
        assert_eq!(config.data_dir, Path::new("/srv/hub"));
        assert_eq!(config.listen.to_string(), DEFAULT_LISTEN);
        assert!(!config.allow_private_peers);
    }

    #[test]
    fn what_is_not_legal_is_refused_by_name() {
        for (file, expected) in [
            ("", "data-dir"),
            ("data-dir = '/x'\nname = ''", "`name`"),
            ("data-dir = '/x'\npublic-url = 'ftp://x'", "`public-url`"),
            (
                "data-dir = '/x'\npublic-url = 'https://u:p@x'",
                "`public-url`",
            ),
            (
                "data-dir = '/x'\npublic-url = 'https://x/path'",
                "`public-url`",
            ),
        ] {
            let (_dir, flags) = flags(file);
            let error = Config::load(flags).unwrap_err().to_string();
            assert!(error.contains(expected), "{file:?}: {error}");
        }
        let (_dir, flags) = flags("data-dir = '/x'\nlissten = '127.0.0.1:1'");
        assert!(matches!(
            Config::load(flags),
            Err(ConfigError::Parse { .. })
        ));
    }

    #[test]
    fn the_example_is_taken_and_shows_the_defaults() {
        let example = include_str!("../../../deploy/mosaic-hub.toml");
        let uncommented: String = example
            .lines()
            .map(|line| {
                let bare = line.strip_prefix("# ").unwrap_or(line);
                format!("{}\n", if bare.contains(" = ") { bare } else { line })
            })
            .collect();
        let (_dir, as_it_is) = flags(example);
        let (_dir2, shown) = flags(&uncommented);
        let (as_it_is, shown) = (
            Config::load(as_it_is).unwrap(),
            Config::load(shown).unwrap(),
        );
        assert_eq!(as_it_is.data_dir, shown.data_dir);
        assert_eq!(
            (as_it_is.listen, as_it_is.name, as_it_is.log_json),
            (shown.listen, shown.name, shown.log_json)
        );
    }

    #[test]
    fn flags_are_well_formed() {
        use clap::CommandFactory;
        Flags::command().debug_assert();
    }
}
