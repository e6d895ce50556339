//! Writing token shards: `.bin` of little-endian u32 tokens and `.idx` of i64 document offsets, the last one the total.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::synced::sync_folder;
use crate::terminal::failure::Failure;

/// Tokens per shard: files of 256 MiB.
pub const SHARD_TOKENS: u64 = 64 << 20;

/// Writes documents piece by piece into the shards of a folder.
pub struct ShardWriter {
    folder: PathBuf,
    shard_tokens: u64,
    shards: usize,
    open: Option<OpenShard>,
}

struct OpenShard {
    bin: Output,
    idx: Output,
    tokens: u64,
}

impl ShardWriter {
    /// Creates the folder. A shard ends with the piece that brings it to `shard_tokens` or more, even within a document: the
    /// rest of it counts as a document of the next shard.
    pub fn create(folder: &Path, shard_tokens: u64) -> Result<Self, Failure> {
        std::fs::create_dir(folder).map_err(|error| Failure::io("create", folder, &error))?;
        Ok(Self { folder: folder.to_owned(), shard_tokens, shards: 0, open: None })
    }

    /// Appends a piece of a document; `begins` tells whether it is the first.
    pub fn write(&mut self, tokens: &[u32], begins: bool) -> Result<(), Failure> {
        let mut shard = match self.open.take() {
            Some(shard) => shard,
            None => self.begin()?,
        };
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        shard.bin.write(&bytes)?;
        if begins || shard.tokens == 0 {
            shard.idx.write(&shard.tokens.to_le_bytes())?;
        }
        shard.tokens += tokens.len() as u64;
        if shard.tokens < self.shard_tokens {
            self.open = Some(shard);
            return Ok(());
        }
        shard.finish()
    }

    /// Closes the last shard and syncs the folder.
    pub fn finish(self) -> Result<(), Failure> {
        self.open.map_or(Ok(()), OpenShard::finish)?;
        sync_folder(&self.folder).map_err(|error| Failure::io("sync", &self.folder, &error))
    }

    fn begin(&mut self) -> Result<OpenShard, Failure> {
        let stem = self.folder.join(format!("{:05}", self.shards));
        self.shards += 1;
        Ok(OpenShard {
            bin: Output::create(stem.with_extension("bin"))?,
            idx: Output::create(stem.with_extension("idx"))?,
            tokens: 0,
        })
    }
}

impl OpenShard {
    fn finish(mut self) -> Result<(), Failure> {
        self.idx.write(&self.tokens.to_le_bytes())?;
        self.bin.finish()?;
        self.idx.finish()
    }
}

/// A buffered file whose errors name it.
struct Output {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Output {
    fn create(path: PathBuf) -> Result<Self, Failure> {
        let file = File::create(&path).map_err(|error| Failure::io("create", &path, &error))?;
        Ok(Self { path, file: BufWriter::with_capacity(1 << 16, file) })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all(bytes).map_err(|error| Failure::io("write", &self.path, &error))
    }

    fn finish(mut self) -> Result<(), Failure> {
        let finished = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        finished.map_err(|error| Failure::io("write", &self.path, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokens::TokenStream;
    use super::*;
    use crate::config::DataFormat;

    #[test]
    fn what_is_written_reads_back_over_shard_ends() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("train");
        let mut writer = ShardWriter::create(&path, 4).expect("a writer");
        let pieces = [(&[1, 2][..], true), (&[3], false), (&[4, 5], true), (&[6], false), (&[7, 8, 9], false), (&[10], true)];
        for (piece, begins) in pieces {
            writer.write(piece, begins).expect("tokens are written");
        }
        writer.finish().expect("the last shard closes");
        for (shard, offsets) in [("00000", &[0i64, 3, 5][..]), ("00001", &[0, 4]), ("00002", &[0, 1])] {
            let idx = std::fs::read(path.join(shard).with_extension("idx")).expect("an index");
            assert_eq!(idx, offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect::<Vec<u8>>());
        }
        assert_eq!(std::fs::read_dir(&path).expect("a folder").count(), 6);
        let stream = TokenStream::open(&path, 11, DataFormat::Auto).expect("good shards");
        let mut tokens = Vec::new();
        stream.read(0..stream.len(), &mut tokens).expect("good tokens");
        assert_eq!(tokens, (1..=10).collect::<Vec<_>>());
    }
}
