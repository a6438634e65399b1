//! CPU cores: which may be used, how users list them, which are shared by several workers.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use thiserror::Error;

/// Cores that Linux' `cpu_set_t` can name: 0 to 1023.
pub const MAX_CORES: usize = 1024;

/// A core list that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CoreError {
    /// Nothing is listed.
    #[error("core list is empty (write cores and ranges, such as \"1-3\" or \"0,2,4-5\")")]
    Empty,
    /// Nothing stands between two commas, or at an end.
    #[error("core list \"{list}\": item {position} is empty (a comma too many?)")]
    EmptyItem {
        /// The whole list.
        list: String,
        /// The item's position, from 1.
        position: usize,
    },
    /// An item is neither a number nor a range.
    #[error("core list \"{list}\": \"{item}\" is neither a core number nor a range such as \"1-3\"")]
    NotANumber {
        /// The whole list.
        list: String,
        /// The item.
        item: String,
    },
    /// The first core of a range is greater than its last.
    #[error("core list \"{list}\": range \"{item}\" runs backwards (write \"{last}-{first}\")")]
    Backwards {
        /// The whole list.
        list: String,
        /// The range.
        item: String,
        /// Its first core.
        first: usize,
        /// Its last core.
        last: usize,
    },
    /// A core number that no machine has.
    #[error("core list \"{list}\": core {core} is beyond the last possible core {}", MAX_CORES - 1)]
    TooLarge {
        /// The whole list.
        list: String,
        /// The core.
        core: usize,
    },
    /// A core stands in the list more than once.
    #[error("core list \"{list}\": core {core} is listed twice (list each core once)")]
    Twice {
        /// The whole list.
        list: String,
        /// The core.
        core: usize,
    },
    /// A core is not there, or not for this process.
    #[error("core {core} is not available to this process (available: {})", format(.available))]
    Unavailable {
        /// The core.
        core: usize,
        /// The cores that are.
        available: Vec<usize>,
    },
}

/// Parses a list such as `1-3` or `0,2,4-5` into core numbers, in the order written. Blanks around items are ignored.
///
/// # Errors
/// [`CoreError`] says which item is wrong and how to write it. Whether the cores exist is [`check`]'s question.
pub fn parse(list: &str) -> Result<Vec<usize>, CoreError> {
    if list.trim().is_empty() {
        return Err(CoreError::Empty);
    }
    let mut cores = Vec::new();
    for (index, item) in list.split(',').map(str::trim).enumerate() {
        if item.is_empty() {
            return Err(CoreError::EmptyItem { list: list.to_owned(), position: index + 1 });
        }
        let (first, last) = parse_item(list, item)?;
        for core in first..=last {
            if cores.contains(&core) {
                return Err(CoreError::Twice { list: list.to_owned(), core });
            }
            cores.push(core);
        }
    }
    Ok(cores)
}

/// First and last core of one item.
fn parse_item(list: &str, item: &str) -> Result<(usize, usize), CoreError> {
    let number = |text: &str| -> Result<usize, CoreError> {
        let text = text.trim();
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let not_a_number = || CoreError::NotANumber { list: list.to_owned(), item: item.to_owned() };
        if !digits {
            return Err(not_a_number());
        }
        let core = text.parse().map_err(|_| not_a_number())?;
        if core < MAX_CORES { Ok(core) } else { Err(CoreError::TooLarge { list: list.to_owned(), core }) }
    };
    let Some((first, last)) = item.split_once('-') else {
        let core = number(item)?;
        return Ok((core, core));
    };
    let (first, last) = (number(first)?, number(last)?);
    if first <= last {
        Ok((first, last))
    } else {
        Err(CoreError::Backwards { list: list.to_owned(), item: item.to_owned(), first, last })
    }
}

/// Writes cores as a list with ranges, such as `0,2-4`; the opposite of [`parse`]. Sorts them.
#[must_use]
pub fn format(cores: &[usize]) -> String {
    let mut sorted = cores.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    sorted
        .chunk_by(|a, b| a + 1 == *b)
        .map(|run| match run {
            [first, .., last] => format!("{first}-{last}"),
            other => other.iter().map(usize::to_string).collect(),
        })
        .collect::<Vec<_>>()
        .join(",")
}

/// The cores that this process may use, ascending. They are those of the thread that asks first, and remembered: call
/// it at start-up, before anything (a worker, or EAL with the main thread) is pinned.
#[must_use]
pub fn available() -> Vec<usize> {
    static AVAILABLE: OnceLock<Vec<usize>> = OnceLock::new();
    AVAILABLE
        .get_or_init(|| {
            let ids = core_affinity::get_core_ids().unwrap_or_default();
            ids.into_iter().map(|core| core.id).collect()
        })
        .clone()
}

/// Keeps the calling thread, and those that it starts from now on, off the cores of workers: whatever else ran there would
/// take a worker that is always busy milliseconds at a time. Where workers have every core, or the system refuses, nothing
/// changes; says whether it did. A worker is pinned to its core all the same.
pub fn leave_to_workers(workers: &[usize]) -> bool {
    let others: Vec<usize> = available().into_iter().filter(|core| !workers.contains(core)).collect();
    !others.is_empty() && crate::os::stay_on(&others)
}

/// The cores that workers use when the user names none: all that are available but core 0, which is left to the
/// control side and the operating system; on one core, that one.
#[must_use]
pub fn default_cores() -> Vec<usize> {
    default_of(&available())
}

fn default_of(available: &[usize]) -> Vec<usize> {
    match available {
        [only] => vec![*only],
        several => several.iter().copied().filter(|core| *core != 0).collect(),
    }
}

/// Checks that every listed core is available.
///
/// # Errors
/// [`CoreError::Unavailable`] names the first that is not, and those that are.
pub fn check(cores: &[usize]) -> Result<(), CoreError> {
    let available = available();
    match cores.iter().find(|core| !available.contains(core)) {
        Some(core) => Err(CoreError::Unavailable { core: *core, available }),
        None => Ok(()),
    }
}

/// Whether a plan that puts one worker on each of `assigned` puts more than one on `core`.
#[must_use]
pub fn is_shared(assigned: &[usize], core: usize) -> bool {
    assigned.iter().filter(|assigned| **assigned == core).count() > 1
}

/// Workers on each core. Written when workers start and end, read by workers that have nothing to do.
static OCCUPANTS: [AtomicUsize; MAX_CORES] = [const { AtomicUsize::new(0) }; MAX_CORES];

/// A worker's place on a core, or on no particular one; given up when dropped. It knows whether others are there too,
/// so that a worker that polls for nothing can let them run.
#[derive(Debug)]
pub struct Seat {
    occupants: Option<&'static AtomicUsize>,
    /// The machine has one core, on which the control side runs too.
    only_core: bool,
}

impl Seat {
    /// Takes a place on a core. `None`, or a core that no machine has, stands for a thread that is not pinned.
    #[must_use]
    pub fn take(core: Option<usize>) -> Self {
        let occupants = core.and_then(|core| OCCUPANTS.get(core));
        if let Some(occupants) = occupants {
            occupants.fetch_add(1, Ordering::Relaxed);
        }
        Self { occupants, only_core: available().len() <= 1 }
    }

    /// Whether somebody else may need this core: another worker is on it, it is the only one, or it can be any.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.only_core || self.occupants.is_none_or(|occupants| occupants.load(Ordering::Relaxed) > 1)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(occupants) = self.occupants {
            occupants.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parses_lists_and_ranges() {
        assert_eq!(parse("1-3"), Ok(vec![1, 2, 3]));
        assert_eq!(parse("0,2,4-5"), Ok(vec![0, 2, 4, 5]));
        assert_eq!(parse(" 7 , 3 - 4 "), Ok(vec![7, 3, 4]));
        assert_eq!(parse("5-5"), Ok(vec![5]));
        assert_eq!(parse("1023"), Ok(vec![1023]));
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let message = |list: &str| parse(list).unwrap_err().to_string();
        assert_eq!(
            message(" "),
            "core list is empty (write cores and ranges, such as \"1-3\" or \"0,2,4-5\")"
        );
        assert_eq!(message("1,,2"), "core list \"1,,2\": item 2 is empty (a comma too many?)");
        assert_eq!(message("1,"), "core list \"1,\": item 2 is empty (a comma too many?)");
        assert_eq!(message("3-1"), "core list \"3-1\": range \"3-1\" runs backwards (write \"1-3\")");
        assert_eq!(message("1024"), "core list \"1024\": core 1024 is beyond the last possible core 1023");
        assert_eq!(message("1-2,2"), "core list \"1-2,2\": core 2 is listed twice (list each core once)");
        for list in ["a", "1-", "-1", "1-2-3", "+1", "0x1", "1 2", "99999999999999999999999"] {
            assert!(matches!(parse(list), Err(CoreError::NotANumber { .. })), "{list}");
        }
    }

    #[test]
    fn checks_against_this_machine() {
        let here = available();
        assert!(!here.is_empty());
        assert_eq!(check(&here), Ok(()));
        let error = check(&[MAX_CORES]).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("core 1024 is not available to this process (available: {})", format(&here))
        );
    }

    #[test]
    fn default_leaves_core_0_alone() {
        assert_eq!(default_of(&[0, 1, 2]), [1, 2]);
        assert_eq!(default_of(&[0]), [0]);
        assert_eq!(default_of(&[4, 6]), [4, 6]);
        assert!(!default_cores().is_empty());
    }

    #[test]
    fn knows_shared_cores() {
        assert!(is_shared(&[1, 2, 1], 1));
        assert!(!is_shared(&[1, 2, 1], 2));
        // A core that no other test sits on.
        let first = Seat::take(Some(1000));
        assert_eq!(first.is_shared(), available().len() == 1);
        let second = Seat::take(Some(1000));
        assert!(first.is_shared() && second.is_shared());
        drop(second);
        assert_eq!(first.is_shared(), available().len() == 1);
        assert!(Seat::take(None).is_shared());
    }

    proptest! {
        #[test]
        fn format_and_parse_are_inverse(cores in prop::collection::btree_set(0usize..MAX_CORES, 1..60)) {
            let cores: Vec<usize> = cores.into_iter().collect();
            prop_assert_eq!(parse(&format(&cores)), Ok(cores));
        }

        #[test]
        fn parse_never_panics(list in "[0-9, a-]{0,20}") {
            if let Ok(cores) = parse(&list) {
                prop_assert!(!cores.is_empty() && cores.iter().all(|core| *core < MAX_CORES));
            }
        }
    }
}
