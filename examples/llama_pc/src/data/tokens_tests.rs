//! Tests of the shard reader.

use proptest::prelude::*;

use super::*;

fn u32s(tokens: &[u32]) -> Vec<u8> {
    tokens.iter().flat_map(|token| token.to_le_bytes()).collect()
}

fn i64s(offsets: &[i64]) -> Vec<u8> {
    offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect()
}

fn llm_c(magic: u32, version: u32, count: u32, tokens: &[u8]) -> Vec<u8> {
    let mut bytes = u32s(&[magic, version, count]);
    bytes.resize(HEADER, 0);
    bytes.extend_from_slice(tokens);
    bytes
}

/// A folder with these files.
fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).expect("the file is written");
    }
    folder
}

fn all(path: &Path, vocab: usize) -> Result<Vec<u32>, Failure> {
    let stream = TokenStream::open(path, vocab, DataFormat::Auto)?;
    let mut tokens = Vec::new();
    stream.read(0..stream.len(), &mut tokens)?;
    Ok(tokens)
}

fn error(files: &[(&str, Vec<u8>)]) -> String {
    let folder = folder(files);
    let failure = all(folder.path(), 100).expect_err("data that must be refused");
    assert_eq!(failure.status, 1);
    failure.to_string().replace(&format!("{}", folder.path().display()), "data").replace('\\', "/")
}

#[test]
fn shards_read_as_one_stream() {
    let folder = folder(&[
        ("b.bin", u32s(&[4, 5])),
        ("a.bin", u32s(&[1, 2, 3])),
        ("y.idx", i64s(&[0, 2])),
        ("x.idx", i64s(&[0, 1, 3])),
        ("c.bin", Vec::new()),
        ("z.idx", i64s(&[0])),
        ("note.txt", vec![0]),
    ]);
    let stream = TokenStream::open(folder.path(), 6, DataFormat::Auto).expect("good shards");
    assert_eq!(stream.len(), 5);
    for from in 0..=5 {
        for to in from..=5 {
            let mut tokens = vec![9];
            stream.read(from..to, &mut tokens).expect("good tokens");
            let expected: Vec<u32> = (from..to).map(|token| token as u32 + 1).collect();
            assert_eq!(tokens[1..], expected);
        }
    }
}

#[test]
fn a_single_file_needs_no_index() {
    let folder = folder(&[("a.bin", u32s(&[7])), ("b.bin", u32s(&[8, 9])), ("b.idx", i64s(&[3]))]);
    assert_eq!(all(&folder.path().join("a.bin"), 10).expect("a good file"), [7]);
    assert!(all(&folder.path().join("b.bin"), 10).is_err(), "the index beside it counts another total");
}

#[test]
fn llm_c_files_are_read() {
    let folder = folder(&[
        ("gpt2.bin", llm_c(20_240_520, 1, 3, &[1, 0, 2, 0, 3, 1])),
        ("llama3.bin", llm_c(20_240_801, 7, 2, &u32s(&[4, 5]))),
    ]);
    assert_eq!(all(folder.path(), 300).expect("good files"), [1, 2, 259, 4, 5]);
}

#[test]
fn files_pair_by_their_names_without_extension() {
    let files =
        [("c4.bin", u32s(&[1, 2, 3])), ("c4.idx", i64s(&[0, 3])), ("c4.dedup.bin", u32s(&[4])), ("c4.dedup.idx", i64s(&[0, 1]))];
    assert_eq!(all(folder(&files).path(), 5).expect("good pairs"), [1, 2, 3, 4]);
}

#[test]
fn broken_files_name_file_place_found_and_expected() {
    assert_eq!(error(&[]), "data: found no .bin file, expected token shards\nhint: make shards of text with llama_pc prepare");
    assert_eq!(error(&[("a.bin", vec![])]), "data: found no tokens, expected at least one");
    assert_eq!(error(&[("a.bin", vec![1; 7])]), "data/a.bin: at byte 4: found 7 bytes, expected a multiple of 4");
    let hint = format!("\nhint: {USE_U16}");
    assert_eq!(error(&[("a.bin", vec![1; 6])]), format!("data/a.bin: at byte 4: found 6 bytes, expected a multiple of 4{hint}"));
    assert_eq!(
        error(&[("a.bin", u32s(&[1])), ("b.bin", u32s(&[1])), ("a.idx", i64s(&[1]))]),
        "data: found 2 .bin and 1 .idx files, expected pairs"
    );
    assert_eq!(
        error(&[("a.bin", u32s(&[1, 2])), ("a.idx", i64s(&[0, 3]))]),
        "data/a.idx: at byte 8: found a total of 3 tokens, expected the 2 tokens of data/a.bin"
    );
    assert_eq!(
        error(&[("a.bin", u32s(&[1, 2])), ("a.idx", i64s(&[0, 2, 1, 2]))]),
        "data/a.idx: at byte 16: found document offset 1, expected at least 2, because offsets never fall"
    );
    assert_eq!(
        error(&[("a.bin", u32s(&[1])), ("a.idx", vec![0; 7])]),
        "data/a.idx: at byte 0: found 7 bytes, expected a multiple of 8, and at least 8"
    );
    assert_eq!(
        error(&[("a.bin", u32s(&[1, 100]))]),
        "data/a.bin: at byte 4: found token 100, expected one below the vocabulary of 100"
    );
    assert_eq!(
        error(&[("a.bin", llm_c(20_240_520, 2, 0, &[]))]),
        "data/a.bin: at byte 4: found version 2, expected version 1 after magic 20240520"
    );
    assert_eq!(
        error(&[("a.bin", llm_c(20_240_801, 7, 2, &[0; 4]))]),
        "data/a.bin: at byte 8: found 1028 bytes, expected the 1032 bytes that the header counts"
    );
}

fn u16s(tokens: &[u16]) -> Vec<u8> {
    tokens.iter().flat_map(|token| token.to_le_bytes()).collect()
}

/// All tokens of a file in a format.
fn in_format(bytes: Vec<u8>, vocab: usize, format: DataFormat) -> Result<Vec<u32>, String> {
    let folder = folder(&[("a.bin", bytes)]);
    let path = folder.path().join("a.bin");
    let mut tokens = Vec::new();
    let read = TokenStream::open(&path, vocab, format).and_then(|stream| stream.read(0..stream.len(), &mut tokens));
    read.map(|()| tokens).map_err(|failure| failure.to_string().replace(&format!("{}", path.display()), "a.bin"))
}

#[test]
fn sixteen_bit_tokens_are_read_where_the_format_says_so_and_suspected_elsewhere() {
    let tokens: Vec<u16> = (1..=12).collect();
    let read: Vec<u32> = (1..=12).collect();
    assert_eq!(in_format(u16s(&tokens), 13, DataFormat::U16), Ok(read.clone()));
    assert_eq!(in_format(u32s(&read), 13, DataFormat::U32), Ok(read.clone()));
    let hint = format!("\nhint: {USE_U16}");
    assert_eq!(
        in_format(u16s(&tokens), 13, DataFormat::Auto),
        Err(format!("a.bin: at byte 0: found token 131073, expected one below the vocabulary of 13{hint}"))
    );
    // Of another vocabulary they are nobody's.
    let error = in_format(u16s(&tokens), 12, DataFormat::Auto).expect_err("no token below 12");
    assert!(!error.contains("hint"), "{error}");
    let error = in_format(u32s(&read), 13, DataFormat::U16).expect_err("32-bit tokens");
    assert!(error.starts_with("a.bin: at byte 2: found every other 16-bit token 0"), "{error}");
    // A header says more than the format, and must agree with it.
    let llm = llm_c(20_240_520, 1, 12, &u16s(&tokens));
    assert_eq!(in_format(llm.clone(), 13, DataFormat::U16), Ok(read));
    let error = in_format(llm.clone(), 13, DataFormat::U32).expect_err("16-bit tokens");
    assert!(error.starts_with("a.bin: found u16 tokens by its header or index"), "{error}");
    assert_eq!(
        in_format(llm[..1046].to_vec(), 60_000, DataFormat::U16),
        Err("a.bin: at byte 8: found 1046 bytes, expected the 1048 bytes that the header counts".to_owned())
    );
    let header = u32s(&[20_240_520, 3]);
    assert_eq!(in_format(header.clone(), 60_000, DataFormat::U16), Ok(vec![55_432, 308, 3, 0]));
    assert!(in_format(header, 60_000, DataFormat::Auto).is_err());
}

#[test]
fn tokens_of_32_bits_are_suspected_in_large_vocabularies_too() {
    let tokens: Vec<u32> = (0..12).map(|i| 12_345 * i).collect();
    let error = in_format(u32s(&tokens), 150_000, DataFormat::U16).expect_err("32-bit tokens");
    assert!(error.starts_with("a.bin: at byte 2: found every other 16-bit token at most 2, expected 16-bit tokens"), "{error}");
    assert!(in_format(u32s(&tokens), 65_536, DataFormat::U16).is_ok(), "no upper halves in this vocabulary");
    let tokens: Vec<u16> = (1..=16).collect();
    assert_eq!(in_format(u16s(&tokens), 150_000, DataFormat::U16), Ok((1..=16).collect()));
}

#[test]
fn what_is_no_token_file_is_named() {
    for (bytes, what) in [
        (&b"\x93NUMPY\x01\x00"[..], "a NumPy array"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html>", "an HTML page"),
        (b"PK\x03\x04", "a zip archive"),
    ] {
        for format in [DataFormat::Auto, DataFormat::U16] {
            let error = in_format(bytes.to_vec(), 100, format).expect_err("no tokens");
            assert!(error.starts_with(&format!("a.bin: found {what}, expected tokens\nhint: ")), "{error}");
        }
    }
    let folder = folder(&[("a.bin", u32s(&[1])), ("a.idx", b"version https://git-lfs.github.com/spec/v1\n".to_vec())]);
    let error = all(folder.path(), 10).expect_err("no index").to_string();
    assert!(error.contains("a.idx: found a Git LFS pointer, expected an index of documents"), "{error}");
    let error = all(&folder.path().join("a.idx"), 10).expect_err("an index").to_string();
    assert!(error.ends_with("a.idx: found an index, expected the .bin beside it"), "{error}");
}

/// Megatron's index of sequences that follow each other in the order given by `places`.
fn megatron(code: u8, lengths: &[i32], places: &[i64]) -> Vec<u8> {
    let mut bytes = megatron::MAGIC.to_vec();
    bytes.extend(1u64.to_le_bytes());
    bytes.push(code);
    bytes.extend([lengths.len() as u64, 2].map(u64::to_le_bytes).concat());
    bytes.extend(lengths.iter().flat_map(|length| length.to_le_bytes()));
    bytes.extend(places.iter().chain(&[0, lengths.len() as i64]).flat_map(|place| place.to_le_bytes()));
    bytes
}

#[test]
fn megatrons_pairs_are_read_in_every_type_and_order() {
    let tokens = [1i64, 2, 3, 4, 5];
    let in_order = vec![1, 2, 3, 4, 5];
    let words = |width: usize| tokens.iter().flat_map(|token| token.to_le_bytes()[..width].to_vec()).collect::<Vec<u8>>();
    for (code, width) in [(1, 1), (2, 1), (3, 2), (4, 4), (5, 8), (8, 2)] {
        let pair = |places: &[i64]| folder(&[("a.bin", words(width)), ("a.idx", megatron(code, &[2, 3], places))]);
        let width = width as i64;
        assert_eq!(all(pair(&[0, 2 * width]).path(), 6).expect("a good pair"), in_order, "type {code}");
        let moved = pair(&[3 * width, 0]);
        assert_eq!(all(moved.path(), 6).expect("a good pair"), [4, 5, 1, 2, 3], "type {code}");
        let stream = TokenStream::open(moved.path(), 6, DataFormat::Auto).expect("a good pair");
        let mut part = Vec::new();
        stream.read(1..4, &mut part).expect("good tokens");
        assert_eq!(part, [5, 1, 2]);
        let error = all(pair(&[0, 2 * width]).path(), 5).expect_err("a token too high").to_string();
        assert!(error.contains("found token 5, expected one below the vocabulary of 5") && !error.contains("hint"), "{error}");
    }
    let negative = folder(&[("a.bin", vec![1, 0, 0xff, 0xff, 3, 0]), ("a.idx", megatron(3, &[3], &[0]))]);
    assert!(all(negative.path(), 9).expect_err("a negative token").to_string().contains("at byte 2: found token -1"));
    let longer = folder(&[("a.bin", vec![0; 12]), ("a.idx", megatron(8, &[2, 3], &[0, 4]))]);
    let error = all(longer.path(), 9).expect_err("more tokens than the index counts").to_string();
    assert!(error.contains("a.idx: at byte 42: found sequences of 5 tokens in all in Megatron's index"), "{error}");
}

#[test]
fn a_missing_path_is_named() {
    let failure = TokenStream::open(Path::new("no/such"), 10, DataFormat::Auto).err().expect("no such folder");
    assert_eq!((failure.status, failure.to_string().as_str()), (1, "cannot read no/such: no such file or folder"));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(
        bin in proptest::collection::vec(any::<u8>(), 0..1100),
        idx in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
        magic in proptest::option::of(0usize..2),
    ) {
        let mut bin = bin;
        if let (Some(which), true) = (magic, bin.len() >= 8) {
            bin[..4].copy_from_slice(&LLM_C[which].0.to_le_bytes());
            bin[4..8].copy_from_slice(&LLM_C[which].1.to_le_bytes());
        }
        let mut files = vec![("a.bin", bin)];
        files.extend(idx.map(|idx| ("a.idx", idx)));
        let folder = folder(&files);
        if let Ok(tokens) = all(folder.path(), 1 << 16) {
            prop_assert!(tokens.iter().all(|token| *token < 1 << 16));
        }
    }

    #[test]
    fn what_is_written_is_read(shards in proptest::collection::vec(proptest::collection::vec(0u32..50, 1..20), 1..5)) {
        let files: Vec<(String, Vec<u8>)> =
            shards.iter().enumerate().map(|(i, shard)| (format!("{i}.bin"), u32s(shard))).collect();
        let files: Vec<(&str, Vec<u8>)> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
        let folder = folder(&files);
        prop_assert_eq!(all(folder.path(), 50).expect("good shards"), shards.concat());
    }
}

#[cfg(unix)] // sparse files
#[test]
fn tokens_beyond_four_gigabytes_are_those_of_their_place() {
    use std::os::unix::fs::FileExt;
    let folder = folder(&[]);
    let path = folder.path().join("a.bin");
    let file = File::create(&path).expect("a file");
    file.set_len(5 << 30).and_then(|()| file.write_all_at(&u32s(&[7, 8]), (4 << 30) + 4)).expect("a sparse file");
    let mut tokens = Vec::new();
    let stream = TokenStream::open(&path, 9, DataFormat::Auto).expect("tokens");
    stream.read((1 << 30)..(1 << 30) + 4, &mut tokens).expect("tokens");
    assert_eq!(tokens, [0, 7, 8, 0]);
}
