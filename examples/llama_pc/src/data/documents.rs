//! Sources of text: files, folders, JSON and Parquet columns as a sequence of named documents.
//!
//! Files are sorted and names are relative to the given paths, so that the same text gives the same tokens in any location.

use std::collections::HashSet;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::kinds::{Remark, look};
use super::pieces::{PIECE_BYTES, Piece};
use super::source::{Document, Entry, Kind, Seen, Text, TextFile, Walked, walk};
use super::{cards, cargo_sources, json, parquet};
use crate::terminal::failure::Failure;
use crate::terminal::format::listed;

/// All documents to prepare, read again by each pass and never all in memory.
pub struct Corpus {
    files: Vec<TextFile>,
    text_field: String,
    max_bytes: u64,
    notes: Vec<String>,
}

/// Where the text is.
#[derive(Default)]
pub struct Places<'a> {
    /// Files, and folders with all below them.
    pub paths: &'a [PathBuf],
    /// The sources of the crates in this lockfile, too.
    pub lockfile: Option<&'a Path>,
    /// Files and folders whose files are left out.
    pub except: &'a [PathBuf],
    /// Whether the text is for validation.
    pub for_val: bool,
}

impl Corpus {
    /// Lists the files of `places` and looks into each.
    pub fn find(places: &Places<'_>, text_field: &str, max_bytes: Option<u64>) -> Result<Self, Failure> {
        let mut listing = Listing { except: except(places.except)?, ..Listing::default() };
        for path in places.paths {
            listing.add(path, text_field)?;
        }
        for entry in places.lockfile.map(cargo_sources::find).transpose()?.into_iter().flatten() {
            listing.look(entry, text_field, false)?;
        }
        if places.for_val {
            listing.remarks.retain(|(remark, _)| *remark != Remark::Split);
        }
        let notes = listing.notes(text_field);
        Ok(Self { files: listing.files, text_field: text_field.to_owned(), max_bytes: max_bytes.unwrap_or(u64::MAX), notes })
    }

    /// What was chosen for the user when the files were listed, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Passes every non-empty document to `visit`, in pieces and in order, until `max_bytes` would be exceeded. Returns what it
    /// came across.
    pub fn for_each(&self, mut visit: impl FnMut(Piece) -> Result<(), Failure>) -> Result<Seen, Failure> {
        let mut room = self.max_bytes;
        let mut seen = Seen::default();
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
            let flow = match file.kind {
                Kind::Json(layout) => json::documents(file, layout, &self.text_field, &mut seen, &mut counted)?,
                Kind::Parquet => parquet::rows(file, &self.text_field, &mut seen, &mut counted)?,
                Kind::Whole => match whole(file)? {
                    Some(document) => counted(document)?,
                    None => skip(file, "not UTF-8 text", &mut seen),
                },
                Kind::Other(what) => skip(file, what, &mut seen),
            };
            if flow.is_break() {
                break;
            }
        }
        Ok(seen)
    }
}

fn skip(file: &TextFile, what: &'static str, seen: &mut Seen) -> ControlFlow<()> {
    seen.skipped.push((file.path.clone(), what));
    ControlFlow::Continue(())
}

/// The files below these paths, in a form that tells whether another path leads to the same.
fn except(paths: &[PathBuf]) -> Result<HashSet<PathBuf>, Failure> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            let mut walked = Walked::default();
            walk(path, "", &mut walked)?;
            files.extend(walked.files.into_iter().map(|entry| entry.path));
        } else {
            files.push(path.clone());
        }
    }
    Ok(files.into_iter().map(|path| path.canonicalize().unwrap_or(path)).collect())
}

/// The files so far, and those that have something to be said of.
#[derive(Default)]
struct Listing {
    files: Vec<TextFile>,
    except: HashSet<PathBuf>,
    excepted: u64,
    cards: Vec<String>,
    links: Vec<String>,
    remarks: Vec<(Remark, String)>,
}

impl Listing {
    fn add(&mut self, path: &Path, field: &str) -> Result<(), Failure> {
        if !path.is_dir() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return self.look(Entry { path: path.to_owned(), name }, field, true);
        }
        let mut walked = Walked::default();
        walk(path, "", &mut walked)?;
        self.links.extend(walked.links);
        let (files, remarks) = (self.files.len(), self.remarks.len());
        for entry in walked.files {
            self.look(entry, field, false)?;
        }
        let found = self.files.split_off(files);
        let (cards, texts) = cards::apart(found, path);
        self.files.extend(texts);
        let remarks = self.remarks.split_off(remarks);
        self.remarks.extend(remarks.into_iter().filter(|(_, name)| !cards.contains(name)));
        self.cards.extend(cards);
        Ok(())
    }

    fn look(&mut self, entry: Entry, field: &str, named: bool) -> Result<(), Failure> {
        if !self.except.is_empty() && entry.path.canonicalize().is_ok_and(|path| self.except.contains(&path)) {
            self.excepted += 1;
            return Ok(());
        }
        let (file, remark) = look(entry, field, named)?;
        self.remarks.extend(remark.map(|remark| (remark, file.name.clone())));
        self.files.push(file);
        Ok(())
    }

    fn notes(&self, field: &str) -> Vec<String> {
        let mut notes = Vec::new();
        if self.excepted > 0 {
            notes.push(format!("{} files of --val are left out of --text", self.excepted));
        }
        if !self.cards.is_empty() {
            notes.push(format!("left out, because they describe the data beside them: {}", listed(&self.cards)));
        }
        if !self.links.is_empty() {
            notes.push(format!("left out, because they are links to folders or to nothing: {}", listed(&self.links)));
        }
        let texts = [
            (Remark::HoldsJson, "read as JSON, because they hold objects with the text field".to_owned()),
            (Remark::OneValue, "not JSON lines, so each is one document as it stands".to_owned()),
            (Remark::LacksField, format!("objects without a field {field:?}, so each file is one document as it stands")),
            (Remark::Table, "tables are not read by column, so each is one document as it stands".to_owned()),
            (Remark::Split, "read like the rest, though their names are those of validation or test data".to_owned()),
            (Remark::NotPacked, "not compressed, whatever their names say; read as they are".to_owned()),
        ];
        for (remark, text) in texts {
            let names: Vec<&String> = self.remarks.iter().filter(|(found, _)| *found == remark).map(|(_, name)| name).collect();
            if !names.is_empty() {
                notes.push(format!("{text}: {}", listed(&names)));
            }
        }
        notes
    }
}

/// The file as one document, or `None` if it is not UTF-8.
fn whole(file: &TextFile) -> Result<Option<Document<'_>>, Failure> {
    let fail = |error: io::Error| file.unread(&error);
    let mut open = file.open_text().map_err(fail)?;
    let mut bytes = Vec::new();
    open.by_ref().take(PIECE_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(fail)?;
    let text = if bytes.len() <= PIECE_BYTES {
        String::from_utf8(bytes).ok().map(Text::Held)
    } else {
        utf8_length(bytes, open).map_err(fail)?.map(|length| Text::Long(file, length))
    };
    Ok(text.map(|text| Document { name: file.name.clone(), text }))
}

/// The number of bytes in `bytes` and the rest, or `None` if they are not UTF-8.
fn utf8_length(mut bytes: Vec<u8>, mut rest: impl Read) -> io::Result<Option<u64>> {
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

#[cfg(test)]
#[path = "documents_tests.rs"]
mod tests;
