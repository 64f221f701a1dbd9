//! What an operator says about a runtime.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
};

use mosaic_types::{RuntimeName, SecretName};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::prices::ModelPrice;

/// A fault in the configuration of a runtime. Found when the configuration is loaded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// Two runtimes of one name.
    #[error("runtime `{name}` is configured twice")]
    Duplicate {
        /// The name.
        name: RuntimeName,
    },
    /// Neither a bare name nor an absolute path.
    #[error("runtime `{name}`: `program` is neither a bare name nor an absolute path: `{program}`")]
    Program {
        /// The runtime.
        name: RuntimeName,
        /// What was given.
        program: String,
    },
    /// Braces around a word that is no placeholder, or a placeholder inside a longer argument.
    #[error(
        "runtime `{name}`: `args[{index}]` is `{arg}`; a placeholder is a whole argument, `{{prompt}}` or `{{instructions}}`"
    )]
    Placeholder {
        /// The runtime.
        name: RuntimeName,
        /// Which argument, from 0.
        index: usize,
        /// What was given.
        arg: String,
    },
    /// The placeholders do not fit the way the prompt is handed over.
    #[error(
        "runtime `{name}`: with `prompt = \"{channel}\"`, `args` must hold {expected} placeholder"
    )]
    PromptChannel {
        /// The runtime.
        name: RuntimeName,
        /// The way.
        channel: PromptChannel,
        /// How many would fit.
        expected: &'static str,
    },
    /// A variable's name that no environment can hold, or one that is set for every agent by the spoke.
    #[error("runtime `{name}`: `{field}`: `{variable}` is reserved or not a variable's name")]
    Variable {
        /// The runtime.
        name: RuntimeName,
        /// The member of the configuration.
        field: &'static str,
        /// The variable.
        variable: String,
    },
    /// A variable given in more than one of the three ways.
    #[error(
        "runtime `{name}`: `{variable}` is set in more than one of `env-allow`, `env`, `secret-env`"
    )]
    VariableTwice {
        /// The runtime.
        name: RuntimeName,
        /// The variable.
        variable: String,
    },
    /// A secret that the spoke's configuration does not have.
    #[error("runtime `{name}`: `secret-env`: there is no secret `{secret}`")]
    UnknownSecret {
        /// The runtime.
        name: RuntimeName,
        /// The secret.
        secret: SecretName,
    },
    /// A path that must be absolute.
    #[error("runtime `{name}`: `{field}`: `{}` is not an absolute path", path.display())]
    RelativePath {
        /// The runtime.
        name: RuntimeName,
        /// The member of the configuration.
        field: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// A NUL in an argument or value, a time limit of zero, or a price that is none.
    #[error("runtime `{name}`: `{field}` holds a value that is not allowed")]
    Value {
        /// The runtime.
        name: RuntimeName,
        /// The member of the configuration.
        field: &'static str,
    },
}

/// How the prompt reaches the program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptChannel {
    /// On standard input, which is closed after it.
    Stdin,
    /// As one whole argument, in place of `{prompt}` or `{instructions}`.
    Argument,
    /// Not at all.
    #[default]
    None,
}

impl fmt::Display for PromptChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdin => "stdin",
            Self::Argument => "argument",
            Self::None => "none",
        })
    }
}

/// What the program writes to standard output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputFormat {
    /// The JSON lines of `claude -p --output-format stream-json --verbose`.
    ClaudeStreamJson,
    /// Text.
    #[default]
    Plain,
}

/// A runtime: a program, and what it is given. The program and all but the placeholders are the
/// operator's words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RuntimeConfig {
    /// What peers call it.
    pub name: RuntimeName,
    /// A bare name, looked up in the spoke's search path, or an absolute path.
    pub program: String,
    /// Arguments. `{prompt}` (the composed prompt) and `{instructions}` (the caller's instructions
    /// alone) stand for a whole argument each.
    #[serde(default)]
    pub args: Vec<String>,
    /// Arguments that are added when a budget was asked for, with `{budget_usd}` for what is left of it. A
    /// runtime without them whose output does not tell what it uses cannot keep a budget.
    #[serde(default)]
    pub budget_args: Vec<String>,
    /// How the prompt gets in.
    #[serde(default)]
    pub prompt: PromptChannel,
    /// What comes out.
    #[serde(default)]
    pub output: OutputFormat,
    /// Variables that are copied from the spoke's own environment, where they are set.
    #[serde(default)]
    pub env_allow: BTreeSet<String>,
    /// Variables of fixed value.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Variables whose value is a secret, which is masked in the output.
    #[serde(default)]
    pub secret_env: BTreeMap<String, SecretSource>,
    /// Paths that the sandbox lets the program read beside what it lets everybody read.
    #[serde(default)]
    pub read_only_paths: Vec<PathBuf>,
    /// How long it may say nothing, in seconds; no limit if absent.
    #[serde(default)]
    pub silence_timeout_secs: Option<u32>,
    /// How long it may stay after its result, in seconds.
    #[serde(default = "default_result_grace_secs")]
    pub result_grace_secs: u32,
    /// What its models' tokens cost, for as long as it has not said it itself; the built-in prices come after these.
    #[serde(default)]
    pub prices: Vec<ModelPrice>,
}

fn default_result_grace_secs() -> u32 {
    10
}

/// Set for every agent by the sandbox: its private home and scratch.
const RESERVED_VARIABLES: [&str; 2] = ["HOME", "TMPDIR"];

pub(super) const PROMPT_PLACEHOLDER: &str = "{prompt}";
pub(super) const INSTRUCTIONS_PLACEHOLDER: &str = "{instructions}";
pub(super) const BUDGET_PLACEHOLDER: &str = "{budget_usd}";

impl RuntimeConfig {
    /// `shell`: the instructions are a script for `sh`. Only for spokes whose operator wants peers to
    /// run anything in the sandbox; never there by default.
    #[must_use]
    pub fn shell() -> Self {
        Self {
            name: literal_name("shell"),
            program: "sh".to_owned(),
            args: vec!["-c".to_owned(), INSTRUCTIONS_PLACEHOLDER.to_owned()],
            budget_args: Vec::new(),
            prompt: PromptChannel::Argument,
            output: OutputFormat::Plain,
            env_allow: common_env(),
            env: BTreeMap::new(),
            secret_env: BTreeMap::new(),
            read_only_paths: Vec::new(),
            silence_timeout_secs: None,
            result_grace_secs: default_result_grace_secs(),
            prices: Vec::new(),
        }
    }

    /// Whether its output tells what it uses, so that a budget can be held against it.
    #[must_use]
    pub fn tells_usage(&self) -> bool {
        self.output == OutputFormat::ClaudeStreamJson
    }

    /// Checks everything that can be checked without the machine.
    ///
    /// # Errors
    /// The first fault, with the member it is in.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_command()?;
        self.validate_env()?;
        let relative = self.read_only_paths.iter().find(|path| !path.is_absolute());
        if let Some(path) = relative {
            return Err(self.relative("read-only-paths", path));
        }
        if self.silence_timeout_secs == Some(0) {
            return Err(self.value("silence-timeout-secs"));
        }
        if !self.prices.iter().all(ModelPrice::is_valid) {
            return Err(self.value("prices"));
        }
        Ok(())
    }

    fn validate_command(&self) -> Result<(), ConfigError> {
        let is_bare = !self.program.is_empty() && !self.program.contains('/');
        if !(is_bare || Path::new(&self.program).is_absolute()) || self.program.contains('\0') {
            return Err(ConfigError::Program {
                name: self.name.clone(),
                program: self.program.clone(),
            });
        }
        let prompts = [PROMPT_PLACEHOLDER, INSTRUCTIONS_PLACEHOLDER];
        self.validate_args(&self.args, "args", &prompts)?;
        self.validate_args(&self.budget_args, "budget-args", &[BUDGET_PLACEHOLDER])?;
        let placeholders = self
            .args
            .iter()
            .filter(|arg| prompts.contains(&arg.as_str()))
            .count();
        let expected = match self.prompt {
            PromptChannel::Argument => (1, "one"),
            PromptChannel::Stdin | PromptChannel::None => (0, "no"),
        };
        if placeholders != expected.0 {
            return Err(ConfigError::PromptChannel {
                name: self.name.clone(),
                channel: self.prompt,
                expected: expected.1,
            });
        }
        Ok(())
    }

    fn validate_args(
        &self,
        args: &[String],
        field: &'static str,
        placeholders: &[&str],
    ) -> Result<(), ConfigError> {
        for (index, arg) in args.iter().enumerate() {
            if arg.contains('\0') {
                return Err(self.value(field));
            }
            if holds_placeholder(arg) && !placeholders.contains(&arg.as_str()) {
                return Err(ConfigError::Placeholder {
                    name: self.name.clone(),
                    index,
                    arg: arg.clone(),
                });
            }
        }
        Ok(())
    }

    fn validate_env(&self) -> Result<(), ConfigError> {
        let named = self
            .env_allow
            .iter()
            .map(|variable| ("env-allow", variable))
            .chain(self.env.keys().map(|variable| ("env", variable)))
            .chain(
                self.secret_env
                    .keys()
                    .map(|variable| ("secret-env", variable)),
            );
        let mut seen = BTreeSet::new();
        for (field, variable) in named {
            if !is_free_variable(variable) {
                return Err(ConfigError::Variable {
                    name: self.name.clone(),
                    field,
                    variable: variable.clone(),
                });
            }
            if !seen.insert(variable) {
                return Err(ConfigError::VariableTwice {
                    name: self.name.clone(),
                    variable: variable.clone(),
                });
            }
        }
        if self.env.values().any(|value| value.contains('\0')) {
            return Err(self.value("env"));
        }
        let mut files = self.secret_files();
        match files.find(|file| !file.is_absolute()) {
            Some(file) => Err(self.relative("secret-env", file)),
            None => Ok(()),
        }
    }

    /// The files that its secrets are in, but for those of the spoke's configuration.
    pub(crate) fn secret_files(&self) -> impl Iterator<Item = &Path> {
        let files = self.secret_env.values().map(|source| match source {
            SecretSource::File(file) => Some(file.as_path()),
            SecretSource::Secret(_) => None,
        });
        files.flatten()
    }

    /// Every variable that it may set.
    pub(super) fn variables(&self) -> impl Iterator<Item = &String> {
        self.env_allow
            .iter()
            .chain(self.env.keys())
            .chain(self.secret_env.keys())
    }

    fn relative(&self, field: &'static str, path: &Path) -> ConfigError {
        ConfigError::RelativePath {
            name: self.name.clone(),
            field,
            path: path.to_owned(),
        }
    }

    fn value(&self, field: &'static str) -> ConfigError {
        ConfigError::Value {
            name: self.name.clone(),
            field,
        }
    }
}

/// Where a secret is: `{ file = "/path" }` or `{ secret = "name" }`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretSource {
    /// A file that holds the value and, if need be, a line end.
    File(PathBuf),
    /// A secret of the spoke's configuration.
    Secret(SecretName),
}

/// What any program needs to find others and to speak the operator's language.
pub(super) fn common_env() -> BTreeSet<String> {
    ["PATH", "LANG", "LC_ALL", "TZ"].map(str::to_owned).into()
}

#[expect(
    clippy::expect_used,
    reason = "a literal of this crate, checked by a test"
)]
pub(super) fn literal_name(name: &'static str) -> RuntimeName {
    name.parse().expect("a runtime's name")
}

/// Whether an operator may say what the variable of that name holds.
pub(crate) fn is_free_variable(name: &str) -> bool {
    is_variable(name) && !RESERVED_VARIABLES.contains(&name)
}

fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Whether braces enclose a word: `{x}` does, `{"a": 1}` does not.
fn holds_placeholder(arg: &str) -> bool {
    arg.split('{').skip(1).any(|rest| {
        rest.split_once('}').is_some_and(|(word, _)| {
            word.chars()
                .all(|c| c.is_alphanumeric() || "_- ".contains(c))
        })
    })
}

#[cfg(test)]
mod tests;
