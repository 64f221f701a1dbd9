use std::process::Command;

use super::*;

/// A small file system of its own, unmounted when dropped.
struct SmallDisk(PathBuf);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// One that is sound, of more than two million bytes.
fn large_index(path: &Path) {
    let mut bytes = b"DIRC\0\0\0\x02".to_vec();
    bytes.extend(1000_u32.to_be_bytes());
    for number in 0..1000 {
        let start = bytes.len();
        bytes.extend([0; 60]);
        bytes.extend([0x0f, 0xff]);
        bytes.extend(format!("{number:04}").repeat(1020).bytes());
        bytes.resize(start + (bytes.len() - start + 8) / 8 * 8, 0);
    }
    bytes.extend([0; 20]);
    assert!(bytes.len() > 2 << 20);
    fs::write(path, bytes).unwrap();
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
    large_index(&work.join(".git/index"));
    let mirror = dir.path().join("mirror");
    fs::create_dir_all(mirror.join("objects")).unwrap();
    let gathered = gather(&work, &small.join("into"), &mirror, &Limits::default());
    let error = gathered.map(|(gathered, _)| gathered.missed).unwrap_err();
    assert!(matches!(error, WorktreeError::DiskFull { .. }), "{error}");
}
