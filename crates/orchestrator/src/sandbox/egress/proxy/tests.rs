use std::net::TcpListener;

use super::*;
use crate::sandbox::egress::{socket::Way, socket_dir, socket_in};

/// A proxy that lets through to one port of this host.
struct Rig {
    dir: tempfile::TempDir,
    server: TcpListener,
    _proxy: Proxy,
    _refusals: Refusals,
}

impl Rig {
    fn new() -> Self {
        // As deep as no socket's name may be.
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let rule = format!("127.0.0.1:{}", server.local_addr().unwrap().port());
        let rules = EgressRules {
            allow: vec![rule.parse().unwrap()],
            private: vec![rule.parse().unwrap()],
        };
        let (proxy, refusals) = Proxy::start(&deep, rules, None).unwrap();
        Self {
            dir,
            server,
            _proxy: proxy,
            _refusals: refusals,
        }
    }

    fn socket(&self) -> PathBuf {
        socket_in(&socket_dir(&self.dir.path().join("d".repeat(120))))
    }

    fn client(&self) -> UnixStream {
        Way::to(&self.socket()).unwrap().connect().unwrap()
    }

    fn address(&self) -> String {
        self.server.local_addr().unwrap().to_string()
    }

    /// A place is free once its thread has seen the end.
    fn has_a_place(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let answer = self.asks(b"CONNECT elsewhere.example:443 HTTP/1.1\r\n\r\n");
            if answer.starts_with("HTTP/1.1 403 ") {
                break;
            }
            assert!(answer.starts_with("HTTP/1.1 503 "), "{answer:?}");
            assert!(Instant::now() < deadline, "the place was not given back");
            thread::yield_now();
        }
    }

    fn asks(&self, request: &[u8]) -> String {
        let mut client = self.client();
        let _ = client.write_all(request);
        let mut answer = Vec::new();
        // Closed with something unread, it may end in an error behind the answer.
        let _ = client.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }
}

#[test]
fn a_tunnel_carries_both_ways() {
    let rig = Rig::new();
    let mut client = rig.client();
    // The first bytes come with the head.
    write!(client, "CONNECT {} HTTP/1.1\r\n\r\nhello", rig.address()).unwrap();
    let (mut served, _) = rig.server.accept().unwrap();
    let mut hello = [0; 5];
    served.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");
    served.write_all(b"bye").unwrap();
    drop(served);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "HTTP/1.1 200 Connection established\r\n\r\nbye");
}

#[test]
fn a_request_is_forwarded_and_nothing_behind_it() {
    let rig = Rig::new();
    let mut client = rig.client();
    let address = rig.address();
    let request = format!(
        "POST http://{address}/x HTTP/1.1\r\nHost: other\r\nContent-Length: 4\r\n\r\nbodyGET http://other/ HTTP/1.1\r\n\r\n"
    );
    client.write_all(request.as_bytes()).unwrap();
    let (mut served, _) = rig.server.accept().unwrap();
    let expected = format!(
        "POST /x HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody"
    );
    let mut got = vec![0; expected.len()];
    served.read_exact(&mut got).unwrap();
    assert_eq!(String::from_utf8(got).unwrap(), expected);
    served
        .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
        .unwrap();
    served.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    let _ = client.read_to_string(&mut answer);
    assert_eq!(answer, "HTTP/1.1 204 No Content\r\n\r\n");
    let mut behind = Vec::new();
    let _ = served.read_to_end(&mut behind);
    assert_eq!(behind, b"");
}

#[test]
fn what_is_not_served_is_answered_with_why() {
    let rig = Rig::new();
    let long = format!(
        "GET http://a/ HTTP/1.1\r\nX: {}\r\n\r\n",
        "x".repeat(1 << 20)
    );
    for (request, status) in [
        ("CONNECT elsewhere.example:443 HTTP/1.1\r\n\r\n", "403"),
        ("CONNECT 2130706433:80 HTTP/1.1\r\n\r\n", "403"),
        ("GET http://elsewhere.example/ HTTP/1.1\r\n\r\n", "403"),
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("BREW http://a/ HTTP/1.1\r\n\r\n", "405"),
        (&long, "431"),
    ] {
        let answer = rig.asks(request.as_bytes());
        let expected = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&expected), "{status}: {answer:?}");
    }
}

#[test]
fn f22_connections_are_bounded_and_a_place_is_given_back() {
    let rig = Rig::new();
    let mut holding: Vec<_> = (0..MAX_CONNECTIONS).map(|_| rig.client()).collect();
    let refused = b"CONNECT elsewhere.example:443 HTTP/1.1\r\n\r\n";
    assert!(rig.asks(refused).starts_with("HTTP/1.1 503 "));
    holding.pop();
    rig.has_a_place();
}

#[test]
fn f22_a_client_that_gave_up_on_its_answer_gives_its_place_back() {
    let rig = Rig::new();
    let request = format!("GET http://{}/ HTTP/1.1\r\n\r\n", rig.address());
    let asks = || {
        let mut client = rig.client();
        client.write_all(request.as_bytes()).unwrap();
        // The server never answers.
        (client, rig.server.accept().unwrap())
    };
    let mut asking: Vec<_> = (0..MAX_CONNECTIONS).map(|_| asks()).collect();
    let (client, _server) = asking.pop().unwrap();
    drop(client);
    rig.has_a_place();
}

#[test]
fn the_socket_goes_with_the_proxy_and_takes_the_place_of_an_old_one() {
    use std::os::unix::fs::PermissionsExt;
    let rig = Rig::new();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&rig.socket()), 0o666);
    assert_eq!(mode(rig.socket().parent().unwrap()), 0o755);
    let agent_dir = rig.dir.path().join("d".repeat(120));
    let (second, _refusals) = Proxy::start(&agent_dir, EgressRules::default(), None).unwrap();
    assert!(rig.socket().exists());
    drop(second);
    assert!(!rig.socket().exists());
}
