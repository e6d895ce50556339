//! Atomic writes: a file or folder has a temporary name until it is complete and synced.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::paths;
use crate::data::foreign::instead;
use crate::data::synced::sync_folder;
use crate::terminal::failure::Failure;

pub use crate::data::synced::write;

/// A file or folder that is being written; removed on drop unless finished.
pub struct Partial {
    path: PathBuf,
    out: PathBuf,
}

impl Partial {
    /// For a file at `--out`, which must not exist. Creates its parents and removes what a killed process left.
    pub fn file(out: &Path) -> Result<Self, Failure> {
        refuse_existing("--out", out, "file")?;
        Self::at(hidden(out, "file")?, out)
    }

    /// [`Partial::file`] with an empty folder at the temporary name.
    pub fn folder(out: &Path) -> Result<Self, Failure> {
        refuse_existing("--out", out, "folder")?;
        Self::at(hidden(out, "folder")?, out)?.with_folder()
    }

    /// The folder of a checkpoint.
    pub fn checkpoint(folder: &Path) -> Result<Self, Failure> {
        Self::at(paths::unfinished(folder), folder)?.with_folder()
    }

    fn at(path: PathBuf, out: &Path) -> Result<Self, Failure> {
        remove(&path).map_err(|error| Failure::io("remove", &path, &error))?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|error| Failure::io("create", parent, &error))?;
        }
        Ok(Self { path, out: out.to_owned() })
    }

    fn with_folder(self) -> Result<Self, Failure> {
        std::fs::create_dir(&self.path).map_err(|error| Failure::io("create", &self.path, &error))?;
        Ok(self)
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the output to its final name. Files within it must be synced already.
    pub fn finish(self) -> Result<(), Failure> {
        let finish = || {
            if self.path.is_dir() {
                sync_folder(&self.path)?;
            }
            std::fs::rename(&self.path, &self.out)?;
            // The rename survives a power failure only once the parent is synced.
            self.out.parent().map_or(Ok(()), sync_folder)
        };
        finish().map_err(|error| Failure::io("finish", &self.out, &error))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Does nothing after a rename. Errors are ignored: the caller is already handling one.
        let _ = remove(&self.path);
    }
}

/// The temporary name of an output, in the same folder.
fn hidden(out: &Path, kind: &str) -> Result<PathBuf, Failure> {
    let name = out
        .file_name()
        .ok_or_else(|| Failure::usage(format!("--out {}: found no name, expected a new {kind}", out.display())))?;
    Ok(out.with_file_name(format!(".{}.partial", name.to_string_lossy())))
}

/// Writes a new file atomically; one that exists is a usage error.
pub fn create(out: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let partial = Partial::file(out)?;
    write(partial.path(), bytes)?;
    partial.finish()
}

/// Replaces a file atomically.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let partial = Partial::at(hidden(path, "file")?, path)?;
    write(partial.path(), bytes)?;
    partial.finish()
}

/// Reads a JSON file.
pub fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, Failure> {
    let bytes = std::fs::read(path).map_err(|error| Failure::io("read", path, &error))?;
    serde_json::from_slice(&bytes).map_err(|error| instead(path, "JSON", Failure::other(format!("{}: {error}", path.display()))))
}

/// An output that exists is a usage error.
pub fn refuse_existing(flag: &str, out: &Path, kind: &str) -> Result<(), Failure> {
    if out.symlink_metadata().is_ok() {
        return Err(Failure::usage(format!("{flag} {}: found an existing path, expected a new {kind}", out.display())));
    }
    Ok(())
}

fn remove(path: &Path) -> std::io::Result<()> {
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_finished_bears_the_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let out = folder.path().join("deep/out");
        let partial = Partial::folder(&out).expect("a new folder");
        std::fs::write(partial.path().join("a"), "1").expect("it is written");
        drop(partial);
        assert_eq!(std::fs::read_dir(folder.path().join("deep")).expect("a folder").count(), 0);

        std::fs::write(folder.path().join("deep/.out.partial"), "of a killed process").expect("it is written");
        let partial = Partial::folder(&out).expect("a new folder");
        std::fs::write(partial.path().join("a"), "1").expect("it is written");
        partial.finish().expect("it is renamed");
        assert!(out.join("a").is_file());
        let failure = Partial::file(&out).err().expect("it exists");
        assert_eq!(failure.status, 2);
    }
}
