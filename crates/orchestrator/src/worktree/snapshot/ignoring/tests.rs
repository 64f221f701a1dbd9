use std::{collections::BTreeSet, fs, path::Path, process::Command};

use proptest::prelude::*;

use super::*;

/// What a walk by these rules takes.
fn taken(root: &Path, path: &str, ignoring: &mut Ignoring, all: &mut BTreeSet<String>) {
    let dir = root.join(path);
    let outside = ignoring.enter(path.as_bytes(), fs::read(dir.join(".gitignore")).ok());
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let is_dir = entry.file_type().unwrap().is_dir();
        let child = match path {
            "" => name.clone(),
            path => format!("{path}/{name}"),
        };
        if name == ".git" || ignoring.is_ignored(child.as_bytes(), is_dir) {
            continue;
        }
        if is_dir {
            taken(root, &child, ignoring, all);
        } else {
            all.insert(child);
        }
    }
    ignoring.leave(outside);
}

fn git(root: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(root)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("HOME", "/nonexistent")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

proptest! {
    // The same each time: what git makes of rules that nobody writes is no reason for a run to fail once.
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(22),
        ..ProptestConfig::default()
    })]

    // A22: what git would show is what is taken, for rules of any form.
    #[test]
    fn a22_rules_of_any_form_ignore_what_git_ignores(
        root in proptest::collection::vec("!?/?(\\*\\*/|[ab]{1,2}|\\*|\\?|\\[[ab!^-]{1,3}\\]|/|\\\\[ab!#]|#|\\{a,b\\}| ){1,5}/? ?\r?", 0..5),
        inner in proptest::collection::vec("!?/?(\\*\\*/|[ab]|\\*|/){1,4}/?", 0..4),
    ) {
        let dir = tempfile::tempdir().unwrap();
        git(dir.path(), &["init", "-q"]);
        let names = ["a", "b", "ab", "ba", "a b", "!a", "#b", "a ", "{a,b}", "bb"];
        for parent in ["", "a/", "ab/", "bb/a/", "b/ab/"] {
            fs::create_dir_all(dir.path().join(format!("{parent}d"))).unwrap();
            for name in names {
                let path = dir.path().join(format!("{parent}{name}"));
                if !path.exists() && !["", "bb/", "b/"].contains(&parent) {
                    fs::write(path, "x").unwrap();
                }
            }
            fs::write(dir.path().join(format!("{parent}d/ab")), "x").unwrap();
            fs::write(dir.path().join(format!("{parent}d/b")), "x").unwrap();
        }
        fs::write(dir.path().join("!a"), "x").unwrap();
        fs::write(dir.path().join("#b"), "x").unwrap();
        fs::write(dir.path().join(".gitignore"), root.join("\n")).unwrap();
        fs::write(dir.path().join("b/.gitignore"), inner.join("\n")).unwrap();
        let shown = git(dir.path(), &["ls-files", "-o", "-z", "--exclude-standard"]);
        let shown = String::from_utf8(shown).unwrap();
        let shown: BTreeSet<_> = shown.split_terminator('\0').map(str::to_owned).collect();
        let mut all = BTreeSet::new();
        taken(dir.path(), "", &mut Ignoring::default(), &mut all);
        prop_assert_eq!(all, shown);
    }
}
