//! [`Trainer`]: one optimizer step over several micro-batches, for any model.
//!
//! The effective weights are computed once per step and used by every micro-batch; the accumulated gradient goes back through
//! the polynomial once. Nothing is read back: the outcome's scalars stay on the device until asked for, unless a loss scale depends
//! on them.

use crate::error::Result;
use crate::optim::{Clip, LossScale, Optimizer};
use crate::params::{Gradients, ParamId, Params};
use crate::precision::Precision;
use crate::spectral::Preconditioner;
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
    /// Of the model's products. Parameters, gradients, the optimizer and the PC layers are f32.
    pub precision: Precision,
    /// The backward's factor, for a precision in which gradients may vanish. The norm of every step is read back for it.
    pub loss_scale: Option<LossScale>,
}

/// What a step measured, still on the device.
#[derive(Debug, Clone)]
pub struct StepOutcome {
    loss: Tensor,
    clip: Clip,
    loss_scale: f32,
    skipped: bool,
}

/// A step up to its update: the gradients are there, no parameter has changed; see [`Trainer::measure`].
#[derive(Debug)]
pub struct Measured {
    /// Loss and gradient norm, on the device.
    pub outcome: StepOutcome,
    /// With respect to the raw parameters, before clipping, times [`StepOutcome::loss_scale`].
    pub gradients: Gradients,
}

impl StepOutcome {
    /// The mean loss `[1]`, and the gradient norm before clipping with the factor that clips and unscales the gradients `[2]`, on
    /// the device.
    pub fn values(&self) -> [&Tensor; 2] {
        [&self.loss, self.clip.values()]
    }

    /// Waits for the device: (mean loss of the micro-batches, gradient norm before clipping).
    pub fn read(&self) -> Result<(f32, f32)> {
        let [loss, clip] = read_all([&self.loss, self.clip.values()])?;
        Ok((loss[0], clip[0]))
    }

    /// Waits for the device: the first parameter whose gradient held an infinity or a NaN.
    pub fn first_non_finite(&self) -> Result<Option<ParamId>> {
        self.clip.first_non_finite()
    }

    /// What the loss was multiplied by for the backward; loss and norm are without it.
    pub fn loss_scale(&self) -> f32 {
        self.loss_scale
    }

    /// Whether [`Trainer::step`] left the step out because its gradients overflowed: no parameter has changed.
    pub fn is_skipped(&self) -> bool {
        self.skipped
    }
}

impl Trainer {
    /// A trainer at the start of a fresh run, in f32: brings u and v up to the weights. One that goes on from a checkpoint is made
    /// of its fields, with u and v as they were saved.
    pub fn new(
        mut params: Params,
        preconditioner: Option<Preconditioner>,
        optimizer: Box<dyn Optimizer>,
        max_grad_norm: f32,
    ) -> Result<Self> {
        if let Some(preconditioner) = &preconditioner {
            preconditioner.refresh(&mut params)?;
        }
        Ok(Self { params, preconditioner, optimizer, max_grad_norm, precision: Precision::F32, loss_scale: None })
    }

    /// The same trainer at `precision`, with the loss scale that it needs at its start.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, loss_scale: (precision != Precision::F32).then(LossScale::default), ..self }
    }

    /// One optimizer step at learning rate `rate` on the mean of `loss(tape, i)` over the micro-batches i < `micro_batches`.
    pub fn step<F>(&mut self, micro_batches: usize, rate: f32, loss: F) -> Result<StepOutcome>
    where
        F: for<'t> Fn(&'t Tape<'t>, usize) -> Result<Var<'t>>,
    {
        let mut measured = self.measure(micro_batches, loss)?;
        if let Some(loss_scale) = &mut self.loss_scale {
            let (loss, norm) = measured.outcome.read()?;
            measured.outcome.skipped = loss_scale.overflows(loss, norm);
        }
        if measured.outcome.skipped { Ok(measured.outcome) } else { self.apply(measured, rate) }
    }

    /// The first half of [`Trainer::step`]: gradients and their norm. Dropping them skips the step.
    pub fn measure<F>(&self, micro_batches: usize, loss: F) -> Result<Measured>
    where
        F: for<'t> Fn(&'t Tape<'t>, usize) -> Result<Var<'t>>,
    {
        let (loss, gradients) = self.gradients(micro_batches, loss)?;
        let loss_scale = self.scale();
        let clip = Clip::unscaling(self.params.gpu(), &gradients, self.max_grad_norm, loss_scale)?;
        Ok(Measured { outcome: StepOutcome { loss, clip, loss_scale, skipped: false }, gradients })
    }

    /// The second half of [`Trainer::step`]: updates the parameters.
    pub fn apply(&mut self, measured: Measured, rate: f32) -> Result<StepOutcome> {
        let Measured { outcome, gradients } = measured;
        self.optimizer.step(&mut self.params, gradients, &outcome.clip, rate)?;
        if let Some(preconditioner) = &self.preconditioner {
            preconditioner.refresh(&mut self.params)?;
        }
        Ok(outcome)
    }

    fn scale(&self) -> f32 {
        self.loss_scale.as_ref().map_or(1.0, |loss_scale| loss_scale.scale)
    }

    /// The mean loss and its gradients with respect to the raw parameters, before clipping, times the loss scale where there is one.
    pub fn gradients<F>(&self, micro_batches: usize, loss: F) -> Result<(Tensor, Gradients)>
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
            tape.backward_scaled(&share, self.scale(), &mut gradients)?;
        }
        if let (Some(preconditioner), Some(effective)) = (&self.preconditioner, &effective) {
            gradients = preconditioner.backward(&self.params, effective, gradients)?;
        }
        Ok((total, gradients))
    }

    /// The weights for evaluation: effective ones where there are PC layers. [`Tape::inference`] evaluates them in f32.
    pub fn effective_params(&self) -> Result<Params> {
        match &self.preconditioner {
            Some(preconditioner) => Ok(preconditioner.effective(&self.params)?.params),
            None => Ok(self.params.clone()),
        }
    }
}
