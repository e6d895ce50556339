//! [`Trainer`]: one optimizer step over several micro-batches, for any model.
//!
//! There is one way through a step, [`Trainer::step_with`], made of named pieces that a caller may also call by themselves:
//!
//! 1. [`Trainer::effective_gradients`]: mean loss, and gradients of the effective weights, summed over the micro-batches. The
//!    effective weights are computed once per step.
//! 2. [`StepHook::adjust`]: may change both.
//! 3. [`Trainer::exchange`]: sums both over all ranks, where there are several; each gradient goes to the owner of its parameter.
//! 4. [`Trainer::pull_back`]: through the PC layers to the raw parameters, once per step.
//! 5. [`Trainer::clip`]: the global norm, and the factor that clips and unscales.
//! 6. [`Trainer::decide`] with [`StepHook::decide`]: apply or skip. A step that is not finite is an error, and is never applied. All
//!    ranks see the same loss and norm, and so decide alike.
//! 7. [`Trainer::apply`]: the optimizer's update, then the power iterations; the owners send the new effective weights to all ranks.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::exchange::{self, Exchange, ExchangeOptions, Layout, Leaf, Ranks, Sending, Stored, Traffic, Tree};
use crate::optim::{Clip, LossScale, Optimizer};
use crate::params::{Gradients, Params};
use crate::precision::Precision;
use crate::spectral::{Effective, Preconditioner};
use crate::tape::{Tape, Var};
use crate::tensor::{Tensor, read_all};

/// Reads a tensor of a checkpoint by its name: a range of its first dimension, or all of it for `None`.
pub type LoadRows<'a> = dyn FnMut(&str, Option<Range<usize>>) -> Result<Tensor> + 'a;

/// Parameters with the rule that trains them.
pub struct Trainer {
    /// The raw parameters: of several ranks, those that this one owns.
    pub params: Params,
    /// The PC layers among them.
    pub preconditioner: Option<Preconditioner>,
    /// The update rule.
    pub optimizer: Box<dyn Optimizer>,
    /// Gradients are clipped to this global norm; infinite for none.
    pub max_grad_norm: f32,
    /// Of the model's matrix products. Parameters, gradients, the optimizer and the PC layers are f32.
    pub precision: Precision,
    /// The factor of the loss in the backward, for a precision in which gradients may underflow.
    pub loss_scale: Option<LossScale>,
    /// Steps so far, skipped ones included; names the step in errors.
    pub steps: u64,
    replicas: usize,
    ranks: Option<Ranks>,
}

/// The gradients of a step, at the weights that the model saw.
#[derive(Debug)]
pub struct EffectiveGradients {
    /// Mean loss of the micro-batches, `[1]`.
    pub loss: Tensor,
    /// With respect to the effective weights, times the loss scale.
    pub gradients: Gradients,
    /// `None` without PC layers, and on several ranks, which keep them from step to step.
    effective: Option<Effective>,
    /// Of several ranks, where gradients are sent while others are being computed.
    sending: Option<Sending>,
}

/// Why a step was skipped: no parameter and no optimizer state changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// Its gradients, times the loss scale, overflowed.
    Overflow,
    /// [`StepHook::decide`] said so.
    Hook,
}

/// What a step computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOutput {
    /// Mean loss of the micro-batches.
    pub loss: f32,
    /// Global L2 norm of the raw parameters' gradients, before clipping and without the loss scale. Infinite or NaN only where the step
    /// was skipped for it.
    pub grad_norm: f32,
    /// The factor of the loss in this step's backward; 1 without one.
    pub loss_scale: f32,
    /// Why the step was skipped, if it was.
    pub skipped: Option<Skip>,
}

/// What a caller does between the pieces of a step. Every method does nothing by default; `()` is a hook that does nothing at all.
pub trait StepHook {
    /// Changes the loss or the gradients of the effective weights, before they are summed over the ranks.
    fn adjust(&mut self, _gradients: &mut EffectiveGradients) -> Result<()> {
        Ok(())
    }

    /// Looks at the raw parameters' gradients, times `loss_scale`, before they are clipped.
    fn observe(&mut self, _params: &Params, _gradients: &Gradients, _loss_scale: f32) -> Result<()> {
        Ok(())
    }

    /// Whether to apply a step whose loss and gradient norm are finite.
    fn decide(&mut self, _output: &StepOutput) -> bool {
        true
    }
}

impl StepHook for () {}

impl Trainer {
    /// A trainer at the start of a fresh run, in f32: runs the power iterations of the PC layers on the initial weights.
    pub fn new(
        mut params: Params,
        preconditioner: Option<Preconditioner>,
        optimizer: Box<dyn Optimizer>,
        max_grad_norm: f32,
    ) -> Result<Self> {
        if let Some(preconditioner) = &preconditioner {
            preconditioner.refresh(&mut params)?;
        }
        Ok(Self::resume(params, preconditioner, optimizer, max_grad_norm))
    }

    /// A trainer in f32 that continues from saved parameters and optimizer state: u and v stay as they were saved.
    pub fn resume(
        params: Params,
        preconditioner: Option<Preconditioner>,
        optimizer: Box<dyn Optimizer>,
        max_grad_norm: f32,
    ) -> Self {
        let steps = optimizer.state().steps();
        let (precision, loss_scale, replicas, ranks) = (Precision::F32, None, 1, None);
        Self { params, preconditioner, optimizer, max_grad_norm, precision, loss_scale, steps, replicas, ranks }
    }

    /// The same trainer with gradients that are summed in a tree of `replicas` leaves, of equally many micro-batches each. Any number of
    /// ranks that divides it gives the same bits. An error unless it is a power of two, or after `on_ranks`, which has divided the
    /// parameters by it.
    pub fn with_replicas(self, replicas: usize) -> Result<Self> {
        if self.ranks.is_some() {
            return Err(Error::Value("with_replicas: expected before `on_ranks`".into()));
        }
        if !replicas.is_power_of_two() {
            return Err(Error::Value(format!("{replicas} replicas: a power of two expected")));
        }
        Ok(Self { replicas, ..self })
    }

    /// One of several ranks that train together, each of which makes the same trainer first and then keeps what it owns. Returns once all
    /// are here. An error unless their number divides the trainer's replicas.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use polytape::*;
    /// # use polytape::optim::AdamW;
    /// let losses = std::thread::scope(|scope| {
    ///     let ranks = exchange::in_process(2, std::time::Duration::from_secs(60)).into_iter().map(Arc::new);
    ///     let train = |rank| -> Result<f32> {
    ///         let gpu = Gpu::open(&Default::default())?;
    ///         let mut params = Params::new(&gpu);
    ///         let w = params.add("w", Role::Vector, Tensor::from_slice(&gpu, &[1.0, 2.0], &[2])?)?;
    ///         let rule = Box::new(AdamW::new(Default::default()));
    ///         let trainer = Trainer::new(params, None, rule, 1.0)?.with_replicas(2)?;
    ///         let mut trainer = trainer.on_ranks(rank, Default::default())?;
    ///         // Two micro-batches, of which each rank computes one: i is 0 or 1.
    ///         Ok(trainer.step(2, 0.1, |tape, i| tape.param(w)?.sum()?.scale(i as f32))?.loss)
    ///     };
    ///     let threads: Vec<_> = ranks.map(|rank| scope.spawn(move || train(rank))).collect();
    ///     threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Result<Vec<_>>>()
    /// })?;
    /// assert_eq!(losses, [1.5, 1.5]); // the mean of 0·3 and 1·3, on both
    /// # Ok::<(), Error>(())
    /// ```
    pub fn on_ranks(mut self, exchange: Arc<dyn Exchange>, options: ExchangeOptions) -> Result<Self> {
        if self.ranks.is_some() {
            return Err(Error::Value("this trainer is one of several ranks already".into()));
        }
        let layout = Layout::new(&self.params, self.preconditioner.as_ref(), self.optimizer.as_ref(), self.replicas)?;
        let state: HashMap<String, Tensor> = self.optimizer.state_tensors(&self.params)?.into_iter().collect();
        let (mut ranks, own, preconditioner) =
            Ranks::divide(&self.params, self.preconditioner.as_ref(), layout, exchange, options)?;
        let load = &mut |name: &str| own_state(&state, &ranks, name);
        self.optimizer.load_state(&own, self.optimizer.state().steps(), load)?;
        self.params = own;
        self.preconditioner = preconditioner;
        ranks.publish(&self.params, self.preconditioner.as_ref())?;
        self.ranks = Some(ranks);
        Ok(self)
    }

    /// The same trainer at `precision`, with the loss scale that it starts with.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, loss_scale: (precision != Precision::F32).then(LossScale::default), ..self }
    }

    /// One optimizer step at the learning rate `lr` on the mean of `loss(tape, i)` over the micro-batches i < `micro_batches`.
    ///
    /// A loss or gradient norm that is not finite is [`Error::NonFinite`], with the step and the parameter: nothing has changed then.
    pub fn step<F>(&mut self, micro_batches: usize, lr: f32, loss: F) -> Result<StepOutput>
    where
        F: for<'t> Fn(&'t Tape<'t>, usize) -> Result<Var<'t>>,
    {
        self.step_with(micro_batches, lr, loss, &mut ())
    }

    /// [`Trainer::step`] with a hook between its pieces.
    pub fn step_with<F>(&mut self, micro_batches: usize, lr: f32, loss: F, hook: &mut dyn StepHook) -> Result<StepOutput>
    where
        F: for<'t> Fn(&'t Tape<'t>, usize) -> Result<Var<'t>>,
    {
        self.steps += 1;
        let mut effective = self.effective_gradients(micro_batches, loss)?;
        hook.adjust(&mut effective)?;
        let effective = self.exchange(effective)?;
        let (loss, gradients) = self.pull_back(effective)?;
        let clip = self.clip(&gradients)?;
        hook.observe(&self.params, &gradients, self.current_loss_scale())?;
        let mut output = self.decide(&loss, &clip)?;
        if output.skipped.is_none() && !hook.decide(&output) {
            output.skipped = Some(Skip::Hook);
        }
        if output.skipped.is_none() {
            self.apply(gradients, &clip, lr)?;
        }
        Ok(output)
    }

    /// The leaves of the gradient sum.
    pub fn replicas(&self) -> usize {
        self.replicas
    }

    /// What connects this rank with the others, where there are several.
    pub fn ranks(&self) -> Option<&dyn Exchange> {
        self.ranks.as_ref().map(Ranks::exchange)
    }

    /// What this rank has exchanged so far.
    pub fn traffic(&self) -> Traffic {
        self.ranks.as_ref().map_or_else(Traffic::default, Ranks::traffic)
    }

    /// Which of a step's micro-batches this rank computes: all of a single one. An error unless their number is a multiple of the
    /// replicas.
    pub fn micro_batches(&self, count: usize) -> Result<Range<usize>> {
        if !count.is_multiple_of(self.replicas) {
            let replicas = self.replicas;
            return Err(Error::Value(format!("{count} micro-batches: a multiple of the {replicas} replicas expected")));
        }
        let (rank, ranks) = self.ranks().map_or((0, 1), |exchange| (exchange.rank(), exchange.ranks()));
        Ok(rank * count / ranks..(rank + 1) * count / ranks)
    }

    /// Piece 1: the mean loss and its gradients with respect to the effective weights, times the loss scale where there is one; of several
    /// ranks, the part of both that this one's micro-batches make up.
    pub fn effective_gradients<F>(&self, micro_batches: usize, loss: F) -> Result<EffectiveGradients>
    where
        F: for<'t> Fn(&'t Tape<'t>, usize) -> Result<Var<'t>>,
    {
        let own = self.micro_batches(micro_batches)?;
        let effective = match (&self.ranks, &self.preconditioner) {
            (None, Some(preconditioner)) => Some(preconditioner.effective(&self.params)?),
            _ => None,
        };
        let weights = match (&self.ranks, &effective) {
            (Some(ranks), _) => &ranks.weights,
            (None, Some(effective)) => &effective.params,
            (None, None) => &self.params,
        };
        let leaves = self.replicas / self.ranks().map_or(1, Exchange::ranks);
        let length = own.len() / leaves;
        let leaf = |number: usize, gradients: Gradients| {
            let first = own.start + number * length;
            self.leaf(weights, first..first + length, micro_batches, &loss, gradients)
        };
        let mut tree = Tree::new();
        for number in 0..leaves - 1 {
            tree.push(leaf(number, Gradients::new())?, Leaf::join)?;
        }
        let known = self.ranks.as_ref().and_then(|ranks| Some((ranks, ranks.final_additions(length)?)));
        if let Some((ranks, additions)) = known {
            let (losses, earlier): (Vec<Tensor>, Vec<Gradients>) =
                tree.into_waiting().map(|leaf| (leaf.loss, leaf.gradients)).unzip();
            let sending = ranks.begin_sending(earlier)?;
            let Leaf { loss, gradients } = leaf(leaves - 1, Gradients::watched(additions, sending.sender()))?;
            let loss = losses.into_iter().rev().try_fold(loss, |sum, left| left.accumulate(sum))?;
            return Ok(EffectiveGradients { loss, gradients, effective, sending: Some(sending) });
        }
        let last = leaf(leaves - 1, Gradients::new())?;
        if let Some(ranks) = &self.ranks {
            ranks.learn(&last.gradients, length);
        }
        tree.push(last, Leaf::join)?;
        let Leaf { loss, gradients } = tree.root().expect("bug: there is a leaf");
        Ok(EffectiveGradients { loss, gradients, effective, sending: None })
    }

    /// The sums over some of a step's `count` micro-batches, in order.
    fn leaf<F>(
        &self,
        weights: &Params,
        micro_batches: Range<usize>,
        count: usize,
        loss: F,
        mut gradients: Gradients,
    ) -> Result<Leaf>
    where
        F: for<'t> Fn(&'t Tape<'t>, usize) -> Result<Var<'t>>,
    {
        let mut total = Tensor::zeros(self.params.gpu(), &[1])?;
        for index in micro_batches {
            let tape = Tape::new(weights).with_precision(self.precision);
            let share = loss(&tape, index)?.scale(1.0 / count as f32)?;
            total = total.accumulate(share.value().duplicate()?)?;
            tape.backward_scaled(&share, self.current_loss_scale(), &mut gradients)?;
        }
        Ok(Leaf { loss: total, gradients })
    }

    /// Piece 3: the loss of all ranks, and of their gradients, those of the parameters that this one owns. Changes nothing where there is
    /// one rank.
    pub fn exchange(&self, gradients: EffectiveGradients) -> Result<EffectiveGradients> {
        let Some(ranks) = &self.ranks else { return Ok(gradients) };
        let EffectiveGradients { loss, gradients, effective, sending } = gradients;
        let Leaf { loss, gradients } = ranks.sum(Leaf { loss, gradients }, sending)?;
        Ok(EffectiveGradients { loss, gradients, effective, sending: None })
    }

    /// Piece 4: the loss, and the gradients of the raw parameters.
    pub fn pull_back(&self, effective: EffectiveGradients) -> Result<(Tensor, Gradients)> {
        let EffectiveGradients { loss, mut gradients, effective, .. } = effective;
        let effective = effective.as_ref().or(self.ranks.as_ref().and_then(|ranks| ranks.scalars.as_ref()));
        if let (Some(preconditioner), Some(effective)) = (&self.preconditioner, effective) {
            gradients = preconditioner.backward(&self.params, effective, gradients)?;
        }
        Ok((loss, gradients))
    }

    /// Pieces 1, 3 and 4: the mean loss and its gradients with respect to the raw parameters, times the loss scale where there is one.
    pub fn gradients<F>(&self, micro_batches: usize, loss: F) -> Result<(Tensor, Gradients)>
    where
        F: for<'t> Fn(&'t Tape<'t>, usize) -> Result<Var<'t>>,
    {
        let effective = self.effective_gradients(micro_batches, loss)?;
        let effective = self.exchange(effective)?;
        self.pull_back(effective)
    }

    /// Piece 5: the global norm of the gradients, still on the device.
    pub fn clip(&self, gradients: &Gradients) -> Result<Clip> {
        let loss_scale = self.current_loss_scale();
        if let Some(ranks) = &self.ranks {
            return ranks.connection().clip(gradients, self.max_grad_norm, loss_scale);
        }
        Clip::with_loss_scale(self.params.gpu(), gradients, self.max_grad_norm, loss_scale)
    }

    /// Piece 6: waits for the device, adjusts the loss scale, and refuses what is not finite; on several ranks, by the numbers of the first.
    pub fn decide(&mut self, loss: &Tensor, clip: &Clip) -> Result<StepOutput> {
        let loss_scale = self.current_loss_scale();
        let [loss, norm] = read_all([loss, clip.values()])?;
        let own = [loss[0], norm[0]];
        let [loss, grad_norm] = self.ranks.as_ref().map_or(Ok(own), |ranks| ranks.connection().of_first(own))?;
        let overflowed = self.loss_scale.as_mut().is_some_and(|scale| scale.update(loss, grad_norm));
        let is_finite = loss.is_finite() && grad_norm.is_finite();
        if !overflowed && !is_finite {
            let id = clip.first_non_finite()?;
            let name = |id| match &self.ranks {
                Some(ranks) => Ok(ranks.name(id)),
                None => Ok(Some(self.params.get(id)?.name.clone())),
            };
            let parameter = id.map(name).transpose()?.flatten();
            return Err(Error::NonFinite { step: self.steps, loss, grad_norm, parameter });
        }
        Ok(StepOutput { loss, grad_norm, loss_scale, skipped: overflowed.then_some(Skip::Overflow) })
    }

    /// Piece 7: updates the parameters, and u and v with them, and the effective weights of all ranks.
    pub fn apply(&mut self, gradients: Gradients, clip: &Clip, lr: f32) -> Result<()> {
        self.optimizer.step(&mut self.params, gradients, clip, lr)?;
        if let Some(preconditioner) = &self.preconditioner {
            preconditioner.refresh(&mut self.params)?;
        }
        match &mut self.ranks {
            Some(ranks) => ranks.publish(&self.params, self.preconditioner.as_ref()),
            None => Ok(()),
        }
    }

    fn current_loss_scale(&self) -> f32 {
        self.loss_scale.as_ref().map_or(1.0, |loss_scale| loss_scale.scale)
    }

    /// The weights for evaluation: effective ones where there are PC layers. [`Tape::inference`] evaluates them in f32.
    pub fn effective_params(&self) -> Result<Params> {
        match (&self.ranks, &self.preconditioner) {
            (Some(ranks), _) => Ok(ranks.weights.clone()),
            (None, Some(preconditioner)) => Ok(preconditioner.effective(&self.params)?.params),
            (None, None) => Ok(self.params.clone()),
        }
    }

    /// Number of trainable values, of all ranks together.
    pub fn numel(&self) -> usize {
        self.ranks.as_ref().map_or_else(|| self.params.numel(), Ranks::numel)
    }

    /// (The parameters, the optimizer's state) for a checkpoint: the same lists from any number of ranks.
    pub fn stored(&self) -> Result<(Vec<Stored>, Vec<Stored>)> {
        if let Some(ranks) = &self.ranks {
            return exchange::stored(ranks.connection(), &self.params, self.optimizer.as_ref());
        }
        let model = self.params.iter().map(|(_, param)| Stored::whole(param.name.clone(), param.tensor.clone()));
        let state = self.optimizer.state_tensors(&self.params)?;
        Ok((model.collect(), state.into_iter().map(|(name, tensor)| Stored::whole(name, tensor)).collect()))
    }

    /// The optimizer's state from a checkpoint: `load` returns what of the first dimension of a tensor this rank needs, `None` for all of
    /// it.
    pub fn load_state(&mut self, steps: u64, load: &mut LoadRows<'_>) -> Result<()> {
        let Self { optimizer, params, ranks, .. } = self;
        optimizer.load_state(params, steps, &mut |name| {
            let origin = name.rsplit_once('.').and_then(|(own, slot)| Some((ranks.as_ref()?.origin(own)?, slot)));
            match origin {
                Some(((whole, rows), slot)) => load(&format!("{whole}.{slot}"), rows),
                None => load(name, None),
            }
        })
    }
}

/// An own parameter's state, out of that of the complete set.
fn own_state(state: &HashMap<String, Tensor>, ranks: &Ranks, name: &str) -> Result<Tensor> {
    let missing = || Error::Value(format!("optimizer state: no `{name}`"));
    let (own, slot) = name.rsplit_once('.').ok_or_else(missing)?;
    let (whole, rows) = ranks.origin(own).ok_or_else(missing)?;
    let tensor = state.get(&format!("{whole}.{slot}")).ok_or_else(missing)?;
    rows.map_or_else(|| Ok(tensor.clone()), |rows| tensor.slice_dim(0, rows))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_trainer_moves_between_threads() {
        fn is_send<T: Send>() {}
        is_send::<super::Trainer>();
    }
}
