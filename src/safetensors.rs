//! Reads and writes safetensors files. Writes are atomic: to a temporary file beside the target, synced, then renamed.
//!
//! Streaming in both directions: tensors are written one by one and read in chunks.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

pub use ::safetensors::Dtype;
use ::safetensors::tensor::{Metadata, TensorInfo};

use crate::error::{Error, Result};
use crate::files;
use crate::gpu::{Gpu, Slice};
use crate::tensor::Tensor;

/// Values per upload.
const CHUNK: usize = 4 << 20;

/// Maximum header size in bytes, as in the safetensors crate.
const HEADER_LIMIT: u64 = 100_000_000;

/// The name under which the header holds the metadata.
const METADATA: &str = "__metadata__";

fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.to_path_buf(), source }
}

fn failed(path: &Path, problem: impl std::fmt::Display) -> Error {
    Error::File { path: path.to_path_buf(), problem: problem.to_string() }
}

/// Writes named tensors as float32, sorted by name, with `metadata`. Errors: as [`Header::new`], and what the system says.
pub fn save(path: &Path, tensors: &[(String, Tensor)], metadata: HashMap<String, String>) -> Result<()> {
    let mut sorted: Vec<&(String, Tensor)> = tensors.iter().collect();
    sorted.sort_by_key(|(name, _)| name);
    let header = Header::new(Dtype::F32, sorted.iter().map(|(name, tensor)| (name.as_str(), tensor.shape())), metadata)?;
    files::replace(path, "partial", |file| {
        let io = |source| io(path, source);
        let mut writer = Writer::new(file, &header).map_err(io)?;
        for (_, tensor) in sorted {
            writer.put(bytemuck::cast_slice(&tensor.to_vec()?)).map_err(io)?;
        }
        writer.finish().map(drop).map_err(io)
    })
}

/// The metadata that PyTorch programs expect: `transformers` rejects a file without it.
pub fn pytorch_metadata() -> HashMap<String, String> {
    HashMap::from([("format".to_owned(), "pt".to_owned())])
}

/// The start of a safetensors file: header length and JSON header, padded to 8 bytes so that the values, which follow tensor by
/// tensor, are aligned.
#[derive(Debug)]
pub struct Header {
    bytes: Vec<u8>,
    values: u64,
}

impl Header {
    /// For tensors of one type; `tensors` are names and shapes in the order of the values. An error where two have one name, or one has
    /// that of the metadata.
    pub fn new<'a>(
        dtype: Dtype,
        tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>,
        metadata: HashMap<String, String>,
    ) -> Result<Self> {
        let (mut names, mut end) = (HashSet::from([METADATA]), 0);
        let entry = |(name, shape): (&'a str, &'a [usize])| {
            if !names.insert(name) {
                return Err(Error::Value(format!("safetensors: tensor name `{name}`: used twice or reserved")));
            }
            let begin = end;
            end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
            Ok((name.to_string(), TensorInfo { dtype, shape: shape.to_vec(), data_offsets: (begin, end) }))
        };
        let entries = tensors.into_iter().map(entry).collect::<Result<Vec<_>>>()?;
        let invalid = |error: &dyn std::fmt::Display| Error::Value(format!("safetensors: {error}"));
        let header = Metadata::new(Some(metadata), entries).map_err(|error| invalid(&error))?;
        let mut json = serde_json::to_vec(&header).map_err(|error| invalid(&error))?;
        json.resize(json.len().next_multiple_of(8), b' ');
        Ok(Self { bytes: [&(json.len() as u64).to_le_bytes(), json.as_slice()].concat(), values: end as u64 })
    }
}

/// Streams a safetensors file: the header, then the tensors' bytes in its order.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    remaining: u64,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    pub fn new(mut out: W, header: &Header) -> std::io::Result<Self> {
        out.write_all(&header.bytes)?;
        Ok(Self { out, remaining: header.values })
    }

    /// Bytes of values still to be written.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// Appends little-endian values; an error beyond the size in the header.
    pub fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let remaining = self.remaining.checked_sub(bytes.len() as u64);
        self.remaining = remaining.ok_or_else(|| std::io::Error::other("more values than the header announces"))?;
        self.out.write_all(bytes)
    }

    /// Returns the output; an error if the file is incomplete. Neither flushes nor syncs.
    pub fn finish(self) -> std::io::Result<W> {
        match self.remaining {
            0 => Ok(self.out),
            missing => Err(std::io::Error::other(format!("{missing} bytes of values are missing"))),
        }
    }
}

/// An open safetensors file: its header in memory, its tensors on disk.
pub struct Reader {
    path: PathBuf,
    file: Mutex<File>,
    header: Metadata,
    /// File offset of the values.
    values: u64,
}

impl Reader {
    /// Opens a file and checks its header.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(|source| io(path, source))?;
        let foreign = |problem: &dyn std::fmt::Display| failed(path, format!("not a safetensors file: {problem}"));
        let bytes = file.metadata().map_err(|source| io(path, source))?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(|error| foreign(&error))?;
        let length = u64::from_le_bytes(length);
        if length > HEADER_LIMIT.min(bytes.saturating_sub(8)) {
            return Err(foreign(&format!("header of {length} bytes in a file of {bytes}")));
        }
        let mut json = vec![0; length as usize];
        file.read_exact(&mut json).map_err(|error| foreign(&error))?;
        let header: Metadata = serde_json::from_slice(&json).map_err(|error| foreign(&error))?;
        let expected = (8 + length).saturating_add(header.data_len() as u64);
        if bytes != expected {
            return Err(foreign(&format!("found {bytes} bytes, expected {expected} from its header")));
        }
        Ok(Self { path: path.to_path_buf(), file: Mutex::new(file), header, values: 8 + length })
    }

    /// Tensor names, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names = self.header.offset_keys();
        names.sort();
        names
    }

    /// [`Reader::tensor`]; an error unless it has this shape.
    pub fn tensor_of(&self, gpu: &Gpu, name: &str, shape: &[usize]) -> Result<Tensor> {
        let found = &self.info(name)?.shape;
        if found != shape {
            return Err(failed(&self.path, format!("tensor `{name}` has shape {found:?}, {shape:?} expected")));
        }
        self.tensor(gpu, name)
    }

    /// Loads a float32, float16 or bfloat16 tensor by name, through a host buffer of bounded size.
    pub fn tensor(&self, gpu: &Gpu, name: &str) -> Result<Tensor> {
        self.load(gpu, name, 0, &self.info(name)?.shape)
    }

    /// Loads some rows of a tensor: a range of its first dimension.
    pub fn rows(&self, gpu: &Gpu, name: &str, rows: Range<usize>) -> Result<Tensor> {
        let shape = &self.info(name)?.shape;
        let within = shape.first().is_some_and(|&all| !rows.is_empty() && rows.end <= all);
        if !within {
            return Err(failed(&self.path, format!("tensor `{name}` has shape {shape:?}, rows {rows:?} asked for")));
        }
        let columns: usize = shape[1..].iter().product();
        self.load(gpu, name, rows.start * columns, &[&[rows.len()], &shape[1..]].concat())
    }

    fn load(&self, gpu: &Gpu, name: &str, first: usize, shape: &[usize]) -> Result<Tensor> {
        let tensor = Tensor::uninitialized(gpu, shape).map_err(|error| match error {
            Error::Shape { .. } => failed(&self.path, format!("tensor `{name}`: {error}")),
            other => other,
        })?;
        for begin in (0..tensor.len()).step_by(CHUNK) {
            let values = self.part(name, first + begin..first + tensor.len().min(begin + CHUNK))?;
            let chunk = gpu.upload(bytemuck::cast_slice(&values))?;
            let from = Slice { buffer: &chunk, offset: 0, size: 4 * values.len() as u64 };
            gpu.copy(from, tensor.slice().buffer, 4 * begin as u64)?;
            // Start the copy, so that the driver can free its staging memory.
            gpu.flush()?;
        }
        Ok(tensor)
    }

    /// The values of a tensor, on the host.
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        self.part(name, 0..self.len(name)?)
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.header.info(name).ok_or_else(|| failed(&self.path, format!("tensor `{name}` is missing")))
    }

    /// Number of a tensor's values.
    pub fn len(&self, name: &str) -> Result<usize> {
        Ok(self.info(name)?.shape.iter().product())
    }

    /// A range of a tensor's values, on the host.
    pub fn part(&self, name: &str, range: Range<usize>) -> Result<Vec<f32>> {
        let info = self.info(name)?;
        let count = self.len(name)?;
        if range.start > range.end || range.end > count {
            return Err(failed(&self.path, format!("tensor `{name}`: values {range:?} of {count}")));
        }
        let offset = self.values + (info.data_offsets.0 + range.start * info.dtype.bitsize() / 8) as u64;
        // Little-endian, as wherever values go to a device.
        let halves = || {
            let mut halves = vec![0u16; range.len()];
            self.fill(offset, bytemuck::cast_slice_mut(&mut halves)).map(|()| halves)
        };
        Ok(match info.dtype {
            Dtype::F32 => {
                let mut values = vec![0f32; range.len()];
                self.fill(offset, bytemuck::cast_slice_mut(&mut values))?;
                values
            }
            Dtype::F16 => halves()?.into_iter().map(from_f16).collect(),
            Dtype::BF16 => halves()?.into_iter().map(|half| f32::from_bits(u32::from(half) << 16)).collect(),
            other => {
                return Err(failed(&self.path, format!("tensor `{name}` is {other:?}; F32, F16 or BF16 expected")));
            }
        })
    }

    fn fill(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let mut file = self.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(bytes)).map_err(|source| io(&self.path, source))
    }
}

/// Converts IEEE binary16, including subnormals.
fn from_f16(bits: u16) -> f32 {
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f32::from(bits & 0x3ff));
    match (exponent, bits & 0x3ff) {
        (0, _) => sign * fraction * 2f32.powi(-24),
        (31, 0) => sign * f32::INFINITY,
        (31, _) => f32::NAN,
        _ => sign * (1.0 + fraction / 1024.0) * 2f32.powi(exponent - 15),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{Dtype, Header, Writer, from_f16};

    #[test]
    fn a_writer_takes_as_many_values_as_its_header_announces() {
        let header = Header::new(Dtype::F32, [("a", &[3][..])], HashMap::new()).expect("a header");
        let written = |pieces: &[&[u8]]| {
            let mut writer = Writer::new(Vec::new(), &header)?;
            pieces.iter().try_for_each(|piece| writer.put(piece))?;
            writer.finish()
        };
        let whole = written(&[&[1; 4], &[2; 8]]).expect("twelve bytes");
        assert!(whole.ends_with(&[1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]));
        assert!(written(&[&[1; 4]]).is_err() && written(&[&[1; 13]]).is_err());
    }

    #[test]
    fn names_that_a_header_cannot_hold_are_refused() {
        const ONE: &[usize] = &[1];
        for name in ["a", "__metadata__"] {
            let header = Header::new(Dtype::F32, [("a", ONE), (name, ONE)], HashMap::new());
            let text = header.expect_err("two of one name").to_string();
            assert_eq!(text, format!("safetensors: tensor name `{name}`: used twice or reserved"));
        }
    }

    #[test]
    fn half_precision_is_read_exactly() {
        assert_eq!(from_f16(0x3c00), 1.0);
        assert_eq!(from_f16(0xc000), -2.0);
        assert_eq!(from_f16(0x3555), 0.333_251_95);
        assert_eq!(from_f16(0x0001), 5.960_464_5e-8);
        assert_eq!(from_f16(0x7bff), 65_504.0);
        assert_eq!(from_f16(0xfc00), f32::NEG_INFINITY);
        assert!(from_f16(0x7e00).is_nan());
    }
}
