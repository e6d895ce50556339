//! Documents as pieces of bounded size, so that memory is bounded for documents of any length.

use std::io::Read;

use crate::terminal::failure::Failure;

/// The longest piece in bytes. Most documents are one piece; encoding one takes about a hundred times its memory.
pub const PIECE_BYTES: usize = 256 << 10;

/// A document, or a part of one that is longer than [`PIECE_BYTES`]; its parts follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Path relative to the given file or folder, with the line or row where a file has several documents.
    pub name: String,
    pub text: String,
    pub begin: Edge,
    pub end: Edge,
}

/// Where a piece begins or ends in its document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// Where the document does.
    Document,
    /// Before a space between two words, which every common tokenizer splits there anyway.
    Word,
    /// Between any two characters, because the text has no such space.
    Anywhere,
}

impl Piece {
    /// A whole document.
    pub fn whole(name: String, text: String) -> Self {
        Self { name, text, begin: Edge::Document, end: Edge::Document }
    }

    /// Whether the document begins here.
    pub fn begins(&self) -> bool {
        self.begin == Edge::Document
    }

    /// Whether it ends here.
    pub fn ends(&self) -> bool {
        self.end == Edge::Document
    }
}

/// Passes the text of a document to `visit` piece by piece; `fail` turns a read error into a failure.
pub fn cut(
    name: &str,
    mut text: impl Read,
    fail: impl Fn(&std::io::Error) -> Failure,
    visit: &mut dyn FnMut(Piece) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (mut bytes, mut begin) = (Vec::new(), Edge::Document);
    loop {
        // One byte more than a piece shows whether the document continues.
        let room = (PIECE_BYTES + 1 - bytes.len()) as u64;
        text.by_ref().take(room).read_to_end(&mut bytes).map_err(|error| fail(&error))?;
        let ends = bytes.len() <= PIECE_BYTES;
        let whole = valid(&bytes[..bytes.len().min(PIECE_BYTES)], ends).map_err(|error| fail(&error))?;
        let (at, end) = if ends { (whole.len(), Edge::Document) } else { boundary(whole) };
        let piece = Piece { name: name.to_owned(), text: whole[..at].to_owned(), begin, end };
        bytes.drain(..at);
        visit(piece)?;
        if ends {
            return Ok(());
        }
        begin = end;
    }
}

/// The bytes as text; an incomplete last character is left out if the text continues.
fn valid(bytes: &[u8], ends: bool) -> std::io::Result<&str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) if !ends && error.error_len().is_none() => valid(&bytes[..error.valid_up_to()], false),
        Err(error) => Err(std::io::Error::new(std::io::ErrorKind::InvalidData, error)),
    }
}

/// Where to split a text that continues: before the last space between two words, or at its end if it has none.
fn boundary(text: &str) -> (usize, Edge) {
    let letter = |c: Option<char>| c.is_some_and(char::is_alphabetic);
    let between = |at: usize| letter(text[..at].chars().next_back()) && letter(text[at + 1..].chars().next());
    let last = text.rmatch_indices(' ').map(|(at, _)| at).find(|at| between(*at));
    last.map_or((text.len(), Edge::Anywhere), |at| (at, Edge::Word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(text: &[u8]) -> Result<Vec<Piece>, Failure> {
        let mut pieces = Vec::new();
        cut("a", text, |error| Failure::other(error.to_string()), &mut |piece| {
            pieces.push(piece);
            Ok(())
        })?;
        Ok(pieces)
    }

    #[test]
    fn pieces_make_up_the_text() {
        for text in [
            "short".to_owned(),
            "x".repeat(PIECE_BYTES),
            "x".repeat(PIECE_BYTES + 1),
            "größe ".repeat(PIECE_BYTES / 2),
            "🦀".repeat(PIECE_BYTES),
            " 1".repeat(PIECE_BYTES),
        ] {
            let pieces = pieces(text.as_bytes()).expect("good text");
            assert!(pieces.iter().all(|piece| (1..=PIECE_BYTES).contains(&piece.text.len())));
            assert_eq!(pieces.iter().map(|piece| piece.text.as_str()).collect::<String>(), text);
            let last = pieces.len() - 1;
            assert!((text.len() - 1) / PIECE_BYTES <= last, "{last}");
            let cut = if text.contains(" g") { Edge::Word } else { Edge::Anywhere };
            for (i, piece) in pieces.iter().enumerate() {
                assert_eq!(piece.begin, if i == 0 { Edge::Document } else { cut });
                assert_eq!(piece.end, if i == last { Edge::Document } else { cut });
                assert!(piece.begin != Edge::Word || piece.text.starts_with(" g"));
            }
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_refused_wherever_they_stand() {
        for at in [0, PIECE_BYTES - 1, PIECE_BYTES, 2 * PIECE_BYTES + 9] {
            let mut bytes = vec![b'x'; 2 * PIECE_BYTES + 10];
            bytes[at] = 0xff;
            assert!(pieces(&bytes).is_err(), "{at}");
        }
        assert!(pieces("ü".as_bytes().split_last().expect("two bytes").1).is_err(), "a character that is cut at the end");
    }
}
