//! Watching: an agent's events, without a gap and without a repeat, across cuts between hub and spoke.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt, stream, stream::BoxStream};
use mosaic_node::PeerError;
use mosaic_types::{
    AgentId, ErrorCode, Refusal,
    agent::AgentStatus,
    command::{AgentRef, CommandType, WatchPayload},
    connection::{Connection, ConnectionState},
    event::{AgentEvent, EventCursor, EventKind},
};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::{ASK_LIMIT, Failure, Lane, Routing, require_active};

/// First pause before a broken stream is opened again; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a watcher gets: the next event, or why the stream is over without the agent's end. Nothing follows that.
type Watched = Result<AgentEvent, Refusal>;

type SpokeStream = BoxStream<'static, Result<Vec<AgentEvent>, PeerError>>;

/// What happens when a spoke's stream gives nothing more.
enum Next {
    Again,
    End,
    Broken(Refusal),
}

struct Watch {
    routing: Routing,
    connection: Arc<Connection>,
    agent: AgentId,
    follow: bool,
    after: Option<EventCursor>,
    source: Option<SpokeStream>,
    state: watch::Receiver<ConnectionState>,
    /// Events of the batch at hand; a batch is bounded by the peer client.
    ready: VecDeque<AgentEvent>,
    /// Whether the stream at hand has given anything.
    fruitful: bool,
    pause: Pause,
    /// Whether the agent's end was told. Word of its clean-up may follow.
    ended: bool,
    over: bool,
    _place: OwnedSemaphorePermit,
}

/// The pauses between attempts: each twice the one before, until there was something new.
#[derive(Debug)]
struct Pause(Duration);

impl Pause {
    fn take(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST_PAUSE);
        pause
    }

    /// A sign of life alone is no reason for haste: only what is new is.
    fn heard(&mut self, anything_new: bool) {
        if anything_new {
            self.0 = FIRST_PAUSE;
        }
    }
}

impl Routing {
    /// Opens an agent's events after `after`, or all of them. With `follow` the stream goes on until the last event of
    /// the agent, which is that of its clean-up, and survives cuts; without, it ends when what is there was told.
    ///
    /// # Errors
    /// `unknown-agent`, `connection-not-active`, `peer-unreachable`, or the spoke's refusal.
    pub async fn watch(
        &self,
        agent: AgentId,
        after: Option<EventCursor>,
        follow: bool,
    ) -> Result<impl Stream<Item = Watched> + Send + use<>, Refusal> {
        let connection = self.locate(agent).await?;
        require_active(&connection)?;
        let place = self
            .inner
            .lanes
            .enter(connection.connection_id, Lane::Stream)?;
        let state = self
            .node()
            .connections()
            .subscribe(connection.connection_id);
        let mut watch = Watch {
            routing: self.clone(),
            connection,
            agent,
            follow,
            after,
            source: None,
            state,
            ready: VecDeque::new(),
            fruitful: false,
            pause: Pause(FIRST_PAUSE),
            ended: false,
            over: false,
            _place: place,
        };
        watch.open().await?;
        Ok(stream::unfold(watch, async |mut watch| {
            let item = watch.next().await?;
            Some((item, watch))
        }))
    }
}

impl Watch {
    async fn open(&mut self) -> Result<(), Failure> {
        let payload = WatchPayload {
            agent_id: self.agent,
            after: self.after,
            no_follow: !self.follow,
        };
        let routing = &self.routing;
        let id = self.connection.connection_id;
        let first = routing.kills_first(id, CommandType::AgentWatch).await;
        first.map_err(Failure::unsent)?;
        let opened = routing
            .node()
            .peers()
            .watch(&self.connection, &payload)
            .await;
        if matches!(opened, Ok(_) | Err(PeerError::Refused(_))) {
            routing.heard(id);
        }
        self.source = Some(opened?);
        self.fruitful = false;
        Ok(())
    }

    async fn next(&mut self) -> Option<Watched> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(self.pass(event)));
            }
            if self.over {
                return None;
            }
            let batch = match &mut self.source {
                Some(source) => tokio::select! {
                    biased;
                    // F15: what is suspended hears no more, whatever the peer still sends.
                    _ = self.state.wait_for(|state| *state != ConnectionState::Active) => None,
                    batch = source.next() => batch,
                },
                None => None,
            };
            match batch {
                Some(Ok(events)) => {
                    let anything_new = self.take(events);
                    self.pause.heard(anything_new);
                }
                Some(Err(error)) => {
                    self.source = None;
                    match self.after_failure(error.into()).await {
                        Next::Again => {}
                        Next::End => self.over = true,
                        Next::Broken(refusal) => return Some(self.broken(refusal)),
                    }
                }
                None => match self.after_end().await {
                    Next::Again => {}
                    Next::End => self.over = true,
                    Next::Broken(refusal) => return Some(self.broken(refusal)),
                },
            }
        }
    }

    fn broken(&mut self, refusal: Refusal) -> Watched {
        self.over = true;
        Err(refusal)
    }

    /// Queues what is new, and tells whether anything is. An event of another agent, or one seen before, is the
    /// peer's fault and is left out.
    fn take(&mut self, events: Vec<AgentEvent>) -> bool {
        let before = self.after;
        for event in events {
            let forward = self.after.is_none_or(|after| moves_on(after, event.id));
            let about_another = match &event.kind {
                EventKind::Status { status } => status.agent_id != self.agent,
                EventKind::Output { .. }
                | EventKind::OutputTruncated { .. }
                | EventKind::EgressRefused { .. } => false,
            };
            if event.agent_id != self.agent || about_another || !forward {
                tracing::warn!(agent = %self.agent, id = %event.id, "a spoke sent an event out of turn");
                continue;
            }
            self.after = Some(event.id);
            self.fruitful = true;
            if let EventKind::Status { status } = &event.kind
                && is_ended(status)
            {
                self.ended = true;
            }
            self.ready.push_back(event);
        }
        self.after != before
    }

    fn pass(&self, mut event: AgentEvent) -> AgentEvent {
        if let EventKind::Status { status } = &mut event.kind {
            let taken = self
                .routing
                .take_in(self.connection.connection_id, status.as_ref().clone());
            **status = taken;
        }
        event
    }

    /// A spoke ends a stream when all was told, and one of an older version when it shuts down itself as well: ask which.
    async fn after_end(&mut self) -> Next {
        let opened = self.source.take().is_some();
        if let Err(refusal) = self.still_active() {
            return Next::Broken(refusal);
        }
        if !self.follow || self.ended {
            return Next::End;
        }
        if opened && !self.fruitful {
            let payload = AgentRef {
                agent_id: self.agent,
            };
            let asked: Result<AgentStatus, _> = self
                .routing
                .ask(&self.connection, CommandType::AgentStatus, &payload)
                .await;
            match asked {
                Ok(status) if is_ended(&status) => return Next::End,
                Ok(_) => {}
                Err(error) => return self.after_failure(error).await,
            }
        }
        self.reopen().await
    }

    async fn after_failure(&mut self, failure: Failure) -> Next {
        if !self.follow || ends_watch(&failure) {
            return Next::Broken(failure.refusal);
        }
        let why = &failure.refusal;
        tracing::info!(agent = %self.agent, spoke = %self.connection.name, %why, "a stream broke");
        self.reopen().await
    }

    /// Looks the connection up again: it may have another URL by now, or be suspended.
    fn still_active(&mut self) -> Result<(), Refusal> {
        self.connection = self.routing.connection(self.connection.connection_id)?;
        require_active(&self.connection)
    }

    async fn reopen(&mut self) -> Next {
        tokio::time::sleep(self.pause.take()).await;
        if let Err(refusal) = self.still_active() {
            return Next::Broken(refusal);
        }
        match tokio::time::timeout(ASK_LIMIT, self.open()).await {
            Ok(Err(failure)) if ends_watch(&failure) => Next::Broken(failure.refusal),
            // Still cut: the next turn finds no stream and comes back here.
            Ok(_) | Err(_) => Next::Again,
        }
    }
}

/// Whether `next` is ahead of `after` in one of the two counts, neither of which goes back.
fn moves_on(after: EventCursor, next: EventCursor) -> bool {
    next.moves >= after.moves && next.output >= after.output && next != after
}

fn is_ended(status: &AgentStatus) -> bool {
    status
        .state
        .known()
        .is_some_and(|state| state.is_terminal())
}

/// Whether a failure will not pass by itself.
fn ends_watch(failure: &Failure) -> bool {
    failure.signed && !failure.refusal.retryable
        || failure.refusal.code == ErrorCode::ConnectionNotActive
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_shortens_the_pause() {
        let mut pause = Pause(FIRST_PAUSE);
        assert_eq!(pause.take(), FIRST_PAUSE);
        pause.heard(false);
        assert_eq!(pause.take(), FIRST_PAUSE * 2);
        for _ in 0..20 {
            pause.take();
        }
        assert_eq!(pause.take(), LONGEST_PAUSE);
        pause.heard(true);
        assert_eq!(pause.take(), FIRST_PAUSE);
    }
}
