//! What an agent in a container reaches: nothing, what a list names, or what the engine's network gives.

use mosaic_orchestrator::sandbox::PoolSettings;
use mosaic_types::{AgentId, agent::ObservedState, command::NetworkPolicy};
use serde_json::json;

use super::rig::Docked;
use crate::sandbox::egress::{CLIENT, Server};

/// A list is kept in a container that was made for the agent, and in one that waited for it.
#[tokio::test]
async fn f18_a_container_reaches_what_its_list_names_and_nothing_else() {
    let server = Server::start();
    let at = format!("127.0.0.1:{}", server.port);
    for waiting in [0, 1] {
        let docked = Docked::start_with(|config| {
            config.egress.private_hosts = vec![at.parse().unwrap()];
            config.sandbox.docker.as_mut().unwrap().warm = vec![PoolSettings {
                runtime: "shell".parse().unwrap(),
                size: waiting,
                network: NetworkPolicy::None,
            }];
        })
        .await;
        let Some(docked) = docked else { return };
        docked.filled(waiting).await;
        let script = format!(
            "cat > ask.sh <<'END'\n{CLIENT}\nask 'GET http://{at}/'; ask 'CONNECT elsewhere.example:443'\n\
             (exec 3<>/dev/tcp/{host}/{port}) 2>&1; tail -n +3 /proc/net/dev | cut -d: -f1\nEND\nexec bash ask.sh",
            host = "127.0.0.1",
            port = server.port,
        );
        let agent = docked
            .spawn_with(&script, json!({"network": {"allow": [at]}}))
            .await;
        let story = docked.spoke.follow(agent, None, |_| false).await;
        let status = docked.spoke.status(agent).await;
        assert_eq!(status.state, ObservedState::Completed, "{story}");
        for needed in [
            &format!("GET http://{at}/: HTTP/1.1 200 OK"),
            "\"destination\":\"elsewhere.example:443\"",
            "Connection refused",
        ] {
            assert!(story.contains(needed), "{needed:?} in {story}");
        }
        assert_eq!(status.summary.unwrap().lines().last().unwrap().trim(), "lo");
        docked.stop().await;
    }
}

/// Neither a container that is made nor one that waited tells the engine what its agent knows.
#[tokio::test]
async fn a_secret_is_unknown_to_the_engine() {
    for waiting in [0, 1] {
        let secret = format!("sk-{}", AgentId::generate());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, &secret).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        let docked = Docked::start_with(|config| {
            let runtime = format!(
                "name = 'teller'\nprogram = 'sh'\nargs = ['-c', '{{instructions}}']\nprompt = 'argument'\n\
                 secret-env = {{ API_KEY = {{ file = {file:?} }} }}"
            );
            config.runtimes = vec![toml::from_str(&runtime).unwrap()];
            config.sandbox.docker.as_mut().unwrap().warm = vec![PoolSettings {
                runtime: "teller".parse().unwrap(),
                size: waiting,
                network: NetworkPolicy::None,
            }];
        })
        .await;
        let Some(docked) = docked else { return };
        docked.filled_of("teller", waiting).await;
        let script = "echo \"it is $API_KEY, of ${#API_KEY} characters\"; exec sleep 1000";
        let agent = docked
            .spawn_of("teller", script, json!({"network": "none"}))
            .await;
        docked.spoke.wrote(agent, "of 39 characters").await;
        let story = docked
            .spoke
            .follow(agent, None, |seen| seen.contains("characters"))
            .await;
        assert!(
            story.contains("[secret:") && !story.contains(&secret),
            "{story}"
        );
        let name = docked.container_of(agent);
        assert!(!super::rig::docker(&["inspect", &name]).contains(&secret));
        docked.spoke.kill(agent).await;
        docked.spoke.finished(agent).await;
        docked.stop().await;
    }
}
