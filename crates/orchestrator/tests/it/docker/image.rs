//! The recipe of the image that agents run in.

use std::process::{Command, Stdio};

use super::rig::can_run;
use crate::sandbox::rig::skip_unless;

fn has_debootstrap() -> bool {
    let found = Command::new("debootstrap").arg("--version").output();
    rustix::process::geteuid().is_root() && found.is_ok_and(|output| output.status.success())
}

/// On a machine without the keys of Debian nothing is fetched, let alone installed.
#[tokio::test]
async fn an_image_is_made_of_verified_packages_or_not_at_all() {
    if !can_run() {
        return;
    }
    if !skip_unless(has_debootstrap(), "debootstrap, and root") {
        return;
    }
    let build = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../deploy/agent-image/build"
    );
    let without_keys = r#"mount -t tmpfs none /usr/share/keyrings && exec "$0" "$@""#;
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", without_keys, build])
        .args(["--tag", "mosaic-test-unverified:1", "--claude", "none"])
        // If it gets that far, this is what it complains of.
        .args(["--mirror", "file:///nowhere"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("install it, or a later one"), "{said}");
    assert!(!said.contains("nowhere"), "{said}");
}
