//! The agent's end, in the init: what comes to a port of the namespace's loopback goes to the proxy's socket. It judges
//! nothing; whoever speaks to the socket itself gains nothing.

use std::{
    io,
    net::{TcpListener, TcpStream},
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

use super::{
    PROXY_ADDRESS,
    proxy::{IDLE, MAX_CONNECTIONS, Place, STACK_BYTES},
    relay::{Flow, relay},
    socket::Way,
};

/// A few more than the proxy serves, so that it is the proxy which says that there are too many.
const MAX_FORWARDED: usize = MAX_CONNECTIONS + 32;
const PAUSE: Duration = Duration::from_millis(100);

/// Listens where the agent is told to find its proxy, and forwards until the process ends.
pub(in crate::sandbox) fn forward(socket: &Path) -> io::Result<()> {
    let way = Arc::new(Way::to(socket)?);
    // Fails where loopback is down: then there is no way out, and no agent is told that there is one.
    let listener = TcpListener::bind(PROXY_ADDRESS)?;
    thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(move || accept(&listener, &way))
        .map(drop)
}

fn accept(listener: &TcpListener, way: &Arc<Way>) {
    let taken = Arc::default();
    loop {
        let Ok((client, _)) = listener.accept() else {
            thread::sleep(PAUSE);
            continue;
        };
        let Some(place) = Place::take(&taken, MAX_FORWARDED) else {
            continue;
        };
        let way = Arc::clone(way);
        // Without a thread the connection is closed, as it is without a place.
        let _ = thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let _place = place;
                carry(&client, &way);
            });
    }
}

fn carry(client: &TcpStream, way: &Way) {
    let _ = client.set_nodelay(true);
    if let Ok(proxy) = way.connect() {
        let _ = relay(client, &proxy, Flow::empty(), Flow::empty(), IDLE);
    }
}
