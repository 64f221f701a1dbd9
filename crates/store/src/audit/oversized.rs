//! Events that are larger than the store takes, made to fit.

use mosaic_types::audit::{Actor, AuditEvent};
use serde_json::json;

/// Each text may have so much of the bound: at six bytes of JSON for one of text, all of them are less than half of it.
const TEXT_SHARE: usize = 64;

/// The event in at most `limit_bytes` of JSON, with what tells it from others: `{"omittedBytes": n}` in place of its
/// detail, and, if that is not enough, with its texts cut.
pub(crate) fn shortened(event: &AuditEvent, limit_bytes: usize) -> AuditEvent {
    let mut event = event.clone();
    if !event.detail.is_null() {
        event.detail = json!({ "omittedBytes": event.detail.to_string().len() });
    }
    let fits = serde_json::to_string(&event).is_ok_and(|json| json.len() <= limit_bytes);
    if !fits {
        let most_bytes = limit_bytes / TEXT_SHARE;
        for text in [&mut event.action, &mut event.outcome] {
            cut(text, most_bytes);
        }
        if let Some(subject) = &mut event.subject {
            cut(subject, most_bytes);
        }
        if let Actor::Operator { token } = &mut event.actor {
            cut(token, most_bytes);
        }
    }
    event
}

fn cut(text: &mut String, most_bytes: usize) {
    if text.len() <= most_bytes {
        return;
    }
    let ends = text.char_indices().map(|(at, _)| at);
    let end = ends.take_while(|at| *at <= most_bytes).last();
    text.truncate(end.unwrap_or_default());
    text.push('…');
}

#[cfg(test)]
mod tests {
    use mosaic_types::Timestamp;

    use super::*;

    const LIMIT: usize = 256 << 10;

    fn event() -> AuditEvent {
        AuditEvent {
            at: Timestamp::now(),
            actor: Actor::System,
            action: "agent.kill".to_owned(),
            subject: Some("the subject".to_owned()),
            outcome: "ok".to_owned(),
            detail: json!({ "note": "x".repeat(LIMIT) }),
        }
    }

    #[test]
    fn only_the_detail_is_left_out_if_that_is_enough() {
        let large = event();
        let bytes = large.detail.to_string().len();
        let expected = AuditEvent {
            detail: json!({ "omittedBytes": bytes }),
            ..large.clone()
        };
        assert_eq!(shortened(&large, LIMIT), expected);
    }

    #[test]
    fn texts_that_are_too_large_of_themselves_are_cut() {
        // What is escaped at length, and what must not be cut within a character.
        for text in ["\u{1}", "ü", "𝄞"] {
            let long = text.repeat(LIMIT);
            let large = AuditEvent {
                actor: Actor::Operator {
                    token: long.clone(),
                },
                action: long.clone(),
                subject: Some(long.clone()),
                outcome: long,
                ..event()
            };
            let short = shortened(&large, LIMIT);
            assert!(serde_json::to_string(&short).unwrap().len() <= LIMIT);
            let kept = short.action.strip_suffix('…').unwrap();
            assert!(large.action.starts_with(kept) && kept.len() > LIMIT / TEXT_SHARE - 4);
        }
        let mut subject = event();
        subject.detail = serde_json::Value::Null;
        subject.subject = Some("x".repeat(LIMIT));
        let short = shortened(&subject, LIMIT);
        assert_eq!(
            (short.action, short.detail),
            (subject.action, subject.detail)
        );
    }
}
