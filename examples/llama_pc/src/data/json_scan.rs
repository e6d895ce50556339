//! The text at a path of one JSON object, without building the rest of it.
//!
//! Reads what Python's `json` reads: half of a surrogate pair (`\ud83d`) becomes U+FFFD and is counted, `NaN` and `Infinity` are
//! numbers, the last of several equal keys counts, and values that nobody asked for may be nested to any depth.

use std::borrow::Cow;

/// What stands at the path.
#[derive(Debug, PartialEq)]
pub enum Found {
    Text(String),
    Null,
    /// There is no such field.
    Missing,
    /// Another kind of value, with its article.
    Other(&'static str),
}

/// A text with what happened on the way to it.
#[derive(Debug, PartialEq)]
pub struct Scan {
    pub found: Found,
    /// Halves of surrogate pairs in the text that became U+FFFD.
    pub surrogates: u64,
    /// Whether the text consists of several items of a list, joined by newlines.
    pub joined: bool,
}

/// Where an object is wrong, as an offset in bytes, and how.
#[derive(Debug, PartialEq)]
pub struct Wrong {
    pub at: usize,
    pub found: String,
}

/// Lists within lists on the way to the text.
const MAX_NESTING: usize = 64;

/// The text at `path` in the object `json`: a field, or several joined by `.`. A field whose own name has the dots comes first. A
/// list on the way or at the end stands for all its items.
pub fn text_at(json: &str, path: &str) -> Result<Scan, Wrong> {
    let mut scanner = Scanner { json, at: 0 };
    scanner.space();
    if scanner.peek() != Some(b'{') {
        const EXPECTED: &str = "a JSON object";
        return Err(match scanner.kind() {
            Some(kind) => scanner.wrong(format!("{kind}, expected {EXPECTED}")),
            None => scanner.unexpected(EXPECTED),
        });
    }
    let found = scanner.object(path, 0)?;
    scanner.end()?;
    Ok(found.into_scan())
}

/// The names of an object's fields; empty for anything else.
pub fn fields(json: &str) -> Vec<String> {
    let mut scanner = Scanner { json, at: 0 };
    let mut names = Vec::new();
    scanner.space();
    if scanner.peek() == Some(b'{') {
        let _ = scanner.members(|scanner, name| {
            names.push(name.to_owned());
            scanner.skip()
        });
    }
    names
}

/// What has been found at a path so far.
#[derive(Default)]
struct Gathered {
    texts: Vec<String>,
    surrogates: u64,
    null: bool,
    list: bool,
    other: Option<&'static str>,
}

impl Gathered {
    fn add(&mut self, more: Self) {
        self.texts.extend(more.texts);
        self.surrogates += more.surrogates;
        self.null |= more.null;
        self.list |= more.list;
        self.other = self.other.or(more.other);
    }

    fn into_scan(self) -> Scan {
        let joined = self.texts.len() > 1;
        let found = match self.other {
            Some(kind) => Found::Other(kind),
            None if !self.texts.is_empty() => Found::Text(self.texts.join("\n")),
            None if self.null || self.list => Found::Null,
            None => Found::Missing,
        };
        Scan { found, surrogates: self.surrogates, joined }
    }
}

struct Scanner<'a> {
    json: &'a str,
    /// Offset of the next byte; always on a character's boundary where an error may be made.
    at: usize,
}

impl<'a> Scanner<'a> {
    fn peek(&self) -> Option<u8> {
        self.json.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Whether the next byte is this one, which is then passed.
    fn take(&mut self, byte: u8) -> bool {
        let taken = self.peek() == Some(byte);
        self.at += usize::from(taken);
        taken
    }

    fn wrong(&self, found: String) -> Wrong {
        Wrong { at: self.at, found }
    }

    /// An error about the next character.
    fn unexpected(&self, expected: &str) -> Wrong {
        let rest = self.json.get(self.at..).unwrap_or_default();
        let found = rest.chars().next().map_or("the end".to_owned(), |c| format!("{c:?}"));
        self.wrong(format!("{found}, expected {expected}"))
    }

    /// What kind of value begins here, if any does.
    fn kind(&self) -> Option<&'static str> {
        Some(match self.peek()? {
            b'{' => "an object",
            b'[' => "a list",
            b'"' => "a string",
            b't' | b'f' => "true or false",
            b'n' => "null",
            b'-' | b'0'..=b'9' | b'N' | b'I' => "a number",
            _ => return None,
        })
    }

    fn end(&mut self) -> Result<(), Wrong> {
        self.space();
        if self.at < self.json.len() { Err(self.unexpected("nothing behind the object")) } else { Ok(()) }
    }

    /// Passes an object; `member` passes the value of each field.
    fn members(&mut self, mut member: impl FnMut(&mut Self, &str) -> Result<(), Wrong>) -> Result<(), Wrong> {
        self.at += 1;
        self.space();
        if self.take(b'}') {
            return Ok(());
        }
        loop {
            let name = self.name()?;
            member(self, &name)?;
            self.space();
            if self.take(b'}') {
                return Ok(());
            }
            if !self.take(b',') {
                return Err(self.unexpected("`,` or `}`"));
            }
        }
    }

    /// Passes a list; `item` passes each item.
    fn items(&mut self, mut item: impl FnMut(&mut Self) -> Result<(), Wrong>) -> Result<(), Wrong> {
        self.at += 1;
        self.space();
        if self.take(b']') {
            return Ok(());
        }
        loop {
            self.space();
            item(self)?;
            self.space();
            if self.take(b']') {
                return Ok(());
            }
            if !self.take(b',') {
                return Err(self.unexpected("`,` or `]`"));
            }
        }
    }

    /// A field's name, its colon and the space behind.
    fn name(&mut self) -> Result<Cow<'a, str>, Wrong> {
        self.space();
        if self.peek() != Some(b'"') {
            return Err(self.unexpected("a field's name"));
        }
        let name = self.string(&mut 0)?;
        self.space();
        if !self.take(b':') {
            return Err(self.unexpected("`:`"));
        }
        self.space();
        Ok(name)
    }

    /// Passes an object and gathers what stands at `path` in it.
    fn object(&mut self, path: &str, nesting: usize) -> Result<Gathered, Wrong> {
        let (mut literal, mut within) = (None, Gathered::default());
        self.members(|scanner, name| {
            if name == path {
                literal = Some(scanner.target(nesting)?);
            } else if let Some(rest) = path.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')) {
                within = scanner.descend(rest, nesting)?;
            } else {
                scanner.skip()?;
            }
            Ok(())
        })?;
        Ok(literal.unwrap_or(within))
    }

    /// Passes a value on the way to the text.
    fn descend(&mut self, path: &str, nesting: usize) -> Result<Gathered, Wrong> {
        match self.peek() {
            Some(b'{') => self.object(path, self.deeper(nesting)?),
            Some(b'[') => {
                let (mut all, nesting) = (Gathered::default(), self.deeper(nesting)?);
                let mut count = 0;
                self.items(|scanner| {
                    count += 1;
                    all.add(scanner.descend(path, nesting)?);
                    Ok(())
                })?;
                // An empty list has no text; a list of objects without the field has another name for it.
                all.list |= count == 0;
                Ok(all)
            }
            Some(b'n') => self.skip().map(|()| Gathered { null: true, ..Gathered::default() }),
            _ => self.skip().map(|()| Gathered::default()),
        }
    }

    /// Passes the value at the end of the path.
    fn target(&mut self, nesting: usize) -> Result<Gathered, Wrong> {
        let mut all = Gathered::default();
        match self.peek() {
            Some(b'"') => {
                let mut surrogates = 0;
                all.texts.push(self.string(&mut surrogates)?.into_owned());
                all.surrogates = surrogates;
            }
            Some(b'n') => {
                self.skip()?;
                all.null = true;
            }
            Some(b'[') => {
                all.list = true;
                let nesting = self.deeper(nesting)?;
                self.items(|scanner| {
                    all.add(scanner.target(nesting)?);
                    Ok(())
                })?;
            }
            _ => {
                all.other = self.kind();
                self.skip()?;
            }
        }
        Ok(all)
    }

    fn deeper(&self, nesting: usize) -> Result<usize, Wrong> {
        if nesting < MAX_NESTING {
            return Ok(nesting + 1);
        }
        Err(self.wrong(format!("a text below {MAX_NESTING} lists and objects, expected fewer")))
    }

    /// Passes any value, without recursion.
    fn skip(&mut self) -> Result<(), Wrong> {
        // The opening brackets that are still open.
        let mut open = Vec::new();
        loop {
            self.space();
            match self.peek() {
                Some(bracket @ (b'{' | b'[')) => {
                    self.at += 1;
                    self.space();
                    if !self.take(bracket + 2) {
                        if bracket == b'{' {
                            self.name()?;
                        }
                        open.push(bracket);
                        continue;
                    }
                }
                _ => self.scalar()?,
            }
            // A value has ended, and perhaps those around it.
            loop {
                let Some(&bracket) = open.last() else { return Ok(()) };
                self.space();
                // In ASCII, `}` and `]` stand two behind their counterparts.
                if self.take(bracket + 2) {
                    open.pop();
                    continue;
                }
                if !self.take(b',') {
                    return Err(self.unexpected(if bracket == b'{' { "`,` or `}`" } else { "`,` or `]`" }));
                }
                if bracket == b'{' {
                    self.name()?;
                }
                break;
            }
        }
    }

    /// Passes a string, a number or a word.
    fn scalar(&mut self) -> Result<(), Wrong> {
        if self.peek() == Some(b'"') {
            return self.string(&mut 0).map(drop);
        }
        let rest = &self.json[self.at..];
        let word = ["true", "false", "null", "NaN", "Infinity", "-Infinity"].into_iter().find(|word| rest.starts_with(word));
        let length = word.map(str::len).or_else(|| number(rest.as_bytes()));
        self.at += length.ok_or_else(|| self.unexpected("a value"))?;
        Ok(())
    }

    /// Passes a string.
    fn string(&mut self, surrogates: &mut u64) -> Result<Cow<'a, str>, Wrong> {
        self.at += 1;
        let mut text = Cow::Borrowed("");
        loop {
            let begin = self.at;
            let special = |byte: &u8| *byte == b'"' || *byte == b'\\' || *byte < 0x20;
            let rest = &self.json.as_bytes()[begin..];
            self.at += rest.iter().position(special).unwrap_or(rest.len());
            let plain = &self.json[begin..self.at];
            if text.is_empty() {
                text = Cow::Borrowed(plain);
            } else {
                text.to_mut().push_str(plain);
            }
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(text);
                }
                Some(b'\\') => text.to_mut().push(self.escape(surrogates)?),
                Some(_) => return Err(self.unexpected("it escaped")),
                None => return Err(self.wrong("the end within a string, expected `\"`".to_owned())),
            }
        }
    }

    /// Passes a backslash and what it escapes.
    fn escape(&mut self, surrogates: &mut u64) -> Result<char, Wrong> {
        let code = self.json.as_bytes().get(self.at + 1);
        let simple = match code {
            Some(b'u') => None,
            Some(b'"' | b'\\' | b'/') => code.copied().map(char::from),
            Some(b'b') => Some('\u{8}'),
            Some(b'f') => Some('\u{c}'),
            Some(b'n') => Some('\n'),
            Some(b'r') => Some('\r'),
            Some(b't') => Some('\t'),
            _ => return Err(self.wrong("a backslash before something else, expected an escape such as `\\n`".to_owned())),
        };
        if let Some(c) = simple {
            self.at += 2;
            return Ok(c);
        }
        let unit = self.unit(self.at).ok_or_else(|| self.wrong("`\\u` without four digits, expected them".to_owned()))?;
        self.at += 6;
        let mut code = unit;
        if (0xd800..0xdc00).contains(&unit)
            && let Some(low) = self.unit(self.at).filter(|low| (0xdc00..0xe000).contains(low))
        {
            self.at += 6;
            code = 0x10000 + ((unit - 0xd800) << 10 | (low - 0xdc00));
        }
        Ok(char::from_u32(code).unwrap_or_else(|| {
            *surrogates += 1;
            char::REPLACEMENT_CHARACTER
        }))
    }

    /// The UTF-16 unit of a `\uXXXX` at an offset.
    fn unit(&self, at: usize) -> Option<u32> {
        let bytes = self.json.as_bytes().get(at..at + 6)?;
        let digits = bytes.strip_prefix(b"\\u")?;
        digits.iter().try_fold(0, |unit, digit| Some(unit << 4 | char::from(*digit).to_digit(16)?))
    }
}

/// The length of the number at the beginning of the bytes, in JSON's grammar.
fn number(bytes: &[u8]) -> Option<usize> {
    let digits = |from: usize| bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let begin = usize::from(bytes.first() == Some(&b'-'));
    let whole = digits(begin);
    if whole == 0 || (whole > 1 && bytes[begin] == b'0') {
        return None;
    }
    let mut at = begin + whole;
    if bytes.get(at) == Some(&b'.') {
        let fraction = digits(at + 1);
        if fraction == 0 {
            return None;
        }
        at += 1 + fraction;
    }
    if let Some(b'e' | b'E') = bytes.get(at) {
        let sign = usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
        let exponent = digits(at + 1 + sign);
        if exponent == 0 {
            return None;
        }
        at += 1 + sign + exponent;
    }
    Some(at)
}

#[cfg(test)]
#[path = "json_scan_tests.rs"]
mod tests;
