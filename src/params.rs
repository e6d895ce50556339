//! Named parameters with a [`Role`], and [`Gradients`], one accumulator for each.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::mpsc::Sender;

use crate::error::{Error, Result};
use crate::gpu::{Gpu, KernelTier};
use crate::tensor::{Stacks, Tensor, slot};

/// What a parameter is; optimizers and decay choose by it, never by size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// A weight matrix [out, in] inside the network.
    Matrix,
    /// The token embedding [vocabulary, dim].
    Embedding,
    /// The output head [vocabulary, dim].
    Head,
    /// Norm weights, biases, gains.
    Vector,
    /// Saved and restored with the parameters but neither trained nor differentiated.
    State,
}

/// The position of a parameter in its [`Params`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub(crate) usize);

/// One parameter.
#[derive(Debug, Clone)]
pub struct Param {
    /// Unique name, as in the checkpoint.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Its values.
    pub tensor: Tensor,
}

/// An ordered set of named parameters. A clone is a snapshot: it shares the values until one of the two is updated.
#[derive(Debug, Clone)]
pub struct Params {
    gpu: Gpu,
    list: Vec<Param>,
    by_name: HashMap<String, ParamId>,
}

impl Params {
    /// No parameters yet.
    pub fn new(gpu: &Gpu) -> Self {
        Self { gpu: gpu.clone(), list: Vec::new(), by_name: HashMap::new() }
    }

    /// The device of all parameters.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Appends a parameter under a new name.
    pub fn add(&mut self, name: impl Into<String>, role: Role, tensor: Tensor) -> Result<ParamId> {
        let name = name.into();
        if self.by_name.contains_key(&name) {
            return Err(Error::Value(format!("parameter `{name}` exists already")));
        }
        let id = ParamId(self.list.len());
        self.by_name.insert(name.clone(), id);
        self.list.push(Param { name, role, tensor });
        Ok(id)
    }

    /// The parameter of an id that this set, or the set it was cloned from, gave out; an error where it has no such parameter.
    pub fn get(&self, id: ParamId) -> Result<&Param> {
        self.list.get(id.0).ok_or_else(|| foreign(id, self.list.len()))
    }

    fn get_mut(&mut self, id: ParamId) -> Result<&mut Param> {
        let count = self.list.len();
        self.list.get_mut(id.0).ok_or_else(|| foreign(id, count))
    }

    /// The id of a name.
    pub fn id(&self, name: &str) -> Result<ParamId> {
        self.find(name).ok_or_else(|| Error::Value(format!("no parameter is named `{name}`")))
    }

    /// The id of a name, if there is one.
    pub fn find(&self, name: &str) -> Option<ParamId> {
        self.by_name.get(name).copied()
    }

    /// All parameters in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (ParamId, &Param)> {
        self.list.iter().enumerate().map(|(index, param)| (ParamId(index), param))
    }

    /// The ids of all parameters but [`Role::State`], in order.
    pub fn trainable(&self) -> Vec<ParamId> {
        self.iter().filter(|(_, param)| param.role != Role::State).map(|(id, _)| id).collect()
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Number of trainable values, [`Role::State`] not counted.
    pub fn numel(&self) -> usize {
        self.list.iter().filter(|param| param.role != Role::State).map(|param| param.tensor.len()).sum()
    }

    /// Replaces a parameter's values by a tensor of the same shape.
    pub fn set(&mut self, id: ParamId, tensor: Tensor) -> Result<()> {
        let param = self.get_mut(id)?;
        if param.tensor.shape() != tensor.shape() {
            let problem = format!("`{}` has shape {:?}, found {:?}", param.name, param.tensor.shape(), tensor.shape());
            return Err(Error::shape("set parameter", &[param.tensor.shape(), tensor.shape()], problem));
        }
        param.tensor = tensor;
        Ok(())
    }

    /// A parameter's values for updating in place, as an optimizer does: copied first when a snapshot shares them.
    pub fn make_mut(&mut self, id: ParamId) -> Result<&Tensor> {
        let param = self.get_mut(id)?;
        if !param.tensor.is_unique() {
            param.tensor = param.tensor.duplicate()?;
        }
        Ok(&param.tensor)
    }

    /// [`Params::make_mut`] of parameters of one shape, those that lie one after the other as one batch, with their range. Puts them together
    /// first, unless some are parts of stacks, which others need as they are.
    pub(crate) fn make_mut_runs(&mut self, ids: &[ParamId]) -> Result<Vec<(Range<usize>, Tensor)>> {
        for &id in ids {
            self.make_mut(id)?;
        }
        let is_part = |id: &ParamId| self.list[id.0].tensor.is_part();
        if self.gpu.kernels() != KernelTier::Host && !ids.iter().any(is_part) {
            self.put_together(ids)?;
        }
        let tensors: Vec<&Tensor> = ids.iter().map(|id| &self.list[id.0].tensor).collect();
        let batch = |run: &Range<usize>| Tensor::joined(&tensors[run.clone()]).unwrap_or_else(|| tensors[run.start].clone());
        Ok(Tensor::runs(&tensors).into_iter().map(|run| (run.clone(), batch(&run))).collect())
    }

    /// Puts parameters of one shape one after the other, unless they are: what runs over all of them then copies nothing.
    pub(crate) fn put_together(&mut self, ids: &[ParamId]) -> Result<()> {
        let tensors = ids.iter().map(|&id| Ok(&self.get(id)?.tensor)).collect::<Result<Vec<_>>>()?;
        if tensors.len() < 2 || Tensor::joined(&tensors).is_some() {
            return Ok(());
        }
        let parts = Tensor::stacked(&tensors)?.into_parts(tensors[0].shape())?;
        ids.iter().zip(parts).try_for_each(|(&id, part)| self.set(id, part))
    }

    /// Puts the matrices of each group, all of one shape, one after the other, where a stack holds a group: those of several groups if it
    /// has room for them, but on the host tier, where nothing runs over more than a group.
    pub(crate) fn put_groups_together(&mut self, groups: Vec<Vec<ParamId>>) -> Result<()> {
        let Some(first) = groups.first() else { return Ok(()) };
        let (matrix, count) = (&self.get(first[0])?.tensor, first.len());
        let fitting = Stacks::of(&self.gpu).most_bytes() / (matrix.bytes() * count as u64);
        let together = if self.gpu.kernels() == KernelTier::Host { fitting.min(1) } else { fitting };
        if together == 0 || slot(matrix.len()) != matrix.len() {
            return Ok(());
        }
        groups.chunks(together as usize).try_for_each(|groups| self.put_together(&groups.concat()))
    }
}

fn foreign(id: ParamId, count: usize) -> Error {
    Error::Value(format!("parameter {} of a set of {count}: the id of another set", id.0))
}

/// What the backward of an operation returns for a parent.
pub(crate) enum Gradient {
    /// The gradient as a tensor of its own.
    Tensor(Tensor),
    /// Adds the gradient to what has flowed into the parent so far, if anything: no tensor holds the gradient by itself.
    Accumulate(Box<dyn FnOnce(Option<Tensor>) -> Result<Tensor>>),
    /// [`Gradient::Accumulate`] for this parent and the next ones, `count` in all, at once. They get none of their own.
    Together { count: usize, add: AddTogether },
}

type AddTogether = Box<dyn FnOnce(Vec<Option<Tensor>>) -> Result<Vec<Tensor>>>;

impl From<Tensor> for Gradient {
    fn from(tensor: Tensor) -> Self {
        Self::Tensor(tensor)
    }
}

impl Gradient {
    /// The gradient that `add` accumulates in place.
    pub(crate) fn accumulate(add: impl FnOnce(Option<Tensor>) -> Result<Tensor> + 'static) -> Self {
        Self::Accumulate(Box::new(add))
    }

    /// This gradient and what is in the slot, as the slot's new contents.
    pub(crate) fn add_to(self, slot: &mut Option<Tensor>) -> Result<()> {
        let sum = slot.take();
        *slot = Some(match (self, sum) {
            (Self::Tensor(tensor), Some(sum)) => sum.accumulate(tensor)?,
            (Self::Tensor(tensor), None) => tensor,
            // The operation may read another part of the sum's buffer, and no kernel both reads and writes a buffer.
            (Self::Accumulate(add), Some(sum)) if sum.is_part() => add(Some(sum.duplicate()?))?,
            (Self::Accumulate(add), sum) => add(sum)?,
            (Self::Together { count, .. }, _) => panic!("bug: the gradient of {count} inputs for one"),
        });
        Ok(())
    }
}

/// One gradient accumulator per parameter, empty until something flows into it.
#[derive(Debug, Default)]
pub struct Gradients {
    list: Vec<Option<Tensor>>,
    /// Number of additions to each.
    additions: Vec<u32>,
    watch: Option<Watch>,
}

/// Takes each gradient out as soon as it is final.
#[derive(Debug)]
struct Watch {
    /// Number of additions after which it is; 0 where unknown.
    expected: Vec<u32>,
    done: Sender<(ParamId, Tensor)>,
}

impl Gradients {
    /// No gradients yet, for any set of parameters.
    pub fn new() -> Self {
        Self::default()
    }

    /// No gradients yet; after its expected number of additions each is sent to `done` instead of staying here.
    pub(crate) fn watched(expected: Vec<u32>, done: Sender<(ParamId, Tensor)>) -> Self {
        Self { watch: Some(Watch { expected, done }), ..Self::default() }
    }

    /// Number of additions to each.
    pub(crate) fn additions(&self) -> &[u32] {
        &self.additions
    }

    /// The gradient of a parameter; `None` when nothing flowed into it.
    pub fn get(&self, id: ParamId) -> Option<&Tensor> {
        self.list.get(id.0).and_then(Option::as_ref)
    }

    /// Takes a gradient out, leaving nothing.
    pub fn take(&mut self, id: ParamId) -> Option<Tensor> {
        self.list.get_mut(id.0).and_then(Option::take)
    }

    /// Adds to a parameter's gradient: in place where the accumulator is not shared.
    pub fn add(&mut self, id: ParamId, gradient: Tensor) -> Result<()> {
        self.add_gradient(id, gradient.into())
    }

    pub(crate) fn add_gradient(&mut self, id: ParamId, gradient: Gradient) -> Result<()> {
        self.make_room(id);
        let mut sum = self.list[id.0].take();
        gradient.add_to(&mut sum)?;
        sum.map_or(Ok(()), |sum| self.put(id, sum))
    }

    fn make_room(&mut self, id: ParamId) {
        if self.list.len() <= id.0 {
            self.list.resize_with(id.0 + 1, || None);
            self.additions.resize(id.0 + 1, 0);
        }
    }

    /// Puts back what [`Gradients::take`] took, with something added.
    pub(crate) fn put(&mut self, id: ParamId, sum: Tensor) -> Result<()> {
        self.make_room(id);
        self.list[id.0] = Some(sum);
        self.additions[id.0] += 1;
        let Some(Watch { expected, done }) = &self.watch else { return Ok(()) };
        let (found, expected) = (self.additions[id.0], expected.get(id.0).copied().unwrap_or(0));
        if expected > 0 && found > expected {
            let problem = "more gradient arrived after it was sent; disable `ExchangeOptions::overlap` (`--no-overlap`)";
            return Err(Error::Value(format!("parameter {}: {problem}", id.0)));
        }
        if found == expected
            && let Some(gradient) = self.list[id.0].take()
        {
            // A closed channel: the thread behind it has failed, and says why when it is joined.
            let _ = done.send((id, gradient));
        }
        Ok(())
    }

    /// The gradients of the trainable parameters, in order, once every one is known to have its parameter's shape: what an
    /// optimizer goes through. Each gradient's memory is free as soon as it is dropped.
    pub fn into_checked(self, params: &Params) -> Result<impl Iterator<Item = (ParamId, Tensor)> + use<>> {
        for (id, gradient) in self.iter() {
            let param = params.get(id)?;
            if gradient.shape() != param.tensor.shape() {
                let (found, expected) = (gradient.shape(), param.tensor.shape());
                let problem = format!("the gradient of `{}` has shape {found:?}, {expected:?} expected", param.name);
                return Err(Error::shape("optimizer", &[found, expected], problem));
            }
        }
        let is_trainable: Vec<bool> = params.list.iter().map(|param| param.role != Role::State).collect();
        let gradients = self.list.into_iter().enumerate();
        Ok(gradients.filter_map(move |(at, slot)| slot.filter(|_| is_trainable[at]).map(|tensor| (ParamId(at), tensor))))
    }

    /// The gradients that are there, by parameter, in order, without the accumulators.
    pub(crate) fn into_present(self) -> impl Iterator<Item = (ParamId, Tensor)> {
        self.list.into_iter().enumerate().filter_map(|(index, slot)| slot.map(|tensor| (ParamId(index), tensor)))
    }

    /// The gradients that are there, by parameter, in order.
    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &Tensor)> {
        self.list.iter().enumerate().filter_map(|(index, slot)| slot.as_ref().map(|tensor| (ParamId(index), tensor)))
    }
}
