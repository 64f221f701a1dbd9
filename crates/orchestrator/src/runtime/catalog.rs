//! The runtimes of a spoke by name, and what it takes to start one.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use mosaic_types::{RuntimeName, SecretName, command::RuntimeInfo};
use thiserror::Error;

use super::{
    claude,
    config::{
        BUDGET_PLACEHOLDER, ConfigError, INSTRUCTIONS_PLACEHOLDER, PROMPT_PLACEHOLDER,
        PromptChannel, RuntimeConfig, SecretSource,
    },
    prompt::{Prompt, PromptError},
};
use crate::{
    sandbox::mask::Mask,
    secrets::{SecretError, Secrets},
};

mod env;

pub use env::{HostEnv, SecretChoiceError};

/// Why a name leads to no runtime.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ResolveError {
    /// No runtime of that name.
    #[error("no runtime `{name}` here; there are: {}", known.join(", "))]
    Unknown {
        /// What was asked for.
        name: RuntimeName,
        /// What there is.
        known: Vec<String>,
    },
    /// The runtime's program is not on this machine.
    #[error("runtime `{name}` is not available: its program `{program}` is not installed")]
    Unavailable {
        /// The runtime.
        name: RuntimeName,
        /// The program.
        program: String,
    },
}

/// Why a start could not be prepared.
#[derive(Debug, Error)]
pub enum InvocationError {
    /// The prompt does not fit the runtime.
    #[error("failed to hand over the prompt")]
    Prompt(#[source] PromptError),
    /// A secret could not be read.
    #[error("failed to get the secret `{name}`")]
    Secret {
        /// Its name, or else the variable it is for.
        name: String,
        /// Why.
        #[source]
        source: SecretError,
    },
    /// A budget was asked for of a runtime that cannot keep one.
    #[error("runtime `{name}` cannot keep a budget (`options.budgetUsd`)")]
    BudgetUnsupported {
        /// The runtime.
        name: RuntimeName,
    },
    /// A budget that is no amount.
    #[error("`options.budgetUsd` is not an amount above zero")]
    BudgetInvalid,
}

/// The runtimes of a spoke.
#[derive(Debug, Clone)]
pub struct RuntimeCatalog {
    runtimes: BTreeMap<RuntimeName, Arc<RuntimeConfig>>,
    host_env: Arc<HostEnv>,
    secrets: Arc<Secrets>,
}

impl RuntimeCatalog {
    /// The configured runtimes of a spoke without secrets, and `claude` as built in unless one of them is called so.
    ///
    /// # Errors
    /// The first fault in a configuration.
    pub fn new(
        configs: impl IntoIterator<Item = RuntimeConfig>,
        host_env: HostEnv,
    ) -> Result<Self, ConfigError> {
        Self::with_secrets(configs, host_env, Secrets::default())
    }

    /// The same for a spoke with secrets.
    ///
    /// # Errors
    /// The first fault in a configuration.
    pub fn with_secrets(
        configs: impl IntoIterator<Item = RuntimeConfig>,
        host_env: HostEnv,
        secrets: Secrets,
    ) -> Result<Self, ConfigError> {
        let mut runtimes = BTreeMap::new();
        for config in configs {
            config.validate()?;
            for source in config.secret_env.values() {
                if let SecretSource::Secret(secret) = source
                    && !secrets.contains(secret)
                {
                    return Err(ConfigError::UnknownSecret {
                        name: config.name,
                        secret: secret.clone(),
                    });
                }
            }
            let name = config.name.clone();
            if runtimes.insert(name.clone(), Arc::new(config)).is_some() {
                return Err(ConfigError::Duplicate { name });
            }
        }
        let claude = claude::default_config();
        runtimes
            .entry(claude.name.clone())
            .or_insert_with(|| Arc::new(claude));
        Ok(Self {
            runtimes,
            host_env: Arc::new(host_env),
            secrets: Arc::new(secrets),
        })
    }

    /// The runtime of that name, with its program found on this machine now.
    ///
    /// # Errors
    /// No such runtime, or its program is not installed.
    pub fn resolve(&self, name: &RuntimeName) -> Result<ResolvedRuntime, ResolveError> {
        let config = self.config(name)?;
        let program =
            self.find_program(&config.program)
                .ok_or_else(|| ResolveError::Unavailable {
                    name: name.clone(),
                    program: config.program.clone(),
                })?;
        Ok(self.resolved(config, program))
    }

    /// The runtime of that name, with its program wherever an image has it: what an image holds is found out by
    /// starting it.
    ///
    /// # Errors
    /// No such runtime.
    pub fn resolve_in_image(&self, name: &RuntimeName) -> Result<ResolvedRuntime, ResolveError> {
        let config = self.config(name)?;
        Ok(self.resolved(config, PathBuf::from(&config.program)))
    }

    fn resolved(&self, config: &Arc<RuntimeConfig>, program: PathBuf) -> ResolvedRuntime {
        ResolvedRuntime {
            config: Arc::clone(config),
            program,
            host_env: Arc::clone(&self.host_env),
            secrets: Arc::clone(&self.secrets),
            chosen: BTreeMap::new(),
        }
    }

    /// The configuration of that name, whether or not its program is there: for agents that are
    /// adopted after a restart.
    ///
    /// # Errors
    /// No such runtime.
    pub fn config(&self, name: &RuntimeName) -> Result<&Arc<RuntimeConfig>, ResolveError> {
        self.runtimes
            .get(name)
            .ok_or_else(|| ResolveError::Unknown {
                name: name.clone(),
                known: self.runtimes.keys().map(ToString::to_string).collect(),
            })
    }

    /// All runtimes by name, with whether their programs are there now.
    #[must_use]
    pub fn availability(&self) -> Vec<RuntimeInfo> {
        self.runtimes
            .iter()
            .map(|(name, config)| RuntimeInfo {
                name: name.clone(),
                available: self.find_program(&config.program).is_some(),
            })
            .collect()
    }

    /// Looks up a program as a shell would, but for directories that are not absolute: those would
    /// depend on where the agent stands, which is the agent's to fill.
    fn find_program(&self, program: &str) -> Option<PathBuf> {
        if program.contains('/') {
            let path = PathBuf::from(program);
            return is_program(&path).then_some(path);
        }
        std::env::split_paths(self.host_env.get("PATH")?)
            .filter(|dir| dir.is_absolute())
            .map(|dir| dir.join(program))
            .find(|path| is_program(path))
    }
}

fn is_program(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// A runtime that can be started.
#[derive(Debug, Clone)]
pub struct ResolvedRuntime {
    config: Arc<RuntimeConfig>,
    program: PathBuf,
    host_env: Arc<HostEnv>,
    secrets: Arc<Secrets>,
    /// Secrets beside its own, by variable.
    chosen: BTreeMap<String, SecretName>,
}

/// One start of a program, ready for the sandbox. No part of it is read by a shell, unless the
/// operator made a shell the program.
#[derive(Clone)]
pub struct Invocation {
    /// The program: an absolute path, or a name that an image knows.
    pub program: PathBuf,
    /// Its arguments, without the program.
    pub args: Vec<String>,
    /// Its whole environment, but for `HOME` and `TMPDIR`, which the sandbox sets. Holds secrets.
    pub env: BTreeMap<String, OsString>,
    /// What is written to its standard input before that is closed; if absent, it is closed at once.
    pub stdin: Option<String>,
    /// Paths it must be able to read, the program's own among them; absolute.
    pub read_only_paths: Vec<PathBuf>,
    /// What must not be seen in its output.
    pub masks: Vec<Mask>,
}

impl fmt::Debug for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may be secrets, and a prompt may be long: names and sizes tell enough.
        f.debug_struct("Invocation")
            .field("program", &self.program)
            .field("args", &self.args.len())
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("stdin_bytes", &self.stdin.as_ref().map(String::len))
            .finish_non_exhaustive()
    }
}

impl ResolvedRuntime {
    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &RuntimeConfig {
        &self.config
    }

    /// The program that was found.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Prepares one start. Reads the secrets from their files, so that a rotated one is used from the
    /// next start on.
    ///
    /// # Errors
    /// A prompt that this runtime cannot take, a secret that cannot be read, a budget it cannot keep.
    pub fn invocation(
        &self,
        prompt: &Prompt,
        budget_usd: Option<f64>,
    ) -> Result<Invocation, InvocationError> {
        let mut args = Vec::with_capacity(self.config.args.len());
        for arg in &self.config.args {
            args.push(match arg.as_str() {
                PROMPT_PLACEHOLDER => prompt.argument(prompt.text()?)?,
                INSTRUCTIONS_PLACEHOLDER => prompt.argument(prompt.instructions()?)?,
                literal => literal.to_owned(),
            });
        }
        if let Some(budget_usd) = budget_usd {
            args.extend(self.budget_args(budget_usd)?);
        }
        let stdin = match self.config.prompt {
            PromptChannel::Stdin => Some(prompt.text()?.to_owned()),
            PromptChannel::Argument | PromptChannel::None => None,
        };
        let (env, masks) = self.env()?;
        Ok(Invocation {
            program: self.program.clone(),
            args,
            env,
            masks,
            stdin,
            read_only_paths: self.read_only_paths(),
        })
    }

    /// Whether the prompt fits this runtime.
    ///
    /// # Errors
    /// What [`Self::invocation`] would say of it.
    pub fn check_prompt(&self, prompt: &Prompt) -> Result<(), PromptError> {
        for arg in &self.config.args {
            match arg.as_str() {
                PROMPT_PLACEHOLDER => drop(prompt.argument(prompt.text()?)?),
                INSTRUCTIONS_PLACEHOLDER => drop(prompt.argument(prompt.instructions()?)?),
                _ => {}
            }
        }
        if self.config.prompt == PromptChannel::Stdin {
            prompt.text()?;
        }
        Ok(())
    }

    fn budget_args(&self, budget_usd: f64) -> Result<Vec<String>, InvocationError> {
        if !budget_usd.is_finite() || budget_usd <= 0.0 {
            return Err(InvocationError::BudgetInvalid);
        }
        if self.config.budget_args.is_empty() {
            // The spoke holds the budget against what it tells.
            if self.config.tells_usage() {
                return Ok(Vec::new());
            }
            return Err(InvocationError::BudgetUnsupported {
                name: self.config.name.clone(),
            });
        }
        let fill = |arg: &String| match arg.as_str() {
            BUDGET_PLACEHOLDER => budget_usd.to_string(),
            literal => literal.to_owned(),
        };
        Ok(self.config.budget_args.iter().map(fill).collect())
    }

    /// What of the host it must be able to read, its program among it.
    #[must_use]
    pub fn read_only_paths(&self) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        // A bare name is an image's own program.
        if self.program.is_absolute() && self.program.exists() {
            paths.push(self.program.clone());
        }
        // A link on the search path is often all there is of a program: its file must be seen too.
        if self.program.is_absolute()
            && let Ok(file) = self.program.canonicalize()
            && file != self.program
        {
            paths.push(file);
        }
        paths.extend(self.config.read_only_paths.iter().cloned());
        paths
    }
}

impl From<PromptError> for InvocationError {
    fn from(source: PromptError) -> Self {
        Self::Prompt(source)
    }
}

#[cfg(test)]
mod tests;
