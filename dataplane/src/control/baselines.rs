//! What the counters of a rule's slot had counted before the rule was there. Workers own the counters, so nobody can set
//! them to zero; slots are given to new rules, so something must be taken off. Most slots never had another rule: memory
//! is taken by the chunk, for those that had.

/// Baselines that are allocated together: 16 KiB.
const PER_CHUNK: usize = 1024;

type Chunk = Box<[(u64, u64)]>;

/// Packets and bytes by slot.
#[derive(Default)]
pub struct Baselines {
    chunks: Vec<Option<Chunk>>,
}

impl Baselines {
    /// What a slot had counted.
    pub fn get(&self, slot: u32) -> (u64, u64) {
        let chunk = self.chunks.get(slot as usize / PER_CHUNK).and_then(Option::as_ref);
        chunk.map_or((0, 0), |chunk| chunk[slot as usize % PER_CHUNK])
    }

    /// Sets what a slot has counted by now.
    pub fn set(&mut self, slot: u32, counted: (u64, u64)) {
        let chunk = slot as usize / PER_CHUNK;
        if self.chunks.len() <= chunk {
            if counted == (0, 0) {
                return;
            }
            self.chunks.resize_with(chunk + 1, || None);
        }
        let place = &mut self.chunks[chunk];
        if place.is_some() || counted != (0, 0) {
            place.get_or_insert_with(|| vec![(0, 0); PER_CHUNK].into())[slot as usize % PER_CHUNK] = counted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_counted_takes_memory() {
        let mut baselines = Baselines::default();
        baselines.set(5000, (0, 0));
        assert_eq!((baselines.get(5000), baselines.chunks.len()), ((0, 0), 0));
        baselines.set(5000, (3, 300));
        assert_eq!((baselines.get(5000), baselines.get(5001), baselines.get(1)), ((3, 300), (0, 0), (0, 0)));
        baselines.set(5000, (0, 0));
        assert_eq!(baselines.get(5000), (0, 0));
    }
}
