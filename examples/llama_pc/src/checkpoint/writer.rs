//! Writes checkpoints on a thread of their own while training goes on.
//!
//! The training thread reads the tensors from the device, so that what is saved is one moment, and hands them over in pieces. At
//! most [`WAITING`] groups of pieces wait for the disk: a checkpoint below 1 GiB never makes training wait for it, and a larger
//! one never takes more memory than that.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use polytape::optim::Optimizer;
use polytape::{Params, Tensor};

use super::tensors::{Piece, TensorFile};
use super::{Document, MODEL, OPTIMIZER, Recorded, STATE, State, hexadecimal};
use crate::crc32c::Crc32c;
use crate::failure::Failure;
use crate::output;
use crate::run;

/// Groups of pieces, of up to 16 MiB each, between the device and the disk.
const WAITING: usize = 64;

/// Saves the checkpoints of one run, one at a time.
pub struct Writer {
    run: PathBuf,
    /// So many of the newest stay.
    keep: usize,
    running: Option<JoinHandle<Result<(), Failure>>>,
    newest: Option<u64>,
}

impl Writer {
    /// For a run whose newest checkpoint is `newest`.
    pub fn new(run: &Path, keep: usize, newest: Option<u64>) -> Self {
        Self { run: run.to_owned(), keep, running: None, newest }
    }

    /// The step of the newest checkpoint, which may still be on its way to the disk.
    pub fn newest(&self) -> Option<u64> {
        self.newest
    }

    /// Saves the run as it is now. Returns when the tensors are read; an error of the disk comes from a later call.
    pub fn save(&mut self, params: &Params, optimizer: &dyn Optimizer, state: &State) -> Result<(), Failure> {
        self.wait()?;
        let model: Vec<(String, Tensor)> = params.iter().map(|(_, param)| (param.name.clone(), param.tensor.clone())).collect();
        let files = [TensorFile::new(MODEL, model), TensorFile::new(OPTIMIZER, optimizer.state_tensors(params)?)];
        let job = Job {
            run: self.run.clone(),
            keep: self.keep,
            state: state.clone(),
            files: files.iter().map(|file| Ok((file.name, file.header()?, file.bytes()))).collect::<Result<_, Failure>>()?,
        };
        let (sender, receiver) = sync_channel(WAITING);
        let thread = std::thread::Builder::new().name("checkpoint".to_owned()).spawn(move || job.run(&receiver));
        self.running = Some(thread.map_err(|error| Failure::other(format!("cannot start a thread for checkpoints: {error}")))?);
        self.newest = Some(state.step);
        let mut listening = true;
        for file in files {
            file.read(|pieces| {
                listening = sender.send(pieces).is_ok();
                listening
            })?;
            if !listening {
                return self.wait();
            }
        }
        Ok(())
    }

    /// Returns the error of a save that has failed since the last call, without waiting for one that goes on.
    pub fn check(&mut self) -> Result<(), Failure> {
        match &self.running {
            Some(thread) if thread.is_finished() => self.wait(),
            _ => Ok(()),
        }
    }

    /// Waits until the last save is on the disk.
    pub fn wait(&mut self) -> Result<(), Failure> {
        match self.running.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(failure))) => Err(failure),
            Some(Err(_)) => panic!("bug: the thread that writes checkpoints panicked"),
        }
    }
}

impl Drop for Writer {
    /// A run that ends with an error still finishes the save it had begun.
    fn drop(&mut self) {
        if let Err(failure) = self.wait() {
            output::note(&format!("error: {failure}"));
        }
    }
}

/// What the thread needs to know.
struct Job {
    run: PathBuf,
    keep: usize,
    state: State,
    /// Name, header and bytes of values.
    files: Vec<(&'static str, Vec<u8>, u64)>,
}

impl Job {
    fn run(&self, pieces: &Receiver<Vec<Piece>>) -> Result<(), Failure> {
        let target = run::checkpoint(&self.run, self.state.step);
        let partial = target.with_extension("partial");
        let written = self.fill(&partial, pieces).and_then(|()| publish(&partial, &target));
        written.map_err(|failure| {
            // Nothing was renamed; what was written is of no use and may be what fills the disk.
            let _ = std::fs::remove_dir_all(&partial);
            let last = run::checkpoints(&self.run).last().map_or("none".to_owned(), |step| format!("step-{step}"));
            failure.hint(format!("last complete checkpoint: {last}; `train --resume {}` goes on from it", self.run.display()))
        })?;
        let all = run::checkpoints(&self.run);
        all.iter().rev().skip(self.keep).try_for_each(|&step| discard(&run::checkpoint(&self.run, step)))
    }

    fn fill(&self, folder: &Path, pieces: &Receiver<Vec<Piece>>) -> Result<(), Failure> {
        if folder.exists() {
            std::fs::remove_dir_all(folder).map_err(|error| Failure::io("remove", folder, &error))?;
        }
        std::fs::create_dir_all(folder).map_err(|error| Failure::io("create", folder, &error))?;
        let mut records = BTreeMap::new();
        for (name, header, bytes) in &self.files {
            let mut sink = Sink::create(&folder.join(name))?;
            sink.put(header)?;
            let end = sink.bytes + bytes;
            while sink.bytes < end {
                let group = pieces.recv().map_err(|_| Failure::other(format!("{}: was not completed", sink.path.display())))?;
                for piece in group {
                    self.check_finite(&piece)?;
                    sink.put(&piece.bytes)?;
                }
            }
            records.insert((*name).to_owned(), sink.finish()?);
        }
        let mut sink = Sink::create(&folder.join(STATE))?;
        sink.put(Document::new(&self.state, records).text().as_bytes())?;
        sink.finish().map(drop)
    }

    /// A run whose weights have become infinite between two lines of metrics must not replace a good checkpoint.
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

/// A file that is being written, and its checksum.
struct Sink {
    path: PathBuf,
    file: File,
    sum: Crc32c,
    bytes: u64,
}

impl Sink {
    fn create(path: &Path) -> Result<Self, Failure> {
        let file = File::create(path).map_err(|error| Failure::io("create", path, &error))?;
        Ok(Self { path: path.to_owned(), file, sum: Crc32c::new(), bytes: 0 })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all(bytes).map_err(|error| Failure::io("write", &self.path, &error))?;
        self.sum.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn finish(self) -> Result<Recorded, Failure> {
        self.file.sync_all().map_err(|error| Failure::io("write", &self.path, &error))?;
        Ok(Recorded { bytes: self.bytes, crc32c: hexadecimal(self.sum.value()) })
    }
}

/// Gives a complete folder its name, for good.
fn publish(partial: &Path, target: &Path) -> Result<(), Failure> {
    let finish = || {
        sync_folder(partial)?;
        std::fs::rename(partial, target)?;
        target.parent().map_or(Ok(()), sync_folder)
    };
    finish().map_err(|error| Failure::io("finish", target, &error))
}

/// Removes an old checkpoint so that at no moment a part of it bears a complete one's name.
fn discard(folder: &Path) -> Result<(), Failure> {
    let partial = folder.with_extension("partial");
    let remove = || {
        std::fs::rename(folder, &partial)?;
        std::fs::remove_dir_all(&partial)
    };
    remove().map_err(|error| Failure::io("remove", folder, &error))
}

/// Makes the names in a folder survive a power failure. Only Unix lets a program ask for it.
fn sync_folder(folder: &Path) -> std::io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}
