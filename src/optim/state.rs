//! [`OptimizerState`]: what a rule remembers of each parameter, as named tensors of any shape.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::params::{Param, ParamId, Params, Role};
use crate::tensor::{Tensor, slot};

/// One tensor that a rule keeps of a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its name: `m` is saved as `<parameter>.m`.
    pub name: &'static str,
    /// Sizes of its dimensions.
    pub shape: Vec<usize>,
}

impl Slot {
    /// A slot of this name and shape.
    pub fn new(name: &'static str, shape: &[usize]) -> Self {
        Self { name, shape: shape.to_vec() }
    }
}

/// Number of steps taken and the tensors of every parameter's slots. A slot that no step has touched holds zeros.
#[derive(Debug, Default)]
pub struct OptimizerState {
    steps: u64,
    tensors: BTreeMap<(ParamId, &'static str), Tensor>,
}

impl OptimizerState {
    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Counts a step and returns its number, from 1.
    pub fn count_step(&mut self) -> u64 {
        self.steps += 1;
        self.steps
    }

    /// A slot's tensor for updating in place: zeros at first, copied where a snapshot shares it. An error
    /// where it has another shape.
    pub fn slot(&mut self, gpu: &Gpu, id: ParamId, name: &'static str, shape: &[usize]) -> Result<&Tensor> {
        if let Some(found) = self.tensors.get(&(id, name)).filter(|tensor| tensor.shape() != shape) {
            let problem = format!("`{name}` has shape {:?}, {shape:?} asked for", found.shape());
            return Err(Error::shape("optimizer state", &[found.shape(), shape], problem));
        }
        let tensor = match self.tensors.remove(&(id, name)) {
            None => Tensor::zeros(gpu, shape)?,
            Some(tensor) => tensor.into_unique()?,
        };
        Ok(self.tensors.entry((id, name)).or_insert(tensor))
    }

    /// [`OptimizerState::slot`] of parameters of one shape, as a batch: their tensors are put one after the other, unless they are.
    pub(super) fn stack(&mut self, gpu: &Gpu, ids: &[ParamId], name: &'static str, shape: &[usize]) -> Result<Tensor> {
        if let [id] = ids {
            return self.slot(gpu, *id, name, shape).cloned();
        }
        if ids.iter().all(|&id| !self.tensors.contains_key(&(id, name))) {
            let zeros = Tensor::zeros(gpu, &[ids.len(), slot(shape.iter().product())])?;
            self.set_parts(ids, name, zeros, shape)?;
        }
        for &id in ids {
            self.slot(gpu, id, name, shape)?;
        }
        if let Some(batch) = Tensor::joined(&self.tensors_of(ids, name)) {
            return Ok(batch);
        }
        let copied = Tensor::stacked(&self.tensors_of(ids, name))?;
        self.set_parts(ids, name, copied, shape)?;
        Tensor::stacked(&self.tensors_of(ids, name))
    }

    fn tensors_of(&self, ids: &[ParamId], name: &'static str) -> Vec<&Tensor> {
        ids.iter().filter_map(|&id| self.tensors.get(&(id, name))).collect()
    }

    fn set_parts(&mut self, ids: &[ParamId], name: &'static str, stack: Tensor, shape: &[usize]) -> Result<()> {
        self.tensors.extend(ids.iter().map(|&id| (id, name)).zip(stack.into_parts(shape)?));
        Ok(())
    }

    /// Every slot of every trainable parameter under its full name; nothing before the first step.
    pub(super) fn named(&self, params: &Params, slots: impl Fn(Role, &[usize]) -> Vec<Slot>) -> Result<Vec<(String, Tensor)>> {
        let mut named = Vec::new();
        for (id, param) in trainable(params).filter(|_| self.steps > 0) {
            for Slot { name, shape } in slots(param.role, param.tensor.shape()) {
                let tensor = match self.tensors.get(&(id, name)) {
                    Some(tensor) => tensor.clone(),
                    None => Tensor::zeros(params.gpu(), &shape)?,
                };
                named.push((format!("{}.{name}", param.name), tensor));
            }
        }
        Ok(named)
    }

    /// The state after `steps` steps, whose tensors `load` returns by full name.
    pub(super) fn load(
        params: &Params,
        steps: u64,
        slots: impl Fn(Role, &[usize]) -> Vec<Slot>,
        load: &mut dyn FnMut(&str) -> Result<Tensor>,
    ) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (id, param) in trainable(params).filter(|_| steps > 0) {
            for Slot { name, shape } in slots(param.role, param.tensor.shape()) {
                let full = format!("{}.{name}", param.name);
                let tensor = load(&full)?;
                if tensor.shape() != shape {
                    let problem = format!("`{full}` has shape {:?}, {shape:?} expected", tensor.shape());
                    return Err(Error::shape("load state", &[tensor.shape(), &shape], problem));
                }
                tensors.insert((id, name), tensor);
            }
        }
        Ok(Self { steps, tensors })
    }
}

fn trainable(params: &Params) -> impl Iterator<Item = (ParamId, &Param)> {
    params.iter().filter(|(_, param)| param.role != Role::State)
}
