use data_encoding::HEXLOWER_PERMISSIVE as HEX;
use serde_json::Value;

use super::*;
use crate::{identity::Identity, test_support::now};

fn bytes<const N: usize>(hex: &str) -> [u8; N] {
    HEX.decode(hex.as_bytes()).unwrap().try_into().unwrap()
}

fn peer_key(public_key: &[u8; 32]) -> PeerKey {
    PeerKey {
        key_id: key_id(public_key),
        public_key: STANDARD.encode(public_key),
        not_before: now(),
        not_after: None,
    }
}

/// RFC 8032, section 7.1: tests 1, 2, 3 and "SHA(abc)".
#[test]
fn rfc_8032_vectors_sign_and_verify() {
    let vectors = [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ),
        (
            "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
            "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
        ),
    ];
    for (seed, public_key, message, signature) in vectors {
        let identity = Identity::from_seed(&bytes(seed));
        assert_eq!(identity.public_key(), bytes::<32>(public_key));
        let message = HEX.decode(message.as_bytes()).unwrap();
        assert_eq!(identity.sign(&message), bytes::<64>(signature));
        let key = VerifyingKey::from_bytes(&bytes(public_key)).unwrap();
        assert!(key.verifies(&message, &bytes(signature)));
    }
}

/// "Taming the many EdDSAs": of twelve signatures made to divide verifiers, strict ones take only number 3.
#[test]
fn f1_the_twelve_speccheck_vectors_are_judged_strictly() {
    let cases: Vec<Value> =
        serde_json::from_str(include_str!("../../testdata/ed25519_speccheck.json")).unwrap();
    assert_eq!(cases.len(), 12);
    let text = |case: &Value, name: &str| case[name].as_str().unwrap().to_owned();
    for (number, case) in cases.iter().enumerate() {
        let public_key: [u8; 32] = bytes(&text(case, "pub_key"));
        let message = HEX.decode(text(case, "message").as_bytes()).unwrap();
        let enrolled = VerifyingKey::enrol(&peer_key(&public_key));
        let taken = enrolled
            .as_ref()
            .is_ok_and(|key| key.verifies(&message, &bytes(&text(case, "signature"))));
        assert_eq!(taken, number == 3, "vector {number}");
        match number {
            0 | 1 | 10 | 11 => assert_eq!(enrolled, Err(KeyError::Weak), "vector {number}"),
            _ => assert!(enrolled.is_ok(), "vector {number}"),
        }
        // The verifier is strict by itself, too, whatever the enrolment let through.
        if let Ok(key) = ed25519_dalek::VerifyingKey::from_bytes(&public_key) {
            let unchecked = VerifyingKey {
                key,
                id: key_id(&public_key),
            };
            let taken = unchecked.verifies(&message, &bytes(&text(case, "signature")));
            assert_eq!(taken, number == 3, "vector {number}, not enrolled");
        }
    }
}

#[test]
fn f2_wycheproof_vectors_are_judged_rightly() {
    let suite: Value =
        serde_json::from_str(include_str!("../../testdata/wycheproof_ed25519.json")).unwrap();
    let mut seen = 0;
    for group in suite["testGroups"].as_array().unwrap() {
        let public_key: [u8; 32] = bytes(group["publicKey"]["pk"].as_str().unwrap());
        let key = VerifyingKey::enrol(&peer_key(&public_key)).unwrap();
        for test in group["tests"].as_array().unwrap() {
            let hex = |name: &str| HEX.decode(test[name].as_str().unwrap().as_bytes()).unwrap();
            // A signature of another length is refused by the envelope before it gets to a key.
            let taken = <[u8; 64]>::try_from(hex("sig"))
                .is_ok_and(|signature| key.verifies(&hex("msg"), &signature));
            assert_eq!(taken, test["result"] == "valid", "{}", test["tcId"]);
            seen += 1;
        }
    }
    assert_eq!(suite["numberOfTests"], seen);
    assert!(seen > 100);
}

/// All encodings of the eight points of small order, canonical or not.
#[test]
fn f1_no_key_of_small_order_is_enrolled() {
    let small = [
        "0100000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000080",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    ];
    for hex in small {
        let enrolled = VerifyingKey::enrol(&peer_key(&bytes(hex)));
        assert!(
            matches!(enrolled, Err(KeyError::Weak | KeyError::NotCanonical)),
            "{hex}: {enrolled:?}"
        );
    }
}

#[test]
fn f5_a_key_is_known_by_its_own_hash_only() {
    let ours = crate::test_support::hub();
    let mut key = ours.peer_key(now());
    assert_eq!(VerifyingKey::enrol(&key).unwrap().id(), ours.key_id());
    key.key_id = crate::test_support::spoke().key_id().clone();
    assert_eq!(VerifyingKey::enrol(&key), Err(KeyError::WrongId));
}

#[test]
fn a_key_is_written_in_one_way() {
    let good = crate::test_support::hub().peer_key(now());
    for bad in [
        good.public_key.trim_end_matches('=').to_owned(),
        format!("{}\n", good.public_key),
        STANDARD.encode([7; 31]),
        STANDARD.encode([7; 33]),
        String::new(),
    ] {
        let key = PeerKey {
            public_key: bad.clone(),
            ..good.clone()
        };
        assert_eq!(VerifyingKey::enrol(&key), Err(KeyError::NotBase64), "{bad}");
    }
    let never = PeerKey {
        not_after: Some(good.not_before),
        ..good
    };
    assert_eq!(VerifyingKey::enrol(&never), Err(KeyError::EmptyWindow));
}

/// The ids are part of the protocol: this pins them.
#[test]
fn ids_are_hashes_of_the_key() {
    let public_key: [u8; 32] =
        bytes("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
    let hash = Sha256::digest(public_key);
    let expected = data_encoding::BASE32_NOPAD
        .encode(&hash[..20])
        .to_lowercase();
    assert_eq!(key_id(&public_key).as_str(), format!("mk1{expected}"));
    assert_eq!(instance_id(&public_key).as_str(), format!("mi1{expected}"));
    assert_eq!(expected.len(), 32);
}

/// F5: a keyring only saves work; another key, id or window is not in it.
#[test]
fn f5_a_keyring_knows_a_key_by_all_that_it_is() {
    let connection = crate::test_support::connection_to(&crate::test_support::hub());
    let mut ring = Keyring::default();
    let key = connection.keys[0].clone();
    assert!(ring.get(&key).is_none());
    ring.add(&connection);
    assert_eq!(ring.get(&key).unwrap().id(), &key.key_id);
    let other = crate::test_support::spoke().peer_key(now());
    for changed in [
        PeerKey {
            key_id: other.key_id.clone(),
            ..key.clone()
        },
        PeerKey {
            public_key: other.public_key,
            ..key.clone()
        },
        PeerKey {
            not_after: Some(now()),
            ..key
        },
    ] {
        assert!(ring.get(&changed).is_none());
    }
    let mut weak = connection;
    weak.keys = vec![peer_key(&[0; 32])];
    let mut ring = Keyring::default();
    ring.add(&weak);
    assert!(ring.0.is_empty());
}

/// F1: y may not be written as y + p, which would give one key two ids.
#[test]
fn f1_a_key_has_one_encoding() {
    for low in 0xed..=0xff_u8 {
        for high in [0x7f, 0xff] {
            let mut encoding = [0xff; 32];
            (encoding[0], encoding[31]) = (low, high);
            let enrolled = VerifyingKey::from_bytes(&encoding);
            assert_eq!(enrolled, Err(KeyError::NotCanonical), "{low:x} {high:x}");
        }
    }
    let mut largest = [0xff; 32];
    (largest[0], largest[31]) = (0xec, 0x7f);
    assert_eq!(VerifyingKey::from_bytes(&largest), Err(KeyError::Weak));
}
