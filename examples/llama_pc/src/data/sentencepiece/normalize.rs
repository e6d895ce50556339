//! Text as a model wants it: characters replaced, extra spaces removed, the rest marked, a space put before the whole.
//!
//! The replacements are a double-array trie (of Darts) over bytes, whose values are places in a list of texts that end with NUL. The
//! longest match at each place counts.

use super::SPACE;
use super::model::{Kind, Model};
use super::trie::Trie;

pub struct Normalizer {
    map: Option<CharsMap>,
    /// User-defined pieces, which no replacement touches.
    protected: Trie,
    space_after_word: bool,
    dummy_space: bool,
    merge_spaces: bool,
    /// What a space becomes.
    space: &'static str,
}

impl Normalizer {
    pub fn new(model: &Model) -> Result<Self, String> {
        let defined = model.pieces.iter().enumerate().filter(|(_, piece)| piece.kind == Kind::UserDefined);
        Ok(Self {
            map: (!model.charsmap.is_empty()).then(|| CharsMap::parse(&model.charsmap)).transpose()?,
            protected: Trie::new(defined.map(|(id, piece)| (piece.text.as_str(), id as u32))),
            space_after_word: model.space_after_word,
            dummy_space: model.dummy_space,
            merge_spaces: model.merge_spaces,
            space: if model.mark_spaces { SPACE } else { " " },
        })
    }

    /// The length of the user-defined piece that the text begins with.
    pub fn protected(&self, text: &[u8]) -> Option<usize> {
        self.protected.prefixes(text).last().map(|(length, _)| length)
    }

    /// Normalizes a text, or a part of one; the flags tell whether the whole begins and ends here.
    pub fn normalize(&self, text: &str, begins: bool, ends: bool) -> Result<String, String> {
        let (mut rest, mut out) = (text.as_bytes(), Vec::with_capacity(text.len() * 2));
        if self.merge_spaces && begins {
            while let (b" ", length) = self.step(rest)? {
                rest = &rest[length..];
            }
        }
        if rest.is_empty() {
            return Ok(String::new());
        }
        if self.dummy_space && !self.space_after_word && begins {
            out.extend(self.space.bytes());
        }
        let mut after_space = self.merge_spaces && begins;
        while !rest.is_empty() {
            let (mut part, length) = self.step(rest)?;
            while let (true, Some(less)) = (after_space, part.strip_prefix(b" ")) {
                part = less;
            }
            for byte in part {
                match byte {
                    b' ' => out.extend(self.space.bytes()),
                    byte => out.push(*byte),
                }
            }
            if !part.is_empty() {
                after_space = self.merge_spaces && part.ends_with(b" ");
            }
            rest = &rest[length..];
        }
        if self.merge_spaces && ends {
            while out.ends_with(self.space.as_bytes()) {
                out.truncate(out.len() - self.space.len());
            }
        }
        if self.dummy_space && self.space_after_word && ends {
            out.extend(self.space.bytes());
        }
        String::from_utf8(out).map_err(|_| "found replacements that are not UTF-8 in the normalizer, expected text".to_owned())
    }

    /// What the text's beginning becomes, and its length; nothing at the end.
    fn step<'a>(&'a self, text: &'a [u8]) -> Result<(&'a [u8], usize), String> {
        if let Some(length) = self.protected(text) {
            return Ok((&text[..length], length));
        }
        if let Some(map) = &self.map
            && let Some(replaced) = map.replacement(text)?
        {
            return Ok(replaced);
        }
        let length = text.first().map_or(0, |first| first.leading_ones().max(1) as usize);
        Ok((&text[..length], length))
    }
}

/// Replacements of characters.
struct CharsMap {
    units: Vec<u32>,
    texts: Vec<u8>,
}

/// Replacements that begin alike, at most, as in Google's library.
const MOST_MATCHES: usize = 32;

impl CharsMap {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let damaged = || "found damage in precompiled_charsmap, expected a trie and texts".to_owned();
        let (length, rest) = bytes.split_first_chunk().ok_or_else(damaged)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (trie, texts) = rest.split_at_checked(length).ok_or_else(damaged)?;
        let (units, left) = trie.as_chunks();
        if units.is_empty() || !left.is_empty() || texts.is_empty() {
            return Err(damaged());
        }
        Ok(Self { units: units.iter().map(|unit| u32::from_le_bytes(*unit)).collect(), texts: texts.to_vec() })
    }

    /// The replacement of the longest match at the beginning, and the match's length.
    fn replacement(&self, text: &[u8]) -> Result<Option<(&[u8], usize)>, String> {
        let damaged = || "found damage in precompiled_charsmap, expected its places to exist".to_owned();
        let unit = |at: u32| self.units.get(at as usize).copied().ok_or_else(damaged);
        let offset = |unit: u32| (unit >> 10) << ((unit & 1 << 9) >> 6);
        let (mut at, mut found, mut matches) = (offset(unit(0)?), None, 0);
        for (i, byte) in text.iter().enumerate() {
            at ^= u32::from(*byte);
            let node = unit(at)?;
            // A node's own byte; the high bit marks values.
            if node & (1 << 31 | 0xff) != u32::from(*byte) {
                break;
            }
            at ^= offset(node);
            if node & 1 << 8 != 0 && matches < MOST_MATCHES {
                matches += 1;
                found = Some((unit(at)? & !(1 << 31), i + 1));
            }
        }
        let Some((place, length)) = found else { return Ok(None) };
        let text = self.texts.get(place as usize..).ok_or_else(damaged)?;
        let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        Ok(Some((&text[..end], length)))
    }
}
