//! A column of a Parquet file as documents, one per row.
//!
//! The library panics on some damaged files, so every call that reads is guarded.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};
use std::ops::ControlFlow;

use bytes::Bytes;
use parquet::basic::Compression;
use parquet::column::page::Page;
use parquet::column::reader::get_typed_column_reader;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};

use super::guard::guarded;
use super::parquet_column::column;
use super::source::{Document, Seen, Text, TextFile, Visit};
use crate::terminal::failure::Failure;
use crate::terminal::format::clipped;

/// Rows decoded at a time: few, because a row may be as long as a book.
const BATCH_ROWS: usize = 64;

/// Values and nulls in a page. Writers put a megabyte into one; a damaged header may claim any number in some bytes, and memory
/// for all items of a row is allocated at once.
const MAX_PAGE_VALUES: usize = 1 << 26;

/// Hands over the text of every row that has one; no other column is decoded. The items of a list are joined by newlines.
pub fn rows(file: &TextFile, field: &str, seen: &mut Seen, visit: &mut Visit<'_>) -> Result<ControlFlow<()>, Failure> {
    let path = &file.path;
    let foreign = |found: String| Failure::other(format!("{}: {found}", path.display()));
    let open = File::open(path).map_err(|error| Failure::io("read", path, &error))?;
    let reader = checked(|| SerializedFileReader::new(Source(open))).map_err(foreign)?;
    let schema = reader.metadata().file_metadata().schema_descr();
    let index =
        column(schema, field).map_err(|found| foreign(found).hint("name it with --text-field; `a.b` is the column b of a"))?;
    check_chunks(reader.metadata(), index).map_err(foreign)?;
    check_pages(&reader, index).map_err(foreign)?;
    let mut number = 0u64;
    for group in 0..reader.num_row_groups() {
        let mut rows = Rows::new(&reader, group, index).map_err(foreign)?;
        let (first, expected) = (number, reader.metadata().row_group(group).num_rows());
        while let Some(batch) = rows.next_batch().map_err(foreign)? {
            for row in batch {
                number += 1;
                let joined = row.len() > 1;
                let text = text_of(row).ok_or_else(|| {
                    let column = clipped(field, 60);
                    foreign(format!("row {number}, column \"{column}\": found bytes that are not UTF-8, expected text"))
                })?;
                let name = format!("{}:{number}", file.name);
                seen.empty.add(u64::from(text.is_empty()), &name);
                seen.joined.add(u64::from(joined), &name);
                if visit(Document { name, text: Text::Held(text) })?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        if number - first != expected as u64 {
            let found = number - first;
            return Err(foreign(format!("found {found} rows in row group {group}, expected the {expected} that it announces")));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The rows of a column in a row group, a row as its texts that are not null.
struct Rows {
    reader: parquet::column::reader::ColumnReaderImpl<ByteArrayType>,
    /// Levels of a value that is there, and of one that continues a row.
    max_definition: i16,
    max_repetition: i16,
}

impl Rows {
    fn new(reader: &SerializedFileReader<Source>, group: usize, index: usize) -> Result<Self, String> {
        let column = reader.metadata().file_metadata().schema_descr().column(index);
        let typed = checked(|| Ok(get_typed_column_reader(reader.get_row_group(group)?.get_column_reader(index)?)))?;
        Ok(Self { reader: typed, max_definition: column.max_def_level(), max_repetition: column.max_rep_level() })
    }

    /// The next rows; `None` after the last.
    fn next_batch(&mut self) -> Result<Option<Vec<Vec<ByteArray>>>, String> {
        let (mut definitions, mut repetitions, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let read = || self.reader.read_records(BATCH_ROWS, Some(&mut definitions), Some(&mut repetitions), &mut values);
        let (records, _, _) = checked(read)?;
        if records == 0 {
            return Ok(None);
        }
        if self.max_definition == 0 {
            definitions = vec![0; values.len()];
        }
        if self.max_repetition == 0 {
            repetitions = vec![0; definitions.len()];
        }
        let (mut rows, mut values) = (Vec::new(), values.into_iter());
        for (definition, repetition) in definitions.into_iter().zip(repetitions) {
            if repetition == 0 || rows.is_empty() {
                rows.push(Vec::new());
            }
            if let (true, Some(row)) = (definition == self.max_definition, rows.last_mut()) {
                row.extend(values.next());
            }
        }
        Ok(Some(rows))
    }
}

/// A file that fails when read beyond its end. The library skips unknown fields of a page's header by their declared length, up to
/// 2³¹ numbers, and an ordinary file would have it try to read every one of them at the end.
struct Source(File);

/// See [`Source`].
struct Endless(BufReader<File>);

impl Length for Source {
    fn len(&self) -> u64 {
        self.0.len()
    }
}

impl ChunkReader for Source {
    type T = Endless;

    fn get_read(&self, start: u64) -> Result<Endless, ParquetError> {
        Ok(Endless(self.0.get_read(start)?))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        self.0.get_bytes(start, length)
    }
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 if !buffer.is_empty() => Err(ErrorKind::UnexpectedEof.into()),
            count => Ok(count),
        }
    }
}

/// Calls the library; turns errors and panics into messages about the file.
fn checked<T>(call: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    let found = match guarded(call) {
        Ok(Ok(value)) => return Ok(value),
        // The library may quote all that it could not read.
        Ok(Err(error)) => clipped(&error.to_string(), 100),
        Err(panic) => format!("damage ({})", clipped(&panic, 100)),
    };
    Err(format!("found {found}, expected a Parquet file"))
}

/// The library allocates as many values as a dictionary's header declares, and aborts the process if that fails.
/// Each value takes four bytes for its length.
fn check_pages(reader: &SerializedFileReader<Source>, index: usize) -> Result<(), String> {
    for group in 0..reader.num_row_groups() {
        let mut pages = checked(|| reader.get_row_group(group)?.get_column_page_reader(index))?;
        while let Some(page) = checked(|| pages.peek_next_page())? {
            if let Some(values) = page.num_levels.filter(|values| *values > MAX_PAGE_VALUES) {
                return Err(format!("found a page of {values} values, expected at most {MAX_PAGE_VALUES}"));
            }
            if !page.is_dict {
                checked(|| pages.skip_next_page())?;
                continue;
            }
            let Some(Page::DictionaryPage { buf, num_values, .. }) = checked(|| pages.get_next_page())? else { continue };
            if num_values as usize > buf.len() / 4 {
                return Err(format!("found a dictionary of {num_values} values in {} bytes, expected a Parquet file", buf.len()));
            }
        }
    }
    Ok(())
}

fn check_chunks(metadata: &ParquetMetaData, index: usize) -> Result<(), String> {
    for group in metadata.row_groups() {
        let chunk = group.columns().get(index).ok_or_else(|| {
            let (found, expected) = (group.num_columns(), metadata.file_metadata().schema_descr().num_columns());
            format!("found a row group of {found} columns, expected the schema's {expected}")
        })?;
        if chunk.file_path().is_some_and(|path| !path.is_empty()) {
            return Err("found a column that lies in another file, expected all in this one".to_owned());
        }
        if let Compression::LZO = chunk.compression() {
            return Err(
                "found a column compressed with LZO, expected zstd, snappy, gzip, brotli, lz4 or no compression".to_owned()
            );
        }
    }
    Ok(())
}

/// The texts of a row, joined by newlines; `None` if they are not UTF-8.
fn text_of(row: Vec<ByteArray>) -> Option<String> {
    let texts: Option<Vec<&str>> = row.iter().map(|text| std::str::from_utf8(text.data()).ok()).collect();
    texts.map(|texts| texts.join("\n"))
}
