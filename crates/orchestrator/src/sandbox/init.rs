//! Pid 1 of an agent's namespace. It waits to be let go, starts the agent, reaps what loses its
//! parent, says how the agent ended, and by its own end takes everything else in the namespace with
//! it. It also ends when its shim does, whatever engine is in between.

use std::{
    convert::Infallible,
    ffi::OsString,
    fs, io,
    io::{BufRead, BufReader, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use rustix::{
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    process::{
        DumpableBehavior, Resource, WaitOptions, getrlimit, nice, set_dumpable_behavior, setrlimit,
        setsid, wait,
    },
    thread::{
        CapabilitiesSecureBits, CapabilitySet, CapabilitySets, set_capabilities,
        set_capabilities_secure_bits, set_no_new_privs,
    },
};

use zeroize::Zeroizing;

use super::{
    egress,
    files::{GO, InitPlan, InitSays},
};

/// The hidden first argument that makes one of our binaries an init.
pub(super) const INIT_VERB: &str = "sandbox-init";

/// Open files an agent may have by default. The daemon's own limit is raised far above.
pub(super) const AGENT_OPEN_FILES: u64 = 4096;
/// When memory runs out, agents go before anything of ours.
const AGENT_OOM_SCORE: &str = "500";
/// Agents leave the processor to the daemon, so that a kill is not slowed by what it kills.
const AGENT_NICE: i32 = 5;

/// Runs with its end of the link as standard output, or, in a container, with the path of the shim's socket as its
/// argument. Where no shim listens there is nothing to run.
pub(super) fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let socket = match args.next() {
        Some(path) => UnixStream::connect(PathBuf::from(path)),
        // The copy is closed on exec, the original replaced by it.
        None => io::stdout()
            .as_fd()
            .try_clone_to_owned()
            .map(UnixStream::from),
    };
    let Ok(socket) = socket else {
        return ExitCode::FAILURE;
    };
    match run(&socket) {
        Ok(never) => match never {},
        Err(error) => {
            let _ = say(&socket, &InitSays::Failed(error.to_string()));
            ExitCode::FAILURE
        }
    }
}

/// The agent's own standard streams, in the order in which the shim sends them.
struct AgentStreams {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

fn run(socket: &UnixStream) -> io::Result<Infallible> {
    let _ = rustix::thread::set_name(c"mosaic-init");
    let streams = receive_streams(socket)?;
    let mut reader = BufReader::new(socket);
    let mut line = Zeroizing::new(Vec::new());
    reader.read_until(b'\n', &mut line)?;
    let plan: InitPlan = serde_json::from_slice(&line)?;
    drop(line);

    let _ = fs::write("/proc/self/oom_score_adj", AGENT_OOM_SCORE);
    let _ = nice(AGENT_NICE);
    let mut open_files = getrlimit(Resource::Nofile);
    open_files.current = Some(
        open_files
            .maximum
            .map_or(AGENT_OPEN_FILES, |most| most.min(AGENT_OPEN_FILES)),
    );
    let _ = setrlimit(Resource::Nofile, open_files);
    if let Some(view) = &plan.filesystem {
        let _ = setsid();
        view.mount()
            .map_err(|error| explain("mount the agent's view of the files", &error))?;
        drop_privileges().map_err(|error| explain("drop privileges", &error))?;
    }
    // The agent has our uid: without this it could reach into this process, its socket included.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    std::env::set_current_dir(&plan.cwd)
        .map_err(|error| explain("enter the working directory", &error))?;

    if let Some(socket) = &plan.proxy_socket {
        egress::forward(socket).map_err(|error| explain("offer the agent its proxy", &error))?;
    }
    say(socket, &InitSays::Ready)?;
    let mut word = [0; GO.len()];
    // End of file: the shim is gone before it let us go. Nothing of the agent's has run.
    reader.read_exact(&mut word)?;
    let until_shim_ends = socket.try_clone()?;
    std::thread::Builder::new().spawn(move || {
        let _ = io::copy(&mut &until_shim_ends, &mut io::sink());
        std::process::exit(1);
    })?;

    let (program, args) = plan.argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let child = Command::new(program)
        .args(args)
        .env_clear()
        .envs(&plan.env)
        .stdin(Stdio::from(streams.stdin))
        .stdout(Stdio::from(streams.stdout))
        .stderr(Stdio::from(streams.stderr))
        .spawn()
        .map_err(|error| explain("start the program", &error))?;
    drop(plan);
    let ended = reap_until(child.id())?;
    say(socket, &ended)?;
    // From here the kernel ends everything that is left in the namespace (A14).
    std::process::exit(0)
}

fn reap_until(main_pid: u32) -> io::Result<InitSays> {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status)))
                if u32::try_from(pid.as_raw_nonzero().get()) == Ok(main_pid) =>
            {
                if let Some(code) = status.exit_status() {
                    return Ok(InitSays::Code(code));
                }
                if let Some(signal) = status.terminating_signal() {
                    return Ok(InitSays::Signal(signal));
                }
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn drop_privileges() -> io::Result<()> {
    set_no_new_privs(true)?;
    // Fails without the privilege; then an exec as uid 0 of a user namespace gets only what that
    // namespace has, and no_new_privs keeps even that away.
    let _ = set_capabilities_secure_bits(
        CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::NO_SETUID_FIXUP
            | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED,
    );
    let none = CapabilitySet::empty();
    Ok(set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )?)
}

fn receive_streams(socket: &UnixStream) -> io::Result<AgentStreams> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let mut fds = fds.next().into_iter().flatten();
    match (fds.next(), fds.next(), fds.next()) {
        (Some(stdin), Some(stdout), Some(stderr)) => Ok(AgentStreams {
            stdin,
            stdout,
            stderr,
        }),
        _ => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "no streams from the shim",
        )),
    }
}

fn say(mut socket: &UnixStream, what: &InitSays) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    socket.write_all(&line)
}

fn explain(attempt: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("could not {attempt}: {error}"))
}
