//! An agent's events, resumed after a cut where they left off.

use std::time::Duration;

use eventsource_stream::{Event, EventStreamError, Eventsource};
use futures_util::{StreamExt, stream::BoxStream};
use mosaic_types::{
    AgentId,
    agent::AgentStatus,
    error::Problem,
    event::{AgentEvent, EventCursor, EventKind},
};

use super::Client;
use crate::error::CliError;

/// How often in a row a cut stream is opened again without anything new.
const ATTEMPTS: u32 = 8;
/// First pause before that; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

type Source = BoxStream<'static, Result<Event, EventStreamError<reqwest::Error>>>;

/// An agent's events, one after the other.
pub(crate) struct EventFeed {
    client: Client,
    agent: AgentId,
    follow: bool,
    after: Option<EventCursor>,
    source: Option<Source>,
    failures: u32,
    ended: Option<Box<AgentStatus>>,
}

impl EventFeed {
    /// Opens the stream from its start.
    pub(crate) async fn open(
        client: Client,
        agent: AgentId,
        follow: bool,
    ) -> Result<Self, CliError> {
        let mut feed = Self {
            client,
            agent,
            follow,
            after: None,
            source: None,
            failures: 0,
            ended: None,
        };
        feed.connect().await?;
        Ok(feed)
    }

    /// The status with which the agent ended, once the stream has told it.
    pub(crate) fn ended(&self) -> Option<&AgentStatus> {
        self.ended.as_deref()
    }

    async fn connect(&mut self) -> Result<(), CliError> {
        let response = self
            .client
            .open_events(self.agent, self.after, self.follow)
            .await?;
        self.source = Some(response.bytes_stream().eventsource().boxed());
        Ok(())
    }

    /// The next event; `None` when the stream is over.
    pub(crate) async fn next(&mut self) -> Result<Option<AgentEvent>, CliError> {
        loop {
            if self.ended.is_some() {
                return Ok(None);
            }
            let item = match &mut self.source {
                Some(source) => source.next().await,
                None => None,
            };
            match item {
                Some(Ok(event)) if event.event == "error" => {
                    let problem: Problem = self.read(&event.data)?;
                    return Err(CliError::Refused(Box::new(problem)));
                }
                Some(Ok(event)) => {
                    let event: AgentEvent = self.read(&event.data)?;
                    self.after = Some(event.id);
                    self.failures = 0;
                    if let EventKind::Status { status } = &event.kind
                        && status
                            .state
                            .known()
                            .is_some_and(|state| state.is_terminal())
                    {
                        self.ended = Some(status.clone());
                    }
                    return Ok(Some(event));
                }
                None if !self.follow && self.source.is_some() => return Ok(None),
                Some(Err(_)) | None => {
                    // Only after a stream that gave nothing: one that was cut has more to give.
                    let fruitless = self.source.take().is_some() && self.failures > 0;
                    if fruitless && self.has_ended().await? {
                        return Ok(None);
                    }
                    self.reconnect().await?;
                }
            }
        }
    }

    fn read<T: serde::de::DeserializeOwned>(&self, data: &str) -> Result<T, CliError> {
        serde_json::from_str(data).map_err(|error| self.client.malformed(error.to_string()))
    }

    /// Whether there was nothing more to tell: a stream that resumes after the agent's end is empty.
    async fn has_ended(&mut self) -> Result<bool, CliError> {
        match self.client.status(self.agent).await {
            Ok(status)
                if status
                    .state
                    .known()
                    .is_some_and(|state| state.is_terminal()) =>
            {
                self.ended = Some(Box::new(status));
                Ok(true)
            }
            Ok(_) | Err(CliError::Unreachable { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn reconnect(&mut self) -> Result<(), CliError> {
        self.failures += 1;
        if self.failures > ATTEMPTS {
            return Err(CliError::StreamLost {
                url: self.client.url().to_owned(),
            });
        }
        let pause = FIRST_PAUSE * 2_u32.saturating_pow(self.failures - 1);
        tokio::time::sleep(pause.min(LONGEST_PAUSE)).await;
        match self.connect().await {
            Ok(()) | Err(CliError::Unreachable { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
