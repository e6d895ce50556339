//! Writes checkpoints on a separate thread, so that training continues.
//!
//! The training thread reads the tensors from the device, so that the checkpoint is consistent, and sends them in pieces. The queue
//! holds at most [`WAITING`] groups of pieces: a checkpoint below 1 GiB never blocks training, and a larger one never takes more
//! memory than that.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crc32c::crc32c_append;
use polytape::safetensors::{self, Header};
use polytape::{Error, Trainer};

use super::document::{Document, MODEL, OPTIMIZER, Recorded, STATE, hexadecimal};
use super::state::State;
use super::tensors::{Piece, TensorFile};
use crate::run::files::{self, Partial};
use crate::run::paths;
use crate::terminal::failure::Failure;
use crate::terminal::output;

/// Capacity of the queue in groups of pieces, of up to 16 MiB each.
const WAITING: usize = 64;

/// Saves the checkpoints of one run, one at a time. Of several ranks, the first writes them; the others send it what they own.
pub struct Writer {
    run: PathBuf,
    writes: bool,
    /// Number of checkpoints to keep.
    keep: usize,
    running: Option<JoinHandle<Result<(), Failure>>>,
    /// Step of the last one that was begun.
    begun: Option<u64>,
    /// Step of the newest one on disk, as far as this rank knows.
    complete: Option<u64>,
}

impl Writer {
    /// For a run whose newest checkpoint is `newest`; `writes` unless this is another rank than the first.
    pub fn new(run: &Path, writes: bool, keep: usize, newest: Option<u64>) -> Self {
        Self { run: run.to_owned(), writes, keep, running: None, begun: newest, complete: newest }
    }

    /// The step of the last checkpoint that was begun, which may not be on disk yet.
    pub fn begun(&self) -> Option<u64> {
        self.begun
    }

    /// The step of the newest checkpoint on disk.
    pub fn complete(&self) -> Option<u64> {
        self.complete
    }

    /// Takes the first rank's word for [`Writer::complete`], where another one writes.
    pub fn hear(&mut self, complete: Option<u64>) {
        if !self.writes {
            self.complete = complete;
        }
    }

    /// Saves the current state. Returns once the tensors are read; a later call reports a disk error. All ranks call it together; `explain`
    /// names the host of one that fails.
    pub fn save(&mut self, trainer: &Trainer, state: &State, explain: impl Fn(Error) -> Failure) -> Result<(), Failure> {
        self.wait()?;
        let (model, optimizer) = trainer.stored()?;
        let files = [TensorFile::new(MODEL, model), TensorFile::new(OPTIMIZER, optimizer)];
        let sender = if self.writes { Some(self.begin(&files, state)?) } else { None };
        self.begun = Some(state.step);
        let mut listening = true;
        for file in files {
            let read = file.read(trainer.params.gpu(), trainer.ranks(), |pieces| {
                listening = sender.as_ref().is_none_or(|sender| sender.send(pieces).is_ok());
                listening
            });
            let read = read.map_err(&explain);
            if read.is_err() || !listening {
                // Where reading failed, all that the thread knows is that the rest did not come.
                drop(sender);
                let written = self.wait();
                return read.and(written);
            }
        }
        Ok(())
    }

    /// Starts the thread that writes what is sent to it.
    fn begin(&mut self, files: &[TensorFile], state: &State) -> Result<SyncSender<Vec<Piece>>, Failure> {
        let job = Job {
            run: self.run.clone(),
            keep: self.keep,
            state: state.clone(),
            files: files.iter().map(|file| Ok((file.name, file.header()?))).collect::<Result<_, Failure>>()?,
        };
        let (sender, receiver) = sync_channel(WAITING);
        let thread = std::thread::Builder::new().name("checkpoint".to_owned()).spawn(move || job.run(&receiver));
        self.running = Some(thread.map_err(|error| Failure::other(format!("cannot start a thread for checkpoints: {error}")))?);
        Ok(sender)
    }

    /// Returns the error of a save that has failed since the last call; does not wait for a save in progress.
    pub fn check(&mut self) -> Result<(), Failure> {
        match &self.running {
            Some(thread) if thread.is_finished() => self.wait(),
            _ => Ok(()),
        }
    }

    /// Waits until the last save is on disk.
    pub fn wait(&mut self) -> Result<(), Failure> {
        match self.running.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(Ok(()))) => {
                self.complete = self.begun;
                Ok(())
            }
            Some(Ok(Err(failure))) => Err(failure),
            Some(Err(_)) => panic!("bug: the thread that writes checkpoints panicked"),
        }
    }

    /// Completes a save in progress, as a run that ends with an error does.
    pub fn settle(&mut self) {
        if let Err(failure) = self.wait() {
            output::note(&format!("error: {failure}"));
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.settle();
    }
}

/// One save, on its thread.
struct Job {
    run: PathBuf,
    keep: usize,
    state: State,
    files: Vec<(&'static str, Header)>,
}

impl Job {
    fn run(&self, pieces: &Receiver<Vec<Piece>>) -> Result<(), Failure> {
        let target = paths::checkpoint(&self.run, self.state.step);
        let partial = Partial::checkpoint(&target)?;
        self.fill(partial.path(), pieces)?;
        partial.finish()?;
        for &step in paths::checkpoints(&self.run)?.iter().rev().skip(self.keep) {
            // The new one is complete: an old one that cannot be removed costs space, not the run.
            if let Err(failure) = discard(&paths::checkpoint(&self.run, step)) {
                output::note(&format!("warning: {failure}"));
            }
        }
        Ok(())
    }

    fn fill(&self, folder: &Path, pieces: &Receiver<Vec<Piece>>) -> Result<(), Failure> {
        let mut records = BTreeMap::new();
        for (name, header) in &self.files {
            let path = folder.join(name);
            let io = |error| Failure::io("write", &path, &error);
            let mut writer = safetensors::Writer::new(Checksummed::create(&path)?, header).map_err(io)?;
            while writer.remaining() > 0 {
                let group = pieces.recv().map_err(|_| Failure::other(format!("{}: was not completed", path.display())))?;
                for piece in group {
                    self.check_finite(&piece)?;
                    writer.put(&piece.bytes).map_err(io)?;
                }
            }
            records.insert((*name).to_owned(), writer.finish().and_then(Checksummed::finish).map_err(io)?);
        }
        files::write(&folder.join(STATE), Document::new(&self.state, records).text().as_bytes())
    }

    /// Weights that became non-finite between two lines of metrics must not replace a good checkpoint.
    fn check_finite(&self, piece: &Piece) -> Result<(), Failure> {
        let (values, _) = piece.bytes.as_chunks();
        match values.iter().map(|bytes| f32::from_le_bytes(*bytes)).find(|value| !value.is_finite()) {
            None => Ok(()),
            Some(value) => Err(Failure::other(format!(
                "step {}: found {value} in {}, expected finite numbers; the checkpoint was not written",
                self.state.step, piece.tensor
            ))),
        }
    }
}

/// A file that is being written, with its size and checksum so far.
struct Checksummed {
    file: File,
    bytes: u64,
    sum: u32,
}

impl Checksummed {
    fn create(path: &Path) -> Result<Self, Failure> {
        let file = File::create(path).map_err(|error| Failure::io("create", path, &error))?;
        Ok(Self { file, bytes: 0, sum: 0 })
    }

    fn finish(self) -> std::io::Result<Recorded> {
        self.file.sync_all()?;
        Ok(Recorded { bytes: self.bytes, crc32c: hexadecimal(self.sum) })
    }
}

impl Write for Checksummed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.sum = crc32c_append(self.sum, &bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// Deletes an old checkpoint, renamed first so that a partly deleted one is never taken for complete.
fn discard(folder: &Path) -> Result<(), Failure> {
    let partial = paths::unfinished(folder);
    let remove = || {
        std::fs::rename(folder, &partial)?;
        std::fs::remove_dir_all(&partial)
    };
    remove().map_err(|error| Failure::io("remove", folder, &error))
}
