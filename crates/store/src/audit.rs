//! The chain of hashes that the audit trail is.
//!
//! # Layout
//!
//! `hash(n)` is the SHA-256 of these bytes, one after the other:
//!
//! | bytes | what |
//! |---|---|
//! | 17 | `mosaic audit v1` and two zero bytes: the domain |
//! | 8 | `seq`, big-endian |
//! | 32 | the hash of the entry before; zeros for entry 1 |
//! | rest | the event's JSON, byte for byte as it is stored |
//!
//! All but the last part are of fixed length, so no two entries have the same bytes. Nothing is serialised
//! again to verify it.
//!
//! # What a verification finds
//!
//! An edit, a removal, an insertion or a reordering anywhere before the end breaks the chain at the first
//! entry touched. A trail cut at its end, or rewritten from some entry on, is a sound chain by itself: it is
//! found by the head that a running store has in memory, and by the heads that peers witnessed. Without
//! either it cannot be found, which is why heads go out in every signed response.

use std::collections::{BTreeMap, btree_map::Entry};

use data_encoding::HEXLOWER;
use mosaic_types::{
    api::AuditVerdict,
    audit::{AuditEntry, AuditHead},
};
use sha2::{Digest, Sha256};

use crate::{Store, StoreError};

mod oversized;

pub(crate) use oversized::shortened;

const DOMAIN: &[u8; 17] = b"mosaic audit v1\0\0";

/// Entries read at once by [`verify`]: bounds its memory.
const PAGE: u32 = 200;

/// The hash before the first entry.
pub const NO_HASH: [u8; 32] = [0; 32];

/// The hash of an entry; see the module documentation for the layout.
#[must_use]
pub fn entry_hash(seq: u64, prev_hash: &[u8; 32], event_json: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(DOMAIN)
        .chain_update(seq.to_be_bytes())
        .chain_update(prev_hash)
        .chain_update(event_json)
        .finalize()
        .into()
}

/// Verifies a trail that comes in pages of any size, in constant memory besides the witnessed heads.
#[derive(Debug)]
pub struct Verifier {
    seq: u64,
    hash: [u8; 32],
    witnessed: BTreeMap<u64, String>,
    bad: Option<(u64, String)>,
}

impl Verifier {
    /// Starts before the first entry. `witnessed` are heads of this very trail that somebody else kept, in
    /// any order.
    #[must_use]
    pub fn new(witnessed: impl IntoIterator<Item = AuditHead>) -> Self {
        let mut verifier = Self {
            seq: 0,
            hash: NO_HASH,
            witnessed: BTreeMap::new(),
            bad: None,
        };
        for head in witnessed {
            match verifier.witnessed.entry(head.seq) {
                Entry::Vacant(free) => {
                    free.insert(head.hash);
                }
                Entry::Occupied(kept) if *kept.get() != head.hash => {
                    // Two witnesses disagree, so at most one can agree with the trail.
                    let seq = head.seq.max(1);
                    if verifier.bad.as_ref().is_none_or(|(bad, _)| seq < *bad) {
                        let fault = format!("two witnesses saw different hashes of entry {seq}");
                        verifier.bad = Some((seq, fault));
                    }
                }
                Entry::Occupied(_) => {}
            }
        }
        if let Some(hash) = verifier.witnessed.remove(&0)
            && hash != AuditHead::empty().hash
        {
            verifier.bad = Some((1, "a witness saw a hash of an empty trail".to_owned()));
        }
        verifier
    }

    /// Takes the next entries, oldest first. After the first bad entry the rest is ignored.
    pub fn feed<'a>(&mut self, entries: impl IntoIterator<Item = &'a AuditEntry>) {
        for entry in entries {
            let expected = self.seq.saturating_add(1);
            if self.bad.as_ref().is_some_and(|(bad, _)| *bad <= expected) {
                return;
            }
            match check(entry, expected, &self.hash) {
                Ok(hash) => {
                    self.seq = expected;
                    self.hash = hash;
                }
                Err(fault) => {
                    self.bad = Some((expected, fault));
                    return;
                }
            }
            if let Some(seen) = self.witnessed.remove(&expected)
                && seen != entry.hash
            {
                let fault = "a witness saw another hash of this entry".to_owned();
                self.bad = Some((expected, fault));
                return;
            }
        }
    }

    /// The last entry that was found to be sound.
    #[must_use]
    pub fn sound_up_to(&self) -> u64 {
        self.seq
    }

    /// Its keeper has written so many, and says so after the entries were read: what lies beyond is somebody else's.
    fn written_up_to(&mut self, seq: u64) {
        if self.bad.is_none() && self.seq > seq {
            let fault = "it was not written by this node".to_owned();
            self.bad = Some((seq.saturating_add(1), fault));
        }
    }

    /// Whether a bad entry was found, so that no more entries are needed.
    #[must_use]
    pub fn is_decided(&self) -> bool {
        self.bad
            .as_ref()
            .is_some_and(|(bad, _)| *bad <= self.seq.saturating_add(1))
    }

    /// Ends at the end of the trail. `head` is where its keeper says that it ends.
    #[must_use]
    pub fn finish(mut self, head: &AuditHead) -> AuditVerdict {
        let end = AuditHead {
            seq: self.seq,
            hash: HEXLOWER.encode(&self.hash),
        };
        if !self.is_decided() {
            let beyond = self.witnessed.last_key_value().map(|(seq, _)| *seq);
            self.bad = match beyond {
                Some(seen) => Some((
                    self.seq.saturating_add(1),
                    format!("the trail is cut: a witness saw entry {seen}"),
                )),
                None if head.seq > end.seq => Some((
                    self.seq.saturating_add(1),
                    format!("the trail is cut: it had {} entries", head.seq),
                )),
                None if head.seq == end.seq && *head != end => {
                    Some((end.seq.max(1), "the head has another hash".to_owned()))
                }
                None => self.bad,
            };
        }
        AuditVerdict {
            valid: self.bad.is_none(),
            entries: self.seq,
            head: end,
            first_bad_seq: self.bad.as_ref().map(|(seq, _)| *seq),
            fault: self.bad.map(|(_, fault)| fault),
        }
    }
}

fn check(entry: &AuditEntry, expected: u64, previous: &[u8; 32]) -> Result<[u8; 32], String> {
    if entry.seq != expected {
        return Err(format!("entry {} stands in its place", entry.seq));
    }
    if entry.prev_hash != HEXLOWER.encode(previous) {
        return Err("it does not follow on the entry before".to_owned());
    }
    let hash = entry_hash(expected, previous, entry.event_json.as_bytes());
    if entry.hash != HEXLOWER.encode(&hash) {
        return Err("its hash is not that of its content".to_owned());
    }
    Ok(hash)
}

/// Verifies a store's whole trail against the head that it has in memory and `witnessed` heads of it, a page
/// at a time, to its end. Entries appended meanwhile may or may not be part of it.
///
/// # Errors
/// Those of [`Store::audit_entries`]. A trail that is wrong is not an error but a verdict.
pub async fn verify(
    store: &dyn Store,
    witnessed: impl IntoIterator<Item = AuditHead>,
) -> Result<AuditVerdict, StoreError> {
    let head = store.audit_head();
    let mut verifier = Verifier::new(witnessed.into_iter().chain([head.clone()]));
    while !verifier.is_decided() {
        let page = store.audit_entries(verifier.sound_up_to(), PAGE).await?;
        if page.is_empty() {
            break;
        }
        verifier.feed(&page);
    }
    if verifier.sound_up_to() > head.seq {
        // Whatever the store's writer had written when it was read is in its memory once it has been through another verb.
        store.check().await?;
        verifier.written_up_to(store.audit_head().seq);
    }
    Ok(verifier.finish(&head))
}

#[cfg(test)]
mod tests;
