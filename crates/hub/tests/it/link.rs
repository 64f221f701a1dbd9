//! A TCP forwarder between hub and spoke that can be cut and mended.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// A link that forwards to a spoke until it is cut.
#[derive(Clone)]
pub(crate) struct Link {
    address: SocketAddr,
    up: Arc<AtomicBool>,
    /// Counts cuts; every connection made before a cut ends with it.
    cuts: Arc<watch::Sender<u64>>,
    accepted: Arc<AtomicU64>,
}

impl Link {
    /// Opens a link to `target`.
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let link = Self {
            address: listener.local_addr().unwrap(),
            up: Arc::new(AtomicBool::new(true)),
            cuts: Arc::new(watch::Sender::new(0)),
            accepted: Arc::default(),
        };
        let forwarding = link.clone();
        tokio::spawn(async move {
            while let Ok((incoming, _)) = listener.accept().await {
                forwarding.accepted.fetch_add(1, Ordering::SeqCst);
                if forwarding.up.load(Ordering::SeqCst) {
                    let mut cut = forwarding.cuts.subscribe();
                    tokio::spawn(async move {
                        tokio::select! {
                            () = forward(incoming, target) => {}
                            _ = cut.changed() => {}
                        }
                    });
                }
            }
        });
        link
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Breaks every connection; new ones break at once.
    pub(crate) fn cut(&self) {
        self.up.store(false, Ordering::SeqCst);
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Breaks every connection; new ones hold.
    pub(crate) fn blip(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Lets new connections hold again.
    pub(crate) fn mend(&self) {
        self.up.store(true, Ordering::SeqCst);
    }

    /// How many connections came, whether they held or not.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::SeqCst)
    }
}

async fn forward(mut incoming: TcpStream, target: SocketAddr) {
    if let Ok(mut outgoing) = TcpStream::connect(target).await {
        let _ = tokio::io::copy_bidirectional(&mut incoming, &mut outgoing).await;
    }
}
