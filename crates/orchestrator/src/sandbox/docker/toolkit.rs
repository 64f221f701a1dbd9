//! What a container needs of us: the [`Program`](crate::sandbox::Program), which is its init, with the loader and the libraries that it was
//! linked with. Whatever C library an image has, or none, the init brings its own.
//!
//! It is copied into the data folder, because that is what an engine's host is sure to see where the spoke itself runs
//! in a container, and because a spoke may be replaced while its agents run.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use super::INSIDE;
use crate::sandbox::{SandboxError, init::INIT_VERB};

const FOLDER: &str = "toolkit";
const LOADER: &str = "loader";
const LIBRARIES: &str = "lib";
const PROGRAM: &str = "mosaic";

/// See the module documentation.
#[derive(Debug, Clone)]
pub struct Toolkit {
    dir: PathBuf,
    /// Whether the program is loaded by the loader; a static one is not.
    loaded: bool,
}

impl Toolkit {
    /// Lays the toolkit out below the data folder, for `program`. What earlier
    /// executables left is removed; containers that use it keep it.
    ///
    /// # Errors
    /// [`SandboxError::Io`].
    pub fn install(data_dir: &Path, program: &Path) -> Result<Self, SandboxError> {
        let found = fs::metadata(program).map_err(SandboxError::io("find", program))?;
        let stamp = format!(
            "{:x}-{:x}-{:x}-{:x}",
            found.dev(),
            found.ino(),
            found.size(),
            found.mtime_nsec() ^ found.mtime()
        );
        let all = data_dir.join(FOLDER);
        let dir = all.join(&stamp);
        let loader = loader().map_err(SandboxError::io("find the loader of", program))?;
        if !dir.is_dir() {
            lay_out(&all, &dir, program, loader.as_deref())
                .map_err(SandboxError::io("lay out", &dir))?;
        }
        for entry in fs::read_dir(&all).into_iter().flatten().flatten() {
            if entry.file_name().to_str() != Some(&stamp) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(Self {
            dir,
            loaded: loader.is_some(),
        })
    }

    /// The folder, as the host sees it.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a container sees it.
    pub(super) fn inside() -> String {
        format!("{INSIDE}/kit")
    }

    /// The command that is a container's init, with the path of the shim's socket as a container sees it.
    pub(super) fn init_command(&self, socket: String) -> Vec<String> {
        let kit = Self::inside();
        let mut command = Vec::new();
        if self.loaded {
            command.extend([
                format!("{kit}/{LOADER}"),
                "--library-path".to_owned(),
                format!("{kit}/{LIBRARIES}"),
            ]);
        }
        command.extend([format!("{kit}/{PROGRAM}"), INIT_VERB.to_owned(), socket]);
        command
    }
}

/// The loader that is mapped into this process, whose executables are of one build; `None` if they are static.
fn loader() -> io::Result<Option<PathBuf>> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let paths = maps
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().nth(5));
    let is_loader = |path: &&str| {
        let name = path.rsplit('/').next().unwrap_or_default();
        path.starts_with('/') && (name.starts_with("ld-") || name.starts_with("ld.so"))
    };
    Ok(paths.into_iter().find(is_loader).map(PathBuf::from))
}

fn lay_out(all: &Path, dir: &Path, program: &Path, loader: Option<&Path>) -> io::Result<()> {
    let new = all.join(format!("new-{}", std::process::id()));
    let _ = fs::remove_dir_all(&new);
    fs::create_dir_all(new.join(LIBRARIES))?;
    let here = new.join(PROGRAM);
    // A link is enough where it can be made: executables are replaced, not changed.
    let real = fs::canonicalize(program);
    let linked = real.is_ok_and(|real| fs::hard_link(real, &here).is_ok());
    if !linked {
        copy(program, &here)?;
    }
    if let Some(loader) = loader {
        copy(loader, &new.join(LOADER))?;
        for library in libraries(loader, program)? {
            if let Some(name) = library.file_name() {
                copy(&library, &new.join(LIBRARIES).join(name))?;
            }
        }
    }
    for folder in [&new, &new.join(LIBRARIES)] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    match fs::rename(&new, dir) {
        Err(_) if dir.is_dir() => fs::remove_dir_all(&new),
        renamed => renamed,
    }
}

/// Copies a file, and has it on the disk: a folder that is there is taken for whole, after a loss of power as well.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    fs::File::open(to)?.sync_all()
}

/// The libraries of a program, as its loader finds them.
fn libraries(loader: &Path, program: &Path) -> io::Result<Vec<PathBuf>> {
    let program = fs::canonicalize(program)?;
    let listed = Command::new(loader)
        .arg("--list")
        .arg(program)
        .env_clear()
        .output()?;
    if !listed.status.success() {
        let said = String::from_utf8_lossy(&listed.stderr).trim().to_owned();
        return Err(io::Error::other(said));
    }
    let text = String::from_utf8_lossy(&listed.stdout);
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`
    Ok(text
        .lines()
        .filter_map(|line| line.split_once(" => ")?.1.split_ascii_whitespace().next())
        .filter(|path| path.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}
