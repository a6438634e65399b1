//! What the rule table costs: bytes a rule, time to build and to change, cycles of a lookup; in its best and its worst
//! cases. `cargo run --release -p forebay-dataplane --example table [WORD…]` prints the rows whose names contain a word.
//!
//! Keys are drawn from the rules (a random packet that a random rule matches in its mask) but for rows named `random`.
//! Medians of nine runs. `single` is one lookup after the other has ended (the next key depends on the last result),
//! `batch` is 64 keys at once; `warm` repeats 64 keys, otherwise each of 65,536 keys comes once per run.

use forebay_dataplane::action::{Action, TunnelRef};
use forebay_dataplane::rules::key::{FLAG_IP, FLAG_IPV4, FLAG_PORTS, KEY_WORDS, Key};
use forebay_dataplane::rules::pattern::{Pattern, precedence};
use forebay_dataplane::rules::rule::Match;
use forebay_dataplane::rules::table::{Table, TableRule};
use forebay_pipeline::tsc;
use ipnet::{IpNet, Ipv4Net};
use std::collections::HashSet;
use std::hint::black_box;
use std::time::Instant;

type Words = [u64; KEY_WORDS];
type Rules = Vec<TableRule<KEY_WORDS>>;

/// Runs of each measurement, of which the median counts.
const RUNS: usize = 9;
/// Keys of a cold run: their shards are far more than the caches of a core.
const KEYS: usize = 1 << 16;
/// Changes that are timed.
const CHANGES: usize = 20_000;

/// Numbers without a pattern: xorshift64*, so that every run of the program measures the same table.
struct Random(u64);

impl Random {
    fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.word()) * u128::from(end)) >> 64) as u64
    }

    fn net(&mut self, length: u8) -> IpNet {
        let net = Ipv4Net::new((self.word() as u32).into(), length).unwrap_or_default();
        IpNet::V4(net.trunc())
    }

    fn range(&mut self, widest: u64) -> (u16, u16) {
        let width = 1 + self.below(widest);
        let first = self.below(65_536 - width);
        (first as u16, (first + width) as u16)
    }
}

fn rule(slot: usize, priority: u32, matches: &Match) -> TableRule<KEY_WORDS> {
    TableRule {
        pattern: Pattern::egress(matches),
        precedence: precedence(priority, matches),
        id: format!("rule-{slot:07}").into(),
        slot: slot as u32,
        action: Action::Forward {
            tunnel: TunnelRef { slot: slot as u32 % 1000, generation: 1 },
            inner_dst_mac: Some([2, 0, 0, 0, 0, 1]),
            push_vlan: 0,
        },
        names_layer2: false,
    }
}

/// Distinct destination prefixes with lengths of that range; a length that has no prefix left gives way to the next.
fn prefixes(count: usize, lengths: std::ops::RangeInclusive<u8>) -> Rules {
    let (mut random, mut seen, mut rules) = (Random(7), HashSet::new(), Vec::with_capacity(count));
    let (shortest, span) = (*lengths.start(), u64::from(lengths.end() - lengths.start()) + 1);
    while rules.len() < count {
        let length = shortest + random.below(span) as u8;
        let net = random.net(length);
        if seen.insert(net) {
            rules.push(rule(rules.len(), 0, &Match { dst: Some(net), ..Match::default() }));
        }
    }
    rules
}

/// Five-tuple rules whose every field is drawn on its own: nearly each has a mask of its own.
fn masks(count: usize) -> Rules {
    let mut random = Random(11);
    let draw = |random: &mut Random, slot: usize| {
        let port = |random: &mut Random| match random.below(3) {
            0 => None,
            1 => Some(random.range(65_535)),
            _ => Some(random.word() as u16).map(|port| (port, port)),
        };
        let (src, dst) = (random.below(33) as u8, random.below(33) as u8);
        let matches = Match {
            src: Some(random.net(src)),
            dst: Some(random.net(dst)),
            proto: (random.below(2) == 0).then(|| if random.below(2) == 0 { 6 } else { 17 }),
            dscp: (random.below(2) == 0).then(|| random.below(64) as u8),
            src_port: port(random),
            dst_port: port(random),
            ..Match::default()
        };
        rule(slot, random.below(1000) as u32, &matches)
    };
    (0..count).map(|slot| draw(&mut random, slot)).collect()
}

/// Rules that differ in ranges of ports only, up to `widest` ports wide.
fn ranges(count: usize, widest: u64) -> Rules {
    let mut random = Random(13);
    let mut draw = |slot| {
        let any = || Some(IpNet::V4(Ipv4Net::default()));
        let (src_port, dst_port) = (Some(random.range(widest)), Some(random.range(widest)));
        let matches = Match { src: any(), dst: any(), src_port, dst_port, ..Match::default() };
        rule(slot, random.below(100_000) as u32, &matches)
    };
    (0..count).map(&mut draw).collect()
}

/// A packet that the rule matches, with random bits where the rule does not look.
fn packet_for(rule: &TableRule<KEY_WORDS>, random: &mut Random) -> Words {
    let pattern = &rule.pattern;
    let mut words = packet(random);
    for ((word, mask), value) in words.iter_mut().zip(&pattern.mask).zip(&pattern.value) {
        *word = *word & !mask | value;
    }
    for ((first, last), shift) in [(pattern.src_port, 48), (pattern.dst_port, 32)] {
        if (first, last) != (0, u16::MAX) {
            let port = u64::from(first) + random.below(u64::from(last - first) + 1);
            words[6] = words[6] & !(0xffff << shift) | port << shift;
        }
    }
    words[6] |= FLAG_IP | FLAG_IPV4 | FLAG_PORTS;
    words
}

fn packet(random: &mut Random) -> Words {
    let mut key = Key::ethernet(0x0200_0000_0001, 0x0200_0000_0002, 0x0800, 0);
    let proto = if random.below(2) == 0 { 6 } else { 17 };
    key.set_ipv4(random.word() as u32, random.word() as u32, proto, random.below(64) as u8);
    key.set_ports(random.word() as u16, random.word() as u16);
    key.0
}

fn median(mut run: impl FnMut() -> f64) -> f64 {
    let mut figures: Vec<f64> = (0..RUNS).map(|_| run()).collect();
    figures.sort_unstable_by(f64::total_cmp);
    figures[RUNS / 2]
}

/// Cycles a lookup, each begun when the one before has ended.
fn single(table: &Table<KEY_WORDS>, keys: &[Words], lookups: usize) -> f64 {
    median(|| {
        let (start, mut last) = (tsc::now(), 0);
        for key in keys.iter().cycle().take(lookups) {
            let mut key = *key;
            // Always 0, which the processor cannot know.
            key[3] ^= u64::from(last) >> 32;
            last = table.lookup(black_box(&key)).map_or(0, |hit| hit.slot);
        }
        black_box(last);
        tsc::now().saturating_sub(start) as f64 / lookups as f64
    })
}

/// Cycles a key in batches of 64.
fn batch(table: &Table<KEY_WORDS>, keys: &[Words], lookups: usize) -> f64 {
    let mut out = [None; 64];
    median(|| {
        let start = tsc::now();
        for keys in keys.chunks(64).cycle().take(lookups / 64) {
            table.lookup_batch(black_box(keys), &mut out);
            black_box(&out);
        }
        tsc::now().saturating_sub(start) as f64 / lookups as f64
    })
}

/// Median and worst time of a change in µs, with a clone kept alive by each: rules go and come back.
fn change(table: &Table<KEY_WORDS>, rules: &Rules) -> (f64, f64) {
    let (mut table, mut random) = (table.clone(), Random(17));
    let mut times = Vec::with_capacity(2 * CHANGES);
    for _ in 0..CHANGES {
        let rule = &rules[random.below(rules.len() as u64) as usize];
        let before = table.clone();
        let start = Instant::now();
        let removed = table.remove(&rule.pattern, rule.precedence, &rule.id);
        times.push(start.elapsed());
        assert!(removed, "rule {} is in the table", rule.id);
        drop(before);
        let (before, rule) = (table.clone(), rule.clone());
        let start = Instant::now();
        table.insert(rule);
        times.push(start.elapsed());
        drop(before);
    }
    times.sort_unstable();
    let us = |index: usize| times[index].as_nanos() as f64 / 1000.0;
    (us(times.len() / 2), us(times.len() - 1))
}

fn row(name: &str, rules: &Rules, random_keys: bool) {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word.as_str())) {
        return;
    }
    let mut random = Random(3);
    let copy = rules.clone();
    let start = Instant::now();
    let table = Table::compile(copy);
    let build = start.elapsed();
    let keys: Vec<Words> = (0..KEYS)
        .map(|_| match random_keys {
            true => packet(&mut random),
            false => packet_for(&rules[random.below(rules.len() as u64) as usize], &mut random),
        })
        .collect();
    let (change_us, worst_us) = change(&table, rules);
    println!(
        "{name:<28} {:>9} {:>8.1} {:>9.1} {change_us:>9.2} {worst_us:>9.0} {:>9.0} {:>9.0} {:>9.0} {:>9.0}",
        rules.len(),
        table.memory_bytes() as f64 / rules.len() as f64,
        build.as_secs_f64() * 1e3,
        single(&table, &keys[..64], KEYS),
        single(&table, &keys, KEYS),
        batch(&table, &keys[..64], KEYS),
        batch(&table, &keys, KEYS),
    );
}

fn main() {
    println!(
        "{:<28} {:>9} {:>8} {:>9} {:>9} {:>9} {:>19} {:>19}",
        "", "", "bytes", "build", "change", "worst", "single, cycles", "batch, cycles"
    );
    println!(
        "{:<28} {:>9} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "table", "rules", "/rule", "ms", "us", "us", "warm", "cold", "warm", "cold"
    );
    let lengths = [
        ("1k prefixes /24", 1_000, 24..=24),
        ("1k prefixes /8-/32", 1_000, 8..=32),
        ("1M prefixes /32", 1_000_000, 32..=32),
    ];
    for (name, count, lengths) in lengths {
        row(name, &prefixes(count, lengths), false);
    }
    let mixed = prefixes(1_000_000, 8..=32);
    row("1M prefixes /8-/32", &mixed, false);
    row("1M prefixes /8-/32 random", &mixed, true);
    let masks = masks(10_000);
    row("10k masks", &masks, false);
    row("10k masks random", &masks, true);
    for (name, widest) in [("10k ranges wide", 65_535), ("10k ranges 4096", 4096), ("10k ranges 256", 256)] {
        let ranges = ranges(10_000, widest);
        row(name, &ranges, false);
        row(&format!("{name} random"), &ranges, true);
    }
}
