//! What the host remembers of each rule: 64 bytes, enough to find it, to tell it from another, and to take it out again.
//!
//! The rule itself stands in the state file; here are its place there and a fingerprint of it, and its match as the table
//! knows it, so that it can be removed from the table without being read. Of the match, the mask is shared by all rules of
//! one *shape* ([`Shapes`]), and of the value only those bytes are kept whose mask is not zero: 6 for an IPv4 prefix, 14
//! for an IPv4 five-tuple.

use super::names::NameId;
use super::rule_id::RuleId;
use super::segment::Place;
use crate::rules::key::KEY_WORDS;
use crate::rules::pattern::{INGRESS_WORDS, Pattern};
use forebay_pipeline::prefetch::prefetch;
use hashbrown::HashMap;
use std::hash::{Hash, Hasher};

/// No slot.
pub const NONE: u32 = u32::MAX;

/// Bytes of a value that stand in the record itself.
const INLINE_BYTES: usize = 14;

/// Whose rules a rule is one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// The VF of this name.
    Egress(NameId),
    /// The uplinks; one of them where the rule names it.
    Ingress(Option<NameId>),
}

/// What many rules have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Whose they are.
    pub owner: Owner,
    /// The bits that they look at; an egress rule uses the first words.
    pub mask: [u64; INGRESS_WORDS],
    /// The low half of their precedence: the lengths of their prefixes.
    pub rank: u16,
    /// Ranges of ports follow the value.
    pub ranges: bool,
}

/// By a digest of the mask: shapes are looked for once a rule, and hashing all of their words would cost most of that.
impl Hash for Shape {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let words = self.mask.iter().fold(0_u64, |hash, word| hash.rotate_left(9) ^ word);
        state.write_u64(words.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(self.rank));
        self.owner.hash(state);
    }
}

/// The shapes in use, by number.
#[derive(Default)]
pub struct Shapes {
    by_shape: HashMap<Shape, u32>,
    shapes: Vec<(Shape, u32)>,
    free: Vec<u32>,
}

impl Shapes {
    /// The number of a shape, with one more rule of it.
    pub fn acquire(&mut self, shape: Shape) -> u32 {
        if let Some(number) = self.by_shape.get(&shape) {
            self.shapes[*number as usize].1 += 1;
            return *number;
        }
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                self.shapes.push((shape, 0));
                (self.shapes.len() - 1) as u32
            }
        };
        self.shapes[number as usize] = (shape, 1);
        self.by_shape.insert(shape, number);
        number
    }

    /// One rule less of a shape.
    pub fn release(&mut self, number: u32) {
        let (shape, rules) = &mut self.shapes[number as usize];
        *rules -= 1;
        if *rules == 0 {
            self.by_shape.remove(shape);
            self.free.push(number);
        }
    }

    /// A shape that some rule has.
    pub fn get(&self, number: u32) -> &Shape {
        &self.shapes[number as usize].0
    }
}

/// Where a rule is on its way into and out of force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Wanted, and not in force yet: nobody is shown it.
    Coming,
    /// In force.
    Here,
    /// In force, and to be gone when the change that is being made is made.
    Leaving,
    /// Wanted and unwanted by one change: it never comes into force.
    Stillborn,
}

/// What a rule refers to besides its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nothing.
    None,
    /// A tunnel, by slot.
    Tunnel(u32),
    /// A port that it delivers to.
    Port(NameId),
}

/// One rule, in a cache line of its own: records are read in any order.
#[repr(align(64))]
pub struct Record {
    /// The user's name for it.
    pub id: RuleId,
    /// A keyed hash of the rule.
    pub fingerprint: u64,
    /// Where the rule stands in the state file.
    pub place: Place,
    /// Its shape.
    pub shape: u32,
    /// Its priority: the high half of its precedence.
    pub priority: u32,
    target: u32,
    target_kind: TargetKind,
    /// Where it is on its way.
    pub stage: Stage,
    value: Value,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum TargetKind {
    None,
    Tunnel,
    Port,
}

/// The bytes of a value; longer ones are on the heap.
enum Value {
    Inline(u8, [u8; INLINE_BYTES]),
    Heap(Box<Box<[u8]>>),
}

impl Record {
    /// A rule that is coming, with its pattern.
    pub fn new<const W: usize>(
        id: RuleId,
        fingerprint: u64,
        priority: u32,
        (number, shape): (u32, &Shape),
        pattern: &Pattern<W>,
    ) -> Record {
        Record {
            id,
            fingerprint,
            place: Place::default(),
            shape: number,
            priority,
            target: NONE,
            target_kind: TargetKind::None,
            stage: Stage::Coming,
            value: pack(pattern, shape.ranges),
        }
    }

    /// What the rule refers to.
    pub fn target(&self) -> Target {
        match self.target_kind {
            TargetKind::None => Target::None,
            TargetKind::Tunnel => Target::Tunnel(self.target),
            TargetKind::Port => Target::Port(NameId(self.target)),
        }
    }

    /// Sets what the rule refers to.
    pub fn set_target(&mut self, target: Target) {
        (self.target_kind, self.target) = match target {
            Target::None => (TargetKind::None, NONE),
            Target::Tunnel(slot) => (TargetKind::Tunnel, slot),
            Target::Port(name) => (TargetKind::Port, name.0),
        };
    }

    /// The rule's precedence.
    pub fn precedence(&self, shape: &Shape) -> u64 {
        u64::from(self.priority) << 16 | u64::from(shape.rank)
    }

    /// The rule's pattern, as it was given.
    pub fn pattern<const W: usize>(&self, shape: &Shape) -> Pattern<W> {
        unpack(self.value(), shape)
    }

    /// The bytes of the pattern that its shape does not tell.
    pub fn value(&self) -> &[u8] {
        match &self.value {
            Value::Inline(length, bytes) => &bytes[..usize::from(*length)],
            Value::Heap(bytes) => bytes,
        }
    }
}

impl Shape {
    /// The shape of a pattern.
    pub fn new<const W: usize>(owner: Owner, precedence: u64, pattern: &Pattern<W>) -> Shape {
        let mut mask = [0; INGRESS_WORDS];
        mask[..W].copy_from_slice(&pattern.mask);
        let all = (0, u16::MAX);
        let ranges = pattern.src_port != all || pattern.dst_port != all;
        Shape { owner, mask, rank: precedence as u16, ranges }
    }

    /// The bytes of its words that rules look at: word and shift.
    fn bytes(&self) -> impl Iterator<Item = (usize, u32)> {
        let words = self.mask.iter().enumerate().filter(|(_, mask)| **mask != 0);
        words.flat_map(|(word, mask)| {
            (0..64).step_by(8).filter(move |shift| mask >> shift & 0xff != 0).map(move |shift| (word, shift))
        })
    }
}

fn pack<const W: usize>(pattern: &Pattern<W>, ranges: bool) -> Value {
    let mut inline = [0; INLINE_BYTES];
    let mut spilled = Vec::new();
    let mut length = 0;
    let mut push = |byte: u8| {
        match inline.get_mut(length) {
            Some(place) => *place = byte,
            None => {
                if spilled.is_empty() {
                    spilled.extend_from_slice(&inline);
                }
                spilled.push(byte);
            }
        }
        length += 1;
    };
    for (word, mask) in pattern.mask.iter().enumerate().filter(|(_, mask)| **mask != 0) {
        for shift in (0..64).step_by(8).filter(|shift| mask >> shift & 0xff != 0) {
            push((pattern.value[word] >> shift) as u8);
        }
    }
    if ranges {
        let ((s0, s1), (d0, d1)) = (pattern.src_port, pattern.dst_port);
        [s0, s1, d0, d1].into_iter().flat_map(u16::to_be_bytes).for_each(push);
    }
    if spilled.is_empty() {
        Value::Inline(length as u8, inline)
    } else {
        Value::Heap(Box::new(spilled.into_boxed_slice()))
    }
}

fn unpack<const W: usize>(bytes: &[u8], shape: &Shape) -> Pattern<W> {
    let mut mask = [0; W];
    mask.copy_from_slice(&shape.mask[..W]);
    let all = (0, u16::MAX);
    let mut pattern = Pattern { mask, value: [0; W], src_port: all, dst_port: all };
    let mut bytes = bytes.iter().copied();
    for (word, shift) in shape.bytes() {
        pattern.value[word] |= u64::from(bytes.next().unwrap_or(0)) << shift;
    }
    if shape.ranges {
        let mut port = || u16::from_be_bytes([bytes.next().unwrap_or(0), bytes.next().unwrap_or(0)]);
        pattern.src_port = (port(), port());
        pattern.dst_port = (port(), port());
    }
    pattern
}

/// Records that are allocated together: 64 KiB, so that a table that grows copies nothing and wastes little.
const RECORDS_PER_CHUNK: usize = 1024;

/// The records by slot.
#[derive(Default)]
pub struct Records {
    chunks: Vec<Vec<Option<Record>>>,
    free: Vec<u32>,
}

impl Records {
    /// Puts a record into a free slot.
    pub fn insert(&mut self, record: Record) -> u32 {
        if let Some(slot) = self.free.pop() {
            let (chunk, place) = place_of(slot);
            self.chunks[chunk][place] = Some(record);
            return slot;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == RECORDS_PER_CHUNK) {
            self.chunks.push(Vec::with_capacity(RECORDS_PER_CHUNK));
        }
        let chunk = self.chunks.len() - 1;
        self.chunks[chunk].push(Some(record));
        (chunk * RECORDS_PER_CHUNK + self.chunks[chunk].len() - 1) as u32
    }

    /// Takes a record out. Its slot rests until it is given to [`Records::reuse`].
    pub fn remove(&mut self, slot: u32) -> Option<Record> {
        let (chunk, place) = place_of(slot);
        self.chunks.get_mut(chunk)?.get_mut(place)?.take()
    }

    /// Gives slots to records to come.
    pub fn reuse(&mut self, slots: &[u32]) {
        self.free.extend_from_slice(slots);
    }

    /// Fetches the record of a slot.
    pub fn prefetch(&self, slot: u32) {
        let (chunk, place) = place_of(slot);
        self.chunks.get(chunk).and_then(|chunk| chunk.get(place)).inspect(|record| prefetch(*record));
    }

    /// The record of a slot.
    pub fn get(&self, slot: u32) -> Option<&Record> {
        let (chunk, place) = place_of(slot);
        self.chunks.get(chunk)?.get(place)?.as_ref()
    }

    /// The record of a slot, to be changed.
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut Record> {
        let (chunk, place) = place_of(slot);
        self.chunks.get_mut(chunk)?.get_mut(place)?.as_mut()
    }

    /// The records of one chunk with their slots; `None` behind the last one.
    pub fn chunk(&self, chunk: usize) -> Option<impl Iterator<Item = (u32, &Record)>> {
        let records = self.chunks.get(chunk)?.iter().enumerate();
        let first = chunk * RECORDS_PER_CHUNK;
        Some(records.filter_map(move |(place, record)| Some(((first + place) as u32, record.as_ref()?))))
    }

    /// Every record with its slot.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Record)> {
        (0..self.chunks.len()).filter_map(|chunk| self.chunk(chunk)).flatten()
    }
}

fn place_of(slot: u32) -> (usize, usize) {
    (slot as usize / RECORDS_PER_CHUNK, slot as usize % RECORDS_PER_CHUNK)
}

/// The words of an egress pattern fit a shape.
const _: () = assert!(KEY_WORDS <= INGRESS_WORDS);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::pattern::precedence;
    use crate::rules::reference::arbitrary;
    use crate::rules::rule::Scope;
    use proptest::prelude::*;

    #[test]
    fn a_record_is_small() {
        assert_eq!(size_of::<Option<Record>>(), 64);
    }

    fn round_trip<const W: usize>(owner: Owner, precedence: u64, pattern: &Pattern<W>) -> Pattern<W> {
        let shape = Shape::new(owner, precedence, pattern);
        let record = Record::new("a".into(), 0, (precedence >> 16) as u32, (0, &shape), pattern);
        assert_eq!(record.precedence(&shape), precedence);
        record.pattern(&shape)
    }

    proptest! {
        #[test]
        fn patterns_come_back(
            egress in arbitrary::egress_rules(0..20),
            ingress in arbitrary::ingress_rules(0..20),
        ) {
            for rule in egress.iter().chain(&ingress) {
                let rank = precedence(rule.priority, &rule.matches);
                match &rule.scope {
                    Scope::Egress(_) => {
                        let pattern = Pattern::egress(&rule.matches);
                        prop_assert_eq!(round_trip(Owner::Egress(NameId(1)), rank, &pattern), pattern);
                    }
                    Scope::Ingress(scope) => {
                        let (local, remote) = (scope.local, scope.remote);
                        let pattern = Pattern::ingress(&rule.matches, scope.tunnel, local, remote, Some(3));
                        prop_assert_eq!(round_trip(Owner::Ingress(None), rank, &pattern), pattern);
                    }
                }
            }
        }
    }

    #[test]
    fn shapes_are_shared_and_given_back() {
        let mut shapes = Shapes::default();
        let shape =
            |name| Shape { owner: Owner::Egress(NameId(name)), mask: [7; 12], rank: 3, ranges: false };
        let first = shapes.acquire(shape(1));
        assert_eq!((shapes.acquire(shape(1)), shapes.get(first).rank), (first, 3));
        let second = shapes.acquire(shape(2));
        assert_ne!(first, second);
        shapes.release(first);
        assert_eq!(shapes.acquire(shape(1)), first);
        shapes.release(second);
        assert_eq!(shapes.acquire(shape(3)), second);
    }
}
