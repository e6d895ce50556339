//! safetensors files: bit-exact round trips, and errors that name the file.

use std::collections::HashMap;
use std::path::Path;

use polytape::llama::Llama;
use polytape::safetensors::{Reader, save};
use polytape::{Error, Tensor};

use super::small::config;
use crate::device;

fn text<T>(result: polytape::Result<T>) -> String {
    result.map(|_| ()).expect_err("an error").to_string()
}

/// Values of every class of float32.
fn values() -> Vec<f32> {
    let bits = [0, 1, 0x8000_0000, 0x8000_0001, 0x7f7f_ffff, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0x3f80_0001, 0x0080_0000];
    bits.map(f32::from_bits).to_vec()
}

fn written(path: &Path) {
    let gpu = device::default();
    let first = Tensor::from_slice(gpu, &values(), &[2, 5]).expect("a tensor");
    let second = Tensor::from_slice(gpu, &[1.0, 2.0, 3.0], &[3]).expect("a tensor");
    save(path, &[("b".into(), first), ("a".into(), second)], HashMap::new()).expect("a file");
}

#[test]
fn what_was_saved_comes_back_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    written(&path);
    let file = Reader::open(&path).expect("a checkpoint");
    assert_eq!(file.names(), ["a", "b"]);
    for gpu in device::all() {
        let tensor = file.tensor(gpu, "b").expect("a tensor");
        assert_eq!(tensor.shape(), [2, 5]);
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(tensor.to_vec().expect("read-back")), bits(values()));
    }
    // Writing again replaces the file and leaves no temporary file.
    written(&path);
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 1);
}

#[test]
fn a_file_that_is_no_checkpoint_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    written(&path);
    let whole = std::fs::read(&path).expect("the file");
    let longer = [&whole[..], &[0; 4]].concat();
    let contents: [&[u8]; 6] =
        [&whole[..whole.len() - 5], &whole[..40], &whole[..3], &[], b"PK\x03\x04 something else entirely", &longer];
    for content in contents {
        std::fs::write(&path, content).expect("another content");
        let text = text(Reader::open(&path));
        assert!(text.starts_with(&format!("{}: not a safetensors file", path.display())), "{text}");
    }
    let missing = folder.path().join("none.safetensors");
    assert!(matches!(Reader::open(&missing), Err(Error::Io { path, .. }) if path == missing));
}

#[test]
fn a_tensor_that_does_not_fit_is_named_with_its_file() {
    let (folder, gpu) = (tempfile::tempdir().expect("a folder"), device::default());
    let path = folder.path().join("model.safetensors");
    written(&path);
    let (file, path) = (Reader::open(&path).expect("a checkpoint"), path.display());
    assert_eq!(text(file.tensor(gpu, "c")), format!("{path}: tensor `c` is missing"));
    assert_eq!(text(file.tensor_of(gpu, "c", &[3])), format!("{path}: tensor `c` is missing"));
    assert_eq!(text(file.tensor_of(gpu, "b", &[5, 2])), format!("{path}: tensor `b` has shape [2, 5], [5, 2] expected"));
    let loaded = Llama::load(gpu, config(), |name, shape| file.tensor_of(gpu, name, shape));
    assert_eq!(text(loaded), format!("{path}: tensor `model.embed_tokens.weight` is missing"));
    let unchecked = Llama::load(gpu, config(), |_, _| file.tensor(gpu, "b"));
    assert_eq!(text(unchecked), "load: `model.embed_tokens.weight` has shape [2, 5], [50, 32] expected");
}

#[test]
fn a_file_that_cannot_be_written_leaves_the_old_one() {
    let (folder, gpu) = (tempfile::tempdir().expect("a folder"), device::default());
    let nowhere = folder.path().join("no/such/folder/model.safetensors");
    let tensor = Tensor::from_slice(gpu, &[1.0], &[1]).expect("a tensor");
    let error = save(&nowhere, &[("a".into(), tensor.clone())], HashMap::new()).expect_err("no such folder");
    assert!(matches!(error, Error::Io { path, .. } if path == nowhere));
    let path = folder.path().join("model.safetensors");
    written(&path);
    let before = std::fs::read(&path).expect("the file");
    // The temporary name is a folder, so writing fails.
    std::fs::create_dir(folder.path().join("model.safetensors.partial")).expect("a folder");
    assert!(save(&path, &[("a".into(), tensor)], HashMap::new()).is_err());
    assert_eq!(std::fs::read(&path).expect("the file"), before);
}
