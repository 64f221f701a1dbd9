//! A sandbox of one test's own, which fails the test if anything is left when it is done.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use mosaic_orchestrator::sandbox::{
    Adopted, CgroupSupport, EngineKind, LaunchSpec, Network, ProcessSandbox, ProcessSandboxConfig,
    Program, ResourceLimits, Sandbox, SandboxHandle, Scope,
    cgroup::Group,
    spool::{Record, SpoolReader, Stream},
};
use mosaic_types::AgentId;
use tempfile::TempDir;

/// For everything that should take no time.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn soon() -> Instant {
    Instant::now() + LIMIT
}

/// Says what is missing, by name; where everything is required, that is a failure.
pub(crate) fn skip_unless(present: bool, what: &str) -> bool {
    if !present {
        assert!(
            std::env::var_os("MOSAIC_REQUIRE_ALL").is_none_or(|value| value != "1"),
            "missing: {what}"
        );
        eprintln!("SKIPPED: {what}");
    }
    present
}

macro_rules! on_both_engines {
    ($($(#[$meta:meta])* async fn $name:ident($rig:ident) $body:block)*) => {
        mod bubblewrap {
            use super::*;
            $($(#[$meta])* #[tokio::test] async fn $name() {
                let Some(rig) = Rig::new(EngineKind::Bubblewrap, false) else { return };
                { let $rig = &rig; async { $body }.await; }
                rig.finish().await;
            })*
        }
        mod unshare {
            use super::*;
            $($(#[$meta])* #[tokio::test] async fn $name() {
                let Some(rig) = Rig::new(EngineKind::Unshare, false) else { return };
                { let $rig = &rig; async { $body }.await; }
                rig.finish().await;
            })*
        }
    };
}
pub(crate) use on_both_engines;

/// Writes a program, by another process: while this one has it open for writing, a child that another test starts
/// inherits that, and who starts the program then is told that its text file is busy.
pub(crate) fn write_program(path: &Path, text: &str) {
    let mut install = Command::new("install")
        .args(["-m", "755", "/dev/stdin"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = install.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    assert!(install.wait().unwrap().success());
}

/// A launch of this script, by `sh`.
pub(crate) fn sh(script: &str) -> impl Fn(&mut LaunchSpec) + use<> {
    let script = script.to_owned();
    move |spec| spec.argv = vec!["/bin/sh".into(), "-c".into(), script.clone()]
}

pub(crate) struct Rig {
    pub(crate) sandbox: ProcessSandbox,
    pub(crate) dir: TempDir,
}

pub(crate) struct Agent {
    pub(crate) handle: Arc<dyn SandboxHandle>,
    pub(crate) dir: PathBuf,
}

impl Rig {
    pub(crate) fn new(engine: EngineKind, without_cgroup: bool) -> Option<Self> {
        let program = Program::at(env!("CARGO_BIN_EXE_mosaic-sandbox").into());
        Self::with_program(engine, without_cgroup, program)
    }

    pub(crate) fn with_program(
        engine: EngineKind,
        without_cgroup: bool,
        program: Program,
    ) -> Option<Self> {
        // Not below /tmp, which is private to each agent anyway.
        fs::create_dir_all(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let id = AgentId::generate().to_string();
        let config = ProcessSandboxConfig {
            data_dir: dir.path().to_owned(),
            instance: format!("test-{id}"),
            engine: Some(engine),
            without_cgroup,
            program,
        };
        let installed = std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .any(|path| path.join(engine.program()).is_file());
        if !skip_unless(installed, engine.program()) {
            return None;
        }
        // What it says of a containment that does not work here is what a failure is explained by.
        let _ = tracing_subscriber::fmt().with_test_writer().try_init();
        let sandbox = ProcessSandbox::detect(&config).unwrap();
        let has_cgroup = sandbox.containment().cgroup != CgroupSupport::None;
        if !without_cgroup {
            skip_unless(has_cgroup, "a writable cgroup v2");
        }
        fs::create_dir(dir.path().join("work")).unwrap();
        Some(Self { sandbox, dir })
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    pub(crate) fn parent(&self) -> Option<PathBuf> {
        match &self.sandbox.containment().cgroup {
            CgroupSupport::V2 { path } => Some(path.clone()),
            CgroupSupport::None => None,
        }
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.parent()
            .map(|path| Group::at(path).pids())
            .unwrap_or_default()
    }

    pub(crate) fn nobody_left(&self) -> bool {
        self.pids().is_empty()
    }

    pub(crate) fn spec(&self, change: impl FnOnce(&mut LaunchSpec)) -> LaunchSpec {
        let agent_id = AgentId::generate();
        let mut spec = LaunchSpec {
            agent_id,
            scope: Scope::Local,
            agent_dir: self.dir.path().join("agents").join(agent_id.to_string()),
            argv: vec!["true".into()],
            env: [("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())].into(),
            cwd: "/".into(),
            stdin: None,
            binds: vec![mosaic_orchestrator::sandbox::Bind::writable(self.work())],
            masked: vec![],
            network: Network::Host,
            limits: ResourceLimits::default(),
            spool_max_bytes: 8 << 20,
            warm: None,
            masks: vec![],
        };
        change(&mut spec);
        spec
    }

    pub(crate) fn spec_of(
        &self,
        agent: &Agent,
        change: impl FnOnce(&mut LaunchSpec),
    ) -> LaunchSpec {
        self.spec(|spec| {
            spec.agent_id = agent.handle.agent_id();
            spec.agent_dir.clone_from(&agent.dir);
            change(spec);
        })
    }

    pub(crate) async fn spawn(&self, change: impl FnOnce(&mut LaunchSpec)) -> Agent {
        let spec = self.spec(change);
        let dir = spec.agent_dir.clone();
        let handle = self
            .sandbox
            .spawn(self.sandbox.prepare(spec).unwrap())
            .unwrap();
        Agent { handle, dir }
    }

    pub(crate) async fn run(&self, change: impl FnOnce(&mut LaunchSpec)) -> Agent {
        let agent = self.spawn(change).await;
        agent.handle.init_started(LIMIT).await.unwrap();
        agent.handle.go().unwrap();
        agent
    }

    pub(crate) async fn adopt_live(&self, dir: &Path) -> Arc<dyn SandboxHandle> {
        match self.sandbox.adopt(dir).await.unwrap() {
            Adopted::Live(handle) => handle,
            other => panic!("not live: {other:?}"),
        }
    }

    /// Cleans up, twice, and fails if anything was left to clean.
    pub(crate) async fn finish(self) {
        for candidate in self.sandbox.list().unwrap() {
            assert!(!candidate.populated, "left over: {:?}", self.pids());
            for _ in 0..2 {
                self.sandbox
                    .cleanup(candidate.scope, candidate.agent_id)
                    .await
                    .unwrap();
            }
        }
        assert_eq!(self.sandbox.list().unwrap(), []);
        assert_eq!(processes_of(self.dir.path()), Vec::<String>::new());
        self.sandbox.release().unwrap();
        assert!(self.parent().is_none_or(|path| !path.exists()));
        let scratch: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("trial"))
            .collect();
        assert!(scratch.is_empty(), "{scratch:?}");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // A test that failed must not leave its agents to the next.
        let _ = self.sandbox.kill_everything();
    }
}

/// Command lines that name this directory: shims and engines that outlived their test. The kernel
/// may take a moment to empty them.
fn processes_of(dir: &Path) -> Vec<String> {
    let find = || -> Vec<String> {
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok())
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .filter(|line| line.contains(dir.to_str().unwrap()))
            .collect()
    };
    let deadline = soon();
    loop {
        let found = find();
        if found.is_empty() || Instant::now() > deadline {
            return found;
        }
        std::thread::yield_now();
    }
}

/// Everybody on this host.
pub(crate) fn all_pids() -> Vec<u32> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

pub(crate) fn records(path: &Path) -> Vec<Record> {
    let Ok(mut reader) = SpoolReader::open(path, 0) else {
        return Vec::new();
    };
    std::iter::from_fn(|| reader.next().unwrap()).collect()
}

pub(crate) fn text(path: &Path, stream: Stream) -> String {
    let bytes: Vec<u8> = records(path)
        .into_iter()
        .filter(|record| record.stream == stream)
        .flat_map(|record| record.payload)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(crate) fn kill_pid(pid: &serde_json::Value) {
    let pid = i32::try_from(pid.as_i64().unwrap()).unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
}

impl Agent {
    pub(crate) fn records(&self) -> Vec<Record> {
        records(&self.handle.spool_path())
    }

    pub(crate) fn text(&self, stream: Stream) -> String {
        text(&self.handle.spool_path(), stream)
    }

    /// Until the agent has written this.
    pub(crate) async fn wait_for(&self, what: &str) {
        let deadline = soon();
        while !self.text(Stream::Stdout).contains(what) {
            assert!(
                Instant::now() < deadline,
                "no {what:?} in {:?}",
                self.records()
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
