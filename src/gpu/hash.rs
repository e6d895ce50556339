//! A hash of a few instructions, for keys that no attacker can choose.

use std::hash::{BuildHasherDefault, Hasher};

/// For a `HashMap`.
pub(super) type BuildFast = BuildHasherDefault<Fast>;

/// Multiplies, and turns the good upper bits down at the end.
#[derive(Default)]
pub(super) struct Fast(u64);

/// An odd number whose bits look random.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for Fast {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks();
        words.iter().for_each(|word| self.write_u64(u64::from_le_bytes(*word)));
        rest.iter().for_each(|byte| self.write_u64((*byte).into()));
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(FACTOR);
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn finish(&self) -> u64 {
        self.0.rotate_left(26)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    #[test]
    fn neighbours_differ_where_a_table_looks() {
        let hash = |key: [u64; 3]| BuildFast::default().hash_one(key);
        let keys = (0..4096).map(|i| [i % 16, 256 * (i / 16), 4096]);
        let low: HashSet<u64> = keys.clone().map(|key| hash(key) % 4096).collect();
        let high: HashSet<u64> = keys.map(|key| hash(key) >> 52).collect();
        assert!(low.len() > 2000 && high.len() > 2000, "{} and {} of 4096", low.len(), high.len());
    }
}
