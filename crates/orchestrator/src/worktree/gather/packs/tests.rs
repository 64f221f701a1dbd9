use super::*;

fn chain(links: u32) -> Vec<Option<u32>> {
    std::iter::once(None).chain((0..links).map(Some)).collect()
}

#[test]
fn chains_are_as_long_as_git_makes_them() {
    assert_eq!(are_chains(&chain(4096)), Some(()));
    assert_eq!(are_chains(&chain(4097)), None);
    // In the other direction, each is met before its base.
    let reversed = |links: u32| -> Vec<Option<u32>> {
        (1..=links).map(Some).chain(std::iter::once(None)).collect()
    };
    assert_eq!(are_chains(&reversed(4096)), Some(()));
    assert_eq!(are_chains(&reversed(4097)), None);
    assert_eq!(are_chains(&[]), Some(()));
}

#[test]
fn what_leads_in_a_circle_is_no_chain() {
    assert_eq!(are_chains(&[Some(0)]), None);
    assert_eq!(are_chains(&[None, Some(2), Some(3), Some(1)]), None);
    assert_eq!(are_chains(&[None, Some(7)]), None);
}

#[test]
fn numbers_are_read_as_git_writes_them() {
    assert_eq!(varint(&[0x7f, 0xff]), Some((127, 1)));
    assert_eq!(varint(&[0x80, 0x00]), Some((128, 2)));
    assert_eq!(varint(&[0x80]), None);
    assert_eq!(varint(&[0xff; 12]), None);
    assert_eq!(kind_and_size(&[0x95, 0x0a, 7]), Some((1, 165, &[7][..])));
    assert_eq!(kind_and_size(&[0xff; 32]), None);
    assert_eq!(kind_and_size(&[0x80]), None);
}

proptest::proptest! {
    // Whatever an agent wrote there.
    #[test]
    fn any_bytes_are_an_index_or_none(mut bytes: Vec<u8>) {
        let _ = Index::of(&bytes);
        bytes.splice(0..0, MAGIC);
        let _ = Index::of(&bytes);
        bytes.splice(8..8, [0; FANOUT_BYTES]);
        let _ = Index::of(&bytes);
    }
}
