//! Text files and the documents in them, as the readers of each format return them.

use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::json_records::Layout;
use super::packing::Packing;
use super::pieces::{PIECE_BYTES, Piece, cut};
use crate::terminal::failure::Failure;

/// A file in a folder or as named by the user, and its name in the names of its documents.
pub struct Entry {
    pub path: PathBuf,
    pub name: String,
}

/// How documents are laid out in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The file is one document.
    Whole,
    /// A document is an object's field.
    Json(Layout),
    /// A document is a column's value.
    Parquet,
    /// It holds no text; what it is.
    Other(&'static str),
}

impl Kind {
    /// Whether its documents are records of data.
    pub fn is_data(self) -> bool {
        matches!(self, Self::Json(_) | Self::Parquet)
    }
}

/// A file with how to read it.
pub struct TextFile {
    pub path: PathBuf,
    pub name: String,
    pub packing: Packing,
    pub kind: Kind,
}

impl TextFile {
    /// Its unpacked bytes.
    pub fn open(&self) -> io::Result<Box<dyn Read>> {
        self.packing.open(&self.path)
    }

    /// Its unpacked bytes without the byte order mark that text may begin with.
    pub fn open_text(&self) -> io::Result<impl Read + use<>> {
        let mut file = self.open()?;
        let mut begin = Vec::with_capacity(3);
        file.by_ref().take(3).read_to_end(&mut begin)?;
        if begin == b"\xef\xbb\xbf" {
            begin.clear();
        }
        Ok(io::Cursor::new(begin).chain(file))
    }

    /// An error of reading it.
    pub fn unread(&self, error: &io::Error) -> Failure {
        Failure::io("read", &self.path, error)
    }
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
    Long(&'a TextFile, u64),
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
            Text::Held(text) if text.len() <= PIECE_BYTES => visit(Piece::whole(self.name, text)),
            Text::Held(text) => cut(&self.name, text.as_bytes(), |error| Failure::io("cut", Path::new(&self.name), error), visit),
            Text::Long(file, _) => {
                let text = file.open_text().map_err(|error| file.unread(&error))?;
                cut(&self.name, text, |error| file.unread(error), visit)
            }
        }
    }
}

/// What was found while reading documents, to report to the user.
#[derive(Debug, Default)]
pub struct Seen {
    /// Files that were left out, and what they are.
    pub skipped: Vec<(PathBuf, &'static str)>,
    /// Lines and rows without text.
    pub empty: Tally,
    /// Halves of surrogate pairs in JSON.
    pub surrogates: Tally,
    /// Documents that consist of several items of a list.
    pub joined: Tally,
}

/// How often something was seen, and where first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub count: u64,
    pub first: String,
}

impl Tally {
    /// Counts `more`, at the document of this name.
    pub fn add(&mut self, more: u64, name: &str) {
        if self.count == 0 && more > 0 {
            name.clone_into(&mut self.first);
        }
        self.count += more;
    }

    fn append(&mut self, other: Self) {
        self.add(other.count, &other.first);
    }
}

impl Seen {
    /// Adds what was seen in documents that follow.
    pub fn append(&mut self, other: Self) {
        self.skipped.extend(other.skipped);
        self.empty.append(other.empty);
        self.surrogates.append(other.surrogates);
        self.joined.append(other.joined);
    }
}

/// What lies below a folder.
#[derive(Default)]
pub struct Walked {
    pub files: Vec<Entry>,
    /// Names of links that were not followed: to folders, which could form cycles, and to nothing.
    pub links: Vec<String>,
}

/// Adds the files below a folder in sorted order; `prefix` is the folder's own name. Skips hidden files.
pub fn walk(folder: &Path, prefix: &str, walked: &mut Walked) -> Result<(), Failure> {
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
        let kind = entry.file_type().map_err(fail)?;
        if kind.is_dir() {
            walk(&path, &name, walked)?;
        } else if path.is_file() {
            walked.files.push(Entry { path, name });
        } else if kind.is_symlink() {
            walked.links.push(name);
        }
    }
    Ok(())
}
