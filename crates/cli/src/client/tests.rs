use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::{Router, extract::State, http::HeaderMap, routing::get};
use mosaic_types::event::{EventKind, OutputStream};
use mosaic_types::{ErrorCode, Timestamp, event::AgentEvent, event::EventCursor};

use super::*;

/// Bodies to answer with, and the queries that came.
type Script = Arc<Mutex<(VecDeque<String>, Vec<String>)>>;

async fn node(bodies: Vec<String>) -> (Client, Script) {
    let script: Script = Arc::new(Mutex::new((bodies.into(), Vec::new())));
    let events = async |State(script): State<Script>, uri: axum::http::Uri, headers: HeaderMap| {
        assert_eq!(headers["authorization"], "Bearer secret");
        let mut script = script.lock().unwrap();
        let after = headers
            .get("last-event-id")
            .map_or("", |value| value.to_str().unwrap());
        script
            .1
            .push(format!("{}{after}", uri.query().unwrap_or_default()));
        script.0.pop_front().unwrap_or_default()
    };
    let gone = async || {
        let problem = Problem::from(mosaic_types::Refusal::field(
            ErrorCode::UnknownAgent,
            "agentId",
            "there is no agent of this id",
        ));
        (axum::http::StatusCode::NOT_FOUND, axum::Json(problem))
    };
    let router = Router::new()
        .route("/api/v1/federation/agents/{id}/events", get(events))
        .route("/api/v1/federation/agents/{id}/status", get(gone))
        .with_state(Arc::clone(&script));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let target = Target {
        url,
        token: "secret".to_owned(),
        spoke: Some(false),
    };
    (Client::new(target).unwrap(), script)
}

fn sse(agent: AgentId, output: u64, line: &str) -> String {
    let event = AgentEvent {
        agent_id: agent,
        id: EventCursor { moves: 1, output },
        at: Timestamp::now(),
        kind: EventKind::Output {
            stream: OutputStream::Stdout,
            line: line.to_owned(),
            unfinished: false,
        },
    };
    format!(
        "id: {}\nevent: output\ndata: {}\n\n",
        event.id,
        serde_json::to_string(&event).unwrap()
    )
}

#[test]
fn queries_hold_what_is_set() {
    assert_eq!(query(&EventsParams::default()).unwrap(), "");
    let params = AgentsParams {
        active: Some(true),
        limit: Some(5),
        label: Some("team=a&b ä".parse().unwrap()),
        ..AgentsParams::default()
    };
    let expected = "?active=true&label=team%3Da%26b%20%C3%A4&limit=5";
    let mut parts: Vec<_> = expected[1..].split('&').collect();
    let told = query(&params).unwrap();
    let mut said: Vec<_> = told[1..].split('&').collect();
    parts.sort_unstable();
    said.sort_unstable();
    assert_eq!(said, parts);
}

#[tokio::test]
async fn a_cut_stream_resumes_after_the_last_event() {
    let agent = AgentId::generate();
    // Cut in the middle of an event.
    let half = format!("{}id: m1-o6\nevent: output\nda", sse(agent, 3, "one"));
    let held = Problem::from(mosaic_types::Refusal::new(ErrorCode::Held, "x"));
    let held = format!(
        "event: error\ndata: {}\n\n",
        serde_json::to_string(&held).unwrap()
    );
    let (client, script) = node(vec![half, format!("{}{held}", sse(agent, 6, "two"))]).await;
    let mut feed = EventFeed::open(client, agent, true).await.unwrap();
    assert_eq!(feed.next().await.unwrap().unwrap().id.output, 3);
    assert_eq!(feed.next().await.unwrap().unwrap().id.output, 6);
    let refused = feed.next().await.unwrap_err();
    assert!(matches!(refused, CliError::Refused(problem) if problem.code == ErrorCode::Held));
    assert_eq!(script.lock().unwrap().1, ["", "m1-o3"]);
}

#[tokio::test]
async fn without_follow_the_end_is_the_end() {
    let agent = AgentId::generate();
    let (client, script) = node(vec![sse(agent, 3, "one")]).await;
    let mut feed = EventFeed::open(client, agent, false).await.unwrap();
    assert!(feed.next().await.unwrap().is_some());
    assert!(feed.next().await.unwrap().is_none());
    assert_eq!(script.lock().unwrap().1, ["follow=false"]);
}

#[tokio::test]
async fn a_problem_is_told_with_code_and_field() {
    let (client, _) = node(Vec::new()).await;
    let error = client.status(AgentId::generate()).await.unwrap_err();
    assert_eq!(error.exit().code(), 3);
    let CliError::Refused(problem) = error else {
        panic!("{error}")
    };
    assert_eq!(problem.code, ErrorCode::UnknownAgent);
    assert_eq!(problem.field.as_deref(), Some("agentId"));
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let target = Target {
        url,
        token: "secret".to_owned(),
        spoke: Some(false),
    };
    let error = Client::new(target)
        .unwrap()
        .connections()
        .await
        .unwrap_err();
    assert_eq!(error.exit().code(), 4);
}

#[test]
fn tokens_are_not_shown() {
    let target = Target {
        url: "http://127.0.0.1:1".to_owned(),
        token: "secret".to_owned(),
        spoke: None,
    };
    assert!(!format!("{target:?}").contains("secret"));
}

#[test]
fn loopback_has_many_names() {
    let loopback = |url: &str| {
        Target {
            url: url.to_owned(),
            token: String::new(),
            spoke: None,
        }
        .is_loopback()
    };
    for url in [
        "http://127.0.0.1:1",
        "http://127.9.9.9",
        "http://[::1]:1",
        "http://localhost:1",
    ] {
        assert!(loopback(url), "{url}");
    }
    for url in ["http://10.0.0.1", "https://localhost.example", "x"] {
        assert!(!loopback(url), "{url}");
    }
}

/// A node with these routes, and a client that does not know what it is.
async fn stranger(router: Router) -> Client {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = router.fallback(async || {
        let refusal = mosaic_types::Refusal::new(ErrorCode::NotFound, "no such route");
        let problem = Problem::from(refusal);
        (axum::http::StatusCode::NOT_FOUND, axum::Json(problem))
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    let target = Target {
        url,
        token: "secret".to_owned(),
        spoke: None,
    };
    Client::new(target).unwrap()
}

// A30: nothing is asked before a kill, whose question the node might not answer.
#[tokio::test]
async fn a30_a_kill_goes_to_whichever_face_the_node_has_and_asks_nothing_first() {
    let report = mosaic_types::command::KillReport {
        agent_id: AgentId::generate(),
        outcome: mosaic_types::command::KillOutcome::AlreadyEnded,
        proof: None,
        detail: None,
        status: None,
    };
    let agent = report.agent_id;
    for path in [
        "/api/v1/agents/{id}/kill",
        "/api/v1/federation/agents/{id}/kill",
    ] {
        let report = report.clone();
        let answer = async move || axum::Json(report);
        let router = Router::new()
            .route(path, axum::routing::post(answer))
            .route("/api/v1/instance", get(std::future::pending::<String>));
        let client = stranger(router).await;
        let request = mosaic_types::api::KillRequest {
            reason: None,
            wait_for_cleanup: false,
        };
        let killed = client.kill(agent, &request).await.unwrap();
        assert_eq!(killed.agent_id, agent, "{path}");
    }
}

fn spawn_payload() -> SpawnPayload {
    SpawnPayload {
        agent_id: AgentId::generate(),
        task_id: "t".parse().unwrap(),
        agent_type: mosaic_types::command::AgentType::Worker,
        runtime: None,
        context: mosaic_types::command::SpawnContext {
            repository: "file:///r".to_owned(),
            branch: "main".to_owned(),
            work_items: Vec::new(),
            skills: None,
            instructions: None,
        },
        options: None,
        labels: std::collections::BTreeMap::new(),
    }
}

// A4, A30: how long a stream may be silent says nothing of how long a spawn or a kill may take to be answered. The
// clock is not the machine's: it goes on when nothing else does.
#[tokio::test(start_paused = true)]
async fn a4_a30_a_spawn_and_a_kill_have_their_own_time_to_be_answered() {
    let payload = spawn_payload();
    let agent_id = payload.agent_id;
    let spawned = SpawnResponse {
        agent_id,
        connection_id: None,
        message_id: None,
        state: mosaic_types::agent::AgentState::Queued,
        existing: false,
    };
    let killed = mosaic_types::command::KillReport {
        agent_id,
        outcome: mosaic_types::command::KillOutcome::AlreadyEnded,
        proof: None,
        detail: None,
        status: None,
    };
    let spawn = async move || {
        tokio::time::sleep(Duration::from_secs(120)).await;
        axum::Json(spawned)
    };
    let kill = async move || {
        tokio::time::sleep(Duration::from_secs(65)).await;
        axum::Json(killed)
    };
    let router = Router::new()
        .route("/api/v1/agents/spawn", axum::routing::post(spawn))
        .route("/api/v1/agents/{id}/kill", axum::routing::post(kill));
    let client = stranger(router).await;
    let spawned = client.spawn_here(&payload).await.unwrap();
    assert_eq!(spawned.agent_id, agent_id);
    let request = mosaic_types::api::KillRequest {
        reason: None,
        wait_for_cleanup: true,
    };
    client.kill(agent_id, &request).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_falls_silent_is_cut_and_resumed() {
    use futures_util::StreamExt as _;
    let agent = AgentId::generate();
    let asked = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let events = async move || {
        let before = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let said = sse(agent, 3 + before, "one");
        let said = futures_util::stream::iter([Ok::<_, std::convert::Infallible>(said)]);
        axum::body::Body::from_stream(said.chain(futures_util::stream::pending()))
    };
    let path = "/api/v1/federation/agents/{id}/events";
    let client = stranger(Router::new().route(path, get(events))).await;
    let mut feed = EventFeed::open(client, agent, true).await.unwrap();
    for output in 3..6 {
        assert_eq!(feed.next().await.unwrap().unwrap().id.output, output);
    }
}

// A4: only of what was not sent, or was refused for good, is it certain that nothing runs.
#[tokio::test]
async fn a4_an_answer_that_breaks_off_may_be_that_of_an_agent_that_runs() {
    use tokio::io::AsyncReadExt as _;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let hangs_up = async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
    };
    let target = Target {
        url,
        token: "secret".to_owned(),
        spoke: Some(true),
    };
    let client = Client::new(target).unwrap();
    let payload = spawn_payload();
    let (lost, ()) = tokio::join!(client.spawn_here(&payload), hangs_up);
    assert!(lost.unwrap_err().outcome_unknown());
    // The listener is gone: nobody hears of the second.
    let unheard = client.spawn_here(&payload).await.unwrap_err();
    assert!(!unheard.outcome_unknown(), "{unheard:?}");

    let gateway = async || (axum::http::StatusCode::BAD_GATEWAY, "a proxy's own words");
    let path = "/api/v1/agents/spawn";
    let client = stranger(Router::new().route(path, axum::routing::post(gateway))).await;
    assert!(
        client
            .spawn_here(&payload)
            .await
            .unwrap_err()
            .outcome_unknown()
    );
}

/// A spoke whose agent has ended, with its work home from the third question on.
async fn harvester(state: &'static str) -> (Client, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let status = serde_json::json!({
        "agentId": AgentId::generate(), "taskId": "t", "agentType": "worker", "runtime": "shell",
        "sandbox": "process", "state": state, "attempt": 1, "repository": "file:///r", "branch": "main",
        "agentBranch": "b", "queuedAt": Timestamp::now(),
        "progress": mosaic_types::agent::Progress::default(),
        "usage": mosaic_types::agent::Usage::default(),
    });
    let result = serde_json::json!({ "status": status });
    let seen = Arc::clone(&asked);
    let work = async move |uri: axum::http::Uri| {
        let mut seen = seen.lock().unwrap();
        seen.push(uri.query().unwrap_or_default().to_owned());
        if seen.len() < 3 {
            let refusal = mosaic_types::Refusal::new(ErrorCode::NotEnded, "not home");
            return Err((
                axum::http::StatusCode::CONFLICT,
                axum::Json(Problem::from(refusal)),
            ));
        }
        Ok(axum::Json(result))
    };
    let router = Router::new()
        .route("/api/v1/federation/agents/{id}/result", get(work))
        .route(
            "/api/v1/federation/agents/{id}/status",
            get(async move || {
                let mut at = status;
                at["connectionId"] = serde_json::json!(ConnectionId::generate());
                at["spoke"] = serde_json::json!("spoke");
                axum::Json(at)
            }),
        );
    (stranger(router).await, asked)
}

// A22: work that is not home yet is not told as missing, and nothing but what was asked for is fetched to find out.
#[tokio::test(start_paused = true)]
async fn a22_an_ended_agents_work_is_asked_for_until_it_is_home() {
    let (client, asked) = harvester("killed").await;
    client.result(AgentId::generate()).await.unwrap();
    assert_eq!(*asked.lock().unwrap(), ["", "", ""]);
    let (client, asked) = harvester("killed").await;
    client.patch(AgentId::generate()).await.unwrap();
    assert_eq!(*asked.lock().unwrap(), ["format=patch"; 3]);

    let (client, asked) = harvester("running").await;
    let refused = client.result(AgentId::generate()).await.unwrap_err();
    assert!(matches!(refused, CliError::Refused(problem) if problem.code == ErrorCode::NotEnded));
    assert_eq!(asked.lock().unwrap().len(), 1);
}

fn trail(entries: u64) -> Vec<mosaic_types::audit::AuditEntry> {
    let hex = |hash: &[u8; 32]| hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut previous = mosaic_store::audit::NO_HASH;
    (1..=entries)
        .map(|seq| {
            let event_json = format!("{{\"n\":{seq}}}");
            let hash = mosaic_store::audit::entry_hash(seq, &previous, event_json.as_bytes());
            let entry = mosaic_types::audit::AuditEntry {
                seq,
                prev_hash: hex(&previous),
                hash: hex(&hash),
                event_json,
            };
            previous = hash;
            entry
        })
        .collect()
}

/// A node that finds its own trail sound, whatever it is.
async fn keeper(entries: Vec<mosaic_types::audit::AuditEntry>) -> Client {
    use mosaic_types::{api::AuditPage, api::AuditVerdict, audit::AuditHead};
    let last = entries.last().unwrap();
    let head = AuditHead {
        seq: last.seq,
        hash: last.hash.clone(),
    };
    let verdict = AuditVerdict {
        valid: true,
        entries: head.seq,
        head: head.clone(),
        first_bad_seq: None,
        fault: None,
    };
    #[derive(serde::Deserialize)]
    struct Page {
        after: u64,
    }
    let page = async move |axum::extract::Query(Page { after }): axum::extract::Query<Page>| {
        // Small pages, whatever is asked for.
        let rest = entries.iter().filter(|entry| entry.seq > after);
        axum::Json(AuditPage {
            entries: rest.take(2).cloned().collect(),
            head: head.clone(),
            more: true,
        })
    };
    let router = Router::new().route("/api/v1/audit", get(page)).route(
        "/api/v1/audit/verify",
        get(async move || axum::Json(verdict)),
    );
    stranger(router).await
}

// F9, F10: a node that was tampered with may say anything of itself.
#[tokio::test]
async fn a_trail_is_verified_here_and_not_by_its_keepers_word() {
    let sound = trail(5);
    let verdict = keeper(sound.clone()).await.audit_verify(Vec::new()).await;
    let verdict = verdict.unwrap();
    assert!(verdict.valid);
    assert_eq!(verdict.entries, 5);

    let mut edited = sound.clone();
    edited[2].event_json = "{}".to_owned();
    let verdict = keeper(edited).await.audit_verify(Vec::new()).await.unwrap();
    assert_eq!((verdict.valid, verdict.first_bad_seq), (false, Some(3)));

    // Cut at its end: sound by itself, but somebody has seen more.
    let seen = mosaic_types::audit::AuditHead {
        seq: 5,
        hash: sound[4].hash.clone(),
    };
    let cut = keeper(sound[..4].to_vec()).await;
    assert!(cut.audit_verify(Vec::new()).await.unwrap().valid);
    assert!(!cut.audit_verify(vec![seen.clone()]).await.unwrap().valid);
    assert!(
        keeper(sound)
            .await
            .audit_verify(vec![seen])
            .await
            .unwrap()
            .valid
    );
}
