//! Ids against those of Google's library, which `scripts/sentencepiece-fixtures.py` records.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::SentencePiece;
use super::model::{Algorithm, Kind, Model, Piece};
use crate::data::pieces::{Edge, PIECE_BYTES, cut};
use crate::terminal::failure::Failure;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sentencepiece").join(name)
}

fn load(name: &str) -> SentencePiece {
    let bytes = std::fs::read(fixture(&format!("{name}.model"))).expect("the fixture");
    SentencePiece::parse(&bytes).expect("a good model")
}

#[derive(Deserialize)]
struct Fragments {
    separators: Vec<String>,
    fragments: Vec<String>,
}

impl Fragments {
    /// The same text as in the script.
    fn text(&self, index: u64) -> String {
        let mut state = index;
        let mut below = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % n as u64) as usize
        };
        below(1);
        let mut text = String::new();
        for _ in 0..below(10) {
            text += &self.separators[below(self.separators.len())];
            text += &self.fragments[below(self.fragments.len())];
        }
        text
    }
}

/// Sixteen bits of an FNV hash, one step for an id.
fn hash16(ids: &[u32]) -> String {
    let step = |state: u64, id: &u32| (state ^ u64::from(*id)).wrapping_mul(0x0100_0000_01b3);
    format!("{:04x}", ids.iter().fold(0xcbf2_9ce4_8422_2325, step) >> 40 & 0xffff)
}

/// Twelve models (algorithms, replacements, spaces before and after words or kept, user-defined, control, unused and byte pieces, equal
/// scores) and 3,000 texts each.
#[test]
fn ids_are_those_of_google() {
    let fragments = std::fs::read_to_string(fixture("fragments.json")).expect("the fixture");
    let fragments: Fragments = serde_json::from_str(&fragments).expect("fragments");
    let hashes = std::fs::read_to_string(fixture("hashes.txt")).expect("the fixture");
    for line in hashes.lines() {
        let (name, hashes) = line.split_once(' ').expect("a name and hashes");
        let model = load(name);
        let (hashes, left) = hashes.as_bytes().as_chunks::<4>();
        assert!(hashes.len() >= 3000 && left.is_empty());
        for (index, hash) in (0..).zip(hashes) {
            let text = fragments.text(index);
            let ids = model.encode(&text).expect("ids");
            assert_eq!(hash16(&ids).as_bytes(), hash, "{name}: {text:?} became {ids:?}");
        }
    }
    assert_eq!(hashes.lines().count(), 12);
}

/// A text that was cut before a space between two words has the ids of the whole.
#[test]
fn parts_have_the_ids_of_the_whole() {
    let text = "  the river, stone  kettle paper\n naïve café and the foo_bar of in to  ";
    let names = ["bpe_bytes", "bpe_fold_symbols", "bpe_keep_symbols", "bpe_suffix", "unigram_bytes", "unigram_keep_symbols"];
    for name in names.into_iter().chain(["unigram_suffix", "word", "char"]) {
        let model = load(name);
        let whole = model.encode(text).expect("ids");
        for at in [" paper", " café", " and", " foo", " in"].map(|word| text.find(word).expect("a word")) {
            let first = model.encode_part(&text[..at], Edge::Document, Edge::Word);
            let parts = [first, model.encode_part(&text[at..], Edge::Word, Edge::Document)];
            assert_eq!(parts.map(|ids| ids.expect("ids")).concat(), whole, "{name}: {at}");
        }
    }
}

/// Of characters, every part has the ids of the whole, wherever it was cut.
#[test]
fn spaces_behind_words_survive_every_cut() {
    let bytes = std::fs::read(fixture("bpe_suffix.model")).expect("the fixture");
    let model = Model { algorithm: Algorithm::Char, ..Model::parse(&bytes).expect("a good model") };
    let model = SentencePiece::new(model).expect("a good model");
    // Without words to cut between; with two only.
    let two_words = "a".repeat(PIECE_BYTES - 9) + " b" + &"1".repeat(99);
    for text in [" 1".repeat(PIECE_BYTES), two_words] {
        let mut ids = Vec::new();
        let read = cut("a", text.as_bytes(), |error| Failure::other(error.to_string()), &mut |piece| {
            ids.extend(model.encode_part(&piece.text, piece.begin, piece.end).expect("ids"));
            Ok(())
        });
        read.expect("good text");
        assert!(ids == model.encode(&text).expect("ids"), "{} ids", ids.len());
    }
}

#[test]
fn what_google_refuses_is_refused_by_name() {
    let piece = |text: &str, kind| Piece { text: text.to_owned(), score: -1.0, kind };
    let model = |pieces: Vec<Piece>| Model { pieces, algorithm: Algorithm::Bpe, ..Model::empty() }.check();
    let unknown = || piece("<unk>", Kind::Unknown);
    assert_eq!(model(vec![unknown(), piece("a", Kind::Normal)]), Ok(()));
    let long = "x".repeat(8000);
    for (pieces, found) in [
        (vec![piece("a", Kind::Normal)], "found 0 unknown pieces"),
        (vec![unknown(), piece("?", Kind::Unknown)], "found 2 unknown pieces"),
        (vec![unknown(), piece("a", Kind::Normal), piece("a", Kind::UserDefined)], "found the piece \"a\" twice"),
        (vec![unknown(), piece("", Kind::Normal)], "found a piece of 0 bytes"),
        (vec![unknown(), piece(&long, Kind::Normal)], "found a piece of 8000 bytes"),
        (vec![unknown(), piece("<0x41>", Kind::Byte)], "found 1 byte pieces, expected 0 without byte_fallback"),
        (vec![unknown(), piece("<0x4a>", Kind::Byte)], "found the byte piece \"<0x4a>\""),
        (vec![unknown(), Piece { score: f32::NAN, ..piece("a", Kind::Normal) }], "found the score NaN for the piece \"a\""),
    ] {
        let reason = model(pieces).expect_err("a bad model");
        assert!(reason.starts_with(found), "{reason}");
    }
    for (bytes, found) in [
        (&b""[..], "found no SentencePiece model"),
        (b"{\"version\": 1}", "found no SentencePiece model"),
        (&[0x0a, 0xff], "found no SentencePiece model"),
        (&[0x0a, 0x01, 0x0a], "found damage in a piece"),
        (&[0x0a, 0x03, 0x0a, 0x01, 0xff], "found other bytes than UTF-8 in a piece"),
        (&[0x0a, 0x02, 0x18, 0x09], "found a piece of kind 9"),
        (&[0x12, 0x02, 0x18, 0x05], "found model_type 5"),
    ] {
        let reason = Model::parse(bytes).err().expect("no model");
        assert!(reason.starts_with(found), "{reason}");
    }
}

#[test]
fn a_damaged_map_of_replacements_is_refused() {
    let bytes = std::fs::read(fixture("bpe_suffix.model")).expect("the fixture");
    let map = Model::parse(&bytes).expect("a good model").charsmap;
    for cut in [1, 4, 5, 20] {
        let model = Model { charsmap: map[..cut].to_vec(), ..Model::parse(&bytes).expect("a good model") };
        let reason = SentencePiece::new(model).err().expect("damage");
        assert!(reason.contains("precompiled_charsmap"), "{reason}");
    }
    let mut wild = map.clone();
    wild[4..].iter_mut().for_each(|byte| *byte = 0xff);
    let model = Model { charsmap: wild, ..Model::parse(&bytes).expect("a good model") };
    // Refused when it is built or when it is used, but never a panic.
    let _ = SentencePiece::new(model).map(|model| model.encode("naïve ﬁne"));
}
