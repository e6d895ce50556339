//! The training loop: steps, metrics, checkpoints.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use polytape::exchange::Traffic;
use polytape::gpu::KernelTier;
use polytape::llama::Llama;
use polytape::optim::Schedule;
use polytape::{Error, Gpu, Gradients, Params, Skip, StepHook, StepOutput, Tensor, Trainer, rms_and_abs_max};

use super::signals::Signals;
use super::world::World;
use super::{layers, scaling, schedule};
use crate::config::Config;
use crate::data::windows::Windows;
use crate::model::engine;
use crate::model::evaluate::{self, upload};
use crate::model::flops;
use crate::model::spectra;
use crate::run::checkpoint::{Scaling, Spikes, State, Writer};
use crate::run::folder::Run;
use crate::run::measured::{Exchanged, Gmcn, Layers, SigmaError};
use crate::run::metrics::{Metrics, Smoothed, losses, read_metrics};
use crate::run::paths;
use crate::terminal::failure::Failure;
use crate::terminal::format::{binary, duration, grouped};
use crate::terminal::progress::Progress;
use crate::terminal::{output, picture};

/// What a session starts from: a new run, or a restored checkpoint.
pub struct Start {
    pub gpu: Gpu,
    pub llama: Llama,
    pub trainer: Trainer,
    pub windows: Windows,
    pub validation: Option<Windows>,
    /// The run's folder, at the rank that writes it.
    pub run: Option<Run>,
    /// Its path.
    pub path: PathBuf,
    pub state: State,
    /// Step of the newest checkpoint.
    pub newest: Option<u64>,
    pub peak_tflops: Option<f64>,
    pub world: Rc<World>,
}

/// A run in training.
pub struct Session {
    config: Config,
    gpu: Gpu,
    llama: Llama,
    trainer: Trainer,
    schedule: Schedule,
    windows: Windows,
    validation: Option<Windows>,
    run: Option<Run>,
    path: PathBuf,
    world: Rc<World>,
    state: State,
    writer: Writer,
    smoothed: Smoothed,
    /// MFU at one token per second, if the user gives the peak.
    mfu_per_speed: Option<f64>,
    signals: Arc<Signals>,
    /// What this rank had exchanged when metrics were last written.
    exchanged: Traffic,
    clock: Clock,
}

/// Training time, and when metrics were last written.
struct Clock {
    started: Instant,
    /// Training time of earlier processes.
    earlier: Duration,
    last: (Instant, u64),
}

impl Clock {
    fn new(state: &State) -> Self {
        let now = Instant::now();
        Self { started: now, earlier: Duration::from_millis(state.milliseconds), last: (now, state.tokens) }
    }

    fn elapsed(&self) -> Duration {
        self.earlier + self.started.elapsed()
    }
}

/// What happens between the pieces of a step: layers are measured, spikes skipped.
struct Hook<'a> {
    spikes: Option<(&'a mut Spikes, f64)>,
    residuals: Option<&'a RefCell<Vec<Tensor>>>,
    blocks: usize,
    layers: Option<Layers>,
}

impl StepHook for Hook<'_> {
    fn observe(&mut self, params: &Params, gradients: &Gradients, loss_scale: f32) -> polytape::Result<()> {
        if let Some(residuals) = self.residuals {
            self.layers = Some(layers::layer_metrics(params, gradients, loss_scale, &residuals.borrow(), self.blocks)?);
        }
        Ok(())
    }

    fn decide(&mut self, output: &StepOutput) -> bool {
        self.spikes.as_mut().is_none_or(|(spikes, deviations)| !spikes.judge(output.grad_norm, *deviations))
    }
}

impl Session {
    pub fn new(config: Config, start: Start) -> Result<Self, Failure> {
        let mut smoothed = Smoothed::default();
        if let Some(run) = &start.run {
            for row in read_metrics(run.path())? {
                smoothed.add(row.loss);
            }
        }
        let per_token = flops::per_token(&engine::model(&config), config.data.seq_len);
        Ok(Self {
            schedule: engine::schedule(&config),
            writer: Writer::new(&start.path, start.run.is_some(), config.train.keep_checkpoints, start.newest),
            mfu_per_speed: start.peak_tflops.map(|peak| per_token / (peak * 1e12)),
            clock: Clock::new(&start.state),
            signals: Signals::listen(&start.world, &start.path)?,
            exchanged: start.trainer.traffic(),
            smoothed,
            config,
            gpu: start.gpu,
            llama: start.llama,
            trainer: start.trainer,
            windows: start.windows,
            validation: start.validation,
            run: start.run,
            path: start.path,
            world: start.world,
            state: start.state,
        })
    }

    /// Writes the run's `config.toml`.
    pub fn write_config(&self) -> Result<(), Failure> {
        self.run.as_ref().map_or(Ok(()), |run| run.write_config(&self.config))
    }

    fn log(&mut self, line: &str) -> Result<(), Failure> {
        self.run.as_mut().map_or(Ok(()), |run| self.world.busy(|| run.log(line)))
    }

    /// Announces the run.
    pub fn announce(&mut self) -> Result<(), Failure> {
        let adapter = self.gpu.adapter();
        let ranks = match self.world.ranks() {
            1 => String::new(),
            ranks => format!(", on {ranks} ranks"),
        };
        let resumed = match self.writer.begun() {
            Some(step) if step > 0 => format!(", resuming after step {step}"),
            _ => String::new(),
        };
        // Products are split by it, and their bits depend on it; the host kernels split none.
        let occupancy = match self.gpu.kernels() {
            KernelTier::Host => String::new(),
            _ => format!(", {} workgroups at full occupancy", self.gpu.full_occupancy()),
        };
        let line = format!(
            "{}: {} parameters on {} ({}, {} kernels{occupancy}), {} windows of {} tokens{ranks}{resumed}",
            self.path.display(),
            grouped(self.trainer.numel() as u64),
            adapter.name,
            adapter.driver,
            self.gpu.kernels(),
            grouped(self.windows.count()),
            self.config.data.seq_len,
        );
        let warning = scaling::warning(self.trainer.precision, self.gpu.kernels());
        let note = schedule::note(&self.schedule);
        for line in [Some(line), warning, note].into_iter().flatten() {
            if self.world.is_first() {
                output::note(&line);
            }
            self.log(&line)?;
        }
        Ok(())
    }

    /// Runs all remaining steps, or until the user interrupts.
    pub fn train(&mut self) -> Result<(), Failure> {
        self.steps().map_err(|failure| self.place(failure))
    }

    /// Writes the last checkpoint and the loss curve, and prints a summary.
    pub fn finish(&mut self, profile: bool) -> Result<(), Failure> {
        let world = self.world.clone();
        world.busy(|| self.close(profile)).map_err(|failure| self.place(failure))
    }

    fn steps(&mut self) -> Result<(), Failure> {
        let steps = self.config.train.steps;
        let mut progress = Progress::new("train", self.state.step, steps);
        while self.state.step < steps && !self.is_asked_to_end()? {
            let lr = self.config.optimizer.lr * self.schedule.factor(self.state.step);
            let (output, layers) = self.step(lr)?;
            let train = &self.config.train;
            let (validate, log) = (self.is_due(train.val_every), self.is_due(train.log_every));
            let checkpoint = self.is_due(train.checkpoint_every);
            let spectrum = self.is_due(train.log_spectrum_every);
            if log || validate || spectrum || output.skipped.is_some() || layers.is_some() {
                let row = self.record(output, layers, lr, validate)?;
                let smoothed = self.smoothed.add(row.loss);
                progress.set(self.state.step, &row.summary(smoothed));
                self.report(&row, &progress)?;
            }
            self.world.has_started();
            if checkpoint && self.state.step < steps {
                self.save()?;
            }
            self.writer.check()?;
        }
        progress.finish();
        Ok(())
    }

    /// Whether a signal has asked any rank to end. The first rank tells the others of the newest checkpoint, too.
    fn is_asked_to_end(&mut self) -> Result<bool, Failure> {
        let (stop, complete) = self.world.call(self.signals.stop(), self.writer.complete())?;
        self.writer.hear(complete);
        self.signals.tell(self.state.step, self.writer.complete());
        Ok(stop)
    }

    /// Whether all steps are done: not so after Ctrl-C.
    pub fn is_done(&self) -> bool {
        self.state.step >= self.config.train.steps
    }

    /// Whether something with this interval is due after the current step; it always is after the last.
    fn is_due(&self, every: u64) -> bool {
        every > 0 && (self.state.step == self.config.train.steps || self.state.step.is_multiple_of(every))
    }

    /// One optimizer step, with the measurements of its layers where they are due.
    fn step(&mut self, lr: f64) -> Result<(StepOutput, Option<Layers>), Failure> {
        let train = &self.config.train;
        let own = self.trainer.micro_batches(train.grad_accumulation)?;
        let begin = self.windows.position();
        self.windows.seek(begin + (own.start * train.batch_size) as u64);
        let batches = own
            .clone()
            .map(|_| upload(&self.gpu, &self.windows.next_batch(train.batch_size)?))
            .collect::<Result<Vec<_>, Failure>>()?;
        self.windows.seek(begin + (train.grad_accumulation * train.batch_size) as u64);
        let seq_len = self.config.data.seq_len;
        self.state.step += 1;
        self.state.tokens += (train.grad_accumulation * train.batch_size * seq_len) as u64;
        self.state.position = self.windows.position();

        let (llama, observe_layers) = (&self.llama, self.is_due(train.log_layers_every));
        let residuals = RefCell::new(Vec::new());
        let mut hook = Hook {
            spikes: (train.skip_spikes > 0.0).then_some((&mut self.state.spikes, train.skip_spikes)),
            residuals: observe_layers.then_some(&residuals),
            blocks: self.config.model.layers,
            layers: None,
        };
        let stepped = self.trainer.step_with(
            train.grad_accumulation,
            lr as f32,
            |tape, i| {
                let (inputs, targets) = &batches[i - own.start];
                if !observe_layers {
                    return llama.loss(tape, inputs, targets, seq_len);
                }
                llama.observed_loss(tape, inputs, targets, seq_len, |x| {
                    residuals.borrow_mut().push(rms_and_abs_max(&[x])?);
                    Ok(())
                })
            },
            &mut hook,
        );
        let layers = hook.layers;
        let output = stepped.map_err(|error| self.explain(error))?;
        if let Some(loss_scale) = &self.trainer.loss_scale {
            let overflowed = output.skipped == Some(Skip::Overflow);
            self.state.loss_scale = Some(Scaling::after(self.state.loss_scale.as_ref(), loss_scale, overflowed));
        }
        // The layers of a step whose gradients overflowed hold infinities.
        Ok((output, layers.filter(|_| output.skipped != Some(Skip::Overflow))))
    }

    /// Validates where it is due, and writes the step's line of metrics.
    fn record(&mut self, output: StepOutput, layers: Option<Layers>, lr: f64, validate: bool) -> Result<Metrics, Failure> {
        let now = Instant::now();
        let (before, tokens_before) = self.clock.last;
        let tokens_per_second = (self.state.tokens - tokens_before) as f64 / (now - before).as_secs_f64().max(1e-9);
        let val_loss = if validate { self.validate()? } else { None };
        if let Some(loss) = val_loss.filter(|loss| !loss.is_finite()) {
            let step = self.state.step;
            return Err(self.not_finite(format!("step {step}: the validation loss is {loss}, expected a finite number")));
        }
        let row = Metrics {
            step: self.state.step,
            tokens: self.state.tokens,
            loss: f64::from(output.loss),
            grad_norm: output.grad_norm.is_finite().then_some(f64::from(output.grad_norm)),
            lr,
            tokens_per_second,
            seconds: self.clock.elapsed().as_secs_f64(),
            memory_bytes: self.gpu.memory().peak,
            mfu: self.mfu_per_speed.map(|share| share * tokens_per_second),
            ranks: self.exchanged()?,
            val_loss,
            loss_scale: self.trainer.loss_scale.is_some().then_some(output.loss_scale),
            skipped: output.skipped.is_some(),
            skipped_steps: self.state.skipped(),
            gmcn: self.condition()?,
            sigma_error: self.estimate()?,
            layers,
        };
        if let Some(run) = &mut self.run {
            self.world.busy(|| run.record(&row))?;
        }
        self.clock.last = (Instant::now(), self.state.tokens);
        Ok(row)
    }

    /// What the ranks have exchanged since this was last asked.
    fn exchanged(&mut self) -> Result<Option<Exchanged>, Failure> {
        if self.world.is_alone() {
            return Ok(None);
        }
        let now = self.trainer.traffic();
        let own = (now.sent - self.exchanged.sent, (now.time - self.exchanged.time).as_secs_f64());
        self.exchanged = now;
        Ok(Some(self.world.exchanged(own)?))
    }

    /// Prints and logs skipped steps and validations.
    fn report(&mut self, row: &Metrics, progress: &Progress) -> Result<(), Failure> {
        let step = row.step;
        let reason = match row.grad_norm {
            Some(norm) => format!("its gradient norm {norm:.4} is a spike"),
            None => format!("its gradients overflow at a loss scale of {}", row.loss_scale.unwrap_or_default()),
        };
        if !self.world.is_first() {
            return Ok(());
        }
        if row.skipped {
            let line = format!("step {step}: skipped, {reason}");
            progress.note(&line);
            self.log(&line)?;
        }
        if let Some(val_loss) = row.val_loss {
            progress.note(&format!("step {step}: validation loss {val_loss:.4}"));
            self.log(&format!("step {step}: loss {:.6}, validation loss {val_loss:.6}", row.loss))?;
        }
        Ok(())
    }

    /// The error of a step. One that is not finite ends the run; the checkpoints stay.
    fn explain(&self, error: Error) -> Failure {
        match error {
            Error::NonFinite { .. } => self.not_finite(error.to_string()),
            error => self.world.explain(error),
        }
    }

    /// The failure for a non-finite value, which all ranks see; rank 0 reports it.
    fn not_finite(&self, message: String) -> Failure {
        self.world.leave_it_to_the_first();
        let range = if self.trainer.loss_scale.is_some() { ", or the wider range of train.precision = \"f32\"" } else { "" };
        let cure = "a smaller optimizer.lr or a longer schedule.warmup_steps may help";
        Failure::other(message).hint(format!("{cure}{range}")).diverged()
    }

    /// A failure in a step: how the run goes on and, of several ranks, in which step.
    fn place(&mut self, failure: Failure) -> Failure {
        self.world.busy(|| self.writer.settle());
        let newest = paths::newest(self.writer.complete());
        let failure = failure.and_hint(&format!("{newest}; to resume: {}", self.world.resume_command(&self.path)));
        if self.world.is_alone() { failure } else { failure.within_step(self.state.step) }
    }

    /// Mean loss over the first `val_batches` batches of the validation data.
    fn validate(&mut self) -> Result<Option<f64>, Failure> {
        let Some(windows) = &mut self.validation else { return Ok(None) };
        windows.seek(0);
        let params: Params = self.trainer.effective_params()?;
        let limit = (self.config.train.val_batches as u64).saturating_mul(self.config.train.batch_size as u64);
        let (batch, seq_len) = (self.config.train.batch_size, self.config.data.seq_len);
        let (rank, ranks) = (self.world.rank() as u64, self.world.ranks() as u64);
        let count = evaluate::batches(windows, limit, batch);
        let own = rank * count / ranks..(rank + 1) * count / ranks;
        let losses = evaluate::batch_losses(&self.llama, &params, windows, (limit, batch, seq_len), own, |_| {})?;
        // Every rank measures some batches; all are added up in order.
        let all = self.world.gather_losses(&losses)?;
        Ok(Some(evaluate::mean(&all, seq_len).loss))
    }

    /// The condition numbers, on the steps that measure them.
    fn condition(&self) -> Result<Option<Gmcn>, Failure> {
        let due = self.world.is_first() && self.is_due(self.config.train.log_spectrum_every);
        let measure = || spectra::gmcn(&self.config, &self.trainer.effective_params()?);
        due.then(|| self.world.busy(measure)).transpose()
    }

    /// The error of the PC layers' norms, on the same steps.
    fn estimate(&self) -> Result<Option<SigmaError>, Failure> {
        // Of several ranks, none has all layers.
        let due = self.world.is_alone() && self.is_due(self.config.train.log_spectrum_every);
        if due { spectra::sigma_error(&self.config, &self.trainer.params) } else { Ok(None) }
    }

    /// Saves the run's current state unless it is already saved; writing to disk overlaps with training.
    pub fn save(&mut self) -> Result<(), Failure> {
        if self.writer.begun() == Some(self.state.step) {
            return Ok(());
        }
        self.wait_for_save()?;
        self.world.agree_on_weights(&self.trainer)?;
        self.state.milliseconds = self.clock.elapsed().as_millis() as u64;
        self.world.busy(|| {
            self.run.as_ref().map_or(Ok(()), Run::sync)?;
            self.writer.save(&self.trainer, &self.state, |error| self.world.explain(error))
        })
    }

    /// Waits until the last save is on disk.
    pub fn wait_for_save(&mut self) -> Result<(), Failure> {
        self.world.busy(|| self.writer.wait())
    }

    fn close(&mut self, profile: bool) -> Result<(), Failure> {
        self.save()?;
        self.wait_for_save()?;
        if !self.world.is_first() {
            return Ok(());
        }
        let rows = read_metrics(&self.path)?;
        let picture = self.path.join("loss.svg");
        if rows.len() > 1 {
            let [train, val] = losses(&rows);
            picture::loss_curve(&train, &val, &picture)?;
        }
        let stopped = if self.state.step < self.config.train.steps { "interrupted after" } else { "trained" };
        let skipped = match self.state.skipped() {
            0 => String::new(),
            count => format!(", {count} of them skipped"),
        };
        let line = format!(
            "{stopped} {} steps{skipped} ({} tokens) in {}; peak device memory {}; {}",
            self.state.step,
            grouped(self.state.tokens),
            duration(self.clock.elapsed().as_secs_f64()),
            binary(self.gpu.memory().peak),
            paths::checkpoint(&self.path, self.state.step).display(),
        );
        self.log(&line)?;
        output::note(&line);
        if profile {
            let table = self.gpu.profile()?;
            output::print(&format!("{table}\n"))?;
            self.run.as_ref().map_or(Ok(()), |run| run.write_profile(&table))?;
        }
        Ok(())
    }
}
