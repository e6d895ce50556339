//! No bytes make a reader panic: neither arbitrary ones nor good files with damage.

use std::time::{Duration, Instant};

use bytes::Bytes;
use parquet::basic::Compression;
use parquet::file::reader::{FileReader, SerializedFileReader};
use proptest::prelude::*;

use super::*;

/// Calls a reader in a folder of its own.
fn read(reader: impl FnOnce(&Scratch)) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    reader(&Scratch::new(folder.path()));
}

/// How a good file is damaged: bytes changed in some places, then perhaps cut.
type Damage = (Vec<(prop::sample::Index, u8)>, Option<prop::sample::Index>);

fn damage() -> impl Strategy<Value = Damage> {
    (prop::collection::vec(any::<(prop::sample::Index, u8)>(), 1..4), prop::option::weighted(0.2, any::<prop::sample::Index>()))
}

fn damaged(good: &[u8], (changes, end): &Damage) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for (at, value) in changes {
        let at = at.index(bytes.len());
        bytes[at] ^= value;
    }
    if let Some(end) = end {
        bytes.truncate(end.index(good.len()));
    }
    bytes
}

#[test]
fn good_files_of_every_kind_are_taken() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let scratch = Scratch::new(folder.path());
    for shard in samples::shards() {
        let path = scratch.file("0.bin", &shard);
        assert_eq!(TokenStream::open(&path, 4, DataFormat::Auto).expect("a good shard").len(), 3);
        scratch.shards(&shard, Some(&samples::index()), 4);
    }
    let path = scratch.file("0.bin", &[1, 0, 2, 0, 3, 0]);
    scratch.file("0.idx", &samples::megatron_index(8, 2));
    assert_eq!(TokenStream::open(&path, 4, DataFormat::Auto).expect("a good pair").len(), 3);
    let texts_at = |name: &str, field: &str, bytes: &[u8]| {
        let paths = [scratch.file(name, bytes)];
        let corpus = Corpus::find(&Places { paths: &paths, ..Places::default() }, field, None).expect("the file is there");
        let mut texts = Vec::new();
        let read = corpus.for_each(|piece| {
            texts.push(piece.text);
            Ok(())
        });
        read.expect("a good file");
        texts
    };
    let texts = |name: &str, bytes: &[u8]| texts_at(name, "text", bytes);
    for parquet in samples::parquets() {
        assert_eq!(texts("a.parquet", &parquet), ["one", "größer", "one", "one", "größer", "one"]);
    }
    let nested = samples::nested_parquet(Compression::SNAPPY);
    assert_eq!(texts_at("b.parquet", "texts.text", &nested), ["one\ngrößer", "two", "one\ngrößer", "two"]);
    assert_eq!(texts("a.jsonl", &samples::json_lines()), ["größe", "🦀"]);
    assert_eq!(texts("a.json", &samples::json()), ["größe"]);
    assert_eq!(texts_at("b.json", "texts.text", &samples::json()), ["a\n\u{fffd}"]);
    for (number, text) in samples::texts().iter().enumerate() {
        let expected = if number < 4 {
            vec!["größer und kleiner, ".repeat(20)]
        } else {
            ["größe", "🦀"].repeat(2).into_iter().map(str::to_owned).collect()
        };
        assert_eq!(texts("a", text), expected, "{number}");
    }
    for json in samples::tokenizer_jsons() {
        Tokenizer::load(&scratch.file("tokenizer.json", &json)).expect("a good tokenizer");
    }
    scratch.tokenizer_config(&samples::tokenizer_config());
    for model in samples::sentencepiece() {
        Tokenizer::load(&scratch.file("tokenizer.model", &model)).expect("a good model");
    }
    Config::load(Some(&scratch.file("config.toml", &samples::config())), &[]).expect("a good configuration");
    let path = scratch.file("model.safetensors", &samples::safetensors());
    assert_eq!(Reader::open(&path).expect("good tensors").names(), ["a", "b"]);
    scratch.file("model.safetensors.index.json", &samples::weights_index());
    assert_eq!(Index::read(&scratch.folder).and_then(|index| index.files(&scratch.folder)).expect("a good index").len(), 2);
    let path = scratch.file(paths::METRICS, &samples::metrics());
    assert_eq!(read_metrics(&scratch.folder).expect("good metrics").len(), 5);
    assert_eq!(report::rows(&path).expect("good metrics").len(), 5);
    let measurements = String::from_utf8(samples::measurements()).expect("text");
    assert_eq!(compare::parse(&measurements).expect("good measurements")[0].rows.len(), 2);
    let path = scratch.file("metrics.jsonl.zst", &zstd::encode_all(&samples::study()[..], 1).expect("compressed"));
    assert_eq!(Kept::read(&path).expect("a good study").records.len(), 1);
}

/// The Parquet library panics on some of these; what it says must become the program's sentence.
#[test]
fn a_flipped_byte_in_a_parquet_file_never_panics() {
    for parquet in samples::parquets().into_iter().chain([samples::nested_parquet(Compression::SNAPPY)]) {
        for at in 0..parquet.len() {
            let mut bytes = parquet.clone();
            bytes[at] ^= 1 << (at % 8);
            read(|scratch| scratch.parquet(&bytes));
            bytes[at] = !parquet[at];
            read(|scratch| scratch.parquet(&bytes));
        }
    }
}

/// Two thousand million numbers of an unknown part of a page's header, where the file has some hundred bytes.
#[test]
fn what_a_parquet_page_announces_beyond_the_file_is_not_waited_for() {
    let mut bytes = samples::parquet(Compression::UNCOMPRESSED, false);
    let reader = SerializedFileReader::new(Bytes::from(bytes.clone())).expect("a good file");
    let page = reader.metadata().row_group(0).column(1).data_page_offset() as usize;
    // In Thrift's compact form: field 15, a list; of doubles, their number follows; 2³¹ - 1.
    bytes[page..page + 7].copy_from_slice(&[0xf9, 0xf7, 0xff, 0xff, 0xff, 0xff, 0x07]);
    let began = Instant::now();
    read(|scratch| scratch.parquet(&bytes));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read(|scratch| {
            scratch.tokenizer_json(&bytes);
            scratch.tokenizer_config(&bytes);
            scratch.sentencepiece(&bytes);
            scratch.config(&bytes);
            scratch.config_json(&bytes);
            scratch.state(&bytes);
            scratch.safetensors(&bytes);
            scratch.json_lines(&bytes);
            scratch.json(&bytes);
            scratch.parquet(&bytes);
            scratch.text(&bytes);
            scratch.weights_index(&bytes);
            scratch.metrics(&bytes);
            scratch.measurements(&bytes);
            scratch.study(&bytes);
        });
    }

    #[test]
    fn damaged_shards_are_refused_or_read(which in 0usize..3, damage in damage(), index in damage(), vocab in 1usize..6) {
        let bin = damaged(&samples::shards()[which], &damage);
        read(|scratch| {
            scratch.shards(&bin, None, vocab);
            scratch.shards(&bin, Some(&damaged(&samples::index(), &index)), vocab);
            scratch.shards(&[1, 0, 2, 0, 3, 0], Some(&damaged(&samples::megatron_index(8, 2), &index)), vocab);
        });
    }

    #[test]
    fn damaged_configurations_of_others_are_refused_or_read(which in 0usize..19, damage in damage()) {
        static GOOD: std::sync::LazyLock<Vec<Vec<u8>>> = std::sync::LazyLock::new(samples::config_json);
        read(|scratch| scratch.config_json(&damaged(&GOOD[which], &damage)));
    }

    #[test]
    fn damaged_texts_are_refused_or_read(which in 0usize..5, damage in damage()) {
        read(|scratch| scratch.text(&damaged(&samples::texts()[which], &damage)));
    }

    #[test]
    fn damaged_configurations_states_and_weights_are_refused_or_read(damage in damage(), step in any::<u64>()) {
        read(|scratch| {
            scratch.config(&damaged(&samples::config(), &damage));
            scratch.json_lines(&damaged(&samples::json_lines(), &damage));
            scratch.json(&damaged(&samples::json(), &damage));
            scratch.safetensors(&damaged(&samples::safetensors(), &damage));
            scratch.state(&damaged(&samples::state(step), &damage));
            scratch.weights_index(&damaged(&samples::weights_index(), &damage));
        });
    }

    #[test]
    fn damaged_results_are_refused_or_read(damage in damage()) {
        read(|scratch| {
            scratch.metrics(&damaged(&samples::metrics(), &damage));
            scratch.measurements(&damaged(&samples::measurements(), &damage));
            scratch.study(&damaged(&samples::study(), &damage));
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn damaged_tokenizers_are_refused_or_used(damage in damage(), which in 0usize..4) {
        static JSONS: std::sync::LazyLock<Vec<Vec<u8>>> = std::sync::LazyLock::new(samples::tokenizer_jsons);
        read(|scratch| {
            scratch.tokenizer_json(&damaged(&JSONS[which % JSONS.len()], &damage));
            scratch.tokenizer_config(&damaged(&samples::tokenizer_config(), &damage));
            scratch.sentencepiece(&damaged(&samples::sentencepiece()[which], &damage));
        });
    }
}
