//! A git server over https on loopback: TLS by rustls, a CA of its own, basic authentication, `git http-backend` for
//! what it serves, and whatever trouble a test orders.

use std::{
    collections::VecDeque,
    io::{self, BufRead, BufReader, Seek, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use data_encoding::BASE64;
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::{rig::PATIENCE, sandbox::rig::skip_unless};

pub(crate) const USER: &str = "spoke";

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It is sent elsewhere.
    Redirected(String),
    /// The connection breaks before git hears of it.
    Unheard,
    /// Git does it, and the connection breaks after so many bytes of the answer's body.
    Cut(usize),
    /// Git does it, and nothing comes after so many bytes of the answer's body.
    Stuck(usize),
    /// Refused, by a server that repeats what it was sent.
    Repeated(u16),
}

/// What was seen so far.
#[derive(Debug, Default)]
struct Seen {
    connections: usize,
    /// First lines, of those with the right credential.
    requests: Vec<String>,
    /// Connections on which nothing comes any more, and whose client is still there.
    stuck: usize,
}

struct Shared {
    tls: Arc<ServerConfig>,
    root: PathBuf,
    authorization: String,
    troubles: Mutex<VecDeque<(String, Trouble)>>,
    seen: watch::Sender<Seen>,
}

/// See the module documentation.
pub(crate) struct GitServer {
    address: SocketAddr,
    ca: PathBuf,
    shared: Arc<Shared>,
    _dir: TempDir,
}

impl GitServer {
    /// Serves the repositories below `root` to whoever has the token. `None` where it lacks a program, for which it
    /// says so.
    pub(crate) fn start(root: &Path, token: &str) -> Option<Self> {
        let there = |program: &str, asked: &[&str]| {
            let output = Command::new(program).args(asked).output();
            output.is_ok_and(|output| output.status.success())
        };
        if !skip_unless(there("openssl", &["version"]), "openssl") {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let tls = Arc::new(certified(dir.path()));
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let basic = BASE64.encode(format!("{USER}:{token}").as_bytes());
        let shared = Arc::new(Shared {
            tls,
            root: root.to_owned(),
            authorization: format!("Basic {basic}"),
            troubles: Mutex::default(),
            seen: watch::Sender::default(),
        });
        let server = Self {
            address: listener.local_addr().unwrap(),
            ca: dir.path().join("ca.pem"),
            shared: Arc::clone(&shared),
            _dir: dir,
        };
        // It ends with the test's process: nobody waits for a thread that a test has left in `accept`.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                shared.seen.send_modify(|seen| seen.connections += 1);
                // What a client makes of a connection that breaks is for the test to say.
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Some(server)
    }

    /// The URL of a repository.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{}/{path}", self.address)
    }

    /// Git that knows this server's CA and no other, as where an operator has added it to the machine's.
    pub(crate) fn git(&self, dir: &Path) -> PathBuf {
        let path = std::env::var("PATH").unwrap();
        let mut folders = path.split(':').map(|folder| Path::new(folder).join("git"));
        let real = folders.find(|git| git.is_file()).unwrap();
        let (git, ca) = (dir.join("git"), &self.ca);
        let text = format!("#!/bin/sh\nGIT_SSL_CAINFO={ca:?} exec {real:?} \"$@\"\n");
        // By a process of its own: while this one holds the file open for writing, a child that another test forks
        // holds it too, and it cannot be executed ("text file busy").
        let script = "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\"";
        let mut writing = Command::new("sh");
        writing.args(["-c", script]).arg(&git).arg(text);
        assert!(writing.status().unwrap().success());
        git
    }

    /// What becomes of the requests whose first line has this part, until [`Self::calm`].
    pub(crate) fn trouble(&self, part: &str, trouble: Trouble) {
        let mut troubles = self.shared.troubles.lock().unwrap();
        troubles.push_front((part.to_owned(), trouble));
    }

    /// Serves as it should from now on.
    pub(crate) fn calm(&self) {
        self.shared.troubles.lock().unwrap().clear();
    }

    /// How many requests with the right credential had this part in their first line.
    pub(crate) fn asked(&self, part: &str) -> usize {
        let seen = self.shared.seen.borrow();
        seen.requests
            .iter()
            .filter(|line| line.contains(part))
            .count()
    }

    /// How many connections were made.
    pub(crate) fn connections(&self) -> usize {
        self.shared.seen.borrow().connections
    }

    /// Waits until so many clients wait for what does not come.
    pub(crate) async fn until_stuck(&self, clients: usize) {
        let mut seen = self.shared.seen.subscribe();
        let stuck = seen.wait_for(|seen| seen.stuck == clients);
        let in_time = tokio::time::timeout(PATIENCE, stuck).await.is_ok();
        assert!(in_time, "{:?}", self.shared.seen.borrow());
    }
}

/// A CA, and a certificate of it for this address.
fn certified(dir: &Path) -> ServerConfig {
    let openssl = |arguments: &str| {
        let made = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(dir)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "openssl {arguments}: {said}");
    };
    let key = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    openssl(&format!(
        "{key} -subj /CN=test-ca -keyout ca.key -out ca.pem"
    ));
    openssl(&format!(
        "{key} -CA ca.pem -CAkey ca.key -subj /CN=test-server -addext subjectAltName=IP:127.0.0.1 \
         -addext basicConstraints=critical,CA:FALSE -keyout server.key -out server.pem"
    ));
    let chain = CertificateDer::from_pem_file(dir.join("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .unwrap()
}

type Stream = StreamOwned<ServerConnection, TcpStream>;

/// A request, with its whole body.
#[derive(Debug, Default)]
struct Request {
    line: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    fn read(from: &mut impl BufRead) -> io::Result<Self> {
        let mut request = Self {
            line: line(from)?,
            ..Self::default()
        };
        loop {
            let header = line(from)?;
            match header.split_once(':') {
                Some((name, value)) => request
                    .headers
                    .push((name.to_ascii_lowercase(), value.trim().to_owned())),
                None => break,
            }
        }
        if request.header("transfer-encoding") == "chunked" {
            loop {
                let size = usize::from_str_radix(&line(from)?, 16).map_err(io::Error::other)?;
                request.take(from, size)?;
                line(from)?;
                if size == 0 {
                    break;
                }
            }
        } else {
            let size = request.header("content-length").parse().unwrap_or(0);
            request.take(from, size)?;
        }
        Ok(request)
    }

    fn take(&mut self, from: &mut impl BufRead, size: usize) -> io::Result<()> {
        let begun = self.body.len();
        self.body.resize(begun + size, 0);
        from.read_exact(&mut self.body[begun..])
    }

    /// A header's value, or nothing.
    fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }
}

fn line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    match from.read_line(&mut line)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line.trim_end().to_owned()),
    }
}

impl Shared {
    fn serve(&self, tcp: TcpStream) -> io::Result<()> {
        let tls = ServerConnection::new(Arc::clone(&self.tls)).map_err(io::Error::other)?;
        let mut stream = BufReader::new(StreamOwned::new(tls, tcp));
        let request = Request::read(&mut stream)?;
        let mut stream = stream.into_inner();
        if request.header("authorization") != self.authorization {
            let challenge = "WWW-Authenticate: Basic realm=\"git\"\r\n";
            return whole(&mut stream, "401 Unauthorized", challenge, b"go away\n");
        }
        self.seen
            .send_modify(|seen| seen.requests.push(request.line.clone()));
        match self.trouble_of(&request.line) {
            None => {
                let (status, headers, body) = self.git(&request)?;
                whole(&mut stream, &status, &headers, &body)
            }
            Some(Trouble::Redirected(to)) => {
                let location = format!("Location: {to}\r\n");
                whole(&mut stream, "307 Temporary Redirect", &location, b"")
            }
            Some(Trouble::Repeated(status)) => {
                let said = format!("you sent {}\n", request.header("authorization"));
                let status = format!("{status} No");
                let plain = "Content-Type: text/plain\r\n";
                whole(&mut stream, &status, plain, said.as_bytes())
            }
            Some(Trouble::Unheard) => Ok(()),
            Some(Trouble::Cut(bytes)) => {
                let (status, headers, body) = self.git(&request)?;
                part(&mut stream, &status, &headers, &body, bytes)
            }
            Some(Trouble::Stuck(bytes)) => {
                let (status, headers, body) = self.git(&request)?;
                part(&mut stream, &status, &headers, &body, bytes)?;
                self.seen.send_modify(|seen| seen.stuck += 1);
                // Until the client has gone.
                let gone = io::copy(stream.get_mut(), &mut io::sink()).map(drop);
                self.seen.send_modify(|seen| seen.stuck -= 1);
                gone
            }
        }
    }

    fn trouble_of(&self, line: &str) -> Option<Trouble> {
        let troubles = self.troubles.lock().unwrap();
        let mut fitting = troubles.iter().filter(|(part, _)| line.contains(part));
        fitting.next().map(|(_, trouble)| trouble.clone())
    }

    /// What git answers: status, headers, body.
    fn git(&self, request: &Request) -> io::Result<(String, String, Vec<u8>)> {
        let mut words = request.line.split(' ');
        let (method, target) = (words.next(), words.next().unwrap_or_default());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut body = tempfile::tempfile()?;
        body.write_all(&request.body)?;
        body.rewind()?;
        let output = Command::new("git")
            .arg("http-backend")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_PROJECT_ROOT", &self.root)
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("REQUEST_METHOD", method.unwrap_or_default())
            .env("PATH_INFO", path)
            .env("QUERY_STRING", query)
            .env("CONTENT_TYPE", request.header("content-type"))
            .env("CONTENT_LENGTH", request.body.len().to_string())
            .env("HTTP_CONTENT_ENCODING", request.header("content-encoding"))
            .env("HTTP_GIT_PROTOCOL", request.header("git-protocol"))
            .env("REMOTE_USER", USER)
            .env("REMOTE_ADDR", "127.0.0.1")
            .stdin(Stdio::from(body))
            .stderr(Stdio::inherit())
            .output()?;
        let mut said = output.stdout.as_slice();
        let (mut status, mut headers) = ("200 OK".to_owned(), String::new());
        loop {
            let header = line(&mut said)?;
            if header.is_empty() {
                return Ok((status, headers, said.to_vec()));
            }
            match header.strip_prefix("Status: ") {
                Some(other) => status = other.to_owned(),
                None => headers.push_str(&format!("{header}\r\n")),
            }
        }
    }
}

fn whole(stream: &mut Stream, status: &str, headers: &str, body: &[u8]) -> io::Result<()> {
    part(stream, status, headers, body, body.len())?;
    stream.conn.send_close_notify();
    stream.flush()?;
    stream.get_ref().shutdown(Shutdown::Write)
}

/// Promises the whole body and sends so much of it.
fn part(
    stream: &mut Stream,
    status: &str,
    headers: &str,
    body: &[u8],
    bytes: usize,
) -> io::Result<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body[..bytes.min(length)])?;
    stream.flush()
}
