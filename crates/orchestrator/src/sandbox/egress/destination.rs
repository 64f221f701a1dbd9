//! From a host that somebody named to a connection: judged by the rules, resolved once, judged by its addresses, and
//! connected to what was judged.

use std::{
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    time::{Duration, Instant},
};

use mosaic_node::peer_client::guard::is_public;
use mosaic_types::egress::Host;

use super::{EgressRules, head::Fault};

/// How many addresses of a name are looked at.
const MAX_ADDRESSES: usize = 16;

/// Why there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoWay {
    /// No rule allows it.
    NotAllowed,
    /// It leads to an address that is not public.
    NotPublic,
    /// It leads nowhere, or nobody is there.
    Unreachable,
    /// Nobody answered in time.
    TimedOut,
}

impl NoWay {
    pub(super) fn fault(self) -> Fault {
        match self {
            Self::NotAllowed | Self::NotPublic => Fault::Forbidden,
            Self::Unreachable => Fault::BadGateway,
            Self::TimedOut => Fault::GatewayTimeout,
        }
    }
}

/// Connects to a destination that the rules allow, within the time limit; the system's resolver has its own.
pub(super) fn connect(
    rules: &EgressRules,
    host: &str,
    port: u16,
    time_limit: Duration,
) -> Result<TcpStream, NoWay> {
    let addresses = permitted(rules, host, port, resolve)?;
    let deadline = Instant::now() + time_limit;
    let mut outcome = NoWay::Unreachable;
    for address in addresses {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(NoWay::TimedOut);
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => outcome = NoWay::TimedOut,
            Err(_) => {}
        }
    }
    Err(outcome)
}

fn resolve(name: &str, port: u16) -> Vec<SocketAddr> {
    (name, port)
        .to_socket_addrs()
        .map(Iterator::collect)
        .unwrap_or_default()
}

/// The addresses that may be connected to. One private address condemns the whole answer: it is how rebinding looks.
fn permitted(
    rules: &EgressRules,
    host: &str,
    port: u16,
    resolve: impl FnOnce(&str, u16) -> Vec<SocketAddr>,
) -> Result<Vec<SocketAddr>, NoWay> {
    // What is no host in its one spelling is in no list.
    let host: Host = host.parse().map_err(|_| NoWay::NotAllowed)?;
    if !rules.allow(&host, port) {
        return Err(NoWay::NotAllowed);
    }
    let mut addresses = match &host {
        Host::Address(address) => vec![SocketAddr::new(*address, port)],
        Host::Name(name) => resolve(name, port),
    };
    addresses.truncate(MAX_ADDRESSES);
    if addresses.is_empty() {
        return Err(NoWay::Unreachable);
    }
    let all_public = addresses.iter().all(|address| is_public(address.ip()));
    if all_public || rules.may_be_private(&host, port) {
        Ok(addresses)
    } else {
        Err(NoWay::NotPublic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(allow: &[&str], private: &[&str]) -> EgressRules {
        let parse = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        EgressRules {
            allow: parse(allow),
            private: parse(private),
        }
    }

    fn judge(rules: &EgressRules, host: &str, answer: &[&str]) -> Result<usize, NoWay> {
        let answer = answer
            .iter()
            .map(|text| SocketAddr::new(text.parse().unwrap(), 443))
            .collect();
        permitted(rules, host, 443, |_, _| answer).map(|addresses| addresses.len())
    }

    /// F18: a name that leads to an address that is not public, alone or among public ones.
    #[test]
    fn f18_a_name_that_leads_somewhere_private_is_refused() {
        let strict = rules(&["a.org"], &[]);
        assert_eq!(judge(&strict, "a.org", &["8.8.8.8"]), Ok(1));
        assert_eq!(judge(&strict, "A.org", &["8.8.8.8", "2606:4700::1"]), Ok(2));
        for private in [
            "127.0.0.1",
            "10.0.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "224.0.0.1",
            "0.0.0.0",
            "::1",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "64:ff9b::10.0.0.1",
            "2002:7f00:1::",
        ] {
            let alone = judge(&strict, "a.org", &[private]);
            assert_eq!(alone, Err(NoWay::NotPublic), "{private}");
            let among = judge(&strict, "a.org", &["8.8.8.8", private]);
            assert_eq!(among, Err(NoWay::NotPublic), "{private}");
            let configured = rules(&["a.org"], &["a.org:443"]);
            assert_eq!(judge(&configured, "a.org", &[private]), Ok(1), "{private}");
        }
        let elsewhere = rules(&["a.org"], &["b.org", "a.org:80", "*.a.org"]);
        assert_eq!(
            judge(&elsewhere, "a.org", &["10.0.0.1"]),
            Err(NoWay::NotPublic)
        );
        assert_eq!(judge(&strict, "a.org", &[]), Err(NoWay::Unreachable));
    }

    /// F18: an address in any spelling reaches what is listed as that address, and nothing else.
    #[test]
    fn f18_addresses_in_disguise_are_in_no_list() {
        let listed = rules(&["127.0.0.1", "8.8.8.8", "*.org"], &["127.0.0.1"]);
        assert_eq!(judge(&listed, "127.0.0.1", &[]), Ok(1));
        assert_eq!(judge(&listed, "8.8.8.8", &[]), Ok(1));
        for disguised in [
            "2130706433",
            "0x7f.1",
            "0x7f000001",
            "0177.0.0.1",
            "127.1",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::1]",
            "127.0.0.1.",
            "127.0.0.2",
            "①②⑦.0.0.1",
            "a.org.",
            "u@a.org",
        ] {
            assert_eq!(
                judge(&listed, disguised, &["127.0.0.1"]),
                Err(NoWay::NotAllowed),
                "{disguised}"
            );
        }
        let mapped = rules(&["[::ffff:127.0.0.1]"], &["127.0.0.1"]);
        assert_eq!(
            judge(&mapped, "[::ffff:127.0.0.1]", &[]),
            Err(NoWay::NotPublic)
        );
    }

    #[test]
    fn what_the_lists_do_not_name_is_not_even_resolved() {
        let listed = rules(&["a.org"], &["b.org"]);
        for host in ["b.org", "sub.a.org"] {
            let answer = permitted(&listed, host, 443, |_, _| panic!("resolved {host}"));
            assert_eq!(answer, Err(NoWay::NotAllowed));
        }
    }
}
