//! This node's identity: one ed25519 key, kept in one file that nobody else may read.
//!
//! The file appears whole or not at all, is never overwritten, and is refused when it is not a regular file
//! of ours that group and others cannot read. Losing it is losing the instance: its id is a hash of the key.
//!
//! Nobody outside this crate can have arbitrary bytes signed: signing is private, and what is signed are
//! types built here (F7).

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signer as _, SigningKey};
use mosaic_types::{InstanceId, KeyId, Timestamp, connection::PeerKey};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::{Zeroize as _, Zeroizing};

use crate::{
    RandomError,
    key::{self, PUBLIC_KEY_BYTES, SIGNATURE_BYTES},
    strict_json,
};

/// Name of the key file in the data folder.
pub const KEY_FILE: &str = "identity.key";
const MAX_FILE_BYTES: usize = 4096;
const FILE_VERSION: u32 = 1;

/// Why there is no identity.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The data folder cannot be made or opened.
    #[error("make or open the data folder {path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The key file cannot be read. A symbolic link is refused here.
    #[error("read the key file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The key file cannot be written.
    #[error("write the key file {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Something else than a regular file.
    #[error("key file {path} is not a regular file")]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// The file belongs to another user.
    #[error("key file {path} belongs to user {owner}, not to user {us}")]
    WrongOwner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who we are.
        us: u32,
    },
    /// Group or others have a right to the file.
    #[error("key file {path} has mode {mode:04o}: only its owner may read it (chmod 600)")]
    Readable {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The content is not a key file of a version known here. Holds nothing of the content.
    #[error("key file {path} is malformed or of another version")]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// No randomness for a fresh key.
    #[error("make a fresh key")]
    Random(#[source] RandomError),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KeyFile {
    version: u32,
    /// The instance id is its hash, also when a later version of this file has rotated keys.
    first_public_key: String,
    keys: Vec<StoredKey>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StoredKey {
    seed: String,
}

impl Drop for StoredKey {
    fn drop(&mut self) {
        self.seed.zeroize();
    }
}

/// This node's identity. The secret is wiped from memory when it is dropped, and never printed.
pub struct Identity {
    signing: SigningKey,
    instance_id: InstanceId,
    key_id: KeyId,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("instance_id", &self.instance_id)
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the identity in `dir`, or makes one there. Of several who make one at once, one wins and the
    /// others read what it wrote.
    ///
    /// # Errors
    /// See [`IdentityError`]; nothing is half done.
    pub fn load_or_create(dir: &Path) -> Result<Self, IdentityError> {
        let folder = |source| IdentityError::Folder {
            path: dir.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(folder)?;
        let path = dir.join(KEY_FILE);
        if let Some(identity) = Self::load(&path)? {
            return Ok(identity);
        }
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut())
            .map_err(|error| IdentityError::Random(RandomError(error)))?;
        let fresh = Self::from_seed(&seed);
        match fresh.write(dir, &path, &seed) {
            Ok(()) => Ok(fresh),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::load(&path)?
                .ok_or_else(|| IdentityError::Write {
                    path: path.clone(),
                    source: error,
                }),
            Err(source) => Err(IdentityError::Write { path, source }),
        }
    }

    /// The identity of a given seed.
    pub(crate) fn from_seed(seed: &[u8; 32]) -> Self {
        let signing = SigningKey::from_bytes(seed);
        let public_key = signing.verifying_key().to_bytes();
        Self {
            instance_id: key::instance_id(&public_key),
            key_id: key::key_id(&public_key),
            signing,
        }
    }

    fn load(path: &Path) -> Result<Option<Self>, IdentityError> {
        let failed = |source| IdentityError::Read {
            path: path.to_owned(),
            source,
        };
        // Without following a link, and without waiting for the other end of a pipe.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path);
        let file = match file {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        // Of the open file, so that nothing can be swapped between the check and the reading.
        let metadata = file.metadata().map_err(failed)?;
        let path = || path.to_owned();
        if !metadata.is_file() {
            return Err(IdentityError::NotAFile { path: path() });
        }
        let us = rustix::process::geteuid().as_raw();
        if metadata.uid() != us {
            return Err(IdentityError::WrongOwner {
                path: path(),
                owner: metadata.uid(),
                us,
            });
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Readable { path: path(), mode });
        }
        let mut text = Zeroizing::new(String::with_capacity(MAX_FILE_BYTES));
        let malformed = || IdentityError::Malformed { path: path() };
        match file.take(MAX_FILE_BYTES as u64).read_to_string(&mut text) {
            Ok(_) => Self::parse(&text).map(Some).ok_or_else(malformed),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(malformed()),
            Err(error) => Err(failed(error)),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let file: KeyFile = strict_json::from_str(text).ok()?;
        let [stored] = file.keys.as_slice() else {
            return None;
        };
        let seed = Zeroizing::new(STANDARD.decode(&stored.seed).ok()?);
        let seed: &[u8; 32] = seed.as_slice().try_into().ok()?;
        let identity = Self::from_seed(seed);
        let sound = file.version == FILE_VERSION
            && file.first_public_key == STANDARD.encode(identity.public_key());
        sound.then_some(identity)
    }

    /// Writes beside, makes it durable, and links it to its name, which fails if the name is taken.
    fn write(&self, dir: &Path, path: &Path, seed: &[u8; 32]) -> io::Result<()> {
        let file = KeyFile {
            version: FILE_VERSION,
            first_public_key: STANDARD.encode(self.public_key()),
            keys: vec![StoredKey {
                seed: STANDARD.encode(seed),
            }],
        };
        let mut text = Zeroizing::new(serde_json::to_vec(&file)?);
        text.push(b'\n');
        let mut suffix = [0; 8];
        getrandom::fill(&mut suffix).map_err(io::Error::other)?;
        let temporary = dir.join(format!(
            ".{KEY_FILE}.{}",
            data_encoding::HEXLOWER.encode(&suffix)
        ));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| {
                file.write_all(&text)?;
                file.sync_all()
            })
            .and_then(|()| fs::hard_link(&temporary, path));
        let removed = fs::remove_file(&temporary);
        written?;
        removed?;
        File::open(dir)?.sync_all()
    }

    /// This instance's id.
    #[must_use]
    pub fn instance_id(&self) -> &InstanceId {
        &self.instance_id
    }

    /// The id of the key that signs now.
    #[must_use]
    pub fn key_id(&self) -> &KeyId {
        &self.key_id
    }

    /// The public half of the key that signs now.
    #[must_use]
    pub fn public_key(&self) -> [u8; PUBLIC_KEY_BYTES] {
        self.signing.verifying_key().to_bytes()
    }

    /// The key as peers keep it, good from `not_before` on.
    #[must_use]
    pub fn peer_key(&self, not_before: Timestamp) -> PeerKey {
        PeerKey {
            key_id: self.key_id.clone(),
            public_key: STANDARD.encode(self.public_key()),
            not_before,
            not_after: None,
        }
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.signing.sign(message).to_bytes()
    }
}

#[cfg(test)]
mod tests;
