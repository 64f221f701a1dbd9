//! Containers that wait for agents: taken once, as isolated as any, gone with a kill-all, never used again.

use std::path::Path;

use mosaic_e2e::{api::eventually, engine::private::IMAGE};
use mosaic_orchestrator::sandbox::PoolSettings;
use mosaic_types::{
    AgentId,
    agent::{EndReason, ObservedState},
    command::NetworkPolicy,
};
use reqwest::Method;
use serde_json::json;

use super::{
    engine::Troubled,
    rig::{Docked, docker},
};
use crate::rig::{FOREVER, PATIENCE, git};

/// So many of them for `shell`, without a network.
pub(super) fn pool(size: usize) -> Vec<PoolSettings> {
    vec![PoolSettings {
        runtime: "shell".parse().unwrap(),
        size,
        network: NetworkPolicy::None,
    }]
}

async fn start(size: usize) -> Option<Docked> {
    let docked = Docked::start_with(|config| {
        config.limits.reconcile_secs = 1;
        config.sandbox.docker.as_mut().unwrap().warm = pool(size);
    })
    .await?;
    docked.filled(size).await;
    Some(docked)
}

/// The names of the containers that wait, of whichever spoke.
fn ids_of_waiting(docked: &Docked) -> Vec<String> {
    let folder = docked.spoke.data_dir().join("warm");
    let slots = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let all = docker(&["ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.Names}}"]);
    slots
        .filter_map(|slot| {
            let name = format!("mosaic-warm-{}", slot.file_name().to_str()?);
            let line = all.lines().find(|line| line.ends_with(&name))?;
            Some(line.split(' ').next()?.to_owned())
        })
        .collect()
}

#[tokio::test]
async fn a_waiting_container_becomes_its_agents_and_another_takes_its_place() {
    let Some(docked) = start(1).await else { return };
    let waiting = ids_of_waiting(&docked);
    assert_eq!(waiting.len(), 1);
    let script = "echo made > here; pwd; id -u; ls /proc/self/fd >/dev/null; echo at-work; until [ -e go-on ]; do sleep 0.05; done";
    let agent = docked
        .spawn_with(script, json!({"network": "none", "memoryMb": 96}))
        .await;
    docked.spoke.wrote(agent, "at-work").await;
    // The very container that waited, under its agent's name by now or soon.
    let pid = docker(&["inspect", "-f", "{{.State.Pid}}", &waiting[0]]);
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let memory = groups
        .lines()
        .find_map(|line| line.split_once(":memory:"))
        .unwrap()
        .1;
    let limit = std::fs::read_to_string(format!(
        "/sys/fs/cgroup/memory{memory}/memory.limit_in_bytes"
    ));
    assert_eq!(limit.unwrap().trim(), (96 << 20).to_string());
    // Where the kernel counts swap, it is in the limit.
    let with_swap = format!("/sys/fs/cgroup/memory{memory}/memory.memsw.limit_in_bytes");
    if let Ok(limit) = std::fs::read_to_string(with_swap) {
        assert_eq!(limit.trim(), (96 << 20).to_string());
    }
    let unified = groups
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap();
    assert!(unified.contains(&agent.to_string()), "{unified}");
    docked.filled(1).await;
    assert_ne!(ids_of_waiting(&docked), waiting, "never used twice");
    std::fs::write(
        docked
            .spoke
            .data_dir()
            .join(format!("agents/{agent}/work/go-on")),
        "",
    )
    .unwrap();
    let status = docked.spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Completed, "{status:#?}");
    let made = git(
        &docked.spoke.mirror(),
        &["show", &format!("mosaic/{agent}:here")],
    );
    assert_eq!(made, "made");
    let all = docker(&["ps", "-a", "--no-trunc", "--format", "{{.ID}}"]);
    assert!(!all.contains(&waiting[0]), "removed with its agent");
    docked.stop().await;
}

#[tokio::test]
async fn a19_an_agent_in_a_container_that_waited_sees_its_own_files_alone() {
    let Some(docked) = start(2).await else { return };
    let sibling = docked.spawn_with(FOREVER, json!({"network": "none"})).await;
    docked.spoke.wrote(sibling, "at-work").await;
    let data = docked.spoke.data_dir().display().to_string();
    let told = docked
        .run(&format!(
            "ls {data} {data}/agents; cat {data}/identity.key 2>&1; for objects in {data}/mirrors/*/objects; do touch $objects/x 2>&1; done; touch {data}/x 2>&1; \
             grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; id -u; tail -n +3 /proc/net/dev | cut -d: -f1"
        ))
        .await;
    assert!(!told.contains(&sibling.to_string()), "{told}");
    for needed in [
        "identity.key: No such file",
        "Read-only file system",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(told.contains(needed), "{needed:?} in {told}");
    }
    assert!(!told.contains("\n0\n"), "nobody is root: {told}");
    docked.spoke.kill(sibling).await;
    docked.spoke.finished(sibling).await;
    docked.stop().await;
}

#[tokio::test]
async fn an_agent_that_fits_no_pool_is_started_as_any() {
    let Some(docked) = start(1).await else { return };
    let waiting = ids_of_waiting(&docked);
    let agent = docked
        .spawn_with("echo cold", json!({"network": "open"}))
        .await;
    let status = docked.spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Completed, "{status:#?}");
    assert_eq!(ids_of_waiting(&docked), waiting);
    docked.stop().await;
}

#[tokio::test]
async fn a9_a_kill_all_with_hold_ends_what_waits_and_nothing_is_made_ready_until_it_is_released() {
    let Some(docked) = start(2).await else { return };
    let pids: Vec<String> = ids_of_waiting(&docked)
        .iter()
        .map(|id| docker(&["inspect", "-f", "{{.State.Pid}}", id]))
        .collect();
    assert_eq!(pids.len(), 2);
    let agent = docked
        .spawn_with(
            "echo precious > half; echo at-work; exec sleep 1000",
            json!({"network": "none"}),
        )
        .await;
    docked.spoke.wrote(agent, "at-work").await;
    let (_, report) = docked
        .spoke
        .call(
            Method::POST,
            "/agents/kill-all",
            Some(json!({"hold": true})),
        )
        .await;
    assert_eq!(
        (&report["killed"], &report["unverified"]),
        (&json!(1), &json!(0)),
        "{report}"
    );
    // No agent was in them, so nobody waited for their deaths; but they die.
    for pid in pids {
        let gone = async {
            while Path::new(&format!("/proc/{pid}")).exists() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, gone)
            .await
            .expect("a container outlived the kill-all");
    }
    assert_eq!(docked.spoke.running().waiting_containers("shell"), 0);
    let status = docked.spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Killed);
    let salvaged = git(
        &docked.spoke.mirror(),
        &["show", &format!("refs/mosaic/salvage/{agent}:half")],
    );
    assert_eq!(salvaged, "precious", "A22");
    docked.spoke.call(Method::POST, "/hold/release", None).await;
    docked.filled(2).await;
    docked.stop().await;
}

/// A1: a launch that breaks off once it has taken what waited leaves it to the sweep.
#[tokio::test]
async fn a1_what_was_taken_in_vain_is_removed() {
    let Some(docked) = start(1).await else { return };
    let waiting = ids_of_waiting(&docked);
    let agent = AgentId::generate();
    let in_the_way = format!("agents/{agent}/run/container.json/in-the-way");
    std::fs::create_dir_all(docked.spoke.data_dir().join(in_the_way)).unwrap();
    let mut body = docked.spoke.spawn_body(agent, "echo ran");
    body["options"] = json!({"network": "none"});
    docked
        .spoke
        .call(Method::POST, "/agents/spawn", Some(body))
        .await;
    let status = docked.spoke.finished(agent).await;
    assert_eq!(status.reason, Some(EndReason::SpawnFailed), "{status:#?}");
    gone(&waiting[0]).await;
    docked.stop().await;
}

async fn gone(container: &str) {
    eventually("no container of the dead one", async || {
        let all = docker(&["ps", "-a", "--no-trunc", "--format", "{{.ID}}"]);
        (!all.contains(container)).then_some(())
    })
    .await;
}

/// A1: an agent that finds nobody alive where it looked leaves the dead to the sweep.
#[tokio::test]
async fn a1_what_died_waiting_is_removed_though_an_agent_came_for_it_first() {
    let Some(docked) = start(1).await else { return };
    let waiting = ids_of_waiting(&docked);
    docked
        .spoke
        .call(Method::POST, "/agents/kill-all", None)
        .await;
    let agent = docked
        .spawn_with("echo cold", json!({"network": "none"}))
        .await;
    let status = docked.spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Completed, "{status:#?}");
    gone(&waiting[0]).await;
    docked.stop().await;
}

/// A12: a container that was ended while it waited, as by an engine that is started again, is no agent's: who comes finds
/// another, and nobody is moved who may have its number by then.
#[tokio::test]
async fn a12_a_waiting_container_whose_init_died_is_given_to_nobody() {
    let Some(docked) = start(1).await else { return };
    let waiting = ids_of_waiting(&docked);
    docker(&["kill", &waiting[0]]);
    eventually("another container that waits", async || {
        let now = ids_of_waiting(&docked);
        (now.len() == 1 && now != waiting).then_some(())
    })
    .await;
    docked.filled(1).await;
    let agent = docked
        .spawn_with("echo ran", json!({"network": "none"}))
        .await;
    let status = docked.spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Completed, "{status:#?}");
    gone(&waiting[0]).await;
    docked.stop().await;
}

/// A1, A12: a record that cannot be read now may name any container that waited once.
#[tokio::test]
async fn a12_what_waited_is_swept_only_when_it_is_known_to_be_nobodys() {
    let Some(docked) = start(1).await else { return };
    let waiting = ids_of_waiting(&docked);
    let agent = docked.spawn_with(FOREVER, json!({"network": "none"})).await;
    docked.spoke.wrote(agent, "at-work").await;
    let record = docked
        .spoke
        .data_dir()
        .join(format!("agents/{agent}/run/container.json"));
    let aside = record.with_extension("aside");
    std::fs::rename(&record, &aside).unwrap();
    std::fs::create_dir(&record).unwrap();
    let labels = docker(&["inspect", "-f", "{{json .Config.Labels}}", &waiting[0]]);
    let labels: serde_json::Value = serde_json::from_str(&labels).unwrap();
    let instance = labels["dev.mosaic.instance"].as_str().unwrap();
    let ours = format!("dev.mosaic.instance={instance}");
    // Two sweeps: of the first it is not known whether the agent's container was before or behind.
    for _ in 0..2 {
        let stray = docker(&["create", "--label", &ours, &super::rig::image(), "true"]);
        gone(&stray).await;
    }
    let status = docked.spoke.status(agent).await;
    assert_eq!(status.state, ObservedState::Running, "{status:#?}");
    std::fs::remove_dir(&record).unwrap();
    std::fs::rename(&aside, &record).unwrap();
    docked.spoke.kill(agent).await;
    docked.spoke.finished(agent).await;
    gone(&waiting[0]).await;
    docked.stop().await;
}

/// An operator has built the image anew: nobody is given a container of the old one.
#[tokio::test]
async fn what_waits_is_made_anew_when_its_image_is_another() {
    let Some(engine) = super::engine::start().await else {
        return;
    };
    let troubled = Troubled::on(engine, 5, |settings| settings.warm = pool(1)).await;
    let image_of = |name: &str| {
        troubled
            .engine
            .docker(&["inspect", "-f", "{{.Image}}", name])
    };
    let waiting = async || {
        eventually("a container that waits", async || {
            troubled.filled(1).await;
            let names = troubled.engine.containers();
            (names.len() == 1).then(|| names[0].clone())
        })
        .await
    };
    let before = image_of(&waiting().await);
    for change in [
        ["create", "--name", "changed", IMAGE, "true"].as_slice(),
        &["commit", "--change", "LABEL new=1", "changed", IMAGE],
        &["rm", "changed"],
    ] {
        let _ = troubled.engine.docker(change);
    }
    eventually("a container of the new image", async || {
        (image_of(&waiting().await) != before).then_some(())
    })
    .await;
    troubled.stop().await;
}
