//! An exhaustive breadth-first search with the shortest way to what is wrong. States are told apart by 64-bit
//! fingerprints, so that millions of them fit into memory.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    hash::{BuildHasherDefault, Hash, Hasher},
};

/// What is searched.
pub(super) trait Model {
    type State: Copy + Eq + Hash + fmt::Debug;
    type Label: Copy + fmt::Debug;

    fn initial(&self) -> Self::State;
    /// Everything that can happen next.
    fn successors(&self, state: &Self::State, into: &mut Vec<(Self::Label, Self::State)>);
    /// What is wrong with a state, given what can happen next.
    fn wrong(
        &self,
        state: &Self::State,
        next: &[(Self::Label, Self::State)],
    ) -> Option<&'static str>;
}

/// What a search came to.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) states: usize,
    pub(super) steps: usize,
    pub(super) depth: usize,
    /// What is wrong, and how to get there.
    pub(super) wrong: Option<(&'static str, String)>,
}

/// Searches every state, up to `most` of them.
///
/// # Panics
/// Beyond `most`: a search that was cut off says nothing.
pub(super) fn search<M: Model>(model: &M, most: usize) -> Report {
    type Seen<L> = HashMap<u64, (u64, Option<L>), BuildHasherDefault<Through>>;
    let mut seen: Seen<M::Label> = HashMap::default();
    let mut frontier = VecDeque::new();
    let mut next = Vec::new();
    let mut report = Report {
        states: 0,
        steps: 0,
        depth: 0,
        wrong: None,
    };
    let initial = model.initial();
    seen.insert(fingerprint(&initial), (0, None));
    frontier.push_back((initial, 0_usize));
    while let Some((state, depth)) = frontier.pop_front() {
        report.states += 1;
        report.depth = depth;
        assert!(report.states <= most, "more than {most} states");
        next.clear();
        model.successors(&state, &mut next);
        report.steps += next.len();
        let here = fingerprint(&state);
        if let Some(what) = model.wrong(&state, &next) {
            let mut path = Vec::new();
            let mut at = here;
            while let Some((before, Some(label))) = seen.get(&at) {
                path.push(format!("  {label:?}"));
                at = *before;
            }
            path.reverse();
            let path = path.join("\n");
            report.wrong = Some((what, format!("{path}\n{state:#?}")));
            return report;
        }
        for (label, then) in &next {
            let print = fingerprint(then);
            if let std::collections::hash_map::Entry::Vacant(place) = seen.entry(print) {
                place.insert((here, Some(*label)));
                frontier.push_back((*then, depth + 1));
            }
        }
    }
    report
}

fn fingerprint(state: &impl Hash) -> u64 {
    let mut mix = Mix(0x9e37_79b9_7f4a_7c15);
    state.hash(&mut mix);
    mix.finish()
}

/// Fast without optimisation: a multiplication and a shift for each field.
struct Mix(u64);

impl Mix {
    fn word(&mut self, word: u64) {
        let mixed = (self.0 ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
        self.0 = (mixed ^ (mixed >> 29)).rotate_left(17);
    }
}

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.word(u64::from(*byte) + 1);
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.word(u64::from(value) + 1);
    }

    fn write_isize(&mut self, value: isize) {
        self.word(value.cast_unsigned() as u64 + 1);
    }

    fn finish(&self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^ (mixed >> 33)
    }
}

/// Fingerprints are mixed already.
#[derive(Default)]
struct Through(u64);

impl Hasher for Through {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 << 8) | u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
