//! Small good Parquet files, for tests to damage and for the fuzzer to begin with.

use std::sync::Arc;

use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

/// Two columns in two row groups; some values of `text` are null.
pub fn parquet(compression: Compression, dictionary: bool) -> Vec<u8> {
    let texts = (vec!["one", "größer", "one"], vec![1, 0, 1, 1], None);
    columns("optional binary text (UTF8);", compression, dictionary, &texts)
}

/// Lists of groups, `texts.text`, beside the rows' names: two texts, a null list, an empty list, a text and a null.
pub fn nested_parquet(compression: Compression) -> Vec<u8> {
    let lists = "optional group texts (LIST) { repeated group list { optional group element { optional binary text (UTF8); } } }";
    columns(lists, compression, true, &(vec!["one", "größer", "two"], vec![4, 4, 0, 1, 4, 3], Some(vec![0, 1, 0, 0, 0, 1])))
}

/// Values, definition levels, repetition levels.
type Column = (Vec<&'static str>, Vec<i16>, Option<Vec<i16>>);

/// A file of two row groups of four rows: their names, and a column of text.
fn columns(schema: &str, compression: Compression, dictionary: bool, texts: &Column) -> Vec<u8> {
    let schema = format!("message m {{ required binary id (UTF8); {schema} }}");
    let schema = Arc::new(parse_message_type(&schema).expect("a schema"));
    let properties = WriterProperties::builder().set_compression(compression).set_dictionary_enabled(dictionary).build();
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).expect("a writer");
    for _ in 0..2 {
        let mut group = writer.next_row_group().expect("a row group");
        let names: Column = (vec!["1", "2", "3", "4"], Vec::new(), None);
        for (values, defined, repeated) in [&names, texts] {
            let values: Vec<ByteArray> = values.iter().map(|value| ByteArray::from(*value)).collect();
            let defined = (!defined.is_empty()).then_some(defined.as_slice());
            let mut column = group.next_column().expect("a column").expect("one more");
            column.typed::<ByteArrayType>().write_batch(&values, defined, repeated.as_deref()).expect("values are written");
            column.close().expect("the column closes");
        }
        group.close().expect("the group closes");
    }
    writer.into_inner().expect("the file closes")
}

/// [`parquet`] in each way that FineWeb and its like are written.
pub fn parquets() -> Vec<Vec<u8>> {
    let zstd = Compression::ZSTD(ZstdLevel::default());
    let (gzip, brotli) = (Compression::GZIP(GzipLevel::default()), Compression::BROTLI(BrotliLevel::default()));
    let dictionary = [zstd, Compression::SNAPPY, gzip, brotli, Compression::LZ4, Compression::LZ4_RAW];
    let mut files: Vec<Vec<u8>> = dictionary.into_iter().map(|compression| parquet(compression, true)).collect();
    files.push(parquet(Compression::UNCOMPRESSED, false));
    files
}
