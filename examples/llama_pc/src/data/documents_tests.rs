//! Tests of finding and reading documents.

use super::*;

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("the folder is made");
    std::fs::write(&path, bytes).expect("the file is written");
    path
}

fn read(corpus: &Corpus) -> Result<(Vec<(String, String)>, usize), Failure> {
    let mut documents = Vec::new();
    let skipped = corpus.for_each(|document| {
        documents.push((document.name, document.text));
        Ok(())
    })?;
    Ok((documents, skipped.len()))
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
    let corpus = Corpus::find(&[root.to_owned(), lines], None, "text", None).expect("the files are there");
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
    let corpus = Corpus::find(&[lines], None, "t", Some(6)).expect("the file is there");
    let (documents, _) = read(&corpus).expect("good text");
    assert_eq!(documents, pairs(&[("c.jsonl:1", "123"), ("c.jsonl:2", "456")]));
}

#[test]
fn bad_lines_and_files_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let error = |name: &str, bytes: &[u8]| {
        let path = write(folder.path(), name, bytes);
        let corpus = Corpus::find(&[path], None, "text", None).expect("the file is there");
        let failure = read(&corpus).expect_err("text that must be refused");
        assert_eq!(failure.status, 1);
        failure.to_string().replace(&format!("{}", folder.path().join("").display()), "")
    };
    assert_eq!(
        error("a.jsonl", b"{\"text\": \"x\"}\n{\"body\": \"y\"}\n"),
        "a.jsonl: line 2: found no string \"text\", expected the text there\nhint: name the field with --text-field"
    );
    assert!(error("b.jsonl", b"[1,").starts_with("b.jsonl: line 1: found EOF"));
    assert!(error("c.parquet", b"PAR1").starts_with("c.parquet: found "));
    assert!(Corpus::find(&["no/such".into()], None, "text", None).is_err());
}

#[test]
fn parquet_columns_are_documents() {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::writer::SerializedFileWriter;
    use std::sync::Arc;

    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("a.parquet");
    let schema = "message m { required binary id (UTF8); optional binary text (UTF8); }";
    let schema = Arc::new(parquet::schema::parser::parse_message_type(schema).expect("a schema"));
    let file = File::create(&path).expect("the file is made");
    let mut writer = SerializedFileWriter::new(file, schema, Default::default()).expect("a writer");
    let mut group = writer.next_row_group().expect("a row group");
    let columns = [(vec!["1", "2", "3"], None), (vec!["one", "three"], Some([1i16, 0, 1]))];
    for (values, defined) in columns {
        let values: Vec<ByteArray> = values.into_iter().map(ByteArray::from).collect();
        let mut column = group.next_column().expect("a column").expect("one more");
        let defined = defined.as_ref().map(|levels| levels.as_slice());
        column.typed::<ByteArrayType>().write_batch(&values, defined, None).expect("values are written");
        column.close().expect("the column closes");
    }
    group.close().expect("the group closes");
    writer.close().expect("the file closes");

    let corpus = |field: &str| Corpus::find(std::slice::from_ref(&path), None, field, None).expect("the file is there");
    let expected = pairs(&[("a.parquet:1", "one"), ("a.parquet:3", "three")]);
    assert_eq!(read(&corpus("text")).expect("good text").0, expected);
    let message = read(&corpus("body")).expect_err("no such column").to_string();
    assert!(message.contains("found columns id, text, expected \"body\""), "{message}");
}
