//! Packs of the agent, looked through before libgit2 reads them: it follows an object that is told as a difference from
//! another for as long as that one is a difference too, and where the agent wrote a circle, for ever.
//!
//! A pack that is taken has an index which is sorted, a place of its own for every object and for its base, and chains
//! no longer than git makes them ([format](https://git-scm.com/docs/gitformat-pack)).

use std::{
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use super::{
    super::{Limits, error::WorktreeError},
    open_regular, read_small, varint,
};

/// Of the index of one pack, which is held in memory: of 19 million objects.
const MAX_INDEX_BYTES: u64 = 512 << 20;
/// Differences between an object and its base; git makes 4095 at most.
const MAX_CHAIN: u16 = 4096;
/// Of all objects of a pack together: each is measured along its chain.
const MAX_LINKS: u64 = 1 << 32;

const MAGIC: [u8; 8] = [0xff, b't', b'O', b'c', 0, 0, 0, 2];
const FANOUT_BYTES: usize = 256 * 4;
const ID_BYTES: usize = 20;
const HEADER_BYTES: u64 = 12;
const CHECKSUM_BYTES: usize = 20;
/// As much as the head of an object can take: two numbers, or a number and an id.
const HEAD_BYTES: u64 = 32;

/// Whether all of a pack is what git could have written, as far as it leads from object to object.
///
/// # Errors
/// `TooLarge` if an object, or what tells the difference to one, does not fit into memory.
pub(super) fn is_sound(index: &Path, pack: &Path, limits: &Limits) -> Result<bool, WorktreeError> {
    let Some(bytes) = read_small(index, MAX_INDEX_BYTES) else {
        return Ok(false);
    };
    let bases = Index::of(&bytes).and_then(|index| Objects::of(pack, &index)?.bases(&index));
    let Some(bases) = bases else {
        return Ok(false);
    };
    if bases.largest > limits.max_file_bytes {
        return Err(WorktreeError::TooLarge {
            what: "bytes of one object",
            limit: limits.max_file_bytes,
        });
    }
    Ok(are_chains(&bases.of).is_some())
}

/// A pack's index of version 2, which is what git has written since 2007.
struct Index<'a> {
    fanout: Vec<usize>,
    ids: &'a [[u8; ID_BYTES]],
    offsets: Vec<u64>,
    /// The checksum of the pack.
    of_pack: [u8; CHECKSUM_BYTES],
}

impl<'a> Index<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&MAGIC)?;
        let (fanout, rest) = rest.split_at_checked(FANOUT_BYTES)?;
        let fanout = fanout.as_chunks().0.iter();
        let fanout: Vec<usize> = fanout
            .map(|number| usize::try_from(u32::from_be_bytes(*number)).ok())
            .collect::<Option<_>>()?;
        let count = *fanout.last()?;
        let (ids, rest) = rest.split_at_checked(count.checked_mul(ID_BYTES)?)?;
        let (_crcs, rest) = rest.split_at_checked(count.checked_mul(4)?)?;
        let (short, rest) = rest.split_at_checked(count.checked_mul(4)?)?;
        let (long, checksums) =
            rest.split_at_checked(rest.len().checked_sub(2 * CHECKSUM_BYTES)?)?;
        let (long, odd) = long.as_chunks::<8>();
        let offset = |short: &[u8; 4]| {
            let short = u32::from_be_bytes(*short);
            match short.checked_sub(1 << 31) {
                None => Some(u64::from(short)),
                Some(place) => {
                    let long = long.get(usize::try_from(place).ok()?)?;
                    Some(u64::from_be_bytes(*long))
                }
            }
        };
        let ids = ids.as_chunks().0;
        let index = Self {
            offsets: short
                .as_chunks()
                .0
                .iter()
                .map(offset)
                .collect::<Option<_>>()?,
            of_pack: *checksums.first_chunk()?,
            fanout,
            ids,
        };
        (odd.is_empty() && index.is_sorted()).then_some(index)
    }

    /// So that there is one answer to where an object is, whoever looks it up.
    fn is_sorted(&self) -> bool {
        let mut start = 0;
        let each = self.fanout.iter().enumerate().all(|(first, end)| {
            let ids = self.ids.get(start..*end);
            start = *end;
            ids.is_some_and(|ids| ids.iter().all(|id| first_byte(id) == first))
        });
        each && self.ids.is_sorted()
    }

    /// Where an object is. An id that is there twice is looked up as libgit2 does it.
    fn offset(&self, id: &[u8; ID_BYTES]) -> Option<u64> {
        let first = first_byte(id);
        let mut low = match first.checked_sub(1) {
            Some(before) => *self.fanout.get(before)?,
            None => 0,
        };
        let mut high = *self.fanout.get(first)?;
        while low < high {
            let middle = low.midpoint(high);
            match self.ids.get(middle)?.cmp(id) {
                std::cmp::Ordering::Equal => return self.offsets.get(middle).copied(),
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Less => low = middle + 1,
            }
        }
        None
    }
}

fn first_byte(id: &[u8; ID_BYTES]) -> usize {
    let [first, ..] = id;
    usize::from(*first)
}

/// The objects of a pack, in the order in which they lie there.
struct Objects {
    pack: BufReader<File>,
    /// Where the next byte is read from.
    at: u64,
    offsets: Vec<u64>,
}

/// What the heads of all objects tell.
struct Bases {
    /// By its place in the order, that of its base.
    of: Vec<Option<u32>>,
    /// The largest object, or difference to one.
    largest: u64,
}

impl Objects {
    fn of(pack: &Path, index: &Index<'_>) -> Option<Self> {
        let mut file = open_regular(pack).ok()?;
        let mut header = [0; 12];
        file.read_exact(&mut header).ok()?;
        let [b'P', b'A', b'C', b'K', 0, 0, 0, 2 | 3, count @ ..] = header else {
            return None;
        };
        let count = usize::try_from(u32::from_be_bytes(count)).ok()?;
        let end = file.seek(SeekFrom::End(-i64::try_from(CHECKSUM_BYTES).ok()?));
        let end = end.ok()?;
        let mut checksum = [0; CHECKSUM_BYTES];
        file.read_exact(&mut checksum).ok()?;
        file.rewind().ok()?;
        let mut offsets = index.offsets.clone();
        offsets.sort_unstable();
        offsets.dedup();
        let inside = offsets
            .iter()
            .all(|offset| (HEADER_BYTES..end).contains(offset));
        (inside && count == index.ids.len() && checksum == index.of_pack).then(|| Self {
            pack: BufReader::new(file),
            at: 0,
            offsets,
        })
    }

    fn bases(&mut self, index: &Index<'_>) -> Option<Bases> {
        let mut bases = Bases {
            of: Vec::with_capacity(self.offsets.len()),
            largest: 0,
        };
        let mut head = Vec::new();
        for place in 0..self.offsets.len() {
            let offset = *self.offsets.get(place)?;
            self.read(offset, &mut head)?;
            let (kind, size, rest) = kind_and_size(&head)?;
            bases.largest = bases.largest.max(size);
            let base = match kind {
                1..=4 => None,
                6 => Some(offset.checked_sub(varint(rest)?.0)?),
                7 => Some(index.offset(rest.first_chunk()?)?),
                _ => return None,
            };
            bases.of.push(match base {
                Some(base) => {
                    let base = self.offsets.binary_search(&base).ok()?;
                    Some(u32::try_from(base).ok()?)
                }
                None => None,
            });
        }
        Some(bases)
    }

    /// The heads lie near each other, mostly.
    fn read(&mut self, offset: u64, head: &mut Vec<u8>) -> Option<()> {
        let way = i64::try_from(offset).ok()? - i64::try_from(self.at).ok()?;
        self.pack.seek_relative(way).ok()?;
        head.clear();
        let read = self.pack.by_ref().take(HEAD_BYTES).read_to_end(head).ok()?;
        self.at = offset + u64::try_from(read).ok()?;
        Some(())
    }
}

/// The kind of an object, its size as it is told, and what follows.
fn kind_and_size(head: &[u8]) -> Option<(u8, u64, &[u8])> {
    let (first, mut rest) = head.split_first()?;
    let mut size = u64::from(first & 15);
    let mut more = first & 128 != 0;
    let mut shift = 4;
    while more {
        let (next, behind) = rest.split_first()?;
        let place = 1_u64.checked_shl(shift)?;
        size = size.checked_add(u64::from(next & 127).checked_mul(place)?)?;
        (more, rest, shift) = (next & 128 != 0, behind, shift + 7);
    }
    Some(((first >> 4) & 7, size, rest))
}

/// Whether every object leads to one that is whole, soon enough. Each link is followed once.
fn are_chains(bases: &[Option<u32>]) -> Option<()> {
    let mut lengths: Vec<Option<u16>> = vec![None; bases.len()];
    let mut chain = Vec::new();
    let mut links = 0_u64;
    for start in 0..bases.len() {
        let mut place = start;
        let mut length = loop {
            if let Some(known) = lengths.get(place)? {
                break *known;
            }
            chain.push(place);
            if chain.len() > usize::from(MAX_CHAIN) + 1 {
                return None;
            }
            match bases.get(place)? {
                Some(base) => place = usize::try_from(*base).ok()?,
                None => {
                    chain.pop();
                    *lengths.get_mut(place)? = Some(0);
                    break 0;
                }
            }
        };
        while let Some(place) = chain.pop() {
            length += 1;
            links += u64::from(length);
            if length > MAX_CHAIN || links > MAX_LINKS {
                return None;
            }
            *lengths.get_mut(place)? = Some(length);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests;
