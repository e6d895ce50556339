//! Text files and the documents in them, as the readers of each format return them.

use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::pieces::{PIECE_BYTES, Piece, cut};
use crate::terminal::failure::Failure;

/// A file, and the name of its documents.
pub struct TextFile {
    pub path: PathBuf,
    pub name: String,
}

/// Called with each document; returns whether to continue.
pub type Visit<'a> = dyn FnMut(Document<'_>) -> Result<ControlFlow<()>, Failure> + 'a;

/// A document before it is split into pieces.
pub struct Document<'a> {
    pub name: String,
    pub text: Text<'a>,
}

/// The text of a document.
pub enum Text<'a> {
    Held(String),
    /// A file too long to keep in memory, and its length; it is valid UTF-8.
    Long(&'a Path, u64),
}

impl Text<'_> {
    /// Its length.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Held(text) => text.len() as u64,
            Self::Long(_, bytes) => *bytes,
        }
    }
}

impl Document<'_> {
    /// Passes the text to `visit` in pieces.
    pub fn pieces(self, visit: &mut dyn FnMut(Piece) -> Result<(), Failure>) -> Result<(), Failure> {
        match self.text {
            Text::Held(text) if text.len() <= PIECE_BYTES => visit(Piece { name: self.name, text, begins: true, ends: true }),
            Text::Held(text) => cut(&self.name, text.as_bytes(), |error| Failure::io("cut", Path::new(&self.name), error), visit),
            Text::Long(path, _) => {
                let fail = |error: &_| Failure::io("read", path, error);
                let file = File::open(path).map_err(|error| fail(&error))?;
                cut(&self.name, file, fail, visit)
            }
        }
    }
}

/// Visits the files below a folder in sorted order; `prefix` is the folder's own name. Skips hidden
/// files, and links to folders, which could form cycles.
pub fn walk(folder: &Path, prefix: &str, found: &mut dyn FnMut(TextFile)) -> Result<(), Failure> {
    let fail = |error| Failure::io("read", folder, &error);
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        entries.push(entry.map_err(fail)?);
    }
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let path = entry.path();
        let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        if entry.file_type().map_err(fail)?.is_dir() {
            walk(&path, &name, found)?;
        } else if path.is_file() {
            found(TextFile { path, name });
        }
    }
    Ok(())
}
