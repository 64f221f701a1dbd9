use super::*;

proptest::proptest! {
    // Whatever an agent wrote there; what is made of it, libgit2 opens.
    #[test]
    fn any_bytes_are_an_index_or_none(mut bytes: Vec<u8>, version in 1_u8..6, count in 0_u8..4) {
        let _ = plain(bytes.clone(), 100);
        let header = [b'D', b'I', b'R', b'C', 0, 0, 0, version, 0, 0, 0, count];
        bytes.splice(0..0, header);
        bytes.extend([0; 300]);
        if let Some(plain) = plain(bytes, 100) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("index");
            fs::write(&path, plain).unwrap();
            let _ = Index::open(&path);
        }
    }
}
