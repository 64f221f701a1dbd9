//! A network that is an allow-list: the agent's namespace has loopback and nothing else, and the one way out is a
//! proxy of ours which looks at each destination.
//!
//! ```text
//! agent ─► 127.0.0.1:3128 ─► init (pid 1) ─► proxy.sock ─► proxy in the shim ─► the host's network
//!          └──────── in the namespace ────────┘             └── rules, resolver, guard of addresses
//! ```
//!
//! - **What is not allowed is not reached**, whatever the agent does: it can leave the proxy variables alone, or speak to
//!   the socket itself, and finds the same rules. Names are judged as they were given, addresses as they were
//!   resolved, and what was judged is what is connected to (F18).
//! - **An agent holds up nobody**: connections, their heads and every wait are bounded, and each has a thread of its own.
//! - **Refusals are told**: each is a notice in the spool, up to a number.
//! - It lives and dies with the shim: it outlives the daemon, and a kill takes it along.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use mosaic_types::egress::{EgressRule, Host};
use serde::{Deserialize, Serialize};

mod destination;
mod forwarder;
mod head;
mod proxy;
mod refusals;
mod relay;
mod socket;

pub(super) use forwarder::forward;
pub(super) use proxy::Proxy;
pub(super) use refusals::Refusals;

/// Where the proxy is in an agent's namespace.
pub const PROXY_ADDRESS: &str = "127.0.0.1:3128";
/// The directory below the agent's, in which the socket is and nothing else.
const DIR: &str = "egress";
/// The socket's name in it.
const SOCKET: &str = "proxy.sock";

/// The directory that an agent with an allow-list sees of its agent directory, to be bound read-only into whatever
/// contains it.
#[must_use]
pub fn socket_dir(agent_dir: &Path) -> PathBuf {
    agent_dir.join(DIR)
}

/// The proxy's socket, in that directory as it is seen inside.
#[must_use]
pub fn socket_in(dir: &Path) -> PathBuf {
    dir.join(SOCKET)
}

/// What an agent may reach.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressRules {
    /// Its allow-list.
    pub allow: Vec<EgressRule>,
    /// What may lead to an address that is not public: the spoke's own settings, never a peer's.
    pub private: Vec<EgressRule>,
}

impl EgressRules {
    fn allow(&self, host: &Host, port: u16) -> bool {
        self.allow.iter().any(|rule| rule.allows(host, port))
    }

    fn may_be_private(&self, host: &Host, port: u16) -> bool {
        self.private.iter().any(|rule| rule.allows(host, port))
    }
}

/// Points programs to the proxy, and takes away what would point them elsewhere.
pub fn set_proxy_variables(env: &mut BTreeMap<String, String>) {
    for name in ["ALL_PROXY", "all_proxy"] {
        env.remove(name);
    }
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
        env.insert(name.to_owned(), format!("http://{PROXY_ADDRESS}"));
    }
    for name in ["NO_PROXY", "no_proxy"] {
        env.insert(name.to_owned(), "localhost,127.0.0.1,::1".to_owned());
    }
}
