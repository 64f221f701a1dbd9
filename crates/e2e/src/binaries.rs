//! Finds the executables under test beside the test's own, and never hands out a stale one: what is missing, or older
//! than a source file that it was made of, is built first.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a harness fails by failing its test"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// An executable of the workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    /// `mosaic`
    Cli,
    /// `mosaic-hub`
    Hub,
    /// `mosaic-orchestrator`
    Orchestrator,
}

static DIR: OnceLock<PathBuf> = OnceLock::new();

/// Takes the executables of this folder as they are, whatever their sources have become since.
///
/// # Panics
/// Some were found before.
pub fn use_from(dir: PathBuf) {
    DIR.set(dir).expect("no executable was asked for yet");
}

impl Binary {
    /// With what an orchestrator looks for beside itself.
    const NAMES: [&str; 4] = [
        "mosaic",
        "mosaic-hub",
        "mosaic-orchestrator",
        "mosaic-sandbox",
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Cli => "mosaic",
            Self::Hub => "mosaic-hub",
            Self::Orchestrator => "mosaic-orchestrator",
        }
    }

    /// Where it is, fresh.
    ///
    /// # Panics
    /// It cannot be built.
    #[must_use]
    pub fn path(self) -> PathBuf {
        DIR.get_or_init(|| {
            let dir = profile_dir();
            if !Self::NAMES.iter().all(|name| is_fresh(&dir.join(name))) {
                build(&dir);
            }
            dir
        })
        .join(self.name())
    }
}

/// `target/<profile>`: a test's own executable is in its `deps`, any other in it.
fn profile_dir() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let dir = own.parent().unwrap();
    if dir.ends_with("deps") {
        dir.parent().unwrap().to_owned()
    } else {
        dir.to_owned()
    }
}

/// Whether no source that the executable's dep-info names is newer, nor the workspace's dependencies.
fn is_fresh(path: &Path) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let Some(built) = modified(path) else {
        return false;
    };
    let Ok(dep_info) = fs::read_to_string(path.with_extension("d")) else {
        return false;
    };
    let Some((_, sources)) = dep_info.split_once(": ") else {
        return false;
    };
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.lock");
    let sources: Vec<PathBuf> = sources
        .split_ascii_whitespace()
        .map(PathBuf::from)
        .collect();
    !sources.is_empty()
        && sources
            .iter()
            .chain([&lock])
            .all(|source| modified(source).is_some_and(|modified| modified <= built))
}

fn build(dir: &Path) {
    let profile = match dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--profile", profile])
        .args([
            "-p",
            "mosaic-cli",
            "-p",
            "mosaic-hub",
            "-p",
            "mosaic-orchestrator",
        ])
        .arg("--target-dir")
        .arg(dir.parent().unwrap())
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the executables under test do not build");
}
