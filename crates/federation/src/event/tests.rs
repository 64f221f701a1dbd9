use mosaic_types::{
    AgentId,
    command::{CommandType, WatchPayload},
    event::{EventCursor, EventKind, OutputStream},
};

use super::*;
use crate::{
    command::CommandBuilder,
    test_support::{connection_to, hub, now, spoke, stranger},
};

fn watch() -> SealedCommand {
    let payload = WatchPayload {
        agent_id: AgentId::generate(),
        after: None,
        no_follow: false,
    };
    CommandBuilder::new(spoke().instance_id(), CommandType::AgentWatch)
        .seal(&hub(), &payload, now())
        .unwrap()
}

fn stream(request: &SealedCommand) -> EventStream {
    EventStream::new(
        connection_to(&spoke()),
        hub().instance_id().clone(),
        request,
    )
}

fn output(line: &str) -> Vec<AgentEvent> {
    vec![AgentEvent {
        agent_id: AgentId::generate(),
        id: EventCursor::default(),
        at: now(),
        kind: EventKind::Output {
            stream: OutputStream::Stdout,
            line: line.to_owned(),
            unfinished: false,
        },
    }]
}

fn line(
    from: &Identity,
    to: &Identity,
    request: &SealedCommand,
    seq: u64,
    events: &[AgentEvent],
) -> Vec<u8> {
    seal_events(from, to.instance_id(), &request.digest, seq, events).unwrap()
}

#[test]
fn a_stream_is_read_in_order() {
    let request = watch();
    let mut stream = stream(&request);
    // A31: a line of 1 MiB survives whole, also one that JSON writes at six times its length.
    for (seq, text) in [
        "a".to_owned(),
        String::new(),
        "x".repeat(1 << 20),
        "\u{1}".repeat(1 << 20),
    ]
    .iter()
    .enumerate()
    {
        let events = output(text);
        let bytes = line(&spoke(), &hub(), &request, seq as u64, &events);
        assert!(!bytes.contains(&b'\n'));
        assert_eq!(stream.next(&bytes, now()).unwrap(), events);
    }
    let life = line(&spoke(), &hub(), &request, 4, &[]);
    assert_eq!(stream.next(&life, now()).unwrap(), []);
}

#[test]
fn f10_lines_cannot_be_dropped_repeated_or_reordered() {
    let request = watch();
    let mut stream = stream(&request);
    let lines: Vec<_> = (0..3)
        .map(|seq| line(&spoke(), &hub(), &request, seq, &output("x")))
        .collect();
    let gap = |result: Result<_, EventError>| match result {
        Err(EventError::Gap { expected, got }) => (expected, got),
        other => panic!("{other:?}"),
    };
    assert_eq!(gap(stream.next(&lines[1], now())), (0, 1));
    assert!(stream.next(&lines[0], now()).is_ok());
    assert_eq!(gap(stream.next(&lines[0], now())), (1, 0));
    assert_eq!(gap(stream.next(&lines[2], now())), (1, 2));
    assert!(stream.next(&lines[1], now()).is_ok());
    assert!(stream.next(&lines[2], now()).is_ok());
}

#[test]
fn f10_a_line_of_another_stream_is_refused() {
    let (request, other) = (watch(), watch());
    let spliced = line(&spoke(), &hub(), &other, 0, &output("x"));
    let refused = stream(&request).next(&spliced, now()).unwrap_err();
    assert!(matches!(
        refused,
        EventError::Mismatch {
            field: "requestDigest"
        }
    ));
    let to_another = line(&spoke(), &stranger(), &request, 0, &[]);
    let refused = stream(&request).next(&to_another, now()).unwrap_err();
    assert!(matches!(refused, EventError::Mismatch { field: "to" }));
    let from_another = line(&stranger(), &hub(), &request, 0, &[]);
    let refused = stream(&request).next(&from_another, now()).unwrap_err();
    assert!(matches!(refused, EventError::Unauthenticated));
    let response = dsse::seal(&spoke(), PayloadType::Response, b"{}").bytes;
    let refused = stream(&request).next(&response, now()).unwrap_err();
    assert!(matches!(refused, EventError::NotAnEvent));
}
