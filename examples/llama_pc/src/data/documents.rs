//! Where text comes from: files, folders, JSON lines and Parquet columns as a sequence of named documents.
//!
//! The list of files is sorted and names are relative to what the user gave, so that the same text makes the same tokens
//! wherever it lies.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::Type;

use super::cargo_sources;
use crate::failure::Failure;

/// A text that is tokenized as one piece and goes to training or validation as a whole.
pub struct Document {
    /// Path relative to the given file or folder, with the line or row where a file has several documents.
    pub name: String,
    pub text: String,
}

/// All documents of a preparation, read anew by each pass and never held together.
pub struct Corpus {
    files: Vec<TextFile>,
    text_field: String,
    max_bytes: u64,
}

/// A file with the name its documents go by.
pub struct TextFile {
    pub path: PathBuf,
    pub name: String,
}

/// What a reader of documents is handed: each text, and whether it wants another.
type Visit<'a> = dyn FnMut(Document) -> Result<ControlFlow<()>, Failure> + 'a;

impl Corpus {
    /// Lists the files of `paths`, folders with all they contain, and the crates' sources if a lockfile is given.
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

    /// Hands every document that has text to `visit`, in order, until `max_bytes` would be exceeded. Returns the files
    /// that were left out because they are not UTF-8.
    pub fn for_each(&self, mut visit: impl FnMut(Document) -> Result<(), Failure>) -> Result<Vec<&Path>, Failure> {
        let mut bytes = 0;
        let mut skipped = Vec::new();
        let mut counted = |document: Document| {
            if document.text.is_empty() {
                return Ok(ControlFlow::Continue(()));
            }
            bytes += document.text.len() as u64;
            if bytes > self.max_bytes {
                return Ok(ControlFlow::Break(()));
            }
            visit(document)?;
            Ok(ControlFlow::Continue(()))
        };
        for file in &self.files {
            let extension = file.path.extension().and_then(|extension| extension.to_str());
            let flow = match extension {
                Some("jsonl") => json_lines(file, &self.text_field, &mut counted)?,
                Some("parquet") => parquet_rows(file, &self.text_field, &mut counted)?,
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

/// Visits the files below a folder in sorted order; `prefix` is the folder's own name. Hidden files are not text that
/// anyone means, and links to folders could lead in circles.
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
fn whole(file: &TextFile) -> Result<Option<Document>, Failure> {
    let bytes = std::fs::read(&file.path).map_err(|error| Failure::io("read", &file.path, &error))?;
    Ok(String::from_utf8(bytes).ok().map(|text| Document { name: file.name.clone(), text }))
}

/// A document for every line that is not blank.
fn json_lines(file: &TextFile, field: &str, visit: &mut Visit<'_>) -> Result<ControlFlow<()>, Failure> {
    let path = &file.path;
    let reader = BufReader::new(File::open(path).map_err(|error| Failure::io("read", path, &error))?);
    for (number, line) in (1..).zip(reader.lines()) {
        let line = line.map_err(|error| Failure::io("read", path, &error))?;
        if line.trim().is_empty() {
            continue;
        }
        let place = format!("{}: line {number}", path.display());
        let mut value: serde_json::Value = serde_json::from_str(&line)
            .map_err(|error| Failure::other(format!("{place}: found {error}, expected a JSON object")))?;
        let text = match value.get_mut(field).map(serde_json::Value::take) {
            Some(serde_json::Value::String(text)) => text,
            _ => {
                return Err(Failure::other(format!("{place}: found no string \"{field}\", expected the text there"))
                    .hint("name the field with --text-field"));
            }
        };
        if visit(Document { name: format!("{}:{number}", file.name), text })?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// A document for every row whose column is not null; no other column is decoded.
fn parquet_rows(file: &TextFile, column: &str, visit: &mut Visit<'_>) -> Result<ControlFlow<()>, Failure> {
    let path = &file.path;
    let fail = |error: parquet::errors::ParquetError| {
        Failure::other(format!("{}: found {error}, expected a Parquet file", path.display()))
    };
    let open = File::open(path).map_err(|error| Failure::io("read", path, &error))?;
    let reader = SerializedFileReader::new(open).map_err(fail)?;
    let schema = reader.metadata().file_metadata().schema();
    let found = schema.get_fields().iter().find(|field| field.name() == column).cloned();
    let field = found.ok_or_else(|| {
        let columns: Vec<&str> = schema.get_fields().iter().map(|field| field.name()).collect();
        let columns = columns.join(", ");
        Failure::other(format!("{}: found columns {columns}, expected \"{column}\"", path.display()))
            .hint("name the column with --text-field")
    })?;
    let only = Type::group_type_builder(schema.name()).with_fields(vec![field]).build().map_err(fail)?;
    for (number, row) in (1..).zip(reader.get_row_iter(Some(only)).map_err(fail)?) {
        let Some(text) = row_text(row.map_err(fail)?) else {
            return Err(Failure::other(format!(
                "{}: row {number}: found \"{column}\" of another kind, expected UTF-8 text",
                path.display()
            )));
        };
        if visit(Document { name: format!("{}:{number}", file.name), text })?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The text of a row's only column; nothing for a null, `None` for anything but text.
fn row_text(row: Row) -> Option<String> {
    match row.into_columns().pop()?.1 {
        Field::Str(text) => Some(text),
        Field::Bytes(bytes) => String::from_utf8(bytes.data().to_vec()).ok(),
        Field::Null => Some(String::new()),
        _ => None,
    }
}

#[cfg(test)]
#[path = "documents_tests.rs"]
mod tests;
