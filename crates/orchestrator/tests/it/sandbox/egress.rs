//! An allow-list as an agent finds it: what it lets through, what it does not, and that it ends with its sandbox.

use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use mosaic_orchestrator::sandbox::{
    EgressRules, EngineKind, ExitStatus, LaunchSpec, Network, Sandbox, SandboxError,
    mask::Mask,
    spool::{Notice, Stream},
};

use super::rig::{Agent, LIMIT, Rig, records, skip_unless, soon, text};

/// A server on this host's loopback, which answers each line with `served` and goes with its test.
pub(crate) struct Server {
    pub(crate) port: u16,
    served: Arc<AtomicUsize>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&served);
        thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let mut chunk = [0; 4096];
                    while stream.read(&mut chunk).is_ok_and(|count| count > 0) {
                        let answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nserved\n";
                        if stream.write_all(answer).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        Self { port, served }
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }
}

/// What the scripts below can do: a client of the proxy in bash alone.
pub(crate) const CLIENT: &str = r#"
ask() { # a request line: says the status line
    exec 3<>/dev/tcp/127.0.0.1/3128 || { echo "$1: no proxy"; return; }
    printf '%s HTTP/1.1\r\n\r\n' "$1" >&3
    IFS= read -r line <&3; echo "$1: ${line%$'\r'}"
    exec 3>&-
}
tunnel() { # a destination: leaves an open tunnel at 4
    exec 4<>/dev/tcp/127.0.0.1/3128
    printf 'CONNECT %s HTTP/1.1\r\n\r\n' "$1" >&4
    IFS= read -r line <&4; IFS= read -r empty <&4; echo "tunnel: ${line%$'\r'}"
}
through() { # through the tunnel: says the answer's first line
    echo hello >&4; IFS= read -r line <&4; echo "through: ${line%$'\r'}"
}
"#;

/// Bubblewrap and bash are there, and a list can be kept.
pub(crate) fn rig() -> Option<Rig> {
    let has_bash = std::path::Path::new("/bin/bash").exists();
    if !skip_unless(has_bash, "bash") {
        return None;
    }
    let rig = Rig::new(EngineKind::Bubblewrap, false)?;
    skip_unless(rig.sandbox.containment().egress, "loopback in a namespace").then_some(rig)
}

fn rules(allow: &[String], private: &[String]) -> Network {
    let parse = |list: &[String]| list.iter().map(|rule| rule.parse().unwrap()).collect();
    Network::Allow(EgressRules {
        allow: parse(allow),
        private: parse(private),
    })
}

fn bash(script: &str, network: Network) -> impl FnOnce(&mut LaunchSpec) {
    let script = format!("{CLIENT}\n{script}");
    move |spec| {
        spec.argv = vec!["/bin/bash".into(), "-c".into(), script];
        spec.network = network;
    }
}

fn refusals(agent: &Agent) -> Vec<(String, bool)> {
    let notices = records(&agent.handle.spool_path());
    notices
        .iter()
        .filter_map(|record| match record.notice()? {
            Notice::EgressRefused {
                destination,
                not_public,
                ..
            } => Some((destination, not_public)),
            _ => None,
        })
        .collect()
}

async fn says(agent: &Agent) -> String {
    let ended = tokio::time::timeout(LIMIT, agent.handle.wait_exit()).await;
    let text = agent.text(Stream::Stdout);
    let ended = ended.unwrap_or_else(|_| panic!("it goes on: {text}"));
    let ended = ended.unwrap();
    let complaints = agent.text(Stream::Stderr);
    assert_eq!(ended.status, ExitStatus::Code(0), "{text} {complaints}");
    text
}

#[tokio::test]
async fn f18_an_agent_reaches_what_is_listed_and_nothing_else() {
    let Some(rig) = rig() else { return };
    let server = Server::start();
    let port = server.port;
    let listed = [format!("127.0.0.1:{port}"), "*.allowed.example".to_owned()];
    let script = format!(
        "ask 'GET http://127.0.0.1:{port}/x'; tunnel 127.0.0.1:{port}; through\n\
         for host in elsewhere.example allowed.example 2130706433 0x7f.1 127.1 '[::ffff:127.0.0.1]' localhost; do\n\
           ask \"CONNECT $host:{port}\"; ask \"GET http://$host:{port}/\"; done\n\
         ask 'CONNECT 127.0.0.1:1'\n\
         for way in 127.0.0.1/{port} 8.8.8.8/53 169.254.169.254/80; do\n\
           (exec 5<>/dev/tcp/$way) 2>/dev/null && echo \"direct $way\" || echo \"no direct $way\"; done"
    );
    let agent = rig.run(bash(&script, rules(&listed, &listed))).await;
    let text = says(&agent).await;
    assert!(
        text.contains(&format!("GET http://127.0.0.1:{port}/x: HTTP/1.1 200 OK")),
        "{text}"
    );
    assert!(
        text.contains("tunnel: HTTP/1.1 200 Connection established\nthrough: HTTP/1.1 200 OK"),
        "{text}"
    );
    assert_eq!(
        text.matches(": HTTP/1.1 403 Forbidden\n").count(),
        15,
        "{text}"
    );
    assert_eq!(text.matches("no direct").count(), 3, "{text}");
    assert_eq!(server.served(), 2);
    let told = refusals(&agent);
    assert_eq!(told.len(), 15, "{told:?}");
    for host in [
        "elsewhere.example",
        "2130706433",
        "0x7f.1",
        "[::ffff:127.0.0.1]",
        "localhost",
    ] {
        assert!(
            told.contains(&(format!("{host}:{port}"), false)),
            "{told:?}"
        );
    }
    rig.finish().await;
}

#[tokio::test]
async fn f18_what_leads_somewhere_private_is_refused_unless_configured() {
    let Some(rig) = rig() else { return };
    let server = Server::start();
    let port = server.port;
    let [name, address] = ["localhost", "127.0.0.1"].map(|host| format!("{host}:{port}"));
    let script = format!("ask 'CONNECT {name}'; ask 'CONNECT {address}'");
    let listed = [name.clone(), address.clone()];
    let strict = rig.run(bash(&script, rules(&listed, &[]))).await;
    let text = says(&strict).await;
    assert_eq!(text.matches(": HTTP/1.1 403 ").count(), 2, "{text}");
    assert_eq!(refusals(&strict), [(name.clone(), true), (address, true)]);
    assert_eq!(server.served(), 0);
    let one = rig
        .run(bash(&script, rules(&listed, std::slice::from_ref(&name))))
        .await;
    let text = says(&one).await;
    assert!(text.contains(&format!("{name}: HTTP/1.1 200")), "{text}");
    assert_eq!(text.matches(": HTTP/1.1 403 ").count(), 1, "{text}");
    rig.finish().await;
}

/// A program that is given a secret in the place of a host has it refused, and that is told.
#[tokio::test]
async fn a31_a_refusal_tells_no_secret() {
    let Some(rig) = rig() else { return };
    let secret = format!("Key-{}", mosaic_types::AgentId::generate());
    let script = "ask \"GET http://$KEY/\" >/dev/null; ask \"CONNECT ${KEY,,}:443\" >/dev/null; \
                  ask 'GET http://elsewhere.example/' >/dev/null";
    let agent = rig
        .run(|spec| {
            bash(script, rules(&["a.example".to_owned()], &[]))(spec);
            spec.env.insert("KEY".into(), secret.clone());
            spec.masks.push(Mask::new("key", &secret).unwrap());
        })
        .await;
    says(&agent).await;
    let expected = [
        "[secret:key]:80",
        "[secret:key]:443",
        "elsewhere.example:80",
    ];
    let expected = expected.map(|destination| (destination.to_owned(), false));
    assert_eq!(refusals(&agent), expected);
    let spool = std::fs::read(agent.handle.spool_path()).unwrap();
    let spool = String::from_utf8_lossy(&spool).to_lowercase();
    assert!(!spool.contains(&secret.to_lowercase()), "{spool}");
    rig.finish().await;
}

#[tokio::test]
async fn an_agent_sees_the_socket_of_its_agent_directory_and_cannot_touch_it() {
    let Some(rig) = rig() else { return };
    let spec = rig.spec(|_| {});
    let dir = spec.agent_dir.clone();
    let script = format!(
        "ls {dir} {dir}/egress; rm {dir}/egress/proxy.sock 2>/dev/null && echo removed; \
         touch {dir}/egress/x 2>/dev/null && echo written; ask 'CONNECT a.example:443'",
        dir = dir.display()
    );
    let spec = LaunchSpec { ..spec };
    let agent = rig
        .run(|fresh| {
            *fresh = spec;
            bash(&script, rules(&["b.example".to_owned()], &[]))(fresh);
        })
        .await;
    let text = says(&agent).await;
    let dir = dir.display();
    let expected = format!(
        "{dir}:\negress\n\n{dir}/egress:\nproxy.sock\nCONNECT a.example:443: HTTP/1.1 403 Forbidden\n"
    );
    assert_eq!(text, expected);
    assert!(
        !agent.dir.join("egress/proxy.sock").exists(),
        "it went with its agent"
    );
    rig.finish().await;
}

#[tokio::test]
async fn f22_an_agent_has_so_many_connections_and_holds_up_nobody() {
    let Some(rig) = rig() else { return };
    // They are carried side by side: which of them are too many is not known beforehand.
    let script = "for i in {1..150}; do exec {fd}<>/dev/tcp/127.0.0.1/3128 || exit 2; fds[i]=$fd; done\n\
        until [[ $line = *' 503 '* ]]; do for fd in ${fds[@]}; do\n\
          read -t 0 -u $fd && IFS= read -r -u $fd line && [[ $line = *' 503 '* ]] && break; done; done; echo \"one: $line\"\n\
        for fd in ${fds[@]}; do exec {fd}>&-; done\n\
        until ask 'CONNECT a.example:443' | grep -q 403; do :; done; echo free";
    let agent = rig
        .run(bash(script, rules(&["b.example".to_owned()], &[])))
        .await;
    let text = says(&agent).await;
    assert!(text.contains("one: HTTP/1.1 503 "), "{text}");
    assert!(text.ends_with("free\n"), "{text}");
    rig.finish().await;
}

#[tokio::test]
async fn a_flood_of_refusals_is_told_up_to_a_number() {
    let Some(rig) = rig() else { return };
    let script =
        "for i in {1..120}; do ask \"CONNECT a$i.example:443\" >/dev/null; done; echo done";
    let agent = rig
        .run(bash(script, rules(&["b.example".to_owned()], &[])))
        .await;
    assert_eq!(says(&agent).await, "done\n");
    let told = refusals(&agent);
    assert_eq!(told.len(), 100);
    assert_eq!(told.last().unwrap().0, "a100.example:443");
    rig.finish().await;
}

#[tokio::test]
async fn a14_a_kill_takes_open_tunnels_along() {
    let Some(rig) = rig() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let listed = [format!(
        "127.0.0.1:{}",
        listener.local_addr().unwrap().port()
    )];
    let script = format!(
        "for i in 1 2 3; do tunnel {}; exec {{fd}}<&4; done; echo up; exec sleep 1000",
        listed[0]
    );
    let agent = rig.run(bash(&script, rules(&listed, &listed))).await;
    let mut tunnels: Vec<_> = (0..3).map(|_| listener.accept().unwrap().0).collect();
    agent.wait_for("up").await;
    agent.handle.kill().unwrap();
    let death = agent.handle.prove_dead(soon()).await;
    assert!(death.is_proven(), "{death:?}");
    for tunnel in &mut tunnels {
        tunnel.set_read_timeout(Some(LIMIT)).unwrap();
        assert!(!matches!(tunnel.read(&mut [0]), Ok(1)), "it is cut");
    }
    rig.finish().await;
}

#[tokio::test]
async fn a6_the_proxy_goes_on_while_no_daemon_holds_the_agent() {
    let Some(rig) = rig() else { return };
    let server = Server::start();
    let listed = [format!("127.0.0.1:{}", server.port)];
    let gate = rig.work().join("gate");
    let script = format!(
        "tunnel {at}; through; echo up; while [ ! -e {gate} ]; do sleep 0.01; done\n\
         IFS= read -r a <&4; IFS= read -r a <&4; IFS= read -r a <&4; through; ask 'GET http://{at}/'",
        at = listed[0],
        gate = gate.display(),
    );
    let agent = rig.run(bash(&script, rules(&listed, &listed))).await;
    agent.wait_for("up").await;
    let dir = agent.dir.clone();
    drop(agent);
    let adopted = rig.adopt_live(&dir).await;
    std::fs::write(&gate, "").unwrap();
    assert_eq!(
        adopted.wait_exit().await.unwrap().status,
        ExitStatus::Code(0)
    );
    let text = text(&adopted.spool_path(), Stream::Stdout);
    assert_eq!(
        text.matches("through: HTTP/1.1 200 OK").count(),
        2,
        "{text}"
    );
    assert!(text.contains("/: HTTP/1.1 200 OK"), "{text}");
    rig.finish().await;
}

#[tokio::test]
async fn where_loopback_stays_down_a_list_is_refused() {
    let Some(rig) = Rig::new(EngineKind::Unshare, false) else {
        return;
    };
    assert!(!rig.sandbox.containment().egress);
    let spec = rig.spec(|spec| spec.network = rules(&["a.example".to_owned()], &[]));
    let refused = rig.sandbox.prepare(spec);
    assert!(
        matches!(refused, Err(SandboxError::InvalidLaunch { .. })),
        "{refused:?}"
    );
    rig.finish().await;
}
