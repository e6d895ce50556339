//! Normalized text to ids, by each of SentencePiece's four algorithms, in Google's order of operations and number formats: the ids are
//! the same, ties and rounding included.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::model::{Algorithm, Kind, Model, byte};
use super::normalize::Normalizer;
use super::trie::Trie;
use crate::data::pieces::Edge;

/// How much worse than the worst piece a character without one is, in nats.
const UNKNOWN_PENALTY: f32 = 10.0;

/// What a user-defined piece of this many bytes scores in a unigram model: more than any other, the longest most. Since release 0.2.3
/// of the library; earlier ones prefer no longer ones.
fn defined_score(length: usize) -> f32 {
    (length as f64 * 0.1 - 0.1) as f32
}

/// A model that is ready to encode.
pub struct SentencePiece {
    pub model: Model,
    normalizer: Normalizer,
    /// Pieces that text may become, by their text.
    ids: HashMap<String, u32>,
    /// The same, for unigram models.
    trie: Trie,
    unknown: u32,
    /// With byte fallback, the ids of the byte pieces.
    bytes: Option<Box<[u32; 256]>>,
    unknown_score: f32,
}

impl SentencePiece {
    /// From the bytes of a `.model`.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        Self::new(Model::parse(bytes)?)
    }

    pub fn new(model: Model) -> Result<Self, String> {
        let kinds = |wanted: fn(Kind) -> bool| {
            let pieces = model.pieces.iter().enumerate().filter(move |(_, piece)| wanted(piece.kind));
            pieces.map(|(id, piece)| (piece.text.as_str(), id as u32))
        };
        let of_text = |kind| matches!(kind, Kind::Normal | Kind::UserDefined | Kind::Unused);
        let mut bytes = model.byte_fallback.then(|| Box::new([0; 256]));
        if let Some(bytes) = &mut bytes {
            for (text, id) in kinds(|kind| kind == Kind::Byte) {
                bytes[usize::from(byte(text).expect("bug: the model was not checked"))] = id;
            }
        }
        let is_unigram = model.algorithm == Algorithm::Unigram;
        let scores = model.pieces.iter().filter(|piece| piece.kind == Kind::Normal).map(|piece| piece.score);
        let unknown_score = scores.fold(f32::MAX, f32::min) - UNKNOWN_PENALTY;
        Ok(Self {
            normalizer: Normalizer::new(&model)?,
            ids: kinds(of_text).map(|(text, id)| (text.to_owned(), id)).collect(),
            trie: Trie::new(kinds(of_text).filter(|_| is_unigram)),
            unknown: model.unknown() as u32,
            bytes,
            unknown_score,
            model,
        })
    }

    /// The ids of a text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        self.encode_part(text, Edge::Document, Edge::Document)
    }

    /// The ids of a part of a text: those that it has in the whole, if that was cut between words.
    pub fn encode_part(&self, text: &str, begin: Edge, end: Edge) -> Result<Vec<u32>, String> {
        let (begins, ends) = (begin == Edge::Document, end == Edge::Document);
        let normalized = self.normalizer.normalize(&self.with_its_space(text, begin, end), begins, ends)?;
        let pieces = match self.model.algorithm {
            Algorithm::Unigram => self.unigram(&normalized),
            Algorithm::Bpe => self.bpe(&normalized),
            Algorithm::Word => words(&normalized).map(|word| (word, self.id(word))).collect(),
            Algorithm::Char => self.symbols(&normalized).map(|(symbol, _)| (symbol, self.id(symbol))).collect(),
        };
        let mut ids = Vec::with_capacity(pieces.len());
        let mut after_unknown = false;
        for (piece, id) in pieces {
            let is_unknown = id == self.unknown;
            match &self.bytes {
                Some(bytes) if is_unknown => ids.extend(piece.bytes().map(|byte| bytes[usize::from(byte)])),
                // A run of unknown characters is one token.
                _ if is_unknown && after_unknown => {}
                _ => ids.push(id),
            }
            after_unknown = is_unknown;
        }
        Ok(ids)
    }

    /// Where spaces follow words, the one that a text was cut before belongs to the part that ends there.
    fn with_its_space<'a>(&self, text: &'a str, begin: Edge, end: Edge) -> Cow<'a, str> {
        if !self.model.space_after_word {
            return text.into();
        }
        let rest = text.strip_prefix(' ').filter(|_| begin == Edge::Word).unwrap_or(text);
        if end == Edge::Word { format!("{rest} ").into() } else { rest.into() }
    }

    /// The id of a piece; unknown if it is unused.
    fn id(&self, piece: &str) -> u32 {
        self.ids.get(piece).copied().filter(|id| !self.is_unused(*id)).unwrap_or(self.unknown)
    }

    /// The texts of user-defined pieces.
    pub fn user_defined(&self) -> impl Iterator<Item = &str> {
        let defined = self.model.pieces.iter().filter(|piece| piece.kind == Kind::UserDefined);
        defined.map(|piece| piece.text.as_str())
    }

    fn is_unused(&self, id: u32) -> bool {
        self.model.pieces[id as usize].kind == Kind::Unused
    }

    /// User-defined pieces, which is the flag, and characters.
    fn symbols<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (&'a str, bool)> {
        let mut rest = text;
        std::iter::from_fn(move || {
            let defined = self.normalizer.protected(rest.as_bytes());
            let length = defined.or_else(|| rest.chars().next().map(char::len_utf8))?;
            let (symbol, after) = rest.split_at(length);
            rest = after;
            Some((symbol, defined.is_some()))
        })
    }

    /// The path of the highest sum of scores; of equal ones, the first found.
    fn unigram<'a>(&self, text: &'a str) -> Vec<(&'a str, u32)> {
        let mut best = vec![Best { id: self.unknown, score: 0.0, begin: None }; text.len() + 1];
        for (begin, c) in text.char_indices() {
            let before = best[begin].score;
            let mut has_single = false;
            for (length, id) in self.trie.prefixes(&text.as_bytes()[begin..]) {
                let piece = &self.model.pieces[id as usize];
                let score = match piece.kind {
                    Kind::Unused => continue,
                    Kind::UserDefined => defined_score(length),
                    _ => piece.score,
                };
                best[begin + length].offer(score + before, begin, id);
                has_single |= length == c.len_utf8();
            }
            if !has_single {
                best[begin + c.len_utf8()].offer(self.unknown_score + before, begin, self.unknown);
            }
        }
        let (mut end, mut pieces) = (text.len(), Vec::new());
        while let Some(begin) = best[end].begin {
            pieces.push((&text[begin..end], best[end].id));
            end = begin;
        }
        pieces.reverse();
        pieces
    }

    /// Merges the pair with the best score until none is left; of equal ones, the leftmost.
    fn bpe<'a>(&'a self, text: &'a str) -> Vec<(&'a str, u32)> {
        let mut merging = Merging { pieces: self, text, symbols: Vec::new(), pairs: BinaryHeap::new(), unused: HashMap::new() };
        let mut begin = 0;
        for (at, (symbol, frozen)) in self.symbols(text).enumerate() {
            let end = begin + symbol.len();
            merging.symbols.push(Symbol { begin, end, before: at.checked_sub(1), after: Some(at + 1), frozen });
            begin = end;
        }
        if let Some(last) = merging.symbols.last_mut() {
            last.after = None;
        }
        for right in 1..merging.symbols.len() {
            merging.offer(Some(right - 1), Some(right));
        }
        merging.merge();
        merging.pieces()
    }
}

/// The best path to a place in the text.
#[derive(Clone)]
struct Best {
    /// Its last piece.
    id: u32,
    score: f32,
    /// Where that begins; none if nothing leads here.
    begin: Option<usize>,
}

impl Best {
    fn offer(&mut self, score: f32, begin: usize, id: u32) {
        if self.begin.is_none() || score > self.score {
            *self = Self { id, score, begin: Some(begin) };
        }
    }
}

/// A part of the text; an empty one has been merged into the one before it.
struct Symbol {
    begin: usize,
    end: usize,
    before: Option<usize>,
    after: Option<usize>,
    /// Whether it must not be merged.
    frozen: bool,
}

/// Two neighbours whose text is a piece.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of both, which tells whether they are still what they were.
    size: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_score = self.score.partial_cmp(&other.score).expect("bug: a score is not a number");
        by_score.then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}

struct Merging<'a> {
    pieces: &'a SentencePiece,
    text: &'a str,
    symbols: Vec<Symbol>,
    pairs: BinaryHeap<Pair>,
    /// Unused pieces with the length of their left part: they are taken apart again in the end.
    unused: HashMap<&'a str, usize>,
}

impl<'a> Merging<'a> {
    fn offer(&mut self, left: Option<usize>, right: Option<usize>) {
        let (Some(left), Some(right)) = (left, right) else { return };
        let (first, second) = (&self.symbols[left], &self.symbols[right]);
        if first.frozen || second.frozen {
            return;
        }
        let both = &self.text[first.begin..second.end];
        let Some(id) = self.pieces.ids.get(both) else { return };
        self.pairs.push(Pair { score: self.pieces.model.pieces[*id as usize].score, left, right, size: both.len() });
        if self.pieces.is_unused(*id) {
            self.unused.insert(both, first.end - first.begin);
        }
    }

    fn merge(&mut self) {
        while let Some(Pair { left, right, size, .. }) = self.pairs.pop() {
            let length = |symbol: &Symbol| symbol.end - symbol.begin;
            let (first, second) = (length(&self.symbols[left]), length(&self.symbols[right]));
            if first == 0 || second == 0 || first + second != size {
                continue;
            }
            let Symbol { begin, end, after, .. } = self.symbols[right];
            self.symbols[right].end = begin;
            self.symbols[left].end = end;
            self.symbols[left].after = after;
            if let Some(after) = after {
                self.symbols[after].before = Some(left);
            }
            self.offer(self.symbols[left].before, Some(left));
            self.offer(Some(left), after);
        }
    }

    fn pieces(&self) -> Vec<(&'a str, u32)> {
        let mut pieces = Vec::new();
        let mut at = (!self.symbols.is_empty()).then_some(0);
        while let Some(symbol) = at.map(|at| &self.symbols[at]) {
            let mut open = vec![&self.text[symbol.begin..symbol.end]];
            while let Some(piece) = open.pop() {
                match self.unused.get(piece) {
                    Some(left) => open.extend([&piece[*left..], &piece[..*left]]),
                    None => pieces.push((piece, self.pieces.id(piece))),
                }
            }
            at = symbol.after;
        }
        pieces
    }
}

/// Words with the marker for the space before them.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?.len_utf8();
        let end = rest[first..].find(super::SPACE).map_or(rest.len(), |at| first + at);
        let (word, after) = rest.split_at(end);
        rest = after;
        Some(word)
    })
}
