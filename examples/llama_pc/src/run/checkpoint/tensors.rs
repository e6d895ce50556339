//! Tensors in the order and layout of a safetensors file, read from the device a piece at a time, so that neither the host nor the
//! device ever holds a second copy of a large model.

use crc32c::crc32c_append;
use polytape::exchange::{Exchange, Stored};
use polytape::gpu::Slice;
use polytape::safetensors::{Dtype, Header, pytorch_metadata};
use polytape::{Error, Gpu, Params, Role};

use crate::terminal::failure::Failure;

/// Bytes to read from the device at a time; a multiple of the 256 bytes that slices align to.
const PIECE: u64 = 16 << 20;

/// A file to write: its tensors, sorted by name.
pub struct TensorFile {
    pub name: &'static str,
    tensors: Vec<Stored>,
}

/// Part of a tensor's values.
pub struct Piece {
    /// The tensor's name.
    pub tensor: String,
    pub bytes: Vec<u8>,
}

/// Pieces of one rank that are read together.
#[derive(Default)]
struct Group<'a> {
    rank: usize,
    /// Tensor and bytes of each.
    pieces: Vec<(&'a str, u64)>,
    /// Where they are, at that rank.
    slices: Vec<Slice<'a>>,
    size: u64,
}

impl TensorFile {
    pub fn new(name: &'static str, mut tensors: Vec<Stored>) -> Self {
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Self { name, tensors }
    }

    /// The file's header.
    pub fn header(&self) -> Result<Header, Failure> {
        let tensors = self.tensors.iter().map(|stored| (stored.name.as_str(), stored.shape.as_slice()));
        Ok(Header::new(Dtype::F32, tensors, pytorch_metadata())?)
    }

    /// Reads all values in file order and passes them to `take`, which stops by returning false. Of several ranks, which all call this, the
    /// first takes what the others read and send to it.
    pub fn read(
        &self,
        gpu: &Gpu,
        ranks: Option<&dyn Exchange>,
        mut take: impl FnMut(Vec<Piece>) -> bool,
    ) -> polytape::Result<()> {
        let mut group = Group::default();
        for stored in &self.tensors {
            for part in &stored.parts {
                let bytes = 4 * part.len as u64;
                for begin in (0..bytes).step_by(PIECE as usize) {
                    let count = PIECE.min(bytes - begin);
                    if (part.rank != group.rank || group.size + count > PIECE) && !group.flush(gpu, ranks, &mut take)? {
                        return Ok(());
                    }
                    group.rank = part.rank;
                    group.size += count;
                    group.pieces.push((&stored.name, count));
                    // A tensor may be a part of a buffer.
                    let whole = part.tensor.as_ref().map(polytape::Tensor::slice);
                    group.slices.extend(whole.map(|whole| Slice { offset: whole.offset + begin, size: count, ..whole }));
                }
            }
        }
        group.flush(gpu, ranks, &mut take)?;
        Ok(())
    }
}

/// The CRC-32C of each trainable parameter, by name.
pub fn checksum(params: &Params) -> Result<u32, Failure> {
    let trainable = params.iter().filter(|(_, param)| param.role != Role::State);
    let stored = trainable.map(|(_, param)| Stored::whole(param.name.clone(), param.tensor.clone()));
    let mut sum = 0;
    TensorFile::new("weights", stored.collect()).read(params.gpu(), None, |pieces| {
        sum = pieces.iter().fold(sum, |sum, piece| crc32c_append(sum, &piece.bytes));
        true
    })?;
    Ok(sum)
}

impl Group<'_> {
    /// Takes the pieces, or sends them to the first rank, which takes them; false if that is not wanted any more.
    fn flush(
        &mut self,
        gpu: &Gpu,
        ranks: Option<&dyn Exchange>,
        take: &mut dyn FnMut(Vec<Piece>) -> bool,
    ) -> polytape::Result<bool> {
        let Self { rank, pieces, slices, .. } = std::mem::take(self);
        if pieces.is_empty() {
            return Ok(true);
        }
        let named = |bytes: Vec<Vec<u8>>| {
            let pieces = pieces.iter().zip(bytes);
            pieces.map(|((tensor, _), bytes)| Piece { tensor: (*tensor).to_owned(), bytes }).collect()
        };
        let Some(ranks) = ranks else { return Ok(take(named(gpu.read(&slices)?))) };
        match (rank == ranks.rank(), ranks.rank()) {
            (true, 0) => Ok(take(named(gpu.read(&slices)?))),
            (true, _) => {
                ranks.send(0, gpu.read(&slices)?.concat().into())?;
                Ok(true)
            }
            (false, 0) => {
                let message = ranks.receive(rank)?;
                let expected: u64 = pieces.iter().map(|(_, size)| size).sum();
                if message.len() as u64 != expected {
                    let problem = format!("sent {} bytes of a checkpoint, {expected} expected", message.len());
                    return Err(Error::Rank { rank, problem });
                }
                let mut rest = message.as_slice();
                let cut = |(_, size): &(&str, u64)| {
                    let (piece, others) = rest.split_at(*size as usize);
                    rest = others;
                    piece.to_vec()
                };
                Ok(take(named(pieces.iter().map(cut).collect())))
            }
            (false, _) => Ok(true),
        }
    }
}
