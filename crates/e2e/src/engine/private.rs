//! An engine of somebody's own, to be stopped, frozen, killed and lied about: `dockerd` with all that it has below one
//! folder, and an image of this host's own programs. When it is dropped, nothing of it is left.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a harness fails by failing its test"
)]

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::Engine;
use crate::standstill;

/// The image of this host's programs.
pub const IMAGE: &str = "mosaic-shell:1";
/// What is in it.
const PROGRAMS: [&str; 11] = [
    "sh", "sleep", "cat", "ls", "touch", "env", "head", "mkdir", "rm", "wc", "setsid",
];
/// How long it may take to come up, or to let go of what it has.
const PATIENCE: Duration = Duration::from_secs(60);
/// Users that this host's `nobody` may map, for one who sees this in place of the host's own lists.
const SUBORDINATE: &str = "nobody:100000:65536\n";
/// `nobody`, by number: its group has another name on some hosts.
const NOBODY: &str = "65534:65534";
/// Shows a list in place of the host's own, to what it then becomes.
const WITH_LISTS: &str =
    "mount --bind \"$0\" /etc/subuid && mount --bind \"$0\" /etc/subgid && exec \"$@\"";

/// See the module documentation.
#[derive(Debug)]
pub struct PrivateEngine {
    daemon: Option<Child>,
    arguments: Vec<String>,
    maps_users: bool,
    dir: TempDir,
}

impl PrivateEngine {
    /// Starts one; `None` where that cannot be done, for which it says why.
    pub async fn start() -> Option<Self> {
        Self::start_with(&[], |_| {}).await
    }

    /// Starts one with these arguments, in a folder that `prepare` has seen.
    pub async fn start_with(arguments: &[&str], prepare: impl FnOnce(&Path)) -> Option<Self> {
        Self::start_as(false, arguments, prepare).await
    }

    /// Starts one whose root is another user on the host (`userns-remap`). The host's lists of such users are not
    /// touched: it sees its own in their place.
    pub async fn start_mapping_users() -> Option<Self> {
        let remap = format!("--userns-remap={NOBODY}");
        Self::start_as(true, &[&remap], |_| {}).await
    }

    async fn start_as(
        maps_users: bool,
        arguments: &[&str],
        prepare: impl FnOnce(&Path),
    ) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !runs("dockerd") || !runs("docker") {
            eprintln!("only root can start an engine, and needs dockerd and docker");
            return None;
        }
        let dir = tempfile::Builder::new()
            .prefix("engine-")
            .tempdir()
            .unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        fs::write(dir.path().join("daemon.json"), "{}").unwrap();
        fs::write(dir.path().join("subordinate"), SUBORDINATE).unwrap();
        prepare(&dir.path().join("data"));
        let mut engine = Self {
            daemon: None,
            arguments: arguments.iter().map(ToString::to_string).collect(),
            maps_users,
            dir,
        };
        if !engine.up().await {
            let log = fs::read_to_string(engine.path("log")).unwrap_or_default();
            eprintln!("an engine does not start here:\n{log}");
            return None;
        }
        engine.import(IMAGE, &[]);
        Some(engine)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path("docker.sock")
    }

    /// To ask it by its command line.
    #[must_use]
    pub fn engine(&self) -> Engine {
        Engine::at(self.socket())
    }

    /// Starts it, or starts it again with what it had. Whether it answers.
    ///
    /// # Panics
    /// Its folder cannot be written.
    pub async fn up(&mut self) -> bool {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let _ = fs::remove_file(self.socket());
        let value = |name: &str| self.path(name).display().to_string();
        // In a network of its own: without a bridge it would take away that of another engine.
        let mut daemon = Command::new("unshare");
        if self.maps_users {
            let lists = value("subordinate");
            daemon.args(["--mount", "--net", "--", "sh", "-c", WITH_LISTS, &lists]);
        } else {
            daemon.args(["--net", "--"]);
        }
        let daemon = daemon
            .arg("dockerd")
            .args(["--config-file", &value("daemon.json")])
            .args(["--data-root", &value("data")])
            .args(["--exec-root", &value("exec")])
            .args(["--pidfile", &value("pid")])
            .args(["--host", &format!("unix://{}", self.socket().display())])
            .args(["--storage-driver", "vfs"])
            // Where groups are named by paths, as containers that wait for agents need it.
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            .args(["--bridge=none", "--iptables=false"])
            .args(["--ip-forward=false", "--ip-masq=false"])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        let Ok(daemon) = daemon else { return false };
        let engine = self.engine();
        let daemon = self.daemon.insert(daemon);
        let answers = async {
            while !answers(&engine).await {
                if daemon.try_wait().unwrap().is_some() {
                    return false;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            true
        };
        tokio::time::timeout(PATIENCE, answers)
            .await
            .unwrap_or(false)
    }

    /// Starts it again.
    ///
    /// # Panics
    /// It does not answer.
    pub async fn restart(&mut self) {
        let up = self.up().await;
        assert!(up, "{}", fs::read_to_string(self.path("log")).unwrap());
    }

    /// Its own word.
    #[must_use]
    pub fn docker(&self, args: &[&str]) -> String {
        self.engine().docker(args)
    }

    /// All its containers, by name.
    #[must_use]
    pub fn containers(&self) -> Vec<String> {
        let all = self.docker(&["ps", "-a", "--format", "{{.Names}}"]);
        all.lines().map(ToOwned::to_owned).collect()
    }

    /// Waits until it has no container any more.
    ///
    /// # Panics
    /// It keeps one.
    pub async fn until_empty(&self) {
        let empty = async {
            while !self.containers().is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, empty).await.is_ok();
        assert!(in_time, "containers are left: {:?}", self.containers());
    }

    /// Its processes: itself and what manages its containers.
    fn processes(&self) -> Vec<Pid> {
        let helper = fs::read_to_string(self.path("exec/containerd/containerd.pid"));
        let helper = helper.ok().and_then(|pid| pid.trim().parse().ok());
        let daemon = self.daemon.as_ref().map(Pid::from_child);
        daemon
            .into_iter()
            .chain(helper.and_then(Pid::from_raw))
            .collect()
    }

    fn signal(&self, signal: Signal) {
        for pid in self.processes() {
            let _ = kill_process(pid, signal);
        }
    }

    /// Stops the time for it.
    ///
    /// # Panics
    /// It goes on.
    pub fn freeze(&self) {
        standstill::stop(&self.processes()).expect("an engine stands still");
    }

    /// Lets its time go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Stops the time for it until this is dropped, by a failure too: nobody waits for it for ever.
    #[must_use]
    pub fn frozen(&self) -> Frozen<'_> {
        self.freeze();
        Frozen(self)
    }

    /// SIGKILL: its containers live on.
    ///
    /// # Panics
    /// It cannot be waited for.
    pub fn crash(&mut self) {
        self.signal(Signal::KILL);
        if let Some(mut daemon) = self.daemon.take() {
            daemon.wait().unwrap();
        }
        // Until somebody has reaped it, the next daemon would take what it names for alive.
        let _ = fs::remove_file(self.path("exec/containerd/containerd.pid"));
    }

    /// SIGTERM, as an operator would.
    ///
    /// # Panics
    /// It does not end well.
    pub async fn stop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else {
            return;
        };
        kill_process(Pid::from_child(&daemon), Signal::TERM).unwrap();
        let ended = tokio::task::spawn_blocking(move || daemon.wait().unwrap());
        assert!(ended.await.unwrap().success());
    }

    /// Makes an image of the host's programs, with some more, and of their libraries.
    ///
    /// # Panics
    /// One is not there.
    pub fn import(&self, image: &str, more: &[&str]) {
        let root = self.path("root");
        for folder in [
            "bin", "dev", "etc", "proc", "sys", "tmp", "run", "var/tmp", ".mosaic",
        ] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        let mut libraries = BTreeSet::new();
        for program in PROGRAMS.iter().chain(more) {
            let found = which(program).unwrap();
            fs::copy(&found, root.join("bin").join(program)).unwrap();
            let listed = Command::new("ldd").arg(&found).output().unwrap();
            let listed = String::from_utf8(listed.stdout).unwrap();
            let words = listed
                .split_whitespace()
                .filter(|word| word.starts_with('/'));
            libraries.extend(words.map(PathBuf::from));
        }
        for library in libraries {
            let to = root.join(library.strip_prefix("/").unwrap());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(&library, to).unwrap();
        }
        let tar = self.path("root.tar");
        let made = Command::new("tar")
            .arg("-C")
            .arg(&root)
            .arg("-cf")
            .arg(&tar)
            .arg(".")
            .status();
        assert!(made.unwrap().success());
        let _ = self.docker(&["import", tar.to_str().unwrap(), image]);
        fs::remove_dir_all(root).unwrap();
    }
}

/// See [`PrivateEngine::frozen`].
#[derive(Debug)]
pub struct Frozen<'a>(&'a PrivateEngine);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.thaw();
    }
}

impl Drop for PrivateEngine {
    fn drop(&mut self) {
        self.thaw();
        self.signal(Signal::KILL);
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.wait();
        }
        let dir = self.dir.path().to_str().unwrap().to_owned();
        // What watches over its containers has its folder among its arguments.
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let pid = entry.file_name().to_str().and_then(|pid| pid.parse().ok());
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if let Some(pid) = pid.and_then(Pid::from_raw)
                && String::from_utf8_lossy(&command).contains(&dir)
            {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        let below: Vec<&str> = below.filter(|point| point.starts_with(&dir)).collect();
        for point in below.into_iter().rev() {
            let _ = Command::new("umount").args(["--lazy", point]).output();
        }
    }
}

async fn answers(engine: &Engine) -> bool {
    let engine = engine.clone();
    let asked = tokio::task::spawn_blocking(move || engine.answers());
    asked.await.unwrap()
}

fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.is_file())
}

fn runs(program: &str) -> bool {
    which(program).is_some()
}
