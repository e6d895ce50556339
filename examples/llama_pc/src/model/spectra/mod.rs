//! Singular values of every matrix of a model's blocks, raw and effective.

mod numerics;

use std::collections::HashMap;
use std::sync::Mutex;

use polytape::llama::{ParameterShape, names};
use polytape::spectral::Norm;
use polytape::spectral::{PC_U, PC_V};
use polytape::{Gpu, Param, Params, Role};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::model::engine;
use crate::model::import::Stored;
use crate::run::measured::{Gmcn, SigmaError};
use crate::terminal::failure::Failure;
pub use numerics::Spectrum;
use numerics::{bilinear, geometric_mean, modified_condition, singular_values};

/// A matrix of a block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Matrix {
    /// Without `.weight`, as in `model.layers.0.mlp.down_proj`.
    pub name: String,
    pub rows: usize,
    pub columns: usize,
    /// Of the raw weight.
    pub raw: Spectrum,
    /// Of the effective weight; absent without a PC layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<Spectrum>,
    /// Relative error of the streaming estimate uᵀWv of σ₁; the largest, where there are several blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sigma_error: Option<f64>,
}

impl Matrix {
    /// The spectrum of the weight that the model computes with.
    pub fn used(&self) -> &Spectrum {
        self.effective.as_ref().unwrap_or(&self.raw)
    }

    /// The block's number and the matrix's short name, `down` or `q`.
    pub fn place(&self) -> (usize, &str) {
        place(&self.name).unwrap_or((0, &self.name))
    }
}

/// `model.layers.3.mlp.down_proj` → (3, `down`). `None` outside of the blocks.
pub fn place(stem: &str) -> Option<(usize, &str)> {
    let (layer, part) = names::layer_and_part(stem)?;
    let part = part.rsplit('.').next().unwrap_or(part);
    Some((layer, part.strip_suffix("_proj").unwrap_or(part)))
}

impl Gmcn {
    /// From each matrix's condition number and whether it has a PC layer. `None` of nothing.
    pub fn of(conditions: &[(f64, bool)]) -> Option<Self> {
        let mean = |wanted: &dyn Fn(bool) -> bool| {
            let chosen: Vec<f64> = conditions.iter().filter(|(_, pc)| wanted(*pc)).map(|(value, _)| *value).collect();
            geometric_mean(&chosen)
        };
        Some(Self { all: mean(&|_| true)?, pc: mean(&|pc| pc), plain: mean(&|pc| !pc) })
    }
}

/// A matrix on the host whose spectrum is to be computed.
struct Task {
    name: String,
    rows: usize,
    columns: usize,
    raw: Vec<f32>,
    effective: Option<Vec<f32>>,
    /// u and v of every block, where the norm is estimated.
    vectors: Option<(Vec<f32>, Vec<f32>)>,
}

/// Every matrix of the blocks. `done` is called after each.
pub fn matrices(gpu: &Gpu, config: &Config, stored: &Stored, done: impl Fn() + Sync) -> Result<Vec<Matrix>, Failure> {
    let targets: HashMap<String, usize> = engine::pc_targets(config).into_iter().collect();
    let has_estimate = config.pc.as_ref().is_some_and(|pc| pc.norm == Norm::Spectral);
    let sizes = engine::model(config);
    sizes.check()?;
    let list: Vec<ParameterShape> = sizes.parameters().into_iter().filter(|parameter| parameter.role == Role::Matrix).collect();
    let fetch = |parameter: &ParameterShape| {
        let name = names::stem(&parameter.name).to_owned();
        let raw = stored.raw(gpu, &parameter.name, &parameter.shape)?;
        let effective = stored.preconditioned(&parameter.name, &raw)?;
        let vector = |part: &str| stored.values(&format!("{name}.{part}"));
        let estimated = has_estimate && effective.is_some();
        Ok(Task {
            rows: parameter.shape[0],
            columns: parameter.shape[1],
            raw: raw.to_vec()?,
            effective: effective.map(|tensor| tensor.to_vec()).transpose()?,
            vectors: estimated.then(|| Ok::<_, Failure>((vector(PC_U)?, vector(PC_V)?))).transpose()?,
            name,
        })
    };
    in_parallel(&list, fetch, |_, task| task.measure(targets.get(&task.name).copied().unwrap_or(1)), done)
}

/// [`Gmcn`] of the weights that the model computes with.
pub fn gmcn(config: &Config, effective: &Params) -> Result<Gmcn, Failure> {
    let targets: HashMap<String, usize> = engine::pc_targets(config).into_iter().collect();
    let matrices: Vec<_> = effective.iter().map(|(_, param)| param).filter(|param| param.role == Role::Matrix).collect();
    let condition = |param: &&Param, values: Vec<f32>| {
        let found = singular_values(&values, param.tensor.shape()[1]).ok_or_else(|| not_finite(&param.name))?;
        let stem = names::stem(&param.name);
        Ok((modified_condition(&found), targets.contains_key(stem)))
    };
    let conditions = in_parallel(&matrices, |param| Ok(param.tensor.to_vec()?), condition, || {})?;
    Gmcn::of(&conditions).ok_or_else(|| Failure::other("found no matrix, expected those of a Llama"))
}

impl Task {
    fn measure(&self, blocks: usize) -> Result<Matrix, Failure> {
        let spectrum = |values: &[f32]| Spectrum::of(values, self.columns).ok_or_else(|| not_finite(&self.name));
        Ok(Matrix {
            name: self.name.clone(),
            rows: self.rows,
            columns: self.columns,
            raw: spectrum(&self.raw)?,
            effective: self.effective.as_deref().map(spectrum).transpose()?,
            sigma_error: self.vectors.as_ref().map(|(u, v)| self.sigma_error(u, v, blocks)).transpose()?,
        })
    }

    /// The largest of the blocks' errors.
    fn sigma_error(&self, u: &[f32], v: &[f32], blocks: usize) -> Result<f64, Failure> {
        let errors = estimate_errors(&self.raw, self.columns, u, v, blocks).ok_or_else(|| not_finite(&self.name))?;
        Ok(errors.into_iter().fold(0.0, f64::max))
    }
}

/// 1 − uᵀWv/σ₁ of each block of rows; 0 where W is. `None` if a value is not finite.
fn estimate_errors(w: &[f32], columns: usize, u: &[f32], v: &[f32], blocks: usize) -> Option<Vec<f64>> {
    let parts = w.chunks_exact(w.len() / blocks).zip(u.chunks_exact(u.len() / blocks)).zip(v.chunks_exact(columns));
    let error = |((w, u), v): ((&[f32], &[f32]), &[f32])| {
        let largest = singular_values(w, columns)?[0];
        Some(if largest > 0.0 { 1.0 - bilinear(u, w, v) / largest } else { 0.0 })
    };
    parts.map(error).collect()
}

/// [`SigmaError`] of the PC layers at these raw parameters; `None` without any that estimate their norm.
pub fn sigma_error(config: &Config, params: &Params) -> Result<Option<SigmaError>, Failure> {
    if config.pc.as_ref().is_none_or(|pc| pc.norm != Norm::Spectral) {
        return Ok(None);
    }
    let values = |name: String| -> Result<(Vec<f32>, usize), Failure> {
        let tensor = &params.get(params.id(&name)?)?.tensor;
        Ok((tensor.to_vec()?, tensor.shape().last().copied().unwrap_or(1)))
    };
    let fetch = |(stem, _): &(String, usize)| {
        let vector = |part: &str| Ok::<_, Failure>(values(format!("{stem}.{part}"))?.0);
        Ok((values(names::weight(stem))?, vector(PC_U)?, vector(PC_V)?))
    };
    type Fetched = ((Vec<f32>, usize), Vec<f32>, Vec<f32>);
    let measure = |(stem, blocks): &(String, usize), ((w, columns), u, v): Fetched| {
        estimate_errors(&w, columns, &u, &v, *blocks).ok_or_else(|| not_finite(stem))
    };
    let errors = in_parallel(&engine::pc_targets(config), fetch, measure, || {})?.concat();
    let mean = errors.iter().sum::<f64>() / errors.len() as f64;
    Ok((!errors.is_empty()).then(|| SigmaError { mean, largest: errors.into_iter().fold(0.0, f64::max) }))
}

fn not_finite(name: &str) -> Failure {
    Failure::other(format!("{name}: found values that are not finite, expected a matrix with singular values"))
}

/// Runs the tasks on all cores; results are in task order. Fetching is serialized, so that only the data of running tasks is held.
fn in_parallel<T: Sync, D, R: Send>(
    tasks: &[T],
    fetch: impl Fn(&T) -> Result<D, Failure> + Sync,
    work: impl Fn(&T, D) -> Result<R, Failure> + Sync,
    done: impl Fn() + Sync,
) -> Result<Vec<R>, Failure> {
    let queue = Mutex::new(tasks.iter().enumerate());
    let results: Mutex<Vec<(usize, Result<R, Failure>)>> = Mutex::new(Vec::with_capacity(tasks.len()));
    let next = || {
        let mut queue = queue.lock().expect("bug: a worker panicked");
        queue.next().map(|(at, task)| (at, task, fetch(task)))
    };
    let worker = || {
        while let Some((at, task, data)) = next() {
            let result = data.and_then(|data| work(task, data));
            results.lock().expect("bug: a worker panicked").push((at, result));
            done();
        }
    };
    std::thread::scope(|scope| {
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(tasks.len());
        (0..workers).for_each(|_| {
            scope.spawn(worker);
        });
    });
    let mut results = results.into_inner().expect("bug: a worker panicked");
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_taken_apart() {
        let gmcn = Gmcn::of(&[(2.0, true), (8.0, true), (9.0, false)]).expect("three values");
        assert!((gmcn.pc.expect("two") - 4.0).abs() < 1e-12 && (gmcn.plain.expect("one") - 9.0).abs() < 1e-12);
        assert!((gmcn.all - 144f64.cbrt()).abs() < 1e-12);
        assert_eq!(Gmcn::of(&[(3.0, false)]).expect("one value").pc, None);
        assert_eq!(Gmcn::of(&[]), None);
    }

    #[test]
    fn an_estimate_is_held_against_the_worst_block() {
        let task = Task {
            name: "m".into(),
            rows: 4,
            columns: 2,
            raw: vec![3.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 1.0],
            effective: None,
            vectors: Some((vec![1.0, 0.0, 0.0, 1.0], vec![1.0, 0.0, 0.0, 1.0])),
        };
        let (u, v) = task.vectors.as_ref().expect("vectors");
        // The first block's are those of σ₁ = 3; the second's give 1 where σ₁ is 2.
        assert!((task.sigma_error(u, v, 2).expect("finite") - 0.5).abs() < 1e-12);
    }

    #[test]
    fn results_keep_the_order_and_errors_come_out() {
        let tasks: Vec<usize> = (0..100).collect();
        let doubled = in_parallel(&tasks, |task| Ok(*task), |task, data| Ok(task + data), || {});
        assert_eq!(doubled.expect("numbers"), (0..200).step_by(2).collect::<Vec<_>>());
        let fail = |task: &usize| if *task == 50 { Err(not_finite("m")) } else { Ok(()) };
        assert!(in_parallel(&tasks, fail, |_, ()| Ok(()), || {}).is_err());
        assert!(in_parallel(&tasks, |_| Ok(()), |task, ()| fail(task), || {}).is_err());
    }
}
