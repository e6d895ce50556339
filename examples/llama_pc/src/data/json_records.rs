//! The objects of JSON lines or of a JSON array, cut out of a stream one by one, so that memory is bounded by the longest.

use std::io::{self, BufRead, BufReader, Read};

/// How objects are laid out in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One in a line; blank lines are skipped.
    Lines,
    /// One list of all.
    Array,
}

/// An object, not yet parsed.
pub struct Record<'a> {
    /// Its line or its place in the list, from 1 on.
    pub number: u64,
    pub bytes: &'a [u8],
}

/// Cuts a stream into records.
pub struct Records<R> {
    reader: BufReader<R>,
    layout: Layout,
    number: u64,
    record: Vec<u8>,
}

/// Why there is no next record.
#[derive(Debug)]
pub enum Stop {
    Read(io::Error),
    /// The list is broken before its record of this number.
    Broken(u64, String),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

const MARK: &[u8] = b"\xef\xbb\xbf";

impl<R: Read> Records<R> {
    /// At the beginning of a file.
    pub fn new(reader: R, layout: Layout) -> Self {
        Self { reader: BufReader::with_capacity(1 << 16, reader), layout, number: 0, record: Vec::new() }
    }

    /// The next record, without the byte order mark that a file may begin with.
    pub fn next(&mut self) -> Result<Option<Record<'_>>, Stop> {
        let there = match self.layout {
            Layout::Lines => self.next_line()?,
            Layout::Array => self.next_item()?,
        };
        Ok(there.then_some(Record { number: self.number, bytes: &self.record }))
    }

    fn next_line(&mut self) -> Result<bool, Stop> {
        loop {
            self.record.clear();
            if self.reader.read_until(b'\n', &mut self.record)? == 0 {
                return Ok(false);
            }
            self.number += 1;
            // Also where files with marks were concatenated.
            if self.record.starts_with(MARK) {
                self.record.drain(..MARK.len());
            }
            let blank = self.record.trim_ascii_end().len();
            self.record.truncate(blank);
            if !self.record.trim_ascii_start().is_empty() {
                return Ok(true);
            }
        }
    }

    fn next_item(&mut self) -> Result<bool, Stop> {
        self.record.clear();
        let first = self.number == 0;
        self.number += 1;
        if first {
            for byte in MARK {
                if self.reader.fill_buf()?.first() == Some(byte) {
                    self.reader.consume(1);
                }
            }
            match self.peek()? {
                Some(b'[') => self.reader.consume(1),
                found => return Err(self.broken(found, "a list")),
            }
        }
        match self.peek()? {
            Some(b']') => {
                self.reader.consume(1);
                return match self.peek()? {
                    None => Ok(false),
                    Some(byte) => Err(self.broken(Some(byte), "nothing behind the list")),
                };
            }
            Some(b',') if !first => self.reader.consume(1),
            found if !first => return Err(self.broken(found, "`,` or `]`")),
            _ => {}
        }
        self.peek()?;
        self.cut()?;
        Ok(true)
    }

    /// Passes white space; the byte behind it.
    fn peek(&mut self) -> io::Result<Option<u8>> {
        loop {
            let buffer = self.reader.fill_buf()?;
            let Some(at) = buffer.iter().position(|byte| !byte.is_ascii_whitespace()) else {
                match buffer.len() {
                    0 => return Ok(None),
                    blank => self.reader.consume(blank),
                }
                continue;
            };
            let byte = buffer[at];
            self.reader.consume(at);
            return Ok(Some(byte));
        }
    }

    /// Moves an item to `record`: all up to the comma or bracket that ends it.
    fn cut(&mut self) -> Result<(), Stop> {
        let (mut depth, mut quoted, mut escaped) = (0u64, false, false);
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Err(self.broken(None, "`]`"));
            }
            let end = buffer.iter().position(|byte| {
                match (quoted, *byte) {
                    (true, _) if escaped => escaped = false,
                    (true, b'\\') => escaped = true,
                    (_, b'"') => quoted = !quoted,
                    (false, b'{' | b'[') => depth += 1,
                    (false, b',' | b']' | b'}') if depth == 0 => return true,
                    (false, b']' | b'}') => depth -= 1,
                    _ => {}
                }
                false
            });
            let taken = end.unwrap_or(buffer.len());
            self.record.extend_from_slice(&buffer[..taken]);
            self.reader.consume(taken);
            if end.is_some() {
                return Ok(());
            }
        }
    }

    fn broken(&self, found: Option<u8>, expected: &str) -> Stop {
        let found = found.map_or("the end of the file".to_owned(), |byte| format!("'{}'", byte.escape_ascii()));
        Stop::Broken(self.number, format!("{found}, expected {expected}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader that returns a byte at a time.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.0.len().min(1).min(buffer.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn records(bytes: &[u8], layout: Layout) -> Result<Vec<(u64, String)>, String> {
        fn all(mut records: Records<impl Read>) -> Result<Vec<(u64, String)>, String> {
            let mut all = Vec::new();
            loop {
                match records.next() {
                    Ok(Some(record)) => all.push((record.number, String::from_utf8_lossy(record.bytes).into_owned())),
                    Ok(None) => return Ok(all),
                    Err(Stop::Broken(number, found)) => return Err(format!("{number}: {found}")),
                    Err(Stop::Read(error)) => return Err(error.to_string()),
                }
            }
        }
        let whole = all(Records::new(bytes, layout));
        assert_eq!(whole, all(Records::new(Slow(bytes), layout)));
        whole
    }

    fn numbered(texts: &[(u64, &str)]) -> Result<Vec<(u64, String)>, String> {
        Ok(texts.iter().map(|(number, text)| (*number, (*text).to_owned())).collect())
    }

    #[test]
    fn lines_are_cut_with_any_ending() {
        let lines = |text: &str| records(text.as_bytes(), Layout::Lines);
        assert_eq!(lines("\u{feff}{\"a\":1}\r\n\r\n \t\n{}\n\u{feff}[]"), numbered(&[(1, "{\"a\":1}"), (4, "{}"), (5, "[]")]));
        assert_eq!(lines(""), numbered(&[]));
        assert_eq!(lines("\u{feff}"), numbered(&[]));
        assert_eq!(lines("\n\n"), numbered(&[]));
    }

    #[test]
    fn items_are_cut_at_their_ends_only() {
        let items = |text: &str| records(text.as_bytes(), Layout::Array);
        let text = "\u{feff}\n[ {\"a\": \"],}\\\"[\"},\n[1, [2]], \"x\\\\\" , 3\n]\n";
        let expected = [(1, "{\"a\": \"],}\\\"[\"}"), (2, "[1, [2]]"), (3, "\"x\\\\\" "), (4, "3\n")];
        assert_eq!(items(text), numbered(&expected));
        assert_eq!(items("[]"), numbered(&[]));
        for (text, error) in [
            ("", "1: the end of the file, expected a list"),
            ("{}", "1: '{', expected a list"),
            ("[{}", "1: the end of the file, expected `]`"),
            ("[{}} ", "2: '}', expected `,` or `]`"),
            ("[{}] {}", "2: '{', expected nothing behind the list"),
            ("[\"a", "1: the end of the file, expected `]`"),
        ] {
            assert_eq!(items(text), Err(error.to_owned()), "{text}");
        }
        // An item that is none is the parser's to refuse.
        assert_eq!(items("[{},]"), numbered(&[(1, "{}"), (2, "")]));
    }
}
