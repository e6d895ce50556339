//! What kind of text a file holds, by its name and by its content.
//!
//! A name settles `.jsonl` and `.parquet`; `.json` is used for JSON lines, for a list of objects and for a single value alike, and data
//! are published under any name, so everything else is looked into.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use super::foreign::{self, recognised};
use super::json_records::{Layout, Records};
use super::json_scan::{Found, text_at};
use super::packing::{Packing, unpacked_name};
use super::source::{Entry, Kind, TextFile};
use crate::terminal::failure::Failure;

/// Something that the user should know about the choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remark {
    /// JSON under another name.
    HoldsJson,
    /// A `.json` that is a document itself.
    OneValue,
    /// A list of objects, or lines of them, none of which has the field.
    LacksField,
    /// A table of columns, which is not read as one.
    Table,
    /// Data that may be meant for validation or tests.
    Split,
    /// Not compressed, though its name says so.
    NotPacked,
}

/// Extensions of JSON lines.
const JSON_LINES: [&str; 4] = ["jsonl", "ndjson", "jsonlines", "ldjson"];
/// Extensions of plain text that is no source.
const PLAIN: [&str; 4] = ["txt", "text", "raw", "tokens"];
/// Bytes in which the first two records must end, as a single value may be as long as the file.
const MAX_LOOK: u64 = 64 << 20;
const PARQUET: &[u8] = b"PAR1";

/// Looks into a file. `named` tells whether the user named it, rather than a folder.
pub fn look(entry: Entry, field: &str, named: bool) -> Result<(TextFile, Option<Remark>), Failure> {
    let Entry { path, name } = entry;
    let mut file = TextFile { path, name, packing: Packing::Plain, kind: Kind::Whole };
    let (inner, says_packed) = unpacked_name(&file.name);
    let (inner, says_packed) = (inner.to_owned(), says_packed);
    let fail = |error: io::Error| Failure::io("read", &file.path, &error);
    if !std::fs::metadata(&file.path).map_err(fail)?.is_file() {
        let found = format!("{}: found a pipe or a device, expected a file", file.path.display());
        return Err(Failure::other(found).hint("text is read more than once: write it to a file first"));
    }
    let mut head = foreign::head(File::open(&file.path).map_err(fail)?).map_err(fail)?;
    if says_packed && head.is_empty() {
        return Err(Failure::other(format!("{}: found an empty file, expected compressed text", file.path.display())));
    }
    file.packing = Packing::of(&head);
    if file.packing != Packing::Plain {
        head = file.open().and_then(foreign::head).map_err(|error| file.unread(&error))?;
    }
    let extension = inner.rsplit_once('.').map_or(String::new(), |(_, extension)| extension.to_ascii_lowercase());
    let (kind, remark) = kind(&file, &head, &extension, field, named)?;
    file.kind = kind;
    let not_packed = (says_packed && file.packing == Packing::Plain && kind == Kind::Whole).then_some(Remark::NotPacked);
    let is_corpus = kind.is_data() || (kind == Kind::Whole && PLAIN.contains(&extension.as_str()));
    let split = (is_corpus && is_named_as_split(&file.name)).then_some(Remark::Split);
    Ok((file, remark.or(not_packed).or(split)))
}

/// Whether a name, or that of a folder, contains a word that data sets use for held-out data.
fn is_named_as_split(name: &str) -> bool {
    const WORDS: [&str; 7] = ["val", "valid", "validation", "dev", "eval", "test", "heldout"];
    name.to_lowercase().split(|c: char| !c.is_alphanumeric()).any(|word| WORDS.contains(&word))
}

fn kind(file: &TextFile, head: &[u8], extension: &str, field: &str, named: bool) -> Result<(Kind, Option<Remark>), Failure> {
    let known = recognised(head);
    let named_packed = unpacked_name(&file.name).1;
    if known == Some(foreign::LFS) && !named && !named_packed && !holds_text(extension) {
        // A picture among sources, for instance.
        return Ok((Kind::Other(foreign::LFS.what), None));
    }
    // A failed download leaves a web page in place of data.
    let in_place = extension == "json" || (file.packing == Packing::Plain && named_packed);
    if let Some(foreign) = known.filter(|foreign| *foreign == foreign::LFS || (foreign.is_text && in_place)) {
        return Err(foreign.failure(&file.path, "text"));
    }
    if extension == "parquet" || (head.starts_with(PARQUET) && ends_as_parquet(file)?) {
        return parquet(file, head).map(|()| (Kind::Parquet, None));
    }
    let zeros = with_zeros(head);
    if JSON_LINES.contains(&extension) {
        if let Some(foreign) = known {
            return Err(foreign.failure(&file.path, "JSON lines"));
        }
        if let Some(what) = zeros {
            return Err(Failure::other(format!("{}: found {what}, expected JSON lines in UTF-8", file.path.display())));
        }
        let layout = if first_byte(head) == Some(b'[') { Layout::Array } else { Layout::Lines };
        return Ok((Kind::Json(layout), None));
    }
    // Words may begin with the letters of Parquet.
    let words = head.starts_with(PARQUET) && head.iter().all(|byte| *byte >= 0x20 || byte.is_ascii_whitespace());
    if let Some(foreign) = known.filter(|foreign| !foreign.is_text && !words) {
        return Ok((Kind::Other(foreign.what), None));
    }
    if let Some(what) = zeros {
        return Ok((Kind::Other(what), None));
    }
    if ["csv", "tsv"].contains(&extension) {
        return Ok((Kind::Whole, Some(Remark::Table)));
    }
    json_or_whole(file, head, extension == "json", field, named)
}

/// Whether files of this extension are the text of a corpus.
fn holds_text(extension: &str) -> bool {
    JSON_LINES.contains(&extension) || ["", "csv", "json", "md", "parquet", "tsv", "txt"].contains(&extension)
}

/// What a file without a telling name is, by its first records.
fn json_or_whole(
    file: &TextFile,
    head: &[u8],
    named_json: bool,
    field: &str,
    by_user: bool,
) -> Result<(Kind, Option<Remark>), Failure> {
    let whole = (Kind::Whole, named_json.then_some(Remark::OneValue));
    let layout = match first_byte(head) {
        Some(b'{') => Layout::Lines,
        Some(b'[') => Layout::Array,
        _ => return Ok(whole),
    };
    let first = first_records(file, layout, field)?;
    // What stands beside an object with the text may be damaged, and reading it says so.
    if first.contains(&Some(true)) {
        return Ok((Kind::Json(layout), (!named_json).then_some(Remark::HoldsJson)));
    }
    if !matches!((layout, &first[..]), (_, [Some(_), Some(_)]) | (Layout::Array, [Some(_)])) {
        return Ok(whole);
    }
    if by_user || (named_json && layout == Layout::Lines) {
        // Data without a doubt, and reading them says which fields they have.
        return Ok((Kind::Json(layout), None));
    }
    Ok((Kind::Whole, Some(Remark::LacksField)))
}

/// Of the first two records: whether they are objects, and whether those have the field.
fn first_records(file: &TextFile, layout: Layout, field: &str) -> Result<Vec<Option<bool>>, Failure> {
    let reader = file.open().map_err(|error| file.unread(&error))?;
    let mut records = Records::new(reader.take(MAX_LOOK), layout);
    let mut found = Vec::new();
    for _ in 0..2 {
        let record = match records.next() {
            Ok(Some(record)) => std::str::from_utf8(record.bytes).ok().and_then(|text| text_at(text, field).ok()),
            Ok(None) => break,
            // Reading it says so, if it is data at all.
            Err(_) => None,
        };
        found.push(record.map(|scan| scan.found != Found::Missing));
    }
    Ok(found)
}

/// The first byte that is neither white space nor a byte order mark.
fn first_byte(head: &[u8]) -> Option<u8> {
    head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start().first().copied()
}

/// What text in UTF-16 and most binary files are: they have zeros, which are UTF-8 as well.
fn with_zeros(head: &[u8]) -> Option<&'static str> {
    const UTF_16: &str = "UTF-16 or UTF-32 text";
    if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") {
        return Some(UTF_16);
    }
    // Without a mark, English has a zero in every other place.
    let zeros = |first| head.iter().skip(first).step_by(2).filter(|byte| **byte == 0).count();
    match (zeros(0), zeros(1)) {
        (even, odd) if head.len() < 4 || 3 * (even + odd) <= head.len() => None,
        (0, _) | (_, 0) => Some(UTF_16),
        _ => Some("a binary file"),
    }
}

/// What can be said of a Parquet file before the library reads it.
fn parquet(file: &TextFile, head: &[u8]) -> Result<(), Failure> {
    if file.packing != Packing::Plain {
        let (path, packing) = (file.path.display(), file.packing.name());
        return Err(Failure::other(format!("{path}: found Parquet compressed with {packing}, expected Parquet itself"))
            .hint("unpack it first: Parquet is read from its end"));
    }
    match recognised(head) {
        Some(foreign) if !head.starts_with(PARQUET) => Err(foreign.failure(&file.path, "a Parquet file")),
        _ => Ok(()),
    }
}

/// Text may begin with the letters of Parquet; Parquet ends with them, too.
fn ends_as_parquet(file: &TextFile) -> Result<bool, Failure> {
    if file.packing != Packing::Plain {
        return Ok(true);
    }
    let last = || {
        let mut open = File::open(&file.path)?;
        open.seek(SeekFrom::End(-4))?;
        let mut last = [0; 4];
        open.read_exact(&mut last).map(|()| last)
    };
    Ok(last().map_err(|error| file.unread(&error))? == PARQUET)
}
