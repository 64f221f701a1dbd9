//! What an agent writes, kept whole and in order, without ever holding it up.

use std::fs;

use mosaic_orchestrator::sandbox::{
    Adopted, EngineKind, ExitStatus, Sandbox,
    mask::Mask,
    spool::{LineJoiner, Notice, Stream},
};

use super::rig::{Rig, on_both_engines, sh, soon};

on_both_engines! {
    async fn exit_code_and_output_are_kept(rig) {
        let agent = rig.run(sh("echo out; echo err >&2; exit 7")).await;
        let record = agent.handle.wait_exit().await.unwrap();
        assert_eq!(record.status, ExitStatus::Code(7));
        assert!(record.at_unix_ms > 0);
        assert_eq!(agent.text(Stream::Stdout), "out\n");
        assert_eq!(agent.text(Stream::Stderr), "err\n");
        // Also for who comes later.
        assert!(matches!(rig.sandbox.adopt(&agent.dir).await.unwrap(), Adopted::Ended(r) if r == record));
    }

    /// A31
    async fn a31_a_long_line_and_binary_bytes_survive(rig) {
        let agent = rig.run(sh("head -c 1048576 /dev/zero | tr '\\0' x; echo; printf '\\000\\377\\n'")).await;
        agent.handle.wait_exit().await.unwrap();
        let mut joiner = LineJoiner::default();
        let lines: Vec<_> = agent.records().iter().filter(|record| record.stream == Stream::Stdout).filter_map(|record| joiner.push(record)).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].len(), 1_048_577);
        assert_eq!(lines[1], [0, 0xff, b'\n']);
    }

    async fn an_unfinished_line_is_seen_while_the_agent_lives(rig) {
        let agent = rig.run(sh("printf 'Continue? '; exec sleep 1000")).await;
        agent.wait_for("Continue? ").await;
        agent.handle.kill().unwrap();
        assert!(agent.handle.prove_dead(soon()).await.is_proven());
    }

    /// A31
    async fn a31_a_full_spool_never_blocks_the_agent(rig) {
        let agent = rig.run(|spec| {
            sh("yes | head -c 4000000; exit 4")(spec);
            spec.spool_max_bytes = 65_536;
        }).await;
        let record = agent.handle.wait_exit().await.unwrap();
        assert_eq!(record.status, ExitStatus::Code(4));
        assert!(record.dropped_bytes > 3_000_000);
        assert!(fs::metadata(agent.handle.spool_path()).unwrap().len() <= 65_536);
        let notices: Vec<_> = agent.records().iter().filter_map(|record| record.notice()).collect();
        assert_eq!(notices, [Notice::Truncated, Notice::Dropped { bytes: record.dropped_bytes }]);
    }

    /// A31: a mask leaves a long line whole, and its engine's complaints and last words are masked as well.
    async fn a31_secrets_are_masked_before_anything_is_written(rig) {
        let secret = format!("hunter-{}", mosaic_types::AgentId::generate());
        let agent = rig.run(|spec| {
            sh("head -c 1048576 /dev/zero | tr '\\0' h; echo; echo \"$TOKEN\" >&2; printf '%s' \"$TOKEN\"")(spec);
            spec.env.insert("TOKEN".into(), secret.clone());
            spec.masks.push(Mask::new("token", &secret).unwrap());
        }).await;
        assert_eq!(agent.handle.wait_exit().await.unwrap().status, ExitStatus::Code(0));
        let text = agent.text(Stream::Stdout);
        let (line, last) = text.split_once('\n').unwrap();
        assert_eq!(line.len(), 1 << 20);
        assert_eq!(last, "[secret:token]");
        assert_eq!(agent.text(Stream::Stderr), "[secret:token]\n");
        let first = agent.records().into_iter().find(|record| record.stream == Stream::Stdout).unwrap();
        assert!(first.payload.len() == (1 << 20) + 1 && !first.unfinished, "the long line is one record");
        for entry in fs::read_dir(&agent.dir).unwrap() {
            let text = fs::read(entry.unwrap().path()).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&text).contains(&secret));
        }
    }

    /// A15
    async fn a15_a_pipe_held_open_delays_nothing(rig) {
        let agent = rig.run(sh("setsid sleep 1000 & echo done; exit 0")).await;
        assert_eq!(agent.handle.wait_exit().await.unwrap().status, ExitStatus::Code(0));
        assert_eq!(agent.text(Stream::Stdout), "done\n");
    }
}
