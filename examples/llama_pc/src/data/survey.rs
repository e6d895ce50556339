//! The first pass over the documents: their size, the split into training and validation, and a sample for the tokenizer.
//!
//! A document goes to validation if the hash of its name and first piece lies below a threshold, so that the choice depends
//! on the document and the seed alone. If that leaves a split empty, the threshold moves just enough to give it one document. A
//! single document is cut, and its end goes to validation. Where the user names the text of both, nothing is chosen.

use super::cut;
use super::documents::Corpus;
use super::pieces::Piece;
use super::source::Seen;
use super::windows::mix;
use crate::terminal::failure::Failure;

/// Maximum size of the sample for training a tokenizer.
const SAMPLE_BYTES: usize = 64 << 20;

/// The text to prepare.
pub struct Sources {
    pub text: Corpus,
    /// The text for validation, if the user names it.
    pub val: Option<Corpus>,
}

impl Sources {
    /// [`Corpus::for_each`] over the text, then over that for validation.
    pub fn for_each(&self, mut visit: impl FnMut(Piece) -> Result<(), Failure>) -> Result<Seen, Failure> {
        let mut seen = self.text.for_each(&mut visit)?;
        if let Some(val) = &self.val {
            seen.append(val.for_each(visit)?);
        }
        Ok(seen)
    }

    /// What was chosen when the files were listed.
    pub fn notes(&self) -> impl Iterator<Item = &String> {
        self.text.notes().iter().chain(self.val.iter().flat_map(|val| val.notes()))
    }
}

/// What the first pass found.
pub struct Survey {
    pub documents: u64,
    pub bytes: u64,
    pub split: Split,
    /// Where the only document is cut, in bytes from its beginning.
    pub cut: Option<u64>,
    /// Pieces of training documents, in order; empty if no sample was requested.
    pub sample: Vec<String>,
}

/// Assigns documents to training or validation.
pub enum Split {
    /// Those with a hash below the threshold go to validation.
    Hashed { seed: u64, threshold: u64 },
    /// All behind this many.
    Behind(u64),
}

impl Survey {
    /// Reads all documents once. What it comes across is left in `seen` also where the documents are too few, as it may be why.
    pub fn take(sources: &Sources, seed: u64, val_fraction: f64, want_sample: bool, seen: &mut Seen) -> Result<Self, Failure> {
        let mut first = First::new(seed, want_sample);
        seen.append(sources.text.for_each(|piece| first.visit(piece))?);
        let First { mut documents, mut bytes, lowest, highest, sample, .. } = first;
        let none = |documents: u64, expected: &str| {
            Failure::other(format!("documents with text: found {documents}, expected {expected}"))
                .hint("a file is one document, and so is a line of JSON lines or a row of Parquet; --max-bytes may be too small")
        };
        let mut cut = None;
        let split = if let Some(val) = &sources.val {
            if documents == 0 {
                return Err(none(0, "at least one to train on"));
            }
            let train = documents;
            seen.append(val.for_each(|piece| {
                documents += u64::from(piece.begins());
                bytes += piece.text.len() as u64;
                Ok(())
            })?);
            if documents == train {
                return Err(none(0, "at least one in --val"));
            }
            Split::Behind(train)
        } else if lowest < highest {
            let threshold = (val_fraction * 2f64.powi(64)) as u64;
            Split::Hashed { seed, threshold: threshold.clamp(lowest + 1, highest) }
        } else {
            cut = if documents == 1 { cut::place(&sources.text, bytes, val_fraction)? } else { None };
            if cut.is_none() {
                return Err(none(documents, "at least 2, one to train on and one for validation, or one that can be cut"));
            }
            Split::Behind(1)
        };
        let sample = sample.texts(&split, cut);
        Ok(Self { documents, bytes, split, cut, sample })
    }
}

/// What is gathered of documents that no one has assigned yet.
struct First {
    seed: u64,
    want_sample: bool,
    documents: u64,
    bytes: u64,
    lowest: u64,
    highest: u64,
    /// The current document's hash, and how much of it has been seen.
    hash: u64,
    offset: u64,
    sample: Sample,
}

impl First {
    fn new(seed: u64, want_sample: bool) -> Self {
        let sample = Sample::new(SAMPLE_BYTES);
        Self { seed, want_sample, documents: 0, bytes: 0, lowest: u64::MAX, highest: 0, hash: 0, offset: 0, sample }
    }

    fn visit(&mut self, piece: Piece) -> Result<(), Failure> {
        if piece.begins() {
            self.documents += 1;
            self.hash = hash(self.seed, &piece);
            self.offset = 0;
            (self.lowest, self.highest) = (self.lowest.min(self.hash), self.highest.max(self.hash));
        }
        let bytes = piece.text.len() as u64;
        if self.want_sample {
            self.sample.offer(self.hash, self.offset, piece.text);
        }
        self.bytes += bytes;
        self.offset += bytes;
        Ok(())
    }
}

impl Split {
    /// Whether the document that begins with this piece is for validation; `before` is the number of documents before it.
    pub fn is_val(&self, first: &Piece, before: u64) -> bool {
        match self {
            Self::Hashed { seed, threshold } => hash(*seed, first) < *threshold,
            Self::Behind(count) => before >= *count,
        }
    }
}

/// FNV-1a over name and text, keyed by the seed and mixed, because FNV's high bits alone are poor.
fn hash(seed: u64, first: &Piece) -> u64 {
    let bytes = first.name.bytes().chain([0xff]).chain(first.text.bytes());
    let fnv = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    mix(fnv ^ mix(seed))
}

/// A uniform sample of bounded size: the texts with the lowest ranks; the bar is halved whenever the bound is exceeded.
struct Sample {
    limit: usize,
    bar: u64,
    bytes: usize,
    kept: Vec<Sampled>,
}

/// A piece of a document.
struct Sampled {
    /// The document's hash.
    hash: u64,
    /// Where the piece begins in the document.
    offset: u64,
    text: String,
}

impl Sampled {
    /// A second hash, because the document's decides the split.
    fn rank(&self) -> u64 {
        rank(self.hash, self.offset)
    }
}

impl Sample {
    fn new(limit: usize) -> Self {
        Self { limit, bar: u64::MAX, bytes: 0, kept: Vec::new() }
    }

    fn offer(&mut self, hash: u64, offset: u64, mut text: String) {
        if rank(hash, offset) > self.bar {
            return;
        }
        text.shrink_to_fit();
        self.bytes += text.len();
        self.kept.push(Sampled { hash, offset, text });
        while self.bytes > self.limit {
            self.bar /= 2;
            self.kept.retain(|piece| piece.rank() <= self.bar);
            self.bytes = self.kept.iter().map(|piece| piece.text.len()).sum();
        }
    }

    /// The sampled texts that are not for validation: of a document that is cut, those before the cut.
    fn texts(self, split: &Split, cut: Option<u64>) -> Vec<String> {
        let train = self.kept.into_iter().filter_map(|mut piece| {
            if let Some(at) = cut {
                let room = at.checked_sub(piece.offset).filter(|room| *room > 0)?;
                piece.text.truncate(piece.text.len().min(room as usize));
            }
            let is_val = matches!(split, Split::Hashed { threshold, .. } if piece.hash < *threshold);
            (!is_val).then_some(piece.text)
        });
        train.collect()
    }
}

fn rank(hash: u64, offset: u64) -> u64 {
    mix(hash ^ 0x7361_6d70_6c65 ^ mix(offset) ^ mix(0))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::documents::Places;
    use super::*;

    fn document(i: usize) -> Piece {
        Piece::whole(format!("d{i}"), format!("text {i}"))
    }

    #[test]
    fn the_split_is_fair_and_follows_the_seed() {
        let split = |seed| Split::Hashed { seed, threshold: u64::MAX / 10 };
        let chosen = |seed| -> Vec<usize> { (0..10_000).filter(|i| split(seed).is_val(&document(*i), 0)).collect() };
        // 1000 expected, standard deviation 30.
        assert!(chosen(1).len().abs_diff(1000) < 150);
        assert_eq!(chosen(1), chosen(1));
        assert_ne!(chosen(1), chosen(2));
    }

    #[test]
    fn the_sample_is_bounded_and_even() {
        let mut sample = Sample::new(10_000);
        for i in 0..5000u64 {
            sample.offer(mix(i), 0, format!("{i:>10}"));
        }
        assert!(sample.bytes <= 10_000 && sample.bytes > 4_000, "{}", sample.bytes);
        let early = sample.kept.iter().filter(|piece| piece.text.trim() < "2500" && piece.text.trim().len() == 4).count();
        assert!(early > 0 && early < sample.kept.len());
    }

    fn sources(paths: &[PathBuf], val: Option<&[PathBuf]>) -> Sources {
        let corpus = |paths| Corpus::find(&Places { paths, ..Places::default() }, "text", None).expect("the files are there");
        Sources { text: corpus(paths), val: val.map(corpus) }
    }

    fn take(sources: &Sources, fraction: f64) -> Result<Survey, Failure> {
        Survey::take(sources, 1, fraction, true, &mut Seen::default())
    }

    fn documents_for_validation(sources: &Sources, survey: &Survey) -> usize {
        let (mut val, mut number) = (0, 0);
        let read = sources.for_each(|piece| {
            val += usize::from(survey.split.is_val(&piece, number));
            number += 1;
            Ok(())
        });
        read.expect("good text");
        val
    }

    #[test]
    fn few_documents_still_have_both_sides() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let paths = [folder.path().to_owned()];
        let failure = take(&sources(&paths, None), 0.05).err().expect("there is none");
        assert!(failure.to_string().starts_with("documents with text: found 0, expected at least 2"));
        for name in ["a.txt", "b.txt"] {
            std::fs::write(folder.path().join(name), name).expect("the file is written");
        }
        for fraction in [1e-9, 0.999_999] {
            let sources = sources(&paths, None);
            let survey = take(&sources, fraction).expect("two documents");
            let val = documents_for_validation(&sources, &survey);
            assert_eq!((survey.documents, val, survey.sample.len(), survey.cut), (2, 1, 1, None));
        }
    }

    #[test]
    fn a_single_document_is_cut_and_only_its_beginning_sampled() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let paths = [folder.path().join("a.txt")];
        for lines in [100, 100_000] {
            std::fs::write(&paths[0], "a line of it\n".repeat(lines)).expect("the file is written");
            let survey = take(&sources(&paths, None), 0.1).expect("a document");
            let cut = survey.cut.expect("a place");
            assert_eq!((survey.documents, cut % 13), (1, 0));
            assert_eq!(survey.sample.iter().map(|text| text.len() as u64).sum::<u64>(), cut);
        }
    }

    #[test]
    fn text_named_for_validation_is_all_of_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        for name in ["a.txt", "b.txt", "c.txt"] {
            std::fs::write(path(name), name).expect("the file is written");
        }
        let sources = sources(&[path("b.txt"), path("c.txt")], Some(&[path("a.txt")]));
        let survey = take(&sources, 0.05).expect("three documents");
        let val = documents_for_validation(&sources, &survey);
        assert_eq!((survey.documents, val, survey.sample.len()), (3, 1, 2));
    }
}
