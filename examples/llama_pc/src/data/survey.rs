//! The first pass over the documents: their size, the split into training and validation, and a sample for the tokenizer.
//!
//! A document goes to validation if the hash of its name and first piece lies below a threshold, so that the choice depends
//! on the document and the seed alone. If that leaves a split empty, the threshold moves just enough to give it one document.

use std::path::PathBuf;

use super::documents::Corpus;
use super::pieces::Piece;
use super::windows::mix;
use crate::terminal::failure::Failure;

/// Maximum size of the sample for training a tokenizer, to which each document contributes its first piece.
const SAMPLE_BYTES: usize = 64 << 20;

/// What the first pass found.
pub struct Survey {
    pub documents: u64,
    pub bytes: u64,
    /// Files that are not UTF-8.
    pub skipped: Vec<PathBuf>,
    pub split: Split,
    /// Beginnings of training documents, in order; empty if no sample was requested.
    pub sample: Vec<String>,
}

/// Assigns documents to training or validation.
pub struct Split {
    seed: u64,
    /// Documents with a hash below it go to validation.
    threshold: u64,
}

impl Survey {
    /// Reads all documents once.
    pub fn take(corpus: &Corpus, seed: u64, val_fraction: f64, want_sample: bool) -> Result<Self, Failure> {
        let mut split = Split { seed, threshold: (val_fraction * 2f64.powi(64)) as u64 };
        let (mut documents, mut bytes) = (0, 0);
        let (mut lowest, mut highest) = (u64::MAX, 0);
        let mut sample = Sample::new(SAMPLE_BYTES);
        let skipped = corpus.for_each(|piece| {
            bytes += piece.text.len() as u64;
            if piece.begins {
                let hash = split.hash(&piece);
                documents += 1;
                (lowest, highest) = (lowest.min(hash), highest.max(hash));
                if want_sample {
                    sample.offer(hash, piece.text);
                }
            }
            Ok(())
        })?;
        let skipped = skipped.into_iter().map(PathBuf::from).collect();
        if lowest >= highest {
            return Err(Failure::other(format!(
                "documents with text: found {documents}, expected at least 2, one to train on and one for validation"
            ))
            .hint("a file is one document, and so is a line of .jsonl or a row of .parquet; --max-bytes may be too small"));
        }
        split.threshold = split.threshold.clamp(lowest + 1, highest);
        let sample = sample.texts(&split);
        Ok(Self { documents, bytes, skipped, split, sample })
    }
}

impl Split {
    /// Whether the document that begins with this piece is for validation.
    pub fn is_val(&self, first: &Piece) -> bool {
        self.hash(first) < self.threshold
    }

    /// FNV-1a over name and text, keyed by the seed and mixed, because FNV's high bits alone are poor.
    fn hash(&self, first: &Piece) -> u64 {
        let bytes = first.name.bytes().chain([0xff]).chain(first.text.bytes());
        let fnv =
            bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        mix(fnv ^ mix(self.seed))
    }
}

/// A uniform sample of bounded size: the texts with the lowest ranks; the bar is halved whenever the bound is exceeded.
struct Sample {
    limit: usize,
    bar: u64,
    bytes: usize,
    /// Hash and text.
    kept: Vec<(u64, String)>,
}

impl Sample {
    fn new(limit: usize) -> Self {
        Self { limit, bar: u64::MAX, bytes: 0, kept: Vec::new() }
    }

    fn offer(&mut self, hash: u64, mut text: String) {
        if rank(hash) > self.bar {
            return;
        }
        text.shrink_to_fit();
        self.bytes += text.len();
        self.kept.push((hash, text));
        while self.bytes > self.limit {
            self.bar /= 2;
            self.kept.retain(|(hash, _)| rank(*hash) <= self.bar);
            self.bytes = self.kept.iter().map(|(_, text)| text.len()).sum();
        }
    }

    /// The sampled texts that are not for validation.
    fn texts(self, split: &Split) -> Vec<String> {
        let train = self.kept.into_iter().filter(|(hash, _)| *hash >= split.threshold);
        train.map(|(_, text)| text).collect()
    }
}

/// A second hash, because the first decides the split.
fn rank(hash: u64) -> u64 {
    mix(hash ^ 0x7361_6d70_6c65)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(i: usize) -> Piece {
        Piece { name: format!("d{i}"), text: format!("text {i}"), begins: true, ends: true }
    }

    #[test]
    fn the_split_is_fair_and_follows_the_seed() {
        let split = |seed| Split { seed, threshold: u64::MAX / 10 };
        let chosen = |seed| -> Vec<usize> { (0..10_000).filter(|i| split(seed).is_val(&document(*i))).collect() };
        // 1000 expected, standard deviation 30.
        assert!(chosen(1).len().abs_diff(1000) < 150);
        assert_eq!(chosen(1), chosen(1));
        assert_ne!(chosen(1), chosen(2));
    }

    #[test]
    fn the_sample_is_bounded_and_even() {
        let mut sample = Sample::new(10_000);
        for i in 0..5000u64 {
            sample.offer(mix(i), format!("{i:>10}"));
        }
        assert!(sample.bytes <= 10_000 && sample.bytes > 4_000, "{}", sample.bytes);
        let early = sample.kept.iter().filter(|(_, text)| text.trim() < "2500" && text.trim().len() == 4).count();
        assert!(early > 0 && early < sample.kept.len());
    }

    #[test]
    fn few_documents_still_have_both_sides() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let corpus = || Corpus::find(&[folder.path().to_owned()], None, "text", None).expect("the folder is there");
        let write = |name: &str| std::fs::write(folder.path().join(name), name).expect("the file is written");
        write("a.txt");
        let failure = Survey::take(&corpus(), 1, 0.05, false).err().expect("one document cannot be split");
        assert!(failure.to_string().starts_with("documents with text: found 1, expected at least 2"));
        write("b.txt");
        for fraction in [1e-9, 0.999_999] {
            let survey = Survey::take(&corpus(), 1, fraction, true).expect("two documents");
            let mut val = 0;
            corpus()
                .for_each(|piece| {
                    val += usize::from(survey.split.is_val(&piece));
                    Ok(())
                })
                .expect("good text");
            assert_eq!((survey.documents, val, survey.sample.len()), (2, 1, 1));
        }
    }
}
