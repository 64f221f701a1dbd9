//! What an agent sees of the host, and what of it others see.

use std::fs;

use mosaic_orchestrator::sandbox::{Bind, EngineKind, ExitStatus, Network, spool::Stream};

use super::rig::{self, Rig, on_both_engines, sh, soon};

on_both_engines! {
    /// A19, A35
    async fn a35_the_agent_sees_its_own_files_only(rig) {
        let data = rig.dir.path().join("data");
        let own = data.join("worktrees/own");
        let other = data.join("worktrees/other");
        let objects = data.join("mirror/objects");
        let home = rig.dir.path().join("home");
        for dir in [&own, &other, &objects, &home] {
            fs::create_dir_all(dir).unwrap();
        }
        fs::write(data.join("key"), "secret").unwrap();
        fs::write(objects.join("pack"), "pack").unwrap();
        let secret_file = rig.work().join("netrc");
        fs::write(&secret_file, "password").unwrap();
        let script = format!(
            "w() {{ touch \"$1\" 2>/dev/null && echo \"writable $1\" || echo \"read-only $1\"; }}\n\
             w {own}/a; w {home}/a; w /etc/a; w /usr/a; w /tmp/a; w /dev/shm/a; w {objects}/a; w {data}/a; w /run/a; w /sys/fs/cgroup/a\n\
             cat {objects}/pack; echo; ls {data} {data}/worktrees; ls -A /run | wc -l; cat {secret}; ls /dev | grep -cE '^(vd|sd|nvme|mem|kmsg)'\n\
             cat /proc/sys/kernel/core_pattern > /proc/sys/kernel/core_pattern || echo 'sysctl refused'; echo $$; ls /proc | grep -cE '^[0-9]+$'; grep CapEff /proc/self/status; cat /proc/1/environ | wc -c; readlink /proc/1/fd/1 | wc -l; ls /proc/self/fd",
            own = own.display(), home = home.display(), objects = objects.display(), data = data.display(), secret = secret_file.display(),
        );
        let agent = rig.run(|spec| {
            sh(&script)(spec);
            spec.masked.extend([data.clone(), secret_file.clone()]);
            spec.binds.extend([Bind::writable(&own), Bind::writable(&home), Bind::read_only(&objects)]);
        }).await;
        assert_eq!(agent.handle.wait_exit().await.unwrap().status, ExitStatus::Code(0));
        let text = agent.text(Stream::Stdout);
        for writable in [own.join("a"), home.join("a"), "/tmp/a".into(), "/dev/shm/a".into()] {
            assert!(text.contains(&format!("writable {}\n", writable.display())), "{text}");
        }
        // Below /tmp, what is masked is the agent's own empty /tmp: nothing of the host's, and it may write there.
        let below_tmp = data.starts_with("/tmp") || data.starts_with("/var/tmp");
        let data_says = if below_tmp { "writable" } else { "read-only" };
        assert!(text.contains(&format!("{data_says} {}/a\n", data.display())), "{text}");
        for fixed in [objects.join("a"), "/etc/a".into(), "/usr/a".into(), "/run/a".into(), "/sys/fs/cgroup/a".into()] {
            assert!(text.contains(&format!("read-only {}\n", fixed.display())), "{text}");
        }
        assert!(own.join("a").exists() && home.join("a").exists() && !data.join("a").exists());
        assert!(!std::path::Path::new("/tmp/a").exists());
        assert!(text.contains("pack\n"));
        assert!(!text.contains("secret") && !text.contains("other") && !text.contains("password"), "{text}");
        let wrote = if below_tmp { "a\n" } else { "" };
        let listing = format!("{data}:\n{wrote}mirror\nworktrees\n\n{data}/worktrees:\nown\n", data = data.display());
        assert!(text.contains(&listing), "{text}");
        assert!(text.contains("sysctl refused"), "{text}");
        assert!(text.contains("CapEff:\t0000000000000000"), "{text}");
        // Pid 2 is the agent; nothing of ours is open in it, nothing of pid 1 is readable.
        // (3 is the listing's own.)
        assert!(text.ends_with("\n0\n0\n0\n1\n2\n3\n"), "{text}");
    }

    async fn a_secret_is_on_no_command_line_and_in_no_other_environment(rig) {
        let secret = format!("s3cret-{}", mosaic_types::AgentId::generate());
        let agent = rig.run(|spec| {
            sh("test -n \"$TOKEN\" || exit 1; unset TOKEN; exec sh -c 'echo up; exec sleep 1000'")(spec);
            spec.env.insert("TOKEN".into(), secret.clone());
        }).await;
        agent.wait_for("up").await;
        let mut looked_at = 0;
        for pid in rig::all_pids() {
            for file in ["cmdline", "environ"] {
                let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                let ours = String::from_utf8_lossy(&text).contains("sandbox-");
                looked_at += usize::from(ours);
                assert!(!String::from_utf8_lossy(&text).contains(&secret), "{pid} {file}");
            }
        }
        for entry in fs::read_dir(&agent.dir).unwrap() {
            let text = fs::read(entry.unwrap().path()).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&text).contains(&secret));
        }
        assert!(looked_at >= 3);
        agent.handle.kill().unwrap();
        assert!(agent.handle.prove_dead(soon()).await.is_proven());
    }

    async fn network_none_has_no_way_out(rig) {
        let agent = rig.run(|spec| {
            sh("cat /proc/net/route | wc -l; ls /sys/class/net 2>/dev/null | wc -l; cat /proc/net/dev | tail -n +3 | cut -d: -f1")(spec);
            spec.network = Network::None;
        }).await;
        agent.handle.wait_exit().await.unwrap();
        assert!(agent.text(Stream::Stdout).trim().ends_with("lo"), "{}", agent.text(Stream::Stdout));
        // At most the header.
        assert!(["0", "1"].contains(&agent.text(Stream::Stdout).lines().next().unwrap()));
    }
}
