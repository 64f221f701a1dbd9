//! Engines of containers, by their own command line: what they have, and what they have left of a system.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a harness fails by failing its test"
)]

pub mod private;

use std::{
    net::Ipv4Addr,
    path::PathBuf,
    process::{Command, Output},
};

use serde_json::Value;

/// What each of our containers, networks and volumes carries, with its spoke's instance.
pub const LABEL_INSTANCE: &str = "dev.mosaic.instance";

/// The image that tests' containers are of: Debian with git.
#[must_use]
pub fn test_image() -> String {
    std::env::var("MOSAIC_TEST_IMAGE").unwrap_or_else(|_| "mosaic-test-base:1".to_owned())
}

/// The image of `deploy/agent-image`, with Claude Code in it.
#[must_use]
pub fn agent_image() -> String {
    std::env::var("MOSAIC_AGENT_IMAGE").unwrap_or_else(|_| "mosaic-agent:1".to_owned())
}

/// An engine, by its socket.
#[derive(Debug, Clone, Default)]
pub struct Engine {
    socket: Option<PathBuf>,
}

impl Engine {
    /// The one that the command line finds by itself: the machine's.
    #[must_use]
    pub fn of_the_machine() -> Self {
        Self::default()
    }

    /// The one at this socket.
    #[must_use]
    pub fn at(socket: PathBuf) -> Self {
        Self {
            socket: Some(socket),
        }
    }

    /// Whether it answers.
    #[must_use]
    pub fn answers(&self) -> bool {
        self.has(&["version"])
    }

    /// Whether it answers and has the image.
    #[must_use]
    pub fn has_image(&self, image: &str) -> bool {
        self.has(&["image", "inspect", image])
    }

    fn has(&self, args: &[&str]) -> bool {
        self.run(args).is_some_and(|output| output.status.success())
    }

    /// What the command line says of it.
    ///
    /// # Panics
    /// It fails.
    #[must_use]
    pub fn docker(&self, args: &[&str]) -> String {
        let output = self.run(args).expect("docker runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "docker {args:?}: {said}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn run(&self, args: &[&str]) -> Option<Output> {
        let mut docker = Command::new("docker");
        if let Some(socket) = &self.socket {
            docker
                .arg("--host")
                .arg(format!("unix://{}", socket.display()));
        }
        docker.args(args).output().ok()
    }

    /// Our containers that `marker` is in the description of: its path, as what is mounted, or its instance. Dead ones
    /// count.
    ///
    /// # Panics
    /// It does not answer.
    #[must_use]
    pub fn containers_of(&self, marker: &str) -> Vec<String> {
        self.find_containers_of(marker).expect("an engine answers")
    }

    fn find_containers_of(&self, marker: &str) -> Option<Vec<String>> {
        let filter = format!("label={LABEL_INSTANCE}");
        let ids = self.run(&["ps", "-aq", "--no-trunc", "--filter", &filter])?;
        if !ids.status.success() {
            return None;
        }
        let ids = String::from_utf8(ids.stdout).ok()?;
        let ids: Vec<&str> = ids.lines().collect();
        if ids.is_empty() {
            return Some(Vec::new());
        }
        // It fails if one went meanwhile, and tells of the others.
        let told = self.run(&[&["inspect"], ids.as_slice()].concat())?;
        let told: Vec<Value> = serde_json::from_slice(&told.stdout).ok()?;
        let ours = told
            .iter()
            .filter(|container| container.to_string().contains(marker))
            .filter_map(|container| Some(container["Name"].as_str()?.trim_matches('/').to_owned()))
            .collect();
        Some(ours)
    }

    /// Removes our containers that `marker` is in the description of, if it answers. Never fails.
    pub fn sweep(&self, marker: &str) {
        self.remove_containers(&self.find_containers_of(marker).unwrap_or_default());
    }

    /// The networks and volumes of a spoke's instance.
    #[must_use]
    pub fn networks_and_volumes_of(&self, instance: &str) -> Vec<String> {
        let filter = format!("label={LABEL_INSTANCE}={instance}");
        ["network", "volume"]
            .iter()
            .flat_map(|kind| {
                let args = [kind, "ls", "--filter", &filter, "--format", "{{.Name}}"];
                let names = self.docker(&args);
                let named = |name: &str| format!("{kind} {name}");
                names.lines().map(named).collect::<Vec<_>>()
            })
            .collect()
    }

    /// Removes containers, whatever runs in them, with their volumes.
    pub fn remove_containers(&self, names: &[String]) {
        for name in names {
            let _ = self.run(&["rm", "-f", "-v", name]);
        }
    }

    /// The address of this host that containers on its own bridge reach, and nobody beyond this host does.
    ///
    /// # Panics
    /// There is no such bridge.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        let told = self.docker(&["network", "inspect", "bridge"]);
        let told: Value = serde_json::from_str(&told).unwrap();
        let ipv4 = |name: &str| -> Option<Ipv4Addr> {
            let configs = told[0]["IPAM"]["Config"].as_array()?;
            configs.iter().find_map(|config| {
                let text = config[name].as_str()?;
                text.split('/').next()?.parse().ok()
            })
        };
        // Some engines tell of the subnet alone; its first address is the bridge's then.
        ipv4("Gateway")
            .or_else(|| Some(Ipv4Addr::from(u32::from(ipv4("Subnet")?) + 1)))
            .expect("the bridge has an address")
    }
}
