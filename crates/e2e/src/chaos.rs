//! A TCP proxy on loopback that does what networks do: it loses answers.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a harness fails by failing its test"
)]

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// What happens to traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// Everything passes.
    Fair,
    /// Requests arrive; of the answers not a byte passes, and the connection is cut when one begins.
    AnswersLost,
    /// Nobody is there: connections are closed at once, open ones too.
    Down,
}

/// The proxy. It ends when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    lost: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts one in front of a port of the loopback interface, in fair weather.
    ///
    /// # Panics
    /// No port is free.
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a port");
        let address = listener.local_addr().unwrap();
        let weather = watch::Sender::new(Weather::Fair);
        let lost = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn({
            let (weather, lost) = (weather.clone(), Arc::clone(&lost));
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let (weather, lost) = (weather.subscribe(), Arc::clone(&lost));
                    tokio::spawn(pass(client, target, weather, lost));
                }
            }
        });
        Self {
            address,
            weather,
            lost,
            task,
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes the weather, for open connections too.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// How many answers were lost so far.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.lost.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(
    client: TcpStream,
    target: u16,
    weather: watch::Receiver<Weather>,
    lost: Arc<AtomicUsize>,
) {
    let mut down = weather.clone();
    if *weather.borrow() == Weather::Down {
        return;
    }
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else {
        return;
    };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = async {
        let mut chunk = vec![0; 16 * 1024];
        while let Ok(length @ 1..) = from_client.read(&mut chunk).await {
            if to_server.write_all(&chunk[..length]).await.is_err() {
                return;
            }
        }
    };
    let answers = async {
        let mut chunk = vec![0; 16 * 1024];
        while let Ok(length @ 1..) = from_server.read(&mut chunk).await {
            if *weather.borrow() != Weather::Fair {
                lost.fetch_add(1, Ordering::SeqCst);
                return;
            }
            if to_client.write_all(&chunk[..length]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        _ = down.wait_for(|weather| *weather == Weather::Down) => {}
        () = requests => {}
        () = answers => {}
    }
}
