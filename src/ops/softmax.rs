//! Softmax over the last dimension: y = exp(x - max) / Σ exp(x - max). Saves y; dx = y·(dy - Σ y·dy).

use crate::error::Result;
use crate::gpu::{Access, Kernel, RowTeams, with_twin};
use crate::tape::Var;
use crate::tensor::{Rows, Tensor};

const SOURCE: &str = concat!(include_str!("../../shaders/rows.wgsl"), include_str!("../../shaders/softmax.wgsl"));

static FORWARD: Kernel =
    with_twin!(Kernel::trusted("softmax", SOURCE, "forward", &[Access::Read, Access::ReadWrite]), twins::forward);
static BACKWARD: Kernel = with_twin!(
    Kernel::trusted("softmax backward", SOURCE, "backward", &[Access::Read, Access::Read, Access::ReadWrite]),
    twins::backward
);

impl Tensor {
    /// Softmax over the last dimension: `y[r, c] = exp(x[r, c] - max_r) / Σ_c exp(x[r, c] - max_r)`. self `[.., columns]` → like
    /// self. Errors: only the device's.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// let x = Tensor::from_slice(&gpu, &[1000.0, 1000.0], &[1, 2])?;
    /// assert_eq!(x.softmax()?.to_vec()?, [0.5, 0.5]); // no overflow
    /// # Ok::<(), Error>(())
    /// ```
    pub fn softmax(&self) -> Result<Tensor> {
        run(&FORWARD, &[self])
    }
}

fn run(kernel: &Kernel, inputs: &[&Tensor]) -> Result<Tensor> {
    let x = inputs[0];
    let (rows, columns) = x.rows_and_columns();
    let y = Tensor::uninitialized(x.gpu(), x.shape())?;
    let teams = RowTeams::new(x.gpu(), columns);
    let tensors: Vec<(&Tensor, usize)> = inputs.iter().copied().chain([&y]).map(|tensor| (tensor, columns)).collect();
    let launch = Rows {
        kernel,
        constants: &teams.constants(columns),
        rows,
        tensors: &tensors,
        arguments: &[columns as u32],
        invocations_per_row: teams.invocations_per_row(),
        workgroup: teams.workgroup.0,
        iterations: teams.iterations(columns, 3),
    };
    launch.launch(x.gpu())?;
    Ok(y)
}

impl<'t> Var<'t> {
    /// Softmax over the last dimension: [`Tensor::softmax`]. self `[.., columns]` → like self. Backward:
    /// `dself = y·(dy - Σ_c y·dy)`. Errors: only the device's.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.leaf(Tensor::zeros(&gpu, &[1, 4])?);
    /// let y = x.softmax()?;
    /// assert_eq!(y.value().to_vec()?, [0.25; 4]);
    /// let gradients = tape.backward(&y.slice(1, 0..1)?.sum()?, &mut Gradients::new())?;
    /// assert_eq!(gradients.get(&x).unwrap().to_vec()?, [0.1875, -0.0625, -0.0625, -0.0625]); // y·(onehot - y)
    /// # Ok::<(), Error>(())
    /// ```
    pub fn softmax(&self) -> Result<Var<'t>> {
        let y = self.value().softmax()?;
        let saved = y.clone();
        self.tape().record("softmax", y, [self], move |dy, _| Ok([Some(run(&BACKWARD, &[&saved, &dy])?)]))
    }
}

#[cfg(feature = "host")]
pub(super) mod twins {
    use crate::gpu::host::Host;
    use crate::gpu::host::simd::{LANES, dot, exp, maximum, prefetch, total};

    pub(super) fn forward(host: &Host<'_>) {
        let (x, [y]) = (host.input(0), host.outputs());
        let (rows, columns) = (host.size(0), host.size(2));
        host.rows(
            rows,
            10 * columns,
            [(y, columns)],
            #[inline(always)]
            |range, [y]| {
                for (y, x) in y.chunks_exact_mut(columns).zip(x[range.start * columns..].chunks_exact(columns)) {
                    let next_row = x.as_ptr().wrapping_add(columns);
                    let factor = 1.0 / exponentials(x, y, maximum(x), next_row);
                    for y in y {
                        *y *= factor;
                    }
                }
            },
        );
    }

    pub(super) fn backward(host: &Host<'_>) {
        let (y, dy, [dx]) = (host.input(0), host.input(1), host.outputs());
        let (rows, columns) = (host.size(0), host.size(2));
        host.rows(
            rows,
            4 * columns,
            [(dx, columns)],
            #[inline(always)]
            |range, [dx]| {
                for (row, dx) in range.zip(dx.chunks_exact_mut(columns)) {
                    let (y, dy) = (&y[row * columns..][..columns], &dy[row * columns..][..columns]);
                    let inner = dot(y, dy);
                    for ((dx, y), dy) in dx.iter_mut().zip(y).zip(dy) {
                        *dx = y * (dy - inner);
                    }
                }
            },
        );
    }

    /// y ← exp(x - top) → their sum. Prefetches what is at `next`.
    #[inline(always)]
    pub(in crate::ops) fn exponentials(x: &[f32], y: &mut [f32], top: f32, next: *const f32) -> f32 {
        let mut sums = [0.0; LANES];
        let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks_mut::<LANES>());
        for (at, (x, y)) in x.iter().zip(y).enumerate() {
            prefetch(next.wrapping_add(LANES * at));
            for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
                *y = exp(x - top);
                *sum += *y;
            }
        }
        for ((sum, x), y) in sums.iter_mut().zip(x_rest).zip(y_rest) {
            *y = exp(x - top);
            *sum += *y;
        }
        total(sums)
    }
}
