//! Hosts that an agent may reach: the rules of an allow-list, in their one syntax.
//!
//! ```text
//! rule = host | host ":" port
//! host = name | "*." name | IPv4 | "[" IPv6 "]"
//! ```
//!
//! Without a port a rule means 80 and 443. `*.name` is every name below `name`, and not `name` itself. A name is an
//! ASCII host name (IDNA A-labels, not Unicode), in any case. A host is an address only when it is written in the one
//! canonical way: `2130706433`, `0x7f.1` and `127.1` are neither names nor addresses, so nothing is ever compared with a
//! spelling that a resolver would read as something else (F18).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::command::NetworkPolicy;

/// How many rules an allow-list may have.
pub const MAX_RULES: usize = 64;
/// How long a rule may be, in bytes.
pub const MAX_RULE_BYTES: usize = 260;
/// The ports of a rule that names none.
pub const DEFAULT_PORTS: [u16; 2] = [80, 443];

const MAX_NAME_BYTES: usize = 253;
const MAX_LABEL_BYTES: usize = 63;

/// The text is no rule, or no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EgressRuleError {
    /// Not a name, not an address in its canonical spelling.
    #[error("not a host name in ASCII or a canonical address (an IPv6 one in brackets)")]
    Host,
    /// Not a port.
    #[error("not a port from 1 to 65535")]
    Port,
    /// Longer than a rule may be.
    #[error("longer than {MAX_RULE_BYTES} bytes")]
    TooLong,
    /// No rules, or more than there may be.
    #[error("not 1 to {MAX_RULES} rules")]
    Count,
}

/// A host as somebody names it, in its one spelling.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name, in lower case.
    Name(String),
    /// An address that was written as one.
    Address(IpAddr),
}

impl FromStr for Host {
    type Err = EgressRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(inner) = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'))
        {
            let address = inner.parse::<Ipv6Addr>();
            return address
                .map(|address| Self::Address(address.into()))
                .map_err(|_| EgressRuleError::Host);
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Address(address.into()));
        }
        if is_name(text) {
            Ok(Self::Name(text.to_ascii_lowercase()))
        } else {
            Err(EgressRuleError::Host)
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=MAX_LABEL_BYTES).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A resolver reads what ends in a number as an address, in one of many bases.
    let last = text.rsplit('.').next().unwrap_or_default();
    let hexadecimal = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    let ends_in_a_number = last.bytes().all(|byte| byte.is_ascii_digit())
        || hexadecimal.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    text.len() <= MAX_NAME_BYTES && text.split('.').all(is_label) && !ends_in_a_number
}

/// Splits `host:port`; the port is `None` where there is none.
///
/// # Errors
/// [`EgressRuleError::Port`], if there is something after a colon that is no port.
pub fn split_port(text: &str) -> Result<(&str, Option<u16>), EgressRuleError> {
    // A colon inside brackets belongs to an address.
    let Some((host, port)) = text
        .rsplit_once(':')
        .filter(|(_, port)| !port.contains(']'))
    else {
        return Ok((text, None));
    };
    let digits = (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse::<u16>() {
        Ok(port @ 1..) if digits => Ok((host, Some(port))),
        _ => Err(EgressRuleError::Port),
    }
}

/// One rule of an allow-list.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EgressRule {
    hosts: Hosts,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Hosts {
    One(Host),
    /// Every name below this one.
    Below(String),
}

impl Hosts {
    fn include(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::One(one), host) => one == host,
            (Self::Below(domain), Host::Name(name)) => is_below(name, domain),
            (Self::Below(_), Host::Address(_)) => false,
        }
    }

    fn cover(&self, other: &Self) -> bool {
        match (self, other) {
            (hosts, Self::One(host)) => hosts.include(host),
            (Self::Below(domain), Self::Below(other)) => other == domain || is_below(other, domain),
            (Self::One(_), Self::Below(_)) => false,
        }
    }
}

fn is_below(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain)
        .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

impl EgressRule {
    /// Whether a connection to this host and port is what the rule allows.
    #[must_use]
    pub fn allows(&self, host: &Host, port: u16) -> bool {
        self.has_port(port) && self.hosts.include(host)
    }

    fn has_port(&self, port: u16) -> bool {
        match self.port {
            Some(own) => own == port,
            None => DEFAULT_PORTS.contains(&port),
        }
    }
}

impl FromStr for EgressRule {
    type Err = EgressRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_RULE_BYTES {
            return Err(EgressRuleError::TooLong);
        }
        let (host, port) = split_port(text)?;
        let hosts = match host.strip_prefix("*.") {
            Some(domain) if is_name(domain) => Hosts::Below(domain.to_ascii_lowercase()),
            Some(_) => return Err(EgressRuleError::Host),
            None => Hosts::One(host.parse()?),
        };
        Ok(Self { hosts, port })
    }
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hosts {
            Hosts::One(host) => host.fmt(f)?,
            Hosts::Below(domain) => write!(f, "*.{domain}")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl TryFrom<String> for EgressRule {
    type Error = EgressRuleError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<EgressRule> for String {
    fn from(rule: EgressRule) -> Self {
        rule.to_string()
    }
}

/// Reads an allow-list.
///
/// # Errors
/// What is wrong, and with which rule: `None` if it is their number.
pub fn parse_rules(list: &[String]) -> Result<Vec<EgressRule>, (Option<usize>, EgressRuleError)> {
    if list.is_empty() || list.len() > MAX_RULES {
        return Err((None, EgressRuleError::Count));
    }
    list.iter()
        .enumerate()
        .map(|(index, text)| text.parse().map_err(|error| (Some(index), error)))
        .collect()
}

/// Whether everything that `rules` allow is allowed by one of `most` too. A wildcard is covered by a wildcard only.
#[must_use]
pub fn rules_cover(most: &[EgressRule], rules: &[EgressRule]) -> bool {
    rules.iter().all(|rule| {
        let ports = match &rule.port {
            Some(port) => std::slice::from_ref(port),
            None => &DEFAULT_PORTS,
        };
        ports.iter().all(|port| {
            most.iter()
                .any(|wide| wide.has_port(*port) && wide.hosts.cover(&rule.hosts))
        })
    })
}

impl NetworkPolicy {
    /// Whether an agent with `other` reaches nothing that it would not reach with this policy: `none`, then lists,
    /// then `open`. A list that does not parse covers nothing and is covered by `open` only.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::None) | (Self::Open, _) => true,
            (Self::Allow(most), Self::Allow(list)) => {
                match (parse_rules(most), parse_rules(list)) {
                    (Ok(most), Ok(rules)) => rules_cover(&most, &rules),
                    _ => false,
                }
            }
            (Self::None, _) | (Self::Allow(_), Self::Open) => false,
        }
    }

    /// Checks what the type does not: number, length and syntax of an allow-list's rules.
    ///
    /// # Errors
    /// What is wrong, in words that can be shown.
    pub fn check(&self) -> Result<(), String> {
        let Self::Allow(list) = self else {
            return Ok(());
        };
        parse_rules(list)
            .map(drop)
            .map_err(|(index, error)| match index {
                Some(index) => format!("allow[{index}]: {error}"),
                None => format!("allow: {error}"),
            })
    }
}

#[cfg(test)]
mod tests;
