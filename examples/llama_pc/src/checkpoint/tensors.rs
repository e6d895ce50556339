//! Tensors in the order and layout of a safetensors file, read from the device a piece at a time, so that neither the host nor the
//! device ever holds a second copy of a large model.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use polytape::Tensor;
use polytape::gpu::Slice;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use crate::failure::Failure;

/// Bytes that are read from the device at a time; a multiple of the 256 bytes that slices align to.
const PIECE: u64 = 16 << 20;

/// The header's entry that is no tensor.
const METADATA: &str = "__metadata__";

/// A file to be: its header and its tensors, sorted by name.
pub struct TensorFile {
    pub name: &'static str,
    tensors: Vec<(String, Tensor)>,
}

/// Part of a tensor's values.
pub struct Piece {
    /// The tensor's name.
    pub tensor: String,
    pub bytes: Vec<u8>,
}

/// The names of a file's tensors, from its header alone.
pub fn names(path: &Path) -> Result<BTreeSet<String>, Failure> {
    let read = || {
        let mut file = File::open(path)?;
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let mut header = Vec::new();
        file.take(u64::from_le_bytes(length)).read_to_end(&mut header)?;
        Ok(header)
    };
    let header = read().map_err(|error| Failure::io("read", path, &error))?;
    let entries: BTreeMap<String, IgnoredAny> =
        serde_json::from_slice(&header).map_err(|error| Failure::other(format!("{}: {error}", path.display())))?;
    Ok(entries.into_keys().filter(|name| name != METADATA).collect())
}

impl TensorFile {
    pub fn new(name: &'static str, mut tensors: Vec<(String, Tensor)>) -> Self {
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        Self { name, tensors }
    }

    /// The length of the header, then the header: JSON with the type, shape and place of every tensor.
    pub fn header(&self) -> Vec<u8> {
        let mut entries = Map::new();
        entries.insert(METADATA.to_owned(), json!(BTreeMap::from([("format", "pt")])));
        let mut end = 0;
        for (name, tensor) in &self.tensors {
            let begin = end;
            end += tensor.bytes();
            let entry = json!({ "dtype": "F32", "shape": tensor.shape(), "data_offsets": [begin, end] });
            entries.insert(name.clone(), entry);
        }
        let mut json = Value::Object(entries).to_string().into_bytes();
        // Spaces, so that the values begin at a multiple of their size.
        json.resize(json.len().next_multiple_of(8), b' ');
        [&(json.len() as u64).to_le_bytes(), json.as_slice()].concat()
    }

    /// Bytes of all values.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|(_, tensor)| tensor.bytes()).sum()
    }

    /// Reads all values in the order of the file and hands them to `take`, which stops by returning false.
    pub fn read(&self, mut take: impl FnMut(Vec<Piece>) -> bool) -> Result<(), Failure> {
        let mut group: Vec<(&str, Slice<'_>)> = Vec::new();
        let mut size = 0;
        let mut flush = |group: &mut Vec<(&str, Slice<'_>)>| -> Result<bool, Failure> {
            let Some((_, tensor)) = self.tensors.first() else { return Ok(true) };
            let slices: Vec<Slice<'_>> = group.iter().map(|(_, slice)| *slice).collect();
            let values = tensor.gpu().read(&slices)?;
            let names = group.drain(..).map(|(name, _)| name.to_owned());
            Ok(take(names.zip(values).map(|(tensor, bytes)| Piece { tensor, bytes }).collect()))
        };
        for (name, tensor) in &self.tensors {
            for begin in (0..tensor.bytes()).step_by(PIECE as usize) {
                let count = PIECE.min(tensor.bytes() - begin);
                if size + count > PIECE && !flush(&mut group)? {
                    return Ok(());
                }
                if group.is_empty() {
                    size = 0;
                }
                size += count;
                group.push((name, Slice { offset: begin, size: count, ..tensor.slice() }));
            }
        }
        flush(&mut group)?;
        Ok(())
    }
}
