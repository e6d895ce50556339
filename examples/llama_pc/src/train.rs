//! `train`: begins a run, or goes on with one.

pub mod layers;
pub mod scaling;
mod session;
pub mod spikes;

use std::path::{Path, PathBuf};

use polytape::{Gpu, Indices, Trainer};

use crate::checkpoint::{self, Saved, State};
use crate::cli;
use crate::config::{Config, DataOrder};
use crate::data::meta::tokenizer_of;
use crate::data::tokenizer::Tokenizer;
use crate::data::tokens::TokenStream;
use crate::data::windows::{Batch, Order, Windows};
use crate::engine;
use crate::failure::Failure;
use crate::hugging_face;
use crate::output;
use crate::run::{self, Locked, Run};
use crate::weights::{self, Model};
use session::{Session, Start};

/// Runs the command.
pub fn run(args: &cli::Train) -> Result<(), Failure> {
    if args.peak_tflops.is_some_and(|peak| !(peak > 0.0 && peak.is_finite())) {
        let found = args.peak_tflops.unwrap_or_default();
        return Err(Failure::usage(format!("--peak-tflops: found {found}, expected a number above 0")));
    }
    let mut session = match &args.resume {
        Some(path) => resume(args, path)?,
        None => begin(args)?,
    };
    session.announce()?;
    session.train()?;
    session.finish(args.profile)
}

fn begin(args: &cli::Train) -> Result<Session, Failure> {
    let mut config = Config::load(args.config.as_deref(), &args.settings())?;
    let data = PathBuf::from(&config.data.train);
    // Before the vocabulary is asked for: without data there is no tokenizer beside it either.
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
    let gpu = engine::open(&args.device, args.profile)?;
    let model = model(&gpu, &config, args.init.as_deref())?;
    let state = first_state(&config, &windows)?;
    let (llama, trainer) = fresh(model, &config)?;
    let run = Run::create(&out, tokenizer.as_deref())?;
    let start = Start { gpu, llama, trainer, windows, validation, run, state, newest: None, peak_tflops: args.peak_tflops };
    let mut session = Session::new(config, start)?;
    if args.init.is_some() {
        // The seed does not give these weights again.
        session.save()?;
    }
    session.write_config()?;
    Ok(session)
}

/// Goes on from the newest checkpoint or, if the run was killed before it had one, from its beginning.
fn resume(args: &cli::Train, path: &Path) -> Result<Session, Failure> {
    let file = path.join("config.toml");
    if !file.is_file() {
        return Err(Failure::other(format!("{}: found no config.toml, expected a run", path.display()))
            .hint("a run that was killed before it began has none: remove the folder and begin again"));
    }
    let mut config = Config::resume(&file, &args.settings())?;
    config.resolve_vocab(None)?;
    let locked = Locked::new(path)?;
    let saved = Saved::newest(path)?;
    let mut windows = training_windows(&config)?;
    let validation = validation_windows(&config)?;
    let first = first_state(&config, &windows)?;
    let state = saved.as_ref().map_or(&first, |saved| &saved.state).clone();
    check_state(&config, &state, &first)?;
    windows.seek(state.position);
    let gpu = engine::open(&args.device, args.profile)?;
    let (llama, trainer) = match &saved {
        Some(saved) => saved.load(&gpu, &config)?,
        None => fresh(Model::fresh(&gpu, &config)?, &config)?,
    };
    checkpoint::sweep(path)?;
    let run = locked.open(state.step)?;
    let newest = saved.map(|saved| saved.state.step);
    let start = Start { gpu, llama, trainer, windows, validation, run, state, newest, peak_tflops: args.peak_tflops };
    let session = Session::new(config, start)?;
    session.write_config()?;
    Ok(session)
}

/// The state before the first step.
fn first_state(config: &Config, windows: &Windows) -> Result<State, Failure> {
    Ok(State { windows: windows.count(), data: windows.fingerprint()?, seed: config.seed, ..State::default() })
}

/// Whether a state fits the configuration and the data, whose own first state is `first`: then the run can go on to the token.
fn check_state(config: &Config, state: &State, first: &State) -> Result<(), Failure> {
    if config.train.steps < state.step {
        let (found, done) = (config.train.steps, state.step);
        return Err(Failure::usage(format!("train.steps: found {found}, expected at least the {done} that the run has done")));
    }
    if first.seed != state.seed {
        let (found, expected) = (first.seed, state.seed);
        return Err(Failure::usage(format!("seed: found {found}, expected the {expected} that the run began with")));
    }
    let data = &config.data.train;
    if first.windows != state.windows {
        let (found, expected) = (first.windows, state.windows);
        return Err(Failure::other(format!("{data}: found {found} windows, expected the {expected} that the run began with")));
    }
    if first.data != state.data {
        return Err(Failure::other(format!("{data}: found other tokens, expected those that the run began with")));
    }
    Ok(())
}

fn fresh(model: Model, config: &Config) -> Result<(polytape::llama::Llama, Trainer), Failure> {
    let (optimizer, max_norm) = ((config.optimizer.rule().build)(&config.optimizer), config.train.max_grad_norm as f32);
    let trainer = Trainer::new(model.params, model.preconditioner, optimizer, max_norm)?;
    Ok((model.llama, trainer.with_precision(config.train.precision)))
}

fn model(gpu: &Gpu, config: &Config, init: Option<&Path>) -> Result<Model, Failure> {
    let Some(path) = init else { return Model::fresh(gpu, config) };
    // A run's newest checkpoint, or the folder itself.
    let folder = if path.join("config.toml").is_file() { weights::describe(path)?.1 } else { path.to_owned() };
    hugging_face::check_folder(&folder, config)?;
    let (model, ignored) = Model::load(gpu, config, &folder)?;
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
