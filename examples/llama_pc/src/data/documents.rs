//! Sources of text: files, folders, JSON lines and Parquet columns as a sequence of named documents.
//!
//! Files are sorted and names are relative to the given paths, so that the same text gives the same tokens in any location.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::cargo_sources;
use super::parquet;
use super::pieces::{PIECE_BYTES, Piece, cut};
use crate::terminal::failure::Failure;

/// All documents to prepare, read again by each pass and never all in memory.
pub struct Corpus {
    files: Vec<TextFile>,
    text_field: String,
    max_bytes: u64,
}

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
    fn bytes(&self) -> u64 {
        match self {
            Self::Held(text) => text.len() as u64,
            Self::Long(_, bytes) => *bytes,
        }
    }
}

impl Corpus {
    /// Lists the files of `paths`, folders recursively, and the crates' sources if a lockfile is given.
    pub fn find(paths: &[PathBuf], lockfile: Option<&Path>, text_field: &str, max_bytes: Option<u64>) -> Result<Self, Failure> {
        let mut files = Vec::new();
        for path in paths {
            if path.is_dir() {
                walk(path, "", &mut |file| files.push(file))?;
            } else {
                File::open(path).map_err(|error| Failure::io("read", path, &error))?;
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                files.push(TextFile { path: path.clone(), name });
            }
        }
        if let Some(lockfile) = lockfile {
            files.extend(cargo_sources::find(lockfile)?);
        }
        Ok(Self { files, text_field: text_field.to_owned(), max_bytes: max_bytes.unwrap_or(u64::MAX) })
    }

    /// Passes every non-empty document to `visit`, in pieces and in order, until `max_bytes` would be exceeded. Returns the
    /// files that were skipped because they are not UTF-8.
    pub fn for_each(&self, mut visit: impl FnMut(Piece) -> Result<(), Failure>) -> Result<Vec<&Path>, Failure> {
        let mut room = self.max_bytes;
        let mut skipped = Vec::new();
        let mut counted = |document: Document<'_>| {
            let bytes = document.text.bytes();
            if bytes > room {
                return Ok(ControlFlow::Break(()));
            }
            room -= bytes;
            if bytes > 0 {
                document.pieces(&mut visit)?;
            }
            Ok(ControlFlow::Continue(()))
        };
        for file in &self.files {
            let extension = file.path.extension().and_then(|extension| extension.to_str());
            let flow = match extension {
                Some("jsonl") => json_lines(file, &self.text_field, &mut counted)?,
                Some("parquet") => parquet::rows(file, &self.text_field, &mut counted)?,
                _ => match whole(file)? {
                    Some(document) => counted(document)?,
                    None => {
                        skipped.push(file.path.as_path());
                        ControlFlow::Continue(())
                    }
                },
            };
            if flow.is_break() {
                break;
            }
        }
        Ok(skipped)
    }
}

impl Document<'_> {
    fn pieces(self, visit: &mut dyn FnMut(Piece) -> Result<(), Failure>) -> Result<(), Failure> {
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

/// The file as one document, or `None` if it is not UTF-8.
fn whole(file: &TextFile) -> Result<Option<Document<'_>>, Failure> {
    let path = &file.path;
    let fail = |error| Failure::io("read", path, &error);
    let mut open = File::open(path).map_err(fail)?;
    let mut bytes = Vec::new();
    open.by_ref().take(PIECE_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(fail)?;
    let text = if bytes.len() <= PIECE_BYTES {
        String::from_utf8(bytes).ok().map(Text::Held)
    } else {
        utf8_length(bytes, open).map_err(fail)?.map(|length| Text::Long(path, length))
    };
    Ok(text.map(|text| Document { name: file.name.clone(), text }))
}

/// The number of bytes in `bytes` and the rest, or `None` if they are not UTF-8.
fn utf8_length(mut bytes: Vec<u8>, mut rest: impl Read) -> std::io::Result<Option<u64>> {
    let mut length = 0;
    loop {
        let valid = match std::str::from_utf8(&bytes) {
            Ok(text) => text.len(),
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => return Ok(None),
        };
        length += valid as u64;
        // At most an incomplete character remains.
        bytes.drain(..valid);
        if rest.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut bytes)? == 0 {
            return Ok(bytes.is_empty().then_some(length));
        }
    }
}

/// One document per non-blank line.
fn json_lines(file: &TextFile, field: &str, visit: &mut Visit<'_>) -> Result<ControlFlow<()>, Failure> {
    let path = &file.path;
    let mut reader = BufReader::new(File::open(path).map_err(|error| Failure::io("read", path, &error))?);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(|error| Failure::io("read", path, &error))? == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let place = format!("{}: line {number}", path.display());
        let mut value: serde_json::Value = serde_json::from_slice(&line).map_err(|error| {
            // The error's line number is always 1.
            let (reason, column) = (error.to_string(), error.column());
            let reason = reason.split(" at line ").next().unwrap_or_default();
            Failure::other(format!("{place}, column {column}: found {reason}, expected a JSON object"))
        })?;
        let text = match value.get_mut(field).map(serde_json::Value::take) {
            Some(serde_json::Value::String(text)) => text,
            _ => {
                return Err(Failure::other(format!("{place}: found no string \"{field}\", expected the text there"))
                    .hint("name the field with --text-field"));
            }
        };
        if visit(Document { name: format!("{}:{number}", file.name), text: Text::Held(text) })?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

#[cfg(test)]
#[path = "documents_tests.rs"]
mod tests;
