//! Tests of finding and reading documents.

use super::*;

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("the folder is made");
    std::fs::write(&path, bytes).expect("the file is written");
    path
}

fn find(paths: &[PathBuf], field: &str, max_bytes: Option<u64>) -> Result<Corpus, Failure> {
    Corpus::find(&Places { paths, ..Places::default() }, field, max_bytes)
}

fn read(corpus: &Corpus) -> Result<(Vec<(String, String)>, usize), Failure> {
    let mut documents = Vec::new();
    let skipped = corpus.for_each(|piece| {
        documents.push((piece.name, piece.text));
        Ok(())
    })?;
    Ok((documents, skipped.skipped.len()))
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

#[test]
fn folders_are_read_in_order_without_hidden_and_foreign_files() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path();
    write(root, "b.md", b"bee");
    write(root, "a/two.rs", b"fn two() {}");
    write(root, "a/one.txt", "über".as_bytes());
    write(root, "a/.hidden", b"no");
    write(root, "logo.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n");
    write(root, "picture.png", &[0xff, 0xd8, 0xff]);
    write(root, "void.txt", b"");
    let lines = write(root, "c.jsonl", b"{\"text\": \"x\", \"id\": 1}\n\n{\"text\": \"y\"}\n");
    let corpus = find(&[root.to_owned(), lines], "text", None).expect("the files are there");
    let expected = pairs(&[
        ("a/one.txt", "über"),
        ("a/two.rs", "fn two() {}"),
        ("b.md", "bee"),
        ("c.jsonl:1", "x"),
        ("c.jsonl:3", "y"),
        ("c.jsonl:1", "x"),
        ("c.jsonl:3", "y"),
    ]);
    assert_eq!(read(&corpus).expect("good text"), (expected, 2));
}

#[cfg(unix)]
#[test]
fn links_that_are_not_followed_are_named() {
    use std::os::unix::fs::symlink;

    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path();
    write(root, "a.txt", b"a");
    for (to, from) in [("a.txt", "b.txt"), (".", "cycle"), ("annex/objects/x", "lost.jsonl")] {
        symlink(to, root.join(from)).expect("a link");
    }
    let corpus = find(&[root.to_owned()], "text", None).expect("the files are there");
    assert_eq!(read(&corpus).expect("good text").0, pairs(&[("a.txt", "a"), ("b.txt", "a")]));
    assert_eq!(corpus.notes(), ["left out, because they are links to folders or to nothing: cycle, lost.jsonl"]);
}

#[test]
fn the_cap_counts_whole_documents() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let lines = write(folder.path(), "c.jsonl", b"{\"t\": \"123\"}\n{\"t\": \"456\"}\n{\"t\": \"7\"}\n");
    let corpus = find(&[lines], "t", Some(6)).expect("the file is there");
    let (documents, _) = read(&corpus).expect("good text");
    assert_eq!(documents, pairs(&[("c.jsonl:1", "123"), ("c.jsonl:2", "456")]));
}

#[test]
fn bad_lines_and_files_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let error = |name: &str, bytes: &[u8]| {
        let path = write(folder.path(), name, bytes);
        let failure = find(&[path], "text", None).and_then(|corpus| read(&corpus)).expect_err("text that must be refused");
        assert_eq!(failure.status, 1);
        failure.to_string().replace(&format!("{}", folder.path().join("").display()), "")
    };
    assert_eq!(
        error("a.jsonl", b"{\"text\": \"x\"}\n{\"body\": \"y\"}\n"),
        "a.jsonl: line 2: found fields body, expected the text in \"text\"\nhint: name it with --text-field; `a.b` is the field b of a"
    );
    assert!(error("b.jsonl", b"[1,").starts_with("b.jsonl: item 1, character 1: found a number, expected a JSON object"));
    assert!(error("c.parquet", b"PAR1").starts_with("c.parquet: found "));
    assert!(find(&["no/such".into()], "text", None).is_err());
}

#[test]
fn a_long_file_comes_in_pieces() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = "größe und kleine ".repeat(PIECE_BYTES / 5);
    for (name, content) in [("a.txt", text.clone()), ("b.jsonl", format!("{{\"text\": \"{text}\"}}"))] {
        let path = write(folder.path(), name, content.as_bytes());
        let corpus = |max| find(std::slice::from_ref(&path), "text", max).expect("the file is there");
        let (pieces, skipped) = read(&corpus(None)).expect("good text");
        assert!(pieces.len() > 3 && skipped == 0);
        assert_eq!(pieces.iter().map(|(_, piece)| piece.as_str()).collect::<String>(), text);
        assert!(read(&corpus(Some(text.len() as u64 - 1))).expect("good text").0.is_empty(), "a document is not cut by the cap");
        assert_eq!(read(&corpus(Some(text.len() as u64))).expect("good text").0.len(), pieces.len());
    }
    let bad = write(folder.path(), "c.txt", &[text.as_bytes(), &[0xc3]].concat());
    let corpus = find(&[bad], "text", None).expect("the file is there");
    assert_eq!(read(&corpus).expect("no text"), (Vec::new(), 1));
}

#[test]
fn what_a_parquet_file_lacks_is_said() {
    use crate::data::parquet_samples::parquet;
    use ::parquet::basic::Compression;

    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = write(folder.path(), "a.parquet", &parquet(Compression::SNAPPY, true));
    let corpus = |field: &str| find(std::slice::from_ref(&path), field, None).expect("the file is there");
    let expected = pairs(&[("a.parquet:1", "one"), ("a.parquet:3", "größer"), ("a.parquet:4", "one")]);
    let (documents, _) = read(&corpus("text")).expect("good text");
    assert_eq!(documents[..3], expected);
    assert_eq!((documents[3].0.as_str(), documents.len()), ("a.parquet:5", 6));
    let message = read(&corpus("body")).expect_err("no such column").to_string();
    let expected = ": found columns id, text, expected \"body\"\nhint: name it with --text-field; `a.b` is the column b of a";
    assert!(message.ends_with(expected), "{message}");
}

/// The library would make room for all that a dictionary announces, and end the process where there is none.
#[test]
fn a_parquet_dictionary_that_announces_more_than_it_holds_is_refused() {
    use crate::data::parquet_samples::parquet;
    use ::parquet::basic::Compression;
    use ::parquet::file::reader::{FileReader, SerializedFileReader};

    let mut bytes = parquet(Compression::UNCOMPRESSED, true);
    let reader = SerializedFileReader::new(bytes::Bytes::from(bytes.clone())).expect("a good file");
    let page = reader.metadata().row_group(1).column(1).dictionary_page_offset().expect("a dictionary") as usize;
    // In Thrift's compact form: field 7 is the dictionary's header, whose field 1 is the number of values, here 2.
    let header = bytes[page..].windows(3).position(|window| window == [0x4c, 0x15, 0x04]).expect("a dictionary's header");
    bytes[page + header + 2] = 0x7e; // 63
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = write(folder.path(), "a.parquet", &bytes);
    let corpus = find(&[path], "text", None).expect("the file is there");
    let message = read(&corpus).expect_err("too many values").to_string();
    assert!(message.ends_with("a.parquet: found a dictionary of 63 values in 19 bytes, expected a Parquet file"), "{message}");
}

/// Texts of a file's documents, or the error without its path.
fn texts(name: &str, bytes: &[u8], field: &str) -> Result<Vec<String>, String> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = write(folder.path(), name, bytes);
    let texts = find(&[path], field, None).and_then(|corpus| read(&corpus));
    let texts = texts.map(|(documents, _)| documents.into_iter().map(|(_, text)| text).collect());
    texts.map_err(|failure| failure.to_string().replace(&folder.path().join("").display().to_string(), ""))
}

const TWO: &str = "{\"text\": \"one\"}\n{\"text\": \"two\"}\n";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("gzip")
}

#[test]
fn records_are_read_under_any_name_and_in_any_packing() {
    let list = b"[{\"text\": \"one\"},\n {\"text\": \"two\"}]";
    let twice = [gzip(&TWO.as_bytes()[..16]), gzip(&TWO.as_bytes()[16..])].concat();
    let marked = format!("\u{feff}{TWO}");
    for name in ["a.jsonl", "a.JSONL", "a.ndjson", "a.json", "a.txt", "part-00000", "a.jsonl.gz", "a.gz", "a.json.GZ"] {
        let files = [TWO.as_bytes(), marked.as_bytes(), list, &gzip(TWO.as_bytes()), &gzip(list), &twice];
        for (number, bytes) in files.into_iter().enumerate() {
            assert_eq!(texts(name, bytes, "text"), Ok(vec!["one".to_owned(), "two".to_owned()]), "{name} {number}");
        }
    }
    let crlf = TWO.replace('\n', "\r\n");
    for text in [crlf.as_str(), TWO.trim_end(), "{\"text\": null}\n{\"text\": \"one\"}\n\n{\"text\":\"two\"}"] {
        assert_eq!(texts("a.json", text.as_bytes(), "text"), Ok(vec!["one".to_owned(), "two".to_owned()]), "{text}");
    }
    assert_eq!(texts("a.json", b"{\"text\": \"only\"}", "text"), Ok(vec!["only".to_owned()]));
    assert_eq!(texts("a.json", b"{\"m\": [{\"c\": \"x\"}, {\"c\": \"y\"}]}", "m.c"), Ok(vec!["x\ny".to_owned()]));
}

#[test]
fn other_texts_are_documents_as_they_stand() {
    for (name, text) in [
        ("package.json", "{\n  \"name\": \"kettle\"\n}\n"),
        ("one.json", "{\"name\": \"kettle\"}"),
        ("numbers.json", "[1, 2]"),
        ("empty.json", "[]"),
        ("broken.json", "{\"text\": "),
        ("a.rs", "{ block }"),
        ("a.txt", "PAR1 is how Parquet begins, and how this text does"),
        ("a.txt", "<!DOCTYPE html><p>a page among texts"),
        ("a.txt.gz", "no gzip at all"),
        ("a.csv", "text,label\none,1\n"),
    ] {
        assert_eq!(texts(name, text.as_bytes(), "text"), Ok(vec![text.to_owned()]), "{name}");
    }
    assert_eq!(texts("a.txt", "\u{feff}größe".as_bytes(), "text"), Ok(vec!["größe".to_owned()]));
    assert_eq!(texts("a.txt", b"a\r\nb\0", "text"), Ok(vec!["a\r\nb\0".to_owned()]));
    // Skipped, with a note.
    let utf_16: Vec<u8> = "words in UTF-16".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut tar = vec![b'a'; 600];
    tar[257..262].copy_from_slice(b"ustar");
    let marked = [b"\xff\xfe", &utf_16[..]].concat();
    for bytes in [utf_16, marked, gzip(&tar), gzip(&gzip(b"a")), b"PK\x03\x04".to_vec(), vec![0xff]] {
        assert_eq!(texts("a.txt", &bytes, "text"), Ok(Vec::new()), "{}", bytes.escape_ascii());
    }
}

#[test]
fn what_would_be_read_wrongly_is_refused_by_name() {
    const LFS: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n";
    let cut = gzip(TWO.repeat(99).as_bytes());
    let utf_16: Vec<u8> = TWO.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let wide: String = (0..5000).map(|i| format!("\"{}{i}\": 1, ", "key".repeat(30))).collect();
    let wide = format!("{{{wide}\"x\": 1}}");
    let cases: [(&str, &[u8], &str); 19] = [
        ("a.jsonl.gz", &cut[..cut.len() - 9], "cannot read a.jsonl.gz: its gzip stream ends in the middle"),
        ("a.txt.zst", b"", "a.txt.zst: found an empty file, expected compressed text"),
        ("a.txt", LFS, "a.txt: found a Git LFS pointer, expected text"),
        ("a.parquet", LFS, "a.parquet: found a Git LFS pointer, expected text"),
        ("a.jsonl", b"<html>", "a.jsonl: found an HTML page, expected JSON lines"),
        ("a.json", b"<!doctype html>", "a.json: found an HTML page, expected text"),
        ("a.txt.gz", b"<?xml version='1.0'?><Error/>", "a.txt.gz: found an XML document, expected text"),
        ("a.parquet", b"PK\x03\x04", "a.parquet: found a zip archive, expected a Parquet file"),
        ("a.parquet", &cut, "a.parquet: found Parquet compressed with gzip, expected Parquet itself"),
        ("a.jsonl", &utf_16, "a.jsonl: found UTF-16 or UTF-32 text, expected JSON lines in UTF-8"),
        (
            "a.jsonl",
            b"{\"text\": \"\xed\xa0\xbd\"}",
            "a.jsonl: line 1, column 11: found bytes that are not UTF-8, expected a JSON object",
        ),
        ("a.jsonl", b"{\"text\": \"a\"}{}", "a.jsonl: line 1, column 14: found '{', expected nothing behind the object"),
        ("a.jsonl", b"\x1e{\"text\": \"a\"}", "a.jsonl: line 1, column 1: found '\\u{1e}', expected a JSON object"),
        ("a.jsonl", b"{\n\"text\": \"a\"\n}", "a.jsonl: line 1, column 2: found the end, expected a field's name"),
        ("a.json", b"[{\"text\": \"a\"}, {\"te", "a.json: item 2: found the end of the file, expected `]`"),
        (
            "a.json",
            b"{\"text\": \"a\"}\n{\"text\": \"",
            "a.json: line 2, column 11: found the end within a string, expected `\"`",
        ),
        ("a.json", b"{\"text\": \n{\"text\": \"a\"}\n", "a.json: line 1, column 9: found the end, expected a value"),
        ("a.json", b"[{\"a\": 1}, {}]", "a.json: item 1: found fields a, expected the text in \"text\""),
        ("a.jsonl", wide.as_bytes(), "a.jsonl: line 1: found fields "),
    ];
    for (name, bytes, expected) in cases {
        let error = texts(name, bytes, "text").expect_err(expected);
        let sentence = error.split("\nhint: ").next().unwrap_or_default();
        assert!(sentence == expected || (expected.ends_with(' ') && sentence.starts_with(expected)), "{sentence}");
        assert!(error.chars().count() < 300, "{error}");
    }
}

#[test]
fn what_was_met_is_counted_with_its_first_place() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let lines = "{\"t\": [\"a\", \"b\"]}\n{\"t\": null}\n{\"t\": \"\\ud83d\\ud83d\"}\n{\"t\": []}\n{\"t\": \"\"}\n";
    let path = write(folder.path(), "a.jsonl", lines.as_bytes());
    let corpus = find(&[path], "t", None).expect("the file is there");
    let seen = corpus.for_each(|_| Ok(())).expect("good lines");
    let shown = [seen.joined, seen.empty, seen.surrogates].map(|tally| format!("{} {}", tally.count, tally.first));
    assert_eq!(shown, ["1 a.jsonl:1", "3 a.jsonl:2", "2 a.jsonl:3"]);
}

#[test]
fn a_data_sets_folder_gives_its_rows_and_names_what_it_leaves_out() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path();
    write(root, "README.md", b"a card");
    write(root, "dataset_infos.json", b"{\"default\": {}}\n");
    write(root, "data/train.jsonl", TWO.as_bytes());
    write(root, "data/val.jsonl", TWO.as_bytes());
    write(root, "data/test.jsonl", b"{\"text\": \"three\"}");
    write(root, "notes.txt", b"a text");
    let except = [root.join("data/val.jsonl")];
    let corpus = Corpus::find(&Places { paths: &[root.to_owned()], except: &except, ..Places::default() }, "text", None);
    let corpus = corpus.expect("the files are there");
    let expected = pairs(&[
        ("data/test.jsonl:1", "three"),
        ("data/train.jsonl:1", "one"),
        ("data/train.jsonl:2", "two"),
        ("notes.txt", "a text"),
    ]);
    assert_eq!(read(&corpus).expect("good text").0, expected);
    assert_eq!(
        corpus.notes(),
        [
            "1 files of --val are left out of --text",
            "left out, because they describe the data beside them: README.md, dataset_infos.json",
            "read like the rest, though their names are those of validation or test data: data/test.jsonl"
        ]
    );
    let named = find(&[root.join("README.md"), root.join("data/train.jsonl")], "text", None).expect("the files are there");
    assert_eq!(read(&named).expect("good text").0.len(), 3);
}

#[test]
fn plain_text_that_is_named_after_a_split_is_said_too() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let names = ["dev/a.txt", "test.rs", "validation.txt.gz", "wiki.train.tokens", "wiki.valid.tokens"];
    for name in names {
        let bytes = if name.ends_with(".gz") { gzip(b"words") } else { b"words".to_vec() };
        write(folder.path(), name, &bytes);
    }
    let corpus = find(&[folder.path().to_owned()], "text", None).expect("the files are there");
    assert_eq!(read(&corpus).expect("good text").0, names.map(|name| (name.to_owned(), "words".to_owned())));
    let files = "dev/a.txt, validation.txt.gz, wiki.valid.tokens";
    let said = format!("read like the rest, though their names are those of validation or test data: {files}");
    assert_eq!(corpus.notes(), [said]);
}
