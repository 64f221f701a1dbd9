//! The secrets of a spoke, by name: where each is, and its value when an agent is started.
//!
//! A value goes to the agent's environment and to the masks over its output, and nowhere else: not into the record,
//! the audit trail, a log, a command line or an answer. A name may be told to whoever may use it.

use std::{
    collections::BTreeMap,
    fmt, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use mosaic_types::SecretName;
use serde::Deserialize;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{
    runtime::{HostEnv, is_free_variable},
    sandbox::mask::{Mask, Unmaskable},
};

/// What an operator says about a secret: `file` or `env`, and perhaps `variable`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct SecretConfig {
    /// Where it is.
    pub place: SecretPlace,
    /// The variable in which an agent gets it that asks for it by name; if absent, nobody can ask.
    pub variable: Option<String>,
}

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretPlace {
    /// In a file, which is read at each start of an agent.
    File(PathBuf),
    /// In a variable of the spoke's own environment, which is read once.
    Env(String),
}

/// As it stands in the file.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Written {
    file: Option<PathBuf>,
    env: Option<String>,
    variable: Option<String>,
}

impl TryFrom<Written> for SecretConfig {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let place = match (written.file, written.env) {
            (Some(file), None) => SecretPlace::File(file),
            (None, Some(variable)) => SecretPlace::Env(variable),
            _ => return Err("a secret has either `file` or `env`"),
        };
        Ok(Self {
            place,
            variable: written.variable,
        })
    }
}

/// A fault in the configuration of a secret. Found at start.
#[derive(Debug, Error)]
pub enum SecretConfigError {
    /// A path that must be absolute.
    #[error("secret `{name}`: `file` is not an absolute path")]
    RelativePath {
        /// The secret.
        name: SecretName,
    },
    /// A variable's name that no environment can hold, or one that the sandbox sets.
    #[error("secret `{name}`: `variable` is reserved or not a variable's name")]
    Variable {
        /// The secret.
        name: SecretName,
    },
    /// The variable of the spoke's own environment is no secret's value. That will not change while it runs.
    #[error("secret `{name}`: failed to take it from the variable `{variable}`")]
    Env {
        /// The secret.
        name: SecretName,
        /// The variable.
        variable: String,
        /// Why.
        #[source]
        source: SecretError,
    },
}

/// Why there is no value. Tells nothing of it.
#[derive(Debug, Error)]
pub enum SecretError {
    /// No secret of that name.
    #[error("no such secret is configured")]
    Unknown,
    /// The variable is not set, or is no text.
    #[error("the variable is not set, or not UTF-8")]
    Unset,
    /// The file cannot be read.
    #[error("failed to read its file")]
    Read(#[source] io::Error),
    /// The file is not as a secret's file must be.
    #[error("its file is {0}")]
    File(&'static str),
    /// Nothing, or something that no environment can hold.
    #[error("it is empty, or holds a NUL")]
    Empty,
    /// A value that could not be kept out of the agent's output.
    #[error("it is unfit")]
    Unmaskable(#[from] Unmaskable),
}

/// A secret's value: wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// The longest value: with the forms in which it is looked for, it has to fit into an agent's memory.
    const MAX_BYTES: u64 = 64 * 1024;

    /// The value, for the environment of the program and the mask of its output, and nothing else.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The mask that stands for it in an agent's output.
    pub(crate) fn mask(&self, name: &str) -> Result<Mask, SecretError> {
        Ok(Mask::new(name, self.expose())?)
    }

    fn new(text: &str) -> Result<Self, SecretError> {
        let text = text.trim_end_matches(['\r', '\n']);
        if text.is_empty() || text.contains('\0') {
            return Err(SecretError::Empty);
        }
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    /// Reads a file that holds the value and, if need be, a line end. A file that everybody on the machine may
    /// read holds no secret.
    pub(crate) fn read(path: &Path) -> Result<Self, SecretError> {
        let file = std::fs::File::open(path).map_err(SecretError::Read)?;
        let metadata = file.metadata().map_err(SecretError::Read)?;
        if !metadata.is_file() {
            return Err(SecretError::File("not a regular file"));
        }
        if metadata.mode() & 0o006 != 0 {
            return Err(SecretError::File(
                "readable or writable by others; chmod o-rw it",
            ));
        }
        if metadata.len() > Self::MAX_BYTES {
            return Err(SecretError::File("larger than 64 KiB"));
        }
        let mut value = Zeroizing::new(String::new());
        io::Read::read_to_string(&mut io::Read::take(file, Self::MAX_BYTES), &mut value)
            .map_err(SecretError::Read)?;
        Self::new(&value)
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(..)")
    }
}

#[derive(Debug)]
enum Place {
    File(PathBuf),
    Text(SecretText),
}

#[derive(Debug)]
struct Secret {
    place: Place,
    variable: Option<String>,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Secrets {
    secrets: BTreeMap<SecretName, Secret>,
}

impl Secrets {
    /// The configured secrets. Those of the spoke's environment are taken now.
    ///
    /// # Errors
    /// The first fault in a configuration.
    pub fn new(
        configs: BTreeMap<SecretName, SecretConfig>,
        host_env: &HostEnv,
    ) -> Result<Self, SecretConfigError> {
        let mut secrets = BTreeMap::new();
        for (name, SecretConfig { place, variable }) in configs {
            if variable
                .as_deref()
                .is_some_and(|name| !is_free_variable(name))
            {
                return Err(SecretConfigError::Variable { name });
            }
            let place = match place {
                SecretPlace::File(file) if file.is_absolute() => Place::File(file),
                SecretPlace::File(_) => return Err(SecretConfigError::RelativePath { name }),
                SecretPlace::Env(variable) => match from_env(host_env, &name, &variable) {
                    Ok(text) => Place::Text(text),
                    Err(source) => {
                        return Err(SecretConfigError::Env {
                            name,
                            variable,
                            source,
                        });
                    }
                },
            };
            secrets.insert(name, Secret { place, variable });
        }
        Ok(Self { secrets })
    }

    /// Whether there is a secret of that name.
    #[must_use]
    pub fn contains(&self, name: &SecretName) -> bool {
        self.secrets.contains_key(name)
    }

    /// The variable in which an agent gets it that asks for it; `None` if nobody can ask for it.
    #[must_use]
    pub fn variable(&self, name: &SecretName) -> Option<&str> {
        self.secrets.get(name)?.variable.as_deref()
    }

    /// Reads the value, if need be from its file.
    ///
    /// # Errors
    /// [`SecretError`]; may be another one, or none, next time.
    pub fn read(&self, name: &SecretName) -> Result<SecretText, SecretError> {
        match &self.secrets.get(name).ok_or(SecretError::Unknown)?.place {
            Place::File(file) => SecretText::read(file),
            Place::Text(text) => Ok(text.clone()),
        }
    }

    /// Those that no agent could be given now, and why.
    #[must_use]
    pub fn faults(&self) -> Vec<(&SecretName, SecretError)> {
        let fault = |name| self.read(name).and_then(|text| text.mask("")).err();
        self.secrets
            .keys()
            .filter_map(|name| Some((name, fault(name)?)))
            .collect()
    }
}

fn from_env(
    host_env: &HostEnv,
    name: &SecretName,
    variable: &str,
) -> Result<SecretText, SecretError> {
    let value = host_env.get(variable).and_then(|value| value.to_str());
    let text = SecretText::new(value.ok_or(SecretError::Unset)?)?;
    text.mask(name.as_str())?;
    Ok(text)
}

#[cfg(test)]
mod tests;
