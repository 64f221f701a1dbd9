use std::process::Command;

use super::*;

/// A small file system of its own, unmounted when dropped.
struct SmallDisk(PathBuf);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

// A26, A22: an index that cannot be copied now is no unreadable index, which would keep its tree for ever.
#[test]
fn a26_an_index_without_room_for_its_copy_is_an_error_and_not_unreadable() {
    let dir = tempfile::tempdir().unwrap();
    let small = dir.path().join("small");
    fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m,mode=0700", "mosaic-unit"])
        .arg(&small)
        .output()
        .is_ok_and(|output| output.status.success());
    if !mounted {
        assert!(
            std::env::var_os("MOSAIC_REQUIRE_ALL").is_none_or(|value| value != "1"),
            "missing: a mount of tmpfs (root)"
        );
        eprintln!("SKIPPED: a mount of tmpfs (root)");
        return;
    }
    let _disk = SmallDisk(small.clone());
    let work = dir.path().join("work");
    drop(Repository::init(&work).unwrap());
    fs::write(work.join(".git/index"), vec![0; 2 << 20]).unwrap();
    let mirror = dir.path().join("mirror");
    fs::create_dir_all(mirror.join("objects")).unwrap();
    let gathered = gather(&work, &small.join("into"), &mirror, &Limits::default());
    let error = gathered.map(|(gathered, _)| gathered.missed).unwrap_err();
    assert!(matches!(error, WorktreeError::DiskFull { .. }), "{error}");
}
