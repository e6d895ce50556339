//! The second pass of `prepare`: one thread reads, one per core encodes, and the calling thread writes shards.
//!
//! Batches go to the encoders round-robin and come back in the same order; queues are bounded, which bounds memory and provides
//! backpressure.

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::cut::Cutter;
use super::meta::Part;
use super::pieces::{PIECE_BYTES, Piece};
use super::shards::{SHARD_TOKENS, ShardWriter};
use super::survey::{Sources, Split, Survey};
use super::tokenizer::{Losses, Tokenizer};
use crate::terminal::failure::Failure;
use crate::terminal::progress::Progress;

/// Capacity of the queues before and after each encoder.
const QUEUE: usize = 2;

/// Pieces that are encoded together, about [`PIECE_BYTES`] in all, so that short documents cause little synchronization.
type Batch = Vec<Piece>;

/// Pieces with their tokens, and what was lost in tokenization.
type Encoded = (Vec<(Piece, Vec<u32>)>, Losses);

/// What was written: the totals of both splits, and what was lost in tokenization.
pub struct Written {
    pub train: Part,
    pub val: Part,
    pub losses: Losses,
}

/// Encodes every document into the shards of its split, `train` or `val` in the folder `out`.
pub fn encode(sources: &Sources, survey: &Survey, tokenizer: &Tokenizer, out: &Path) -> Result<Written, Failure> {
    let mut losses = Losses::default();
    let mut writer = Writer {
        split: &survey.split,
        train: Side::create(&out.join("train"))?,
        val: Side::create(&out.join("val"))?,
        documents: 0,
        to_val: false,
    };
    let mut progress = Progress::new("encoding", 0, survey.bytes);
    thread::scope(|scope| {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for _ in 0..cores {
            let (input, batches) = sync_channel::<Batch>(QUEUE);
            let (encoded, output) = sync_channel(QUEUE);
            scope.spawn(move || encode_batches(tokenizer, &batches, &encoded));
            inputs.push(input);
            outputs.push(output);
        }
        let reader = scope.spawn(move || read(sources, survey.cut, &inputs));
        let mut done = 0;
        // The first closed queue means that the reader has finished. An error drops the queues, which stops all threads.
        for output in outputs.iter().cycle() {
            let Ok(encoded) = output.recv() else { break };
            let (pieces, lost) = encoded?;
            losses.add(lost);
            for (piece, tokens) in pieces {
                writer.write(&piece, &tokens)?;
                done += piece.text.len() as u64;
            }
            progress.set(done, "bytes");
        }
        drop(outputs);
        reader.join().expect("bug: the reader panicked")
    })?;
    progress.finish();
    let (train, val) = (writer.train.finish()?, writer.val.finish()?);
    let bytes = train.bytes + val.bytes;
    if bytes != survey.bytes {
        let found = format!("text: found {bytes} bytes in the second pass, expected the {} of the first", survey.bytes);
        return Err(Failure::other(found).hint("the files must stay as they are until their text is prepared"));
    }
    Ok(Written { train, val, losses })
}

/// Sends batches to the encoders round-robin until all is read or an encoder has stopped.
fn read(sources: &Sources, cut: Option<u64>, inputs: &[SyncSender<Batch>]) -> Result<(), Failure> {
    let mut turn = inputs.iter().cycle();
    let mut send = |batch: &mut Batch| {
        let input = turn.next().expect("bug: there is no encoder");
        input.send(std::mem::take(batch)).map_err(|_| Failure::other("the encoders have stopped"))
    };
    let (mut batch, mut bytes) = (Batch::new(), 0);
    let mut cutter = cut.map(Cutter::new);
    sources.for_each(|piece| {
        bytes += piece.text.len();
        let (piece, rest) = match &mut cutter {
            Some(cutter) => cutter.cut(piece),
            None => (piece, None),
        };
        batch.extend([Some(piece), rest].into_iter().flatten());
        if bytes >= PIECE_BYTES {
            bytes = 0;
            send(&mut batch)?;
        }
        Ok(())
    })?;
    send(&mut batch)
}

/// Encodes batches until there are no more, one fails, or the receiver is gone.
fn encode_batches(tokenizer: &Tokenizer, batches: &Receiver<Batch>, encoded: &SyncSender<Result<Encoded, Failure>>) {
    for batch in batches {
        let result = encode_batch(tokenizer, batch);
        let failed = result.is_err();
        if encoded.send(result).is_err() || failed {
            return;
        }
    }
}

fn encode_batch(tokenizer: &Tokenizer, batch: Batch) -> Result<Encoded, Failure> {
    let (mut pieces, mut losses) = (Vec::with_capacity(batch.len()), Losses::default());
    for piece in batch {
        let (tokens, lost) = tokenizer.encode_piece(&piece)?;
        losses.add(lost);
        pieces.push((piece, tokens));
    }
    Ok((pieces, losses))
}

/// Writes pieces to the split of their document.
struct Writer<'a> {
    split: &'a Split,
    train: Side,
    val: Side,
    /// Documents that have begun.
    documents: u64,
    /// Whether the current document is for validation.
    to_val: bool,
}

impl Writer<'_> {
    fn write(&mut self, piece: &Piece, tokens: &[u32]) -> Result<(), Failure> {
        if piece.begins() {
            self.to_val = self.split.is_val(piece, self.documents);
            self.documents += 1;
        }
        let side = if self.to_val { &mut self.val } else { &mut self.train };
        side.write(piece, tokens)
    }
}

/// The shards of one split and their totals.
struct Side {
    shards: ShardWriter,
    part: Part,
}

impl Side {
    fn create(folder: &Path) -> Result<Self, Failure> {
        Ok(Self { shards: ShardWriter::create(folder, SHARD_TOKENS)?, part: Part::default() })
    }

    fn write(&mut self, piece: &Piece, tokens: &[u32]) -> Result<(), Failure> {
        self.part.documents += u64::from(piece.begins());
        self.part.bytes += piece.text.len() as u64;
        self.part.tokens += tokens.len() as u64;
        self.shards.write(tokens, piece.begins())
    }

    fn finish(self) -> Result<Part, Failure> {
        self.shards.finish()?;
        Ok(self.part)
    }
}

#[cfg(test)]
mod tests {
    use super::super::documents::{Corpus, Places};
    use super::super::source::Seen;
    use super::*;

    #[test]
    fn text_that_changes_between_the_passes_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let paths = ["a.txt", "b.txt"].map(|name| folder.path().join(name));
        for path in &paths {
            std::fs::write(path, "some words").expect("the file is written");
        }
        let text = Corpus::find(&Places { paths: &paths, ..Places::default() }, "text", None).expect("the files are there");
        let sources = Sources { text, val: None };
        let survey = Survey::take(&sources, 1, 0.5, false, &mut Seen::default()).expect("two documents");
        let tokenizer = Tokenizer::train(&["some words".to_owned()], 300).expect("a tokenizer");
        std::fs::write(&paths[0], "other and more words").expect("the file is written");
        let failure = encode(&sources, &survey, &tokenizer, folder.path()).err().expect("another text");
        let said = failure.to_string();
        assert!(said.starts_with("text: found 30 bytes in the second pass, expected the 20 of the first"), "{said}");
    }
}
