//! A corpus that every cargo user has: the Rust sources of the crates in a lockfile, as unpacked by cargo.

use std::path::{Path, PathBuf};

use super::source::{Entry, Walked, walk};
use crate::terminal::failure::Failure;

/// Larger files are most likely generated tables, not handwritten Rust.
const MAX_FILE_BYTES: usize = 300 * 1024;
const MAX_LINE_BYTES: usize = 2000;

/// The `.rs` files of the lockfile's registry crates, sorted by crate and path, named `NAME-VERSION/path`.
pub fn find(lockfile: &Path) -> Result<Vec<Entry>, Failure> {
    let sources = cargo_home()?.join("registry").join("src");
    let registries = folders(&sources);
    let mut walked = Walked::default();
    for name in crates(lockfile)? {
        let unpacked = registries.iter().map(|registry| registry.join(&name)).find(|path| path.is_dir());
        if let Some(path) = unpacked {
            walk(&path, &name, &mut walked)?;
        }
    }
    let mut files = walked.files;
    files.retain(|file| hand_written(&file.path));
    if files.is_empty() {
        return Err(Failure::other(format!(
            "{}: found no sources of the crates in {}, expected them unpacked there",
            sources.display(),
            lockfile.display()
        ))
        .hint("run `cargo fetch` first"));
    }
    Ok(files)
}

/// `NAME-VERSION` of every crate that comes from a registry.
fn crates(lockfile: &Path) -> Result<Vec<String>, Failure> {
    let text = std::fs::read_to_string(lockfile).map_err(|error| Failure::io("read", lockfile, &error))?;
    let table = text.parse::<toml::Table>().ok();
    let packages = table.as_ref().and_then(|table| table.get("package")?.as_array());
    let packages = packages
        .ok_or_else(|| Failure::other(format!("{}: found no [[package]] list, expected a Cargo.lock", lockfile.display())))?;
    let mut names: Vec<String> = packages
        .iter()
        .filter(|package| package.get("source").is_some())
        .filter_map(|package| {
            let (name, version) = (package.get("name")?.as_str()?, package.get("version")?.as_str()?);
            Some(format!("{name}-{version}"))
        })
        .collect();
    names.sort();
    Ok(names)
}

/// `$CARGO_HOME`, or where cargo puts it by default.
fn cargo_home() -> Result<PathBuf, Failure> {
    let set = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    set.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))
        .ok_or_else(|| Failure::other("found neither CARGO_HOME nor a home folder, expected cargo's sources there"))
}

/// The subfolders of a folder, sorted; none if it does not exist.
fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

/// Whether a file is Rust and looks handwritten. Unreadable files pass: the reader reports them.
fn hand_written(path: &Path) -> bool {
    if path.extension().is_none_or(|extension| extension != "rs") {
        return false;
    }
    let Ok(bytes) = std::fs::read(path) else {
        return true;
    };
    bytes.len() <= MAX_FILE_BYTES && bytes.split(|byte| *byte == b'\n').all(|line| line.len() <= MAX_LINE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lockfile_names_its_registry_crates() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("Cargo.lock");
        let text = "version = 4\n[[package]]\nname = \"b\"\nversion = \"1.0.0\"\nsource = \"registry\"\n\
                    [[package]]\nname = \"own\"\nversion = \"0.1.0\"\n\
                    [[package]]\nname = \"a\"\nversion = \"2.0.0\"\nsource = \"registry\"\n";
        std::fs::write(&path, text).expect("the file is written");
        assert_eq!(crates(&path).expect("a lockfile"), ["a-2.0.0", "b-1.0.0"]);
        std::fs::write(&path, "x = 1").expect("the file is written");
        assert!(crates(&path).is_err());
    }

    #[test]
    fn generated_giants_are_left_out() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let check = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("the file is written");
            hand_written(&path)
        };
        assert!(check("a.rs", "fn main() {}\n"));
        assert!(!check("a.txt", "text"));
        assert!(!check("wide.rs", &"x".repeat(2001)));
        assert!(!check("long.rs", &"let x = 1;\n".repeat(40_000)));
    }
}
