//! Token streams: memory-mapped shards read as one sequence of u32 tokens.
//!
//! A shard is a `.bin` of little-endian u32 tokens without header, and an `.idx` of little-endian i64 document offsets
//! (in tokens, not decreasing, the last one the total); or llm.c's `.bin`, whose 256 i32 of header begin with
//! magic 20240520, version 1 for u16 tokens or magic 20240801, version 7 for u32 tokens, and then the token count; or Megatron's pair,
//! whose `.idx` says all; or, where the configuration says so, nanoGPT's `.bin` of u16 tokens without header.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::encoding::{Encoding, Run};
use super::foreign::{HEAD, recognised};
use super::megatron;
use crate::config::DataFormat;
use crate::terminal::failure::Failure;

/// Bytes of llm.c's header.
const HEADER: usize = 256 * 4;
/// llm.c's (magic, version, type of the tokens).
const LLM_C: [(u32, u32, Encoding); 2] = [(20_240_520, 1, Encoding::U16), (20_240_801, 7, Encoding::U32)];
/// Tokens that are looked at to tell 16 from 32 bits.
const LOOK: usize = 1 << 16;
const USE_U16: &str =
    "these may be 16-bit tokens, as nanoGPT writes them: read them with data.format = \"u16\", in eval with --format u16";

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
    encoding: Encoding,
    /// Ascending, and never empty unless the shard is.
    runs: Vec<Run>,
    tokens: usize,
    /// Whether nothing in the file or beside it says what its tokens are.
    assumed: bool,
}

impl TokenStream {
    /// Opens a folder of shards or a single `.bin` for a model of `vocab` tokens. `format` is that of files without header.
    pub fn open(path: &Path, vocab: usize, format: DataFormat) -> Result<Self, Failure> {
        let shards =
            pairs(path)?.into_iter().map(|(bin, idx)| Shard::open(bin, idx, vocab, format)).collect::<Result<Vec<_>, _>>()?;
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
        if path.extension().is_some_and(|extension| extension == "idx") {
            return Err(Failure::other(format!("{}: found an index, expected the .bin beside it", path.display())));
        }
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

/// The files with the extension, in the order of their names without it, so that files of the same names pair.
fn sorted(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, Failure> {
    let fail = |error| Failure::io("read", folder, &error);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|found| found == extension) {
            paths.push(path);
        }
    }
    // Of a `.bin`, this is the order of the names as they are, on which that of the windows depends.
    paths.sort_by_cached_key(|path| path.with_extension("bin"));
    Ok(paths)
}

impl Shard {
    fn open(path: PathBuf, idx: Option<PathBuf>, vocab: usize, format: DataFormat) -> Result<Self, Failure> {
        let bytes = Bytes::open(&path)?;
        let Some(idx) = idx else { return Self::without_index(path, bytes, vocab, format) };
        let index = Bytes::open(&idx)?;
        if index.starts_with(megatron::MAGIC) {
            return Self::of_megatron(path, bytes, &idx, &index, format);
        }
        if let Some(foreign) = recognised(&index[..index.len().min(HEAD)]) {
            return Err(foreign.failure(&idx, "an index of documents"));
        }
        let shard = Self { assumed: false, ..Self::without_index(path, bytes, vocab, format)? };
        check_index(&idx, &index, &shard)?;
        Ok(shard)
    }

    fn of_megatron(path: PathBuf, bytes: Bytes, idx: &Path, index: &[u8], format: DataFormat) -> Result<Self, Failure> {
        let megatron::Sequences { encoding, runs, tokens } = megatron::sequences(index, bytes.len())
            .map_err(|(at, found, expected)| foreign(idx, at, &format!("{found} in Megatron's index"), &expected))?;
        check_format(&path, format, encoding)?;
        Ok(Self { path, bytes, encoding, runs, tokens, assumed: false })
    }

    /// llm.c's, or one without header.
    fn without_index(path: PathBuf, bytes: Bytes, vocab: usize, format: DataFormat) -> Result<Self, Failure> {
        if let Some(encoding) = llm_c(&path, &bytes, format)? {
            let tokens = (bytes.len() - HEADER) / encoding.width();
            return Ok(Self { path, bytes, encoding, runs: vec![Run { first: 0, start: HEADER }], tokens, assumed: false });
        }
        if let Some(foreign) = recognised(&bytes[..bytes.len().min(HEAD)]) {
            return Err(foreign.failure(&path, "tokens"));
        }
        let encoding = if format == DataFormat::U16 { Encoding::U16 } else { Encoding::U32 };
        let width = encoding.width();
        if !bytes.len().is_multiple_of(width) {
            let last = bytes.len() - bytes.len() % width;
            let failure = foreign(&path, last, &format!("{} bytes", bytes.len()), &format!("a multiple of {width}"));
            let even = format == DataFormat::Auto && bytes.len().is_multiple_of(2);
            return Err(if even { failure.hint(USE_U16) } else { failure });
        }
        let upper_half = (vocab.saturating_sub(1) >> 16) as i64;
        if format == DataFormat::U16 && looks_like_u32(&bytes, upper_half) {
            let most = if upper_half == 0 { "0".to_owned() } else { format!("at most {upper_half}") };
            return Err(foreign(&path, 2, &format!("every other 16-bit token {most}"), "16-bit tokens, as the format says")
                .hint("these may be 32-bit tokens: read them with data.format = \"u32\", in eval with --format u32"));
        }
        let tokens = bytes.len() / width;
        Ok(Self { path, bytes, encoding, runs: vec![Run { first: 0, start: 0 }], tokens, assumed: format == DataFormat::Auto })
    }

    /// Tokens in the shard.
    fn len(&self) -> usize {
        self.tokens
    }

    fn read(&self, range: Range<usize>, vocab: usize, out: &mut Vec<u32>) -> Result<(), Failure> {
        let width = self.encoding.width();
        let mut at = range.start;
        let mut next = self.runs.partition_point(|run| run.first <= at);
        while at < range.end {
            let run = self.runs[next - 1];
            let end = self.runs.get(next).map_or(range.end, |run| run.first.min(range.end));
            let begin = run.start + (at - run.first) * width;
            let bytes = &self.bytes[begin..begin + (end - at) * width];
            for (i, token) in self.encoding.decode(bytes).enumerate() {
                if !(0..vocab as i64).contains(&token) {
                    return Err(self.outside(begin + i * width, token, vocab));
                }
                out.push(token as u32);
            }
            (at, next) = (end, next + 1);
        }
        Ok(())
    }

    /// The error about a token that no vocabulary or another one has.
    fn outside(&self, at: usize, token: i64, vocab: usize) -> Failure {
        let failure = foreign(&self.path, at, &format!("token {token}"), &format!("one below the vocabulary of {vocab}"));
        let begin = &self.bytes[..self.bytes.len().min(2 * LOOK)];
        let fits = self.assumed && Encoding::U16.decode(begin).all(|token| token < vocab as i64);
        if fits { failure.hint(USE_U16) } else { failure }
    }
}

/// The type of the tokens of an llm.c file; `None` for another file.
fn llm_c(path: &Path, bytes: &[u8], format: DataFormat) -> Result<Option<Encoding>, Failure> {
    let word = |i: usize| bytes.get(4 * i..4 * i + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let Some((magic, version, encoding)) = LLM_C.iter().find(|(magic, ..)| word(0) == Some(*magic)) else { return Ok(None) };
    let (found, count) = (word(1), word(2));
    let expected = HEADER as u64 + u64::from(count.unwrap_or(0)) * encoding.width() as u64;
    let wrong = if found != Some(*version) {
        let found = found.map_or("no version".to_owned(), |found| format!("version {found}"));
        Some(foreign(path, 4, &found, &format!("version {version} after magic {magic}")))
    } else if bytes.len() as u64 != expected {
        let found = format!("{} bytes", bytes.len());
        Some(foreign(path, 8, &found, &format!("the {expected} bytes that the header counts")))
    } else {
        None
    };
    match wrong {
        // Tokens that happen to begin with the magic, where the user says that there is no header.
        Some(_) if format == DataFormat::U16 && found != Some(*version) => Ok(None),
        Some(failure) => Err(failure),
        None => check_format(path, format, *encoding).map(|()| Some(*encoding)),
    }
}

/// A configured format must be that which the file itself states.
fn check_format(path: &Path, format: DataFormat, encoding: Encoding) -> Result<(), Failure> {
    let agrees = match format {
        DataFormat::Auto => true,
        DataFormat::U16 => encoding == Encoding::U16,
        DataFormat::U32 => matches!(encoding, Encoding::U32 | Encoding::I32),
    };
    if agrees {
        return Ok(());
    }
    let (found, path) = (format!("{encoding:?}").to_lowercase(), path.display());
    Err(Failure::other(format!("{path}: found {found} tokens by its header or index, expected those of data.format"))
        .hint("leave data.format at \"auto\" for files that say what they hold"))
}

/// Whether every other 16-bit number may be the upper half of a 32-bit token of the vocabulary, whose last token has this one.
fn looks_like_u32(bytes: &[u8], upper_half: i64) -> bool {
    let begin = &bytes[..bytes.len().min(2 * LOOK)];
    let mut upper_halves = Encoding::U16.decode(begin).skip(1).step_by(2);
    bytes.len() >= 32 && bytes.len().is_multiple_of(4) && upper_halves.all(|half| half <= upper_half)
}

/// The document offsets must rise and end at the shard's token count.
fn check_index(path: &Path, bytes: &[u8], shard: &Shard) -> Result<(), Failure> {
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
