use futures_util::StreamExt;
use mosaic_node::{HttpLimits, PeerError};
use mosaic_types::{
    AgentId, ErrorCode, Timestamp,
    command::{CommandType, WatchPayload},
    event::{AgentEvent, EventCursor, EventKind, OutputStream},
    grant::Grants,
};

use crate::harness::{Pair, STREAMS, agent, repositories, soon};

fn payload() -> WatchPayload {
    WatchPayload {
        agent_id: AgentId::generate(),
        after: None,
        no_follow: false,
    }
}

fn line(text: &str) -> AgentEvent {
    AgentEvent {
        agent_id: AgentId::generate(),
        id: EventCursor::default(),
        at: Timestamp::now(),
        kind: EventKind::Output {
            stream: OutputStream::Stdout,
            line: text.to_owned(),
            unfinished: false,
        },
    }
}

/// F15: a suspension ends open streams at once, and what comes after it is not sent.
#[tokio::test]
async fn f15_suspension_ends_an_open_stream_at_once() {
    let pair = Pair::connected().await;
    let to_spoke = pair.to_spoke();
    let mut stream = pair
        .hub
        .node
        .peers()
        .watch(&to_spoke, &payload())
        .await
        .unwrap();
    assert_eq!(
        stream.next().await.unwrap().unwrap(),
        vec![],
        "a sign of life"
    );
    let event = line("one");
    pair.spoke.handler.events.send_replace(vec![event.clone()]);
    assert_eq!(soon(stream.next()).await.unwrap().unwrap(), vec![event]);

    let id = pair.to_hub().connection_id;
    let path = format!("/federation/connections/{id}/suspend");
    assert_eq!(pair.spoke.api("POST", &path, None).await.0, 200);
    pair.spoke.handler.events.send_replace(vec![line("two")]);
    assert!(soon(stream.next()).await.unwrap().is_err(), "it breaks off");
    assert!(stream.next().await.is_none());

    let again = pair.hub.node.peers().watch(&to_spoke, &payload()).await;
    assert!(matches!(again.err(), Some(PeerError::NotAccepted)));
    pair.stop().await;
}

/// F15: a narrower grant ends streams that it does not include, and no other.
#[tokio::test]
async fn f15_a_narrower_grant_ends_an_open_stream_at_once() {
    let pair = Pair::connected().await;
    let peers = pair.hub.node.peers();
    let mut stream = peers.watch(&pair.to_spoke(), &payload()).await.unwrap();
    assert!(stream.next().await.unwrap().unwrap().is_empty());
    for (commands, goes_on) in [
        (vec![CommandType::AgentWatch], true),
        (vec![CommandType::AgentStatus], false),
    ] {
        let grants = Grants {
            commands,
            ..Grants::none()
        };
        let token = pair.spoke.invite(grants).await.token;
        assert_eq!(pair.hub.connect(&token).await.0, 201);
        let event = line("one");
        pair.spoke.handler.events.send_replace(vec![event]);
        assert_eq!(soon(stream.next()).await.unwrap().is_ok(), goes_on);
    }
    pair.stop().await;
}

#[tokio::test]
async fn a_silent_stream_shows_signs_of_life() {
    let limits = HttpLimits {
        stream_heartbeat: std::time::Duration::from_millis(10),
        ..HttpLimits::default()
    };
    let pair = Pair::connected_with(Grants::full(repositories()), limits).await;
    let stream = pair
        .hub
        .node
        .peers()
        .watch(&pair.to_spoke(), &payload())
        .await
        .unwrap();
    let signs: Vec<_> = soon(stream.take(3).collect()).await;
    assert!(
        signs
            .iter()
            .all(|sign| sign.as_ref().is_ok_and(Vec::is_empty))
    );
    pair.stop().await;
}

#[tokio::test]
async fn streams_are_bounded_and_a_place_is_given_back() {
    let limits = HttpLimits {
        max_streams_per_peer: 1,
        ..HttpLimits::default()
    };
    let pair = Pair::connected_with(Grants::full(repositories()), limits).await;
    let (peers, to_spoke) = (pair.hub.node.peers(), pair.to_spoke());
    let first = peers.watch(&to_spoke, &payload()).await.unwrap();
    match peers.watch(&to_spoke, &payload()).await {
        Err(error) => assert_eq!(error.refusal().code, ErrorCode::Overloaded),
        Ok(_) => panic!("a second stream was opened"),
    }
    drop(first);
    soon(async {
        while peers.watch(&to_spoke, &payload()).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    pair.stop().await;
}

#[tokio::test]
async fn only_a_watch_opens_a_stream_and_only_once() {
    let pair = Pair::connected().await;
    let status = pair.seal(CommandType::AgentStatus, &agent());
    let answer = pair.spoke.post(STREAMS, status.bytes.clone()).await;
    assert_eq!(
        pair.refusal(&status, &answer).field.as_deref(),
        Some("commandType")
    );

    let watch = pair.seal(CommandType::AgentWatch, &payload());
    let url = format!("{}{STREAMS}", pair.spoke.url);
    let http = &pair.spoke.http;
    let opened = http
        .post(&url)
        .body(watch.bytes.clone())
        .send()
        .await
        .unwrap();
    assert_eq!(opened.headers()["content-type"], "application/x-ndjson");
    let again = pair.spoke.post(STREAMS, watch.bytes.clone()).await;
    assert_eq!(pair.refusal(&watch, &again).code, ErrorCode::OutcomeUnknown);
    drop(opened);
    pair.stop().await;
}
