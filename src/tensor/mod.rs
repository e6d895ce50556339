//! [`Tensor`]: a shape and a buffer of f32, row-major and contiguous. [`Indices`]: the same for u32. No gradients here.

mod accumulate;
mod bytes;
mod rows;
mod stack;

pub(crate) use accumulate::same_shape;
pub use rows::map;
pub(crate) use rows::{Rows, rows_per_window};
pub use stack::Stacks;
pub(crate) use stack::{fits_a_stack, slot};

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::ChaCha12Rng;

use crate::error::{Error, Result};
use crate::gpu::{Buffer, Gpu, Slice};
use crate::random::normals;

/// Maximum rank of a tensor.
pub const MAX_RANK: usize = 4;

/// Alignment of a binding's offset in elements, on every adapter: 256 bytes.
pub(crate) const ALIGNMENT: usize = 64;

/// Numel from which an upload is flushed at once: the driver holds the values twice until the copy has run.
const FLUSH_NUMEL: usize = 1 << 18;

/// f32 values on a device, row-major and contiguous, of rank 1 to 4. Cheap to clone: clones share the values, and no method
/// changes values that are shared.
///
/// ```
/// # use polytape::*;
/// # let gpu = Gpu::open(&Default::default())?;
/// let x = Tensor::from_slice(&gpu, &[1.0, 2.0, 3.0, 4.0], &[2, 2])?;
/// assert_eq!(x.reshape(&[4])?.to_vec()?, [1.0, 2.0, 3.0, 4.0]);
/// assert_eq!(x.read(1..3)?, [2.0, 3.0]);
/// assert!(Tensor::from_slice(&gpu, &[1.0, 2.0], &[3]).is_err());
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone)]
pub struct Tensor {
    gpu: Gpu,
    place: Arc<Place>,
    shape: Vec<usize>,
}

/// Where the values of a tensor are.
struct Place {
    buffer: Arc<Buffer>,
    /// The first element; a multiple of [`ALIGNMENT`].
    first: usize,
    /// Whether it is a part of the buffer that belongs to this place alone, as other parts belong to others; see `stack`.
    is_part: bool,
}

impl Place {
    /// All of a new buffer.
    fn whole(buffer: Buffer) -> Arc<Self> {
        Arc::new(Self { buffer: Arc::new(buffer), first: 0, is_part: false })
    }
}

/// u32 values on a device, with a copy on the host: token ids, class labels, row numbers.
#[derive(Clone)]
pub struct Indices {
    gpu: Gpu,
    buffer: Arc<Buffer>,
    host: Arc<[u32]>,
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({:?})", self.shape)
    }
}

impl fmt::Debug for Indices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Indices({})", self.len())
    }
}

/// Both u32 and f32 have four bytes.
fn window(buffer: &Buffer, first: usize, count: usize) -> Slice<'_> {
    assert!(first.is_multiple_of(ALIGNMENT), "bug: a window starts at a multiple of 256 bytes");
    Slice { buffer, offset: 4 * first as u64, size: 4 * count as u64 }
}

fn window_around(buffer: &Buffer, first: usize, count: usize) -> (Slice<'_>, usize) {
    let start = first / ALIGNMENT * ALIGNMENT;
    (window(buffer, start, first - start + count), first - start)
}

fn check_shape(shape: &[usize]) -> Result<usize> {
    if shape.is_empty() || shape.len() > MAX_RANK || shape.contains(&0) {
        let problem = format!("shape {shape:?}: a tensor has 1 to {MAX_RANK} dimensions, none of them 0");
        return Err(Error::shape("tensor", &[shape], problem));
    }
    let numel = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    // Kernels count elements in u32.
    let fits = numel.filter(|&count| count <= u32::MAX as usize);
    fits.ok_or_else(|| Error::shape("tensor", &[shape], format!("shape {shape:?}: more than {} elements", u32::MAX)))
}

impl Tensor {
    /// A tensor with undefined values, for a kernel to write. Errors: an invalid shape, out of memory.
    pub fn uninitialized(gpu: &Gpu, shape: &[usize]) -> Result<Self> {
        let numel = check_shape(shape)?;
        let place = Place::whole(gpu.allocate(4 * numel as u64)?);
        Ok(Self { gpu: gpu.clone(), place, shape: shape.to_vec() })
    }

    /// All zeros.
    pub fn zeros(gpu: &Gpu, shape: &[usize]) -> Result<Self> {
        let tensor = Self::uninitialized(gpu, shape)?;
        gpu.clear(&tensor.place.buffer)?;
        Ok(tensor)
    }

    /// Uploads `values`, row-major. An error unless their number is the numel of the shape.
    pub fn from_slice(gpu: &Gpu, values: &[f32], shape: &[usize]) -> Result<Self> {
        let numel = check_shape(shape)?;
        if values.len() != numel {
            let problem = format!("{} values for shape {shape:?}, which has {numel} elements", values.len());
            return Err(Error::shape("from_slice", &[shape], problem));
        }
        let place = Place::whole(gpu.upload(bytemuck::cast_slice(values))?);
        if values.len() >= FLUSH_NUMEL {
            gpu.flush()?;
        }
        Ok(Self { gpu: gpu.clone(), place, shape: shape.to_vec() })
    }

    /// Samples from N(0, std²): the same seed gives the same bits on every device.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// let [a, b] = [1, 1].map(|seed| Tensor::normal(&gpu, &[2, 3], 0.02, seed));
    /// assert_eq!(a?.to_vec()?, b?.to_vec()?);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn normal(gpu: &Gpu, shape: &[usize], std: f64, seed: u64) -> Result<Self> {
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        Self::from_slice(gpu, &normals(&mut rng, check_shape(shape)?, std, f64::INFINITY), shape)
    }

    /// Waits for the device and downloads the values, row-major.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        let [values] = read_all([self])?;
        Ok(values)
    }

    /// [`Tensor::to_vec`] of a range of the values. An error unless the range is within the tensor.
    pub fn read(&self, range: Range<usize>) -> Result<Vec<f32>> {
        if range.start > range.end || range.end > self.len() {
            return Err(Error::shape(
                "read",
                &[&self.shape],
                format!("values {range:?} of shape {:?}: a range within it expected", self.shape),
            ));
        }
        let first = self.place.first + range.start;
        let part = Slice { buffer: &self.place.buffer, offset: 4 * first as u64, size: 4 * range.len() as u64 };
        let bytes = self.gpu.read(&[part])?;
        Ok(bytemuck::pod_collect_to_vec(&bytes[0]))
    }

    /// The value of a tensor with one element; an error for any other.
    pub fn item(&self) -> Result<f32> {
        match self.to_vec()?.as_slice() {
            [value] => Ok(*value),
            _ => Err(Error::shape("item", &[&self.shape], format!("shape {:?}: one element expected", self.shape))),
        }
    }

    /// Its device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Sizes of its dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Always false: a tensor has at least one element.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Size of the values in bytes.
    pub fn bytes(&self) -> u64 {
        4 * self.len() as u64
    }

    /// The shape as exactly `N` sizes, or an error in the name of the operation `op`.
    pub fn dims<const N: usize>(&self, op: &'static str) -> Result<[usize; N]> {
        let found = self.shape.as_slice();
        found.try_into().map_err(|_| Error::shape(op, &[found], format!("shape {found:?}: {N} dimensions expected")))
    }

    /// The shape as (rows, columns): columns is the last dimension, rows the product of the others.
    pub fn rows_and_columns(&self) -> (usize, usize) {
        let columns = *self.shape.last().expect("bug: a tensor has a dimension");
        (self.len() / columns, columns)
    }

    /// The same elements in another shape, shared, not copied. An error unless the numels are equal.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        if check_shape(shape)? != self.len() {
            return Err(Error::shape(
                "reshape",
                &[&self.shape, shape],
                format!("{:?} → {shape:?}: the numels differ", self.shape),
            ));
        }
        Ok(Self { shape: shape.to_vec(), ..self.clone() })
    }

    /// [`Tensor::reshape`] that leaves no second handle.
    pub(crate) fn into_shape(self, shape: &[usize]) -> Result<Self> {
        self.reshape(shape)
    }

    /// A copy in a buffer of its own.
    pub fn duplicate(&self) -> Result<Self> {
        let copy = Self::uninitialized(&self.gpu, &self.shape)?;
        self.gpu.copy(self.slice(), &copy.place.buffer, 0)?;
        Ok(copy)
    }

    /// The whole tensor as a binding.
    pub fn slice(&self) -> Slice<'_> {
        self.window(0, self.len())
    }

    /// Elements `first .. first + count` as a binding; `first` is a multiple of [`ALIGNMENT`].
    pub(crate) fn window(&self, first: usize, count: usize) -> Slice<'_> {
        window(&self.place.buffer, self.place.first + first, count)
    }

    /// A binding that holds `count` elements from `first`, and the place of the first in it.
    pub(crate) fn window_around(&self, first: usize, count: usize) -> (Slice<'_>, usize) {
        window_around(&self.place.buffer, self.place.first + first, count)
    }

    /// The same values where no other tensor shares them.
    pub(crate) fn into_unique(self) -> Result<Self> {
        if self.is_unique() { Ok(self) } else { self.duplicate() }
    }

    /// The output of an operation that accumulates: `sum`, made unique, or a new tensor without one.
    pub(crate) fn sum_or_new(sum: Option<Self>, gpu: &Gpu, shape: &[usize]) -> Result<Self> {
        sum.map_or_else(|| Self::uninitialized(gpu, shape), Self::into_unique)
    }

    /// Whether no other tensor shares the values, so that they may change in place.
    pub(crate) fn is_unique(&self) -> bool {
        Arc::strong_count(&self.place) == 1 && (self.place.is_part || Arc::strong_count(&self.place.buffer) == 1)
    }
}

/// Downloads several tensors with one wait for the device.
pub fn read_all<const N: usize>(tensors: [&Tensor; N]) -> Result<[Vec<f32>; N]> {
    let mut values = read_many(&tensors)?.into_iter();
    Ok(std::array::from_fn(|_| values.next().unwrap_or_default()))
}

/// [`read_all`] for a number of tensors known only at run time.
pub fn read_many(tensors: &[&Tensor]) -> Result<Vec<Vec<f32>>> {
    let Some(first) = tensors.first() else {
        return Ok(Vec::new());
    };
    let slices: Vec<Slice<'_>> = tensors.iter().map(|tensor| tensor.slice()).collect();
    Ok(first.gpu.read(&slices)?.iter().map(|bytes| bytemuck::pod_collect_to_vec(bytes)).collect())
}

impl Indices {
    /// Uploads `values`; an error if there are none.
    pub fn from_slice(gpu: &Gpu, values: &[u32]) -> Result<Self> {
        if values.is_empty() {
            return Err(Error::shape("indices", &[], "no values given"));
        }
        let buffer = Arc::new(gpu.upload(bytemuck::cast_slice(values))?);
        Ok(Self { gpu: gpu.clone(), buffer, host: values.into() })
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.host.len()
    }

    /// The values, from the copy on the host.
    pub fn values(&self) -> &[u32] {
        &self.host
    }

    /// Always false: there is at least one value.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Their device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// All values as a binding.
    pub fn slice(&self) -> Slice<'_> {
        Slice { buffer: &self.buffer, offset: 0, size: 4 * self.len() as u64 }
    }

    /// `count` values from `first` as a kernel's binding; `first` is a multiple of [`ALIGNMENT`].
    pub(crate) fn window(&self, first: usize, count: usize) -> Slice<'_> {
        window(&self.buffer, first, count)
    }

    /// A binding that holds `count` values from `first`, and the place of the first in it.
    pub(crate) fn window_around(&self, first: usize, count: usize) -> (Slice<'_>, usize) {
        window_around(&self.buffer, first, count)
    }
}
