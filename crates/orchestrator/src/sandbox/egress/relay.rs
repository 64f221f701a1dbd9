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
    fn wants(&self) -> Option<PollFlags> {
        match (self.over, self.rest().is_empty()) {
            (true, _) => None,
            (false, true) => Some(PollFlags::IN),
            (false, false) => Some(PollFlags::OUT),
        }
    }

    /// Reads or writes as much as goes without waiting.
    fn step(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
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

/// Moves bytes until both ways are over: `there` from `near` to `far`, `back` the other way.
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
    let timeout = Timespec {
        tv_sec: i64::try_from(idle.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    loop {
        there.tell_end(far);
        back.tell_end(near);
        let mut fds = Vec::with_capacity(2);
        for (flow, from, to) in [(&there, near, far), (&back, far, near)] {
            match flow.wants() {
                Some(PollFlags::IN) => fds.push(PollFd::from_borrowed_fd(from, PollFlags::IN)),
                Some(_) => fds.push(PollFd::from_borrowed_fd(to, PollFlags::OUT)),
                None => {}
            }
        }
        if fds.is_empty() {
            return Ok(());
        }
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        there.step(near, far);
        back.step(far, near);
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
    fn who_moves_nothing_is_given_up() {
        let (_client, _server, relay) = relayed(Flow::empty(), Duration::ZERO);
        let given_up = relay.join().unwrap().unwrap_err();
        assert_eq!(given_up.kind(), io::ErrorKind::TimedOut);
    }
}
