//! Results: patch and bundle come in parts and are handed out whole.

use mosaic_types::agent::AgentState;
use reqwest::Method;

use crate::support::World;

/// Length of the spoke's parts.
const PART_BYTES: usize = 64 * 1024;

async fn ended(world: &World, patch: Option<&[u8]>) -> String {
    let agent = world.spawn(0).await;
    let handler = &world.spokes[0].handler;
    handler.enter(agent, AgentState::Completed);
    let mut agents = handler.agents.lock().unwrap();
    agents.part_bytes = PART_BYTES;
    agents.known.get_mut(&agent).unwrap().patch = patch.map(<[u8]>::to_vec);
    format!("/federation/agents/{agent}/result")
}

#[tokio::test]
async fn a_patch_in_parts_is_whole_at_the_hub() {
    let world = World::start(1).await;
    let text = "From 1\nSubject: [PATCH] ä\n---\n+more\n".repeat(5000);
    let path = ended(&world, Some(text.as_bytes())).await;
    let result = world.get(&path).await.ok();
    assert_eq!(result["status"]["state"], "completed");
    assert_eq!(result["patch"]["content"], text);
    assert_eq!(result["patch"]["encoding"], "utf-8");
    assert_eq!(result["patch"]["totalBytes"], text.len());
    assert_eq!(result["patch"]["nextOffset"], serde_json::Value::Null);
    assert_eq!(
        world.spokes[0].executed("agent.result"),
        text.len().div_ceil(PART_BYTES)
    );
    world.stop().await;
}

#[tokio::test]
async fn the_patch_alone_comes_byte_for_byte() {
    let world = World::start(1).await;
    let bytes = b"From 1\n\xff\x00\r\nbinary\n";
    let path = ended(&world, Some(bytes)).await;
    assert_eq!(world.get(&path).await.ok()["patch"]["encoding"], "base64");
    let by_query = world.raw(Method::GET, &format!("{path}?format=patch"));
    let by_header = world
        .raw(Method::GET, &path)
        .header("accept", "text/plain, text/x-patch;q=0.5");
    for request in [by_query, by_header] {
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/x-patch");
        assert_eq!(response.bytes().await.unwrap(), &bytes[..]);
    }
    world.stop().await;
}

#[tokio::test]
async fn no_work_is_no_patch() {
    let world = World::start(1).await;
    let path = ended(&world, None).await;
    assert_eq!(
        world.get(&path).await.ok()["patch"],
        serde_json::Value::Null
    );
    world
        .get(&format!("{path}?format=patch"))
        .await
        .refused(404, "no-result", None);
    world.stop().await;
}

// A spoke that answers in drops must not keep a place for ever.
#[tokio::test]
async fn a_patch_in_drops_is_refused() {
    let world = World::start(1).await;
    let path = ended(&world, Some(&[b'x'; 100])).await;
    let spoke = &world.spokes[0];
    spoke.handler.agents.lock().unwrap().part_bytes = 1;
    world
        .get(&path)
        .await
        .refused(502, "peer-unreachable", None);
    assert_eq!(spoke.executed("agent.result"), 1);
    world.stop().await;
}

#[tokio::test]
async fn a_bundle_in_parts_is_passed_on_whole() {
    let world = World::start(1).await;
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let path = ended(&world, Some(&bytes)).await;
    let by_query = world.raw(Method::GET, &format!("{path}?format=bundle"));
    let by_header = world
        .raw(Method::GET, &path)
        .header("accept", "application/x-git-bundle");
    for request in [by_query, by_header] {
        let response = request.send().await.unwrap();
        assert_eq!(
            response.headers()["content-type"],
            "application/x-git-bundle"
        );
        assert_eq!(response.content_length(), Some(bytes.len() as u64));
        assert_eq!(response.bytes().await.unwrap(), &bytes[..]);
    }
    assert_eq!(
        world.spokes[0].executed("agent.result"),
        2 * bytes.len().div_ceil(PART_BYTES)
    );
    world.stop().await;
}

// A spoke makes a bundle before it gives the first part, which may take it two minutes.
#[tokio::test]
async fn a_spoke_has_time_to_make_a_bundle_and_none_to_dawdle_after_that() {
    let world = World::start(1).await;
    let path = ended(&world, Some(&[b'x'; 3 * PART_BYTES])).await;
    let path = format!("{path}?format=bundle");
    let response = world.raw(Method::GET, &path).send().await.unwrap();
    assert_eq!(response.bytes().await.unwrap().len(), 3 * PART_BYTES);
    let good_for = {
        let agents = world.spokes[0].handler.agents.lock().unwrap();
        agents.results_good_for.clone()
    };
    assert_eq!(good_for, [125_000, 5000, 5000]);
    world.stop().await;
}

// What breaks off must not be taken for a bundle, and what is refused is a problem, not half a body.
#[tokio::test]
async fn a_bundle_that_breaks_off_is_seen_to() {
    let world = World::start(1).await;
    let path = ended(&world, Some(&[b'x'; 3 * PART_BYTES])).await;
    let spoke = &world.spokes[0];
    spoke.handler.agents.lock().unwrap().parts_left = Some(1);
    let response = world
        .raw(Method::GET, &format!("{path}?format=bundle"))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.bytes().await.is_err());
    spoke.handler.agents.lock().unwrap().parts_left = None;
    let drops = ended(&world, Some(&[b'x'; 100])).await;
    spoke.handler.agents.lock().unwrap().part_bytes = 1;
    world
        .get(&format!("{drops}?format=bundle"))
        .await
        .refused(502, "peer-unreachable", None);
    let empty = ended(&world, None).await;
    world
        .get(&format!("{empty}?format=bundle"))
        .await
        .refused(404, "no-result", Some("form"));
    world.stop().await;
}

// A22: what a killed agent left is told of where its operator asks.
#[tokio::test]
async fn a22_what_was_salvaged_is_told_at_the_hub() {
    let world = World::start(1).await;
    let path = ended(&world, Some(&[b'x'; 2 * PART_BYTES])).await;
    let result = world.get(&format!("{path}?salvaged=true")).await.ok();
    assert_eq!(result["salvaged"]["refs"][0]["filesChanged"], 2);
    // Told by itself: the patch may be above what is put together, and nobody asked for it.
    assert_eq!(result["patch"], serde_json::Value::Null);
    assert_eq!(world.spokes[0].executed("agent.result"), 1);
    let result = world.get(&path).await.ok();
    assert_eq!(result["salvaged"], serde_json::Value::Null);
    world.stop().await;
}
