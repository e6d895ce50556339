//! A field of JSON objects as documents, one per line or item.

use std::ops::ControlFlow;

use super::json_records::{Layout, Records, Stop};
use super::json_scan::{Found, Scan, fields, text_at};
use super::source::{Document, Seen, Text, TextFile, Visit};
use crate::terminal::failure::Failure;
use crate::terminal::format::{clipped, listed};

/// Hands over the text of every object that has one; null counts as seen.
pub fn documents(
    file: &TextFile,
    layout: Layout,
    field: &str,
    seen: &mut Seen,
    visit: &mut Visit<'_>,
) -> Result<ControlFlow<()>, Failure> {
    let mut records = Records::new(file.open().map_err(|error| file.unread(&error))?, layout);
    let place = |number: u64| format!("{}: {} {number}", file.path.display(), noun(layout));
    loop {
        let record = match records.next() {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(ControlFlow::Continue(())),
            Err(Stop::Read(error)) => return Err(file.unread(&error)),
            Err(Stop::Broken(number, found)) => return Err(Failure::other(format!("{}: found {found}", place(number)))),
        };
        let Scan { found, surrogates, joined } =
            parse(record.bytes, field).map_err(|found| located(&place(record.number), layout, &found))?;
        let text = match found {
            Found::Text(text) => text,
            Found::Null => String::new(),
            Found::Missing => return Err(missing(&place(record.number), record.bytes, field)),
            Found::Other(kind) => {
                let field = clipped(field, 40);
                return Err(Failure::other(format!("{}: found {kind} in \"{field}\", expected text", place(record.number)))
                    .hint("name it with --text-field; `a.b` is the field b of a"));
            }
        };
        let name = format!("{}:{}", file.name, record.number);
        seen.empty.add(u64::from(text.is_empty()), &name);
        seen.surrogates.add(surrogates, &name);
        seen.joined.add(u64::from(joined), &name);
        if visit(Document { name, text: Text::Held(text) })?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
}

fn noun(layout: Layout) -> &'static str {
    match layout {
        Layout::Lines => "line",
        Layout::Array => "item",
    }
}

/// The text, or the column of an error, from 1 on, and what was found there.
fn parse(bytes: &[u8], field: &str) -> Result<Scan, (usize, String)> {
    let column = |before: &[u8]| String::from_utf8_lossy(before).chars().count() + 1;
    let json = std::str::from_utf8(bytes).map_err(|error| {
        (column(&bytes[..error.valid_up_to()]), "bytes that are not UTF-8, expected a JSON object".to_owned())
    })?;
    text_at(json, field).map_err(|wrong| (column(&bytes[..wrong.at]), wrong.found))
}

fn located(place: &str, layout: Layout, (column, found): &(usize, String)) -> Failure {
    let unit = match layout {
        Layout::Lines => "column",
        Layout::Array => "character",
    };
    Failure::other(format!("{place}, {unit} {column}: found {found}"))
}

fn missing(place: &str, bytes: &[u8], field: &str) -> Failure {
    let names = fields(std::str::from_utf8(bytes).unwrap_or_default());
    let found =
        if names.is_empty() { "an object without fields".to_owned() } else { format!("fields {}", clipped(&listed(&names), 80)) };
    Failure::other(format!("{place}: found {found}, expected the text in \"{}\"", clipped(field, 40)))
        .hint("name it with --text-field; `a.b` is the field b of a")
}
