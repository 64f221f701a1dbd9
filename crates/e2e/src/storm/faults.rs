//! What goes wrong meanwhile: nodes that die, stores that are locked, an engine that is frozen or dies.

use std::{
    net::{Ipv4Addr, TcpListener},
    time::Duration,
};

use tokio::time::sleep;

use super::{
    Storm,
    plan::{Crash, Outage, Trouble},
};
use crate::{
    api::{Node, eventually},
    engine::private::PrivateEngine,
    system::World,
};

impl Storm {
    pub(super) async fn outage(&self, outage: Option<Outage>) {
        let Some(outage) = outage else { return };
        let node = self.node(outage.spoke);
        self.ledger.note(format!(
            "lock the store of {} for {} ms",
            node.name, outage.for_ms
        ));
        self.ledger.count(|counts| counts.locks += 1);
        let store = node.data_dir.join("store.db");
        let held = tokio::task::spawn_blocking(move || {
            let lock = rusqlite::Connection::open(store).unwrap();
            lock.busy_timeout(crate::api::PATIENCE).unwrap();
            lock.execute_batch("BEGIN EXCLUSIVE").unwrap();
            std::thread::sleep(Duration::from_millis(outage.for_ms));
        });
        held.await.unwrap();
    }

    /// Freezes the engine, or has it die and come back, if it is the storm's own.
    pub(super) async fn trouble(
        &self,
        engine: Option<&mut PrivateEngine>,
        trouble: Option<Trouble>,
    ) {
        let (Some(engine), Some(trouble)) = (engine, trouble) else {
            return;
        };
        sleep(Duration::from_millis(trouble.after_ms)).await;
        self.ledger.note(format!("{trouble:?} of the engine"));
        let lasts = sleep(Duration::from_millis(trouble.for_ms));
        if trouble.dies {
            engine.crash();
            lasts.await;
            engine.restart().await;
        } else {
            let _frozen = engine.frozen();
            lasts.await;
        }
        self.ledger.note("the engine is well");
        self.ledger.count(|counts| {
            counts.operations += 1;
            counts.engine_crashes += usize::from(trouble.dies);
            counts.engine_freezes += usize::from(!trouble.dies);
        });
    }

    pub(super) async fn crash(&self, world: &mut World, crash: Crash) {
        let node = self.node(crash.spoke).clone();
        sleep(Duration::from_millis(crash.after_ms)).await;
        let die = |world: &mut World| {
            world.crash(&node.name);
            self.ledger.note(format!("crash of {}", node.name));
            self.ledger.count(|counts| counts.crashes += 1);
        };
        die(world);
        if let Some(after) = crash.again_after_ms {
            until_its_port_is_free(&node).await;
            world.launch(&node.name);
            sleep(Duration::from_millis(after)).await;
            die(world);
        }
        until_its_port_is_free(&node).await;
        world.restart(&node).await;
        self.ledger.note(format!("{} is back", node.name));
    }
}

/// Waits until nobody has a dead node's port any more. It was seen to be in use for a moment; a child that a node is about
/// to start when it dies would have its socket until it is executed.
async fn until_its_port_is_free(node: &Node) {
    let port = node.url.rsplit(':').next();
    let port: u16 = port.and_then(|port| port.parse().ok()).unwrap();
    eventually("a free port", async || {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()
    })
    .await;
}
