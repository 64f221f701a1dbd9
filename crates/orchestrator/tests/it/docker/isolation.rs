//! What an agent in a container can reach, and what it cannot.

use mosaic_types::{AgentId, agent::EndReason};
use serde_json::json;

use super::rig::{Docked, docker};
use crate::rig::FOREVER;

#[tokio::test]
async fn a35_a_container_is_nobody_and_owns_nothing_of_the_host() {
    let Some(docked) = Docked::start().await else {
        return;
    };
    let told = docked
        .run(
            "id -u; grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; \
             touch /root-is-mine 2>&1; ls /proc | grep -c '^[0-9]'; \
             ls /var/run/docker.sock 2>&1; cat /proc/1/environ 2>&1 | tr '\\0' '\\n'; \
             ls -d /.mosaic/kit && touch /.mosaic/kit/x 2>&1; env | sort",
        )
        .await;
    assert!(!told.starts_with('0'), "{told}");
    for needed in [
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "Read-only file system",
    ] {
        assert!(told.contains(needed), "{needed:?} in {told}");
    }
    assert!(
        told.contains("docker.sock': No such file")
            || told.contains("docker.sock: No such file")
            || told.contains("cannot access '/var/run/docker.sock'"),
        "{told}"
    );
    docked.stop().await;
}

#[tokio::test]
async fn a_container_is_described_without_its_secrets_and_limited() {
    let Some(docked) = Docked::start().await else {
        return;
    };
    let agent = docked
        .spawn_with(
            FOREVER,
            json!({"network": "none", "memoryMb": 128, "cpus": 0.5}),
        )
        .await;
    docked.spoke.wrote(agent, "at-work").await;
    let seen = docked.inspect(agent);
    let host = &seen["HostConfig"];
    assert_eq!(host["Memory"], 128 << 20);
    assert_eq!(host["NanoCpus"], 500_000_000);
    assert_eq!(host["RestartPolicy"]["Name"], "no");
    assert_eq!(host["AutoRemove"], false);
    assert_eq!(host["LogConfig"]["Type"], "none");
    assert_eq!(host["NetworkMode"], "none");
    assert_eq!(host["Privileged"], false);
    assert_eq!(
        seen["Config"]["Labels"]["dev.mosaic.agent"],
        agent.to_string()
    );
    assert!(
        !seen.to_string().contains("exec sleep 1000"),
        "the script is the shim's to tell: {seen:#}"
    );
    docked.spoke.kill(agent).await;
    docked.spoke.finished(agent).await;
    docked.stop().await;
}

#[tokio::test]
async fn without_a_network_there_is_loopback_alone() {
    let Some(docked) = Docked::start().await else {
        return;
    };
    let told = docked.run("tail -n +3 /proc/net/dev | cut -d: -f1").await;
    assert_eq!(told.trim(), "lo");
    docked.stop().await;
}

#[tokio::test]
async fn a19_a_sibling_and_the_mirror_are_out_of_reach() {
    let Some(docked) = Docked::start().await else {
        return;
    };
    let sibling = docked.spawn_with(FOREVER, json!({"network": "none"})).await;
    docked.spoke.wrote(sibling, "at-work").await;
    let data = docked.spoke.data_dir().display().to_string();
    let mirror = docked.spoke.mirror();
    let told = docked
        .run(&format!(
            "ls {data} {data}/agents 2>&1; ls {data}/agents/{sibling} 2>&1; \
             touch {0}/objects/x 2>&1; ls {0} 2>&1; cat {data}/identity.key 2>&1; git log --oneline | wc -l",
            mirror.display()
        ))
        .await;
    assert!(!told.contains(&format!("{sibling}\n")), "{told}");
    assert!(told.contains("Read-only file system"), "{told}");
    assert!(!told.contains("HEAD"), "{told}");
    docked.spoke.kill(sibling).await;
    docked.spoke.finished(sibling).await;
    docked.stop().await;
}

/// What a runtime is lent has the data folder in it: nothing would hide that.
#[tokio::test]
async fn a_launch_that_would_show_the_data_folder_is_refused() {
    let docked = Docked::start_with(|config| {
        let around = config.data_dir.parent().unwrap();
        let runtime = format!(
            "name = 'curious'\nprogram = 'sh'\nargs = ['-c', '{{instructions}}']\nprompt = 'argument'\n\
             read-only-paths = [{around:?}]"
        );
        config.runtimes = vec![toml::from_str(&runtime).unwrap()];
    })
    .await;
    let Some(docked) = docked else { return };
    let agent = docked
        .spawn_of("curious", "true", json!({"maxRetries": 3}))
        .await;
    let status = docked.spoke.finished(agent).await;
    assert_eq!(status.reason, Some(EndReason::SpawnFailed), "{status:#?}");
    assert_eq!(status.attempt, 1, "no other attempt would do better");
    let detail = status.detail.unwrap();
    assert!(detail.contains("which is masked"), "{detail}");
    docked.stop().await;
}

/// An image of one test's own, which wants a volume.
struct WithVolume(String);

impl WithVolume {
    fn make() -> Self {
        let name = format!("mosaic-test-volume:{}", AgentId::generate());
        let container = docker(&["create", &super::rig::image(), "true"]);
        docker(&["commit", "--change", "VOLUME /data", &container, &name]);
        docker(&["rm", &container]);
        Self(name)
    }
}

impl Drop for WithVolume {
    fn drop(&mut self) {
        let _ = std::process::Command::new("docker")
            .args(["rmi", &self.0])
            .output();
    }
}

#[tokio::test]
async fn an_images_volume_is_memory_and_leaves_nothing_at_the_engine() {
    if !super::rig::can_run() {
        return;
    }
    let image = WithVolume::make();
    let docked = Docked::start_with(|config| {
        config.sandbox.docker.as_mut().unwrap().image = image.0.clone()
    })
    .await;
    let Some(docked) = docked else { return };
    let before = docker(&["volume", "ls", "-q"]);
    let told = docked
        .run("grep ' /data ' /proc/mounts | cut -d' ' -f1; touch /data/mine && echo written")
        .await;
    assert_eq!(told.trim(), "tmpfs\nwritten");
    assert_eq!(docker(&["volume", "ls", "-q"]), before);
    docked.stop().await;
}
