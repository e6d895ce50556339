//! Files that are something else than their name says, recognised by their first bytes.
//!
//! A clone without Git LFS, a download that needed a login and an archive that nobody unpacked are the usual ones. Their bytes
//! would otherwise be parsed as weights or tokens, or be trained on as text.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::packing::Packing;
use crate::terminal::failure::Failure;

/// Bytes that [`recognised`] looks at: a tar archive shows itself only at byte 257.
pub const HEAD: usize = 512;

/// What a file is, with its article, and what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign {
    pub what: &'static str,
    pub hint: &'static str,
    /// Whether it is text itself, which a corpus may hold.
    pub is_text: bool,
}

pub const LFS: Foreign = Foreign {
    what: "a Git LFS pointer",
    hint: "the pointer stands in place of a file that was not downloaded: run `git lfs pull` in its folder, or download the file",
    is_text: true,
};
const HTML: Foreign = Foreign {
    what: "an HTML page",
    hint: "perhaps the download needed a login, or the address was that of a page about the file",
    is_text: true,
};
const XML: Foreign = Foreign { what: "an XML document", hint: "perhaps it is the error message of a download", is_text: true };

const fn binary(what: &'static str, hint: &'static str) -> Foreign {
    Foreign { what, hint, is_text: false }
}

const UNPACK: &str = "unpack it first";
const OTHER: &str = "check the path";

/// Signatures of binary files.
const BINARY: [(&[u8], Foreign); 15] = [
    (b"\xfd7zXZ\0", binary("a file compressed with xz", UNPACK)),
    (b"\x04\x22\x4d\x18", binary("a file compressed with lz4", UNPACK)),
    (b"PK\x03\x04", binary("a zip archive", UNPACK)),
    (b"PK\x05\x06", binary("a zip archive", UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", binary("a 7z archive", UNPACK)),
    (b"Rar!\x1a\x07", binary("a rar archive", UNPACK)),
    (b"PAR1", binary("a Parquet file", OTHER)),
    (b"ARROW1\0\0", binary("an Arrow file", "write it as Parquet or JSON lines")),
    (b"\x93NUMPY", binary("a NumPy array", "write its values without header with array.tofile")),
    (b"\x89HDF\r\n\x1a\n", binary("an HDF5 file", OTHER)),
    (b"%PDF-", binary("a PDF", "extract its text first")),
    (b"MMIDIDX\0\0", binary("Megatron's index of a .bin", "name the .bin or the folder of both")),
    (b"TNTIDX\0\0", binary("fairseq's index of a .bin", "convert it to Megatron's format or to Parquet")),
    (b"GGUF\x02\0\0\0", binary("a GGUF model", OTHER)),
    (b"GGUF\x03\0\0\0", binary("a GGUF model", OTHER)),
];

/// What the first [`HEAD`] bytes of a file say it is.
pub fn recognised(head: &[u8]) -> Option<Foreign> {
    let packed = match Packing::of(head) {
        Packing::Plain => None,
        Packing::Gzip => Some("a file compressed with gzip"),
        Packing::Zstd => Some("a file compressed with zstd"),
        Packing::Bzip2 => Some("a file compressed with bzip2"),
    };
    let known = BINARY.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, foreign)| *foreign);
    if let Some(foreign) = packed.map(|what| binary(what, UNPACK)).or(known) {
        return Some(foreign);
    }
    if head.get(257..262) == Some(b"ustar") {
        return Some(binary("a tar archive", UNPACK));
    }
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let begins = |start: &str| text.get(..start.len()).is_some_and(|found| found.eq_ignore_ascii_case(start.as_bytes()));
    match () {
        () if begins("version https://git-lfs") || begins("version https://hawser") => Some(LFS),
        () if begins("<!doctype html") || begins("<html") => Some(HTML),
        () if begins("<?xml") => Some(XML),
        () => None,
    }
}

/// The first bytes of a reader, at most [`HEAD`].
pub fn head(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD);
    reader.take(HEAD as u64).read_to_end(&mut head)?;
    Ok(head)
}

/// An error if the file is recognised as something else than what was `expected`.
pub fn refuse(path: &Path, expected: &str) -> Result<(), Failure> {
    let fail = |error| Failure::io("read", path, &error);
    if !std::fs::metadata(path).map_err(fail)?.is_file() {
        // A pipe gives its bytes once, to the reader; of a folder, the reader has its own sentence.
        return Ok(());
    }
    let head = File::open(path).and_then(head).map_err(fail)?;
    recognised(&head).map_or(Ok(()), |foreign| Err(foreign.failure(path, expected)))
}

/// What the file is, if it is recognised as something else than what was `expected`; otherwise the error of reading it as that.
pub fn instead(path: &Path, expected: &str, error: impl Into<Failure>) -> Failure {
    refuse(path, expected).err().unwrap_or_else(|| error.into())
}

impl Foreign {
    /// `a.bin: found a zip archive, expected tokens`.
    pub fn failure(&self, path: &Path, expected: &str) -> Failure {
        Failure::other(format!("{}: found {}, expected {expected}", path.display(), self.what)).hint(self.hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_recognised_by_their_first_bytes() {
        let mut tar = vec![b'a'; 512];
        tar[257..262].copy_from_slice(b"ustar");
        let cases: [(&[u8], Option<&str>); 14] = [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", Some("a Git LFS pointer")),
            (b"\xef\xbb\xbf\n <!DOCTYPE HTML><title>Sign in</title>", Some("an HTML page")),
            (b"<Html>", Some("an HTML page")),
            (b"<?xml version=\"1.0\"?><Error>", Some("an XML document")),
            (b"PK\x03\x04rest", Some("a zip archive")),
            (b"\x1f\x8b\x08\x00", Some("a file compressed with gzip")),
            (b"BZh91AY&SY", Some("a file compressed with bzip2")),
            (&tar, Some("a tar archive")),
            (b"\x93NUMPY\x01\0", Some("a NumPy array")),
            (b"", None),
            (b"BZh is no compression", None),
            (b"GGUF is a format", None),
            (b"version 2 of https://git-lfs", None),
            (b"<htmx>", None),
        ];
        for (bytes, what) in cases {
            assert_eq!(recognised(bytes).map(|foreign| foreign.what), what, "{}", bytes.escape_ascii());
        }
    }
}
