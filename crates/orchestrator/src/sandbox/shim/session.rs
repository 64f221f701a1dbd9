//! One launch, from the engine's start to the death of the namespace: a loop that waits for whoever
//! has something to say.

use std::{
    fs::File,
    io::{self, PipeReader, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::{
    LISTENING, READY,
    control::Control,
    explain,
    init_link::{Heard, receive},
    link::{Greeting, Link},
    masked::MaskedSpool,
    output::{drain, pump},
    own_engine::{OwnEngine, Starts},
    warm,
};
use crate::sandbox::{
    ExitStatus, Network,
    cgroup::Group,
    containment::EngineKind,
    egress::{self, Proxy, Refusals},
    files::{self, GO, InitPlan, InitSays, Plan, Starter},
    filesystem::View,
    identity::{self, ProcessIdentity},
    spool::Stream,
};

#[cfg(test)]
mod tests;

/// For how long an engine may linger after its namespace is dead.
const ENGINE_GRACE: Duration = Duration::from_secs(2);

/// What a session came to.
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) detail: Option<String>,
}

impl Ended {
    pub(super) fn not_started(detail: impl Into<String>) -> Self {
        Self {
            status: ExitStatus::NotStarted,
            detail: Some(detail.into()),
        }
    }
}

/// How far a launch has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting,
    Ready,
    Running,
}

pub(super) struct Session {
    agent_dir: PathBuf,
    control: Control,
    spool: MaskedSpool,
    /// The engine that the shim started itself. A container's belongs to the host.
    engine: Option<OwnEngine>,
    /// Starts it again, until there is a namespace.
    starts: Option<Starts>,
    link: Link,
    heard: Vec<u8>,
    init_pidfd: Option<OwnedFd>,
    stdout: Option<PipeReader>,
    stderr: Option<PipeReader>,
    /// What the engine itself has to say.
    complaints: Option<PipeReader>,
    /// The agent's way out, if it has an allow-list, and what was refused there.
    egress: Option<(Proxy, Refusals)>,
    phase: Phase,
}

impl Session {
    /// Starts the engine, or listens for the init that another starts, and hands the init what it needs.
    pub(super) fn start(
        plan: Plan,
        agent_dir: &Path,
        control: Control,
        spool: MaskedSpool,
        waiting: Option<Link>,
    ) -> io::Result<Self> {
        if let Some(link) = &waiting {
            warm::assign(&plan, link)
                .map_err(|error| explain("take the waiting container", &error))?;
        }
        let launch = plan.launch;
        // Not before the namespaces were changed: that wants a process of one thread.
        let egress = match &launch.network {
            Network::Allow(rules) => Some(
                Proxy::start(agent_dir, rules.clone(), spool.finder())
                    .map_err(|error| explain("start the agent's proxy", &error))?,
            ),
            Network::Host | Network::None => None,
        };
        let stdin = match &launch.stdin {
            Some(path) => File::open(path).map_err(|error| explain("open the input", &error))?,
            None => File::open("/dev/null")?,
        };
        let (stdout, stdout_writer) = io::pipe()?;
        let (stderr, stderr_writer) = io::pipe()?;
        let mut init_plan = InitPlan {
            argv: launch.argv.clone(),
            env: launch.env.clone(),
            cwd: launch.cwd.clone(),
            filesystem: None,
            proxy_socket: egress
                .is_some()
                .then(|| std::fs::canonicalize(egress::socket_dir(agent_dir)))
                .transpose()?
                .map(|dir| egress::socket_in(&dir)),
        };
        let streams = [stdin.into(), stdout_writer.into(), stderr_writer.into()];
        let (engine, starts, link, complaints) = match (plan.starter, waiting) {
            (_, Some(link)) => {
                let greeting = Greeting::new(&init_plan, streams)?;
                link.greet(&greeting)
                    .map_err(|error| explain("reach the waiting init", &error))?;
                (None, None, link, None)
            }
            (Starter::Engine(program), None) => {
                let view =
                    View::of(&launch).map_err(|error| explain("find the paths to bind", &error))?;
                init_plan.filesystem = (program.kind == EngineKind::Unshare).then(|| view.clone());
                let greeting = Greeting::new(&init_plan, streams)?;
                let mut starts = Starts::new(program, view, launch.network, greeting);
                let started = starts.next()?.ok_or(io::ErrorKind::InvalidInput)?;
                let (engine, complaints) = (Some(started.engine), Some(started.complaints));
                (engine, Some(starts), started.link, complaints)
            }
            (Starter::Container { socket, .. }, None) => {
                let greeting = Greeting::new(&init_plan, streams)?;
                let link = Link::listen(&socket, Some(greeting))
                    .map_err(|error| explain("listen for the init", &error))?;
                // A daemon that is gone shows at its other end.
                let _ = writeln!(io::stdout(), "{LISTENING}");
                (None, None, link, None)
            }
        };
        Ok(Self {
            agent_dir: agent_dir.to_owned(),
            control,
            spool,
            engine,
            starts,
            link,
            heard: Vec::new(),
            init_pidfd: None,
            stdout: Some(stdout),
            stderr: Some(stderr),
            complaints,
            egress,
            phase: Phase::Starting,
        })
    }

    /// Until the namespace is dead. Also says how much output was dropped, in bytes.
    pub(super) fn watch(mut self) -> (Ended, u64) {
        let ended = loop {
            match self.turn() {
                Ok(None) => {}
                Ok(Some(ended)) => break ended,
                Err(error) if self.phase == Phase::Running => {
                    let detail = Some(explain("watch the agent", &error).to_string());
                    break Ended {
                        status: ExitStatus::Lost,
                        detail,
                    };
                }
                Err(error) => break Ended::not_started(error.to_string()),
            }
        };
        self.end_namespace();
        if ended.status != ExitStatus::NotStarted {
            self.complaints = None;
        }
        drain(&mut self.stdout, &mut self.spool, Stream::Stdout);
        drain(&mut self.stderr, &mut self.spool, Stream::Stderr);
        drain(&mut self.complaints, &mut self.spool, Stream::Stderr);
        if let Some((_, refusals)) = &mut self.egress {
            refusals.write_down(self.spool.writer());
        }
        (ended, self.spool.finish())
    }

    /// Waits for the next thing to happen, and does what it asks for.
    fn turn(&mut self) -> io::Result<Option<Ended>> {
        let [control, link, engine, out, err, refused] = self.wait()?;
        if out {
            pump(&mut self.stdout, &mut self.spool, Stream::Stdout);
        }
        if err {
            pump(&mut self.stderr, &mut self.spool, Stream::Stderr);
        }
        if refused && let Some((_, refusals)) = &mut self.egress {
            refusals.write_down(self.spool.writer());
        }
        self.spool.flush_idle(Instant::now());
        if link && !self.link.is_up() {
            self.link.accept()?;
        } else if link && let Some(ended) = self.hear()? {
            return Ok(Some(ended));
        }
        if engine && !link {
            return self.engine_ended();
        }
        if control && self.phase != Phase::Running {
            return self.listen();
        }
        Ok(None)
    }

    fn wait(&self) -> io::Result<[bool; 6]> {
        let stdin = io::stdin();
        let sources: [(BorrowedFd<'_>, bool); 6] = [
            (stdin.as_fd(), self.phase != Phase::Running),
            (self.link.as_fd(), true),
            self.engine
                .as_ref()
                .map_or((self.link.as_fd(), false), |own| (own.pidfd.as_fd(), true)),
            self.stdout
                .as_ref()
                .map_or((self.link.as_fd(), false), |fd| (fd.as_fd(), true)),
            self.stderr
                .as_ref()
                .map_or((self.link.as_fd(), false), |fd| (fd.as_fd(), true)),
            self.egress
                .as_ref()
                .map_or((self.link.as_fd(), false), |(_, refusals)| {
                    (refusals.pipe().as_fd(), true)
                }),
        ];
        let mut fds: Vec<PollFd<'_>> = sources
            .iter()
            .filter(|(_, wanted)| *wanted)
            .map(|(fd, _)| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
            .collect();
        let timeout = self.spool.next_flush().map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut happened = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = |wanted: bool| wanted && happened.next().unwrap_or(false);
        Ok(sources.map(|(_, wanted)| next(wanted)))
    }

    /// The daemon said something, or is gone.
    fn listen(&mut self) -> io::Result<Option<Ended>> {
        if !self.control.fill()? {
            return Ok(Some(Ended::not_started(
                "the daemon was gone before it let the agent run",
            )));
        }
        self.let_go_if_told()?;
        Ok(None)
    }

    fn let_go_if_told(&mut self) -> io::Result<()> {
        if self.phase == Phase::Ready && self.control.take_line().is_some_and(|line| line == GO) {
            self.link.write_all(GO)?;
            self.phase = Phase::Running;
        }
        Ok(())
    }

    /// The init said something.
    fn hear(&mut self) -> io::Result<Option<Ended>> {
        let Some(socket) = self.link.socket() else {
            return Ok(None);
        };
        let sender = match receive(socket, &mut self.heard)? {
            Heard::Nothing => return Ok(None),
            Heard::End => return self.ended_in_silence(),
            Heard::Bytes { sender } => sender,
        };
        while let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
            let rest = self.heard.split_off(end + 1);
            let line = std::mem::replace(&mut self.heard, rest);
            let ended = match (serde_json::from_slice(&line)?, self.phase) {
                (InitSays::Ready, Phase::Starting) => {
                    let pid = sender.ok_or(io::ErrorKind::InvalidData)?;
                    self.init_is_ready(pid)?;
                    continue;
                }
                (InitSays::Code(code), Phase::Running) => Ended {
                    status: ExitStatus::Code(code),
                    detail: None,
                },
                (InitSays::Signal(signal), Phase::Running) => Ended {
                    status: ExitStatus::Signal(signal),
                    detail: None,
                },
                (InitSays::Failed(detail), _) => Ended::not_started(detail),
                _ => return Err(io::ErrorKind::InvalidData.into()),
            };
            return Ok(Some(ended));
        }
        Ok(None)
    }

    fn init_is_ready(&mut self, pid: rustix::process::Pid) -> io::Result<()> {
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let pid = u32::try_from(pid.as_raw_nonzero().get()).unwrap_or(0);
        let init = ProcessIdentity::of(pid)?;
        // The kernel ends a namespace with its pid 1 only; of anybody else a death proves nothing.
        if !identity::is_namespace_init(pid)? || identity::is_dead(&pidfd)? {
            return Err(io::Error::other("the namespace has no init of ours"));
        }
        if self.engine.is_none()
            && let Some(group) = Group::of(pid)?
        {
            files::write(&self.agent_dir.join(files::INIT_GROUP), &group)?;
        }
        files::write(&self.agent_dir.join(files::INIT), &init)?;
        self.init_pidfd = Some(pidfd);
        self.starts = None;
        self.phase = Phase::Ready;
        // A daemon that is gone shows at its other end.
        let _ = writeln!(io::stdout(), "{READY}");
        // The word may have been said before.
        self.let_go_if_told()
    }

    /// The engine is gone. The init may have spoken after its socket was looked at and before the
    /// engine was, in the same turn.
    fn engine_ended(&mut self) -> io::Result<Option<Ended>> {
        if let Some(ended) = self.hear()? {
            return Ok(Some(ended));
        }
        match &self.engine {
            // Another was started meanwhile.
            Some(engine) if !identity::is_dead(&engine.pidfd)? => Ok(None),
            _ => self.ended_in_silence(),
        }
    }

    /// The init or the engine is gone and has not said how the agent ended. Before there was a namespace the engine is
    /// tried again.
    fn ended_in_silence(&mut self) -> io::Result<Option<Ended>> {
        if self.phase == Phase::Running {
            return Ok(Some(Ended {
                // Nothing but SIGKILL, from outside, ends an init.
                status: ExitStatus::Signal(9),
                detail: Some("the namespace was killed from outside".into()),
            }));
        }
        let next = self.starts.as_mut().map(Starts::next).transpose()?;
        let Some(started) = next.flatten() else {
            return Ok(Some(Ended::not_started(
                "the engine ended before the namespace was ready; see the output",
            )));
        };
        let _ = writeln!(
            io::stderr(),
            "shim: the engine ended before there was a namespace; it was started again"
        );
        if let Some(mut ended) = self.engine.replace(started.engine) {
            let _ = ended.child.kill();
            let _ = ended.child.wait();
        }
        self.link = started.link;
        self.heard.clear();
        self.complaints = Some(started.complaints);
        Ok(None)
    }

    /// Kills the namespace and returns when it is dead, however long the kernel takes: an exit
    /// record must never be there before.
    fn end_namespace(&mut self) {
        if let Some(init) = &self.init_pidfd {
            let _ = pidfd_send_signal(init, Signal::KILL);
            while !matches!(identity::wait_readable(init, None), Ok(true)) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let Some(engine) = &mut self.engine else {
            return;
        };
        if self.init_pidfd.is_none() {
            let _ = engine.child.kill();
        }
        let grace = Timespec {
            tv_sec: ENGINE_GRACE.as_secs().cast_signed(),
            tv_nsec: 0,
        };
        if !matches!(
            identity::wait_readable(&engine.pidfd, Some(grace)),
            Ok(true)
        ) {
            let _ = engine.child.kill();
        }
        let _ = engine.child.wait();
    }
}
