//! The server: HTTP/1.1 with a limit on everything that a client can hold (F20).
//!
//! Connections are bounded; see `serve/admission.rs` for who has to go when there are too many.

use std::{
    convert::Infallible, io, net::SocketAddr, os::fd::AsRawFd as _, panic::AssertUnwindSafe,
    sync::Arc, time::Duration,
};

use axum::{Router, body::Body, response::IntoResponse};
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use mosaic_types::{ErrorCode, Refusal};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::problem::ApiError;
use crate::limits::HttpLimits;

mod admission;
mod timed_io;

use admission::{Admission, Slot};
use timed_io::TimedIo;

pub(crate) use admission::{Killer, Standing, group};

/// File descriptors that connections of no standing are closed for.
const DESCRIPTORS_KEPT: u64 = 64;

/// In the extensions of every request: cancelled when the server begins to drain. Streams end then.
#[derive(Debug, Clone)]
pub struct Draining(pub CancellationToken);

/// Serves until `shutdown`, then lets requests under way finish within `limits.drain_timeout`.
///
/// Puts the limits, [`Draining`] and the client's [`SocketAddr`] into every request's extensions.
/// A handler that panics answers 500 `internal`.
///
/// # Errors
/// If the listener fails for good. Errors of single connections are theirs alone.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: HttpLimits,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let limits = Arc::new(limits);
    let admission = Arc::new(Admission::new(&limits));
    let draining = shutdown.child_token();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_of_one_connection(&error) => continue,
            Err(error) => {
                // Out of file descriptors, most likely: somebody of less standing has to go.
                tracing::warn!(%error, "failed to accept a connection");
                let pause = if admission.make_way() { 1 } else { 50 };
                tokio::time::sleep(Duration::from_millis(pause)).await;
                continue;
            }
        };
        if is_among_the_last(&stream) {
            admission.make_way();
        }
        let Some(slot) = Admission::admit(&admission, address.ip()) else {
            continue;
        };
        // An answer is one small write: waiting for more would only delay it.
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        let connection = Connection {
            address,
            router: router.clone(),
            limits: Arc::clone(&limits),
            draining: draining.clone(),
        };
        connections.spawn(connection.run(stream, slot));
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.drain_timeout, drained)
        .await
        .is_err()
    {
        connections.shutdown().await;
    }
    Ok(())
}

/// Whether so many descriptors are in use that what is left belongs to kills. Numbers are given out from the lowest.
fn is_among_the_last(stream: &TcpStream) -> bool {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let number = u64::try_from(stream.as_raw_fd()).unwrap_or(0);
    most.is_some_and(|most| number.saturating_add(DESCRIPTORS_KEPT) >= most)
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

struct Connection {
    address: SocketAddr,
    router: Router,
    limits: Arc<HttpLimits>,
    draining: CancellationToken,
}

impl Connection {
    async fn run(self, stream: TcpStream, slot: Slot) {
        let header_timeout = self.limits.header_timeout;
        let io = TokioIo::new(TimedIo::new(stream, self.limits.write_timeout));
        let draining = self.draining.clone();
        let standing = slot.standing();
        let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
            let extensions = request.extensions_mut();
            extensions.insert(self.address);
            extensions.insert(Arc::clone(&self.limits));
            extensions.insert(Draining(self.draining.clone()));
            extensions.insert(standing.clone());
            answer(self.router.clone(), request)
        });
        let serving = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            .max_buf_size(64 * 1024)
            .serve_connection(io, service);
        tokio::pin!(serving);
        let outcome = tokio::select! {
            outcome = serving.as_mut() => outcome,
            () = slot.revoked() => return,
            () = draining.cancelled() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        if let Err(error) = outcome {
            tracing::debug!(%error, "connection ended early");
        }
    }
}

async fn answer(
    router: Router,
    request: hyper::Request<Incoming>,
) -> Result<http::Response<Body>, Infallible> {
    let answering = AssertUnwindSafe(router.oneshot(request.map(Body::new)));
    match answering.catch_unwind().await {
        Ok(answered) => answered,
        // The panic hook has logged where and why.
        Err(_) => Ok(ApiError(Refusal::new(
            ErrorCode::Internal,
            "a fault of this node; its log has the details",
        ))
        .into_response()),
    }
}

#[cfg(test)]
mod tests;
