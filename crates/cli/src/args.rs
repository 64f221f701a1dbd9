//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use mosaic_types::{
    AgentId, InstanceId, KillIntentId, RuntimeName, SecretName, TaskId,
    api::Role,
    command::{AgentType, CommandType, NetworkPolicy, SandboxKind},
    label::Label,
};

use crate::error::UsageError;

/// What `deploy/agent-image` makes.
const AGENT_IMAGE: &str = "mosaic-agent:1";

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed on this side
  2    the command line is wrong
  3    refused by the node (code, field and reason are printed)
  4    the node, or the spoke behind it, was not reached
  5    kill: a death is not proven; kill --all: or a spoke was not reached, or --hold is not in force for good
  6    spawn --follow, logs --follow: the agent failed or was killed
  7    audit verify: the trail is not sound
  130  interrupted

Where to: --hub URL with --token-file FILE, or the variables named above and MOSAIC_TOKEN, or else the
`mosaic dev` that runs. There `--node hub`, `--node spoke-1`, ... name its nodes.";

/// Run coding agents on remote machines, watch them, bring their work back, and stop them within a blink.
#[derive(Debug, Parser)]
#[command(name = "mosaic", version, after_help = EXIT_CODES, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every verb.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Globals {
    /// The node to talk to: a URL, or a name in the `mosaic dev` that runs
    #[arg(
        long = "hub",
        visible_alias = "node",
        env = "MOSAIC_HUB",
        value_name = "URL",
        global = true
    )]
    pub(crate) node: Option<String>,
    /// File with the bearer token
    #[arg(long, env = "MOSAIC_TOKEN_FILE", value_name = "FILE", global = true)]
    pub(crate) token_file: Option<PathBuf>,
    /// Data folder of `mosaic dev` [default: mosaic/dev in the user's state folder]
    #[arg(long, env = "MOSAIC_DEV_DIR", value_name = "DIR", global = true)]
    pub(crate) dir: Option<PathBuf>,
    /// Print the API's JSON instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a hub and spokes, connected, in this process
    Dev(DevArgs),
    /// The tour: real agents on a real repository, watched, killed, and gone afterwards
    Demo(DemoArgs),
    /// Make a peering token at a node, for the other side's `mosaic connect`
    Invite(InviteArgs),
    /// Connect a node to the one that made the peering token
    Connect(ConnectArgs),
    /// List connections, or change one
    Connections(ConnectionsArgs),
    /// Run an agent at a spoke
    Spawn(Box<SpawnArgs>),
    /// List agents
    Ps(PsArgs),
    /// Show one agent
    Status(AgentArg),
    /// Show an agent's output
    Logs(LogsArgs),
    /// Fetch an ended agent's work
    Result(ResultArgs),
    /// Kill one agent, or all; answers with the proof of death
    Kill(KillArgs),
    /// List the kills that a hub keeps until they are proven, or take one back
    Kills(KillsArgs),
    /// Show or release the hold on spawns at a spoke
    Hold(HoldArgs),
    /// Read the audit trail, or verify it
    Audit(AuditArgs),
    /// Manage operators' tokens
    Tokens(TokensArgs),
    /// Print a completion script
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DevArgs {
    /// How many spokes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) spokes: u8,
    #[command(flatten)]
    pub(crate) contained: ContainedArgs,
    /// Port of the hub; the one used before, or any that is free, if absent
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Leave agents running when stopped in order; they are adopted by the next `mosaic dev` in this folder
    #[arg(long)]
    pub(crate) keep_agents: bool,
}

/// What contains the agents of spokes in this process.
#[derive(Debug, Clone, Args)]
pub(crate) struct ContainedArgs {
    /// What contains agents that ask for nothing else: process, docker
    #[arg(long, default_value = "process", value_parser = sandbox)]
    sandbox: SandboxKind,
    /// With --sandbox docker: the image that they run in; it must be on this machine [default: mosaic-agent:1]
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
}

impl ContainedArgs {
    /// The image of agents' containers; `None` if they are to have none.
    pub(crate) fn image(&self) -> Result<Option<&str>, UsageError> {
        match (self.sandbox, &self.image) {
            (SandboxKind::Process, None) => Ok(None),
            (SandboxKind::Process, Some(_)) => Err(UsageError::ImageOfNone),
            (SandboxKind::Docker, image) => Ok(Some(image.as_deref().unwrap_or(AGENT_IMAGE))),
        }
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DemoArgs {
    /// The repository to work on: a folder or a URL [default: the one you stand in, or a small sample]
    #[arg(long)]
    pub(crate) repository: Option<String>,
    /// The branch to start from [default: the one that is checked out]
    #[arg(long)]
    pub(crate) branch: Option<String>,
    #[command(flatten)]
    pub(crate) contained: ContainedArgs,
    /// Never wait for a key
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct GrantArgs {
    /// Repositories that the peer may use, as globs: `*` stops at `/`, `**` does not
    #[arg(long = "repository", value_name = "GLOB")]
    pub(crate) repositories: Vec<String>,
    /// Runtimes that it may use [default: all that are enabled]
    #[arg(long = "runtime", value_name = "NAME")]
    pub(crate) runtimes: Vec<RuntimeName>,
    /// Sandboxes that it may use [default: all that are offered]
    #[arg(long = "sandbox", value_name = "KIND", value_parser = sandbox)]
    pub(crate) sandboxes: Vec<SandboxKind>,
    /// Commands that it may send [default: all]
    #[arg(long = "command", value_name = "COMMAND")]
    pub(crate) commands: Vec<CommandType>,
    /// Agents at once
    #[arg(long, value_name = "N")]
    pub(crate) max_agents: Option<u32>,
    /// Spawns in any minute
    #[arg(long, value_name = "N")]
    pub(crate) spawns_per_minute: Option<u32>,
    /// Longest time for an agent, in seconds
    #[arg(long, value_name = "SECONDS")]
    pub(crate) max_timeout: Option<u64>,
    /// Most memory for an agent, in MiB
    #[arg(long, value_name = "MIB")]
    pub(crate) max_memory_mb: Option<u64>,
    /// Most CPU for an agent, in cores
    #[arg(long, value_name = "CORES")]
    pub(crate) max_cpus: Option<f64>,
    /// Most budget for an agent, in US dollars
    #[arg(long, value_name = "USD")]
    pub(crate) max_budget_usd: Option<f64>,
    /// Most budget for an agent, in tokens of every kind
    #[arg(long, value_name = "N")]
    pub(crate) max_budget_tokens: Option<u64>,
    /// What all its agents together may cost in a day of UTC, in US dollars
    #[arg(long, value_name = "USD")]
    pub(crate) budget_usd_per_day: Option<f64>,
    /// The tokens that all its agents together may use in a day of UTC
    #[arg(long, value_name = "N")]
    pub(crate) budget_tokens_per_day: Option<u64>,
    /// Longest lease for an agent, in seconds; one that names none gets it
    #[arg(long, value_name = "SECONDS")]
    pub(crate) max_lease: Option<u64>,
    /// The most open network policy: none, open, or allow:HOST[,HOST...]
    #[arg(long, value_name = "POLICY", value_parser = network)]
    pub(crate) network: Option<NetworkPolicy>,
    /// Secrets of the spoke that its agents may be given [default: none]
    #[arg(long = "secret", value_name = "NAME")]
    pub(crate) secrets: Vec<SecretName>,
    /// Allow its agents' branches to be pushed to the repositories
    #[arg(long)]
    pub(crate) push: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct InviteArgs {
    #[command(flatten)]
    pub(crate) grants: GrantArgs,
    /// Seconds for which the token can be used [default: an hour]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) ttl: Option<u64>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ConnectArgs {
    /// The peering token; `-` reads it from standard input
    #[arg(required_unless_present = "url")]
    pub(crate) token: Option<String>,
    /// Ask at this URL without a token; the other side's operator must accept
    #[arg(long, conflicts_with = "token")]
    pub(crate) url: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ConnectionsArgs {
    #[command(subcommand)]
    pub(crate) change: Option<ConnectionChange>,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ConnectionChange {
    /// Accept a pending connection
    Accept {
        /// Id or name
        connection: String,
        #[command(flatten)]
        grants: Box<GrantArgs>,
    },
    /// Reject a pending connection
    Reject {
        /// Id or name
        connection: String,
    },
    /// Stop a connection for now
    Suspend {
        /// Id or name
        connection: String,
    },
    /// Use a suspended connection again
    Resume {
        /// Id or name
        connection: String,
    },
    /// End a connection for good
    Disconnect {
        /// Id or name
        connection: String,
    },
    /// Ask the peer whether it is there, and what it offers
    Ping {
        /// Id or name
        connection: String,
    },
}

#[derive(Debug, Clone, Args)]
pub(crate) struct SpawnArgs {
    /// The spoke: id or name of the connection; may be left out if there is one only
    #[arg(long, short)]
    pub(crate) connection: Option<String>,
    /// `file://`, `https://`, `ssh://` or `user@host:path`
    #[arg(long, short)]
    pub(crate) repository: String,
    /// The branch to start from
    #[arg(long, short, default_value = "main")]
    pub(crate) branch: String,
    /// Your name for the task
    #[arg(long, short, default_value = "cli")]
    pub(crate) task: TaskId,
    /// What the agent is for: worker, reviewer, tester
    #[arg(long = "type", default_value = "worker", value_parser = agent_type)]
    pub(crate) agent_type: AgentType,
    /// A runtime of the spoke [default: claude]
    #[arg(long)]
    pub(crate) runtime: Option<RuntimeName>,
    /// Something to do; may be given more than once
    #[arg(long = "item", short = 'i', value_name = "TEXT")]
    pub(crate) items: Vec<String>,
    /// A skill to use; may be given more than once
    #[arg(long = "skill", value_name = "NAME")]
    pub(crate) skills: Vec<String>,
    /// Anything else to tell the agent; for the runtime `shell`, the script
    #[arg(long, conflicts_with = "instructions_file")]
    pub(crate) instructions: Option<String>,
    /// The same from a file; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) instructions_file: Option<PathBuf>,
    /// Longest time for an attempt, in seconds
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
    /// Attempts after the first
    #[arg(long, value_name = "N")]
    pub(crate) retries: Option<u32>,
    /// Stop the agent unless its lease is renewed within so many seconds
    #[arg(long, value_name = "SECONDS")]
    pub(crate) lease: Option<u64>,
    /// Memory limit in MiB
    #[arg(long, value_name = "MIB")]
    pub(crate) memory_mb: Option<u64>,
    /// CPU limit in cores
    #[arg(long, value_name = "CORES")]
    pub(crate) cpus: Option<f64>,
    /// Budget in US dollars
    #[arg(long, value_name = "USD")]
    pub(crate) budget_usd: Option<f64>,
    /// Budget in tokens of every kind
    #[arg(long, value_name = "N")]
    pub(crate) budget_tokens: Option<u64>,
    /// A label to find it by again, as key=value; may be given more than once
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub(crate) labels: Vec<Label>,
    /// What it may reach: none, open, or allow:HOST[,HOST...], each with an optional port
    #[arg(long, value_name = "POLICY", value_parser = network)]
    pub(crate) network: Option<NetworkPolicy>,
    /// What contains it: process, docker
    #[arg(long, value_parser = sandbox)]
    pub(crate) sandbox: Option<SandboxKind>,
    /// A secret of the spoke to give to the agent, by its name there; may be given more than once
    #[arg(long = "secret", value_name = "NAME")]
    pub(crate) secrets: Vec<SecretName>,
    /// The agent's id, a UUID of version 7: asking twice with it is one agent
    #[arg(long)]
    pub(crate) agent_id: Option<AgentId>,
    /// Show its output until it ends; exit code 6 if it failed or was killed
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Push the agent's branch to the repository, once it has completed
    #[arg(long)]
    pub(crate) push: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct PsArgs {
    /// Ended ones too
    #[arg(long, short)]
    pub(crate) all: bool,
    /// Only those at this spoke: id or name of the connection
    #[arg(long, short)]
    pub(crate) connection: Option<String>,
    /// Only those of this task
    #[arg(long, short)]
    pub(crate) task: Option<TaskId>,
    /// Only those with this label
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) label: Option<Label>,
    /// How many at most
    #[arg(long, short, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub(crate) limit: u32,
    /// Only those older than this one
    #[arg(long, value_name = "AGENT")]
    pub(crate) before: Option<AgentId>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct AgentArg {
    /// The agent: its id, or an unmistakable start or end of it
    pub(crate) agent: String,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    pub(crate) agent: AgentArg,
    /// Wait for more until it ends; exit code 6 if it failed or was killed
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Let everything that the agent wrote reach the terminal as it is, not colours alone
    #[arg(long)]
    pub(crate) raw: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ResultArgs {
    #[command(flatten)]
    pub(crate) agent: AgentArg,
    /// Print the patch, as `git am` takes it
    #[arg(long, short, group = "form")]
    pub(crate) patch: bool,
    /// With --patch: print it as it is on a terminal too
    #[arg(long, requires = "patch")]
    pub(crate) raw: bool,
    /// Write the patch to a file
    #[arg(long, short, value_name = "FILE", group = "form")]
    pub(crate) output: Option<PathBuf>,
    /// Apply the patch to the repository that you stand in, by `git am`
    #[arg(long, group = "form")]
    pub(crate) apply: bool,
    /// Write the commits to a file as a git bundle, for `git fetch FILE`
    #[arg(long, value_name = "FILE", group = "form")]
    pub(crate) bundle: Option<PathBuf>,
    /// Fetch the agent's branch into the repository that you stand in, commits as they are
    #[arg(long, group = "form")]
    pub(crate) fetch: bool,
    /// List what was saved of an agent that was killed, or left more than its branch; with another option, take that
    #[arg(long)]
    pub(crate) salvaged: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct KillArgs {
    /// The agent: its id, or an unmistakable start or end of it
    #[arg(required_unless_present = "all", conflicts_with_all = ["all", "hold", "connection", "task", "label"])]
    pub(crate) agent: Option<String>,
    /// Every agent at every spoke
    #[arg(long)]
    pub(crate) all: bool,
    /// With --all: refuse spawns until the spoke's operator releases the hold
    #[arg(long, requires = "all")]
    pub(crate) hold: bool,
    /// With --all: only those at this spoke: id or name of the connection
    #[arg(long, short, requires = "all")]
    pub(crate) connection: Option<String>,
    /// With --all: only those of this task
    #[arg(long, short, requires = "all")]
    pub(crate) task: Option<TaskId>,
    /// With --all: only those with this label
    #[arg(long, requires = "all", value_name = "KEY=VALUE")]
    pub(crate) label: Option<Label>,
    /// For the audit trail
    #[arg(long)]
    pub(crate) reason: Option<String>,
    /// Answer only after the clean-up
    #[arg(long, conflicts_with = "all")]
    pub(crate) wait: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct KillsArgs {
    #[command(subcommand)]
    pub(crate) verb: Option<KillsVerb>,
    /// Settled ones too
    #[arg(long, short)]
    pub(crate) all: bool,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum KillsVerb {
    /// Take a pending kill back
    Cancel {
        /// Its id
        kill: KillIntentId,
    },
}

#[derive(Debug, Clone, Args)]
pub(crate) struct HoldArgs {
    #[command(subcommand)]
    pub(crate) verb: HoldVerb,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum HoldVerb {
    /// Show the holds
    Status,
    /// Release them
    Release {
        /// Only the hold of this connection, by its id at the spoke or its name
        #[arg(long, short)]
        connection: Option<String>,
    },
}

#[derive(Debug, Clone, Args)]
pub(crate) struct AuditArgs {
    #[command(subcommand)]
    pub(crate) verb: Option<AuditVerb>,
    /// Only what came after this entry
    #[arg(long, value_name = "SEQ")]
    pub(crate) after: Option<u64>,
    /// How many entries; the newest, unless --after is given
    #[arg(long, short, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) limit: u32,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum AuditVerb {
    /// Fetch every entry and check its hash here; exit code 7 if the trail is not sound
    Verify {
        /// Heads of this trail that another node has seen: what `mosaic --json audit witnessed` prints there
        #[arg(long, value_name = "FILE")]
        witnessed: Option<PathBuf>,
    },
    /// Show the heads of peers' trails that this node has seen
    Witnessed {
        /// Only this peer's
        instance: Option<InstanceId>,
    },
}

#[derive(Debug, Clone, Args)]
pub(crate) struct TokensArgs {
    #[command(subcommand)]
    pub(crate) verb: TokensVerb,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum TokensVerb {
    /// Make a token; it is shown this once
    Create {
        /// Its name, for the audit trail
        name: String,
        /// What it allows
        #[arg(long, value_enum, default_value = "operator")]
        role: RoleArg,
    },
    /// List them
    List,
    /// Delete one
    Delete {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleArg {
    /// Reads
    Viewer,
    /// Spawns and kills agents
    Operator,
    /// Manages connections and tokens
    Admin,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Viewer => Self::Viewer,
            RoleArg::Operator => Self::Operator,
            RoleArg::Admin => Self::Admin,
        }
    }
}

/// Reads a value as the API's JSON writes it.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned()))
        .map_err(|error| error.to_string())
}

fn sandbox(text: &str) -> Result<SandboxKind, String> {
    word(text)
}

fn network(text: &str) -> Result<NetworkPolicy, String> {
    let Some(list) = text.strip_prefix("allow:") else {
        return word(text).map_err(|_| "not none, open or allow:HOST[,HOST...]".to_owned());
    };
    let policy = NetworkPolicy::Allow(list.split(',').map(str::to_owned).collect());
    policy.check().map(|()| policy)
}

fn agent_type(text: &str) -> Result<AgentType, String> {
    word(text)
}

#[cfg(test)]
mod tests;
