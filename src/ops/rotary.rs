//! Rotary position embedding, half-split order: (x[i], x[i + half]) of every head is rotated by position·θ^(-i/half). Saves
//! nothing; the backward rotates by the negative angle. Both in place, where nothing else shares the values.

use crate::error::{Error, Result};
use crate::gpu::{Access, Gpu, Kernel, vectors, with_twin};
use crate::tape::{Tape, Var};
use crate::tensor::{Rows, Tensor};

static ROTARY: Kernel = with_twin!(
    Kernel::trusted("rotary", include_str!("../../shaders/rotary.wgsl"), "main", &[Access::Read, Access::ReadWrite],),
    twins::rotary
);

/// The cosines and sines of all positions, computed once in float64: a shader's `sin` loses all accuracy at large angles.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    /// [positions, head_dim]: half cosines, then half sines.
    angles: Tensor,
}

/// θ^(-i/half) for `i < half = head_dim/2`.
pub(crate) fn frequencies(head_dim: usize, theta: f64) -> Vec<f64> {
    let half = head_dim / 2;
    (0..half).map(|i| theta.powf(-(i as f64) / half as f64)).collect()
}

impl RotaryTable {
    /// Angles `position·theta^(-i/half)` for `positions` positions and `i < half = head_dim/2`. An error unless head_dim is even
    /// and above 0.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// assert!(RotaryTable::new(&gpu, 128, 64, 10_000.0).is_ok());
    /// assert!(RotaryTable::new(&gpu, 128, 63, 10_000.0).is_err());
    /// # Ok::<(), Error>(())
    /// ```
    pub fn new(gpu: &Gpu, positions: usize, head_dim: usize, theta: f64) -> Result<Self> {
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(Error::shape(
                "rotary",
                &[&[positions, head_dim]],
                format!("head_dim {head_dim}: an even number above 0 expected"),
            ));
        }
        Self::with_frequencies(gpu, positions, &frequencies(head_dim, theta), 1.0)
    }

    /// Angles `position·frequencies[i]`, whose cosines and sines are multiplied by `factor`. The heads are twice as wide as there
    /// are frequencies; an error if there are none.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// assert!(RotaryTable::with_frequencies(&gpu, 128, &[1.0, 0.01], 1.0).is_ok());
    /// assert!(RotaryTable::with_frequencies(&gpu, 128, &[], 1.0).is_err());
    /// # Ok::<(), Error>(())
    /// ```
    pub fn with_frequencies(gpu: &Gpu, positions: usize, frequencies: &[f64], factor: f64) -> Result<Self> {
        let head_dim = 2 * frequencies.len();
        if head_dim == 0 {
            return Err(Error::shape("rotary", &[&[positions, 0]], "no frequencies: one or more expected"));
        }
        let mut values = Vec::with_capacity(positions * head_dim);
        for position in 0..positions {
            let angles = frequencies.iter().map(|frequency| position as f64 * frequency);
            values.extend(angles.clone().map(|angle| (factor * angle.cos()) as f32));
            values.extend(angles.map(|angle| (factor * angle.sin()) as f32));
        }
        Ok(Self { angles: Tensor::from_slice(gpu, &values, &[positions, head_dim])? })
    }

    /// The device that holds it.
    pub(crate) fn gpu(&self) -> &Gpu {
        self.angles.gpu()
    }

    /// Rotates x [batch·sequence, heads·head_dim], in place if nothing else shares it; row r is at position first + r mod sequence.
    fn apply(&self, x: Tensor, sequence: usize, first: usize, backward: bool) -> Result<Tensor> {
        let [rows, columns] = x.dims("rotary")?;
        let [positions, head_dim] = self.angles.dims("rotary")?;
        if !columns.is_multiple_of(head_dim) || sequence == 0 || !rows.is_multiple_of(sequence) {
            let problem = format!("[{rows}, {columns}]: whole sequences of {sequence} and heads of {head_dim} expected");
            return Err(Error::shape("rotary", &[x.shape(), self.angles.shape()], problem));
        }
        if first + sequence > positions {
            let problem = format!("positions {first}..{}, the table has {positions}", first + sequence);
            return Err(Error::shape("rotary", &[x.shape(), self.angles.shape()], problem));
        }
        let half = head_dim / 2;
        let width = if half.is_multiple_of(4) { 4 } else { 1 };
        let x = x.into_unique()?;
        let launch = Rows {
            kernel: &ROTARY,
            constants: &[("BACKWARD", u32::from(backward)), ("VECTORS", vectors(half))],
            rows,
            tensors: &[(&self.angles, 0), (&x, columns)],
            arguments: &[columns as u32, half as u32, sequence as u32, first as u32],
            invocations_per_row: (columns / 2 / width) as f64,
            workgroup: 64,
            iterations: 0,
        };
        launch.launch(x.gpu())?;
        Ok(x)
    }

    /// [`RotaryTable::apply`] to several, which are one where they lie one after the other.
    fn apply_each(&self, tensors: Vec<Tensor>, sequence: usize, first: usize, backward: bool) -> Result<Vec<Tensor>> {
        match Tensor::rejoined(tensors) {
            Ok(batch) => {
                let [count, rows, columns] = batch.dims("rotary")?;
                let rotated = self.apply(batch.into_shape(&[count * rows, columns])?, sequence, first, backward)?;
                rotated.into_parts(&[rows, columns])
            }
            Err(tensors) => tensors.into_iter().map(|x| self.apply(x, sequence, first, backward)).collect(),
        }
    }
}

impl<'t> Var<'t> {
    /// Rotary position embedding in half-split order: with a the angle of the row's position, every head's pair
    /// `(x[i], x[i + half])` becomes `(x[i]·cos a - x[i + half]·sin a, x[i + half]·cos a + x[i]·sin a)`. self
    /// `[batch·sequence, heads·head_dim]` → like self; row r is at position r mod sequence. Backward: dy rotated by -a. Errors:
    /// rows that are not whole sequences, columns that are not whole heads, a sequence longer than the table.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let table = RotaryTable::new(&gpu, 2, 2, 10_000.0)?;
    /// let x = tape.constant(Tensor::from_slice(&gpu, &[1.0, 0.0, 1.0, 0.0], &[2, 2])?);
    /// let y = x.rotary(&table, 2)?.value().to_vec()?;
    /// assert_eq!(y[..2], [1.0, 0.0]); // position 0
    /// assert!((y[2] - 1f32.cos()).abs() < 1e-6 && (y[3] - 1f32.sin()).abs() < 1e-6); // position 1: one radian
    /// # Ok::<(), Error>(())
    /// ```
    pub fn rotary(&self, table: &RotaryTable, sequence: usize) -> Result<Var<'t>> {
        self.rotary_from(table, sequence, 0)
    }

    /// [`Var::rotary`] of sequences that begin at position `first`.
    fn rotary_from(&self, table: &RotaryTable, sequence: usize, first: usize) -> Result<Var<'t>> {
        let y = table.apply(self.value().clone(), sequence, first, false)?;
        let table = table.clone();
        self.tape().record("rotary", y, [self], move |dy, _| Ok([Some(table.apply(dy, sequence, first, true)?)]))
    }
}

impl<'t> Tape<'t> {
    /// [`Var::rotary`] of several variables, of sequences that begin at position `first`, in place where nothing else shares their values.
    pub(crate) fn rotary_each<const N: usize>(
        &'t self,
        inputs: [Var<'t>; N],
        table: &RotaryTable,
        sequence: usize,
        first: usize,
    ) -> Result<[Var<'t>; N]> {
        let (forward, backward) = (table, table.clone());
        let rotated = self.record_in_place(
            "rotary",
            inputs.into(),
            |values| forward.apply_each(values, sequence, first, false),
            move |dys, _| {
                let present = dys.iter().map(Option::is_some).collect::<Vec<_>>();
                let mut rotated = backward.apply_each(dys.into_iter().flatten().collect(), sequence, first, true)?.into_iter();
                Ok(present.into_iter().map(|is_there| if is_there { rotated.next().map(Into::into) } else { None }).collect())
            },
        )?;
        Ok(rotated.try_into().unwrap_or_else(|_| unreachable!("bug: as many outputs as inputs")))
    }
}

#[cfg(feature = "host")]
mod twins {
    use crate::gpu::host::Host;

    pub(super) fn rotary(host: &Host<'_>) {
        let (angles, [x]) = (host.input(0), host.outputs());
        let [rows, first, columns, half, sequence, position] = [0, 1, 2, 3, 4, 5].map(|at| host.size(at));
        let sign = if host.flag("BACKWARD") { -1.0 } else { 1.0 };
        host.rows(
            rows,
            3 * columns,
            [(x, columns)],
            #[inline(always)]
            |range, [x]| {
                for (row, x) in range.zip(x.chunks_exact_mut(columns)) {
                    let angle = (position + (first + row) % sequence) * 2 * half;
                    let angles = angles[angle..][..2 * half].split_at(half);
                    for head in x.chunks_exact_mut(2 * half) {
                        rotate(head.split_at_mut(half), angles, sign);
                    }
                }
            },
        );
    }

    /// Rotates the pairs of a head by the angles whose cosines and sines are given.
    #[inline(always)]
    fn rotate((left, right): (&mut [f32], &mut [f32]), (cosines, sines): (&[f32], &[f32]), sign: f32) {
        for ((left, right), (c, s)) in left.iter_mut().zip(right).zip(cosines.iter().zip(sines)) {
            let s = sign * s;
            (*left, *right) = (*left * c - *right * s, *right * c + *left * s);
        }
    }
}
