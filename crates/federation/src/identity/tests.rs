use std::{
    os::unix::fs::{PermissionsExt as _, symlink},
    sync::Barrier,
    thread,
};

use tempfile::TempDir;

use super::*;
use crate::test_support::now;

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn an_identity_is_made_once_and_read_again() {
    let dir = dir();
    let data = dir.path().join("data/node");
    let made = Identity::load_or_create(&data).unwrap();
    let read = Identity::load_or_create(&data).unwrap();
    assert_eq!(made.instance_id(), read.instance_id());
    assert_eq!(made.public_key(), read.public_key());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&data.join(KEY_FILE)), 0o600);
    assert_eq!(mode(&data), 0o700);
    let names: Vec<_> = fs::read_dir(&data)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, [KEY_FILE], "nothing is left beside it");
}

#[test]
fn of_many_who_make_one_at_once_all_get_the_same() {
    let dir = dir();
    let start = Barrier::new(8);
    let ids: Vec<_> = thread::scope(|scope| {
        let makers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    let identity = Identity::load_or_create(dir.path()).unwrap();
                    identity.instance_id().clone()
                })
            })
            .collect();
        makers
            .into_iter()
            .map(|maker| maker.join().unwrap())
            .collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    let dir = dir();
    Identity::load_or_create(dir.path()).unwrap();
    let path = dir.path().join(KEY_FILE);
    for mode in [0o640, 0o604, 0o610, 0o602, 0o666] {
        set_mode(&path, mode);
        let refused = Identity::load_or_create(dir.path()).unwrap_err();
        assert!(
            matches!(refused, IdentityError::Readable { .. }),
            "{refused}"
        );
    }
    set_mode(&path, 0o400);
    assert!(Identity::load_or_create(dir.path()).is_ok());
}

#[test]
fn a_link_or_another_kind_of_file_is_refused() {
    let (dir, other) = (dir(), dir());
    Identity::load_or_create(other.path()).unwrap();
    let path = dir.path().join(KEY_FILE);
    symlink(other.path().join(KEY_FILE), &path).unwrap();
    let refused = Identity::load_or_create(dir.path()).unwrap_err();
    assert!(matches!(refused, IdentityError::Read { .. }), "{refused}");

    fs::remove_file(&path).unwrap();
    symlink(dir.path().join("nowhere"), &path).unwrap();
    assert!(Identity::load_or_create(dir.path()).is_err());
    assert!(!dir.path().join("nowhere").exists());

    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let refused = Identity::load_or_create(dir.path()).unwrap_err();
    assert!(
        matches!(refused, IdentityError::NotAFile { .. }),
        "{refused}"
    );

    fs::remove_dir(&path).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o600.into()).unwrap();
    let refused = Identity::load_or_create(dir.path()).unwrap_err();
    assert!(
        matches!(refused, IdentityError::NotAFile { .. }),
        "{refused}"
    );
}

#[test]
fn a_key_of_another_user_is_refused() {
    let dir = dir();
    Identity::load_or_create(dir.path()).unwrap();
    let path = dir.path().join(KEY_FILE);
    let somebody = rustix::fs::Uid::from_raw(12_345);
    if rustix::fs::chown(&path, Some(somebody), None).is_err() {
        eprintln!("skipped: only root can give a file away");
        return;
    }
    let refused = Identity::load_or_create(dir.path()).unwrap_err();
    assert!(
        matches!(refused, IdentityError::WrongOwner { owner: 12_345, .. }),
        "{refused}"
    );
}

#[test]
fn a_damaged_file_is_refused_and_left_alone() {
    let dir = dir();
    Identity::load_or_create(dir.path()).unwrap();
    let path = dir.path().join(KEY_FILE);
    let good = fs::read_to_string(&path).unwrap();
    let other = Identity::from_seed(&[9; 32]);
    let file: KeyFile = strict_json::from_str(&good).unwrap();
    for bad in [
        String::new(),
        "{}".to_owned(),
        good[..good.len() / 2].to_owned(),
        good.replace(r#""version":1"#, r#""version":2"#),
        good.replace(&file.first_public_key, &STANDARD.encode(other.public_key())),
        good.replace(&file.keys[0].seed, &STANDARD.encode([1; 31])),
        good.replace("\"keys\":[", "\"keys\":[],\"more\":["),
        format!("{good}{good}"),
        " ".repeat(5000),
    ] {
        assert_ne!(bad, good);
        fs::write(&path, &bad).unwrap();
        let refused = Identity::load_or_create(dir.path()).unwrap_err();
        assert!(
            matches!(refused, IdentityError::Malformed { .. }),
            "{refused}"
        );
        assert!(!format!("{refused:?} {refused}").contains(&file.keys[0].seed));
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            bad,
            "it is never overwritten"
        );
    }
    fs::write(&path, [0xff, 0xfe]).unwrap();
    let refused = Identity::load_or_create(dir.path()).unwrap_err();
    assert!(
        matches!(refused, IdentityError::Malformed { .. }),
        "{refused}"
    );
}

#[test]
fn the_secret_is_not_printed() {
    let seed = [0x41; 32];
    let identity = Identity::from_seed(&seed);
    let text = format!("{identity:?} {:?}", identity.peer_key(now()));
    assert!(text.contains(identity.instance_id().as_str()));
    for spelling in ["AAAA", "65, 65", "4141", &STANDARD.encode(seed)] {
        assert!(!text.contains(spelling), "{text}");
    }
}
