//! Cutting one long document in two, for training and validation.

use super::documents::Corpus;
use super::pieces::{Edge, Piece};
use crate::terminal::failure::Failure;

/// How far before the exact place a better one is looked for.
const REACH: u64 = 64 << 10;

/// Where to cut a corpus that is one document of `bytes` bytes, so that about `fraction` of it remain: behind a paragraph, a line or a
/// word, where there is one near. `None` if it is a single character.
pub fn place(corpus: &Corpus, bytes: u64, fraction: f64) -> Result<Option<u64>, Failure> {
    let rest = ((bytes as f64 * fraction) as u64).clamp(1, bytes.max(1));
    let target = bytes.saturating_sub(rest).max(1);
    // Four bytes hold a whole character.
    let begin = target.saturating_sub((rest / 2).clamp(4, REACH));
    let (mut window, mut offset) = (Vec::new(), 0);
    corpus.for_each(|piece| {
        let text = piece.text.as_bytes();
        let within = |place: u64| place.saturating_sub(offset).min(text.len() as u64) as usize;
        window.extend_from_slice(&text[within(begin)..within(target + 4)]);
        offset += text.len() as u64;
        Ok(())
    })?;
    let inside = |at: usize| (1..bytes).contains(&(begin + at as u64));
    Ok(best(&window, (target - begin) as usize, inside).map(|at| begin + at as u64))
}

/// The best place up to `target` in the window, or else the nearest between two characters.
fn best(window: &[u8], target: usize, inside: impl Fn(usize) -> bool) -> Option<usize> {
    let near = &window[..target.min(window.len())];
    let behind = |mark: &[u8]| near.windows(mark.len()).rposition(|found| found == mark).map(|at| at + mark.len());
    let between = |at: &usize| window.get(*at).is_none_or(|byte| byte & 0xc0 != 0x80);
    let mut marks = [&b"\n\n"[..], b"\n\r\n", b"\n", b". ", b" "].into_iter().filter_map(behind);
    let mut characters = (0..=target).rev().chain(target..=window.len()).filter(between);
    marks.find(|at| inside(*at)).or_else(|| characters.find(|at| inside(*at)))
}

/// Cuts the pieces of a document at one place.
pub struct Cutter {
    at: u64,
    offset: u64,
}

impl Cutter {
    /// At `at` bytes from the document's beginning.
    pub fn new(at: u64) -> Self {
        Self { at, offset: 0 }
    }

    /// The piece, or its two parts if the place is in it. What follows the place is a document of its own.
    pub fn cut(&mut self, mut piece: Piece) -> (Piece, Option<Piece>) {
        let begin = self.offset;
        self.offset += piece.text.len() as u64;
        if begin == self.at {
            piece.begin = Edge::Document;
        }
        if self.offset == self.at {
            piece.end = Edge::Document;
        }
        let within = self.at.checked_sub(begin).filter(|at| *at > 0 && self.offset > self.at);
        let Some(at) = within else { return (piece, None) };
        let rest = Piece { end: piece.end, ..Piece::whole(piece.name.clone(), piece.text.split_off(at as usize)) };
        piece.end = Edge::Document;
        (piece, Some(rest))
    }
}

#[cfg(test)]
mod tests {
    use super::super::documents::Places;
    use super::*;

    #[test]
    fn the_place_is_the_best_one_near() {
        for (text, target, expected) in [
            ("one\n\ntwo\nthree four", 12, 5),
            ("one\ntwo three", 9, 4),
            ("one two. three four", 16, 9),
            ("one two", 6, 4),
            ("onetwo", 3, 3),
            ("größe", 3, 2),
            ("ö!", 1, 2),
            ("🦀🦀", 1, 4),
            ("ab\n", 2, 2),
        ] {
            let inside = |at: usize| (1..text.len()).contains(&at);
            assert_eq!(best(text.as_bytes(), target, inside), Some(expected), "{text:?}");
        }
        assert_eq!(best("🦀".as_bytes(), 1, |at| (1..4).contains(&at)), None);
    }

    #[test]
    fn about_the_fraction_remains_of_a_long_document() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = [folder.path().join("a.txt")];
        for text in ["größe und kleine\n".repeat(60_000), "x".repeat(1_000_000), "é".repeat(400_000)] {
            std::fs::write(&path[0], &text).expect("a file");
            let corpus = Corpus::find(&Places { paths: &path, ..Places::default() }, "text", None).expect("the file is there");
            let at = place(&corpus, text.len() as u64, 0.05).expect("good text").expect("a place");
            let share = 1.0 - at as f64 / text.len() as f64;
            assert!((0.049..0.12).contains(&share), "{share}");
            let mut cutter = Cutter::new(at);
            let mut parts = Vec::new();
            let read = corpus.for_each(|piece| {
                let (piece, rest) = cutter.cut(piece);
                for piece in [Some(piece), rest].into_iter().flatten() {
                    if piece.begins() {
                        parts.push(String::new());
                    }
                    parts.last_mut().expect("a beginning").push_str(&piece.text);
                }
                Ok(())
            });
            read.expect("good text");
            assert!(parts == [&text[..at as usize], &text[at as usize..]]);
        }
        for (text, fraction, expected) in
            [("é", 0.5, None), ("aé", 0.05, Some(1)), ("éa", 0.99, Some(2)), ("a,b\n", 0.05, Some(3))]
        {
            std::fs::write(&path[0], text).expect("a file");
            let corpus = Corpus::find(&Places { paths: &path, ..Places::default() }, "text", None).expect("the file is there");
            assert_eq!(place(&corpus, text.len() as u64, fraction).expect("good text"), expected, "{text}");
        }
    }

    #[test]
    fn a_place_between_two_pieces_ends_one_and_begins_the_other() {
        let whole = |text: &str| Piece::whole(String::new(), text.to_owned());
        let mut cutter = Cutter::new(2);
        assert_eq!(cutter.cut(Piece { end: Edge::Word, ..whole("ab") }), (whole("ab"), None));
        assert_eq!(cutter.cut(Piece { begin: Edge::Word, ..whole(" c") }), (whole(" c"), None));
    }
}
