//! `state.json`: the state of the run, size and CRC-32C of the checkpoint's other files, and its own CRC-32C.

use std::collections::BTreeMap;

use crc32c::crc32c;
use serde::{Deserialize, Serialize};

use super::state::State;

/// The raw parameters with u, v and γ.
pub const MODEL: &str = "model.safetensors";
/// The optimizer's moments.
pub const OPTIMIZER: &str = "optimizer.safetensors";
/// The state of the run.
pub const STATE: &str = "state.json";

/// Size and checksum of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    pub bytes: u64,
    pub crc32c: String,
}

/// The contents of `state.json`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Document {
    #[serde(flatten)]
    pub state: State,
    pub files: BTreeMap<String, Recorded>,
    /// Of this text with an empty string here.
    crc32c: String,
}

impl Document {
    pub fn new(state: &State, files: BTreeMap<String, Recorded>) -> Self {
        let mut document = Self { state: state.clone(), files, crc32c: String::new() };
        document.crc32c = hexadecimal(crc32c(document.text().as_bytes()));
        document
    }

    pub fn text(&self) -> String {
        serde_json::to_string_pretty(self).expect("bug: the state does not serialise") + "\n"
    }
}

/// The text of a `state.json` without files.
#[cfg(any(test, feature = "samples"))]
pub fn text_of(state: &State) -> String {
    Document::new(state, BTreeMap::new()).text()
}

/// A checksum as `state.json` writes it.
pub fn hexadecimal(sum: u32) -> String {
    format!("{sum:08x}")
}

#[cfg(test)]
mod tests {
    use crc32c::{crc32c, crc32c_append};

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(b""), 0);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        // RFC 3720, B.4: 32 bytes of zeros, of ones, and counted up.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&std::array::from_fn::<u8, 32, _>(|i| i as u8)), 0x46dd_794e);
    }

    #[test]
    fn pieces_give_the_checksum_of_the_whole() {
        let bytes: Vec<u8> = (0..100u8).map(|i| i.wrapping_mul(37)).collect();
        for cut in 0..bytes.len() {
            assert_eq!(crc32c_append(crc32c(&bytes[..cut]), &bytes[cut..]), crc32c(&bytes));
        }
    }
}
