//! [`Trainer`]: one optimizer step over several micro-batches, for any model.
//!
//! There is one way through a step, [`Trainer::step_with`], made of named pieces that a caller may also call by themselves:
//!
//! 1. [`Trainer::effective_gradients`]: mean loss, and gradients of the effective weights, summed over the micro-batches. The
//!    effective weights are computed once per step.
//! 2. [`StepHook::exchange`]: may combine both with those of other processes, or change them.
//! 3. [`Trainer::pull_back`]: through the PC layers to the raw parameters, once per step.
//! 4. [`Trainer::clip`]: the global norm, and the factor that clips and unscales.
//! 5. [`Trainer::decide`] with [`StepHook::decide`]: apply or skip. A step that is not finite is an error, and is never applied.
//! 6. [`Trainer::apply`]: the optimizer's update, then the power iterations.

use crate::error::{Error, Result};
use crate::optim::{Clip, LossScale, Optimizer};
use crate::params::{Gradients, Params};
use crate::precision::Precision;
use crate::spectral::{Effective, Preconditioner};
use crate::tape::{Tape, Var};
use crate::tensor::{Tensor, read_all};

/// Parameters with the rule that trains them.
pub struct Trainer {
    /// The raw parameters.
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
}

/// The gradients of a step, at the weights that the model saw.
#[derive(Debug)]
pub struct EffectiveGradients {
    /// Mean loss of the micro-batches, `[1]`.
    pub loss: Tensor,
    /// With respect to the effective weights, times the loss scale.
    pub gradients: Gradients,
    effective: Option<Effective>,
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
    /// Combines the loss and the gradients of the effective weights with those of other processes, or changes them.
    fn exchange(&mut self, _gradients: &mut EffectiveGradients) -> Result<()> {
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
        Self { params, preconditioner, optimizer, max_grad_norm, precision: Precision::F32, loss_scale: None, steps }
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
        hook.exchange(&mut effective)?;
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

    /// Piece 1: the mean loss and its gradients with respect to the effective weights, times the loss scale where there is one.
    pub fn effective_gradients<F>(&self, micro_batches: usize, loss: F) -> Result<EffectiveGradients>
    where
        F: for<'t> Fn(&'t Tape<'t>, usize) -> Result<Var<'t>>,
    {
        let effective = self.preconditioner.as_ref().map(|pc| pc.effective(&self.params)).transpose()?;
        let weights = effective.as_ref().map_or(&self.params, |effective| &effective.params);
        let mut gradients = Gradients::new();
        let mut total = Tensor::zeros(self.params.gpu(), &[1])?;
        for index in 0..micro_batches {
            let tape = Tape::new(weights).with_precision(self.precision);
            let share = loss(&tape, index)?.scale(1.0 / micro_batches as f32)?;
            total = total.accumulate(share.value().duplicate()?)?;
            tape.backward_scaled(&share, self.current_loss_scale(), &mut gradients)?;
        }
        Ok(EffectiveGradients { loss: total, gradients, effective })
    }

    /// Piece 3: the loss, and the gradients of the raw parameters.
    pub fn pull_back(&self, effective: EffectiveGradients) -> Result<(Tensor, Gradients)> {
        let EffectiveGradients { loss, mut gradients, effective } = effective;
        if let (Some(preconditioner), Some(effective)) = (&self.preconditioner, &effective) {
            gradients = preconditioner.backward(&self.params, effective, gradients)?;
        }
        Ok((loss, gradients))
    }

    /// Pieces 1 and 3: the mean loss and its gradients with respect to the raw parameters, times the loss scale where there is one.
    pub fn gradients<F>(&self, micro_batches: usize, loss: F) -> Result<(Tensor, Gradients)>
    where
        F: for<'t> Fn(&'t Tape<'t>, usize) -> Result<Var<'t>>,
    {
        self.pull_back(self.effective_gradients(micro_batches, loss)?)
    }

    /// Piece 4: the global norm of the gradients, still on the device.
    pub fn clip(&self, gradients: &Gradients) -> Result<Clip> {
        Clip::with_loss_scale(self.params.gpu(), gradients, self.max_grad_norm, self.current_loss_scale())
    }

    /// Piece 5: waits for the device, adjusts the loss scale, and refuses what is not finite.
    pub fn decide(&mut self, loss: &Tensor, clip: &Clip) -> Result<StepOutput> {
        let loss_scale = self.current_loss_scale();
        let [loss, norm] = read_all([loss, clip.values()])?;
        let (loss, grad_norm) = (loss[0], norm[0]);
        let overflowed = self.loss_scale.as_mut().is_some_and(|scale| scale.update(loss, grad_norm));
        if !overflowed && !(loss.is_finite() && grad_norm.is_finite()) {
            let id = if loss.is_finite() { clip.first_non_finite()? } else { None };
            let parameter = id.map(|id| self.params.get(id).name.clone());
            return Err(Error::NonFinite { step: self.steps, loss, grad_norm, parameter });
        }
        Ok(StepOutput { loss, grad_norm, loss_scale, skipped: overflowed.then_some(Skip::Overflow) })
    }

    /// Piece 6: updates the parameters, and u and v with them.
    pub fn apply(&mut self, gradients: Gradients, clip: &Clip, lr: f32) -> Result<()> {
        self.optimizer.step(&mut self.params, gradients, clip, lr)?;
        match &self.preconditioner {
            Some(preconditioner) => preconditioner.refresh(&mut self.params),
            None => Ok(()),
        }
    }

    fn current_loss_scale(&self) -> f32 {
        self.loss_scale.as_ref().map_or(1.0, |loss_scale| loss_scale.scale)
    }

    /// The weights for evaluation: effective ones where there are PC layers. [`Tape::inference`] evaluates them in f32.
    pub fn effective_params(&self) -> Result<Params> {
        match &self.preconditioner {
            Some(preconditioner) => Ok(preconditioner.effective(&self.params)?.params),
            None => Ok(self.params.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_trainer_moves_between_threads() {
        fn is_send<T: Send>() {}
        is_send::<super::Trainer>();
    }
}
