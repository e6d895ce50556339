//! The training loop: steps, metrics, checkpoints.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use polytape::llama::Llama;
use polytape::optim::Schedule;
use polytape::{Gpu, Measured, Params, StepOutcome, Tensor, Trainer, rms_and_abs_max};

use super::{layers, scaling};
use crate::config::Config;
use crate::data::windows::Windows;
use crate::model::engine;
use crate::model::evaluate::{self, upload};
use crate::model::flops;
use crate::model::spectra;
use crate::run::checkpoint::{Scaling, State, Writer};
use crate::run::folder::Run;
use crate::run::measured::{Gmcn, Layers};
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
    pub run: Run,
    pub state: State,
    /// Step of the newest checkpoint.
    pub newest: Option<u64>,
    pub peak_tflops: Option<f64>,
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
    run: Run,
    state: State,
    writer: Writer,
    smoothed: Smoothed,
    /// MFU at one token per second, if the user gives the peak.
    mfu_per_speed: Option<f64>,
    stop: Arc<AtomicBool>,
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

/// A step's measurements, left on the device unless already read.
struct Done {
    outcome: StepOutcome,
    /// Loss and gradient norm.
    scalars: Option<(f32, f32)>,
    layers: Option<Layers>,
    skipped: Option<Skipped>,
}

/// Why a step was skipped.
#[derive(Clone, Copy, PartialEq)]
enum Skipped {
    Spike,
    /// Its gradients, times the loss scale.
    Overflow,
}

impl Done {
    fn read(&mut self) -> Result<(f32, f32), Failure> {
        let scalars = match self.scalars {
            Some(scalars) => scalars,
            None => self.outcome.read()?,
        };
        self.scalars = Some(scalars);
        Ok(scalars)
    }
}

impl Session {
    pub fn new(config: Config, start: Start) -> Result<Self, Failure> {
        let mut smoothed = Smoothed::default();
        for row in read_metrics(start.run.path())? {
            smoothed.add(row.loss);
        }
        let per_token = flops::per_token(&engine::model(&config), config.data.seq_len);
        Ok(Self {
            schedule: engine::schedule(&config),
            writer: Writer::new(start.run.path(), config.train.keep_checkpoints, start.newest),
            mfu_per_speed: start.peak_tflops.map(|peak| per_token / (peak * 1e12)),
            clock: Clock::new(&start.state),
            stop: stop_flag()?,
            smoothed,
            config,
            gpu: start.gpu,
            llama: start.llama,
            trainer: start.trainer,
            windows: start.windows,
            validation: start.validation,
            run: start.run,
            state: start.state,
        })
    }

    /// Writes the run's `config.toml`.
    pub fn write_config(&self) -> Result<(), Failure> {
        self.run.write_config(&self.config)
    }

    /// Announces the run.
    pub fn announce(&mut self) -> Result<(), Failure> {
        let adapter = self.gpu.adapter();
        let resumed = match self.writer.newest() {
            Some(step) if step > 0 => format!(", going on after step {step}"),
            _ => String::new(),
        };
        let line = format!(
            "{}: {} parameters on {} ({}, {} kernels), {} windows of {} tokens{resumed}",
            self.run.path().display(),
            grouped(self.trainer.params.numel() as u64),
            adapter.name,
            adapter.driver,
            self.gpu.kernels(),
            grouped(self.windows.count()),
            self.config.data.seq_len,
        );
        let warning = scaling::warning(self.trainer.precision, self.gpu.kernels());
        for line in [Some(line), warning].into_iter().flatten() {
            output::note(&line);
            self.run.log(&line)?;
        }
        Ok(())
    }

    /// Runs all remaining steps, or until the user interrupts.
    pub fn train(&mut self) -> Result<(), Failure> {
        let steps = self.config.train.steps;
        let mut progress = Progress::new("train", self.state.step, steps);
        while self.state.step < steps && !self.stop.load(Ordering::Relaxed) {
            let rate = self.config.optimizer.lr * self.schedule.factor(self.state.step);
            let mut done = self.step(rate)?;
            let train = &self.config.train;
            let (validate, log) = (self.is_due(train.val_every), self.is_due(train.log_every));
            let checkpoint = self.is_due(train.checkpoint_every);
            let spectrum = self.is_due(train.log_spectrum_every);
            if log || validate || spectrum || done.skipped.is_some() || done.layers.is_some() {
                let row = self.measure(&mut done, rate, validate)?;
                let smoothed = self.smoothed.add(row.loss);
                progress.set(self.state.step, &row.summary(smoothed));
                self.report(&row, &progress)?;
            } else if checkpoint {
                // Non-finite weights must not be saved.
                self.check_finite(&mut done)?;
            }
            if checkpoint && self.state.step < steps {
                self.save()?;
            }
            self.writer.check()?;
        }
        progress.finish();
        Ok(())
    }

    /// Whether something with this interval is due after the current step; it always is after the last.
    fn is_due(&self, every: u64) -> bool {
        every > 0 && (self.state.step == self.config.train.steps || self.state.step.is_multiple_of(every))
    }

    /// One optimizer step. Its measurements stay on the device unless the step itself depends on them.
    fn step(&mut self, rate: f64) -> Result<Done, Failure> {
        let train = &self.config.train;
        let batches = (0..train.grad_accumulation)
            .map(|_| upload(&self.gpu, &self.windows.next_batch(train.batch_size)?))
            .collect::<Result<Vec<_>, Failure>>()?;
        let seq_len = self.config.data.seq_len;
        self.state.step += 1;
        self.state.tokens += (train.grad_accumulation * train.batch_size * seq_len) as u64;
        self.state.position = self.windows.position();

        let llama = &self.llama;
        let (observed, residuals) = (self.is_due(train.log_layers_every), RefCell::new(Vec::new()));
        let measured = self.trainer.measure(batches.len(), |tape, i| {
            let (inputs, targets) = &batches[i];
            if !observed {
                return llama.loss(tape, inputs, targets, seq_len);
            }
            llama.observed_loss(tape, inputs, targets, seq_len, |x| {
                residuals.borrow_mut().push(rms_and_abs_max(&[x])?);
                Ok(())
            })
        })?;
        self.update(measured, rate, observed.then(|| residuals.into_inner()))
    }

    /// The second half of a step: looks at it where that is asked for, and updates the parameters.
    fn update(&mut self, measured: Measured, rate: f64, residuals: Option<Vec<Tensor>>) -> Result<Done, Failure> {
        let mut done = Done { outcome: measured.outcome.clone(), scalars: None, layers: None, skipped: None };
        if let Some(residuals) = residuals {
            let (scalars, layers) = layers::measure(&self.trainer.params, &measured, &residuals, self.config.model.layers)?;
            (done.scalars, done.layers) = (Some(scalars), Some(layers));
        }
        if let Some(loss_scale) = &mut self.trainer.loss_scale {
            let (loss, norm) = done.read()?;
            let overflows = loss_scale.overflows(loss, norm);
            self.state.loss_scale = Some(Scaling::after(self.state.loss_scale.as_ref(), loss_scale, overflows));
            if overflows {
                // What is not finite is no measurement of a layer.
                (done.skipped, done.layers) = (Some(Skipped::Overflow), None);
                return Ok(done);
            }
        }
        let deviations = self.config.train.skip_spikes;
        if deviations > 0.0 {
            let (_, norm) = self.check_finite(&mut done)?;
            done.skipped = self.state.spikes.judge(norm, deviations).then_some(Skipped::Spike);
        }
        if done.skipped.is_none() {
            self.trainer.apply(measured, rate as f32)?;
        }
        Ok(done)
    }

    /// Reads a step's scalars, validates where it is due, and writes the line of metrics.
    fn measure(&mut self, done: &mut Done, rate: f64, validate: bool) -> Result<Metrics, Failure> {
        let (loss, grad_norm) = self.check_finite(done)?;
        let now = Instant::now();
        let (before, tokens_before) = self.clock.last;
        let tokens_per_second = (self.state.tokens - tokens_before) as f64 / (now - before).as_secs_f64().max(1e-9);
        let val_loss = if validate { self.validate()? } else { None };
        let row = Metrics {
            step: self.state.step,
            tokens: self.state.tokens,
            loss: f64::from(loss),
            grad_norm: grad_norm.is_finite().then_some(f64::from(grad_norm)),
            lr: rate,
            tokens_per_second,
            seconds: self.clock.elapsed().as_secs_f64(),
            memory_bytes: self.gpu.memory().peak,
            mfu: self.mfu_per_speed.map(|share| share * tokens_per_second),
            val_loss,
            loss_scale: self.trainer.loss_scale.is_some().then(|| done.outcome.loss_scale()),
            skipped: done.skipped.is_some(),
            skipped_steps: self.state.skipped(),
            gmcn: self.condition()?,
            layers: done.layers.take(),
        };
        self.run.record(&row)?;
        self.clock.last = (Instant::now(), self.state.tokens);
        Ok(row)
    }

    /// Prints and logs skipped steps and validations.
    fn report(&mut self, row: &Metrics, progress: &Progress) -> Result<(), Failure> {
        let step = row.step;
        let reason = match row.grad_norm {
            Some(norm) => format!("its gradient norm {norm:.4} is a spike"),
            None => format!("its gradients overflow at a loss scale of {}", row.loss_scale.unwrap_or_default()),
        };
        if row.skipped {
            let line = format!("step {step}: left out, {reason}");
            progress.note(&line);
            self.run.log(&line)?;
        }
        if let Some(val_loss) = row.val_loss {
            progress.note(&format!("step {step}: validation loss {val_loss:.4}"));
            self.run.log(&format!("step {step}: loss {:.6}, validation loss {val_loss:.6}", row.loss))?;
        }
        Ok(())
    }

    /// The step's scalars. A loss or gradient that is not finite ends the run, unless the step was left out for it; what was saved
    /// before stays.
    fn check_finite(&self, done: &mut Done) -> Result<(f32, f32), Failure> {
        let (loss, grad_norm) = done.read()?;
        let step = self.state.step;
        let is_harmless = done.skipped == Some(Skipped::Overflow);
        let failure = if !loss.is_finite() {
            Failure::other(format!("step {step}: the loss is {loss}, expected a finite number"))
        } else if !grad_norm.is_finite() && !is_harmless {
            let tensor = done.outcome.first_non_finite()?.map(|id| self.trainer.params.get(id).name.clone());
            let tensor =
                tensor.map_or_else(|| "no single tensor, their sum overflows".to_owned(), |name| format!("first in {name}"));
            Failure::other(format!("step {step}: the gradient norm is {grad_norm} ({tensor}), expected a finite number"))
        } else {
            return Ok((loss, grad_norm));
        };
        let last = self.writer.newest().map_or("there is none yet".to_owned(), |step| format!("step-{step}"));
        let range = if self.trainer.loss_scale.is_some() { ", so may the range of train.precision = \"f32\"" } else { "" };
        let cure = "a smaller optimizer.lr or a longer schedule.warmup_steps may help";
        Err(failure.hint(format!("{cure}{range}; last checkpoint: {last}")))
    }

    /// Mean loss over the first `val_batches` batches of the validation data.
    fn validate(&mut self) -> Result<Option<f64>, Failure> {
        let Some(windows) = &mut self.validation else { return Ok(None) };
        windows.seek(0);
        let params: Params = self.trainer.effective_params()?;
        let limit = (self.config.train.val_batches * self.config.train.batch_size) as u64;
        let batch = self.config.train.batch_size;
        let measured = evaluate::mean_loss(&self.llama, &params, windows, limit, batch, self.config.data.seq_len, |_| {})?;
        Ok(Some(measured.loss))
    }

    /// The condition numbers, on the steps that measure them.
    fn condition(&self) -> Result<Option<Gmcn>, Failure> {
        let due = self.is_due(self.config.train.log_spectrum_every);
        due.then(|| spectra::gmcn(&self.config, &self.trainer.effective_params()?)).transpose()
    }

    /// Saves the run's current state unless it is already saved; writing to disk overlaps with training.
    pub fn save(&mut self) -> Result<(), Failure> {
        if self.writer.newest() == Some(self.state.step) {
            return Ok(());
        }
        self.state.milliseconds = self.clock.elapsed().as_millis() as u64;
        self.run.sync()?;
        self.writer.save(&self.trainer.params, self.trainer.optimizer.as_ref(), &self.state)
    }

    /// Writes the last checkpoint and the loss curve, and prints a summary.
    pub fn finish(&mut self, profile: bool) -> Result<(), Failure> {
        self.save()?;
        self.writer.wait()?;
        let rows = read_metrics(self.run.path())?;
        let picture = self.run.path().join("loss.svg");
        if rows.len() > 1 {
            let [train, val] = losses(&rows);
            picture::loss_curve(&train, &val, &picture)?;
        }
        let stopped = if self.state.step < self.config.train.steps { "interrupted after" } else { "trained" };
        let skipped = match self.state.skipped() {
            0 => String::new(),
            count => format!(", {count} of them left out"),
        };
        let line = format!(
            "{stopped} {} steps{skipped} ({} tokens) in {}; peak device memory {}; {}",
            self.state.step,
            grouped(self.state.tokens),
            duration(self.clock.elapsed().as_secs_f64()),
            binary(self.gpu.memory().peak),
            paths::checkpoint(self.run.path(), self.state.step).display(),
        );
        self.run.log(&line)?;
        output::note(&line);
        if profile {
            let table = self.gpu.profile()?;
            output::print(&format!("{table}\n"))?;
            self.run.write_profile(&table)?;
        }
        Ok(())
    }
}

/// Set by the first Ctrl-C; the second ends the process at once.
fn stop_flag() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let handler = move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        output::note("finishing this step; press Ctrl-C again to stop at once without saving");
    };
    ctrlc::set_handler(handler).map_err(|error| Failure::other(format!("cannot listen for Ctrl-C: {error}")))?;
    Ok(stop)
}
