//! Output under a temporary name beside its final one, so that what bears the final name is whole.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// A file or a folder that is being written; removed again unless it is finished.
pub struct Partial {
    path: PathBuf,
    out: PathBuf,
}

impl Partial {
    /// For a file or folder at `out`, which must not exist. Its parents are made; what an earlier, killed process left is removed.
    pub fn file(out: &Path) -> Result<Self, Failure> {
        Self::new(out, "file")
    }

    fn new(out: &Path, kind: &str) -> Result<Self, Failure> {
        refuse_existing("--out", out, kind)?;
        let name = out
            .file_name()
            .ok_or_else(|| Failure::usage(format!("--out {}: found no name, expected a new {kind}", out.display())))?;
        let path = out.with_file_name(format!(".{}.partial", name.to_string_lossy()));
        remove(&path).map_err(|error| Failure::io("remove", &path, &error))?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|error| Failure::io("create", parent, &error))?;
        }
        Ok(Self { path, out: out.to_owned() })
    }

    /// [`Partial::file`] with an empty folder at the temporary name.
    pub fn folder(out: &Path) -> Result<Self, Failure> {
        let partial = Self::new(out, "folder")?;
        std::fs::create_dir(&partial.path).map_err(|error| Failure::io("create", &partial.path, &error))?;
        Ok(partial)
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the output its final name.
    pub fn finish(self) -> Result<(), Failure> {
        std::fs::rename(&self.path, &self.out).map_err(|error| Failure::io("rename to", &self.out, &error))?;
        // The name lies in the parent: only once that is on disk does it survive a power cut.
        match self.out.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => sync(parent),
            None => sync(Path::new(".")),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Gone already if it was renamed; and a failure on the way out has nobody left to tell.
        let _ = remove(&self.path);
    }
}

/// An output that is there already is a usage error.
pub fn refuse_existing(flag: &str, out: &Path, kind: &str) -> Result<(), Failure> {
    if out.symlink_metadata().is_ok() {
        return Err(Failure::usage(format!("{flag} {}: found it exists already, expected a new {kind}", out.display())));
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

#[cfg(unix)]
fn sync(folder: &Path) -> Result<(), Failure> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| Failure::io("sync", folder, &error))
}

/// Elsewhere a folder cannot be opened like a file.
#[cfg(not(unix))]
fn sync(_: &Path) -> Result<(), Failure> {
    Ok(())
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
