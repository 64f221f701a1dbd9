//! One running sandbox of either kind, held by pidfds of its shim and its init.

use std::{
    io::Write,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use mosaic_types::AgentId;
use rustix::process::{PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, Interest, Take, unix::AsyncFd},
    net::unix::pipe,
};

use crate::sandbox::{
    Death, DeathProof, ExitRecord, ProofMethod, SandboxError, SandboxHandle, Scope,
    cgroup::Group,
    files::{self, GO, Plan, SandboxRecord},
    freezer::{self, Freezer},
    held_group::HeldGroup,
    identity::{self, ProcessIdentity},
    launcher::spooled_complaint,
    shim::{LISTENING, READY},
};

/// The most a shim says about why it did not start, in bytes.
const MAX_COMPLAINT_BYTES: u64 = 4096;

/// How often a death is asked for where the kernel cannot be had to tell.
const ASK_EVERY: Duration = Duration::from_millis(2);

/// See [`SandboxHandle`].
#[derive(Debug)]
pub(crate) struct ShimHandle {
    agent_id: AgentId,
    scope: Scope,
    agent_dir: PathBuf,
    /// How much the spool held before this launch, in bytes.
    spooled_before: u64,
    group: Option<HeldGroup>,
    shim_pid: u32,
    shim: OwnedFd,
    /// Set once, when the init is known: a kill reads it without a lock.
    init: OnceLock<(u32, OwnedFd)>,
    /// The group an init was put into by an engine, wherever that is.
    init_group: OnceLock<HeldGroup>,
    /// What could keep an engine's init from dying.
    freezer: OnceLock<Freezer>,
    /// Taken once each, by `go` and by `init_started`; a kill never looks at them.
    stdin: Mutex<Option<ChildStdin>>,
    stdout: Mutex<Option<ChildStdout>>,
    /// A voice that was heard before there was an agent.
    voice: Mutex<Option<ShimVoice>>,
    killed: AtomicBool,
    killed_at: OnceLock<Instant>,
}

impl ShimHandle {
    pub(super) fn spawned(
        mut child: Child,
        plan: &Plan,
        spooled_before: u64,
    ) -> Result<Self, SandboxError> {
        let launch = &plan.launch;
        let shim = identity::to_pid(child.id())
            .ok_or(rustix::io::Errno::SRCH)
            // Not reaped yet, so the number is still this child's.
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let shim = match shim {
            Ok(shim) => shim,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(SandboxError::io("watch the shim in", &launch.agent_dir)(
                    error.into(),
                ));
            }
        };
        Ok(Self {
            agent_id: launch.agent_id,
            scope: launch.scope,
            agent_dir: launch.agent_dir.clone(),
            spooled_before,
            group: plan.cgroup.clone().map(HeldGroup::hold),
            shim_pid: child.id(),
            shim,
            init: OnceLock::new(),
            init_group: OnceLock::new(),
            freezer: OnceLock::new(),
            stdin: Mutex::new(child.stdin.take()),
            stdout: Mutex::new(child.stdout.take()),
            voice: Mutex::new(None),
            killed: AtomicBool::new(false),
            killed_at: OnceLock::new(),
        })
    }

    pub(super) fn adopted(
        agent_dir: &Path,
        record: &SandboxRecord,
        shim: ProcessIdentity,
        shim_pidfd: OwnedFd,
        init: Option<(ProcessIdentity, OwnedFd)>,
        init_group: Option<Group>,
    ) -> Self {
        let freezer = match (&init, &init_group) {
            (Some((init, pidfd)), Some(_)) => freezer_of(init.pid, pidfd),
            _ => None,
        };
        Self {
            agent_id: record.agent_id,
            scope: record.scope,
            agent_dir: agent_dir.to_owned(),
            spooled_before: 0,
            group: record.cgroup.clone().map(HeldGroup::hold),
            shim_pid: shim.pid,
            shim: shim_pidfd,
            init: init
                .map(|(init, pidfd)| (init.pid, pidfd))
                .map_or_else(OnceLock::new, OnceLock::from),
            init_group: init_group
                .filter(|group| group.is_a_containers(record.cgroup.as_ref()))
                .map(HeldGroup::hold)
                .map_or_else(OnceLock::new, OnceLock::from),
            freezer: freezer.map_or_else(OnceLock::new, OnceLock::from),
            stdin: Mutex::new(None),
            stdout: Mutex::new(None),
            voice: Mutex::new(None),
            killed: AtomicBool::new(false),
            killed_at: OnceLock::new(),
        }
    }

    fn io(&self, operation: &'static str) -> impl FnOnce(std::io::Error) -> SandboxError {
        SandboxError::io(operation, &self.agent_dir)
    }

    /// What the shim has to say; to be taken once.
    pub(super) fn listen(&self) -> Result<ShimVoice, SandboxError> {
        let voice = self
            .voice
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(voice) = voice {
            return Ok(voice);
        }
        let stdout = self
            .stdout
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let stdout = stdout.ok_or_else(|| SandboxError::StartFailed {
            detail: "this sandbox was started before".into(),
        })?;
        ShimVoice::of(stdout).map_err(self.io("hear the shim of"))
    }

    /// The same handle, of a shim that has been listened to already.
    pub(super) fn with_voice(self, voice: ShimVoice) -> Self {
        Self {
            voice: Mutex::new(Some(voice)),
            ..self
        }
    }

    /// Waits until the shim listens for an init that an engine starts.
    pub(super) async fn hear_listening(&self, voice: &mut ShimVoice) -> Result<(), SandboxError> {
        self.hear(voice, LISTENING).await
    }

    /// Waits until the init waits for its word.
    pub(super) async fn hear_ready(&self, voice: &mut ShimVoice) -> Result<(), SandboxError> {
        self.hear(voice, READY).await
    }

    async fn hear(&self, voice: &mut ShimVoice, word: &str) -> Result<(), SandboxError> {
        let line = voice.line().await.map_err(self.io("hear the shim of"))?;
        if line.trim_end() == word {
            return Ok(());
        }
        if self.was_killed() {
            return Err(SandboxError::Killed);
        }
        let complaint = spooled_complaint(&self.agent_dir, self.spooled_before);
        Err(SandboxError::StartFailed {
            detail: format!("{} {complaint}", line.trim()).trim().to_owned(),
        })
    }

    /// Whether a kill was ordered.
    pub(super) fn was_killed(&self) -> bool {
        self.killed.load(Ordering::SeqCst)
    }

    /// Takes hold of the init that the shim told of.
    pub(super) fn hold_init(&self) -> Result<(), SandboxError> {
        let gone = || SandboxError::StartFailed {
            detail: "the namespace is gone".into(),
        };
        let init: ProcessIdentity =
            files::read(&self.agent_dir.join(files::INIT))?.ok_or_else(gone)?;
        let pidfd = init
            .open()
            .map_err(self.io("hold the init of"))?
            .ok_or_else(gone)?;
        if let Some(group) = files::read::<Group>(&self.agent_dir.join(files::INIT_GROUP))? {
            if group.is_a_containers(self.group.as_ref().map(HeldGroup::group)) {
                let _ = self.init_group.set(HeldGroup::hold(group));
            }
            if let Some(freezer) = freezer_of(init.pid, &pidfd) {
                let _ = self.freezer.set(freezer);
            }
        }
        let _ = self.init.set((init.pid, pidfd));
        // A kill that came in between has not seen this init.
        if self.was_killed() {
            self.kill()?;
            return Err(SandboxError::Killed);
        }
        Ok(())
    }

    /// Thaws whatever is left of what was killed and does not die. Where it was frozen before its init was known, say.
    pub(super) fn thaw_members(&self) {
        for group in self.group.iter().chain(self.init_group.get()) {
            freezer::thaw_members(group.group());
        }
    }

    /// Waits for the processes that must be gone, then for the group to be empty.
    async fn until_dead(&self) -> std::io::Result<()> {
        until_ended(&self.shim).await?;
        self.reap();
        if let Some((_, init)) = self.init.get() {
            until_ended(init).await?;
        }
        for group in self.group.iter().chain(self.init_group.get()) {
            // By now the group is empty or about to be; its file tells at most every 10 ms.
            while group.is_populated()? {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        Ok(())
    }

    /// Waits until the shim has ended, or nobody can say when it does.
    pub(super) async fn shim_ended(&self) {
        // What cannot be watched here is found out by whoever asks it for something.
        let _ = until_ended(&self.shim).await;
    }

    /// Takes the dead shim off the process table, if it was our child.
    fn reap(&self) {
        use std::os::fd::AsFd;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let _ = rustix::process::waitid(WaitId::PidFd(self.shim.as_fd()), options);
    }

    fn survivors(&self) -> Vec<u32> {
        if let Some(group) = &self.group {
            return group.pids();
        }
        let shim = Some((self.shim_pid, &self.shim));
        let init = self.init.get().map(|(pid, pidfd)| (*pid, pidfd));
        [shim, init]
            .into_iter()
            .flatten()
            .filter(|(_, pidfd)| !matches!(identity::is_dead(pidfd), Ok(true)))
            .map(|(pid, _)| pid)
            .collect()
    }
}

/// The freezer's group of a process that its pidfd says is still the one that was meant (A12).
fn freezer_of(pid: u32, pidfd: &OwnedFd) -> Option<Freezer> {
    let freezer = Freezer::of(pid)?;
    matches!(identity::is_dead(pidfd), Ok(false)).then_some(freezer)
}

/// The shim's standard output.
#[derive(Debug)]
pub(super) struct ShimVoice(BufReader<Take<pipe::Receiver>>);

impl ShimVoice {
    /// The voice of a shim that was just started. Must be called within a Tokio runtime.
    pub(super) fn of(stdout: ChildStdout) -> std::io::Result<Self> {
        let pipe = pipe::Receiver::from_owned_fd(stdout.into())?;
        Ok(Self(BufReader::new(pipe.take(MAX_COMPLAINT_BYTES))))
    }

    /// The next line; empty at the end.
    pub(super) async fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line).await?;
        Ok(line)
    }
}

/// Waits until the process of this pidfd has ended.
async fn until_ended(pidfd: &OwnedFd) -> std::io::Result<()> {
    if identity::is_dead(pidfd)? {
        return Ok(());
    }
    // A copy: two who wait cannot register the same descriptor.
    #[expect(
        deprecated,
        reason = "its successor is unsafe because of types that do not own what they register; this one does"
    )]
    let watched = pidfd
        .try_clone()
        .and_then(|copy| AsyncFd::with_interest(copy, Interest::READABLE));
    if let Ok(watched) = watched {
        loop {
            let mut guard = watched.readable().await?;
            if identity::is_dead(watched.get_ref())? {
                return Ok(());
            }
            guard.clear_ready();
        }
    }
    // No descriptor for a copy: asking takes none.
    while !identity::is_dead(pidfd)? {
        tokio::time::sleep(ASK_EVERY).await;
    }
    Ok(())
}

#[async_trait]
impl SandboxHandle for ShimHandle {
    fn agent_id(&self) -> AgentId {
        self.agent_id
    }

    fn scope(&self) -> Scope {
        self.scope
    }

    fn spool_path(&self) -> PathBuf {
        self.agent_dir.join(files::SPOOL)
    }

    async fn init_started(&self, time_limit: Duration) -> Result<(), SandboxError> {
        let mut voice = self.listen()?;
        tokio::time::timeout(time_limit, self.hear_ready(&mut voice))
            .await
            .map_err(|_| SandboxError::StartTimedOut(time_limit))??;
        self.hold_init()
    }

    fn go(&self) -> Result<(), SandboxError> {
        if self.was_killed() {
            return Err(SandboxError::Killed);
        }
        if self.init.get().is_none() {
            return Err(SandboxError::StartFailed {
                detail: "the namespace is not ready".into(),
            });
        }
        let stdin = self
            .stdin
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        stdin
            .map_or(Ok(()), |mut stdin| stdin.write_all(GO))
            .map_err(self.io("let go the agent of"))
    }

    fn end(&self) -> Result<(), SandboxError> {
        let _ = self.killed_at.set(Instant::now());
        self.killed.store(true, Ordering::SeqCst);
        let signal = |pidfd: &OwnedFd| match pidfd_send_signal(pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(self.io("kill the processes of")(error.into())),
        };
        let init = self.init.get().map_or(Ok(()), |(_, init)| signal(init));
        let shim = signal(&self.shim);
        init.and(shim)
    }

    fn end_groups(&self) -> Result<(), SandboxError> {
        let groups = self.group.iter().chain(self.init_group.get());
        let mut killed = Ok(());
        for group in groups {
            // Each is struck, whatever became of the one before.
            killed = killed.and(group.kill());
        }
        if let Some(freezer) = self.freezer.get() {
            freezer.thaw();
        }
        killed
    }

    async fn prove_dead(&self, deadline: Instant) -> Death {
        let asked = Instant::now();
        let dead = tokio::time::timeout_at(deadline.into(), self.until_dead()).await;
        if !matches!(dead, Ok(Ok(()))) {
            return Death::NotProven {
                survivors: self.survivors(),
            };
        }
        let since = self.killed_at.get().copied().unwrap_or(asked);
        Death::Proven(DeathProof {
            method: if self.group.is_some() {
                ProofMethod::Cgroup
            } else {
                ProofMethod::Pidfd
            },
            shim_pid: self.shim_pid,
            init_pid: self.init.get().map(|(pid, _)| *pid),
            elapsed_micros: u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX),
        })
    }

    async fn wait_exit(&self) -> Result<ExitRecord, SandboxError> {
        self.until_dead()
            .await
            .map_err(self.io("watch the processes of"))?;
        let record = files::read(&self.agent_dir.join(files::EXIT))?;
        Ok(record.unwrap_or_else(|| {
            ExitRecord::lost(if self.was_killed() {
                "killed"
            } else {
                "the shim was killed"
            })
        }))
    }
}
