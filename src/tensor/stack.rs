//! Stacks: tensors of one shape, one after the other in one buffer, so that a kernel runs over all of them as a batch.
//!
//! The parts of a stack are tensors like any other, which happen to share a buffer: while none of them has moved, putting them together
//! again copies nothing. Each begins at a multiple of [`ALIGNMENT`], so that it can be bound alone, too. The buffer is free once
//! all of its parts are.

use std::ops::Range;
use std::sync::Arc;

use super::{ALIGNMENT, Place, Tensor, check_shape};
use crate::error::Result;
use crate::gpu::{Gpu, KernelTier};

/// Maximum bytes per stack: enough to fill a GPU.
const MOST_BYTES: u64 = 128 << 20;
/// One over a stack's maximum share of device memory: kernels over stacks need a few such buffers besides the parameters.
const MEMORY_SHARE: u64 = 64;

/// How many tensors of one shape a device puts together in one buffer, so that PC layers and Muon run over all of them at once: by
/// [`pc_stack`](crate::spectral::pc_stack) and [`muon_stack`](crate::optim::muon_stack). It changes no bit. The default is a device whose
/// memory is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stacks {
    most_bytes: u64,
    is_host: bool,
}

impl Default for Stacks {
    fn default() -> Self {
        Self { most_bytes: MOST_BYTES, is_host: false }
    }
}

impl Stacks {
    /// Stacks on this device: at most 128 MiB, one binding, and 1/64 of its memory budget.
    pub fn of(gpu: &Gpu) -> Self {
        let bound = Self { most_bytes: MOST_BYTES.min(gpu.binding_limit()), is_host: gpu.kernels() == KernelTier::Host };
        gpu.memory_budget().map_or(bound, |budget| bound.with_memory(budget))
    }

    /// The same device with a memory budget of `bytes`.
    pub fn with_memory(self, bytes: u64) -> Self {
        Self { most_bytes: self.most_bytes.min(bytes / MEMORY_SHARE), ..self }
    }

    /// Maximum bytes per stack.
    pub(crate) fn most_bytes(self) -> u64 {
        self.most_bytes
    }

    /// Whether the device runs the host tier, where launches are nearly free and copies are not.
    pub(crate) fn is_host(self) -> bool {
        self.is_host
    }

    /// Number of tensors of `numel` elements per stack; one on the host tier.
    pub(crate) fn count(self, numel: usize) -> usize {
        if self.is_host { 1 } else { (self.most_bytes as usize / (4 * slot(numel))).max(1) }
    }
}

/// Elements from one part of a stack to the next.
pub(crate) fn slot(numel: usize) -> usize {
    numel.next_multiple_of(ALIGNMENT)
}

/// Whether that many tensors of `numel` elements are bound together.
pub(crate) fn fits_a_stack(gpu: &Gpu, numel: usize, count: usize) -> bool {
    4 * (count * slot(numel)) as u64 <= gpu.binding_limit()
}

impl Tensor {
    /// Tensors of one shape as a batch [count, slot]: in place where they lie one after the other, else copied.
    pub(crate) fn stacked(tensors: &[&Tensor]) -> Result<Tensor> {
        if let Some(view) = Self::joined(tensors) {
            return Ok(view);
        }
        let step = slot(tensors[0].len());
        let stack = Self::uninitialized(tensors[0].gpu(), &[tensors.len(), step])?;
        for (at, tensor) in tensors.iter().enumerate() {
            tensor.gpu.copy(tensor.slice(), &stack.place.buffer, 4 * (at * step) as u64)?;
        }
        Ok(stack)
    }

    /// [`Tensor::stacked`] of parts that lie one after the other; `None` for others. The view shares their values.
    pub(crate) fn joined(tensors: &[&Tensor]) -> Option<Tensor> {
        let first = tensors.first()?;
        let step = slot(first.len());
        let follows = |(at, tensor): (usize, &&Tensor)| {
            let (place, start) = (&tensor.place, first.place.first + at * step);
            place.is_part
                && Arc::ptr_eq(&place.buffer, &first.place.buffer)
                && place.first == start
                && tensor.len() == first.len()
        };
        let (buffer, start) = (first.place.buffer.clone(), first.place.first);
        tensors.iter().enumerate().all(follows).then(|| Self {
            gpu: first.gpu.clone(),
            place: Arc::new(Place { buffer, first: start, is_part: false }),
            shape: vec![tensors.len(), step],
        })
    }

    /// Tensors of one shape to write, in one buffer if that can be bound: what takes them all together later copies nothing.
    pub(crate) fn uninitialized_parts(gpu: &Gpu, shape: &[usize], count: usize) -> Result<Vec<Tensor>> {
        if count == 1 || !fits_a_stack(gpu, check_shape(shape)?, count) {
            return (0..count).map(|_| Self::uninitialized(gpu, shape)).collect();
        }
        Self::uninitialized(gpu, &[count, slot(check_shape(shape)?)])?.into_parts(shape)
    }

    /// [`Tensor::joined`] of parts that nothing else shares, as a batch of matrices without gaps that takes their place: it may change, and
    /// [`Tensor::into_parts`] undoes it. Others come back as they were.
    pub(crate) fn rejoined(parts: Vec<Tensor>) -> std::result::Result<Tensor, Vec<Tensor>> {
        let is_free = parts.iter().all(|part| part.is_part() && part.is_unique());
        match Self::batch(&parts.iter().collect::<Vec<_>>()).filter(|_| is_free) {
            Some(Tensor { gpu, place, shape }) => {
                let Place { buffer, first, .. } = &*place;
                Ok(Self { gpu, place: Arc::new(Place { buffer: buffer.clone(), first: *first, is_part: true }), shape })
            }
            None => Err(parts),
        }
    }

    /// Matrices of one shape that lie one after the other, without gaps, as a batch [count, rows, columns]; `None` for others. The view
    /// shares their values.
    pub(crate) fn batch(matrices: &[&Tensor]) -> Option<Tensor> {
        let first = *matrices.first()?;
        let is_dense = slot(first.len()) == first.len() && first.shape.len() == 2;
        let are_alike = is_dense && matrices.iter().all(|matrix| matrix.shape == first.shape);
        let joined = if are_alike { Self::joined(matrices)? } else { return None };
        Some(Self { shape: vec![matrices.len(), first.shape[0], first.shape[1]], ..joined })
    }

    /// Maximal ranges of tensors that are adjacent in one buffer.
    pub(crate) fn runs(tensors: &[&Tensor]) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for at in 0..tensors.len() {
            match runs.last_mut() {
                Some(run) if Self::joined(&tensors[run.start..=at]).is_some() => run.end = at + 1,
                _ => runs.push(at..at + 1),
            }
        }
        runs
    }

    /// The parts of a stack, each of `shape`; copied if the values are shared.
    pub(crate) fn into_parts(self, shape: &[usize]) -> Result<Vec<Tensor>> {
        if !self.is_unique() {
            return self.duplicate()?.into_parts(shape);
        }
        let step = slot(check_shape(shape)?);
        assert!(self.len().is_multiple_of(step), "bug: {:?} is no stack of {shape:?}", self.shape);
        let part = |at: usize| {
            let (buffer, first) = (self.place.buffer.clone(), self.place.first + at * step);
            Self { gpu: self.gpu.clone(), place: Arc::new(Place { buffer, first, is_part: true }), shape: shape.to_vec() }
        };
        Ok((0..self.len() / step).map(part).collect())
    }

    /// Elements from `first` on in another shape, shared; `first` is a multiple of [`ALIGNMENT`].
    pub(crate) fn view(&self, first: usize, shape: &[usize]) -> Result<Tensor> {
        let within = first.is_multiple_of(ALIGNMENT) && first + check_shape(shape)? <= self.len();
        assert!(within, "bug: {shape:?} from {first} of {:?}", self.shape);
        let place = Place { buffer: self.place.buffer.clone(), first: self.place.first + first, is_part: false };
        Ok(Self { gpu: self.gpu.clone(), place: Arc::new(place), shape: shape.to_vec() })
    }

    /// What tells the stack that it is a part of from others.
    pub(crate) fn stack_of(&self) -> Option<usize> {
        self.is_part().then(|| Arc::as_ptr(&self.place.buffer) as usize)
    }

    /// Whether it is a part of a stack.
    pub(crate) fn is_part(&self) -> bool {
        self.place.is_part
    }
}
