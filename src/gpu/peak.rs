//! [`Peak`]: kernels that do nothing but arithmetic in registers. Their rate is what products are limited by.

use std::time::Instant;

use super::device::Gpu;
use super::kernel::{Access, Kernel, Launch, Slice, grid, with_twin};
use super::matrix::MatrixUnits;
use super::pool::Buffer;
use crate::error::{Error, Result};

static MULTIPLY_ADDS: Kernel = with_twin!(
    Kernel::trusted("peak", include_str!("../../shaders/peak.wgsl"), "main", &[Access::ReadWrite]),
    twins::multiply_adds
);
static MATRICES: Kernel = Kernel::trusted(
    "peak matrix",
    concat!(include_str!("../../shaders/matrices.wgsl"), include_str!("../../shaders/peak_matrix.wgsl")),
    "main",
    &[Access::ReadWrite],
);

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// f32 multiply-adds.
    MultiplyAdd,
    /// Cooperative matrices, f16 with f32 sums.
    Matrix,
}

/// A dispatch of nothing but arithmetic, as long as some milliseconds.
///
/// ```
/// # use polytape::gpu::{Gpu, Peak, Unit};
/// # let gpu = Gpu::open(&Default::default())?;
/// let peak = Peak::new(&gpu, Unit::MultiplyAdd)?;
/// peak.check()?;
/// let start = std::time::Instant::now();
/// peak.run()?;
/// gpu.synchronize()?;
/// assert!(peak.operations() / start.elapsed().as_secs_f64() > 1e6); // FLOP/s
/// # Ok::<(), polytape::Error>(())
/// ```
pub struct Peak {
    gpu: Gpu,
    unit: Unit,
    out: Buffer,
    /// Invocations, or workgroups of matrices.
    count: u32,
    /// Rounds of the loop.
    steps: u32,
}

/// The first guess of `steps`, and the most: software adapters bound the iterations of an invocation.
const FIRST_STEPS: u32 = 8;
const MOST_STEPS: u32 = 8192;
/// Seconds of a dispatch, about.
const LENGTH: f64 = 5e-3;
/// Invocations of a workgroup of the matrices' kernel.
const MATRIX_WORKGROUP: u32 = 256;

impl Peak {
    /// Measures how many rounds take some milliseconds. An error where a device has no such unit: [`Unit::Matrix`] needs the matrix
    /// kernels.
    pub fn new(gpu: &Gpu, unit: Unit) -> Result<Self> {
        let software = gpu.adapter().is_software();
        let count = match (unit, software) {
            (Unit::MultiplyAdd, true) => 1 << 12,
            (Unit::MultiplyAdd, false) => 1 << 20,
            (Unit::Matrix, true) => 1 << 6,
            (Unit::Matrix, false) => 1 << 12,
        };
        if unit == Unit::Matrix && gpu.kernels() != super::KernelTier::Matrix {
            return Err(MATRICES.error(format!("the {} kernels do not use matrix units", gpu.kernels())));
        }
        let bytes = if unit == Unit::MultiplyAdd { 16 } else { 4 } * u64::from(count);
        let mut peak = Self { gpu: gpu.clone(), unit, out: gpu.allocate(bytes)?, count, steps: FIRST_STEPS };
        let seconds = (0..3).try_fold(f64::INFINITY, |best: f64, _| Ok::<_, Error>(best.min(peak.seconds()?)))?;
        peak.steps = (f64::from(FIRST_STEPS) * LENGTH / seconds).clamp(f64::from(FIRST_STEPS), f64::from(MOST_STEPS)) as u32;
        // Overheads weigh less in the longer dispatch.
        let seconds = peak.seconds()?;
        peak.steps = (f64::from(peak.steps) * LENGTH / seconds).clamp(f64::from(FIRST_STEPS), f64::from(MOST_STEPS)) as u32;
        Ok(peak)
    }

    fn seconds(&self) -> Result<f64> {
        self.gpu.synchronize()?;
        let start = Instant::now();
        self.run()?;
        self.gpu.synchronize()?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Records the dispatch.
    pub fn run(&self) -> Result<()> {
        let (kernel, constants, workgroups) = match self.unit {
            Unit::MultiplyAdd => (&MULTIPLY_ADDS, vec![], grid(u64::from(self.count), 64)),
            Unit::Matrix => {
                let units = self.matrices();
                let constants = [&units.constants()[..], &[("REGIONS", MATRIX_WORKGROUP / units.lanes.1)]].concat();
                (&MATRICES, constants, [self.count, 1, 1])
            }
        };
        let values = if self.unit == Unit::MultiplyAdd { 4 * self.count } else { self.count };
        let factor: f32 = if self.unit == Unit::MultiplyAdd { 0.5 } else { 0.25 };
        let arguments = [values, self.steps, factor.to_bits()];
        self.gpu.launch(&Launch {
            kernel,
            constants: &constants,
            buffers: &[self.slice()],
            arguments: bytemuck::bytes_of(&arguments),
            workgroups,
            iterations: u64::from(self.steps) + 6,
            work: self.operations() as u64,
        })
    }

    fn slice(&self) -> Slice<'_> {
        Slice { buffer: &self.out, offset: 0, size: self.out.bytes() }
    }

    fn matrices(&self) -> MatrixUnits {
        self.gpu.matrices().expect("bug: the matrix kernels have matrices")
    }

    /// FLOP of a dispatch.
    pub fn operations(&self) -> f64 {
        let rounds = f64::from(self.count) * f64::from(self.steps);
        match self.unit {
            // Eight times eight multiply-adds of four values.
            Unit::MultiplyAdd => rounds * 8.0 * 8.0 * 4.0 * 2.0,
            Unit::Matrix => {
                let MatrixUnits { lanes, block, .. } = self.matrices();
                rounds * f64::from(MATRIX_WORKGROUP / lanes.1) * 8.0 * 2.0 * f64::from(block).powi(3)
            }
        }
    }

    /// Whether a dispatch computes what it must, exactly; an error names what it computes instead.
    pub fn check(&self) -> Result<()> {
        self.run()?;
        let want = match self.unit {
            Unit::MultiplyAdd => 8.0,
            Unit::Matrix => 8.0 * self.steps as f32 * self.matrices().block as f32 / 16.0,
        };
        let bytes = self.gpu.read(&[self.slice()])?;
        let found: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes[0]);
        let count = if self.unit == Unit::MultiplyAdd { 4 * self.count } else { self.count } as usize;
        let kernel = if self.unit == Unit::MultiplyAdd { &MULTIPLY_ADDS } else { &MATRICES };
        match found[..count].iter().find(|value| **value != want) {
            None => Ok(()),
            Some(wrong) => Err(kernel.error(format!("a sum is {wrong}, expected {want}"))),
        }
    }
}

#[cfg(feature = "host")]
mod twins {
    use pulp::{Arch, Simd, WithSimd};

    use crate::gpu::host::{Host, simd::LANES};

    /// Chains at a time: as many as hide the latency of a multiply-add.
    const CHAINS: usize = 8;

    /// Some values of `out`, each the sum of eight chains, as in the shader.
    struct Chains<'a> {
        values: &'a mut [f32],
        first: f32,
        steps: usize,
        x: f32,
    }

    impl WithSimd for Chains<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let x = simd.splat_f32s(self.x);
            for values in S::as_mut_simd_f32s(self.values).0 {
                let mut chains = [simd.splat_f32s(0.0); CHAINS];
                for (number, chain) in chains.iter_mut().enumerate() {
                    *chain = simd.splat_f32s(self.first + 0.1 * number as f32);
                }
                for _ in 0..8 * self.steps {
                    for chain in &mut chains {
                        *chain = simd.mul_add_f32s(*chain, x, x);
                    }
                }
                *values = chains.into_iter().fold(simd.splat_f32s(0.0), |sum, chain| simd.add_f32s(sum, chain));
            }
        }
    }

    pub(super) fn multiply_adds(host: &Host<'_>) {
        let [out] = host.outputs();
        let (steps, x) = (host.size(1), host.number(2));
        let step = |range: std::ops::Range<usize>, [out]: [&mut [f32]; 1]| {
            let first = range.start as f32 * 1e-9;
            Arch::new().dispatch(Chains { values: out, first, steps, x });
        };
        host.rows(host.size(0) / LANES, 128 * LANES * steps, [(out, LANES)], step);
    }
}

#[cfg(test)]
mod tests {
    use super::super::KernelTier;
    use super::*;

    #[test]
    fn every_variant_is_valid_wgsl() {
        for tier in [KernelTier::Fallback, KernelTier::Portable, KernelTier::Subgroup] {
            MULTIPLY_ADDS.validate(tier, &[]).unwrap_or_else(|error| panic!("{error}"));
        }
        for (large, lanes) in [(1, 32), (1, 64), (0, 32), (0, 16)] {
            let constants = [("LARGE", large), ("REGIONS", MATRIX_WORKGROUP / lanes)];
            MATRICES.validate(KernelTier::Matrix, &constants).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}
