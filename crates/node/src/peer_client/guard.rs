//! Where this node connects to (F18): never to an address that is not public, unless its operator allows it.
//!
//! Two checks, because neither sees everything: a host written as an address never reaches the resolver, and a name
//! tells nothing of the addresses behind it. The resolver's answer is what is connected to, so that a name cannot
//! change its mind between check and use.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};
use thiserror::Error;

/// Why a URL is not one that this node connects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PeerUrlError {
    /// Not an absolute URL, or not HTTP.
    #[error("not an http or https URL")]
    NotHttp,
    /// `http` where only `https` will do.
    #[error("not https, and plain http is not allowed to peers that are not private")]
    NotHttps,
    /// More than scheme, host and port.
    #[error("more than scheme, host and port")]
    NotABase,
    /// An address or name that is not public.
    #[error("not a public address, and private peers are not allowed")]
    NotPublic,
}

/// A peer's base URL that passed the first check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerUrl(Url);

impl PeerUrl {
    /// Parses and checks. With `allow_private`, private addresses and plain `http` are taken.
    ///
    /// # Errors
    /// See [`PeerUrlError`].
    pub fn parse(text: &str, allow_private: bool) -> Result<Self, PeerUrlError> {
        let url = Url::parse(text).map_err(|_| PeerUrlError::NotHttp)?;
        match url.scheme() {
            "https" => {}
            "http" if allow_private => {}
            "http" => return Err(PeerUrlError::NotHttps),
            _ => return Err(PeerUrlError::NotHttp),
        }
        let bare = url.username().is_empty()
            && url.password().is_none()
            && url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none();
        if !bare {
            return Err(PeerUrlError::NotABase);
        }
        // The URL parser has turned `2130706433`, `0x7f.1` and `127.1` into what they mean.
        let host = url.host_str().ok_or(PeerUrlError::NotHttp)?;
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        if !allow_private {
            let public = match host.parse::<IpAddr>() {
                Ok(address) => is_public(address),
                Err(_) => !is_local_name(host),
            };
            if !public {
                return Err(PeerUrlError::NotPublic);
            }
        }
        Ok(Self(url))
    }

    /// The URL of a path at this peer.
    #[must_use]
    pub fn at(&self, path: &str) -> Url {
        let mut url = self.0.clone();
        url.set_path(path);
        url
    }

    /// Scheme, host and port, without a slash at the end.
    #[must_use]
    pub fn base(&self) -> &str {
        self.0.as_str().trim_end_matches('/')
    }
}

fn is_local_name(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost"
        || [
            ".localhost",
            ".local",
            ".internal",
            ".localdomain",
            ".home.arpa",
        ]
        .iter()
        .any(|suffix| host.ends_with(suffix))
}

/// Whether an address is one of the public internet.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = matches!(
        (a, b, c),
        (0 | 10 | 127, ..)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
            | (224..=255, ..)
    );
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    match segments {
        // Mapped addresses, and NAT64's: as public as what they carry.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            is_public_v4(embedded(high, low))
        }
        // 6to4 carries its address in the prefix.
        [0x2002, high, low, ..] => is_public_v4(embedded(high, low)),
        // Teredo, benchmarking, ORCHID, documentation.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, ..] => false,
        // The rest of 2000::/3 is what is given out as global unicast.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

/// The second check: refuses names that lead anywhere private.
#[derive(Debug, Clone)]
pub(super) struct GuardedResolver {
    pub(super) allow_private: bool,
}

/// A name leads to nothing that may be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the name leads to no public address, and private peers are not allowed")]
pub(super) struct NoPublicAddress;

impl GuardedResolver {
    pub(super) fn shared(allow_private: bool) -> Arc<Self> {
        Arc::new(Self { allow_private })
    }

    /// What of a resolver's answer may be connected to. One private address condemns the whole answer: it is how
    /// rebinding looks.
    fn permit(&self, addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, NoPublicAddress> {
        let permitted =
            self.allow_private || addresses.iter().all(|address| is_public(address.ip()));
        if permitted && !addresses.is_empty() {
            Ok(addresses)
        } else {
            Err(NoPublicAddress)
        }
    }
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let permitted = this.permit(found.collect())?;
            Ok(Box::new(permitted.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests;
