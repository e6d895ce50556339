//! Windows: how a token stream is split into sequences.
//!
//! Window j covers tokens j·S … j·S+S: the first S are inputs, shifted by one they are targets. Windows do not overlap in
//! their targets, so n tokens hold ⌊(n−1)/S⌋ of them.

use crc32c::crc32c_append;

use super::tokens::TokenStream;
use crate::terminal::failure::Failure;

/// The order of the windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// In stream order, starting over after the last.
    Sequential,
    /// Every window once per epoch, reshuffled each epoch.
    Shuffled { seed: u64 },
}

/// A cursor over a stream's windows. Its whole state is one position, from which a resumed run continues exactly.
pub struct Windows {
    stream: TokenStream,
    seq_len: usize,
    count: u64,
    order: Order,
    position: u64,
}

/// Concatenated windows.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch {
    /// [batch·seq_len], row by row.
    pub inputs: Vec<u32>,
    /// [batch·seq_len], the token that follows each input.
    pub targets: Vec<u32>,
}

impl Windows {
    /// Splits the stream; `name` is its name in errors. A stream shorter than one window is an error.
    pub fn new(stream: TokenStream, name: &str, seq_len: usize, order: Order) -> Result<Self, Failure> {
        let count = (stream.len() - 1) / seq_len as u64;
        if count == 0 {
            return Err(Failure::other(format!(
                "{name}: found {} tokens, expected at least {} for one window of seq_len {seq_len}",
                stream.len(),
                seq_len.saturating_add(1)
            )));
        }
        Ok(Self { stream, seq_len, count, order, position: 0 })
    }

    /// Windows in the stream, that is, per epoch.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// A checksum of the first and the last window, to detect changed data without reading all of it.
    pub fn fingerprint(&self) -> Result<u32, Failure> {
        self.checksum(2)
    }

    /// CRC-32C of up to `max_windows` windows, evenly spaced from the first to the last.
    pub fn checksum(&self, max_windows: u64) -> Result<u32, Failure> {
        let (seq_len, last) = (self.seq_len as u64, self.count - 1);
        let (mut sum, mut tokens) = (0, Vec::new());
        // Of a single window the first is the last: it counts twice, as in checkpoints.
        let windows = max_windows.min(self.count).max(2);
        for number in 0..windows {
            let start = (u128::from(last) * u128::from(number) / u128::from(windows - 1)) as u64 * seq_len;
            tokens.clear();
            self.stream.read(start..start + seq_len + 1, &mut tokens)?;
            let bytes: Vec<u8> = tokens.iter().copied().flat_map(u32::to_le_bytes).collect();
            sum = crc32c_append(sum, &bytes);
        }
        Ok(sum)
    }

    /// Windows handed out so far, over all epochs.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Continues from a position that [`Windows::position`] returned.
    pub fn seek(&mut self, position: u64) {
        self.position = position;
    }

    /// The next `batch` windows, continuing into the next epoch.
    pub fn next_batch(&mut self, batch: usize) -> Result<Batch, Failure> {
        let seq_len = self.seq_len as u64;
        let (mut inputs, mut targets) = (self.room(batch)?, self.room(batch)?);
        for position in self.position..self.position + batch as u64 {
            let start = self.window(position) * seq_len;
            self.stream.read(start..start + seq_len, &mut inputs)?;
            self.stream.read(start + 1..start + seq_len + 1, &mut targets)?;
        }
        self.position += batch as u64;
        Ok(Batch { inputs, targets })
    }

    /// Room for the tokens of a batch.
    fn room(&self, batch: usize) -> Result<Vec<u32>, Failure> {
        let mut tokens = Vec::new();
        tokens.try_reserve_exact(batch.saturating_mul(self.seq_len)).map_err(|_| {
            let windows = format!("windows of {} tokens", self.seq_len);
            Failure::other(format!("train.batch_size: found {batch} {windows}, expected as many as fit into memory"))
        })?;
        Ok(tokens)
    }

    /// The window at a position of the order.
    fn window(&self, position: u64) -> u64 {
        let (epoch, index) = (position / self.count, position % self.count);
        match self.order {
            Order::Sequential => index,
            Order::Shuffled { seed } => permuted(index, self.count, mix(seed ^ mix(epoch))),
        }
    }
}

/// The image of `index` under a permutation of 0..count that the key chooses, computed without storing it: a Feistel
/// network permutes the smallest 4^h ≥ count, and is applied again while the image lies outside 0..count (cycle walking).
fn permuted(index: u64, count: u64, key: u64) -> u64 {
    let half = (u64::BITS - (count - 1).leading_zeros()).div_ceil(2);
    let mask = (1u64 << half) - 1;
    let mut image = index;
    loop {
        let (mut left, mut right) = (image >> half, image & mask);
        for round in 0..6 {
            (left, right) = (right, left ^ (mix(key ^ mix(right ^ round << 32)) & mask));
        }
        image = left << half | right;
        if image < count {
            return image;
        }
    }
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood 2014): a bijection of u64 in which every input bit reaches every
/// output bit.
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DataFormat;

    /// Windows over the tokens 0, 1, …, n-1.
    fn counted(n: u32, seq_len: usize, order: Order) -> Result<Windows, Failure> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.bin");
        let bytes: Vec<u8> = (0..n).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&path, bytes).expect("the file is written");
        Windows::new(TokenStream::open(&path, n as usize, DataFormat::Auto)?, "a.bin", seq_len, order)
    }

    #[test]
    fn windows_share_only_the_token_between_them() {
        let mut windows = counted(10, 3, Order::Sequential).expect("enough tokens");
        assert_eq!(windows.count(), 3);
        let batch = windows.next_batch(2).expect("a batch");
        assert_eq!(batch.inputs, [0, 1, 2, 3, 4, 5]);
        assert_eq!(batch.targets, [1, 2, 3, 4, 5, 6]);
        let batch = windows.next_batch(2).expect("a batch");
        assert_eq!(batch.inputs, [6, 7, 8, 0, 1, 2], "after the last window comes the first");
        assert_eq!(windows.position(), 4);
    }

    #[test]
    fn every_epoch_shuffles_all_windows_anew() {
        for count in [1, 2, 3, 4, 5, 16, 17, 100, 1000] {
            let mut windows = counted(count * 2 + 1, 2, Order::Shuffled { seed: 3 }).expect("enough tokens");
            let mut epoch = || windows.next_batch(count as usize).expect("a batch").inputs;
            let (first, second) = (epoch(), epoch());
            let sorted = |mut inputs: Vec<u32>| {
                inputs.sort();
                inputs
            };
            assert_eq!(sorted(first.clone()), (0..count * 2).collect::<Vec<_>>());
            assert_eq!(sorted(second.clone()), (0..count * 2).collect::<Vec<_>>());
            assert!(count < 16 || first != second, "{count} windows came twice in the same order");
        }
    }

    #[test]
    fn a_sought_position_continues_exactly() {
        let order = Order::Shuffled { seed: 5 };
        let mut whole = counted(1001, 10, order).expect("enough tokens");
        whole.next_batch(130).expect("a batch");
        let mut resumed = counted(1001, 10, order).expect("enough tokens");
        resumed.seek(whole.position());
        assert_eq!(whole.next_batch(90).expect("a batch"), resumed.next_batch(90).expect("a batch"));
    }

    #[test]
    fn the_seed_decides_the_order() {
        let inputs = |seed| counted(1001, 10, Order::Shuffled { seed }).and_then(|mut windows| windows.next_batch(100));
        assert_eq!(inputs(1).expect("a batch"), inputs(1).expect("a batch"));
        assert_ne!(inputs(1).expect("a batch"), inputs(2).expect("a batch"));
    }

    #[test]
    fn shuffled_windows_land_everywhere() {
        // Mean distance from home is count/3 for a random permutation; 10 % is four standard deviations at this count.
        let count = 4097;
        let distance: u64 = (0..count).map(|index| permuted(index, count, 11).abs_diff(index)).sum();
        let expected = (count * count / 3) as f64;
        assert!((distance as f64 / expected - 1.0).abs() < 0.1, "{distance} against {expected}");
    }

    #[test]
    fn a_fingerprint_tells_data_apart() {
        let fingerprint = |n, seq_len| counted(n, seq_len, Order::Sequential).and_then(|windows| windows.fingerprint());
        let same = fingerprint(1001, 10).expect("a checksum");
        assert_eq!(fingerprint(1001, 10).expect("a checksum"), same);
        assert_ne!(fingerprint(1011, 10).expect("a checksum"), same);
        assert_ne!(fingerprint(1001, 20).expect("a checksum"), same);
    }

    #[test]
    fn too_few_tokens_for_a_window_are_refused() {
        let failure = counted(8, 8, Order::Sequential).err().expect("one token too few");
        assert_eq!(failure.to_string(), "a.bin: found 8 tokens, expected at least 9 for one window of seq_len 8");
        let failure = counted(8, usize::MAX, Order::Sequential).err().expect("no tokens for that");
        assert!(failure.to_string().starts_with("a.bin: found 8 tokens, expected at least "), "{failure}");
    }

    #[test]
    fn a_batch_that_no_memory_holds_is_refused() {
        let mut windows = counted(10, 3, Order::Sequential).expect("enough tokens");
        let failure = windows.next_batch(usize::MAX).expect_err("more than any memory");
        let said = format!("train.batch_size: found {} windows of 3 tokens, expected as many as fit into memory", usize::MAX);
        assert_eq!(failure.to_string(), said);
    }
}
