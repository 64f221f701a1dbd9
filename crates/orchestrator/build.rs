//! Tells builds of the sandbox apart, so that a daemon uses the `mosaic-sandbox` beside it only if both say the same of
//! what they say to each other.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::Path,
};

/// What shims and inits are made of, from here.
const SOURCES: [&str; 4] = [
    "src/sandbox.rs",
    "src/sandbox",
    "../types/src",
    "../../Cargo.lock",
];

fn main() -> io::Result<()> {
    let mut hasher = DefaultHasher::new();
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
        add(Path::new(source), &mut hasher)?;
    }
    // A build for tests can crash where it is told to.
    env::var("PROFILE").unwrap_or_default().hash(&mut hasher);
    println!(
        "cargo:rustc-env=MOSAIC_SANDBOX_BUILD={:016x}",
        hasher.finish()
    );
    Ok(())
}

fn add(path: &Path, hasher: &mut DefaultHasher) -> io::Result<()> {
    if !path.is_dir() {
        path.hash(hasher);
        fs::read(path)?.hash(hasher);
        return Ok(());
    }
    let mut entries = fs::read_dir(path)?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>()?;
    entries.sort();
    entries.iter().try_for_each(|entry| add(entry, hasher))
}
