//! RMSNorm: y = w·x·r, r = 1/√(mean(x²) + eps). x [.., columns], w [columns]. Saves x, w, r [rows]; dw is the column sum of dy·x·r.

use crate::error::{Error, Result};
use crate::gpu::{Access, Kernel, RowTeams, with_twin};
use crate::params::Gradient;
use crate::tape::Var;
use crate::tensor::{Rows, Tensor};

const SOURCE: &str = concat!(include_str!("../../shaders/rows.wgsl"), include_str!("../../shaders/rms_norm.wgsl"));

static FORWARD: Kernel = with_twin!(
    Kernel::trusted("rms_norm", SOURCE, "forward", &[Access::Read, Access::Read, Access::ReadWrite, Access::ReadWrite]),
    twins::forward
);
static BACKWARD: Kernel = with_twin!(
    Kernel::trusted(
        "rms_norm backward",
        SOURCE,
        "backward",
        &[Access::Read, Access::Read, Access::Read, Access::Read, Access::ReadWrite],
    ),
    twins::backward
);

impl<'t> Var<'t> {
    /// RMSNorm along the last dimension: `y = weight·self·r`, `r = 1/√(mean(self²) + eps)`. self `[.., columns]`, weight
    /// `[columns]` → like self. Backward: `dself = r·weight·dy - self·r³·mean(weight·dy·self)`, `dweight = Σ_rows dy·self·r`. An
    /// error unless weight is `[columns]`.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.leaf(Tensor::from_slice(&gpu, &[3.0, 4.0], &[1, 2])?);
    /// let weight = tape.constant(Tensor::from_slice(&gpu, &[1.0, 1.0], &[2])?);
    /// let y = x.rms_norm(&weight, 0.0)?.value().to_vec()?;
    /// assert!((y[0] / y[1] - 0.75).abs() < 1e-6); // the direction stays
    /// assert!((y[0] * y[0] + y[1] * y[1] - 2.0).abs() < 1e-5); // mean(y²) = 1
    /// # Ok::<(), Error>(())
    /// ```
    pub fn rms_norm(&self, weight: &Var<'t>, eps: f32) -> Result<Var<'t>> {
        let (x, w) = (self.value().clone(), weight.value().clone());
        let (rows, columns) = x.rows_and_columns();
        if w.shape() != [columns] {
            let problem = format!("{:?} with weight {:?}: a weight of {columns} expected", x.shape(), w.shape());
            return Err(Error::shape("rms_norm", &[x.shape(), w.shape()], problem));
        }
        let r = Tensor::uninitialized(x.gpu(), &[rows])?;
        let y = Tensor::uninitialized(x.gpu(), x.shape())?;
        run(&FORWARD, &x, &[(&x, columns), (&w, 0), (&r, 1), (&y, columns)], false, eps)?;
        self.tape().record_accumulating("rms_norm", y, [self, weight], move |dy, [wants_x, wants_w]| {
            let dw = wants_w.then(|| {
                let (x, r, dy) = (x.clone(), r.clone(), dy.clone());
                Gradient::accumulate(move |sum| dy.add_column_sum(Some(&x), Some(&r), sum))
            });
            let dx = wants_x.then(|| Gradient::accumulate(move |sum| backward(&x, &w, &r, &dy, sum)));
            Ok([dx, dw])
        })
    }
}

fn backward(x: &Tensor, w: &Tensor, r: &Tensor, dy: &Tensor, sum: Option<Tensor>) -> Result<Tensor> {
    let columns = x.rows_and_columns().1;
    let accumulate = sum.is_some();
    let dx = Tensor::sum_or_new(sum, x.gpu(), x.shape())?;
    run(&BACKWARD, x, &[(x, columns), (w, 0), (r, 1), (dy, columns), (&dx, columns)], accumulate, 0.0)?;
    Ok(dx)
}

fn run(kernel: &Kernel, x: &Tensor, tensors: &[(&Tensor, usize)], accumulate: bool, eps: f32) -> Result<()> {
    let (rows, columns) = x.rows_and_columns();
    let teams = RowTeams::new(x.gpu(), columns);
    let launch = Rows {
        kernel,
        constants: &[&teams.constants(columns)[..], &[("ACCUMULATE", u32::from(accumulate))]].concat(),
        rows,
        tensors,
        arguments: &[columns as u32, eps.to_bits()],
        invocations_per_row: teams.invocations_per_row(),
        workgroup: teams.workgroup.0,
        iterations: teams.iterations(columns, 2),
    };
    launch.launch(x.gpu())
}

#[cfg(feature = "host")]
mod twins {
    use crate::gpu::host::{Host, simd};

    pub(super) fn forward(host: &Host<'_>) {
        let (x, w, [r, y]) = (host.input(0), host.input(1), host.outputs());
        let (rows, columns, eps) = (host.size(0), host.size(2), host.number(3));
        host.rows(
            rows,
            3 * columns,
            [(r, 1), (y, columns)],
            #[inline(always)]
            |range, [r, y]| {
                let x = x[range.start * columns..].chunks_exact(columns);
                for ((r, y), x) in r.iter_mut().zip(y.chunks_exact_mut(columns)).zip(x) {
                    let scale = 1.0 / (simd::dot(x, x) / columns as f32 + eps).sqrt();
                    *r = scale;
                    simd::ahead(
                        columns,
                        [x],
                        columns as isize,
                        #[inline(always)]
                        |at| {
                            for ((y, x), w) in y[at.clone()].iter_mut().zip(&x[at.clone()]).zip(&w[at]) {
                                *y = w * x * scale;
                            }
                        },
                    );
                }
            },
        );
    }

    pub(super) fn backward(host: &Host<'_>) {
        let [x, w, r, dy] = [0, 1, 2, 3].map(|binding| host.input(binding));
        let [dx] = host.outputs();
        let (rows, columns, accumulate) = (host.size(0), host.size(2), host.flag("ACCUMULATE"));
        host.rows(
            rows,
            6 * columns,
            [(dx, columns)],
            #[inline(always)]
            |range, [dx]| {
                for (row, dx) in range.zip(dx.chunks_exact_mut(columns)) {
                    let (x, dy, scale) = (&x[row * columns..][..columns], &dy[row * columns..][..columns], r[row]);
                    let inner = simd::sum_of([w, dy, x], |[w, dy, x]| w * dy * x);
                    let pull = scale * scale * scale * inner / columns as f32;
                    for (((dx, x), dy), w) in dx.iter_mut().zip(x).zip(dy).zip(w) {
                        let value = scale * w * dy - pull * x;
                        *dx = if accumulate { *dx + value } else { value };
                    }
                }
            },
        );
    }
}
