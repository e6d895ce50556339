//! Tensors in safetensors files, written atomically: to a temporary name beside the file, synced, then renamed.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::tensor::Tensor;

fn failed(path: &Path, problem: impl std::fmt::Display) -> Error {
    Error::File { path: path.to_path_buf(), problem: problem.to_string() }
}

/// Writes named tensors as float32, in the order of their names, with `metadata`.
pub fn save(path: &Path, tensors: &[(String, Tensor)], metadata: HashMap<String, String>) -> Result<()> {
    let values: Vec<Vec<f32>> = tensors.iter().map(|(_, tensor)| tensor.to_vec()).collect::<Result<_>>()?;
    let view = |((name, tensor), values): (&(String, Tensor), &'_ Vec<f32>)| -> Result<(String, Vec<usize>, Vec<u8>)> {
        Ok((name.clone(), tensor.shape().to_vec(), bytemuck::cast_slice(values).to_vec()))
    };
    let owned: Vec<_> = tensors.iter().zip(&values).map(view).collect::<Result<_>>()?;
    let views = owned.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(|error| failed(path, error))?;
        Ok((name.as_str(), view))
    });
    let views: Vec<(&str, TensorView<'_>)> = views.collect::<Result<_>>()?;
    let bytes = serialize(views, Some(metadata)).map_err(|error| failed(path, error))?;
    write_atomically(path, &bytes)
}

/// Writes a file so that it is either the old one or the whole new one, whatever happens.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    let write = || {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&partial, path)
    };
    write().map_err(|error| {
        // The old file is untouched; what was written of the new one is of no use.
        let _ = std::fs::remove_file(&partial);
        failed(path, error)
    })
}

/// A safetensors file in memory.
pub struct Checkpoint {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Checkpoint {
    /// Reads a file and checks its header.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| failed(path, error))?;
        let this = Self { path: path.to_path_buf(), bytes };
        this.parse()?;
        Ok(this)
    }

    fn parse(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.bytes).map_err(|error| failed(&self.path, format!("not a safetensors file: {error}")))
    }

    /// The names of its tensors, sorted.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = self.parse()?.names().into_iter().map(str::to_string).collect();
        names.sort();
        Ok(names)
    }

    /// [`Checkpoint::tensor`], which must have this shape.
    pub fn tensor_of(&self, gpu: &Gpu, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.tensor(gpu, name)?;
        if tensor.shape() == shape {
            return Ok(tensor);
        }
        Err(failed(&self.path, format!("tensor `{name}` has shape {:?}, {shape:?} expected", tensor.shape())))
    }

    /// A tensor by name, from float32, float16 or bfloat16.
    pub fn tensor(&self, gpu: &Gpu, name: &str) -> Result<Tensor> {
        let (values, shape) = self.read(name)?;
        Tensor::from_slice(gpu, &values, &shape).map_err(|error| failed(&self.path, format!("tensor `{name}`: {error}")))
    }

    /// The values of a tensor, without a device.
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.read(name)?.0)
    }

    fn read(&self, name: &str) -> Result<(Vec<f32>, Vec<usize>)> {
        let file = self.parse()?;
        let view = file.tensor(name).map_err(|_| failed(&self.path, format!("tensor `{name}` is missing")))?;
        let halves = || view.data().as_chunks::<2>().0.iter().map(|&pair| u16::from_le_bytes(pair));
        let values: Vec<f32> = match view.dtype() {
            Dtype::F32 => view.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
            Dtype::F16 => halves().map(from_f16).collect(),
            Dtype::BF16 => halves().map(|half| f32::from_bits(u32::from(half) << 16)).collect(),
            other => {
                return Err(failed(&self.path, format!("tensor `{name}` is {other:?}; F32, F16 or BF16 expected")));
            }
        };
        Ok((values, view.shape().to_vec()))
    }
}

/// IEEE half precision, subnormal numbers included.
fn from_f16(half: u16) -> f32 {
    let sign = if half & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(half >> 10 & 0x1f), f32::from(half & 0x3ff));
    match (exponent, half & 0x3ff) {
        (0, _) => sign * fraction * 2f32.powi(-24),
        (31, 0) => sign * f32::INFINITY,
        (31, _) => f32::NAN,
        _ => sign * (1.0 + fraction / 1024.0) * 2f32.powi(exponent - 15),
    }
}

#[cfg(test)]
mod tests {
    use super::from_f16;

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
