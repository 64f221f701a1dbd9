//! A storm: random operations from a seed against a hub and its spokes, which crash meanwhile, whose stores are locked
//! and whose engine of containers is frozen and dies; and what must be true all the time, checked against the kernel, git, the engine and the record.
//!
//! - **No survivor:** from the moment a kill was answered with proof, no process of its agent exists.
//! - **No double:** an agent never runs twice at once, nor more often than its record says.
//! - **Terminal is final:** a state that was seen to be terminal never changes, and an answered kill ends in `killed`.
//! - **Held means held:** between the answer of a kill-all with hold and the release nothing starts.
//! - **No work is lost:** what an agent wrote is in its branch, or in its salvage ref, or its tree is kept.
//! - **No lost slot,** a sound audit trail, and **nothing left** in the end.
//!
//! What is done is a pure function of the seed; when it is done in the middle of what else happens, is not.
#![expect(clippy::unwrap_used, reason = "a harness fails by failing its test")]

mod acts;
mod books;
mod faults;
pub mod kernel;
mod ledger;
mod lives;
mod plan;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use mosaic_types::AgentId;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    api::Node,
    engine::{Engine, private::PrivateEngine, test_image},
    system::World,
};
use kernel::Sight;
use ledger::Ledger;
use plan::{Act, Birth, Plan, SPOKES, Wave};

pub use ledger::Counts;

/// Agents that run at once at a spoke.
const SLOTS: usize = 6;
/// Agents that wait at once at a spoke.
const WAITING: usize = 48;
/// The image of agents in containers of an engine of our own.
const IMAGE: &str = "mosaic-storm:1";
/// What agents run, beside what is in every such image.
const PROGRAMS: [&str; 3] = ["git", "nohup", "seq"];

/// Where agents' containers are.
#[derive(Debug)]
pub enum Containers {
    /// There are none.
    Nowhere,
    /// At the machine's engine, to which nothing is done: few, because it is others' too.
    AtTheMachines,
    /// At an engine of the storm's own, which is frozen and dies.
    AtItsOwn(PrivateEngine),
}

impl Containers {
    /// The best that this machine has.
    pub async fn best() -> Self {
        match PrivateEngine::start().await {
            Some(engine) => Self::AtItsOwn(engine),
            None if Engine::of_the_machine().has_image(&test_image()) => Self::AtTheMachines,
            None => Self::Nowhere,
        }
    }

    fn engine(&self) -> Option<Engine> {
        match self {
            Self::Nowhere => None,
            Self::AtTheMachines => Some(Engine::of_the_machine()),
            Self::AtItsOwn(engine) => Some(engine.engine()),
        }
    }

    fn own(&mut self) -> Option<&mut PrivateEngine> {
        match self {
            Self::AtItsOwn(engine) => Some(engine),
            _ => None,
        }
    }

    /// Agents in containers, of a hundred.
    fn percent(&self) -> u64 {
        match self {
            Self::AtItsOwn(_) => 30,
            _ => 4,
        }
    }

    /// The settings of a spoke that is to use it.
    fn settings(&self) -> Option<String> {
        let settings = match self {
            Self::Nowhere => return None,
            Self::AtTheMachines => format!("image = {:?}\n", test_image()),
            Self::AtItsOwn(engine) => format!(
                "image = {IMAGE:?}\nsocket = {:?}\nnetwork = \"none\"\ncall-timeout-secs = 5\n\
                 [[sandbox.docker.warm]]\nruntime = \"shell\"\nsize = 1\nnetwork = \"none\"\n",
                engine.socket()
            ),
        };
        Some(format!("[sandbox.docker]\n{settings}"))
    }
}

/// What to do.
#[derive(Debug)]
pub struct Orders {
    /// Which storm.
    pub seed: u64,
    /// At least so many operations.
    pub operations: usize,
    /// Where some agents' containers are.
    pub containers: Containers,
    /// Whether to tell how far it is.
    pub progress: bool,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Report {
    /// How much happened.
    pub counts: Counts,
    /// How long it took.
    pub took: Duration,
    /// What was not true.
    pub violations: Vec<String>,
    /// The last operations, with their times in seconds.
    pub log: Vec<String>,
}

struct Storm {
    hub: Node,
    spokes: Vec<Node>,
    connections: Vec<String>,
    /// By their numbers.
    ids: Vec<AgentId>,
    ledger: Ledger,
    /// Where containers are.
    engine: Option<Engine>,
    /// Whose containers are whose, where there are some.
    instances: Vec<String>,
}

/// Lets a storm pass over a world of its own.
///
/// # Panics
/// The world cannot be made, or something is left of it.
pub async fn pass(mut orders: Orders) -> Report {
    let began = Instant::now();
    let mut world = World::new();
    // What daemons say when they are killed and their stores locked; panics and lost agents are looked for.
    world.expect_log("");
    world.set_env("RUST_LOG", "warn");
    let mut storm = Storm::begin(&mut world, &orders.containers).await;
    for wave in Plan::new(orders.seed, orders.containers.percent()) {
        storm.pass(&mut world, orders.containers.own(), &wave).await;
        let counts = storm.ledger.counts();
        if !storm.ledger.violations().is_empty() {
            break;
        }
        if orders.progress && wave.check {
            eprintln!("{:>7.0} s  {counts:?}", began.elapsed().as_secs_f64());
        }
        if counts.operations >= orders.operations {
            storm.end(&world).await;
            break;
        }
    }
    let report = Report {
        counts: storm.ledger.counts(),
        took: began.elapsed(),
        violations: storm.ledger.violations(),
        log: storm.ledger.log(),
    };
    if report.violations.is_empty() {
        world.stop().await;
    } else {
        drop(world);
        storm.remove_containers();
    }
    report
}

impl Storm {
    async fn begin(world: &mut World, containers: &Containers) -> Self {
        let mut settings = format!(
            "[limits]\nmax-running = {SLOTS}\nmax-queued = {WAITING}\nreconcile-secs = 5\n"
        );
        let engine = containers.engine();
        if let Containers::AtItsOwn(engine) = containers {
            engine.import(IMAGE, &PROGRAMS);
        }
        if let Some(engine) = &engine {
            world.use_engine(engine.clone());
        }
        settings.push_str(&containers.settings().unwrap_or_default());
        let hub = world.hub("hub").await;
        let (mut spokes, mut connections) = (Vec::new(), Vec::new());
        let mut instances = Vec::new();
        for number in 1..=SPOKES {
            let spoke = world.spoke(&format!("spoke-{number}"), &settings).await;
            let mut invite = vec!["--repository", "**", "--spawns-per-minute", "100000"];
            if engine.is_some() {
                invite.extend(["--sandbox", "process", "--sandbox", "docker"]);
            }
            connections.push(world.peer(&hub, &spoke, &invite).await);
            if engine.is_some() {
                let told = spoke.call("GET", "/api/v1/instance", None).await.ok();
                instances.push(told["instanceId"].as_str().unwrap().to_owned());
            }
            spokes.push(spoke);
        }
        Self {
            hub,
            spokes,
            connections,
            ids: Vec::new(),
            ledger: Ledger::new(),
            engine,
            instances,
        }
    }

    fn id(&mut self, number: usize) -> AgentId {
        while self.ids.len() <= number {
            self.ids.push(AgentId::generate());
        }
        self.ids[number]
    }

    fn node(&self, spoke: Option<usize>) -> &Node {
        spoke.map_or(&self.hub, |spoke| &self.spokes[spoke])
    }

    /// One wave: everything at once, and what must be true afterwards.
    async fn pass(&mut self, world: &mut World, engine: Option<&mut PrivateEngine>, wave: &Wave) {
        self.ledger
            .count(|counts| counts.operations += wave.operations());
        for (_, act) in &wave.acts {
            if let Act::Spawn(birth) = act {
                let agent = self.id(birth.agent);
                self.ledger.born(agent, *birth);
            }
        }
        let released: Vec<usize> = wave
            .acts
            .iter()
            .filter_map(|(_, act)| match act {
                Act::Release { spoke } => Some(*spoke),
                _ => None,
            })
            .collect();
        self.look_at_holds().await;
        for spoke in &released {
            self.ledger.release(*spoke);
        }
        let bodies: Vec<Option<Value>> = wave
            .acts
            .iter()
            .map(|(_, act)| match act {
                Act::Spawn(birth) => Some(self.body(world, birth)),
                _ => None,
            })
            .collect();
        let acts = wave.acts.iter().zip(bodies).map(|((after, act), body)| {
            let storm = &*self;
            async move {
                sleep(Duration::from_millis(*after)).await;
                storm.act(*act, body).await
            }
        });
        let faults = async {
            // A store that is locked keeps a daemon from its start.
            self.outage(wave.locked).await;
            if let Some(crash) = wave.crash {
                self.crash(world, crash).await;
            }
        };
        let trouble = self.trouble(engine, wave.trouble);
        let (holds, (), ()) = tokio::join!(join_all(acts), faults, trouble);
        for held in holds.into_iter().flatten().flatten() {
            if !released.contains(&held.spoke) {
                self.ledger.hold(held);
            }
        }
        if wave.check {
            self.check(world).await;
        }
    }

    fn body(&self, world: &World, birth: &Birth) -> Value {
        let agent = self.ids[birth.agent];
        let connection = birth.by_hub.then(|| self.connections[birth.spoke].as_str());
        let mut body = world.spawn_body(connection, agent, &lives::script(agent, birth.life));
        body["taskId"] = json!(format!("T-{}", birth.task));
        body["options"] = json!({"maxRetries": birth.retries});
        if birth.contained && self.engine.is_some() {
            body["options"]["sandbox"] = json!("docker");
            body["options"]["network"] = json!("none");
        }
        body
    }

    /// Looks at the kernel: whoever was told to be dead before is.
    async fn survivors(&self) -> Sight {
        let dead = self.ledger.dead();
        let spokes = self.spokes.clone();
        let sight = tokio::task::spawn_blocking(move || Sight::take(&spokes))
            .await
            .unwrap();
        self.ledger.judge(&sight, &dead);
        sight
    }

    async fn look_at_holds(&self) {
        if self.ledger.is_anything_held() {
            self.survivors().await;
        }
    }
}
