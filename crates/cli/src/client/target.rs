//! Which node to talk to, and by which token.

use std::{fs, net::IpAddr};

use crate::{
    args::Globals,
    error::{CliError, UsageError},
    ready::{self, Ready},
};

/// Which node of a running `mosaic dev` a verb is for, if none is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prefer {
    Hub,
    /// The only spoke.
    Spoke,
}

/// A node.
#[derive(Clone)]
pub(crate) struct Target {
    /// Without a slash at its end.
    pub(crate) url: String,
    pub(crate) token: String,
    /// Whether it is a spoke, if that is known.
    pub(crate) spoke: Option<bool>,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target")
            .field("url", &self.url)
            .field("spoke", &self.spoke)
            .finish_non_exhaustive()
    }
}

impl Target {
    /// Finds the node: by URL, by name in the ready file, or the ready file's own choice.
    pub(crate) fn find(globals: &Globals, prefer: Prefer) -> Result<Self, CliError> {
        let dir = globals.dir.clone().unwrap_or_else(ready::default_dir);
        let ready = Ready::read(&dir)?;
        let named = globals.node.as_deref();
        if let Some(url) = named.filter(|node| node.contains("://")) {
            let url = url.trim_end_matches('/').to_owned();
            let token = match explicit_token(globals)? {
                Some(token) => token,
                None => ready
                    .as_ref()
                    .and_then(|ready| ready.token_at(&url))
                    .ok_or_else(|| CliError::NoToken { url: url.clone() })?
                    .to_owned(),
            };
            return Ok(Self {
                url,
                token,
                spoke: None,
            });
        }
        let ready = match (ready, named) {
            (Some(ready), _) => ready,
            (None, Some(name)) => return Err(UsageError::NoSuchNode(name.to_owned()).into()),
            (None, None) => return Err(CliError::NoNode),
        };
        let name = match (named, prefer) {
            (Some(name), _) => name,
            (None, Prefer::Hub) => "hub",
            (None, Prefer::Spoke) if ready.spokes.len() == 1 => "spoke-1",
            (None, Prefer::Spoke) => return Err(UsageError::NameSpoke.into()),
        };
        let (url, token) = ready
            .node(name)
            .ok_or_else(|| UsageError::NoSuchNode(name.to_owned()))?;
        let token = explicit_token(globals)?.unwrap_or_else(|| token.to_owned());
        Ok(Self {
            url: url.to_owned(),
            token,
            spoke: Some(name != "hub"),
        })
    }

    /// The other nodes of the `mosaic dev` that the node is of.
    pub(crate) fn others(&self, globals: &Globals) -> Result<Vec<Self>, CliError> {
        let dir = globals.dir.clone().unwrap_or_else(ready::default_dir);
        let Some(ready) = Ready::read(&dir)? else {
            return Ok(Vec::new());
        };
        if ready.token_at(&self.url).is_none() {
            return Ok(Vec::new());
        }
        let others = ready.nodes().filter(|(url, ..)| *url != self.url);
        Ok(others
            .map(|(url, token, spoke)| Self {
                url: url.to_owned(),
                token: token.to_owned(),
                spoke: Some(spoke),
            })
            .collect())
    }

    /// Whether the node is on this machine, where no proxy may come between.
    pub(crate) fn is_loopback(&self) -> bool {
        let Ok(url) = reqwest::Url::parse(&self.url) else {
            return false;
        };
        url.host_str().is_some_and(|host| {
            host == "localhost"
                || host
                    .trim_matches(['[', ']'])
                    .parse::<IpAddr>()
                    .is_ok_and(|address| address.is_loopback())
        })
    }
}

/// The token that the user names. It is no flag: arguments can be read by everybody on the machine.
fn explicit_token(globals: &Globals) -> Result<Option<String>, CliError> {
    if let Some(path) = &globals.token_file {
        let text = fs::read_to_string(path).map_err(|source| CliError::File {
            action: "read",
            path: path.clone(),
            source,
        })?;
        return Ok(Some(text.trim().to_owned()));
    }
    Ok(std::env::var("MOSAIC_TOKEN")
        .ok()
        .filter(|token| !token.is_empty()))
}
