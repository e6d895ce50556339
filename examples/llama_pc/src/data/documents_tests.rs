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
    assert_eq!(read(&corpus).expect("good text"), (expected, 1));
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
        let failure = find(&[path], "text", None).and_then(|corpus| read(&corpus)).err().expect("text that must be refused");
        assert_eq!(failure.status, 1);
        failure.to_string().replace(&format!("{}", folder.path().join("").display()), "")
    };
    assert_eq!(
        error("a.jsonl", b"{\"text\": \"x\"}\n{\"body\": \"y\"}\n"),
        "a.jsonl: line 2: found fields body, expected the text in \"text\"\nhint: name the field with --text-field; `a.b` is the field b of a"
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
    use crate::readers::samples::parquet;
    use ::parquet::basic::Compression;

    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = write(folder.path(), "a.parquet", &parquet(Compression::SNAPPY, true));
    let corpus = |field: &str| find(std::slice::from_ref(&path), field, None).expect("the file is there");
    let expected = pairs(&[("a.parquet:1", "one"), ("a.parquet:3", "größer"), ("a.parquet:4", "one")]);
    let (documents, _) = read(&corpus("text")).expect("good text");
    assert_eq!(documents[..3], expected);
    assert_eq!((documents[3].0.as_str(), documents.len()), ("a.parquet:5", 6));
    let message = read(&corpus("body")).expect_err("no such column").to_string();
    let expected =
        ": found columns id, text, expected \"body\"\nhint: name the column with --text-field; `a.b` is the column b of a";
    assert!(message.ends_with(expected), "{message}");
}

/// The library would make room for all that a dictionary announces, and end the process where there is none.
#[test]
fn a_parquet_dictionary_that_announces_more_than_it_holds_is_refused() {
    use crate::readers::samples::parquet;
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
