//! Identifiers. Each is its own type, parsed strictly at the edge and printed canonically, so that a
//! value which exists is a value which may be used in a path, a ref name or a query.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;
use uuid::Uuid;

/// Why a text is not the identifier it should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdError {
    /// Not a UUID in the canonical lower-case, hyphenated form.
    #[error("not a canonical lower-case UUID")]
    NotCanonicalUuid,
    /// A UUID, but not of version 7 (RFC 9562 §5.7).
    #[error("not a UUID of version 7")]
    NotVersion7,
    /// Not the expected prefix followed by 32 characters of lower-case base32.
    #[error("not `{prefix}` followed by 32 characters of lower-case base32")]
    NotKeyHash {
        /// The prefix that was expected.
        prefix: &'static str,
    },
    /// A name that is empty, too long, or holds a character outside `A-Z a-z 0-9 . _ : -`.
    #[error("not 1 to 128 characters of A-Z a-z 0-9 . _ : - that start with a letter or digit")]
    NotName,
    /// A secret's name that is empty, too long, or holds a character outside `a-z 0-9 -`.
    #[error("not 1 to 64 characters of a-z 0-9 - that start with a letter or digit")]
    NotSecretName,
}

fn serialize_text<S: Serializer>(
    value: &impl fmt::Display,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn deserialize_text<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = IdError>,
{
    String::deserialize(deserializer)?
        .parse()
        .map_err(de::Error::custom)
}

macro_rules! textual_serde {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serialize_text(self, serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserialize_text(deserializer)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

macro_rules! uuid_v7_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// A fresh id, ordered by the time of its making.
            #[must_use]
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }

            /// The sixteen bytes of the UUID.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let uuid = Uuid::try_parse(text).map_err(|_| IdError::NotCanonicalUuid)?;
                // One spelling each: an id is compared, hashed and put into paths as text too.
                if uuid.as_hyphenated().to_string() != text {
                    return Err(IdError::NotCanonicalUuid);
                }
                if uuid.get_version_num() != 7 || uuid.get_variant() != uuid::Variant::RFC4122 {
                    return Err(IdError::NotVersion7);
                }
                Ok(Self(uuid))
            }
        }

        textual_serde!($name);
    };
}

uuid_v7_id! {
    /// An agent. The caller chooses it, so that spawning it twice is one agent.
    AgentId
}
uuid_v7_id! {
    /// A signed message. Claimed once for each peer, never executed twice.
    MessageId
}
uuid_v7_id! {
    /// A connection between this node and one peer; each side has its own.
    ConnectionId
}
uuid_v7_id! {
    /// A peering token that was given out.
    InviteId
}
uuid_v7_id! {
    /// A kill that a hub keeps until it is proven.
    KillIntentId
}

const KEY_HASH_CHARS: usize = 32;

fn is_key_hash(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|hash| {
        hash.len() == KEY_HASH_CHARS
            && hash
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'))
    })
}

macro_rules! key_hash_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// What every id of this kind starts with.
            pub const PREFIX: &'static str = $prefix;

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                if is_key_hash(text, $prefix) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(IdError::NotKeyHash { prefix: $prefix })
                }
            }
        }

        textual_serde!($name);
    };
}

key_hash_id! {
    /// A Mosaic instance: `mi1` and the lower-case base32 of the first 20 bytes of the SHA-256 of its
    /// *first* public key. Self-certifying, and outlives key rotation.
    InstanceId, "mi1"
}
key_hash_id! {
    /// A public key: `mk1` and the lower-case base32 of the first 20 bytes of its SHA-256.
    KeyId, "mk1"
}

fn is_name(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    text.len() <= 128
        && text.bytes().all(legal)
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
}

fn is_secret_name(text: &str) -> bool {
    let legal = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    text.len() <= 64 && text.bytes().all(legal) && !text.is_empty() && !text.starts_with('-')
}

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident, $is_legal:ident, $error:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                if $is_legal(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(IdError::$error)
                }
            }
        }

        textual_serde!($name);
    };
}

name_id! {
    /// The caller's task that an agent works on; free of meaning here.
    TaskId, is_name, NotName
}
name_id! {
    /// A runtime of the spoke's configuration, such as `claude`.
    RuntimeName, is_name, NotName
}
name_id! {
    /// A secret of the spoke's configuration, such as `npm-token`. The name may be seen, the value never is.
    SecretName, is_secret_name, NotSecretName
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_ids_have_one_spelling_and_one_version() {
        let id = AgentId::generate();
        assert_eq!(id.to_string().parse::<AgentId>().unwrap(), id);
        let upper = id.to_string().to_uppercase();
        assert_eq!(upper.parse::<AgentId>(), Err(IdError::NotCanonicalUuid));
        let simple = id.to_string().replace('-', "");
        assert_eq!(simple.parse::<AgentId>(), Err(IdError::NotCanonicalUuid));
        assert_eq!(
            "9b2e4a54-6a58-4f6f-9d30-0b1d1b2f9f3c".parse::<AgentId>(),
            Err(IdError::NotVersion7)
        );
        assert_eq!("../../x".parse::<AgentId>(), Err(IdError::NotCanonicalUuid));
    }

    #[test]
    fn key_hashes_are_of_fixed_length_and_alphabet() {
        let good = format!("mi1{}", "a2".repeat(16));
        assert!(good.parse::<InstanceId>().is_ok());
        assert!(good.parse::<KeyId>().is_err());
        for bad in [
            format!("mi1{}", "a1".repeat(16)),
            "mi1abc".to_owned(),
            good.to_uppercase(),
        ] {
            assert!(bad.parse::<InstanceId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_cannot_be_options_or_paths() {
        assert!("MOS-001".parse::<TaskId>().is_ok());
        for bad in ["", "-x", "--upload-pack=x", "../x", "a b", "a\n", ".hidden"] {
            assert!(bad.parse::<TaskId>().is_err(), "{bad:?}");
        }
        assert!("x".repeat(129).parse::<TaskId>().is_err());
    }

    #[test]
    fn names_of_secrets_need_no_quoting_anywhere() {
        assert!("npm-token".parse::<SecretName>().is_ok());
        for bad in ["", "-x", "NPM", "a_b", "a.b", "a\"b", "a\\", "ä", "a\n"] {
            assert!(bad.parse::<SecretName>().is_err(), "{bad:?}");
        }
        assert!("x".repeat(65).parse::<SecretName>().is_err());
    }
}
