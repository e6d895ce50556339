//! A column of a Parquet file as documents, one per row.
//!
//! The library panics on some damaged files, so every call that reads is guarded.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};
use std::ops::ControlFlow;

use bytes::Bytes;
use parquet::basic::{Compression, LogicalType, Type as Physical};
use parquet::column::page::Page;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;

use super::documents::{Document, Text, TextFile, Visit};
use super::guard::guarded;
use crate::terminal::failure::Failure;

/// Rows decoded at a time: few, because a row may be as long as a book.
const BATCH_ROWS: usize = 64;

/// Hands over every row whose column is not null; no other column is decoded.
pub fn rows(file: &TextFile, column: &str, visit: &mut Visit<'_>) -> Result<ControlFlow<()>, Failure> {
    let path = &file.path;
    let foreign = |found: String| Failure::other(format!("{}: {found}", path.display()));
    let open = File::open(path).map_err(|error| Failure::io("read", path, &error))?;
    let reader = checked(|| SerializedFileReader::new(Source(open))).map_err(foreign)?;
    let only = projection(reader.metadata(), column).map_err(|found| foreign(found).hint("name the column with --text-field"))?;
    check_compression(reader.metadata(), column).map_err(foreign)?;
    check_dictionaries(&reader, column).map_err(foreign)?;
    let rows = checked(|| RowIter::from_file_into(Box::new(reader)).project(Some(only))).map_err(foreign)?;
    let mut rows = rows.with_batch_size(BATCH_ROWS);
    for number in 1.. {
        let Some(row) = checked(|| rows.next().transpose()).map_err(foreign)? else { break };
        let text = text_of(row).map_err(|found| foreign(format!("row {number}: \"{column}\": {found}, expected UTF-8 text")))?;
        if visit(Document { name: format!("{}:{number}", file.name), text: Text::Held(text) })?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
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
        Ok(Err(error)) => error.to_string().replace('\n', " "),
        Err(panic) => format!("damage ({panic})"),
    };
    Err(format!("found {found}, expected a Parquet file"))
}

/// The schema of the column alone.
fn projection(metadata: &ParquetMetaData, column: &str) -> Result<Type, String> {
    let schema = metadata.file_metadata().schema();
    let found = schema.get_fields().iter().find(|field| field.name() == column).cloned().ok_or_else(|| {
        let columns: Vec<&str> = schema.get_fields().iter().map(|field| field.name()).collect();
        format!("found columns {}, expected \"{column}\"", columns.join(", "))
    })?;
    let is_text = found.is_primitive()
        && found.get_physical_type() == Physical::BYTE_ARRAY
        && matches!(found.get_basic_info().logical_type_ref(), None | Some(LogicalType::String));
    if !is_text {
        return Err(format!("found another kind of column \"{column}\", expected text"));
    }
    checked(|| Type::group_type_builder(schema.name()).with_fields(vec![found]).build())
}

/// The library allocates as many values as a dictionary's header declares, and aborts the process if that fails.
/// Each value takes four bytes for its length.
fn check_dictionaries(reader: &SerializedFileReader<Source>, column: &str) -> Result<(), String> {
    for group in 0..reader.num_row_groups() {
        let columns = reader.metadata().row_group(group).columns();
        let Some(place) = columns.iter().position(|chunk| chunk.column_path().parts() == [column]) else { continue };
        let mut pages = checked(|| reader.get_row_group(group)?.get_column_page_reader(place))?;
        while let Some(page) = checked(|| pages.peek_next_page())? {
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

fn check_compression(metadata: &ParquetMetaData, column: &str) -> Result<(), String> {
    let chunks = metadata.row_groups().iter().flat_map(|group| group.columns());
    for chunk in chunks.filter(|chunk| chunk.column_path().parts() == [column]) {
        let found = chunk.compression();
        if !matches!(found, Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::ZSTD(_)) {
            // Without its level.
            let found = found.to_string();
            let found = found.split('(').next().unwrap_or_default();
            return Err(format!("found \"{column}\" compressed with {found}, expected zstd, snappy or no compression"));
        }
    }
    Ok(())
}

/// The text of a row's only column; empty for null. The error says what was found.
fn text_of(row: Row) -> Result<String, &'static str> {
    match row.into_columns().pop().map(|(_, field)| field) {
        Some(Field::Str(text)) => Ok(text),
        Some(Field::Bytes(bytes)) => String::from_utf8(bytes.data().to_vec()).map_err(|_| "found other bytes"),
        Some(Field::Null) => Ok(String::new()),
        _ => Err("found another kind of value"),
    }
}
