//! The environment of an agent: made from nothing, with a mask for each secret in it.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
};

use mosaic_types::SecretName;
use thiserror::Error;

use super::{InvocationError, ResolvedRuntime};
use crate::{runtime::config::SecretSource, sandbox::mask::Mask, secrets::SecretText};

/// How the variables end that are taken for credentials, so that their values are masked in the output.
const CREDENTIALS: [&str; 4] = ["_KEY", "_TOKEN", "_SECRET", "_PASSWORD"];

/// Why an agent cannot have a secret that it asks for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SecretChoiceError {
    /// There is none, or its configuration names no variable.
    #[error("no secret `{name}` here that can be asked for")]
    Unknown {
        /// What was asked for.
        name: SecretName,
    },
    /// What it would be in is the runtime's or another secret's.
    #[error("the variable of the secret `{name}` is set by the runtime or another secret")]
    VariableTaken {
        /// What was asked for.
        name: SecretName,
    },
}

/// What is taken of the spoke's own environment. Read once at start, handed on from there.
#[derive(Clone, Default)]
pub struct HostEnv {
    variables: BTreeMap<String, OsString>,
}

impl fmt::Debug for HostEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}

impl HostEnv {
    /// From pairs such as `std::env::vars_os()`; a name that is no text is left out.
    pub fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let variables = variables
            .into_iter()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .collect();
        Self { variables }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(name).map(OsString::as_os_str)
    }
}

impl ResolvedRuntime {
    /// The runtime with these secrets beside its own, each in the variable that its configuration names.
    ///
    /// # Errors
    /// [`SecretChoiceError`].
    pub fn with_secrets<'a>(
        mut self,
        names: impl IntoIterator<Item = &'a SecretName>,
    ) -> Result<Self, SecretChoiceError> {
        for name in names {
            let variable = self
                .secrets
                .variable(name)
                .ok_or_else(|| SecretChoiceError::Unknown { name: name.clone() })?
                .to_owned();
            let own = self.config.secret_env.get(&variable);
            if own == Some(&SecretSource::Secret(name.clone())) {
                continue;
            }
            let is_taken = self.config.variables().any(|taken| *taken == variable);
            if is_taken || self.chosen.insert(variable, name.clone()).is_some() {
                return Err(SecretChoiceError::VariableTaken { name: name.clone() });
            }
        }
        Ok(self)
    }

    pub(super) fn env(&self) -> Result<(BTreeMap<String, OsString>, Vec<Mask>), InvocationError> {
        let mut env = BTreeMap::new();
        let mut masks = Vec::new();
        for variable in &self.config.env_allow {
            let Some(value) = self.host_env.get(variable) else {
                continue;
            };
            if CREDENTIALS.iter().any(|end| variable.ends_with(end))
                && let Some(value) = value.to_str()
            {
                // What cannot be masked was not declared a secret either.
                masks.extend(Mask::new(variable, value));
            }
            env.insert(variable.clone(), value.to_owned());
        }
        for (name, value) in &self.config.env {
            env.insert(name.clone(), value.into());
        }
        let own = self
            .config
            .secret_env
            .iter()
            .map(|(variable, source)| match source {
                SecretSource::File(file) => (variable, variable.as_str(), SecretText::read(file)),
                SecretSource::Secret(name) => (variable, name.as_str(), self.secrets.read(name)),
            });
        let chosen = self.chosen.iter();
        let chosen =
            chosen.map(|(variable, name)| (variable, name.as_str(), self.secrets.read(name)));
        for (variable, name, read) in own.chain(chosen) {
            let failed = |source| InvocationError::Secret {
                name: name.to_owned(),
                source,
            };
            let text = read.map_err(failed)?;
            masks.push(text.mask(name).map_err(failed)?);
            env.insert(variable.clone(), text.expose().into());
        }
        Ok((env, masks))
    }
}
