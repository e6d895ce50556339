//! Megatron's `.idx` beside a `.bin` of tokens, version 1.
//!
//! `MMIDIDX\0\0`, u64 version, u8 type of the tokens, u64 number of sequences, u64 number of document indices; then for each sequence its
//! length in tokens (i32), for each its place in the `.bin` in bytes (i64), and the documents as numbers of sequences (i64).

use super::encoding::{Encoding, Run};
use crate::terminal::format::grouped;

/// How an index begins.
pub const MAGIC: &[u8] = b"MMIDIDX\0\0";
const HEADER: usize = 34;
/// Of a token, by its code less one; none for types that hold no token ids.
const TYPES: [(&str, Option<Encoding>); 8] = [
    ("uint8", Some(Encoding::U8)),
    ("int8", Some(Encoding::I8)),
    ("int16", Some(Encoding::I16)),
    ("int32", Some(Encoding::I32)),
    ("int64", Some(Encoding::I64)),
    ("float64", None),
    ("float32", None),
    ("uint16", Some(Encoding::U16)),
];

/// Where the sequences lie in the `.bin`.
#[derive(Debug)]
pub struct Sequences {
    pub encoding: Encoding,
    /// Stretches of adjacent sequences; one, unless something rearranged the file.
    pub runs: Vec<Run>,
    /// Tokens in all of them.
    pub tokens: usize,
}

/// What is wrong with an index: at which byte, what was found, what expected.
pub type Wrong = (usize, String, String);

/// Reads an index that begins with [`MAGIC`], of a `.bin` of `bin` bytes. Every sequence must lie within it, and no byte be left over.
pub fn sequences(index: &[u8], bin: usize) -> Result<Sequences, Wrong> {
    let wrong = |at: usize, found: String, expected: &str| (at, found, expected.to_owned());
    if index.len() < HEADER {
        return Err(wrong(0, format!("{} bytes", index.len()), "Megatron's header of 34 bytes"));
    }
    let version = u64_at(index, 9);
    if version != 1 {
        return Err(wrong(9, format!("version {version}"), "version 1 of Megatron's index"));
    }
    let code = index[17];
    let encoding = match TYPES.get(usize::from(code).wrapping_sub(1)) {
        Some((_, Some(encoding))) => *encoding,
        Some((name, None)) => return Err(wrong(17, format!("values of {name}"), "tokens, which are whole numbers")),
        None => return Err(wrong(17, format!("type {code}"), "a type of Megatron's from 1 to 8")),
    };
    let (count, documents) = (u64_at(index, 18), u64_at(index, 26));
    let size = u128::from(count) * 12 + u128::from(documents) * 8 + HEADER as u128;
    if index.len() as u128 == size + u128::from(count) && count > 0 {
        return Err(wrong(26, "a mode for each sequence".to_owned(), "sequences of text only"));
    }
    if index.len() as u128 != size {
        let expected = format!("the {size} bytes that the header counts");
        return Err((18, format!("{} bytes", index.len()), expected));
    }
    // Both fit, because the file has that many bytes.
    let (count, documents) = (count as usize, documents as usize);
    check_documents(index, HEADER + 12 * count, documents, count)?;
    let (lengths, places) = (HEADER, HEADER + 4 * count);
    let (mut runs, mut tokens, mut end) = (Vec::new(), 0usize, 0);
    for i in 0..count {
        let length = i32_at(index, lengths + 4 * i);
        let place = u64_at(index, places + 8 * i) as i64;
        let length = usize::try_from(length)
            .map_err(|_| wrong(lengths + 4 * i, format!("a sequence of {length} tokens"), "none below 0"))?;
        let begin = usize::try_from(place).ok().filter(|place| {
            length.checked_mul(encoding.width()).and_then(|bytes| place.checked_add(bytes)).is_some_and(|end| end <= bin)
        });
        let begin = begin.ok_or_else(|| {
            let found = format!("sequence {i} of {length} tokens at byte {place}");
            (places + 8 * i, found, format!("it within the {bin} bytes of the .bin"))
        })?;
        if length > 0 && (runs.is_empty() || begin != end) {
            runs.push(Run { first: tokens, start: begin });
        }
        if length > 0 {
            end = begin + length * encoding.width();
        }
        tokens = tokens.saturating_add(length);
    }
    if tokens.checked_mul(encoding.width()) != Some(bin) {
        let found = format!("sequences of {} tokens in all", grouped(tokens as u64));
        return Err((places, found, format!("the {bin} bytes of the .bin, {} for a token", encoding.width())));
    }
    Ok(Sequences { encoding, runs, tokens })
}

/// The document indices must rise to the number of sequences.
fn check_documents(index: &[u8], begin: usize, documents: usize, sequences: usize) -> Result<(), Wrong> {
    let mut last = 0;
    for i in 0..documents {
        let at = begin + 8 * i;
        let document = u64_at(index, at);
        if document < last || document > sequences as u64 {
            let expected = format!("from {last} to the {sequences} sequences, because documents follow each other");
            return Err((at, format!("document index {}", document as i64), expected));
        }
        last = document;
    }
    Ok(())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    i32::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(version: u64, code: u8, lengths: &[i32], places: &[i64], documents: &[i64]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(version.to_le_bytes());
        bytes.push(code);
        bytes.extend((lengths.len() as u64).to_le_bytes());
        bytes.extend((documents.len() as u64).to_le_bytes());
        bytes.extend(lengths.iter().flat_map(|length| length.to_le_bytes()));
        bytes.extend(places.iter().chain(documents).flat_map(|place| place.to_le_bytes()));
        bytes
    }

    fn runs(index: &[u8], bin: usize) -> (Vec<(usize, usize)>, usize) {
        let sequences = sequences(index, bin).expect("a good index");
        (sequences.runs.iter().map(|run| (run.first, run.start)).collect(), sequences.tokens)
    }

    #[test]
    fn adjacent_sequences_are_one_run_and_others_keep_the_indexs_order() {
        assert_eq!(runs(&index(1, 8, &[2, 0, 3], &[0, 4, 4], &[0, 1, 3]), 10), (vec![(0, 0)], 5));
        assert_eq!(runs(&index(1, 4, &[1, 2], &[8, 0], &[0, 2]), 12), (vec![(0, 8), (1, 0)], 3));
        assert_eq!(runs(&index(1, 5, &[], &[], &[0]), 0), (vec![], 0));
    }

    #[test]
    fn broken_indices_say_where() {
        let good = index(1, 8, &[2, 3], &[0, 4], &[0, 2]);
        let cut = good[..good.len() - 1].to_vec();
        let modes = [&good[..], &[0, 0]].concat();
        let huge = {
            let mut bytes = good.clone();
            bytes[18..26].fill(0xff);
            bytes
        };
        let cases: [(Vec<u8>, usize, &str); 12] = [
            (good[..20].to_vec(), 0, "20 bytes"),
            (index(2, 8, &[], &[], &[0]), 9, "version 2"),
            (index(1, 7, &[5], &[0], &[0, 1]), 17, "values of float32"),
            (index(1, 0, &[5], &[0], &[0, 1]), 17, "type 0"),
            (index(1, 9, &[5], &[0], &[0, 1]), 17, "type 9"),
            (cut, 18, "73 bytes"),
            (modes, 26, "a mode for each sequence"),
            (huge, 18, "74 bytes"),
            (index(1, 8, &[-1], &[0], &[0, 1]), 34, "a sequence of -1 tokens"),
            (index(1, 8, &[6], &[0], &[0, 1]), 38, "sequence 0 of 6 tokens at byte 0"),
            (index(1, 8, &[5], &[-2], &[0, 1]), 38, "sequence 0 of 5 tokens at byte -2"),
            (index(1, 8, &[4], &[0], &[0, 1]), 38, "sequences of 4 tokens in all"),
        ];
        for (bytes, at, found) in cases {
            let wrong = sequences(&bytes, 10).expect_err("a broken index");
            assert_eq!((wrong.0, wrong.1.as_str()), (at, found));
        }
        for documents in [&[0, 3][..], &[2, 1], &[-1, 1]] {
            assert!(sequences(&index(1, 8, &[2, 3], &[0, 4], documents), 10).is_err());
        }
    }
}
