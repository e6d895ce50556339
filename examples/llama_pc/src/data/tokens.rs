//! Token streams: memory-mapped shards read as one sequence of u32 tokens.
//!
//! A shard is a `.bin` of little-endian u32 tokens without header, and an `.idx` of little-endian i64 document offsets
//! (in tokens, not decreasing, the last one the total); or llm.c's `.bin`, whose 256 i32 of header begin with
//! magic 20240520, version 1 for u16 tokens or magic 20240801, version 7 for u32 tokens, and then the token count.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::terminal::failure::Failure;

/// Bytes of llm.c's header.
const HEADER: usize = 256 * 4;
/// llm.c's (magic, version, bytes per token).
const LLM_C: [(u32, u32, usize); 2] = [(20_240_520, 1, 2), (20_240_801, 7, 4)];

/// Several shards as one stream of tokens, memory-mapped.
pub struct TokenStream {
    shards: Vec<Shard>,
    /// Where each shard ends in the stream; ascending.
    ends: Vec<u64>,
    vocab: usize,
}

struct Shard {
    path: PathBuf,
    bytes: Bytes,
    /// Byte offset of the first token: 0, or past llm.c's header.
    start: usize,
    /// Bytes of one token, 2 or 4.
    width: usize,
}

impl TokenStream {
    /// Opens a folder of shards or a single `.bin` for a model of `vocab` tokens.
    pub fn open(path: &Path, vocab: usize) -> Result<Self, Failure> {
        let mut shards = Vec::new();
        for (bin, idx) in pairs(path)? {
            let shard = Shard::open(bin)?;
            if let Some(idx) = idx {
                check_index(&idx, &shard)?;
            }
            shards.push(shard);
        }
        let ends: Vec<u64> = shards
            .iter()
            .scan(0, |end, shard| {
                *end += shard.len() as u64;
                Some(*end)
            })
            .collect();
        if ends.last().is_none_or(|total| *total == 0) {
            return Err(Failure::other(format!("{}: found no tokens, expected at least one", path.display())));
        }
        Ok(Self { shards, ends, vocab })
    }

    /// Tokens in all shards together.
    pub fn len(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Appends the tokens of the range, which must lie within the stream, to `out`. A token outside the vocabulary is an
    /// error that gives its position.
    pub fn read(&self, range: Range<u64>, out: &mut Vec<u32>) -> Result<(), Failure> {
        assert!(range.end <= self.len(), "bug: tokens {range:?} of a stream of {}", self.len());
        let first = self.ends.partition_point(|end| *end <= range.start);
        for (shard, end) in self.shards[first..].iter().zip(&self.ends[first..]) {
            let begin = end - shard.len() as u64;
            if begin >= range.end {
                break;
            }
            let from = range.start.max(begin) - begin;
            let to = range.end.min(*end) - begin;
            shard.read(from as usize..to as usize, self.vocab, out)?;
        }
        Ok(())
    }
}

/// The files of a path, each `.bin` with its `.idx` if it has one. In a folder they pair in sorted order; a folder
/// without any `.idx` (llm.c's) is fine, one with too few or too many is not.
fn pairs(path: &Path) -> Result<Vec<(PathBuf, Option<PathBuf>)>, Failure> {
    if !path.is_dir() {
        let idx = path.with_extension("idx");
        return Ok(vec![(path.to_owned(), idx.is_file().then_some(idx))]);
    }
    let bins = sorted(path, "bin")?;
    let idxs = sorted(path, "idx")?;
    if bins.is_empty() {
        return Err(Failure::other(format!("{}: found no .bin file, expected token shards", path.display()))
            .hint("make shards of text with llama_pc prepare"));
    }
    if !idxs.is_empty() && idxs.len() != bins.len() {
        let (bins, idxs) = (bins.len(), idxs.len());
        return Err(Failure::other(format!("{}: found {bins} .bin and {idxs} .idx files, expected pairs", path.display())));
    }
    let idxs = idxs.into_iter().map(Some).chain(std::iter::repeat(None));
    Ok(bins.into_iter().zip(idxs).collect())
}

fn sorted(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, Failure> {
    let fail = |error| Failure::io("read", folder, &error);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|found| found == extension) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self, Failure> {
        let bytes = Bytes::open(&path)?;
        let word = |i: usize| bytes.get(4 * i..4 * i + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let format = LLM_C.iter().find(|(magic, ..)| word(0) == Some(*magic));
        let (start, width) = match format {
            Some((magic, version, width)) => {
                let (found, count) = (word(1), word(2));
                if found != Some(*version) {
                    let found = found.map_or("no version".to_owned(), |found| format!("version {found}"));
                    return Err(foreign(&path, 4, &found, &format!("version {version} after magic {magic}")));
                }
                let expected = HEADER as u64 + u64::from(count.unwrap_or(0)) * *width as u64;
                if bytes.len() as u64 != expected {
                    let found = format!("{} bytes", bytes.len());
                    return Err(foreign(&path, 8, &found, &format!("the {expected} bytes that the header counts")));
                }
                (HEADER, *width)
            }
            None => (0, 4),
        };
        if !(bytes.len() - start).is_multiple_of(width) {
            let last = bytes.len() - bytes.len() % width;
            let found = format!("{} bytes", bytes.len());
            return Err(foreign(&path, last, &found, &format!("a multiple of {width}")));
        }
        Ok(Self { path, bytes, start, width })
    }

    /// Tokens in the shard.
    fn len(&self) -> usize {
        (self.bytes.len() - self.start) / self.width
    }

    fn read(&self, range: Range<usize>, vocab: usize, out: &mut Vec<u32>) -> Result<(), Failure> {
        let (first, before) = (range.start, out.len());
        let bytes = &self.bytes[self.start + range.start * self.width..self.start + range.end * self.width];
        match self.width {
            2 => out.extend(bytes.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]])))),
            _ => out.extend(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
        }
        match out[before..].iter().position(|token| *token as usize >= vocab) {
            Some(at) => {
                let offset = self.start + (first + at) * self.width;
                let found = format!("token {}", out[before + at]);
                Err(foreign(&self.path, offset, &found, &format!("one below the vocabulary of {vocab}")))
            }
            None => Ok(()),
        }
    }
}

/// The document offsets must rise and end at the shard's token count.
fn check_index(path: &Path, shard: &Shard) -> Result<(), Failure> {
    let bytes = Bytes::open(path)?;
    if bytes.is_empty() || !bytes.len().is_multiple_of(8) {
        let found = format!("{} bytes", bytes.len());
        return Err(foreign(path, 0, &found, "a multiple of 8, and at least 8"));
    }
    let mut last = 0;
    for (i, b) in bytes.chunks_exact(8).enumerate() {
        let offset = i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
        if offset < last {
            let found = format!("document offset {offset}");
            return Err(foreign(path, 8 * i, &found, &format!("at least {last}, because offsets never fall")));
        }
        last = offset;
    }
    if last as u64 != shard.len() as u64 {
        let found = format!("a total of {last} tokens");
        let expected = format!("the {} tokens of {}", shard.len(), shard.path.display());
        return Err(foreign(path, bytes.len() - 8, &found, &expected));
    }
    Ok(())
}

fn foreign(path: &Path, offset: usize, found: &str, expected: &str) -> Failure {
    Failure::other(format!("{}: at byte {offset}: found {found}, expected {expected}", path.display()))
}

/// The contents of a file. An empty file has none to map.
struct Bytes(Option<Mmap>);

impl Bytes {
    fn open(path: &Path) -> Result<Self, Failure> {
        let fail = |error| Failure::io("read", path, &error);
        let file = File::open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        if metadata.is_dir() {
            return Err(Failure::other(format!("{}: found a folder, expected a file", path.display())));
        }
        if metadata.len() == 0 {
            return Ok(Self(None));
        }
        // SAFETY: the map is only read. As with every memory-mapped reader, a shard must not be truncated while a run reads it.
        let map = unsafe { Mmap::map(&file) }.map_err(fail)?;
        Ok(Self(Some(map)))
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or(&[])
    }
}

#[cfg(test)]
#[path = "tokens_tests.rs"]
mod tests;
