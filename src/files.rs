//! Atomic replacement of files.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Replaces a file atomically: `fill` writes `<path>.<suffix>`, which is synced and renamed. On an error the old file is intact and
/// the new one removed.
pub(crate) fn replace(path: &Path, suffix: &str, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    let partial = PathBuf::from(name);
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    let write = || {
        let mut file = File::create(&partial).map_err(io)?;
        fill(&mut file)?;
        file.sync_all().and_then(|()| std::fs::rename(&partial, path)).map_err(io)
    };
    write().inspect_err(|_| drop(std::fs::remove_file(&partial)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_failure_leaves_the_old_file_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.txt");
        let write = |text: &str, result: Result<()>| {
            replace(&path, "partial", |file| {
                file.write_all(text.as_bytes()).expect("it is written");
                result
            })
        };
        write("old", Ok(())).expect("a new file");
        let error = write("half", Err(Error::Value("enough".into()))).expect_err("the error of `fill`");
        assert_eq!(error.to_string(), "enough");
        assert_eq!(std::fs::read_to_string(&path).expect("a file"), "old");
        write("new", Ok(())).expect("the file is replaced");
        assert_eq!(std::fs::read_to_string(&path).expect("a file"), "new");
        // A folder cannot be replaced by a file.
        let taken = folder.path().join("b");
        std::fs::create_dir(&taken).expect("a folder");
        replace(&taken, "partial", |_| Ok(())).expect_err("a folder is there");
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 2, "no partial file is left");
    }
}
