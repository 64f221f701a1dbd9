//! Where the agents of a test live, and what is looked at there when its story is over.

use std::{fs, process::Command};

use mosaic_e2e::{api::eventually, engine::private::PrivateEngine};
use tempfile::NamedTempFile;

use super::arm;
use crate::{docker::engine::settings_in_words, rig::Spoke};

/// See the module documentation.
pub(super) enum Home<'a> {
    /// In processes of this host.
    Processes,
    /// In containers of this engine, which all points of a test share.
    Containers(&'a PrivateEngine),
    /// In containers that were there before them.
    Waiting(&'a PrivateEngine),
}

impl Home<'_> {
    /// A spoke with one slot, so that one that is lost is missed.
    pub(super) async fn start(&self) -> Spoke {
        self.start_as(|_| {}).await
    }

    /// The same, that is to die at a point.
    pub(super) async fn armed(&self, point: &str) -> Spoke {
        self.start_as(|command| arm(command, point)).await
    }

    async fn start_as(&self, change: impl FnOnce(&mut Command)) -> Spoke {
        let settings = self.settings();
        if !matches!(self, Self::Waiting(_)) {
            return Spoke::start_process_as(&settings, change).await;
        }
        let log = NamedTempFile::new().unwrap();
        let spoke = Spoke::start_process_as(&settings, |command| {
            change(command);
            command
                .env("RUST_LOG", "mosaic_orchestrator=info")
                .stderr(log.reopen().unwrap());
        })
        .await;
        eventually("a container that waits", async || {
            let said = fs::read_to_string(log.path()).unwrap();
            said.contains("a container waits").then_some(())
        })
        .await;
        spoke
    }

    fn settings(&self) -> String {
        let limits = "[limits]\nmax-running = 1\nreconcile-secs = 1\n".to_owned();
        let pool = "[[sandbox.docker.warm]]\nruntime = \"shell\"\nsize = 1\n";
        match self {
            Self::Processes => limits,
            Self::Containers(engine) => limits + &settings_in_words(engine, ""),
            Self::Waiting(engine) => limits + &settings_in_words(engine, pool),
        }
    }

    /// Stops the spoke, and checks that nothing of it is left, in the engine neither.
    pub(super) async fn stop(&self, spoke: Spoke) {
        let (Self::Containers(engine) | Self::Waiting(engine)) = self else {
            return spoke.stop().await;
        };
        let slots = spoke.data_dir().join("warm");
        // What the dead daemon had asked for goes with a sweep; what waits for agents to come, with its daemon.
        eventually("no container but those that wait", async || {
            let waits = |name: &String| {
                let slot = name.strip_prefix("mosaic-warm-");
                slot.is_some_and(|slot| slots.join(slot).exists())
            };
            engine.containers().iter().all(waits).then_some(())
        })
        .await;
        spoke
            .stop_with(|| assert_eq!(engine.containers(), Vec::<String>::new()))
            .await;
        let left = fs::read_dir(slots).into_iter().flatten().count();
        assert_eq!(left, 0, "slots are left");
    }
}
