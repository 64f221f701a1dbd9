//! What stands between a spoke and its engine, and loses, delays and falsifies answers.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::watch,
};

use crate::rig::PATIENCE;

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meddling {
    /// It reaches the engine only when [`Meddler::release`] says so.
    Held,
    /// It reaches the engine after this time.
    Late(Duration),
    /// The engine does it, and the connection breaks before the answer.
    Lost,
    /// The engine does it, and no answer comes.
    Unanswered,
    /// The engine does it, and this status is the answer.
    DoneBut(u16),
    /// The engine never hears of it, and this status is the answer.
    Instead(u16),
    /// The engine never hears of it, and this JSON is the answer.
    Says(&'static str),
}

#[derive(Debug)]
struct Rule {
    method: &'static str,
    part: &'static str,
    left: usize,
    meddling: Meddling,
}

/// What was seen so far.
#[derive(Debug, Default, Clone)]
struct Seen {
    asked: Vec<String>,
    answered: Vec<String>,
    /// What calls have in their first line that are let go.
    released: Vec<String>,
}

/// See the module documentation.
pub(crate) struct Meddler {
    rules: Arc<Mutex<Vec<Rule>>>,
    seen: watch::Sender<Seen>,
    task: tokio::task::JoinHandle<()>,
    socket: PathBuf,
}

impl Meddler {
    /// Listens beside the engine's socket.
    pub(crate) fn before(engine: &Path) -> Self {
        let socket = engine.with_extension("meddled");
        let listener = UnixListener::bind(&socket).unwrap();
        let rules = Arc::<Mutex<Vec<Rule>>>::default();
        let seen = watch::Sender::new(Seen::default());
        let (engine, its_rules, its_seen) = (engine.to_owned(), Arc::clone(&rules), seen.clone());
        let task = tokio::spawn(async move {
            let mut calls = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (engine, rules) = (engine.clone(), Arc::clone(&its_rules));
                let seen = its_seen.clone();
                calls.spawn(async move {
                    let _ = pass(client, &engine, &rules, &seen).await;
                });
            }
        });
        Self {
            rules,
            seen,
            task,
            socket,
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    /// Meddles with the next calls of this method whose path has this part.
    pub(crate) fn meddle(
        &self,
        method: &'static str,
        part: &'static str,
        times: usize,
        meddling: Meddling,
    ) {
        self.rules.lock().unwrap().push(Rule {
            method,
            part,
            left: times,
            meddling,
        });
    }

    /// Lets go what is held.
    pub(crate) fn release(&self) {
        self.release_those("");
    }

    /// Lets go the calls that have this in their first line.
    pub(crate) fn release_those(&self, part: &str) {
        self.seen
            .send_modify(|seen| seen.released.push(part.to_owned()));
    }

    /// How many calls were asked that have this in their first line.
    pub(crate) fn asked(&self, part: &str) -> usize {
        count(&self.seen.borrow().asked, part)
    }

    /// How many such calls the engine has answered.
    pub(crate) fn answered(&self, part: &str) -> usize {
        count(&self.seen.borrow().answered, part)
    }

    /// Waits until a call was asked.
    pub(crate) async fn until_asked(&self, part: &str) {
        self.until_asked_times(part, 1).await;
    }

    /// Waits until so many such calls were asked.
    pub(crate) async fn until_asked_times(&self, part: &str, times: usize) {
        self.until(part, |seen| count(&seen.asked, part) >= times)
            .await;
    }

    /// Waits until the engine has answered such a call, whoever hears it.
    pub(crate) async fn until_answered(&self, part: &str) {
        self.until_answered_times(part, 1).await;
    }

    /// Waits until the engine has answered so many such calls.
    pub(crate) async fn until_answered_times(&self, part: &str, times: usize) {
        self.until(part, |seen| count(&seen.answered, part) >= times)
            .await;
    }

    async fn until(&self, part: &str, is_so: impl FnMut(&Seen) -> bool) {
        let mut seen = self.seen.subscribe();
        let waited = tokio::time::timeout(PATIENCE, seen.wait_for(is_so)).await;
        assert!(waited.is_ok(), "no {part}: {:#?}", self.seen.borrow());
    }
}

impl Drop for Meddler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn count(lines: &[String], part: &str) -> usize {
    lines.iter().filter(|line| line.contains(part)).count()
}

fn find(rules: &Mutex<Vec<Rule>>, line: &str) -> Option<Meddling> {
    let mut rules = rules.lock().unwrap();
    let rule = rules
        .iter_mut()
        .find(|rule| rule.left > 0 && line.starts_with(rule.method) && line.contains(rule.part))?;
    rule.left -= 1;
    Some(rule.meddling)
}

async fn pass(
    mut client: UnixStream,
    engine: &Path,
    rules: &Mutex<Vec<Rule>>,
    seen: &watch::Sender<Seen>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if client.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let line = text.lines().next().unwrap_or_default().to_owned();
    let meddling = find(rules, &line);
    seen.send_modify(|seen| seen.asked.push(line.clone()));
    match meddling {
        Some(Meddling::Held) => {
            let mut released = seen.subscribe();
            let is_let_go = |seen: &Seen| seen.released.iter().any(|part| line.contains(part));
            let _ = released.wait_for(is_let_go).await;
        }
        Some(Meddling::Late(by)) => tokio::time::sleep(by).await,
        Some(Meddling::Instead(status)) => return answer(&mut client, status, REFUSAL).await,
        Some(Meddling::Says(body)) => return answer(&mut client, 200, body).await,
        _ => {}
    }
    let mut engine = UnixStream::connect(engine).await?;
    engine.write_all(&head).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_engine, mut to_engine) = engine.split();
    // What the client has still to say goes on until the engine answers; one that has hung up has said all.
    let mut first = Vec::new();
    let mut more = [0; 4096];
    let mut talking = true;
    while first.is_empty() {
        tokio::select! {
            read = from_client.read(&mut more), if talking => match read {
                Ok(0) | Err(_) => talking = false,
                Ok(count) => to_engine.write_all(more.get(..count).unwrap()).await?,
            },
            read = from_engine.read_buf(&mut first) => if read? == 0 {
                break;
            },
        }
    }
    seen.send_modify(|seen| seen.answered.push(line));
    match meddling {
        Some(Meddling::Lost) => Ok(()),
        Some(Meddling::Unanswered) => std::future::pending().await,
        Some(Meddling::DoneBut(status)) => answer(&mut client, status, REFUSAL).await,
        _ => {
            to_client.write_all(&first).await?;
            tokio::io::copy_bidirectional(&mut client, &mut engine).await?;
            Ok(())
        }
    }
}

const REFUSAL: &str = r#"{"message":"so it was said"}"#;

async fn answer(client: &mut UnixStream, status: u16, body: &str) -> std::io::Result<()> {
    let text = format!(
        "HTTP/1.1 {status} Said\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    client.write_all(text.as_bytes()).await
}
