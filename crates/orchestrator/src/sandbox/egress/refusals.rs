//! Word of refusals, from the proxy's threads to the shim's loop, which alone writes the spool. A pipe, so that the
//! loop can wait for it; the number of lines is bounded by what a pipe holds, so that nobody waits for the loop.
//!
//! A program that is given a secret in the place of a host has it refused: it is masked here, where all of it is there.

use std::{
    io::{self, PipeReader, PipeWriter, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use mosaic_types::egress::split_port;
use rustix::event::Timespec;
use serde::{Deserialize, Serialize};

use crate::sandbox::{
    identity,
    mask::Finder,
    spool::{Notice, SpoolWriter},
};

/// How many refusals of one launch are told.
const MAX_TOLD: u32 = 100;
/// How much of a destination is told, in bytes. With it a line is at most 400 bytes, and all of them fit a pipe.
const MAX_DESTINATION_BYTES: usize = 300;
const READ_BYTES: usize = 64 << 10;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    destination: String,
    not_public: bool,
    last_told: bool,
}

/// Where the proxy says what it refused.
#[derive(Debug, Clone)]
pub(super) struct Teller {
    pipe: Arc<PipeWriter>,
    told: Arc<AtomicU32>,
    /// Knows the agent's secrets, if it has any.
    finder: Option<Arc<Finder>>,
}

impl Teller {
    /// Tells of one refusal: of the destination what can be in a name or an address. `named` is what named it, with all
    /// that came behind the host.
    pub(super) fn tell(&self, named: &str, port: u16, not_public: bool) {
        let before = self
            .told
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |told| {
                (told < MAX_TOLD).then_some(told + 1)
            });
        let Ok(before) = before else {
            return;
        };
        let line = Line {
            destination: self
                .destination(named, port)
                .chars()
                .filter(|char| char.is_ascii_graphic() && !['"', '\\'].contains(char))
                .take(MAX_DESTINATION_BYTES)
                .collect(),
            not_public,
            last_told: before + 1 == MAX_TOLD,
        };
        if let Ok(mut text) = serde_json::to_vec(&line) {
            text.push(b'\n');
            // At most PIPE_BUF: lines of two threads do not mix.
            let _ = (&*self.pipe).write_all(&text);
        }
    }

    /// The host and the port, without secrets. They are taken out first: one that has a `/` in it would be cut there,
    /// and half of it found no more.
    fn destination(&self, named: &str, port: u16) -> String {
        let masked = self.finder.as_ref().map_or_else(
            || named.to_owned(),
            |finder| {
                let masked = finder.mask_name(named.as_bytes(), MAX_DESTINATION_BYTES);
                String::from_utf8_lossy(&masked).into_owned()
            },
        );
        let authority = masked.split(['/', '?', '#']).next().unwrap_or_default();
        let host = split_port(authority).map_or(authority, |(host, _)| host);
        format!("{host}:{port}")
    }
}

/// The shim's end.
#[derive(Debug)]
pub(in crate::sandbox) struct Refusals {
    pipe: PipeReader,
    held: Vec<u8>,
}

impl Refusals {
    pub(super) fn channel(finder: Option<Arc<Finder>>) -> io::Result<(Teller, Self)> {
        let (pipe, writer) = io::pipe()?;
        let teller = Teller {
            pipe: Arc::new(writer),
            told: Arc::default(),
            finder,
        };
        let held = Vec::new();
        Ok((teller, Self { pipe, held }))
    }

    /// What becomes readable when there is something to write down.
    pub(in crate::sandbox) fn pipe(&self) -> &PipeReader {
        &self.pipe
    }

    /// Writes down what is there now.
    pub(in crate::sandbox) fn write_down(&mut self, spool: &mut SpoolWriter) {
        const AT_ONCE: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if !matches!(identity::wait_readable(&self.pipe, Some(AT_ONCE)), Ok(true)) {
            return;
        }
        let mut buffer = vec![0; READ_BYTES];
        let count = self.pipe.read(&mut buffer).unwrap_or(0);
        self.held
            .extend_from_slice(buffer.get(..count).unwrap_or_default());
        while let Some(end) = self.held.iter().position(|byte| *byte == b'\n') {
            let rest = self.held.split_off(end + 1);
            let line = std::mem::replace(&mut self.held, rest);
            if let Ok(line) = serde_json::from_slice::<Line>(&line) {
                spool.push_notice(&Notice::EgressRefused {
                    destination: line.destination,
                    not_public: line.not_public,
                    last_told: line.last_told,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::{mask::Mask, spool::SpoolReader};

    #[test]
    fn refusals_are_told_up_to_a_number_and_nobody_waits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spool");
        let mut spool = SpoolWriter::open(&path, 1 << 20).unwrap();
        let (teller, mut refusals) = Refusals::channel(None).unwrap();
        // Nobody reads meanwhile, and each is as long as it can be.
        let long = format!("\\\"\n\u{7f}{}", "a".repeat(1000));
        for _ in 0..MAX_TOLD + 50 {
            teller.tell(&long, 80, true);
        }
        refusals.write_down(&mut spool);
        spool.finish();
        let mut reader = SpoolReader::open(&path, 0).unwrap();
        let told: Vec<_> = std::iter::from_fn(|| reader.next().unwrap())
            .filter_map(|record| match record.notice()? {
                Notice::EgressRefused {
                    destination,
                    not_public: true,
                    last_told,
                } => Some((destination.len(), last_told)),
                _ => None,
            })
            .collect();
        assert_eq!(told.len(), MAX_TOLD as usize);
        assert!(told.iter().all(|(len, _)| *len == MAX_DESTINATION_BYTES));
        let last: Vec<_> = told.iter().filter(|(_, last)| *last).collect();
        assert_eq!(last.len(), 1);
        assert!(told.last().unwrap().1);
    }

    /// What is told of a request for `named` at port 80, by an agent with this secret.
    fn told_of(secret: &str, named: &str) -> String {
        let masks = [Mask::new("key", secret).unwrap()];
        let (teller, mut refusals) = Refusals::channel(Finder::new(&masks).unwrap()).unwrap();
        teller.tell(named, 80, false);
        let mut line = vec![0; READ_BYTES];
        let count = refusals.pipe.read(&mut line).unwrap();
        let line: Line = serde_json::from_slice(&line[..count]).unwrap();
        line.destination
    }

    #[test]
    fn a_refusal_tells_no_secret_whatever_a_url_makes_of_it() {
        let token = "ghp_AbCdEf123456";
        for (secret, named, told) in [
            (token, token.to_owned(), "[secret:key]:80"),
            // As who takes it for a name of a host sends it.
            (token, token.to_lowercase(), "[secret:key]:80"),
            (token, format!("{token}:8080/x"), "[secret:key]:80"),
            (
                token,
                format!("a.{token}.example/x"),
                "a.[secret:key].example:80",
            ),
            (token, "example.org/about".to_owned(), "example.org:80"),
            (token, "[::1]:80".to_owned(), "[::1]:80"),
            (
                "wJalrXUt/K7MDENG/bPx",
                "wJalrXUt/K7MDENG/bPx".to_owned(),
                "[secret:key]:80",
            ),
            (
                "some:secret:8080",
                "some:secret:8080".to_owned(),
                "[secret:key]:80",
            ),
        ] {
            assert_eq!(told_of(secret, &named), told, "{named}");
        }
        // Longer than what is told, or across where that ends.
        let long: String = (0..200).map(|number| format!("{number:x}.")).collect();
        assert_eq!(told_of(&long, &long), "[secret:key]:80");
        let behind = format!("{}{token}", "a".repeat(MAX_DESTINATION_BYTES - 3));
        let told = told_of(token, &behind);
        assert!(told.ends_with("aa[se"), "{told}");
        let beyond = format!("{}{token}", "a".repeat(MAX_DESTINATION_BYTES + 3));
        assert!(!told_of(token, &beyond).contains("ghp"));
    }
}
