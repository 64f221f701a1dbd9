//! What the tests have in common: the parts of the machine that may be missing.

use std::path::PathBuf;

/// The real command line of Claude Code: `MOSAIC_CLAUDE`, or `claude` on the search path. If it is
/// missing the skip is said by name, and is a failure where `MOSAIC_REQUIRE_ALL=1`.
pub(crate) fn claude_cli() -> Option<PathBuf> {
    let named = std::env::var_os("MOSAIC_CLAUDE").map(PathBuf::from);
    let found = named.filter(|path| path.is_file()).or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path)
            .map(|dir| dir.join("claude"))
            .find(|path| path.is_file())
    });
    if found.is_none() {
        skip("claude CLI");
    }
    found
}

/// Says that a test is skipped for want of `what`.
pub(crate) fn skip(what: &str) {
    println!("SKIPPED: {what}");
    assert!(
        std::env::var_os("MOSAIC_REQUIRE_ALL").is_none_or(|value| value != "1"),
        "{what} is missing, and MOSAIC_REQUIRE_ALL=1 makes that a failure"
    );
}
