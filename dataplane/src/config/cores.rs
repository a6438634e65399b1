//! What this machine has that a config file can name: cores that are online, and its host name.
//!
//! Core numbers are the kernel's. They can have gaps (a core may be taken offline), so a count would not do.

use std::fs;

use super::object::Fault;

/// The cores that are online, as a list of numbers and ranges.
const ONLINE_FILE: &str = "/sys/devices/system/cpu/online";

const HOST_NAME_FILE: &str = "/proc/sys/kernel/hostname";

/// The highest core number that is believed: the kernel's limit is 8192 cores (`NR_CPUS` of x86-64).
const CORE_NUMBER_MAX: usize = 8191;

/// The machine that a config file is checked against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Machine {
    /// Cores that are online; ascending, at least one.
    pub cores: Vec<usize>,
    pub host_name: String,
}

impl Machine {
    /// This machine. Where the kernel does not list its cores, as many as there are, from 0.
    pub fn this() -> Self {
        let listed = fs::read_to_string(ONLINE_FILE).ok().and_then(|text| ranges(text.trim()).ok());
        let cores = listed.map(expand).unwrap_or_else(|| {
            let count = std::thread::available_parallelism().map_or(1, |count| count.get());
            (0..count).collect()
        });
        let host_name = fs::read_to_string(HOST_NAME_FILE).unwrap_or_default().trim().to_string();
        Machine { cores, host_name }
    }

    /// All cores but core 0, which is left to the kernel and the control threads; core 0 where there is no other.
    pub fn default_cores(&self) -> Vec<usize> {
        let others: Vec<usize> = self.cores.iter().copied().filter(|core| *core != 0).collect();
        if others.is_empty() { self.cores.clone() } else { others }
    }

    /// Reads `workers.cores`: `1-3`, `0,2`, `0,4-7`. Ascending, each online and named once.
    pub fn cores(&self, text: &str) -> Result<Vec<usize>, Fault> {
        let ranges = ranges(text)?;
        let online = || format!("online here: {}", list(&self.cores));
        let last = self.cores.last().copied().unwrap_or(0);
        if let Some((_, high)) = ranges.iter().find(|(_, high)| *high > last) {
            return Err(Fault::new(format!("this machine has no core {high}"), online()));
        }
        let mut cores = expand(ranges);
        if let Some(absent) = cores.iter().find(|core| !self.cores.contains(core)) {
            return Err(Fault::new(format!("core {absent} is offline"), online()));
        }
        cores.sort_unstable();
        match cores.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Fault::new(format!("core {} is named twice", pair[0]), "name each core once")),
            None => Ok(cores),
        }
    }
}

/// Reads a list of cores and ranges of cores, without expanding them: input may name billions.
fn ranges(text: &str) -> Result<Vec<(usize, usize)>, Fault> {
    let fault = || Fault::new("not a list of cores", "write cores and ranges, such as \"1-3\" or \"0,2\"");
    let core = |text: &str| {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(fault());
        }
        // Digits that do not fit are a core that no machine has.
        let number = text.parse().unwrap_or(usize::MAX);
        if number > CORE_NUMBER_MAX {
            return Err(Fault::new(format!("no machine has a core {text}"), "name cores that are online"));
        }
        Ok(number)
    };
    let mut ranges = Vec::new();
    for part in text.split(',') {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (low, high) = (core(low)?, core(high)?);
        if low > high {
            return Err(Fault::new(
                format!("the range {low}-{high} runs backwards"),
                format!("write {high}-{low}"),
            ));
        }
        if ranges.len() > CORE_NUMBER_MAX {
            return Err(fault());
        }
        ranges.push((low, high));
    }
    Ok(ranges)
}

fn expand(ranges: Vec<(usize, usize)>) -> Vec<usize> {
    ranges.into_iter().flat_map(|(low, high)| low..=high).collect()
}

/// Cores as a list of ranges, such as `0-3,8`.
pub(super) fn list(cores: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for core in cores {
        match parts.last_mut() {
            Some((_, high)) if *high + 1 == *core => *high = *core,
            _ => parts.push((*core, *core)),
        }
    }
    let shown = |(low, high): &(usize, usize)| {
        if low == high { low.to_string() } else { format!("{low}-{high}") }
    };
    parts.iter().map(shown).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(cores: &[usize]) -> Machine {
        Machine { cores: cores.to_vec(), host_name: "host-a".into() }
    }

    #[test]
    fn this_machine_has_a_core_and_defaults_to_some() {
        let machine = Machine::this();
        assert!(!machine.cores.is_empty() && machine.cores.is_sorted());
        assert!(!machine.default_cores().is_empty());
    }

    #[test]
    fn the_default_leaves_core_0_out_where_it_can() {
        assert_eq!(machine(&[0, 1, 2]).default_cores(), [1, 2]);
        assert_eq!(machine(&[0]).default_cores(), [0]);
        assert_eq!(machine(&[2, 3]).default_cores(), [2, 3]);
    }

    #[test]
    fn lists_are_read_sorted() {
        let machine = machine(&[0, 1, 2, 3, 8]);
        assert_eq!(machine.cores("1-3").unwrap(), [1, 2, 3]);
        assert_eq!(machine.cores("8, 0").unwrap(), [0, 8]);
        assert_eq!(machine.cores("2").unwrap(), [2]);
    }

    #[test]
    fn wrong_lists_say_why() {
        let machine = machine(&[0, 1, 2, 3, 8]);
        for (text, problem) in [
            ("", "not a list of cores"),
            ("1-", "not a list of cores"),
            ("all", "not a list of cores"),
            ("1-2-3", "not a list of cores"),
            ("1,,2", "not a list of cores"),
            ("3-1", "the range 3-1 runs backwards"),
            ("1,0-2", "core 1 is named twice"),
            ("1-9", "this machine has no core 9"),
            ("2-8", "core 4 is offline"),
            ("0-18446744073709551615", "no machine has a core 18446744073709551615"),
            ("99999999999999999999999", "no machine has a core 99999999999999999999999"),
        ] {
            assert_eq!(machine.cores(text).unwrap_err().problem, problem, "{text:?}");
        }
        assert_eq!(machine.cores("9").unwrap_err().remedy, "online here: 0-3,8");
    }
}
