use super::*;

fn chain(length: u64) -> Vec<AuditEntry> {
    let mut previous = NO_HASH;
    (1..=length)
        .map(|seq| {
            let event_json = format!("{{\"number\":{seq}}}");
            let hash = entry_hash(seq, &previous, event_json.as_bytes());
            let entry = AuditEntry {
                seq,
                prev_hash: HEXLOWER.encode(&previous),
                hash: HEXLOWER.encode(&hash),
                event_json,
            };
            previous = hash;
            entry
        })
        .collect()
}

fn head_of(entry: &AuditEntry) -> AuditHead {
    AuditHead {
        seq: entry.seq,
        hash: entry.hash.clone(),
    }
}

fn verdict(entries: &[AuditEntry], witnessed: &[AuditHead], head: &AuditHead) -> AuditVerdict {
    let mut verifier = Verifier::new(witnessed.iter().cloned());
    for page in entries.chunks(3) {
        verifier.feed(page);
    }
    verifier.finish(head)
}

/// The layout is a format: other programs verify exported trails.
#[test]
fn the_layout_has_a_known_answer() {
    let first = entry_hash(1, &NO_HASH, b"{}");
    let mut bytes = b"mosaic audit v1\0\0".to_vec();
    bytes.extend([0, 0, 0, 0, 0, 0, 0, 1]);
    bytes.extend([0; 32]);
    bytes.extend(b"{}");
    assert_eq!(first, <[u8; 32]>::from(Sha256::digest(&bytes)));
    assert_eq!(HEXLOWER.encode(&first), KNOWN_FIRST_HASH);
}

const KNOWN_FIRST_HASH: &str = "d3b642d6b33eacaec9ea862dd9f5cb976ba51e794941401db9f713e187b74174";

#[test]
fn a_sound_trail_is_valid_in_pages_of_any_size() {
    let entries = chain(20);
    let heads: Vec<AuditHead> = entries.iter().map(head_of).collect();
    for size in [1, 2, 7, 20, 50] {
        let mut verifier = Verifier::new(heads.clone());
        for page in entries.chunks(size) {
            verifier.feed(page);
        }
        let verdict = verifier.finish(&heads[19]);
        assert!(verdict.valid, "{verdict:?}");
        assert_eq!((verdict.entries, &verdict.head), (20, &heads[19]));
    }
    assert!(verdict(&[], &[], &AuditHead::empty()).valid);
}

/// Whoever knows the layout hashes what he edited again; then the next entry does not follow on it.
#[test]
fn every_edit_names_the_first_bad_entry() {
    let sound = chain(12);
    let end = head_of(&sound[11]);
    for at in 0..12_usize {
        let seq = at as u64 + 1;
        let tampered = |change: &dyn Fn(&mut AuditEntry)| {
            let mut entries = sound.clone();
            change(&mut entries[at]);
            verdict(&entries, &[], &end).first_bad_seq
        };
        assert_eq!(tampered(&|entry| entry.event_json.push(' ')), Some(seq));
        assert_eq!(tampered(&|entry| entry.hash = "0".repeat(64)), Some(seq));
        assert_eq!(
            tampered(&|entry| entry.prev_hash = "1".repeat(64)),
            Some(seq)
        );
        assert_eq!(tampered(&|entry| entry.seq += 1), Some(seq));
        let rehashed = tampered(&|entry| {
            entry.event_json = "{}".to_owned();
            let previous = HEXLOWER.decode(entry.prev_hash.as_bytes()).unwrap();
            let hash = entry_hash(entry.seq, &previous.try_into().unwrap(), b"{}");
            entry.hash = HEXLOWER.encode(&hash);
        });
        assert_eq!(rehashed, Some(if at == 11 { 12 } else { seq + 1 }));
    }
}

#[test]
fn removals_insertions_and_reorderings_name_the_first_bad_entry() {
    let sound = chain(10);
    let end = head_of(&sound[9]);
    for at in 0..9_usize {
        let seq = Some(at as u64 + 1);
        let mut removed = sound.clone();
        removed.remove(at);
        assert_eq!(verdict(&removed, &[], &end).first_bad_seq, seq);
        let mut swapped = sound.clone();
        swapped.swap(at, at + 1);
        assert_eq!(verdict(&swapped, &[], &end).first_bad_seq, seq);
        let mut renumbered = sound.clone();
        renumbered.swap(at, at + 1);
        renumbered[at].seq -= 1;
        renumbered[at + 1].seq += 1;
        assert_eq!(verdict(&renumbered, &[], &end).first_bad_seq, seq);
        let mut doubled = sound.clone();
        doubled.insert(at + 1, sound[at].clone());
        let verdict = verdict(&doubled, &[], &end);
        assert_eq!(verdict.first_bad_seq, Some(at as u64 + 2));
    }
}

#[test]
fn a_cut_is_found_by_the_head_or_a_witness_and_only_so() {
    let entries = chain(10);
    let (end, cut) = (head_of(&entries[9]), head_of(&entries[6]));
    let by_head = verdict(&entries[..7], &[], &end);
    assert_eq!((by_head.valid, by_head.first_bad_seq), (false, Some(8)));
    let by_witness = verdict(&entries[..7], &[head_of(&entries[8])], &cut);
    assert_eq!(
        (by_witness.valid, by_witness.first_bad_seq),
        (false, Some(8))
    );
    // The limit of what a chain can tell, and the reason why heads are witnessed.
    assert!(verdict(&entries[..7], &[], &cut).valid);
    let all = verdict(&[], &[], &end);
    assert_eq!((all.valid, all.first_bad_seq), (false, Some(1)));
}

#[test]
fn a_trail_that_was_rewritten_is_found_by_its_witness() {
    let seen = chain(10);
    let mut rewritten = chain(4);
    let mut previous = rewritten[3].hash.clone();
    for seq in 5..=12 {
        let bytes: [u8; 32] = HEXLOWER
            .decode(previous.as_bytes())
            .unwrap()
            .try_into()
            .unwrap();
        let hash = HEXLOWER.encode(&entry_hash(seq, &bytes, b"{}"));
        rewritten.push(AuditEntry {
            seq,
            prev_hash: previous,
            hash: hash.clone(),
            event_json: "{}".to_owned(),
        });
        previous = hash;
    }
    let end = head_of(&rewritten[11]);
    let verdict_of = |witnessed: &[AuditHead]| verdict(&rewritten, witnessed, &end);
    assert!(verdict_of(&[head_of(&seen[3])]).valid);
    let verdict = verdict_of(&[head_of(&seen[9]), head_of(&seen[6])]);
    assert_eq!((verdict.valid, verdict.first_bad_seq), (false, Some(7)));
}

#[test]
fn witnesses_who_disagree_are_reported_where_they_do() {
    let entries = chain(5);
    let end = head_of(&entries[4]);
    let mut liar = head_of(&entries[2]);
    liar.hash = "f".repeat(64);
    for witnessed in [
        [head_of(&entries[2]), liar.clone()],
        [liar.clone(), head_of(&entries[2])],
    ] {
        let verdict = verdict(&entries, &witnessed, &end);
        assert_eq!((verdict.valid, verdict.first_bad_seq), (false, Some(3)));
    }
    let mut edited = entries.clone();
    edited[0].event_json.push(' ');
    let verdict = verdict(&edited, &[head_of(&entries[2]), liar], &end);
    assert_eq!(verdict.first_bad_seq, Some(1));
}
