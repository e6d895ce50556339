//! What the kernels of `spectral.wgsl` have in common: how they share out rows, and how they are launched.

use super::Norm;
use crate::error::Result;
use crate::gpu::{Access, Gpu, Kernel, Launch, Slice, strides, vectors, workgroup};
use crate::tensor::{ALIGNMENT, Tensor};

pub(super) const SOURCE: &str = include_str!("../../shaders/spectral.wgsl");
pub(super) const R: Access = Access::Read;
pub(super) const W: Access = Access::ReadWrite;

/// Maximum rows per workgroup of `apply`: few enough to stay in cache until they are read again.
const MAX_CHUNK: usize = 32;
/// Maximum elements of a row that an invocation of `apply` keeps in registers, where a workgroup is one subgroup.
const MAX_HELD: usize = 24;
/// The same where fewer invocations than a workgroup has may share a row, and take more rows: v, the sums and the next row each need
/// as many registers again.
const HELD_PER_TEAM: usize = 4;
/// The same for a row that is the work of a whole workgroup.
const HELD_PER_WORKGROUP: usize = 8;
/// Least invocations of a team; `BLOCK` of the shader.
const LEAST_TEAM: u32 = 32;
/// Elements from a matrix's scalars to the next one's; `SCALARS` of the shader. Aligned, so that they can be a part of a stack.
pub(super) const SCALARS: usize = ALIGNMENT;

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
    pub(super) fn groups(&self, rows: usize) -> u32 {
        rows.div_ceil(self.count() as usize) as u32
    }

    /// What the kernels depend on that are not `apply`.
    pub(super) fn without_chunks(self) -> Self {
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
    /// A pass of a kernel with nothing set.
    pub(super) const fn of(kernel: &'static Kernel) -> Self {
        Self {
            kernel,
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
        }
    }

    /// Runs it on the device of `on`.
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

/// What `divide` makes the scalars of.
pub(super) struct Divisor {
    pub(super) norm: Norm,
    pub(super) eps: f32,
    pub(super) recover: bool,
}
