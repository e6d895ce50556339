//! `train`: the loop, its measurements and its checkpoints.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use polytape::llama::Llama;
use polytape::optim::Schedule;
use polytape::{Gpu, Indices, Params, StepOutcome, Trainer};

use crate::cli;
use crate::config::{Config, DataOrder};
use crate::data::meta::tokenizer_of;
use crate::data::tokenizer::Tokenizer;
use crate::data::tokens::TokenStream;
use crate::data::windows::{Batch, Order, Windows};
use crate::engine;
use crate::evaluate;
use crate::failure::Failure;
use crate::hugging_face;
use crate::output;
use crate::picture;
use crate::progress::{Progress, duration, grouped};
use crate::run::{self, Metrics, Run};
use crate::weights::{self, Model, State};

/// Runs the command.
pub fn run(args: &cli::Train) -> Result<(), Failure> {
    let mut config = Config::load(args.config.as_deref(), &args.settings())?;
    if config.train.log_spectrum_every > 0 {
        let found = config.train.log_spectrum_every;
        return Err(Failure::usage(format!(
            "train.log_spectrum_every: found {found}, expected 0: this version does not measure spectra"
        )));
    }
    let data = PathBuf::from(&config.data.train);
    std::fs::metadata(&data).map_err(|error| Failure::io("read", &data, &error))?;
    let tokenizer = tokenizer_of(&data);
    let tokens = tokenizer.as_deref().map(|path| Tokenizer::load(path).map(|tokenizer| tokenizer.vocab_size())).transpose()?;
    config.resolve_vocab(tokens)?;
    let out = args.out.clone().unwrap_or_else(|| run::next_path(args.config.as_deref()));
    if out.exists() {
        return Err(Failure::usage(format!("--out {}: found it exists already, expected a new folder", out.display())));
    }
    let windows = training_windows(&config)?;
    let validation = validation_windows(&config)?;
    let gpu = engine::open(args.device.adapter.as_deref(), args.profile)?;
    let model = model(&gpu, &config, args.init.as_deref())?;
    let run = Run::create(&out, &config, tokenizer.as_deref())?;
    let mut session = Session::new(gpu, config, model, windows, validation, run)?;
    session.announce()?;
    session.train()?;
    session.finish(args.profile)
}

fn model(gpu: &Gpu, config: &Config, init: Option<&Path>) -> Result<Model, Failure> {
    let Some(path) = init else { return Model::fresh(gpu, config) };
    // A run's newest checkpoint, or the folder itself.
    let folder = if path.join("config.toml").is_file() { weights::describe(path)?.1 } else { path.to_owned() };
    hugging_face::check_folder(&folder, config)?;
    let (model, ignored) = Model::load(gpu, config, &folder, engine::model(config))?;
    if !ignored.is_empty() {
        output::note(&format!(
            "note: {}: ignored PC state that the configuration does not use: {}",
            path.display(),
            ignored.join(", ")
        ));
    }
    Ok(model)
}

fn training_windows(config: &Config) -> Result<Windows, Failure> {
    let order = match config.data.order {
        DataOrder::Sequential => Order::Sequential,
        DataOrder::Shuffled => Order::Shuffled { seed: config.seed },
    };
    windows(config, &config.data.train, order)
}

fn validation_windows(config: &Config) -> Result<Option<Windows>, Failure> {
    let wanted = config.train.val_every > 0;
    wanted.then(|| windows(config, &config.data.val, Order::Sequential)).transpose()
}

fn windows(config: &Config, path: &str, order: Order) -> Result<Windows, Failure> {
    let vocab = config.model.vocab.expect("bug: the vocabulary is not resolved");
    Windows::new(TokenStream::open(Path::new(path), vocab)?, path, config.data.seq_len, order)
}

/// A batch on the device.
pub fn upload(gpu: &Gpu, batch: &Batch) -> Result<(Indices, Indices), Failure> {
    Ok((Indices::from_slice(gpu, &batch.inputs)?, Indices::from_slice(gpu, &batch.targets)?))
}

struct Session {
    gpu: Gpu,
    config: Config,
    llama: Llama,
    trainer: Trainer,
    schedule: Schedule,
    windows: Windows,
    validation: Option<Windows>,
    run: Run,
    state: State,
    stop: Arc<AtomicBool>,
    clock: Clock,
}

/// Training time, and when metrics were last written.
struct Clock {
    started: Instant,
    last: (Instant, u64),
}

impl Session {
    fn new(
        gpu: Gpu,
        config: Config,
        model: Model,
        windows: Windows,
        validation: Option<Windows>,
        run: Run,
    ) -> Result<Self, Failure> {
        let optimizer = engine::optimizer(&config.optimizer);
        let max_norm = config.train.max_grad_norm as f32;
        let trainer = Trainer::new(model.params, model.preconditioner, optimizer, max_norm)?;
        let now = Instant::now();
        Ok(Self {
            schedule: engine::schedule(&config),
            state: State { step: 0, tokens: 0, position: 0, seed: config.seed },
            llama: model.llama,
            stop: stop_flag()?,
            clock: Clock { started: now, last: (now, 0) },
            gpu,
            config,
            trainer,
            windows,
            validation,
            run,
        })
    }

    fn announce(&mut self) -> Result<(), Failure> {
        let adapter = self.gpu.adapter();
        let line = format!(
            "{}: {} parameters on {} ({}, {} kernels), {} windows of {} tokens",
            self.run.path().display(),
            grouped(self.trainer.params.elements() as u64),
            adapter.name,
            adapter.driver,
            self.gpu.kernels(),
            grouped(self.windows.count()),
            self.config.data.seq_len,
        );
        output::note(&line);
        self.run.log(&line)
    }

    /// All steps, until the last or until the user interrupts.
    fn train(&mut self) -> Result<(), Failure> {
        let steps = self.config.train.steps;
        let mut progress = Progress::new("train", self.state.step, steps);
        while self.state.step < steps && !self.stop.load(Ordering::Relaxed) {
            let rate = self.config.optimizer.lr * self.schedule.factor(self.state.step);
            let outcome = self.step(rate)?;
            let is_last = self.state.step == steps;
            let is_due = |every: u64| every > 0 && (is_last || self.state.step.is_multiple_of(every));
            let (validate, log, checkpoint) = (
                is_due(self.config.train.val_every),
                is_due(self.config.train.log_every),
                is_due(self.config.train.checkpoint_every),
            );
            if log || validate {
                let row = self.measure(&outcome, rate, validate)?;
                progress.set(self.state.step, &row.summary());
                if let Some(val_loss) = row.val_loss {
                    progress.note(&format!("step {}: validation loss {val_loss:.4}", self.state.step));
                    self.run.log(&format!("step {}: loss {:.6}, validation loss {val_loss:.6}", self.state.step, row.loss))?;
                }
            }
            if checkpoint && !is_last {
                self.save()?;
            }
        }
        progress.finish();
        Ok(())
    }

    /// One optimizer step. Its measurements stay on the device.
    fn step(&mut self, rate: f64) -> Result<StepOutcome, Failure> {
        let train = &self.config.train;
        let batches = (0..train.grad_accumulation)
            .map(|_| upload(&self.gpu, &self.windows.next_batch(train.batch_size)?))
            .collect::<Result<Vec<_>, Failure>>()?;
        let (llama, seq_len) = (&self.llama, self.config.data.seq_len);
        let outcome =
            self.trainer.step(batches.len(), rate as f32, |tape, i| llama.loss(tape, &batches[i].0, &batches[i].1, seq_len))?;
        self.state.step += 1;
        self.state.tokens += (train.grad_accumulation * train.batch_size * seq_len) as u64;
        self.state.position = self.windows.position();
        Ok(outcome)
    }

    /// Reads a step's scalars, validates where it is due, and writes the line of metrics.
    fn measure(&mut self, outcome: &StepOutcome, rate: f64, validate: bool) -> Result<Metrics, Failure> {
        let (loss, grad_norm) = outcome.read()?;
        self.check_finite(outcome, loss, grad_norm)?;
        let now = Instant::now();
        let (before, tokens_before) = self.clock.last;
        let val_loss = if validate { self.validate()? } else { None };
        let row = Metrics {
            step: self.state.step,
            tokens: self.state.tokens,
            loss: f64::from(loss),
            grad_norm: f64::from(grad_norm),
            lr: rate,
            tokens_per_second: (self.state.tokens - tokens_before) as f64 / (now - before).as_secs_f64().max(1e-9),
            seconds: (now - self.clock.started).as_secs_f64(),
            memory_bytes: self.gpu.memory().peak,
            val_loss,
        };
        self.run.record(&row)?;
        self.clock.last = (Instant::now(), self.state.tokens);
        Ok(row)
    }

    /// A loss or gradient that is not finite ends the run; what was saved before stays.
    fn check_finite(&self, outcome: &StepOutcome, loss: f32, grad_norm: f32) -> Result<(), Failure> {
        let step = self.state.step;
        let failure = if !loss.is_finite() {
            Failure::other(format!("step {step}: the loss is {loss}, expected a finite number"))
        } else if !grad_norm.is_finite() {
            let tensor = outcome.first_non_finite()?.map(|id| self.trainer.params.get(id).name.clone());
            let tensor =
                tensor.map_or_else(|| "no single tensor, their sum overflows".to_owned(), |name| format!("first in {name}"));
            Failure::other(format!("step {step}: the gradient norm is {grad_norm} ({tensor}), expected a finite number"))
        } else {
            return Ok(());
        };
        let last = run::checkpoints(self.run.path()).last().map_or("there is none yet".to_owned(), |step| format!("step-{step}"));
        Err(failure.hint(format!("a smaller optimizer.lr or a longer schedule.warmup_steps may help; last checkpoint: {last}")))
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

    fn save(&self) -> Result<(), Failure> {
        let keep = self.config.train.keep_checkpoints;
        weights::save(self.run.path(), &self.trainer.params, self.trainer.optimizer.as_ref(), &self.state, keep)
    }

    /// The last checkpoint, the picture, and a word about both.
    fn finish(&mut self, profile: bool) -> Result<(), Failure> {
        self.save()?;
        let rows = run::read_metrics(self.run.path())?;
        let picture = self.run.path().join("loss.svg");
        if rows.len() > 1 {
            picture::save(&rows, &picture)?;
        }
        let seconds = self.clock.started.elapsed().as_secs_f64();
        let stopped = if self.state.step < self.config.train.steps { "interrupted after" } else { "trained" };
        let line = format!(
            "{stopped} {} steps ({} tokens) in {}; peak device memory {} MiB; {}",
            self.state.step,
            grouped(self.state.tokens),
            duration(seconds),
            self.gpu.memory().peak >> 20,
            run::checkpoint(self.run.path(), self.state.step).display(),
        );
        self.run.log(&line)?;
        output::note(&line);
        if profile {
            output::print(&format!("{}\n", self.gpu.profile()?))?;
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
