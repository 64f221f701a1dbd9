//! How to start a coding agent, and how to read what it says.
//!
//! What this part promises:
//!
//! - A *runtime* is a named argv template of the spoke's own configuration ([`RuntimeConfig`]). What a
//!   peer sends fills whole arguments or standard input, nothing else: it never reaches a shell's
//!   parser, never becomes an option, and never chooses a program or a variable.
//! - The environment of an agent is made from nothing: names on an allow-list, fixed values, secrets,
//!   and a private `HOME`. A secret comes with a mask over the output.
//! - Text is an answer only when the runtime said so ([`Outcome`]): a stream that was cut, killed or
//!   silent never counts as one, whatever it printed before.
//! - Reading ([`StreamReader`]) does no I/O, holds bounded memory whatever is fed, and gives the same
//!   answer however the bytes were cut, so that a restarted spoke replays the spool and goes on.
//! - A runtime that hangs is found out ([`Watchdog`]): after its result, or in silence.
//!
//! ```text
//! RuntimeConfig ─► RuntimeCatalog ─resolve─► ResolvedRuntime ─invocation(Prompt)─► Invocation ─► sandbox
//!                                                                                     │ output
//!              Outcome ◄─ Ending + StreamReader ◄─────────── spool ◄──────────────────┘
//! ```

mod catalog;
pub mod claude;
mod config;
mod outcome;
mod prices;
mod progress;
mod prompt;
mod stream;
mod text;
mod watchdog;

pub use catalog::{
    HostEnv, Invocation, InvocationError, ResolveError, ResolvedRuntime, RuntimeCatalog,
    SecretChoiceError,
};
pub(crate) use config::is_free_variable;
pub use config::{ConfigError, OutputFormat, PromptChannel, RuntimeConfig, SecretSource};
pub use outcome::{Ending, FailureKind, Outcome};
pub use prices::{ModelPrice, Price, PriceTable};
pub use progress::{Counters, FinalResult, Phase, Progress, RuntimeEvent, Tokens};
pub use prompt::{Prompt, PromptError, PromptParts};
pub use stream::{MAX_LINE_BYTES, StreamReader};
pub use watchdog::{Verdict, Watchdog};
