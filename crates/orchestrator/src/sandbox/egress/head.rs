//! The head of a request to the proxy, without any I/O: which destination it names, and what is sent there.
//!
//! `CONNECT host:port` is a tunnel. Anything else must be in absolute form (`GET http://host/path`): its head is written
//! anew, and of its body exactly as much is passed on as its length says, so that what follows on the connection,
//! which may be meant for somebody else, goes nowhere.

use mosaic_types::egress::split_port;

/// How long a head may be, in bytes.
pub(super) const MAX_HEAD_BYTES: usize = 16 << 10;

/// What a client gets instead of its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    BadRequest,
    Forbidden,
    MethodNotAllowed,
    RequestTimeout,
    LengthRequired,
    HeadTooLarge,
    BadGateway,
    Busy,
    GatewayTimeout,
}

impl Fault {
    fn status(self) -> &'static str {
        match self {
            Self::BadRequest => "400 Bad Request",
            Self::Forbidden => "403 Forbidden",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::RequestTimeout => "408 Request Timeout",
            Self::LengthRequired => "411 Length Required",
            Self::HeadTooLarge => "431 Request Header Fields Too Large",
            Self::BadGateway => "502 Bad Gateway",
            Self::Busy => "503 Service Unavailable",
            Self::GatewayTimeout => "504 Gateway Timeout",
        }
    }

    /// The whole answer.
    pub(super) fn answer(self) -> String {
        let status = self.status();
        let body = format!("mosaic egress: {status}\n");
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
    }
}

/// What a head asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// As it was named; not judged yet.
    pub(super) host: String,
    /// The same with all that came behind it, in which it may have been cut off.
    pub(super) named: String,
    pub(super) port: u16,
    pub(super) kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Tunnel,
    Forward {
        /// To be sent to the destination.
        head: Vec<u8>,
        /// How much of what follows belongs to the request.
        body_bytes: u64,
    },
}

/// Where the head ends, if all of it is there: behind the empty line.
pub(super) fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| at + 4)
}

const FORWARDED: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
/// Of one hop only (RFC 9110, 7.6.1), or set here.
const NOT_PASSED_ON: [&str; 9] = [
    "connection",
    "proxy-connection",
    "proxy-authorization",
    "proxy-authenticate",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "host",
];

impl Request {
    /// Reads a whole head.
    pub(super) fn parse(head: &[u8]) -> Result<Self, Fault> {
        let text = std::str::from_utf8(head).map_err(|_| Fault::BadRequest)?;
        let text = text.strip_suffix("\r\n\r\n").ok_or(Fault::BadRequest)?;
        let mut lines = text.split("\r\n");
        let mut parts = lines.next().unwrap_or_default().split(' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Fault::BadRequest);
        };
        let is_visible = target.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_visible || !["HTTP/1.0", "HTTP/1.1"].contains(&version) {
            return Err(Fault::BadRequest);
        }
        let fields = lines.map(field).collect::<Result<Vec<_>, _>>()?;
        if method == "CONNECT" {
            let (host, port) = split_port(target).map_err(|_| Fault::BadRequest)?;
            let port = port.filter(|_| !host.is_empty()).ok_or(Fault::BadRequest)?;
            return Ok(Self {
                host: host.to_owned(),
                named: target.to_owned(),
                port,
                kind: Kind::Tunnel,
            });
        }
        if !FORWARDED.contains(&method) {
            return Err(Fault::MethodNotAllowed);
        }
        let scheme = target.get(..7).ok_or(Fault::BadRequest)?;
        let rest = target.get(7..).unwrap_or_default();
        if !scheme.eq_ignore_ascii_case("http://") {
            return Err(Fault::BadRequest);
        }
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (host, port) = split_port(authority).map_err(|_| Fault::BadRequest)?;
        // What a login would hide the host behind is no host.
        if host.is_empty() || host.contains('@') || path.contains('#') {
            return Err(Fault::BadRequest);
        }
        let slash = if path.starts_with('/') { "" } else { "/" };
        let body_bytes = body_bytes(&fields)?;
        let mut head = format!(
            "{method} {slash}{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n"
        );
        let named: Vec<String> = fields
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case("connection"))
            .flat_map(|(_, value)| value.split(','))
            .map(|name| name.trim().to_ascii_lowercase())
            .collect();
        for (name, value) in &fields {
            let lower = name.to_ascii_lowercase();
            // Of the body that is passed on: whoever calls it a thing of this hop takes it from nobody.
            if lower == "content-length" {
                head.push_str(&format!("{name}: {body_bytes}\r\n"));
            } else if !NOT_PASSED_ON.contains(&lower.as_str()) && !named.contains(&lower) {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        head.push_str("\r\n");
        Ok(Self {
            host: host.to_owned(),
            named: rest.to_owned(),
            port: port.unwrap_or(80),
            kind: Kind::Forward {
                head: head.into_bytes(),
                body_bytes,
            },
        })
    }
}

fn field(line: &str) -> Result<(&str, &str), Fault> {
    let (name, value) = line.split_once(':').ok_or(Fault::BadRequest)?;
    let is_token = !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte));
    let value = value.trim_matches([' ', '\t']);
    let is_text = value.chars().all(|char| char == '\t' || !char.is_control());
    if is_token && is_text {
        Ok((name, value))
    } else {
        Err(Fault::BadRequest)
    }
}

/// A length that everybody reads the same way, or a refusal.
fn body_bytes(fields: &[(&str, &str)]) -> Result<u64, Fault> {
    let named = |wanted: &'static str| {
        fields
            .iter()
            .filter(move |(name, _)| name.eq_ignore_ascii_case(wanted))
    };
    if named("transfer-encoding").next().is_some() {
        return Err(Fault::LengthRequired);
    }
    let mut lengths = named("content-length").map(|(_, value)| *value);
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(0),
        (Some(text), None) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
            text.parse().map_err(|_| Fault::BadRequest)
        }
        _ => Err(Fault::BadRequest),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(head: &str) -> Result<Request, Fault> {
        Request::parse(format!("{head}\r\n\r\n").as_bytes())
    }

    fn forwarded(head: &str) -> (String, u16, String, u64) {
        match parse(head).unwrap() {
            Request {
                host,
                port,
                kind: Kind::Forward { head, body_bytes },
                ..
            } => (host, port, String::from_utf8(head).unwrap(), body_bytes),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_tunnel_is_a_host_and_a_port() {
        for (head, host, port) in [
            ("CONNECT a.org:443 HTTP/1.1\r\nHost: b.org", "a.org", 443),
            ("CONNECT [::1]:22 HTTP/1.0", "[::1]", 22),
            ("CONNECT 2130706433:80 HTTP/1.1", "2130706433", 80),
        ] {
            let request = parse(head).unwrap();
            assert_eq!((request.host.as_str(), request.port), (host, port));
            assert_eq!(request.kind, Kind::Tunnel);
        }
    }

    #[test]
    fn a_forwarded_head_is_written_anew() {
        let (host, port, head, body_bytes) = forwarded(
            "POST HTTP://a.org:8080/x?y HTTP/1.0\r\nHost: b.org\r\nConnection: close, X-Hop\r\nx-hop: 1\r\n\
             Proxy-Authorization: secret\r\nAccept:\t*/*\r\nContent-Length: 3",
        );
        assert_eq!((host.as_str(), port, body_bytes), ("a.org", 8080, 3));
        assert_eq!(
            head,
            "POST /x?y HTTP/1.1\r\nHost: a.org:8080\r\nConnection: close\r\nAccept: */*\r\nContent-Length: 3\r\n\r\n"
        );
        let (_, port, head, _) = forwarded("GET http://a.org?q HTTP/1.1");
        assert_eq!(port, 80);
        assert!(
            head.starts_with("GET /?q HTTP/1.1\r\nHost: a.org\r\n"),
            "{head}"
        );
    }

    #[test]
    fn a_body_has_its_length_whatever_the_client_calls_it() {
        let (_, _, head, body_bytes) = forwarded(
            "POST http://a.org/ HTTP/1.1\r\nConnection: content-length, X-Hop\r\nContent-Length: 003\r\nX-Hop: 1",
        );
        assert_eq!(body_bytes, 3);
        assert_eq!(
            head,
            "POST / HTTP/1.1\r\nHost: a.org\r\nConnection: close\r\nContent-Length: 3\r\n\r\n"
        );
    }

    #[test]
    fn what_has_two_readings_is_refused() {
        for (head, fault) in [
            ("GET / HTTP/1.1\r\nHost: a.org", Fault::BadRequest),
            ("GET https://a.org/ HTTP/1.1", Fault::BadRequest),
            ("GET http://u@a.org/ HTTP/1.1", Fault::BadRequest),
            ("GET http:///x HTTP/1.1", Fault::BadRequest),
            ("GET http://a.org/#x HTTP/1.1", Fault::BadRequest),
            ("GET  http://a.org/ HTTP/1.1", Fault::BadRequest),
            ("GET http://a.org/ HTTP/2", Fault::BadRequest),
            ("GET http://ä.org/ HTTP/1.1", Fault::BadRequest),
            ("GET http://a.org/\nX HTTP/1.1", Fault::BadRequest),
            ("GET http://a.org/ HTTP/1.1\r\nX : y", Fault::BadRequest),
            ("GET http://a.org/ HTTP/1.1\r\n folded", Fault::BadRequest),
            (
                "GET http://a.org/ HTTP/1.1\r\nX: a\nHost: b",
                Fault::BadRequest,
            ),
            (
                "GET http://a.org/ HTTP/1.1\r\nContent-Length: +3",
                Fault::BadRequest,
            ),
            (
                "GET http://a.org/ HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3",
                Fault::BadRequest,
            ),
            (
                "POST http://a.org/ HTTP/1.1\r\nTransfer-Encoding: chunked",
                Fault::LengthRequired,
            ),
            ("CONNECT a.org HTTP/1.1", Fault::BadRequest),
            ("CONNECT :443 HTTP/1.1", Fault::BadRequest),
            ("CONNECT http://a.org:443/ HTTP/1.1", Fault::BadRequest),
            ("TRACE http://a.org/ HTTP/1.1", Fault::MethodNotAllowed),
            ("connect a.org:443 HTTP/1.1", Fault::MethodNotAllowed),
            ("", Fault::BadRequest),
        ] {
            assert_eq!(parse(head), Err(fault), "{head:?}");
        }
    }

    #[test]
    fn every_answer_says_its_length() {
        let answer = Fault::Forbidden.answer();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 403 Forbidden\r\n"));
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
    }

    proptest! {
        /// Whatever the client sends, at the destination it is one request with one Host.
        #[test]
        fn a_forwarded_head_is_one_request(
            path in "[ -~]{0,20}",
            name in "[ -~\r\n]{0,12}",
            value in "[ -~\r\n]{0,20}",
        ) {
            let head = format!("GET http://a.org/{path} HTTP/1.1\r\n{name}: {value}");
            if let Ok(Request { kind: Kind::Forward { head, .. }, host, .. }) = parse(&head) {
                prop_assert_eq!(host, "a.org");
                prop_assert_eq!(end_of_head(&head), Some(head.len()));
                let text = String::from_utf8(head).unwrap().to_ascii_lowercase();
                prop_assert_eq!(text.matches("\r\nhost:").count(), 1);
                prop_assert_eq!(text.matches('\n').count(), text.matches("\r\n").count());
            }
        }

        #[test]
        fn no_head_panics(bytes: Vec<u8>) {
            let _ = Request::parse(&bytes);
        }
    }
}
