//! The nearest of the words that would have been right, and lists of words for messages.

/// The remedy for a word that is none of `allowed`: the nearest of them, or all.
pub(super) fn instead_of(word: &str, allowed: &[&str]) -> String {
    match nearest(word, allowed) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("allowed here: {}", allowed.join(", ")),
    }
}

/// The word of `allowed` that is a slip of the keyboard away from `word`: one edit, or one per three characters.
fn nearest<'a>(word: &str, allowed: &[&'a str]) -> Option<&'a str> {
    // No allowed word is longer than 20 characters; longer input is no slip, and would only cost time.
    if word.len() > 32 {
        return None;
    }
    let word = word.to_lowercase();
    let (edits, near) = allowed.iter().map(|a| (distance(&word, a), *a)).min()?;
    (edits <= (near.len() / 3).max(1)).then_some(near)
}

/// Optimal string alignment: insertions, deletions and replacements of characters, and swaps of neighbours, that turn
/// `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let replaced = last[j] + usize::from(a[i] != b[j]);
            let swapped = i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j];
            let swapped = if swapped { before[j - 1] + 1 } else { usize::MAX };
            row.push(replaced.min(swapped).min(row[j] + 1).min(last[j + 1] + 1));
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_edits() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("mtu", "mtu"), 0);
        assert_eq!(distance("hots", "host"), 1);
        assert_eq!(distance("mtu", ""), 3);
    }

    #[test]
    fn suggests_the_nearest_or_lists_all() {
        let keys = ["name", "device", "gateway", "gateway_mac"];
        assert_eq!(instead_of("gatway", &keys), "did you mean gateway?");
        assert_eq!(instead_of("Gateway-MAC", &keys), "did you mean gateway_mac?");
        assert_eq!(instead_of("colour", &keys), "allowed here: name, device, gateway, gateway_mac");
        assert_eq!(
            instead_of(&"n".repeat(100_000), &keys),
            "allowed here: name, device, gateway, gateway_mac"
        );
        assert_eq!(instead_of("x", &[]), "allowed here: ");
    }
}
