//! A hub, and a spoke with containers whose `claude` is a program of this host that is lent to them.

use std::path::Path;

use mosaic_e2e::{
    api::Node,
    engine::{self, Engine},
    messages_api::{MessagesApi, Script},
    system::World,
};
use mosaic_types::AgentId;
use serde_json::json;

use crate::support;

/// Skips by name unless there is an engine with the image.
pub(super) fn has_image(image: &str, made_by: &str) -> bool {
    let found = Engine::of_the_machine().has_image(image);
    if !found {
        support::skip(&format!(
            "a Docker engine with the image {image}: {made_by}"
        ));
    }
    found
}

pub(super) fn has_test_image() -> bool {
    has_image(&engine::test_image(), ".ci/test-image")
}

/// A hub and its spoke.
pub(super) struct Docked {
    pub(super) world: World,
    pub(super) hub: Node,
    pub(super) spoke: Node,
    pub(super) connection: String,
}

impl Docked {
    /// With agents in containers of the image, and more lines of the spoke's configuration.
    pub(super) async fn start(mut world: World, image: &str, more: &str) -> Self {
        let hub = world.hub("hub").await;
        let spoke = world.docked_spoke("spoke", image, more).await;
        let connection = world.peer(&hub, &spoke, &["--repository", "**"]).await;
        Self {
            world,
            hub,
            spoke,
            connection,
        }
    }

    /// With the real Claude Code of this host, which asks a stand-in that plays this script.
    pub(super) async fn with_claude(script: Script) -> Option<(Self, MessagesApi)> {
        if !has_test_image() {
            return None;
        }
        let program = support::claude_cli()?;
        let (world, api) = world_with(script).await;
        let runtime = claude_runtime(&program, 900, 10);
        let docked = Self::start(world, &engine::test_image(), &runtime).await;
        Some((docked, api))
    }

    /// Spawns an agent of the runtime `claude`.
    pub(super) async fn spawn(&self) -> AgentId {
        let agent = AgentId::generate();
        let body = json!({
            "connectionId": self.connection,
            "agentId": agent,
            "taskId": "MOS-1",
            "agentType": "worker",
            "context": {
                "repository": self.world.repository_url(),
                "branch": "main",
                "workItems": ["Write hello.txt"],
            },
        });
        self.hub.spawn(&body).await.ok();
        agent
    }

    /// The containers there are.
    pub(super) fn containers(&self) -> Vec<String> {
        Engine::of_the_machine().containers_of(&self.world.marker())
    }
}

/// A world, and its model's service where containers reach it.
pub(super) async fn world_with(script: Script) -> (World, MessagesApi) {
    let api = MessagesApi::start_at(Engine::of_the_machine().gateway(), script)
        .await
        .unwrap();
    let mut world = World::new();
    world.set_env("ANTHROPIC_BASE_URL", api.base_url());
    world.set_env("ANTHROPIC_API_KEY", "not-a-key");
    world.set_env("A_SECRET_OF_THE_OPERATOR", "never-to-be-seen");
    (world, api)
}

/// The built-in `claude`, but for its program and limits; and with somebody to commit as.
pub(super) fn claude_runtime(program: &Path, silence_secs: u64, grace_secs: u64) -> String {
    format!(
        r#"
[[runtimes]]
name = "claude"
program = {program:?}
args = ["-p", "--output-format", "stream-json", "--verbose", "--no-session-persistence",
    "--dangerously-skip-permissions"]
prompt = "stdin"
output = "claude-stream-json"
env-allow = ["ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"]
silence-timeout-secs = {silence_secs}
result-grace-secs = {grace_secs}
[runtimes.env]
CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC = "1"
DISABLE_AUTOUPDATER = "1"
IS_SANDBOX = "1"
GIT_AUTHOR_NAME = "A"
GIT_AUTHOR_EMAIL = "a@example.invalid"
GIT_COMMITTER_NAME = "A"
GIT_COMMITTER_EMAIL = "a@example.invalid"
"#
    )
}
