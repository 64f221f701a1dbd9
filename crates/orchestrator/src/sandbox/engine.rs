//! The command lines of the two engines. Both make the namespaces and then run *our* init as pid 1,
//! so that holding back, reaping and reporting are the same; they differ in who mounts.
//!
//! The init gets its own executable as standard input, because that descriptor is the one name of
//! it that is valid in every mount namespace, and its socket to the shim as standard output.

use std::{ffi::OsString, path::Path, process::Command};

use super::{
    Network,
    containment::{Engine, EngineKind},
    filesystem::{HOST_CONTROLS, Look, View},
    init,
};

const OWN_EXECUTABLE: &str = "/proc/self/fd/0";

/// The engine, ready to be spawned but for its descriptors. Its environment is empty: the agent's
/// goes over the socket.
pub(super) fn command(engine: &Engine, view: &View, network: &Network) -> Command {
    let mut command = Command::new(&engine.path);
    command.env_clear().current_dir("/");
    match engine.kind {
        EngineKind::Bubblewrap => command.args(bubblewrap(view, network)),
        EngineKind::Unshare => command.args(unshare(network)),
    };
    command.args([OWN_EXECUTABLE, init::INIT_VERB]);
    command
}

fn bubblewrap(view: &View, network: &Network) -> Vec<OsString> {
    let mut args = Vec::new();
    let mut add = |parts: &[&dyn AsRef<std::ffi::OsStr>]| {
        args.extend(parts.iter().map(|part| part.as_ref().to_owned()));
    };
    add(&[
        &"--unshare-pid",
        &"--unshare-ipc",
        &"--unshare-uts",
        &"--as-pid-1",
    ]);
    add(&[
        &"--new-session",
        &"--die-with-parent",
        &"--cap-drop",
        &"ALL",
    ]);
    if *network != Network::Host {
        // Brings its loopback up, too.
        add(&[&"--unshare-net"]);
    }
    add(&[
        &"--ro-bind",
        &"/",
        &"/",
        &"--dev",
        &"/dev",
        &"--proc",
        &"/proc",
    ]);
    // To an agent with uid 0 these are the host's to change, with or without capabilities.
    for entry in HOST_CONTROLS {
        add(&[&"--ro-bind-try", &entry, &entry]);
    }
    for (path, look) in &view.0 {
        match look {
            Look::Empty => add(&[&"--tmpfs", path]),
            Look::Scratch => add(&[&"--perms", &"1777", &"--tmpfs", path]),
            Look::Null => add(&[&"--ro-bind", &"/dev/null", path]),
            Look::ReadOnly => add(&[&"--ro-bind", path, path]),
            Look::Writable => add(&[&"--bind", path, path]),
        }
    }
    for (path, _) in view.0.iter().filter(|(_, look)| *look == Look::Empty) {
        add(&[&"--remount-ro", path]);
    }
    add(&[&"--chdir", &"/", &"--"]);
    args
}

fn unshare(network: &Network) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    if !rustix::process::geteuid().is_root() {
        // Capabilities in its own user namespace, for the init to mount with and then to drop.
        args.extend(["--user", "--map-current-user", "--keep-caps"].map(Into::into));
    }
    args.extend(
        [
            "--mount",
            "--pid",
            "--ipc",
            "--uts",
            "--fork",
            "--kill-child=SIGKILL",
            "--mount-proc",
        ]
        .map(Into::into),
    );
    if *network != Network::Host {
        args.push("--net".into());
    }
    args.push("--".into());
    args
}

/// What the engine says its version is; empty if it does not say.
pub(super) fn version(path: &Path) -> String {
    Command::new(path)
        .arg("--version")
        .env_clear()
        .output()
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .and_then(|text| text.split_ascii_whitespace().last().map(str::to_owned))
        .unwrap_or_default()
}
