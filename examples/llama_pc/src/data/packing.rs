//! Compressed text: gzip, zstd and bzip2, recognised by content and unpacked while it is read.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};
use std::path::Path;

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
    Bzip2,
}

/// Extensions of compressed files.
const EXTENSIONS: [&str; 5] = ["gz", "gzip", "zst", "zstd", "bz2"];

impl Packing {
    /// What the first bytes of a file say.
    pub fn of(head: &[u8]) -> Self {
        // Text may begin with "BZh": bzip2's first block begins with the digits of π, an empty file's end with those of its root.
        let block = || [&b"1AY&SY"[..], b"\x17\x72\x45\x38\x50\x90"].iter().any(|digits| head.get(4..10) == Some(digits));
        match head {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            // A frame, or one to skip, with which parallel compressors begin.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', ..] if block() => Self::Bzip2,
            _ => Self::Plain,
        }
    }

    /// The name of the format.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
        }
    }

    /// Opens a file, all its streams one after the other where several were concatenated. One that is cut short or damaged is an
    /// error of reading.
    pub fn open(self, path: &Path) -> io::Result<Box<dyn Read>> {
        let file = File::open(path)?;
        let buffered = |file| BufReader::with_capacity(1 << 16, file);
        let reader: Box<dyn Read> = match self {
            Self::Plain => return Ok(Box::new(file)),
            Self::Gzip => Box::new(MultiGzDecoder::new(buffered(file))),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(buffered(file))?),
            Self::Bzip2 => Box::new(MultiBzDecoder::new(buffered(file))),
        };
        Ok(Box::new(Unpacked { packing: self, reader }))
    }
}

/// The name without the extension of a compressed file, and whether it has one.
pub fn unpacked_name(name: &str) -> (&str, bool) {
    match name.rsplit_once('.') {
        Some((stem, extension)) if EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)) => (stem, true),
        _ => (name, false),
    }
}

/// A decoder whose errors say that the file is compressed.
struct Unpacked {
    packing: Packing,
    reader: Box<dyn Read>,
}

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer).map_err(|error| {
            if error.kind() == ErrorKind::Interrupted {
                return error;
            }
            let text = error.to_string();
            // Decoders word the end of a file in different ways, zstd as any other error.
            let state = if error.kind() == ErrorKind::UnexpectedEof || text.contains("incomplete frame") {
                "ends in the middle".to_owned()
            } else if text.contains("too much memory") {
                "needs more than 128 MiB of memory, as `zstd --long` writes it: compress it without".to_owned()
            } else {
                format!("is damaged ({text})")
            };
            io::Error::other(format!("its {} stream {state}", self.packing.name()))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const TEXT: &str = "größer und kleiner, ";

    fn packed(packing: Packing, text: &[u8]) -> Vec<u8> {
        match packing {
            Packing::Plain => text.to_vec(),
            Packing::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(text).and_then(|()| encoder.finish()).expect("gzip")
            }
            Packing::Zstd => zstd::encode_all(text, 3).expect("zstd"),
            Packing::Bzip2 => {
                let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
                encoder.write_all(text).and_then(|()| encoder.finish()).expect("bzip2")
            }
        }
    }

    fn unpacked(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a");
        std::fs::write(&path, bytes).expect("a file");
        let mut text = Vec::new();
        Packing::of(bytes).open(&path)?.read_to_end(&mut text)?;
        Ok(text)
    }

    #[test]
    fn every_packing_is_recognised_and_concatenated_streams_are_one_text() {
        for packing in [Packing::Gzip, Packing::Zstd, Packing::Bzip2] {
            let (one, empty) = (packed(packing, TEXT.repeat(999).as_bytes()), packed(packing, b""));
            assert_eq!(Packing::of(&one), packing);
            assert_eq!(Packing::of(&empty), packing);
            let all = [&one[..], &empty, &one].concat();
            assert!(unpacked(&all).expect("two streams") == TEXT.repeat(2 * 999).as_bytes());
        }
    }

    #[test]
    fn an_archive_that_is_cut_anywhere_is_an_error() {
        for packing in [Packing::Gzip, Packing::Zstd, Packing::Bzip2] {
            let name = packing.name();
            let bytes = packed(packing, TEXT.as_bytes());
            for end in 10..bytes.len() {
                let error = unpacked(&bytes[..end]).expect_err("a part of a stream");
                assert_eq!(error.to_string(), format!("its {name} stream ends in the middle"), "{end} bytes");
            }
            let error = unpacked(&[&bytes[..], b"more"].concat()).expect_err("something behind the stream");
            assert!(error.to_string().starts_with(&format!("its {name} stream ")), "{error}");
        }
    }

    #[test]
    fn a_window_that_is_too_long_is_no_damage() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("zstd");
        encoder.window_log(29).and_then(|()| encoder.write_all(TEXT.as_bytes())).expect("zstd");
        let error = unpacked(&encoder.finish().expect("zstd")).expect_err("a window of 512 MiB");
        assert!(error.to_string().starts_with("its zstd stream needs more than 128 MiB"), "{error}");
    }

    #[test]
    fn names_lose_their_extension() {
        assert_eq!(unpacked_name("a/b.jsonl.GZ"), ("a/b.jsonl", true));
        assert_eq!(unpacked_name("b.txt"), ("b.txt", false));
        assert_eq!(unpacked_name("gz"), ("gz", false));
    }
}
