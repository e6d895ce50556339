//! Tensors in the order and layout of a safetensors file, read from the device a piece at a time, so that neither the host nor the
//! device ever holds a second copy of a large model.

use polytape::Tensor;
use polytape::gpu::Slice;
use polytape::safetensors::{Dtype, Header, pytorch_metadata};

use crate::terminal::failure::Failure;

/// Bytes to read from the device at a time; a multiple of the 256 bytes that slices align to.
const PIECE: u64 = 16 << 20;

/// A file to write: its tensors, sorted by name.
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

impl TensorFile {
    pub fn new(name: &'static str, mut tensors: Vec<(String, Tensor)>) -> Self {
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        Self { name, tensors }
    }

    /// The file's header.
    pub fn header(&self) -> Result<Header, Failure> {
        let tensors = self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shape()));
        Ok(Header::new(Dtype::F32, tensors, pytorch_metadata())?)
    }

    /// Reads all values in file order and passes them to `take`, which stops by returning false.
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
