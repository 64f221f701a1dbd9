use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::Path,
    time::Instant,
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::{format::Header, writer::whole_records, *};

fn all(path: &Path) -> Vec<Record> {
    let mut reader = SpoolReader::open(path, 0).unwrap();
    std::iter::from_fn(|| reader.next().unwrap()).collect()
}

fn writer(dir: &TempDir, max: u64) -> (SpoolWriter, std::path::PathBuf) {
    let path = dir.path().join("spool");
    (SpoolWriter::open(&path, max).unwrap(), path)
}

#[test]
fn a31_a_line_of_one_mebibyte_is_one_record() {
    let dir = TempDir::new().unwrap();
    let (mut spool, path) = writer(&dir, 1 << 30);
    let mut line = vec![b'x'; 1 << 20];
    line.push(b'\n');
    let now = Instant::now();
    for chunk in line.chunks(65_536) {
        spool.push(Stream::Stdout, chunk, now);
        spool.push(Stream::Stderr, b"between\n", now);
    }
    assert_eq!(spool.finish(), 0);
    let records = all(&path);
    let stdout: Vec<_> = records
        .iter()
        .filter(|r| r.stream == Stream::Stdout)
        .collect();
    assert_eq!(stdout.len(), 1);
    assert_eq!(stdout[0].payload, line);
    assert!(!stdout[0].unfinished);
    assert_eq!(records.len(), 18);
}

#[test]
fn a_line_that_pauses_is_seen_and_joined_again() {
    let dir = TempDir::new().unwrap();
    let (mut spool, path) = writer(&dir, 1 << 20);
    let now = Instant::now();
    spool.push(Stream::Stdout, b"Password: ", now);
    spool.flush_idle(now);
    assert!(all(&path).is_empty(), "not before its time");
    spool.flush_idle(spool.next_flush().unwrap());
    assert_eq!(all(&path)[0].payload, b"Password: ");
    assert_eq!(spool.next_flush(), None);
    spool.push(Stream::Stdout, b"x\nlast", now);
    spool.finish();
    let mut joiner = LineJoiner::default();
    let lines: Vec<_> = all(&path)
        .iter()
        .filter_map(|record| joiner.push(record))
        .collect();
    assert_eq!(lines, [b"Password: x\n"]);
    assert_eq!(joiner.finish(), Some(b"last".to_vec()));
    assert_eq!(joiner.finish(), None);
}

#[test]
fn what_is_over_the_limit_is_dropped_counted_and_said() {
    let dir = TempDir::new().unwrap();
    let (mut spool, path) = writer(&dir, 20_000);
    for _ in 0..1000 {
        spool.push(Stream::Stdout, &[b'y'; 99], Instant::now());
        spool.push(Stream::Stdout, b"\n", Instant::now());
    }
    let dropped = spool.finish();
    let records = all(&path);
    let kept: u64 = records
        .iter()
        .filter(|r| r.stream == Stream::Stdout)
        .map(|r| r.payload.len() as u64)
        .sum();
    assert_eq!(kept + dropped, 100_000);
    assert!(std::fs::metadata(&path).unwrap().len() <= 20_000);
    let notices: Vec<_> = records.iter().filter_map(Record::notice).collect();
    assert_eq!(
        notices,
        [Notice::Truncated, Notice::Dropped { bytes: dropped }]
    );
}

#[test]
fn the_next_launch_has_its_own_allowance() {
    let dir = TempDir::new().unwrap();
    let (mut spool, path) = writer(&dir, 8192);
    spool.push(Stream::Stdout, &[b'\n'; 8192], Instant::now());
    assert!(spool.finish() > 0);
    let mut spool = SpoolWriter::open(&path, 8192).unwrap();
    spool.push(Stream::Stdout, b"again\n", Instant::now());
    assert_eq!(spool.finish(), 0);
    assert_eq!(all(&path).last().unwrap().payload, b"again\n");
}

impl SpoolWriter {
    /// Pushes while the disk is full: `/dev/full` takes nothing and says so.
    fn push_to_full_disk(&mut self, bytes: &[u8]) {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let disk = std::mem::replace(&mut self.file, full);
        self.push(Stream::Stdout, bytes, Instant::now());
        self.file = disk;
    }
}

/// What is in the spool, notices in their own words.
fn told(path: &Path) -> Vec<String> {
    let told = |record: &Record| String::from_utf8(record.payload.clone()).unwrap();
    all(path).iter().map(told).collect()
}

#[test]
fn a26_a_full_disk_loses_what_it_was_full_for_and_that_is_said_where_it_is() {
    let dir = TempDir::new().unwrap();
    let (mut spool, path) = writer(&dir, 1 << 20);
    spool.push(Stream::Stdout, b"before\nhalf a ", Instant::now());
    spool.flush_idle(spool.next_flush().unwrap());
    spool.push_to_full_disk(b"line\n");
    spool.push_to_full_disk(b"lost\n");
    spool.push(Stream::Stdout, b"after\n", Instant::now());
    let so_far = [
        "before\n",
        "half a ",
        r#"{"kind":"dropped","bytes":10}"#,
        "after\n",
    ];
    assert_eq!(told(&path), so_far);
    spool.push_to_full_disk(b"lost too\n");
    assert_eq!(spool.finish(), 19);
    assert_eq!(told(&path)[..4], so_far);
    assert_eq!(told(&path)[4..], [r#"{"kind":"dropped","bytes":19}"#]);
}

#[test]
fn a26_a_disk_that_stays_full_fails_nobody() {
    let dir = TempDir::new().unwrap();
    let (mut spool, path) = writer(&dir, 8192);
    spool.push_to_full_disk(&[b'\n'; 8192]);
    assert_eq!(told(&path), [""; 0]);
    // That the limit is reached is said as soon as it can be.
    spool.push(Stream::Stdout, b"more\n", Instant::now());
    let notices: Vec<_> = all(&path).iter().filter_map(Record::notice).collect();
    let dropped = Notice::Dropped { bytes: 8192 + 5 };
    assert_eq!(notices, [dropped, Notice::Truncated]);
    spool.push_to_full_disk(b"more\n");
    assert_eq!(spool.finish(), 8192 + 10);
}

#[test]
fn a26_word_of_what_a_full_disk_lost_is_within_the_limit() {
    let dir = TempDir::new().unwrap();
    let (mut spool, path) = writer(&dir, 20_000);
    for _ in 0..500 {
        spool.push(Stream::Stdout, b"kept\n", Instant::now());
        spool.push_to_full_disk(b"lost\n");
    }
    let dropped = spool.finish();
    assert!(std::fs::metadata(&path).unwrap().len() <= 20_000);
    let records = all(&path);
    let kept = records.iter().filter(|r| r.stream == Stream::Stdout);
    assert_eq!(kept.count() as u64 * 5 + dropped, 5000);
    let notices: Vec<_> = records.iter().filter_map(Record::notice).collect();
    let last = [Notice::Truncated, Notice::Dropped { bytes: dropped }];
    assert!(notices.ends_with(&last), "{notices:?}");
    let is_full = |notice: &&Notice| **notice == Notice::Truncated;
    assert_eq!(notices.iter().filter(is_full).count(), 1);
}

/// They may have been read before the disk was found full.
#[test]
fn a26_records_that_arrived_before_the_disk_was_full_stay() {
    let dir = TempDir::new().unwrap();
    let (mut spool, path) = writer(&dir, 1 << 20);
    for line in ["one\n", "two and\n", "three\n"] {
        spool.push(Stream::Stdout, line.as_bytes(), Instant::now());
    }
    drop(spool);
    let batch = std::fs::read(&path).unwrap();
    for written in 0..=batch.len() {
        let (whole, lost_bytes) = whole_records(&batch, written);
        let expected = match written {
            0..24 => (0, 18),
            24..52 => (24, 14),
            52..78 => (52, 6),
            _ => (78, 0),
        };
        assert_eq!((whole, lost_bytes), expected, "{written}");
    }
}

#[test]
fn a_launch_begins_where_a_record_does() {
    let dir = TempDir::new().unwrap();
    let (mut spool, path) = writer(&dir, 1 << 20);
    spool.push(Stream::Stdout, b"first\nsecond\n", Instant::now());
    spool.finish();
    let whole = std::fs::read(&path).unwrap();
    for cut in 0..=whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let begin = next_launch_at(&path).unwrap();
        assert_eq!(begin, std::fs::metadata(&path).unwrap().len(), "{cut}");
        let mut spool = SpoolWriter::open(&path, 1 << 20).unwrap();
        spool.push(Stream::Stdout, b"next\n", Instant::now());
        spool.finish();
        let mut reader = SpoolReader::open(&path, begin).unwrap();
        assert_eq!(reader.next().unwrap().unwrap().payload, b"next\n", "{cut}");
    }
    let none = dir.path().join("none");
    assert_eq!(next_launch_at(&none).unwrap(), 0);
    assert!(!none.exists(), "the shim makes it");
}

#[test]
fn no_record_is_made_of_garbage() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("spool");
    std::fs::write(&path, [0xff; 64]).unwrap();
    let error = SpoolReader::open(&path, 0).unwrap().next().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    // A length that is not backed by bytes allocates nothing and is not there yet.
    let header = Header {
        stream: Stream::Stdout,
        unfinished: false,
        at_unix_ms: 0,
        payload_bytes: MAX_RECORD_BYTES,
    };
    std::fs::write(&path, header.encode()).unwrap();
    assert_eq!(SpoolReader::open(&path, 0).unwrap().next().unwrap(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is written in whatever pieces comes back byte for byte, also when the file was cut
    /// anywhere and another writer went on.
    #[test]
    fn bytes_survive_pieces_and_torn_tails(
        pieces in prop::collection::vec(prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200), 0..20),
        cut in any::<prop::sample::Index>(),
    ) {
        let dir = TempDir::new().unwrap();
        let (mut spool, path) = writer(&dir, 1 << 20);
        for piece in &pieces {
            spool.push(Stream::Stdout, piece, Instant::now());
        }
        spool.finish();
        let written: Vec<u8> = pieces.concat();
        let read: Vec<u8> = all(&path).into_iter().flat_map(|r| r.payload).collect();
        prop_assert_eq!(&read, &written);

        let whole = std::fs::read(&path).unwrap();
        let cut = cut.index(whole.len() + 1);
        std::fs::write(&path, &whole[..cut]).unwrap();
        let before = all(&path);
        let mut spool = SpoolWriter::open(&path, 1 << 20).unwrap();
        spool.push(Stream::Stderr, b"next\n", Instant::now());
        spool.finish();
        let after = all(&path);
        prop_assert_eq!(&after[..before.len()], &before[..]);
        prop_assert_eq!(&after.last().unwrap().payload, b"next\n");
        let kept: Vec<u8> =
            after.iter().filter(|r| r.stream == Stream::Stdout).flat_map(|r| r.payload.clone()).collect();
        prop_assert!(written.starts_with(&kept));
    }
}

#[test]
fn a_torn_record_keeps_what_arrived() {
    let dir = TempDir::new().unwrap();
    let (mut spool, path) = writer(&dir, 1 << 20);
    spool.push(Stream::Stdout, b"0123456789\n", Instant::now());
    drop(spool);
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 5]).unwrap();
    assert!(all(&path).is_empty());
    SpoolWriter::open(&path, 1 << 20).unwrap().finish();
    let records = all(&path);
    assert_eq!(records[0].payload, b"012345");
    assert!(records[0].unfinished);
    assert_eq!(records[1].notice(), Some(Notice::Torn));
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"MSP").unwrap();
    SpoolWriter::open(&path, 1 << 20).unwrap().finish();
    assert_eq!(all(&path).len(), 3);
}

#[test]
fn a_line_that_drips_is_seen_as_soon_as_one_that_pauses() {
    let dir = TempDir::new().unwrap();
    let (mut spool, path) = writer(&dir, 1 << 20);
    let begun = Instant::now();
    spool.push(Stream::Stdout, b".", begun);
    let due = spool.next_flush().unwrap();
    spool.push(Stream::Stdout, b".", begun + (due - begun) / 2);
    assert_eq!(spool.next_flush(), Some(due));
    spool.flush_idle(due);
    assert_eq!(all(&path).last().unwrap().payload, b"..");
}
