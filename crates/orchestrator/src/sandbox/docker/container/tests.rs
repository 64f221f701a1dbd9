use std::os::unix::net::UnixListener;
use std::path::Path;

use super::*;
use crate::sandbox::DEFAULT_SPOOL_MAX_BYTES;

fn spec(binds: Vec<Bind>) -> LaunchSpec {
    LaunchSpec {
        agent_id: AgentId::generate(),
        scope: Scope::Local,
        agent_dir: "/data/agents/x/run".into(),
        argv: vec!["true".into()],
        env: [("API_KEY".to_owned(), "very-secret-value".to_owned())].into(),
        cwd: "/".into(),
        stdin: None,
        binds,
        masked: Vec::new(),
        network: Network::Host,
        limits: ResourceLimits {
            memory_mb: Some(512),
            cpus: Some(1.5),
            pids: Some(100),
        },
        spool_max_bytes: DEFAULT_SPOOL_MAX_BYTES,
        warm: None,
        masks: Vec::new(),
    }
}

fn description(spec: &LaunchSpec, data: &Path) -> Description {
    Description {
        settings: DockerSettings::of_image("image"),
        instance: "mi1test".to_owned(),
        toolkit: Toolkit::install(data, Path::new("/proc/self/exe")).unwrap(),
        run: "run".to_owned(),
        owner: Owner::Agent {
            agent_id: spec.agent_id,
            scope: spec.scope,
            launch: "1".to_owned(),
        },
        link_dir: spec.agent_dir.join("link"),
        binds: spec.binds.clone(),
        network: spec.network.clone(),
        limits: spec.limits,
        cgroup_parent: Some("/mosaic-test/local/x".to_owned()),
        later: None,
    }
}

#[test]
fn a35_a_container_gets_nothing_of_its_host() {
    let data = tempfile::tempdir().unwrap();
    let spec = spec(vec![Bind::writable("/tmp")]);
    let host = description(&spec, data.path())
        .body(true, &[])
        .host_config
        .unwrap();
    assert_eq!(host.privileged, Some(false));
    assert_eq!(host.cap_drop, Some(vec!["ALL".to_owned()]));
    assert_eq!(host.cap_add, None);
    assert_eq!(host.readonly_rootfs, Some(true));
    assert_eq!(
        host.security_opt,
        Some(vec!["no-new-privileges".to_owned()])
    );
    for of_the_host in [host.pid_mode, host.userns_mode, host.uts_mode] {
        assert_eq!(of_the_host, None);
    }
    assert_ne!(host.network_mode.as_deref(), Some("host"));
    assert_eq!(host.devices, None);
    let policy = host.restart_policy.unwrap().name;
    assert_eq!(policy, Some(RestartPolicyNameEnum::NO), "A33");
    assert_eq!(host.auto_remove, Some(false), "A33");
    assert_eq!(host.log_config.unwrap().typ.as_deref(), Some("none"), "A31");
    assert_eq!(
        (host.memory, host.memory_swap),
        (Some(512 << 20), Some(512 << 20))
    );
    assert_eq!(
        (host.nano_cpus, host.pids_limit),
        (Some(1_500_000_000), Some(100))
    );
    assert_eq!(host.cgroup_parent.as_deref(), Some("/mosaic-test/local/x"));
}

#[test]
fn an_engine_is_told_no_program_and_no_secret() {
    let data = tempfile::tempdir().unwrap();
    let spec = spec(Vec::new());
    let body = description(&spec, data.path()).body(true, &[]);
    assert_eq!(body.env, None);
    let told = serde_json::to_string(&body).unwrap();
    assert!(!told.contains("very-secret-value"), "{told}");
    assert_ne!(body.user.as_deref().unwrap().split(':').next(), Some("0"));
}

#[test]
fn a_parent_that_is_no_path_is_left_to_the_engine() {
    let data = tempfile::tempdir().unwrap();
    let body = description(&spec(Vec::new()), data.path()).body(false, &[]);
    assert_eq!(body.host_config.unwrap().cgroup_parent, None);
}

#[test]
fn a35_the_engines_socket_is_refused_by_any_path() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("engine.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let link = dir.path().join("innocent");
    std::os::unix::fs::symlink(&socket, &link).unwrap();
    let named = dir.path().join("docker.sock");
    fs::write(&named, "").unwrap();
    fs::create_dir(dir.path().join("other")).unwrap();
    let settings = DockerSettings {
        socket: socket.clone(),
        ..DockerSettings::of_image("image")
    };
    let refused = |path: &Path| check(&spec(vec![Bind::read_only(path)]), &settings).is_err();
    for path in [
        socket.as_path(),
        &link,
        &named,
        dir.path(),
        Path::new("/dev/null"),
    ] {
        assert!(refused(path), "{}", path.display());
    }
    assert!(!refused(&dir.path().join("other")));
}

#[test]
fn what_no_agent_may_see_is_lent_to_no_container() {
    let dir = tempfile::tempdir().unwrap();
    let root = fs::canonicalize(dir.path()).unwrap();
    for folder in ["srv/data/agents/x/work", "srv/other", "keys"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::write(root.join("keys/key"), "").unwrap();
    std::os::unix::fs::symlink(root.join("srv"), root.join("innocent")).unwrap();
    let settings = DockerSettings::of_image("image");
    let refused = |bind: &str, masked: &str| {
        let mut spec = spec(vec![Bind::read_only(root.join(bind))]);
        spec.masked = vec![root.join(masked)];
        match check(&spec, &settings) {
            Ok(()) => false,
            Err(SandboxError::InvalidLaunch { reason }) => {
                assert!(reason.contains("is masked"), "{reason}");
                true
            }
            Err(other) => panic!("{other}"),
        }
    };
    for (bind, masked) in [
        ("srv", "srv/data"),
        ("srv/data", "srv/data"),
        ("innocent", "srv/data"),
        ("srv", "innocent/data"),
        ("keys", "keys/key"),
        ("keys/key", "keys/key"),
    ] {
        assert!(refused(bind, masked), "{bind} shows {masked}");
    }
    // What is the agent's own lies below what is hidden, and what is not there cannot be seen.
    for (bind, masked) in [
        ("srv/data/agents/x/work", "srv/data"),
        ("srv/other", "srv/data"),
        ("srv", "srv/missing"),
        ("keys", "keys/key/below"),
    ] {
        assert!(!refused(bind, masked), "{bind} and {masked}");
    }
}

#[test]
fn each_launch_has_a_socket_of_its_own() {
    let data = tempfile::tempdir().unwrap();
    let spec = spec(Vec::new());
    let entrypoint = |launch: &str| {
        let mut description = description(&spec, data.path());
        description.owner = Owner::Agent {
            agent_id: spec.agent_id,
            scope: spec.scope,
            launch: launch.to_owned(),
        };
        description.body(true, &[]).entrypoint.unwrap()
    };
    assert_eq!(entrypoint("1").last().unwrap(), "/.mosaic/link/1.sock");
    assert_ne!(entrypoint("1"), entrypoint("2"));
}

#[test]
fn what_is_lent_from_roots_home_can_be_reached() {
    let data = tempfile::tempdir().unwrap();
    let tmpfs = |path: &str| {
        let spec = spec(vec![Bind::read_only(path)]);
        let body = description(&spec, data.path()).body(true, &[]);
        body.host_config.unwrap().tmpfs.unwrap()
    };
    let owner = format!("uid={}", DockerSettings::of_image("x").user.uid);
    assert!(tmpfs("/root/.cache/program")["/root"].contains(&owner));
    assert!(!tmpfs("/rootless/program").contains_key("/root"));
    // What is attached to a container that waits comes later, and is to be reached as well.
    let waiting = Description {
        later: Some("/root/mosaic".into()),
        ..description(&spec(Vec::new()), data.path())
    };
    let body = waiting.body(true, &[]);
    assert!(body.host_config.unwrap().tmpfs.unwrap()["/root"].contains(&owner));
}

#[test]
fn an_images_volumes_are_no_way_to_the_hosts_disk() {
    let data = tempfile::tempdir().unwrap();
    let spec = spec(vec![Bind::writable("/srv")]);
    let volumes = ["/data", "/srv", "/tmp"].map(ToOwned::to_owned);
    let body = description(&spec, data.path()).body(true, &volumes);
    let mounts = body.host_config.unwrap().mounts.unwrap();
    let at = |target: &str| -> Vec<_> {
        let here = mounts
            .iter()
            .filter(|mount| mount.target.as_deref() == Some(target));
        here.map(|mount| mount.typ).collect()
    };
    assert_eq!(at("/data"), [Some(MountType::TMPFS)]);
    assert_eq!(at("/srv"), [Some(MountType::BIND)]);
    assert_eq!(at("/tmp"), []);
}
