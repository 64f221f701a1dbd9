//! The engine's API, each call under a time limit (A29). What it answers is a hint: nothing is taken for dead because
//! an engine says so (A30).

use std::{path::PathBuf, time::Duration};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    errors::Error,
    models::{ContainerCreateBody, ContainerInspectResponse, SystemInfoCgroupDriverEnum},
    query_parameters::{
        CreateContainerOptionsBuilder, InspectContainerOptions, KillContainerOptionsBuilder,
        ListContainersOptionsBuilder, RemoveContainerOptionsBuilder, RenameContainerOptionsBuilder,
        StartContainerOptions,
    },
};
use thiserror::Error;
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};

/// The most that is repeated of what an engine says, in characters.
const MAX_MESSAGE_CHARS: usize = 500;
/// How many containers are removed at a time. An engine that is asked for a hundred at once, after a kill-all, may come to
/// some of them only when their time is over.
const REMOVALS: usize = 8;
/// How many containers are made and started at a time. Each has its time limit from there on, so that an engine that is
/// asked for hundreds at once gets to every one of them in its time.
const STARTS: usize = 8;
/// How long the engine may take to start a container, in calls.
const START_FACTOR: u32 = 4;

/// What an engine did not do.
#[derive(Debug, Error)]
pub enum EngineError {
    /// It did not answer in time.
    #[error("the engine took longer than {limit:?} to {operation}")]
    TimedOut {
        /// What was asked.
        operation: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// It cannot be reached, or its answer cannot be understood.
    #[error("the engine cannot be asked to {operation}")]
    Unreachable {
        /// What was to be asked.
        operation: &'static str,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// It would not.
    #[error("the engine would not {operation}: {message} ({status})")]
    Refused {
        /// What was asked.
        operation: &'static str,
        /// Its status code.
        status: u16,
        /// Its words.
        message: String,
    },
    /// It cannot make what is asked for, now or later: the image is not there, say.
    #[error("the engine cannot make such a container: {message} ({status})")]
    Unfit {
        /// Its status code.
        status: u16,
        /// Its words.
        message: String,
    },
    /// It maps users: an agent would not be the owner of its own files.
    #[error(
        "an engine that maps users (`{how}`) keeps agents from their files and is not supported"
    )]
    MapsUsers {
        /// The security option, as the engine names it.
        how: &'static str,
    },
}

impl EngineError {
    /// Whether the same call may go otherwise later.
    #[must_use]
    pub fn retryable(&self) -> bool {
        !matches!(self, Self::Unfit { .. } | Self::MapsUsers { .. })
    }

    /// A refusal of what is asked for, and not of the moment.
    fn unfit(self) -> Self {
        match self {
            Self::Refused {
                status: status @ (400 | 404),
                message,
                ..
            } => Self::Unfit { status, message },
            other => other,
        }
    }

    /// Whether what was asked for may have been done all the same (A1).
    pub(super) fn is_doubtful(&self) -> bool {
        match self {
            Self::TimedOut { .. } | Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => *status >= 500,
            Self::Unfit { .. } | Self::MapsUsers { .. } => false,
        }
    }

    /// The status code of a refusal.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } | Self::Unfit { status, .. } => Some(*status),
            Self::TimedOut { .. } | Self::Unreachable { .. } | Self::MapsUsers { .. } => None,
        }
    }
}

/// What does not change while an engine runs.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// Its version.
    pub(super) version: String,
    /// Whether it makes groups where it is told to, as a path.
    pub(super) cgroupfs: bool,
    /// The security option by which it maps users, if it does.
    maps_users: Option<&'static str>,
}

/// The security options of an engine whose uids are not the host's.
const MAPPING: [&str; 2] = ["userns", "rootless"];

/// Which of them the engine has. They are told as `name=userns`, with more behind a comma or not.
fn maps_users(options: &[String]) -> Option<&'static str> {
    let names: Vec<&str> = options
        .iter()
        .flat_map(|option| option.split(','))
        .filter_map(|part| part.strip_prefix("name="))
        .collect();
    MAPPING.into_iter().find(|mapping| names.contains(mapping))
}

/// A container, in what matters to us.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) id: String,
    pub(super) labels: std::collections::HashMap<String, String>,
}

/// An image, in what matters to us.
#[derive(Debug, Clone)]
pub(super) struct Image {
    /// Changes with its content.
    pub(super) id: String,
    /// Where it wants volumes: places that an agent could write to without a bound.
    pub(super) volumes: Vec<String>,
}

/// A client that connects when it is needed, and again when the engine was away.
#[derive(Debug)]
pub(super) struct Engine {
    socket: PathBuf,
    limit: Duration,
    client: OnceCell<(Docker, Facts)>,
    removals: Semaphore,
    starts: Semaphore,
}

impl Engine {
    pub(super) fn new(socket: PathBuf, limit: Duration) -> Self {
        Self {
            socket,
            limit,
            client: OnceCell::new(),
            removals: Semaphore::new(REMOVALS),
            starts: Semaphore::new(STARTS),
        }
    }

    /// Waits until few enough others are made and started. `None` never comes.
    pub(super) async fn turn_to_start(&self) -> Option<SemaphorePermit<'_>> {
        self.starts.acquire().await.ok()
    }

    /// What is known of the engine; asks it if need be.
    pub(super) async fn facts(&self) -> Result<&Facts, EngineError> {
        self.client().await.map(|(_, facts)| facts)
    }

    async fn client(&self) -> Result<&(Docker, Facts), EngineError> {
        // One connects and the others wait for it: each within the limit.
        let connected = self.client.get_or_try_init(|| self.connect());
        match tokio::time::timeout(self.limit, connected).await {
            Ok(connected) => connected,
            Err(_) => Err(EngineError::TimedOut {
                operation: "say what it is",
                limit: self.limit,
            }),
        }
    }

    async fn connect(&self) -> Result<(Docker, Facts), EngineError> {
        let socket = self.socket.to_string_lossy();
        // The longest that any call has; each has its own below that.
        let longest = self.limit * START_FACTOR;
        let connect = async {
            // The version is agreed on: 1.41 (Engine 20.10) is the oldest that is tried.
            let docker =
                Docker::connect_with_unix(&socket, longest.as_secs(), API_DEFAULT_VERSION)?
                    .negotiate_version()
                    .await?;
            let info = docker.info().await?;
            let cgroupfs = info.cgroup_driver == Some(SystemInfoCgroupDriverEnum::CGROUPFS);
            Ok((
                docker,
                Facts {
                    version: info.server_version.unwrap_or_default(),
                    cgroupfs,
                    maps_users: maps_users(&info.security_options.unwrap_or_default()),
                },
            ))
        };
        within(self.limit, "say what it is", connect).await
    }

    /// An image by its name.
    pub(super) async fn image(&self, name: &str) -> Result<Image, EngineError> {
        let (docker, _) = self.client().await?;
        let found = within(self.limit, "show an image", docker.inspect_image(name)).await;
        let found = found.map_err(EngineError::unfit)?;
        let volumes = found.config.and_then(|config| config.volumes);
        Ok(Image {
            id: found.id.unwrap_or_default(),
            volumes: volumes.unwrap_or_default(),
        })
    }

    /// Makes a container; its id. An engine that cannot do for agents is not asked.
    pub(super) async fn create(
        &self,
        name: &str,
        body: ContainerCreateBody,
    ) -> Result<String, EngineError> {
        let (docker, facts) = self.client().await?;
        if let Some(how) = facts.maps_users {
            return Err(EngineError::MapsUsers { how });
        }
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        let create = docker.create_container(Some(options), body);
        let made = within(self.limit * START_FACTOR, "make a container", create).await;
        made.map(|made| made.id).map_err(EngineError::unfit)
    }

    pub(super) async fn start(&self, id: &str) -> Result<(), EngineError> {
        let (docker, _) = self.client().await?;
        let start = docker.start_container(id, None::<StartContainerOptions>);
        within(self.limit * START_FACTOR, "start a container", start).await
    }

    /// A container by its name; `None` if there is none.
    pub(super) async fn inspect(
        &self,
        name: &str,
    ) -> Result<Option<ContainerInspectResponse>, EngineError> {
        let (docker, _) = self.client().await?;
        let inspect = docker.inspect_container(name, None::<InspectContainerOptions>);
        unless_gone(within(self.limit, "show a container", inspect).await)
    }

    /// The id of the container of this name, if there is one and it carries this label: other spokes of this engine may
    /// have an agent of the same id, and its container is not ours to touch (A12).
    pub(super) async fn owned(
        &self,
        name: &str,
        (label, value): (&str, &str),
    ) -> Result<Option<String>, EngineError> {
        let Some(found) = self.inspect(name).await? else {
            return Ok(None);
        };
        let labels = found.config.and_then(|config| config.labels);
        let is_owned = labels.is_some_and(|labels| labels.get(label).is_some_and(|is| is == value));
        Ok(found.id.filter(|_| is_owned))
    }

    /// Names a container. One that is gone is no error.
    pub(super) async fn rename(&self, id: &str, name: &str) -> Result<(), EngineError> {
        let (docker, _) = self.client().await?;
        let options = RenameContainerOptionsBuilder::new().name(name).build();
        let rename = docker.rename_container(id, options);
        unless_gone(within(self.limit, "rename a container", rename).await).map(drop)
    }

    /// Kills a container. One that is gone or dead is no error.
    pub(super) async fn kill(&self, name: &str) -> Result<(), EngineError> {
        let (docker, _) = self.client().await?;
        let options = KillContainerOptionsBuilder::new().signal("KILL").build();
        let kill = docker.kill_container(name, Some(options));
        match within(self.limit, "kill a container", kill).await {
            Err(error) if matches!(error.status(), Some(404 | 409)) => Ok(()),
            other => other,
        }
    }

    /// Removes a container with what is its own, killing it if need be. One that is gone is no error. Waits for its turn;
    /// the time limit counts from there.
    pub(super) async fn remove(&self, name: &str) -> Result<(), EngineError> {
        // Never closed.
        let _turn = self.removals.acquire().await;
        let (docker, _) = self.client().await?;
        let options = RemoveContainerOptionsBuilder::new()
            .force(true)
            .v(true)
            .build();
        let remove = docker.remove_container(name, Some(options));
        match unless_gone(within(self.limit, "remove a container", remove).await) {
            // Somebody else removes it right now.
            Err(error) if error.status() == Some(409) => self.until_removed(name).await,
            other => other.map(drop),
        }
    }

    /// Waits until a container is gone that somebody else removes.
    async fn until_removed(&self, name: &str) -> Result<(), EngineError> {
        const LOOK_AGAIN: Duration = Duration::from_millis(100);
        let looking = async {
            while self.inspect(name).await?.is_some() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Ok(())
        };
        tokio::time::timeout(self.limit, looking)
            .await
            .unwrap_or(Err(EngineError::TimedOut {
                operation: "remove a container",
                limit: self.limit,
            }))
    }

    /// Every container with this label, dead ones as well.
    pub(super) async fn labelled(&self, label: &str) -> Result<Vec<Seen>, EngineError> {
        let (docker, _) = self.client().await?;
        let filters = [("label".to_owned(), vec![label.to_owned()])].into();
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        let list = docker.list_containers(Some(options));
        let found = within(self.limit, "list containers", list).await?;
        Ok(found
            .into_iter()
            .filter_map(|summary| {
                Some(Seen {
                    id: summary.id?,
                    labels: summary.labels.unwrap_or_default(),
                })
            })
            .collect())
    }
}

async fn within<T>(
    limit: Duration,
    operation: &'static str,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, EngineError> {
    match tokio::time::timeout(limit, call).await {
        Err(_) | Ok(Err(Error::RequestTimeoutError)) => {
            Err(EngineError::TimedOut { operation, limit })
        }
        Ok(Err(Error::DockerResponseServerError {
            status_code,
            message,
        })) => Err(EngineError::Refused {
            operation,
            status: status_code,
            message: message.chars().take(MAX_MESSAGE_CHARS).collect(),
        }),
        Ok(Err(source)) => Err(EngineError::Unreachable {
            operation,
            source: Box::new(source),
        }),
        Ok(Ok(value)) => Ok(value),
    }
}

fn unless_gone<T>(answer: Result<T, EngineError>) -> Result<Option<T>, EngineError> {
    match answer {
        Err(error) if error.status() == Some(404) => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::maps_users;

    #[test]
    fn engines_that_map_users_say_so_among_their_security_options() {
        let options = |told: &[&str]| told.iter().map(ToString::to_string).collect::<Vec<_>>();
        let usual = ["name=apparmor", "name=seccomp,profile=default"];
        assert_eq!(maps_users(&options(&usual)), None);
        assert_eq!(maps_users(&options(&["name=cgroupns"])), None);
        for (told, how) in [("name=userns", "userns"), ("name=rootless", "rootless")] {
            let all = [usual.as_slice(), &[told]].concat();
            assert_eq!(maps_users(&options(&all)), Some(how));
        }
        assert_eq!(
            maps_users(&options(&["name=seccomp,profile=userns"])),
            None,
            "a profile's name is none of its own"
        );
    }
}
