//! The matrix-vector passes of the PC layer, one function per entry point of `spectral.wgsl`, over a batch w [batch, rows, columns].

#[cfg(feature = "host")]
mod twins;

use crate::error::Result;
use crate::gpu::{Access, Gpu, Kernel, Launch, Slice, grid, strides, vectors, with_twin, workgroup};
use crate::tensor::{ALIGNMENT, Tensor};

use super::{Norm, small};

pub(super) const SOURCE: &str = include_str!("../../shaders/spectral.wgsl");
pub(super) const R: Access = Access::Read;
pub(super) const W: Access = Access::ReadWrite;

static MULTIPLY: Kernel = with_twin!(Kernel::trusted("spectral multiply", SOURCE, "multiply", &[R, R, W]), twins::multiply);
static APPLY: Kernel = with_twin!(Kernel::trusted("spectral apply", SOURCE, "apply", &[R, R, R, W, W]), twins::apply);
static ROW_PRODUCTS: Kernel =
    with_twin!(Kernel::trusted("spectral row products", SOURCE, "row_products", &[R, R, W]), twins::row_products);
static NORMALIZE: Kernel =
    with_twin!(Kernel::trusted("spectral normalize", SOURCE, "normalize", &[R, R, R, W, W]), twins::normalize);
static DIVIDE: Kernel = with_twin!(Kernel::trusted("spectral divide", SOURCE, "divide", &[R, R, R, W]), twins::divide);
static GAMMA_GRADIENT: Kernel =
    with_twin!(Kernel::trusted("spectral dgamma", SOURCE, "gamma_gradient", &[R, R, W]), twins::gamma_gradient);
static PULL: Kernel = with_twin!(Kernel::trusted("spectral pull", SOURCE, "pull", &[R, R, W]), twins::pull);
static FINISH: Kernel = with_twin!(Kernel::trusted("spectral finish", SOURCE, "finish", &[R, R, R, R, W]), twins::finish);

/// Maximum rows per workgroup of `apply`: few enough to stay in cache until they are read again.
const MAX_CHUNK: usize = 32;
/// Maximum Elements of a row that an invocation of `apply` keeps in registers, where a workgroup is one subgroup.
const MAX_HELD: usize = 24;
/// The same where a row may be the work of fewer invocations than a workgroup has, which then take more rows: as many Elements again
/// are v's, the sums' and the next row's.
const HELD_PER_TEAM: usize = 4;
/// The same for a row that is the work of a whole workgroup.
const HELD_PER_WORKGROUP: usize = 8;
/// Least invocations of a team; `BLOCK` of the shader.
const LEAST_TEAM: u32 = 32;
/// Elements from a matrix's scalars to the next one's; `SCALARS` of the shader. So many, that they can be a part of a stack.
pub(super) const SCALARS: usize = ALIGNMENT;

/// Indices of the scalars of a matrix.
pub(super) const INVERSE: usize = 1;
pub(super) const INVERSE_SQUARE: usize = 2;
pub(super) const OUTPUT: usize = 3;

/// A scalar of each matrix as a product's factor.
pub(super) fn factor(scalars: &Tensor, index: usize) -> crate::gemm::Factor<'_> {
    crate::gemm::Factor { tensor: scalars, index, batch_stride: SCALARS }
}

/// How a workgroup shares out the rows of a matrix.
#[derive(Clone, Copy)]
pub(super) struct Teams {
    /// Invocations per workgroup, and whether they are one subgroup.
    pub(super) workgroup: (u32, u32),
    /// Invocations per row.
    pub(super) team: u32,
    /// Elements of a row that an invocation of `apply` keeps in registers; 0 reads the rows twice.
    pub(super) held: usize,
    /// Rows per workgroup of `apply`.
    pub(super) chunk: usize,
}

impl Teams {
    /// For rows of `columns` values. Depends on nothing but the row's length, so that a matrix of a stack gives the bits that it gives
    /// alone.
    pub(super) fn new(gpu: &Gpu, columns: usize) -> Self {
        let workgroup @ (size, one_subgroup) = workgroup(gpu);
        let chunk = (16_384 / strides(columns, size)).clamp(1, MAX_CHUNK);
        let most_held = if one_subgroup == 1 { MAX_HELD } else { HELD_PER_WORKGROUP };
        let all = strides(columns, size);
        let held = if all <= most_held { all } else { 0 };
        let whole = Self { workgroup, team: size, held, chunk };
        if one_subgroup == 1 {
            return whole;
        }
        let sizes = std::iter::successors(Some(LEAST_TEAM), |team| Some(2 * team)).take_while(|&team| team < size);
        let fewest = sizes.map(|team| (team, strides(columns, team))).find(|(_, held)| *held <= HELD_PER_TEAM);
        fewest.map_or(whole, |(team, held)| Self { team, held, chunk: MAX_CHUNK.max(8 * (size / team) as usize), ..whole })
    }

    /// Rows that a workgroup has under way at a time.
    pub(super) fn count(&self) -> u32 {
        self.workgroup.0 / self.team
    }

    /// Workgroups for a row per team.
    fn groups(&self, rows: usize) -> u32 {
        rows.div_ceil(self.count() as usize) as u32
    }

    /// What the kernels depend on that are not `apply`.
    fn without_chunks(self) -> Self {
        Self { held: 0, chunk: 1, ..self }
    }

    /// Loop iterations of a sum over a team.
    pub(super) fn sum_iterations(&self) -> usize {
        (LEAST_TEAM + if self.team > LEAST_TEAM { self.team / LEAST_TEAM } else { 0 }) as usize
    }
}

/// γ of the matrices of a stack of layers, one for each head of a layer.
pub(super) struct Gamma {
    pub(super) values: Tensor,
    pub(super) heads: usize,
    /// Elements from a layer's first γ to the next one's.
    pub(super) stride: usize,
}

/// Launch parameters of all entry points.
pub(super) struct Pass<'a> {
    pub(super) kernel: &'static Kernel,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) chunks: usize,
    /// Of the kernels that have a row per team; others share out nothing.
    pub(super) teams: Option<Teams>,
    /// Whether y is w·v instead of u.
    pub(super) product: bool,
    /// Whether it is the whole power iteration.
    pub(super) iterates: bool,
    pub(super) eps: f32,
    pub(super) norm: u32,
    pub(super) recover: bool,
    /// Heads per layer, and elements from a layer's first γ to the next one's.
    pub(super) gammas: [usize; 2],
    pub(super) buffers: &'a [Slice<'a>],
    pub(super) workgroups: [u32; 3],
    pub(super) iterations: usize,
}

impl Pass<'_> {
    pub(super) fn launch(self, on: &Tensor) -> Result<()> {
        let (size, one_subgroup) = workgroup(on.gpu());
        let teams = self.teams.unwrap_or(Teams { workgroup: (size, one_subgroup), team: size, held: 0, chunk: 1 });
        let Teams { workgroup: (workgroup, one_subgroup), team, held, chunk } = teams;
        let sizes = [self.rows, self.columns, self.chunks].map(|size| size as u32);
        let numbers = [self.eps.to_bits(), self.norm, u32::from(self.recover)];
        let arguments = [&sizes[..], &numbers, &self.gammas.map(|size| size as u32)].concat();
        on.gpu().launch(&Launch {
            kernel: self.kernel,
            constants: &[
                ("WORKGROUP", workgroup),
                ("ONE_SUBGROUP", one_subgroup),
                ("VECTORS", vectors(self.columns)),
                ("TEAM", team),
                ("TEAMS", teams.count()),
                ("SEVERAL_BLOCKS", u32::from(team > LEAST_TEAM)),
                ("SEVERAL_TEAMS", u32::from(teams.count() > 1)),
                ("CHUNK", chunk as u32),
                ("PRODUCT", u32::from(self.product)),
                ("ITERATE", u32::from(self.iterates)),
                ("HELD", held as u32),
            ],
            buffers: self.buffers,
            arguments: bytemuck::cast_slice(&arguments),
            workgroups: self.workgroups,
            iterations: self.iterations as u64,
            work: 0,
        })
    }
}

pub(super) const DEFAULT: Pass<'static> = Pass {
    kernel: &MULTIPLY,
    rows: 0,
    columns: 0,
    chunks: 1,
    teams: None,
    product: false,
    iterates: false,
    eps: 0.0,
    norm: 0,
    recover: false,
    gammas: [1, 1],
    buffers: &[],
    workgroups: [1, 1, 1],
    iterations: 0,
};

/// A kernel with a row per team.
fn row_sums(kernel: &'static Kernel, [batch, rows, columns]: [usize; 3], buffers: &[Slice<'_>], on: &Tensor) -> Result<()> {
    let teams = Teams::new(on.gpu(), columns).without_chunks();
    let workgroups = [teams.groups(rows), 1, batch as u32];
    let iterations = strides(columns, teams.team) + teams.sum_iterations();
    Pass { kernel, rows, columns, teams: Some(teams), buffers, workgroups, iterations, ..DEFAULT }.launch(on)
}

/// w·x: w [batch, rows, columns], x [batch, columns] → [batch, rows].
pub(super) fn multiply(w: &Tensor, x: &Tensor) -> Result<Tensor> {
    let [batch, rows, columns] = w.dims("pc")?;
    let y = Tensor::uninitialized(w.gpu(), &[batch, rows])?;
    let buffers = [w, x, &y].map(Tensor::slice);
    row_sums(&MULTIPLY, [batch, rows, columns], &buffers, w)?;
    Ok(y)
}

/// Power iteration for the singular vectors u and v of the largest singular value of w [batch, rows, columns].
pub(super) struct Iteration<'a> {
    w: &'a Tensor,
    eps: f32,
    /// About 1/s of each matrix, so that squares of w·v neither overflow nor underflow; updated by every normalization.
    inverses: Tensor,
    teams: Teams,
}

/// Partial sums of wᵀy, per chunk of rows.
struct Partials {
    parts: Tensor,
    /// Σ y² per chunk.
    squares: Tensor,
}

impl<'a> Iteration<'a> {
    pub(super) fn new(w: &'a Tensor, eps: f32) -> Result<Self> {
        let [batch, _, columns] = w.dims("pc")?;
        let inverses = Tensor::uninitialized(w.gpu(), &[batch])?;
        Ok(Self { w, eps, inverses, teams: Teams::new(w.gpu(), columns) })
    }

    /// wᵀu / (‖wᵀu‖ + eps), or `previous` if wᵀu is zero → [batch, columns].
    pub(super) fn first(&self, u: &Tensor, previous: &Tensor) -> Result<Tensor> {
        self.normalize(&self.apply(u, false)?, previous, false)
    }

    /// The next v: [`Iteration::first`] of u = w·v / (‖w·v‖ + eps), reading w once.
    pub(super) fn next(&self, v: &Tensor) -> Result<Tensor> {
        self.normalize(&self.apply(v, true)?, v, true)
    }

    /// w·v / (‖w·v‖ + eps), or `previous` if w·v is zero → [batch, rows].
    pub(super) fn left(&self, v: &Tensor, previous: &Tensor) -> Result<Tensor> {
        let [batch, rows, _] = self.w.dims("pc")?;
        let parts = multiply(self.w, v)?.reshape(&[batch, 1, rows])?;
        self.normalize(&Partials { squares: parts.clone(), parts }, previous, false)
    }

    fn apply(&self, x: &Tensor, product: bool) -> Result<Partials> {
        let (w, teams) = (self.w, self.teams);
        let [batch, rows, columns] = w.dims("pc")?;
        let chunks = rows.div_ceil(teams.chunk);
        let parts = Tensor::uninitialized(w.gpu(), &[batch, chunks, columns])?;
        let squares = Tensor::uninitialized(w.gpu(), &[batch, chunks])?;
        let buffers = [w, x, &self.inverses, &squares, &parts].map(Tensor::slice);
        let workgroups = [chunks as u32, 1, batch as u32];
        let iterations = match teams.held {
            0 => teams.chunk * 2 * (1 + strides(columns, teams.team)),
            held => teams.chunk * (1 + teams.sum_iterations()) + held * teams.count() as usize,
        };
        let kernel = &APPLY;
        let (teams, buffers) = (Some(teams), &buffers);
        Pass { kernel, rows, columns, chunks, teams, product, buffers, workgroups, iterations, ..DEFAULT }.launch(w)?;
        Ok(Partials { parts, squares })
    }

    fn normalize(&self, partials: &Partials, previous: &Tensor, product: bool) -> Result<Tensor> {
        let [batch, chunks, columns] = partials.parts.dims("pc")?;
        let gpu = self.w.gpu();
        let y = Tensor::uninitialized(gpu, &[batch, columns])?;
        let buffers = [&partials.parts, &partials.squares, previous, &self.inverses, &y].map(Tensor::slice);
        let iterations = strides(columns, workgroup(gpu).0) * (2 + chunks) + chunks;
        let workgroups = [batch as u32, 1, 1];
        let (kernel, eps) = (&NORMALIZE, self.eps);
        Pass { kernel, columns, chunks, product, eps, buffers: &buffers, workgroups, iterations, ..DEFAULT }.launch(self.w)?;
        Ok(y)
    }
}

/// Σ_c a[r, c]·b[r, c] per row → [batch, rows].
pub(super) fn row_products(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let [batch, rows, columns] = a.dims("pc")?;
    let y = Tensor::uninitialized(a.gpu(), &[batch, rows])?;
    let buffers = [a, b, &y].map(Tensor::slice);
    row_sums(&ROW_PRODUCTS, [batch, rows, columns], &buffers, a)?;
    Ok(y)
}

/// What `divide` makes the scalars of.
pub(super) struct Divisor {
    pub(super) norm: Norm,
    pub(super) eps: f32,
    pub(super) recover: bool,
}

/// The scalars [batch, SCALARS] of each matrix from w [batch, rows, columns], u [batch, rows], v [batch, columns] and γ.
pub(super) fn divide(w: &Tensor, u: &Tensor, v: &Tensor, gamma: &Gamma, divisor: &Divisor) -> Result<Tensor> {
    let [batch, rows, _] = w.dims("pc")?;
    if divisor.norm != Norm::None && small::is_small(w)? {
        return small::divide(w, u, v, gamma, divisor);
    }
    let (numbers, others) = match divisor.norm {
        Norm::Spectral => (multiply(w, v)?, u.clone()),
        Norm::Frobenius => {
            let squares = row_products(w, w)?;
            (squares.clone(), squares)
        }
        Norm::None => (u.clone(), u.clone()),
    };
    let scalars = Tensor::uninitialized(w.gpu(), &[batch, SCALARS])?;
    let buffers = [&numbers, &others, &gamma.values, &scalars].map(Tensor::slice);
    let workgroups = [batch as u32, 1, 1];
    let (kernel, gammas) = (&DIVIDE, [gamma.heads, gamma.stride]);
    let Divisor { norm, eps, recover } = *divisor;
    let norm = norm as u32;
    Pass { kernel, rows, eps, norm, recover, gammas, buffers: &buffers, workgroups, iterations: rows, ..DEFAULT }.launch(w)?;
    Ok(scalars)
}

/// dγ, where γ is: the inner products of P and NᵀE [batch, n, n], times what γ is multiplied by.
pub(super) fn gamma_gradient(p: &Tensor, r: &Tensor, scalars: &Tensor, gamma: &Gamma) -> Result<Tensor> {
    if small::is_small(p)? {
        small::gamma_gradient(p, r, scalars, gamma)
    } else {
        gamma_sum(&row_products(p, r)?, scalars, gamma)
    }
}

/// dγ from the row sums [batch, rows] of P∘(NᵀE).
pub(super) fn gamma_sum(numbers: &Tensor, scalars: &Tensor, gamma: &Gamma) -> Result<Tensor> {
    let [batch, rows] = numbers.dims("pc")?;
    let dgamma = Tensor::uninitialized(numbers.gpu(), gamma.values.shape())?;
    let buffers = [numbers, scalars, &dgamma].map(Tensor::slice);
    let workgroups = [batch as u32, 1, 1];
    let gammas = [gamma.heads, gamma.stride];
    Pass { kernel: &GAMMA_GRADIENT, rows, gammas, buffers: &buffers, workgroups, iterations: rows, ..DEFAULT }.launch(numbers)?;
    Ok(dgamma)
}

/// A copy of the scalars with PULL, from ⟨m, w⟩.
fn pull(m: &Tensor, w: &Tensor, scalars: &Tensor, norm: Norm) -> Result<Tensor> {
    if small::is_small(w)? {
        return small::pull(m, w, scalars, norm);
    }
    let [batch, rows, _] = w.dims("pc")?;
    let numbers = row_products(m, w)?;
    let factors = Tensor::uninitialized(w.gpu(), scalars.shape())?;
    let buffers = [&numbers, scalars, &factors].map(Tensor::slice);
    let (workgroups, norm) = ([batch as u32, 1, 1], norm as u32);
    Pass { kernel: &PULL, rows, norm, buffers: &buffers, workgroups, iterations: rows, ..DEFAULT }.launch(w)?;
    Ok(factors)
}

/// dw = OUTPUT·(m − PULL·direction), PULL from ⟨m, w⟩, direction u·vᵀ or w.
pub(super) fn finish(m: &Tensor, w: &Tensor, scalars: &Tensor, u: &Tensor, v: &Tensor, norm: Norm) -> Result<Tensor> {
    let [batch, rows, columns] = w.dims("pc")?;
    let factors = pull(m, w, scalars, norm)?;
    let dw = Tensor::uninitialized(w.gpu(), w.shape())?;
    let right = if norm == Norm::Frobenius { w } else { v };
    let buffers = [m, &factors, u, right, &dw].map(Tensor::slice);
    let width = if columns.is_multiple_of(4) { 4 } else { 1 };
    let workgroups = grid((w.len() / width) as u64, 64);
    let norm = norm as u32;
    Pass { kernel: &FINISH, rows, columns, chunks: batch, norm, buffers: &buffers, workgroups, ..DEFAULT }.launch(w)?;
    Ok(dw)
}
