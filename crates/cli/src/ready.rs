//! What `mosaic dev` tells: the ready line, and the same in a file (0600) in its data folder, so that the other
//! verbs find the nodes.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use mosaic_types::{ConnectionId, InstanceId};
use serde::{Deserialize, Serialize};

use crate::error::CliError;

const FILE: &str = "ready.json";

/// A hub and its spokes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ready {
    pub(crate) hub: ReadyHub,
    pub(crate) spokes: Vec<ReadySpoke>,
}

/// Where the hub is, and its admin's token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReadyHub {
    pub(crate) url: String,
    pub(crate) token: String,
    pub(crate) instance_id: InstanceId,
}

/// Where a spoke is, its admin's token, and the hub's connection to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReadySpoke {
    pub(crate) url: String,
    pub(crate) token: String,
    pub(crate) instance_id: InstanceId,
    pub(crate) connection_id: ConnectionId,
}

impl Ready {
    /// Reads the file, if a `mosaic dev` left one in `dir`.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>, CliError> {
        let path = dir.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| CliError::Parse { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(CliError::File {
                action: "read",
                path,
                source,
            }),
        }
    }

    /// Writes the file, so that nobody sees half of it, and nobody else any of it.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), CliError> {
        let path = dir.join(FILE);
        let fresh = dir.join(format!("{FILE}.new"));
        let failed = |source| CliError::File {
            action: "write",
            path: path.clone(),
            source,
        };
        let bytes = serde_json::to_vec(self)?;
        // A file that a crash left might have another mode.
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)
            .map_err(failed)?;
        file.write_all(&bytes).map_err(failed)?;
        fs::rename(&fresh, &path).map_err(failed)
    }

    /// Removes the file; one that is not there is fine.
    pub(crate) fn remove(dir: &Path) -> Result<(), CliError> {
        let path = dir.join(FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CliError::File {
                action: "remove",
                path,
                source: error,
            }),
            _ => Ok(()),
        }
    }

    /// The URL and token of the node called `name`: `hub`, `spoke-1`, ...
    pub(crate) fn node(&self, name: &str) -> Option<(&str, &str)> {
        if name == "hub" {
            return Some((&self.hub.url, &self.hub.token));
        }
        let number: usize = name.strip_prefix("spoke-")?.parse().ok()?;
        let spoke = self.spokes.get(number.checked_sub(1)?)?;
        Some((&spoke.url, &spoke.token))
    }

    /// URL and token of every node, and whether it is a spoke.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&str, &str, bool)> {
        let hub = (self.hub.url.as_str(), self.hub.token.as_str(), false);
        let spokes = self.spokes.iter();
        std::iter::once(hub)
            .chain(spokes.map(|spoke| (spoke.url.as_str(), spoke.token.as_str(), true)))
    }

    /// The token of the node at `url`.
    pub(crate) fn token_at(&self, url: &str) -> Option<&str> {
        self.nodes()
            .find(|(known, ..)| known.trim_end_matches('/') == url.trim_end_matches('/'))
            .map(|(_, token, _)| token)
    }
}

/// The data folder of `mosaic dev` if none is named.
pub(crate) fn default_dir() -> PathBuf {
    let set = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("XDG_STATE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| set("HOME").map(|home| home.join(".local/state")))
        .unwrap_or_else(std::env::temp_dir)
        .join("mosaic/dev")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn ready() -> Ready {
        let instance: InstanceId = format!("mi1{}", "a".repeat(32)).parse().unwrap();
        Ready {
            hub: ReadyHub {
                url: "http://127.0.0.1:1".to_owned(),
                token: "one".to_owned(),
                instance_id: instance.clone(),
            },
            spokes: vec![ReadySpoke {
                url: "http://127.0.0.1:2".to_owned(),
                token: "two".to_owned(),
                instance_id: instance,
                connection_id: ConnectionId::generate(),
            }],
        }
    }

    #[test]
    fn the_file_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        ready().write(dir.path()).unwrap();
        ready().write(dir.path()).unwrap();
        let mode = fs::metadata(dir.path().join(FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(Ready::read(dir.path()).unwrap().is_some());
        Ready::remove(dir.path()).unwrap();
        Ready::remove(dir.path()).unwrap();
        assert_eq!(Ready::read(dir.path()).unwrap(), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn nodes_have_names() {
        let ready = ready();
        assert_eq!(ready.node("hub"), Some(("http://127.0.0.1:1", "one")));
        assert_eq!(ready.node("spoke-1"), Some(("http://127.0.0.1:2", "two")));
        for bad in ["spoke-0", "spoke-2", "spoke-", "spoke", "x"] {
            assert_eq!(ready.node(bad), None, "{bad}");
        }
        assert_eq!(ready.token_at("http://127.0.0.1:2/"), Some("two"));
        assert_eq!(ready.token_at("http://127.0.0.1:3"), None);
    }

    #[test]
    fn the_ready_line_is_as_designed() {
        let line = serde_json::to_value(ready()).unwrap();
        for pointer in [
            "/hub/url",
            "/hub/token",
            "/hub/instanceId",
            "/spokes/0/url",
            "/spokes/0/connectionId",
        ] {
            assert!(line.pointer(pointer).is_some(), "{pointer}");
        }
    }
}
