use std::{os::unix::net::UnixStream, process::Command};

use super::*;
use crate::sandbox::spool::SpoolWriter;

#[test]
fn the_last_word_counts_though_the_engine_is_seen_to_end_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new("true").spawn().unwrap();
    let pid = identity::to_pid(child.id()).unwrap();
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    child.wait().unwrap();
    let (socket, mut init) = UnixStream::pair().unwrap();
    let mut session = Session {
        agent_dir: dir.path().to_owned(),
        control: Control::default(),
        spool: MaskedSpool::new(
            SpoolWriter::open(&dir.path().join(files::SPOOL), 1 << 20).unwrap(),
            &[],
        )
        .unwrap(),
        engine: Some(OwnEngine { child, pidfd }),
        starts: None,
        link: Link::Up { socket, init: None },
        heard: Vec::new(),
        init_pidfd: None,
        stdout: None,
        stderr: None,
        complaints: None,
        egress: None,
        phase: Phase::Running,
    };
    let mut line = serde_json::to_vec(&InitSays::Code(3)).unwrap();
    line.push(b'\n');
    init.write_all(&line).unwrap();
    drop(init);
    for status in [ExitStatus::Code(3), ExitStatus::Signal(9)] {
        let ended = session.engine_ended().unwrap().unwrap();
        assert_eq!(ended.status, status);
    }
}
