//! The proxy: one thread that accepts, one for each connection, never more than a fixed number.

use std::{
    io::{self, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    EgressRules, Refusals,
    destination::{self, NoWay},
    head::{Fault, Kind, MAX_HEAD_BYTES, Request, end_of_head},
    refusals::Teller,
    relay::{Flow, relay},
    socket,
};
use crate::sandbox::mask::Finder;

/// How many connections an agent may have at once. One more is answered with 503.
pub(super) const MAX_CONNECTIONS: usize = 128;
/// For how long a head may take to come.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// For how long connecting may take, over all addresses of a name.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// For how long an answer of ours may take to be taken.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// For how long nothing may move. A model may think for minutes before it answers.
pub(super) const IDLE: Duration = Duration::from_secs(15 * 60);
/// Enough for the system's resolver, and little enough for many.
pub(super) const STACK_BYTES: usize = 512 << 10;
/// For how long nothing is accepted after accepting failed: descriptors or memory have run out.
const PAUSE: Duration = Duration::from_millis(100);

/// A proxy that runs until its process ends. Dropping it removes the socket, so that nobody new comes.
#[derive(Debug)]
pub(in crate::sandbox) struct Proxy {
    agent_dir: PathBuf,
}

impl Proxy {
    /// Listens and begins to serve. What is told of refusals is without the secrets that `finder` knows.
    pub(in crate::sandbox) fn start(
        agent_dir: &Path,
        rules: EgressRules,
        finder: Option<Arc<Finder>>,
    ) -> io::Result<(Self, Refusals)> {
        let listener = socket::listen(agent_dir)?;
        let proxy = Self {
            agent_dir: agent_dir.to_owned(),
        };
        let (teller, refusals) = Refusals::channel(finder)?;
        let service = Arc::new(Service { rules, teller });
        thread::Builder::new()
            .name("egress".into())
            .stack_size(STACK_BYTES)
            .spawn(move || accept(&listener, &service))?;
        Ok((proxy, refusals))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = socket::remove(&self.agent_dir);
    }
}

/// Room for one connection, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicUsize>);

impl Place {
    /// One of `most` places, if one is free.
    pub(super) fn take(taken: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        if taken.fetch_add(1, Ordering::SeqCst) < most {
            Some(Self(Arc::clone(taken)))
        } else {
            taken.fetch_sub(1, Ordering::SeqCst);
            None
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Debug)]
struct Service {
    rules: EgressRules,
    teller: Teller,
}

fn accept(listener: &UnixListener, service: &Arc<Service>) {
    let taken = Arc::default();
    loop {
        let Ok((client, _)) = listener.accept() else {
            thread::sleep(PAUSE);
            continue;
        };
        let _ = client.set_write_timeout(Some(ANSWER_WITHIN));
        let Some(place) = Place::take(&taken, MAX_CONNECTIONS) else {
            turn_away(&client);
            continue;
        };
        let service = Arc::clone(service);
        let copy = client.try_clone();
        let served = thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let _place = place;
                service.serve(client);
            });
        if served.is_err()
            && let Ok(client) = copy
        {
            turn_away(&client);
        }
    }
}

/// Without waiting for whoever does not listen: this is the thread that accepts.
fn turn_away(client: &UnixStream) {
    let _ = client.set_nonblocking(true);
    let _ = (&*client).write_all(Fault::Busy.answer().as_bytes());
}

impl Service {
    fn serve(&self, client: UnixStream) {
        if let Err(fault) = self.attend(&client) {
            let _ = (&client).write_all(fault.answer().as_bytes());
        }
    }

    /// Serves one request, and then the connection is over.
    fn attend(&self, client: &UnixStream) -> Result<(), Fault> {
        let (head, rest) = read_head(client)?;
        let request = Request::parse(&head)?;
        let connected =
            destination::connect(&self.rules, &request.host, request.port, CONNECT_WITHIN);
        let server = connected.map_err(|reason| {
            if matches!(reason, NoWay::NotAllowed | NoWay::NotPublic) {
                let is_private = reason == NoWay::NotPublic;
                // Before the answer: what the agent knows is on its way to be told.
                self.teller.tell(&request.named, request.port, is_private);
            }
            reason.fault()
        })?;
        let _ = server.set_nodelay(true);
        let (there, back) = match request.kind {
            Kind::Tunnel => (
                Flow::starting_with(rest, None),
                Flow::starting_with(
                    b"HTTP/1.1 200 Connection established\r\n\r\n".to_vec(),
                    None,
                ),
            ),
            Kind::Forward {
                mut head,
                body_bytes,
            } => {
                let early = usize::try_from(body_bytes)
                    .unwrap_or(usize::MAX)
                    .min(rest.len());
                head.extend_from_slice(rest.get(..early).unwrap_or_default());
                let left = body_bytes - early as u64;
                (Flow::starting_with(head, Some(left)), Flow::empty())
            }
        };
        // Who is cut off for idling needs no answer.
        let _ = relay(client, &server, there, back, IDLE);
        Ok(())
    }
}

/// Reads up to the end of a head; also gives what came behind it.
fn read_head(mut client: &UnixStream) -> Result<(Vec<u8>, Vec<u8>), Fault> {
    let deadline = Instant::now() + HEAD_WITHIN;
    let mut held = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        if let Some(end) = end_of_head(&held) {
            let rest = held.split_off(end);
            return Ok((held, rest));
        }
        if held.len() >= MAX_HEAD_BYTES {
            return Err(Fault::HeadTooLarge);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Fault::RequestTimeout);
        }
        client
            .set_read_timeout(Some(left))
            .map_err(|_| Fault::BadRequest)?;
        match client.read(&mut chunk) {
            Ok(0) => return Err(Fault::BadRequest),
            Ok(count) => held.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(Fault::RequestTimeout);
            }
            Err(_) => return Err(Fault::BadRequest),
        }
    }
}

#[cfg(test)]
mod tests;
