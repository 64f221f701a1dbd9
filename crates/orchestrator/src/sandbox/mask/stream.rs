//! Masks a stream as it comes, in pieces of any size.
//!
//! What could be the beginning of a secret is held back, and nothing else is: a line that ends in nothing suspicious is
//! passed on at once. Whoever waits too long for the rest ([`StreamMask::give_way`]) gets what is held back, but never
//! more than half of a secret: of a longer beginning the mask is told instead. Bytes that were told this way are
//! remembered, so that the rest of the secret is masked when it comes.
//!
//! A piece costs time in proportion to its size and to the longest form of a secret, whatever came before.

use std::{collections::BTreeMap, fmt, io, ops::Range, sync::Arc};

use aho_corasick::{AhoCorasick, AhoCorasickKind, Input, MatchKind, PatternID};

use super::{Mask, forms};

/// One form of one secret.
struct Pattern {
    form: Vec<u8>,
    /// Of which secret.
    mask: usize,
}

/// Finds the secrets of one agent, whichever stream they are in.
pub(in crate::sandbox) struct Finder {
    automaton: AhoCorasick,
    /// In the automaton's order, which is by bytes: all that begin alike are neighbours.
    patterns: Vec<Pattern>,
    replacements: Vec<Vec<u8>>,
    longest: usize,
    /// Whether a pattern begins with the byte.
    begins: [bool; 256],
}

impl Finder {
    /// `None` if there is nothing to find.
    pub(in crate::sandbox) fn new(masks: &[Mask]) -> io::Result<Option<Arc<Self>>> {
        let mut forms = BTreeMap::new();
        for (mask, form) in masks.iter().enumerate().flat_map(|(index, mask)| {
            forms::of(&mask.value)
                .into_iter()
                .map(move |form| (index, form))
        }) {
            forms.entry(form).or_insert(mask);
        }
        let patterns: Vec<Pattern> = forms
            .into_iter()
            .map(|(form, mask)| Pattern { form, mask })
            .collect();
        let Some(longest) = patterns.iter().map(|pattern| pattern.form.len()).max() else {
            return Ok(None);
        };
        let mut begins = [false; 256];
        for first in patterns.iter().filter_map(|pattern| pattern.form.first()) {
            if let Some(begins) = begins.get_mut(usize::from(*first)) {
                *begins = true;
            }
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            // The smallest: it lives in the agent's cgroup.
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(patterns.iter().map(|pattern| pattern.form.as_slice()))
            .map_err(io::Error::other)?;
        Ok(Some(Arc::new(Self {
            automaton,
            patterns,
            replacements: masks.iter().map(Mask::replacement).collect(),
            longest,
            begins,
        })))
    }

    /// Masks a text that is all there, in whichever case its letters are: of a host's name none counts. Gives what
    /// begins in the first `most` bytes; a secret that begins there is looked for to its end.
    pub(in crate::sandbox) fn mask_name(&self, text: &[u8], most: usize) -> Vec<u8> {
        let mut told = Vec::new();
        let mut at = 0;
        while at < most
            && let Some(rest @ [first, ..]) = text.get(at..)
        {
            let begins = |pattern: &&Pattern| {
                rest.get(..pattern.form.len())
                    .is_some_and(|begin| begin.eq_ignore_ascii_case(&pattern.form))
            };
            let longest = self
                .patterns
                .iter()
                .filter(begins)
                .max_by_key(|pattern| pattern.form.len());
            match longest.and_then(|pattern| Some((pattern, self.replacements.get(pattern.mask)?)))
            {
                Some((pattern, replacement)) => {
                    told.extend_from_slice(replacement);
                    at += pattern.form.len();
                }
                None => {
                    told.push(*first);
                    at += 1;
                }
            }
        }
        told
    }

    fn mask_of(&self, pattern: PatternID) -> Option<usize> {
        Some(self.patterns.get(pattern.as_usize())?.mask)
    }

    /// The patterns that begin with `text` and are longer.
    fn longer_than<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = &'a Pattern> {
        let from = self
            .patterns
            .partition_point(|pattern| pattern.form.as_slice() <= text);
        self.patterns
            .iter()
            .skip(from)
            .take_while(move |pattern| pattern.form.starts_with(text))
    }

    /// The first place from which on `text` may end in the beginning of a secret.
    fn first_beginning(&self, text: &[u8], from: usize) -> usize {
        self.beginnings(text, from)
            .find(|(_, tail)| self.longer_than(tail).next().is_some())
            .map_or(text.len(), |(at, _)| at)
    }

    /// The first place from which on `text` ends in more than half of a secret, and which one.
    fn first_half(&self, text: &[u8], from: usize) -> Option<(usize, usize)> {
        self.beginnings(text, from).find_map(|(at, tail)| {
            let shortest = self
                .longer_than(tail)
                .min_by_key(|pattern| pattern.form.len())?;
            (tail.len() * 2 > shortest.form.len()).then_some((at, shortest.mask))
        })
    }

    /// The ends of `text` that begin with a byte that a pattern begins with, longest first.
    fn beginnings<'a>(
        &'a self,
        text: &'a [u8],
        from: usize,
    ) -> impl Iterator<Item = (usize, &'a [u8])> {
        let from = from.max((text.len() + 1).saturating_sub(self.longest));
        (from..text.len()).filter_map(move |at| {
            let tail = text.get(at..)?;
            let begins = self.begins.get(usize::from(*tail.first()?))?;
            begins.then_some((at, tail))
        })
    }
}

impl fmt::Debug for Finder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Finder").finish_non_exhaustive()
    }
}

/// Masks one stream.
pub(in crate::sandbox) struct StreamMask {
    finder: Arc<Finder>,
    /// What may be the beginning of a secret.
    held: Vec<u8>,
    /// How much of `held` was told already, because nothing came after it for long.
    told: usize,
}

impl StreamMask {
    pub(in crate::sandbox) fn new(finder: &Arc<Finder>) -> Self {
        Self {
            finder: Arc::clone(finder),
            held: Vec::new(),
            told: 0,
        }
    }

    /// Whether something is held back that was not told.
    pub(in crate::sandbox) fn waits(&self) -> bool {
        self.held.len() > self.told
    }

    /// Takes a piece of the stream; gives what can be told now.
    pub(in crate::sandbox) fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        let mut text = std::mem::take(&mut self.held);
        text.extend_from_slice(piece);
        let mut out = Out::after(&text, self.told);
        let finder = &self.finder;
        let mut hold = finder.first_beginning(&text, 0);
        let mut at = 0;
        // A secret found before that place is no beginning of a longer one, nor does one begin before it.
        while let Some(found) = finder.automaton.find(Input::new(&text).range(at..))
            && found.start() < hold
        {
            out.clear(at..found.start());
            out.mask(finder, finder.mask_of(found.pattern()), found.end());
            at = found.end();
            if hold < at {
                hold = finder.first_beginning(&text, at);
            }
        }
        out.clear(at..hold);
        let told = out.bytes;
        self.told = self.told.saturating_sub(hold);
        text.drain(..hold);
        self.held = text;
        told
    }

    /// Gives what is held back, because nothing more came for long or will come at all.
    pub(in crate::sandbox) fn give_way(&mut self) -> Vec<u8> {
        let text = &self.held;
        let mut out = Out::after(text, self.told);
        let finder = &self.finder;
        let mut half = finder.first_half(text, 0);
        let mut at = 0;
        while let Some(found) = finder.automaton.find(Input::new(text).range(at..))
            && half.is_none_or(|(start, _)| found.start() < start)
        {
            out.clear(at..found.start());
            out.mask(finder, finder.mask_of(found.pattern()), found.end());
            at = found.end();
            if half.is_some_and(|(start, _)| start < at) {
                half = finder.first_half(text, at);
            }
        }
        match half {
            Some((start, mask)) => {
                out.clear(at..start);
                out.mask(finder, Some(mask), text.len());
            }
            None => out.clear(at..text.len()),
        }
        self.told = text.len();
        out.bytes
    }
}

/// What is told of a text whose beginning was told before.
struct Out<'a> {
    text: &'a [u8],
    told: usize,
    bytes: Vec<u8>,
}

impl<'a> Out<'a> {
    fn after(text: &'a [u8], told: usize) -> Self {
        Self {
            text,
            told,
            bytes: Vec::with_capacity(text.len()),
        }
    }

    fn clear(&mut self, part: Range<usize>) {
        let start = part.start.max(self.told);
        self.bytes
            .extend_from_slice(self.text.get(start..part.end).unwrap_or_default());
    }

    /// A secret that ends there; one that was told whole is not told again.
    fn mask(&mut self, finder: &Finder, mask: Option<usize>, end: usize) {
        if end > self.told
            && let Some(replacement) = mask.and_then(|mask| finder.replacements.get(mask))
        {
            self.bytes.extend_from_slice(replacement);
        }
    }
}
