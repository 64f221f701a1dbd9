//! A flood: connections that ask without pause, each for the next thing as soon as it has an answer. It runs on a thread
//! of its own, beside whatever is tested or measured meanwhile.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use crate::wire::{Answer, Node};

/// As many connections as a flood has.
pub const CONNECTIONS: usize = 64;
/// So many of a flood's requests are spawns.
const SPAWN_EVERY: usize = 8;

/// Whether the request of this number is a spawn; the others ask for a status.
#[must_use]
pub fn is_spawn(number: usize) -> bool {
    number.is_multiple_of(SPAWN_EVERY)
}

/// What a flood asks for, and who hears the answers.
pub trait Source: Send + Sync + 'static {
    /// The bytes of a connection's request of this number.
    fn request(&self, number: usize) -> Vec<u8>;

    /// Its answer came, whatever it says.
    fn answered(&self, number: usize, answer: &Answer<'_>) {
        let _ = (number, answer);
    }
}

/// See the module documentation. It ends when it is dropped.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: Option<thread::JoinHandle<anyhow::Result<()>>>,
}

impl Flood {
    /// Pours over a node.
    #[must_use]
    pub fn start(node: Node, connections: usize, source: Arc<impl Source>) -> Self {
        let (stop, answered) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (until, count) = (Arc::clone(&stop), Arc::clone(&answered));
        let thread = thread::spawn(move || -> anyhow::Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let one = |_| pour(&node, source.as_ref(), &until, &count);
                let all = (0..connections).map(one);
                futures_util::future::try_join_all(all).await.map(|_| ())
            })
        });
        Self {
            stop,
            answered,
            thread: Some(thread),
        }
    }

    /// Ends it. How many requests were answered.
    ///
    /// # Errors
    /// A connection broke off before.
    pub fn stop(mut self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(thread::JoinHandle::join) {
            Some(Ok(poured)) => poured.map(|()| self.answered.load(Ordering::Relaxed)),
            _ => anyhow::bail!("the flood broke off"),
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// One connection of a flood. What it is refused is none of its business.
async fn pour(
    node: &Node,
    source: &impl Source,
    until: &AtomicBool,
    count: &AtomicU64,
) -> anyhow::Result<()> {
    let mut wire = node.connect().await?;
    let mut number = 0_usize;
    while !until.load(Ordering::Relaxed) {
        let answer = wire.exchange(&source.request(number)).await?;
        source.answered(number, &answer);
        number += 1;
        count.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
