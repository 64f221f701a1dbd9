//! Bytes both ways between two sockets, by one thread, until both ways are at their end or nothing moves for too long.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown},
};

const BUFFER_BYTES: usize = 16 << 10;
/// For how long nothing may move once the client says nothing more. It may wait for its answer, or be gone: of a TCP
/// connection that cannot be told.
const IDLE_BEHIND_ITS_END: Duration = Duration::from_secs(60);
const NO_BYTES: &[u8] = &[];

/// One way: what was read and not yet written, and how much may still be read.
#[derive(Debug)]
pub(super) struct Flow {
    held: Vec<u8>,
    from: usize,
    may_read: Option<u64>,
    over: bool,
    end_told: bool,
}

impl Flow {
    /// A flow that begins with these bytes, and takes at most so many more.
    pub(super) fn starting_with(held: Vec<u8>, may_read: Option<u64>) -> Self {
        Self {
            held,
            from: 0,
            may_read,
            over: false,
            end_told: false,
        }
    }

    pub(super) fn empty() -> Self {
        Self::starting_with(Vec::new(), None)
    }

    fn rest(&self) -> &[u8] {
        self.held.get(self.from..).unwrap_or(NO_BYTES)
    }

    /// What it waits for: to read at one end, or to write at the other.
    fn wants(&self) -> (PollFlags, PollFlags) {
        match (self.over, self.rest().is_empty()) {
            (true, _) => (PollFlags::empty(), PollFlags::empty()),
            (false, true) => (PollFlags::IN, PollFlags::empty()),
            (false, false) => (PollFlags::empty(), PollFlags::OUT),
        }
    }

    /// Reads or writes as much as goes without waiting.
    fn step(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
        if self.over {
            return;
        }
        if self.rest().is_empty() {
            self.fill(from);
        }
        if !self.over && !self.rest().is_empty() {
            match send(to, self.rest(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => self.from += count,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                // Nobody listens any more: what comes the other way may still be wanted.
                Err(_) => self.over = true,
            }
        }
        if self.may_read == Some(0) && self.rest().is_empty() {
            self.over = true;
        }
    }

    /// Passes the end on, once. A request of known length has no end of its own: its answer is to come.
    fn tell_end(&mut self, to: BorrowedFd<'_>) {
        if self.over && self.may_read.is_none() && !std::mem::replace(&mut self.end_told, true) {
            let _ = shutdown(to, Shutdown::Write);
        }
    }

    fn fill(&mut self, from: BorrowedFd<'_>) {
        let most = self
            .may_read
            .map_or(BUFFER_BYTES, |left| {
                usize::try_from(left).unwrap_or(BUFFER_BYTES)
            })
            .min(BUFFER_BYTES);
        if most == 0 {
            return;
        }
        self.from = 0;
        self.held.resize(most, 0);
        match recv(from, &mut *self.held, RecvFlags::DONTWAIT) {
            Ok((count, _)) if count > 0 => {
                self.held.truncate(count);
                if let Some(left) = &mut self.may_read {
                    *left -= count as u64;
                }
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => self.held.clear(),
            // The end, or as good as the end.
            Ok(_) | Err(_) => {
                self.held.clear();
                self.over = true;
            }
        }
    }
}

/// What is known of the client's end.
#[derive(Debug, Default)]
struct Client {
    /// It says nothing more.
    has_ended: bool,
    /// Nor does it listen.
    is_gone: bool,
}

impl Client {
    /// What to look for beside what the flows want. Looked for again, what is known would be told at once for ever.
    fn news(&self) -> Option<PollFlags> {
        match (self.is_gone, self.has_ended) {
            (true, _) => None,
            // That it is gone is told to whoever looks at all.
            (false, true) => Some(PollFlags::empty()),
            (false, false) => Some(PollFlags::RDHUP),
        }
    }

    fn learn(&mut self, told: PollFlags) {
        self.is_gone |= told.intersects(PollFlags::HUP | PollFlags::ERR);
        self.has_ended |= self.is_gone || told.contains(PollFlags::RDHUP);
    }

    /// For how long nothing may move.
    fn patience(&self, there: &Flow, idle: Duration) -> Duration {
        if self.is_gone || (self.has_ended && there.over) {
            idle.min(IDLE_BEHIND_ITS_END)
        } else {
            idle
        }
    }
}

/// Moves bytes until both ways are over: `there` from `near`, which is the client, to `far`, `back` the other way. Of a
/// client that is gone only what it said is still passed on.
///
/// # Errors
/// `TimedOut` if nothing moved for as long as `idle`.
pub(super) fn relay(
    near: &impl AsFd,
    far: &impl AsFd,
    mut there: Flow,
    mut back: Flow,
    idle: Duration,
) -> io::Result<()> {
    let (near, far) = (near.as_fd(), far.as_fd());
    let mut client = Client::default();
    loop {
        there.tell_end(far);
        back.tell_end(near);
        if there.over && back.over {
            return Ok(());
        }
        let told = wait(near, far, (&there, &back), &client, idle)?;
        client.learn(told);
        // Whatever comes back comes to nobody.
        back.over |= client.is_gone;
        there.step(near, far);
        back.step(far, near);
    }
}

/// Waits until something can move, or there is news of the client, and says what.
fn wait(
    near: BorrowedFd<'_>,
    far: BorrowedFd<'_>,
    (there, back): (&Flow, &Flow),
    client: &Client,
    idle: Duration,
) -> io::Result<PollFlags> {
    let (from_near, to_far) = there.wants();
    let (from_far, to_near) = back.wants();
    let (of_near, of_far) = (from_near | to_near, from_far | to_far);
    let mut fds = Vec::with_capacity(2);
    if !of_far.is_empty() {
        fds.push(PollFd::from_borrowed_fd(far, of_far));
    }
    let looks_near = client.news().is_some() || !of_near.is_empty();
    if looks_near {
        let news = client.news().unwrap_or(PollFlags::empty());
        fds.push(PollFd::from_borrowed_fd(near, of_near | news));
    }
    let patience = client.patience(there, idle);
    let timeout = Timespec {
        tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    match poll(&mut fds, Some(&timeout)) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        Ok(_) => Ok(fds
            .last()
            .filter(|_| looks_near)
            .map_or(PollFlags::empty(), PollFd::revents)),
        Err(rustix::io::Errno::INTR) => Ok(PollFlags::empty()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
        thread,
    };

    use super::*;

    const NEVER: Duration = Duration::from_secs(600);

    fn relayed(
        there: Flow,
        idle: Duration,
    ) -> (UnixStream, UnixStream, thread::JoinHandle<io::Result<()>>) {
        let (client, near) = UnixStream::pair().unwrap();
        let (server, far) = UnixStream::pair().unwrap();
        let relay = thread::spawn(move || relay(&near, &far, there, Flow::empty(), idle));
        (client, server, relay)
    }

    #[test]
    fn bytes_and_ends_pass_both_ways() {
        let early = Flow::starting_with(b"early ".to_vec(), None);
        let (mut client, mut server, relay) = relayed(early, NEVER);
        let large = vec![7; 1 << 20];
        let sender = {
            let (mut client, large) = (client.try_clone().unwrap(), large.clone());
            thread::spawn(move || {
                client.write_all(&large).unwrap();
                client.shutdown(std::net::Shutdown::Write).unwrap();
            })
        };
        let mut got = Vec::new();
        server.read_to_end(&mut got).unwrap();
        sender.join().unwrap();
        assert!(got.starts_with(b"early \x07") && got.len() == large.len() + 6);
        // One way is over, the other is not.
        server.write_all(b"answer").unwrap();
        drop(server);
        let mut got = String::new();
        client.read_to_string(&mut got).unwrap();
        assert_eq!(got, "answer");
        assert!(relay.join().unwrap().is_ok());
    }

    #[test]
    fn an_answer_passes_though_the_request_is_not_taken() {
        let (mut client, mut server, relay) = relayed(Flow::empty(), NEVER);
        server.write_all(b"no").unwrap();
        drop(server);
        let _ = client.write_all(&vec![0; 1 << 20]);
        let mut got = String::new();
        client.read_to_string(&mut got).unwrap();
        assert_eq!(got, "no");
        drop(client);
        assert!(relay.join().unwrap().is_ok());
    }

    #[test]
    fn no_more_passes_than_the_request_has() {
        let request = Flow::starting_with(b"ab".to_vec(), Some(2));
        let (mut client, mut server, relay) = relayed(request, NEVER);
        client.write_all(b"cdGET http://other/").unwrap();
        let mut got = [0; 4];
        server.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"abcd");
        server.set_nonblocking(true).unwrap();
        let more = server.read(&mut got).unwrap_err();
        assert_eq!(
            more.kind(),
            io::ErrorKind::WouldBlock,
            "open, and nothing there"
        );
        drop(server);
        assert!(relay.join().unwrap().is_ok());
        client.read_to_end(&mut Vec::new()).unwrap_or(0);
    }

    #[test]
    fn a_client_that_gave_up_on_its_answer_ends_it() {
        for request in [
            // Forwarded, and a tunnel.
            Flow::starting_with(b"GET".to_vec(), Some(0)),
            Flow::starting_with(b"GET".to_vec(), None),
        ] {
            let (client, mut server, relay) = relayed(request, NEVER);
            let mut got = [0; 3];
            server.read_exact(&mut got).unwrap();
            drop(client);
            // The server never answers.
            assert!(relay.join().unwrap().is_ok());
        }
    }

    #[test]
    fn a_client_that_listens_still_has_its_answer() {
        let request = Flow::starting_with(b"GET".to_vec(), Some(0));
        let (mut client, mut server, relay) = relayed(request, NEVER);
        let mut got = [0; 3];
        server.read_exact(&mut got).unwrap();
        // Before there is an answer, so that this is what the relay learns first.
        client.shutdown(std::net::Shutdown::Write).unwrap();
        server.write_all(b"answer").unwrap();
        drop(server);
        let mut got = String::new();
        client.read_to_string(&mut got).unwrap();
        assert_eq!(got, "answer");
        assert!(relay.join().unwrap().is_ok());
    }

    #[test]
    fn what_a_client_said_before_it_went_is_passed_on() {
        let (mut client, mut server, relay) = relayed(Flow::empty(), NEVER);
        let said = vec![7; 1 << 20];
        let sender = thread::spawn(move || client.write_all(&said).unwrap());
        let mut got = Vec::new();
        server.read_to_end(&mut got).unwrap();
        sender.join().unwrap();
        assert_eq!(got.len(), 1 << 20);
        assert!(relay.join().unwrap().is_ok());
    }

    #[test]
    fn who_says_nothing_more_is_waited_for_less() {
        let (mut client, mut there) = (Client::default(), Flow::empty());
        assert_eq!(client.patience(&there, NEVER), NEVER);
        client.learn(PollFlags::IN | PollFlags::RDHUP);
        // What it said is not all read yet.
        assert_eq!(client.patience(&there, NEVER), NEVER);
        there.over = true;
        assert_eq!(client.patience(&there, NEVER), IDLE_BEHIND_ITS_END);
        assert_eq!(client.patience(&there, Duration::ZERO), Duration::ZERO);
        assert!(!client.is_gone);
        there.over = false;
        client.learn(PollFlags::HUP);
        assert_eq!(client.patience(&there, NEVER), IDLE_BEHIND_ITS_END);
    }

    #[test]
    fn who_moves_nothing_is_given_up() {
        let (_client, _server, relay) = relayed(Flow::empty(), Duration::ZERO);
        let given_up = relay.join().unwrap().unwrap_err();
        assert_eq!(given_up.kind(), io::ErrorKind::TimedOut);
    }
}
