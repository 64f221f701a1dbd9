//! HTTP/1.1 over one kept connection, with as little of its own as can be: what is measured, or flooded, is the other
//! side.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Longest wait for an answer.
const LIMIT: Duration = Duration::from_secs(60);

/// A node to talk to.
#[derive(Debug, Clone)]
pub struct Node {
    /// Where it listens.
    pub address: SocketAddr,
    /// An operator's token.
    pub token: String,
}

impl Node {
    /// The node at `http://<address>`.
    ///
    /// # Errors
    /// That is no such URL.
    pub fn at(url: &str, token: &str) -> anyhow::Result<Self> {
        let address = url.strip_prefix("http://").context("not an http URL")?;
        Ok(Self {
            address: address.trim_end_matches('/').parse()?,
            token: token.trim().to_owned(),
        })
    }

    /// The bytes of a request.
    #[must_use]
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Vec<u8> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let content = if body.is_empty() {
            String::new()
        } else {
            "content-type: application/json\r\n".to_owned()
        };
        format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n{content}content-length: {}\r\n\r\n{body}",
            self.address,
            self.token,
            body.len()
        )
        .into_bytes()
    }

    /// The bytes of a signed command.
    #[must_use]
    pub fn command(&self, envelope: &[u8]) -> Vec<u8> {
        let head = format!(
            "POST /federation/v1/commands HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n\r\n",
            self.address,
            envelope.len()
        );
        [head.as_bytes(), envelope].concat()
    }

    /// A connection to it.
    ///
    /// # Errors
    /// Nobody is there.
    pub async fn connect(&self) -> anyhow::Result<Wire> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(Wire {
            stream,
            buffer: Vec::with_capacity(64 << 10),
        })
    }

    /// One request on a connection of its own, answered with success.
    ///
    /// # Errors
    /// Anything else came of it.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<T> {
        let mut wire = self.connect().await?;
        wire.exchange(&self.request(method, path, body))
            .await?
            .json()
    }
}

/// A kept connection.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer, whole.
#[derive(Debug)]
pub struct Answer<'a> {
    /// HTTP status.
    pub status: u16,
    /// The body.
    pub body: &'a [u8],
    /// From the first byte sent to the last byte received.
    pub took: Duration,
}

impl Answer<'_> {
    /// The body of a success.
    ///
    /// # Errors
    /// It is none.
    pub fn json<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        ensure!(
            (200..300).contains(&self.status),
            "status {}: {}",
            self.status,
            String::from_utf8_lossy(self.body)
        );
        serde_json::from_slice(self.body).context("not the JSON that was expected")
    }
}

impl Wire {
    /// Sends a request and reads the answer whole.
    ///
    /// # Errors
    /// None came in time.
    pub async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<Answer<'_>> {
        let start = Instant::now();
        let (status, body_at) = tokio::time::timeout(LIMIT, self.round_trip(request))
            .await
            .context("no answer in time")??;
        Ok(Answer {
            status,
            body: self.buffer.get(body_at..).unwrap_or_default(),
            took: start.elapsed(),
        })
    }

    async fn round_trip(&mut self, request: &[u8]) -> anyhow::Result<(u16, usize)> {
        self.buffer.clear();
        self.stream.write_all(request).await?;
        loop {
            if let Some(head) = find(&self.buffer, b"\r\n\r\n") {
                let (status, length) = read_head(self.buffer.get(..head).unwrap_or_default())?;
                let body_at = head + 4;
                while self.buffer.len() < body_at + length {
                    self.fill().await?;
                }
                return Ok((status, body_at));
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> anyhow::Result<()> {
        ensure!(
            self.stream.read_buf(&mut self.buffer).await? > 0,
            "the connection was closed"
        );
        Ok(())
    }

    /// Sends a request and reads until `needle` has come by.
    ///
    /// # Errors
    /// It has not in time.
    pub async fn until(&mut self, request: &[u8], needle: &[u8]) -> anyhow::Result<()> {
        let reading = async {
            self.buffer.clear();
            self.stream.write_all(request).await?;
            while find(&self.buffer, needle).is_none() {
                self.fill().await?;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(LIMIT, reading)
            .await
            .context("it did not come in time")?
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

fn read_head(head: &[u8]) -> anyhow::Result<(u16, usize)> {
    let head = std::str::from_utf8(head)?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .context("no status line")?
        .parse()?;
    for line in lines {
        let Some((name, value)) = line.split_once(':') else {
            bail!("not a header: {line}");
        };
        if name.eq_ignore_ascii_case("content-length") {
            return Ok((status, value.trim().parse()?));
        }
    }
    bail!("an answer without a length: {head}")
}
