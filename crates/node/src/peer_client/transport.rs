//! HTTP to peers: one pool of connections; no redirects, no proxy, no decompression; bounded in time and size.

use std::{error::Error as _, sync::Once, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{StatusCode, header};
use reqwest::{Client, Response, redirect::Policy};
use thiserror::Error;

use super::guard::{GuardedResolver, NoPublicAddress, PeerUrl};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Shorter than the ten seconds for which a server keeps an idle connection, so that no request is sent into one that
/// is about to be closed.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(8);
const POOL_MAX_IDLE_PER_HOST: usize = 64;
const USER_AGENT: &str = concat!("mosaic/", env!("CARGO_PKG_VERSION"));

/// The client could not be built.
#[derive(Debug, Error)]
#[error("failed to build the client for peers")]
pub struct BuildClientError(#[source] reqwest::Error);

/// What can go wrong between a peer and us, before anything is verified.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TransportError {
    /// No connection: nothing was sent.
    #[error("failed to connect to the peer")]
    NotConnected(#[source] reqwest::Error),
    /// The connection broke off.
    #[error("failed to reach the peer")]
    Unreachable(#[source] reqwest::Error),
    /// The peer's name leads to an address that is not allowed.
    #[error("the peer's name leads to no address that is allowed")]
    NotAllowed,
    /// No answer within the time limit.
    #[error("the peer did not answer in time")]
    TimedOut,
    /// More bytes than an answer may have.
    #[error("the peer's answer is larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
}

impl TransportError {
    pub(super) fn of(error: reqwest::Error) -> Self {
        let mut source = error.source();
        while let Some(cause) = source {
            if cause.is::<NoPublicAddress>() {
                return Self::NotAllowed;
            }
            source = cause.source();
        }
        if error.is_connect() {
            Self::NotConnected(error)
        } else if error.is_timeout() {
            Self::TimedOut
        } else {
            Self::Unreachable(error)
        }
    }
}

/// See the module documentation.
#[derive(Debug, Clone)]
pub(super) struct Transport {
    client: Client,
}

impl Transport {
    pub(super) fn new(allow_private: bool) -> Result<Self, BuildClientError> {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // It fails if the process has one already, which will do.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let builder = || {
            Client::builder()
                .http1_only()
                .redirect(Policy::none())
                .no_proxy()
                .referer(false)
                .user_agent(USER_AGENT)
                .connect_timeout(CONNECT_TIMEOUT)
                .pool_idle_timeout(POOL_IDLE_TIMEOUT)
                .pool_max_idle_per_host(POOL_MAX_IDLE_PER_HOST)
                .tcp_nodelay(true)
                .dns_resolver(GuardedResolver::shared(allow_private))
        };
        let client = builder().build().or_else(|error| {
            // A machine without certificates of authorities can still talk to peers on private networks.
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "no certificates of authorities were found: https peers cannot be reached"
            );
            builder().tls_certs_only([]).build()
        });
        client
            .map(|client| Self { client })
            .map_err(BuildClientError)
    }

    /// Posts an envelope. The time limit is for the whole answer, or for its head alone.
    pub(super) async fn post(
        &self,
        url: &PeerUrl,
        path: &str,
        envelope: Vec<u8>,
        timeout: Option<Duration>,
    ) -> Result<Response, TransportError> {
        let mut request = self
            .client
            .post(url.at(path))
            .header(header::CONTENT_TYPE, crate::endpoint::ENVELOPE_JSON)
            .body(envelope);
        if let Some(timeout) = timeout {
            request = request.timeout(timeout);
        }
        request.send().await.map_err(TransportError::of)
    }

    /// Gets a small document.
    pub(super) async fn get(
        &self,
        url: &PeerUrl,
        path: &str,
        timeout: Duration,
        limit: usize,
    ) -> Result<(StatusCode, Bytes), TransportError> {
        let request = self.client.get(url.at(path)).timeout(timeout);
        let response = request.send().await.map_err(TransportError::of)?;
        let status = response.status();
        Ok((status, read_bounded(response, limit).await?))
    }

    /// Posts an envelope and reads the whole answer.
    pub(super) async fn exchange(
        &self,
        url: &PeerUrl,
        path: &str,
        envelope: Vec<u8>,
        timeout: Duration,
        limit: usize,
    ) -> Result<(StatusCode, Bytes), TransportError> {
        let response = self.post(url, path, envelope, Some(timeout)).await?;
        let status = response.status();
        Ok((status, read_bounded(response, limit).await?))
    }
}

/// Reads a body whole, up to a limit.
pub(super) async fn read_bounded(
    mut response: Response,
    limit: usize,
) -> Result<Bytes, TransportError> {
    let too_large = || TransportError::TooLarge { limit };
    let announced = response.content_length().unwrap_or(0);
    if usize::try_from(announced).map_or(true, |length| length > limit) {
        return Err(too_large());
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(TransportError::of)? {
        if body.len() + chunk.len() > limit {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}
