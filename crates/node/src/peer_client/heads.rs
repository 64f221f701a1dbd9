//! What peers show of their audit trails, kept so that none can take it back unnoticed.

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError},
};

use mosaic_store::StoreError;
use mosaic_types::{
    ErrorCode, InstanceId, Timestamp,
    api::WitnessedHead,
    audit::{Actor, AuditEvent, AuditHead},
};

use super::Inner;

/// Heads of one peer that wait to be stored and cannot be told by a later one.
const MAX_WAITING_HEADS: usize = 64;

/// The heads that one peer has shown and that wait to be stored.
#[derive(Debug, Default)]
pub(super) struct ShownHeads {
    last: Option<AuditHead>,
    waiting: VecDeque<AuditHead>,
    storing: bool,
}

impl ShownHeads {
    /// Takes a head that was just shown. Whether somebody must begin to store.
    pub(super) fn take(&mut self, head: &AuditHead) -> bool {
        if self.last.as_ref() == Some(head) {
            return false;
        }
        // A trail that has grown tells of all that was before; one that has not must be looked at by itself.
        if self
            .waiting
            .back()
            .is_some_and(|waiting| waiting.seq < head.seq)
        {
            self.waiting.pop_back();
        }
        if self.waiting.len() < MAX_WAITING_HEADS {
            self.waiting.push_back(head.clone());
        }
        self.last = Some(head.clone());
        !std::mem::replace(&mut self.storing, true)
    }

    fn next(&mut self) -> Option<AuditHead> {
        let next = self.waiting.pop_front();
        self.storing = next.is_some();
        next
    }
}

/// Stores what a peer has shown. A peer that takes back what it has shown before is put on our own trail.
pub(super) async fn witness(inner: Arc<Inner>, peer: InstanceId) {
    loop {
        let next = inner
            .heads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_mut(&peer)
            .and_then(ShownHeads::next);
        let Some(head) = next else {
            return;
        };
        let seen = WitnessedHead {
            instance: peer.clone(),
            head: head.clone(),
            seen_at: Timestamp::now(),
        };
        let seen_at = seen.seen_at;
        match inner.store.witness_head(seen).await {
            Ok(()) => {}
            Err(StoreError::Conflict) => {
                tracing::error!(%peer, "a peer contradicts the audit trail that it has shown before");
                inner.audit.record_later(AuditEvent {
                    at: seen_at,
                    actor: Actor::Peer {
                        instance: peer.clone(),
                        connection: None,
                    },
                    action: "audit.fork".to_owned(),
                    subject: None,
                    outcome: ErrorCode::Conflict.to_string(),
                    detail: serde_json::json!({ "head": head }),
                });
            }
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "failed to keep the head of a peer's audit trail"
            ),
        }
    }
}
