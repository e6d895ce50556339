//! Text to tokens and back: a `tokenizer.json`, a SentencePiece model, or a BPE trained here.
//!
//! `file` reads and checks the file, `ends` finds the tokens between which documents stand, `lost` counts text that has no token,
//! `fingerprint` says whether two tokenizers are the same, `train` makes one of byte pairs.

pub mod ends;
mod file;
pub mod fingerprint;
mod lost;
#[cfg(test)]
mod tests;
mod train;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use self::ends::{End, Wishes};
use self::file::File;
use super::foreign;
use super::guard::guarded;
use super::pieces::{Edge, Piece};
use super::sentencepiece::{self, SentencePiece};
use super::synced;
use crate::terminal::failure::Failure;
use crate::terminal::output::note;

pub use self::lost::Losses;
pub use self::train::{Style, min_vocab};

/// Words that end and begin in various ways, to see whether tokens reach from one to the next.
const WORDS: &str = "the river made one more turn and every other line of an old map began to show what lay beyond it";

/// A tokenizer with its JSON, which is copied to every run and export.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Encodes in place of `inner`, where the file is a SentencePiece model or was converted from one.
    sentencepiece: Option<SentencePiece>,
    json: String,
    /// What the file is called.
    name: String,
    bos: End,
    eos: End,
    /// Whether it prepends a space to every text, which would duplicate a space where a text was split.
    adds_space: bool,
    /// Whether a long text that is cut before a space between two words has the tokens of the whole.
    cuts_cleanly: bool,
    /// Whether text can vanish: there are neither tokens for all bytes nor an unknown token.
    loses: bool,
    unknown: Option<u32>,
    /// Special tokens by their id.
    special: BTreeMap<u32, String>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json` or a SentencePiece `.model`.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        Self::load_with(path, &Wishes::default())
    }

    /// The same, with the BOS and EOS that the user names.
    pub fn load_with(path: &Path, wishes: &Wishes) -> Result<Self, Failure> {
        foreign::refuse(path, "a tokenizer.json or a SentencePiece model")?;
        let bytes = std::fs::read(path).map_err(|error| Failure::io("read", path, &error))?;
        let is_model = path.extension().is_some_and(|extension| extension == "model");
        let file = if is_model { File::model(&bytes) } else { File::json(bytes) };
        let named = |reason: String| Failure::other(format!("{}: {reason}", path.display()));
        let mut this = file.and_then(Self::new).map_err(named)?;
        // A copy keeps the name of the file that it was made from.
        let recorded = fingerprint::recorded(path.parent()).filter(|recorded| recorded.fingerprint == this.fingerprint());
        let name = || path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        this.name = recorded.map_or_else(name, |recorded| recorded.name);
        let ends = ends::choose(&this, path.parent(), wishes)?;
        this.set_ends(ends).map_err(named)?;
        Ok(this)
    }

    /// Names BOS and EOS after all; `name` is what the tokenizer is called.
    pub fn with(mut self, wishes: &Wishes, name: &str) -> Result<Self, Failure> {
        name.clone_into(&mut self.name);
        let ends = ends::choose(&self, None, wishes)?;
        self.set_ends(ends).map_err(Failure::other)?;
        Ok(self)
    }

    /// From the text of a `tokenizer.json`; the error says what was found and expected.
    fn from_json(json: String) -> Result<Self, String> {
        let mut this = Self::new(File::json(json.into_bytes())?)?;
        let ends = ends::choose(&this, None, &Wishes::default()).map_err(|failure| failure.to_string())?;
        this.set_ends(ends)?;
        Ok(this)
    }

    fn new(file: File) -> Result<Self, String> {
        file.notes.iter().for_each(|line| note(line));
        let mut inner = file.inner;
        inner.with_truncation(None).map_err(|error| error.to_string())?;
        inner.with_padding(None);
        // Text that looks like a special token must not be encoded as one.
        inner.set_encode_special_tokens(true);
        let special = inner.get_added_tokens_decoder().into_iter().filter(|(_, token)| token.special);
        let mut this = Self {
            special: special.map(|(id, token)| (id, token.content)).collect(),
            inner,
            sentencepiece: file.sentencepiece,
            json: file.json,
            name: String::new(),
            bos: End::default(),
            eos: End::default(),
            adds_space: false,
            cuts_cleanly: true,
            loses: file.loses,
            unknown: file.unknown,
        };
        if this.sentencepiece.is_none() {
            let ids = |texts: [&str; 2]| texts.map(|text| this.encode(text).ok());
            if let ([Some(whole), Some(left)], [Some(right), Some(spaced)]) = (ids(["a b", "a"]), ids(["b", " b"])) {
                this.adds_space = whole == [left.clone(), right].concat() && whole != [left, spaced].concat();
            }
        }
        this.cuts_cleanly = WORDS.match_indices(' ').all(|(at, _)| {
            let first = this.encode_part(&WORDS[..at], Edge::Document, Edge::Word);
            let parts = [first, this.encode_part(&WORDS[at..], Edge::Word, Edge::Document)];
            parts.into_iter().collect::<Result<Vec<_>, _>>().ok().map(|parts| parts.concat()) == this.encode(WORDS).ok()
        });
        Ok(this)
    }

    /// Sets BOS and EOS, and makes the JSON's post-processor add just BOS, as `encode_piece` and `sample` do.
    fn set_ends(&mut self, (bos, eos): (End, End)) -> Result<(), String> {
        let plain = guarded(|| self.inner.encode_fast("", false))?.map_err(|error| error.to_string())?;
        let special = guarded(|| self.inner.encode_fast("", true))?.map_err(|error| error.to_string())?;
        let wanted: Vec<u32> = bos.id.iter().chain(plain.get_ids()).copied().collect();
        if special.get_ids() != wanted {
            let template = |id: u32| Some(sentencepiece::bos_template(&self.token(id)?, id));
            let mut json: Value = serde_json::from_str(&self.json).map_err(|error| error.to_string())?;
            json["post_processor"] = bos.id.and_then(template).unwrap_or_default();
            self.json = serde_json::to_string_pretty(&json).expect("bug: JSON does not serialise");
        }
        (self.bos, self.eos) = (bos, eos);
        Ok(())
    }

    /// The tokens of a text, without any special ones.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Failure> {
        self.encode_part(text, Edge::Document, Edge::Document)
    }

    fn encode_part(&self, text: &str, begin: Edge, end: Edge) -> Result<Vec<u32>, Failure> {
        let fail = |reason: String| Failure::other(format!("cannot encode the text: {reason}"));
        if let Some(model) = &self.sentencepiece {
            return model.encode_part(text, begin, end).map_err(fail);
        }
        let text = match text.strip_prefix(' ') {
            Some(rest) if self.adds_space && begin != Edge::Document => rest,
            _ => text,
        };
        let encoding = guarded(|| self.inner.encode_fast(text, false)).map_err(fail)?;
        Ok(encoding.map_err(|error| fail(error.to_string()))?.get_ids().to_vec())
    }

    /// The tokens of a piece, with BOS where its document begins and EOS where it ends, if the tokenizer has them; and what they do
    /// not say of it.
    pub fn encode_piece(&self, piece: &Piece) -> Result<(Vec<u32>, Losses), Failure> {
        let mut tokens = self.encode_part(&piece.text, piece.begin, piece.end)?;
        let losses = Losses::of(self, piece, &tokens)?;
        if piece.begins() {
            tokens.splice(..0, self.bos.id);
        }
        if piece.ends() {
            tokens.extend(self.eos.id);
        }
        Ok((tokens, losses))
    }

    /// Decodes tokens, skipping special ones. Bytes that are not (yet) UTF-8 become U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, Failure> {
        self.inner.decode(tokens, true).map_err(|error| Failure::other(format!("cannot decode tokens: {error}")))
    }

    /// One more than the highest token id.
    pub fn vocab_size(&self) -> usize {
        let highest = self.inner.get_vocab(true).into_values().max();
        highest.map_or(0, |token| token as usize + 1)
    }

    /// The BOS token.
    pub fn bos(&self) -> Option<u32> {
        self.bos.id
    }

    /// The EOS token.
    pub fn eos(&self) -> Option<u32> {
        self.eos.id
    }

    /// BOS and EOS, and why.
    pub fn ends(&self) -> (&End, &End) {
        (&self.bos, &self.eos)
    }

    /// The unknown token.
    pub fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// The text of one token as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// What the file that it came from was called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The `tokenizer.json` itself.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The bytes of the SentencePiece model that it is, if it is one.
    pub fn sentencepiece_model(&self) -> Option<Vec<u8>> {
        let json: Value = self.sentencepiece.as_ref().and_then(|_| serde_json::from_str(&self.json).ok())?;
        sentencepiece::embedded(&json["normalizer"]).ok().flatten()
    }

    /// A text that `tokenizer.json` encodes otherwise than the SentencePiece model it was converted from, if one is found.
    pub fn differing_text(&self) -> Option<String> {
        let model = self.sentencepiece.as_ref()?;
        let defined =
            model.user_defined().take(100).flat_map(|piece| [format!("a{piece}b"), format!("{piece} a"), piece.to_owned()]);
        let usual = ["a b", " a  b ", "a\nb\n", "\u{ff21} \u{bd} \u{fb01}", "e\u{301} a\u{308}\u{301}"].map(str::to_owned);
        defined.chain(usual).find(|text| {
            let other = guarded(|| self.inner.encode_fast(text.as_str(), false));
            let other = other.ok().and_then(Result::ok).map(|encoding| encoding.get_ids().to_vec());
            model.encode(text).ok() != other
        })
    }

    /// What `tokenizer_config.json` says of it, null where it has no BOS or no EOS.
    pub fn config(&self) -> serde_json::Map<String, Value> {
        let text = |end: &End| json!(end.id.and_then(|id| self.token(id)));
        let config = json!({
            "bos_token": text(&self.bos),
            "eos_token": text(&self.eos),
            fingerprint::NAME_KEY: self.name,
            fingerprint::KEY: self.fingerprint(),
        });
        config.as_object().cloned().unwrap_or_default()
    }

    /// Writes `tokenizer.json`, and `tokenizer_config.json` with BOS, EOS and the fingerprint.
    pub fn save(&self, folder: &Path) -> Result<(), Failure> {
        let config = serde_json::to_string_pretty(&self.config()).expect("bug: JSON does not serialise") + "\n";
        for (name, text) in [("tokenizer.json", &self.json), (ends::CONFIG, &config)] {
            synced::write(&folder.join(name), text.as_bytes())?;
        }
        Ok(())
    }
}
