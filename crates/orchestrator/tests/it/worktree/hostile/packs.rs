//! Packs: those that git makes in any of its ways, and those that lead in circles.

use std::{
    fs,
    path::{Path, PathBuf},
};

use mosaic_orchestrator::worktree::{NotBroughtHome, Removal, RemovalMode, WhyNot, WorktreeError};

use super::super::support::{World, agent_commit, git, try_harvest, write};

/// An entry of a pack: its id, its head, what follows that.
struct Entry {
    id: [u8; 20],
    bytes: Vec<u8>,
}

/// As zlib stores it, without making it smaller.
fn stored(data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap();
    let mut bytes = vec![0x78, 0x01, 0x01];
    bytes.extend(length.to_le_bytes());
    bytes.extend((!length).to_le_bytes());
    bytes.extend(data);
    let (mut a, mut b) = (1_u32, 0_u32);
    for byte in data {
        a = (a + u32::from(*byte)) % 65521;
        b = (b + a) % 65521;
    }
    bytes.extend((b << 16 | a).to_be_bytes());
    bytes
}

/// From one byte to one byte, by adding it.
const DELTA: [u8; 4] = [1, 1, 1, b'x'];

fn id(number: u16) -> [u8; 20] {
    let mut id = [0x77; 20];
    id[..2].copy_from_slice(&number.to_be_bytes());
    id
}

fn from_id(number: u16, base: u16) -> Entry {
    let bytes = [&[0x74], id(base).as_slice(), &stored(&DELTA)].concat();
    Entry {
        id: id(number),
        bytes,
    }
}

/// From what lies so far before it.
fn from_offset(number: u16, distance: u8) -> Entry {
    let bytes = [&[0x64, distance], stored(&DELTA).as_slice()].concat();
    Entry {
        id: id(number),
        bytes,
    }
}

fn whole(number: u16) -> Entry {
    let bytes = [&[0x31], stored(b"y").as_slice()].concat();
    Entry {
        id: id(number),
        bytes,
    }
}

/// Puts a pack of these, in order of their ids, and an index of it beside the agent's objects.
fn put(work: &Path, entries: &[Entry], moved: i64) -> PathBuf {
    let count = u32::try_from(entries.len()).unwrap().to_be_bytes();
    let mut pack = [b"PACK\0\0\0\x02".as_slice(), &count].concat();
    let mut offsets = Vec::new();
    for entry in entries {
        let offset = i64::try_from(pack.len()).unwrap() + moved;
        offsets.push(u32::try_from(offset).unwrap());
        pack.extend(&entry.bytes);
    }
    pack.extend([0x55; 20]);
    let mut index = b"\xfftOc\0\0\0\x02".to_vec();
    for first in 0..=255 {
        let until = entries.iter().filter(|entry| entry.id[0] <= first).count();
        index.extend(u32::try_from(until).unwrap().to_be_bytes());
    }
    index.extend(entries.iter().flat_map(|entry| entry.id));
    index.extend(entries.iter().flat_map(|_| [0; 4]));
    index.extend(offsets.iter().flat_map(|offset| offset.to_be_bytes()));
    index.extend([0x55; 20]);
    index.extend([0x66; 20]);
    let packs = work.join(".git/objects/pack");
    let name = format!("pack-{}", "ab".repeat(20));
    fs::write(packs.join(format!("{name}.idx")), index).unwrap();
    let path = packs.join(format!("{name}.pack"));
    fs::write(&path, pack).unwrap();
    path
}

#[tokio::test]
async fn packs_that_lead_in_circles_or_out_of_themselves_are_not_read() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    write(work, "README", "work\n");
    let commit = agent_commit(work, "work");
    let long = || {
        let mut chain = vec![whole(0)];
        chain.extend((1..=4097).map(|number| from_id(number, number - 1)));
        chain
    };
    let unsound = [
        ("to itself", vec![from_id(1, 1)], 0),
        (
            "a circle",
            vec![from_id(1, 3), from_id(2, 1), from_id(3, 2)],
            0,
        ),
        ("no distance", vec![whole(1), from_offset(2, 0)], 0),
        ("before the pack", vec![from_offset(1, 100)], 0),
        ("between objects", vec![whole(1), from_offset(2, 5)], 0),
        ("to no object", vec![whole(1), from_id(2, 9)], 0),
        ("outside", vec![whole(1)], 1000),
        ("in its header", vec![whole(1)], -9),
        ("too long a chain", long(), 0),
        ("not in order", vec![whole(2), whole(1)], 0),
    ];
    for (what, entries, moved) in unsound {
        let pack = put(work, &entries, moved);
        let result = world.harvest(agent).await;
        let name = pack.file_name().unwrap().to_str().unwrap();
        let told = NotBroughtHome {
            path: format!(".git/objects/pack/{name}"),
            why: WhyNot::Unreadable,
        };
        assert_eq!(result.not_brought_home, [told], "{what}");
        // The rest is there.
        assert_eq!(result.head_commit, commit, "{what}");
        let removal = world.worktrees.remove(&agent, RemovalMode::OnlySecured);
        let removal = removal.await.unwrap();
        assert!(matches!(removal, Removal::Kept { .. }), "{what}");
    }
    // As long as git's own limit, and one more.
    let mut chain = vec![whole(0)];
    chain.extend((1..=4096).map(|number| from_id(number, number - 1)));
    put(work, &chain, 0);
    assert_eq!(world.harvest(agent).await.not_brought_home, []);
    world.fsck();
}

#[tokio::test]
async fn a_difference_that_does_not_fit_into_memory_is_too_large() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let mut large = from_id(2, 1);
    // A terabyte, of which the object itself would be one byte.
    large
        .bytes
        .splice(0..1, [0xf0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40]);
    put(&prepared.workdir, &[whole(1), large], 0);
    let error = try_harvest(&world, agent).await.unwrap_err();
    assert!(
        matches!(error, WorktreeError::TooLarge { what, .. } if what == "bytes of one object"),
        "{error}"
    );
}

/// Commits that differ little from each other.
fn many_commits(work: &Path, count: usize) {
    let mut lines: Vec<String> = (0..200).map(|line| format!("line {line}")).collect();
    for number in 0..count {
        lines[number % 200] = format!("changed {number}");
        write(work, "src/a.txt", lines.join("\n"));
        agent_commit(work, &format!("change {number}"));
    }
}

fn loose(work: &Path) -> usize {
    let counted = git(work, &["count-objects"]);
    counted.split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn packs_of_every_kind_that_git_makes_come_home() {
    let repack = |more: &'static [&'static str]| -> Vec<&'static [&'static str]> { vec![more] };
    let ways: [(&str, Vec<&[&str]>); 7] = [
        ("gc", repack(&["gc", "-q", "--aggressive", "--prune=now"])),
        (
            "long chains",
            repack(&["repack", "-adfq", "--depth=4095", "--window=50"]),
        ),
        (
            "bases by id",
            repack(&[
                "-c",
                "repack.useDeltaBaseOffset=false",
                "repack",
                "-adfq",
                "--depth=4095",
            ]),
        ),
        (
            "far offsets",
            vec![
                &["repack", "-adfq"],
                &[
                    "-c",
                    "alias.far=!for p in .git/objects/pack/*.pack; do rm -f ${p%.pack}.idx ${p%.pack}.rev; \
                     git index-pack --index-version=2,0x40 $p; done",
                    "far",
                ],
            ],
        ),
        (
            "thin",
            vec![
                &["clone", "-q", "--bare", ".", ".git/other.git"],
                &["update-ref", "HEAD", "HEAD~20"],
                &["reflog", "expire", "--expire=all", "--all"],
                &["repack", "-adq"],
                &["prune", "--expire=now"],
                &[
                    "-c",
                    "fetch.unpackLimit=1",
                    "fetch",
                    "-q",
                    ".git/other.git",
                    "HEAD:refs/heads/fetched",
                ],
                &["update-ref", "HEAD", "fetched"],
            ],
        ),
        (
            "an empty one",
            vec![&[
                "-c",
                "alias.none=!git pack-objects -q .git/objects/pack/pack < /dev/null",
                "none",
            ]],
        ),
        (
            "maintenance",
            vec![
                &["maintenance", "run", "--task=loose-objects", "--quiet"],
                &["maintenance", "run", "--task=loose-objects", "--quiet"],
            ],
        ),
    ];
    let world = World::new().await;
    for (what, commands) in ways {
        let (agent, prepared) = world.prepare().await;
        let work = &prepared.workdir;
        many_commits(work, 40);
        let head = git(work, &["rev-parse", "HEAD"]);
        for command in commands {
            git(work, command);
        }
        assert_eq!(git(work, &["rev-parse", "HEAD"]), head, "{what}");
        assert!(what == "an empty one" || loose(work) == 0, "{what}");
        let result = world.harvest(agent).await;
        assert_eq!(result.not_brought_home, [], "{what}");
        assert_eq!(result.head_commit, head, "{what}");
        assert_eq!(result.commits.len(), 40, "{what}");
        let removal = world.worktrees.remove(&agent, RemovalMode::OnlySecured);
        assert_eq!(removal.await.unwrap(), Removal::Removed, "{what}");
    }
    world.fsck();
}
