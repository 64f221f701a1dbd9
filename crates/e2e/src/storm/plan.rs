//! What a storm does, as a pure function of its seed.

/// Spokes in a storm.
pub(super) const SPOKES: usize = 2;
/// Tasks that agents belong to.
const TASKS: u64 = 3;
/// The most operations at once.
const AT_ONCE: u64 = 10;
/// Every so many waves everything is checked.
const CHECK_EVERY: usize = 20;

/// A small generator of numbers (SplitMix64), so that a seed means the same for ever.
#[derive(Debug, Clone)]
pub(super) struct Dice(u64);

impl Dice {
    /// Dice that always fall like this.
    #[must_use]
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is small beside 2^64.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn index(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).unwrap_or_default()
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The hub's operator.
    Hub,
    /// The operator of a spoke.
    Spoke(usize),
}

/// What an agent does with its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// Writes, commits and ends.
    Quick,
    /// Writes and waits for ever.
    Long,
    /// Commits, writes more, and waits for ever.
    Commits,
    /// Leaves grandchildren in sessions of their own and waits.
    Forks,
    /// Leaves grandchildren and ends.
    Daemonises,
    /// Ignores every signal that can be ignored.
    Ignores,
    /// Starts processes without end.
    Breeds,
    /// Fails.
    Fails,
    /// Takes everything out of its environment.
    Hides,
    /// Says a lot and ends.
    Talks,
}

const LIVES: [Life; 10] = [
    Life::Quick,
    Life::Long,
    Life::Commits,
    Life::Forks,
    Life::Daemonises,
    Life::Ignores,
    Life::Breeds,
    Life::Fails,
    Life::Hides,
    Life::Talks,
];

/// An agent to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Birth {
    /// Its number in the storm.
    pub agent: usize,
    /// Where it is to run.
    pub spoke: usize,
    /// Whether by the hub or by the spoke's own operator.
    pub by_hub: bool,
    /// What it does.
    pub life: Life,
    /// How often it may be tried again.
    pub retries: u32,
    /// Whether in a container, where there are some.
    pub contained: bool,
    /// Its task.
    pub task: u64,
}

/// One operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// An agent is asked for.
    Spawn(Birth),
    /// An agent is killed, by its number.
    Kill {
        /// Which.
        agent: usize,
        /// By whom: the hub, or its own spoke.
        by_hub: bool,
    },
    /// Everything is killed.
    KillAll {
        /// By whom.
        way: Way,
        /// Of one task only.
        task: Option<u64>,
        /// And nothing starts from here on.
        hold: bool,
    },
    /// A spoke's holds are released.
    Release {
        /// Which spoke's.
        spoke: usize,
    },
    /// A status is asked for.
    Look {
        /// Whose.
        agent: usize,
        /// Of whom.
        by_hub: bool,
    },
}

/// A node that dies by SIGKILL and is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Crash {
    /// `None` for the hub.
    pub spoke: Option<usize>,
    /// How long into the wave, in milliseconds.
    pub after_ms: u64,
    /// And again so long after its start began.
    pub again_after_ms: Option<u64>,
}

/// What becomes of the engine of containers, where it is the storm's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trouble {
    /// Whether it dies, or is frozen.
    pub dies: bool,
    /// How long into the wave, in milliseconds.
    pub after_ms: u64,
    /// For how long, in milliseconds.
    pub for_ms: u64,
}

/// Something that is not to be had for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outage {
    /// Whose; `None` for the hub's.
    pub spoke: Option<usize>,
    /// For how long, in milliseconds.
    pub for_ms: u64,
}

/// Operations that happen at once, with what goes wrong meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wave {
    /// Its number.
    pub number: usize,
    /// The operations, each with how long into the wave it begins, in milliseconds.
    pub acts: Vec<(u64, Act)>,
    /// A crash.
    pub crash: Option<Crash>,
    /// Another connection holds a store's lock.
    pub locked: Option<Outage>,
    /// What becomes of the engine.
    pub trouble: Option<Trouble>,
    /// Whether everything is checked afterwards.
    pub check: bool,
}

impl Wave {
    /// How many operations it counts for: crashes and outages are some. An engine's trouble is not to be had everywhere.
    #[must_use]
    pub(super) fn operations(&self) -> usize {
        self.acts.len() + usize::from(self.crash.is_some()) + usize::from(self.locked.is_some())
    }
}

/// The waves of a seed, without end.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    dice: Dice,
    /// Of their own: what is done to engines changes nothing else of a seed.
    engines: Dice,
    contained_percent: u64,
    waves: usize,
    agents: usize,
}

impl Plan {
    /// The plan of this seed, with so many agents in a hundred in containers.
    #[must_use]
    pub(super) fn new(seed: u64, contained_percent: u64) -> Self {
        Self {
            dice: Dice::new(seed),
            engines: Dice::new(!seed),
            contained_percent,
            waves: 0,
            agents: 0,
        }
    }

    fn birth(&mut self) -> Birth {
        let agent = self.agents;
        self.agents += 1;
        let dice = &mut self.dice;
        Birth {
            agent,
            spoke: dice.index(SPOKES),
            by_hub: dice.chance(75),
            life: LIVES[dice.index(LIVES.len())],
            retries: u32::from(dice.chance(30)),
            contained: dice.chance(self.contained_percent),
            task: dice.below(TASKS),
        }
    }

    /// One of the last agents: most of the older ones have ended.
    fn recent(&mut self) -> usize {
        let back = self.dice.index(14);
        self.agents.saturating_sub(1 + back)
    }

    fn act(&mut self) -> Act {
        match self.dice.below(1000) {
            _ if self.agents == 0 => Act::Spawn(self.birth()),
            0..500 => Act::Spawn(self.birth()),
            500..800 => Act::Kill {
                agent: self.recent(),
                by_hub: self.dice.chance(60),
            },
            800..845 => Act::KillAll {
                way: match self.dice.index(SPOKES + 1) {
                    0 => Way::Hub,
                    spoke => Way::Spoke(spoke - 1),
                },
                task: self.dice.chance(40).then(|| self.dice.below(TASKS)),
                hold: self.dice.chance(35),
            },
            845..900 => Act::Release {
                spoke: self.dice.index(SPOKES),
            },
            _ => Act::Look {
                agent: self.recent(),
                by_hub: self.dice.chance(50),
            },
        }
    }

    fn node(&mut self) -> Option<usize> {
        // A spoke three times in four: it is what must not lose anything.
        let spoke = self.dice.index(SPOKES);
        self.dice.chance(75).then_some(spoke)
    }
}

impl Iterator for Plan {
    type Item = Wave;

    fn next(&mut self) -> Option<Wave> {
        let number = self.waves;
        self.waves += 1;
        let acts = (0..1 + self.dice.below(AT_ONCE))
            .map(|_| (self.dice.below(120), self.act()))
            .collect();
        let crash = self.dice.chance(32).then(|| Crash {
            spoke: self.node(),
            after_ms: self.dice.below(160),
            again_after_ms: self.dice.chance(20).then(|| self.dice.below(400)),
        });
        let mut outage = |percent, most| {
            self.dice.chance(percent).then(|| Outage {
                spoke: self.node(),
                for_ms: 50 + self.dice.below(most),
            })
        };
        let locked = outage(7, 700);
        // As ever: what follows is as it was for this seed before engines had dice of their own.
        outage(2, 1500);
        let trouble = self.engines.chance(25).then(|| Trouble {
            dies: self.engines.chance(15),
            after_ms: self.engines.below(160),
            for_ms: 50 + self.engines.below(1500),
        });
        Some(Wave {
            number,
            acts,
            crash,
            locked,
            trouble,
            check: number % CHECK_EVERY == CHECK_EVERY - 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_storm() {
        let waves = |seed| Plan::new(seed, 4).take(200).collect::<Vec<_>>();
        assert_eq!(waves(7), waves(7));
        assert_ne!(waves(7), waves(8));
        // The plan of a seed that somebody wrote down means the same in every version: change it with care.
        assert_eq!(Dice::new(1).next(), 0x910a_2dec_8902_5cc1);
    }

    #[test]
    fn every_fault_comes() {
        let waves: Vec<_> = Plan::new(1, 4).take(2000).collect();
        let operations: usize = waves.iter().map(Wave::operations).sum();
        let crashes = waves.iter().filter(|wave| wave.crash.is_some()).count();
        assert!(
            operations > 9_000 && crashes > 500,
            "{operations} {crashes}"
        );
        assert!(waves.iter().any(|wave| wave.locked.is_some()));
        let troubles = || waves.iter().filter_map(|wave| wave.trouble);
        assert!(troubles().any(|trouble| trouble.dies));
        assert!(troubles().any(|trouble| !trouble.dies));
        let acts = || waves.iter().flat_map(|wave| &wave.acts).map(|(_, act)| act);
        assert!(acts().any(|act| matches!(act, Act::Release { .. })));
        assert!(acts().any(|act| matches!(act, Act::KillAll { hold: true, .. })));
    }
}
