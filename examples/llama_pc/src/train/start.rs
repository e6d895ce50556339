//! Begins a run, or resumes one.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use polytape::llama::Llama;
use polytape::{Gpu, Trainer};

use super::session::{Session, Start};
use super::world::World;
use crate::config::{Config, DataOrder};
use crate::data::meta::tokenizer_of;
use crate::data::tokenizer::{Tokenizer, fingerprint};
use crate::data::tokens::TokenStream;
use crate::data::windows::{Order, Windows};
use crate::model::import::{self, Model};
use crate::run::checkpoint::{self, Saved, State};
use crate::run::files::refuse_existing;
use crate::run::folder::{Locked, Run};
use crate::run::paths::{self, NewRun};
use crate::terminal::failure::Failure;
use crate::terminal::output;

/// Windows of the data that ranks compare: other texts, another tokenizer, another order show in any of them.
const COMPARED: u64 = 1000;

/// What a new run begins with.
pub struct Request {
    pub config: Config,
    /// Folder to create.
    pub out: NewRun,
    /// Folder of the initial weights; without one, they are drawn from the seed.
    pub init: Option<PathBuf>,
    /// The adapter's peak in TFLOP/s, if the user gives it.
    pub peak_tflops: Option<f64>,
    /// Whether data of another tokenizer than that of `init` will do.
    pub ignore_tokenizer: bool,
    /// The ranks that train it.
    pub world: Rc<World>,
}

/// Begins a run; the device is opened by `open` once everything else has been checked.
pub fn begin(request: Request, open: impl FnOnce() -> Result<Gpu, Failure>) -> Result<Session, Failure> {
    let Request { mut config, out, init, peak_tflops, ignore_tokenizer, world } = request;
    let data = PathBuf::from(&config.data.train);
    // Before the vocabulary is resolved: without the data, its tokenizer is missing, too.
    std::fs::metadata(&data).map_err(|error| Failure::io("read", &data, &error))?;
    let tokenizer = tokenizer_of(&data).as_deref().map(Tokenizer::load).transpose()?;
    config.resolve_vocab(tokenizer.as_ref().map(Tokenizer::vocab_size))?;
    choose_replicas(&world, &mut config);
    world.check(&config)?;
    if let (true, NewRun::At(path)) = (world.is_first(), &out) {
        refuse_existing("--out", path, "folder")?;
    }
    if let Some(init) = &init {
        refuse_scale(&config, init)?;
        fingerprint::check(&data, init, ignore_tokenizer)?;
    }
    if config.train.val_every > 0 {
        fingerprint::check_parts(&data, Path::new(&config.data.val), ignore_tokenizer)?;
    }
    let windows = training_windows(&config)?;
    let validation = validation_windows(&config)?;
    let state = first_state(&config, &windows)?;
    agree(&world, &config, [Some(&windows), validation.as_ref()], "none".to_owned())?;
    let gpu = open()?;
    let model = model(&gpu, &config, init.as_deref())?;
    if init.is_some() {
        world.agree_on_initial_weights(&model.params)?;
    }
    let (llama, trainer) = fresh(model, &config)?;
    let trainer = world.place(trainer, &config)?;
    let run = if world.is_first() { Some(Run::create(&out)?) } else { None };
    let path = common_path(&world, run.as_ref())?;
    let begun = tokenizer.iter().filter(|_| run.is_some());
    begun.into_iter().try_for_each(|tokenizer| tokenizer.save(&path))?;
    let start = Start { gpu, llama, trainer, windows, validation, run, path, state, newest: None, peak_tflops, world };
    let mut session = Session::new(config, start)?;
    if init.is_some() {
        // Unlike initial weights, these cannot be redrawn from the seed: on disk before config.toml, with which a run can be resumed.
        session.save()?;
        session.wait_for_save()?;
    }
    session.write_config()?;
    Ok(session)
}

/// A replica for each rank, where the configuration has one for a single process.
fn choose_replicas(world: &World, config: &mut Config) {
    let (ranks, train) = (world.ranks(), &mut config.train);
    let replicas = train.replicas_on(ranks);
    if replicas != train.replicas {
        output::note(&format!(
            "train.replicas = {replicas}, one for each rank; any number of ranks that divides it can resume the run, with the same bits"
        ));
        train.replicas = replicas;
    }
}

/// Resumes from the newest checkpoint or, if the run was killed before it had one, from its beginning.
pub fn resume(
    path: &Path,
    settings: &[String],
    peak_tflops: Option<f64>,
    ignore_tokenizer: bool,
    world: Rc<World>,
    open: impl FnOnce() -> Result<Gpu, Failure>,
) -> Result<Session, Failure> {
    let file = path.join(paths::CONFIG);
    if !file.is_file() {
        return Err(Failure::other(format!("{}: found no config.toml, expected a run", path.display()))
            .hint("a run that was killed before it began has none: remove the folder and begin again"));
    }
    let mut config = Config::resume(&file, settings)?;
    config.resolve_vocab(None)?;
    world.check(&config)?;
    let locked = if world.is_first() { Some(Locked::new(path)?) } else { None };
    let saved = Saved::newest(path)?;
    match &saved {
        Some(saved) => checkpoint::check_weights(saved.folder(), &config, &file)?,
        None => output::note(&format!("note: {}: found no checkpoint, so the run begins again from its seed", path.display())),
    }
    let validation = (config.train.val_every > 0).then_some(&config.data.val);
    for data in std::iter::once(&config.data.train).chain(validation) {
        fingerprint::check(Path::new(data), path, ignore_tokenizer)?;
    }
    let mut windows = training_windows(&config)?;
    let validation = validation_windows(&config)?;
    let first = first_state(&config, &windows)?;
    let state = saved.as_ref().map_or(&first, |saved| &saved.state).clone();
    let state = State { configuration: config.weight_keys(), ..state };
    check_state(&config, &state, &first)?;
    windows.seek(state.position);
    let checkpoint = saved
        .as_ref()
        .map_or("none".to_owned(), |saved| format!("step {} with the checksums {}", saved.state.step, saved.checksums()));
    agree(&world, &config, [Some(&windows), validation.as_ref()], checkpoint)?;
    let gpu = open()?;
    let place = |trainer| world.place(trainer, &config);
    let (llama, trainer) = match &saved {
        Some(saved) => saved.load(&gpu, &config, place)?,
        None => {
            let (llama, trainer) = fresh(Model::fresh(&gpu, &config)?, &config)?;
            (llama, place(trainer)?)
        }
    };
    let run = match locked {
        Some(locked) => {
            checkpoint::sweep(path)?;
            Some(locked.open(state.step)?)
        }
        None => None,
    };
    let newest = saved.map(|saved| saved.state.step);
    let path = path.to_owned();
    let start = Start { gpu, llama, trainer, windows, validation, run, path, state, newest, peak_tflops, world };
    let session = Session::new(config, start)?;
    session.write_config()?;
    Ok(session)
}

/// Whether all ranks train the same: configuration, data for training and validation, and checkpoint to go on from.
fn agree(world: &World, config: &Config, data: [Option<&Windows>; 2], checkpoint: String) -> Result<(), Failure> {
    if world.is_alone() {
        return Ok(());
    }
    let sum = |windows: &Windows| {
        let (count, sum) = (windows.count(), windows.checksum(COMPARED)?);
        Ok::<_, Failure>(format!("{count} windows with the checksum {sum:08x}"))
    };
    let [train, val] = data.map(|windows| windows.map_or_else(|| Ok("none".to_owned()), sum));
    world.agree(&[("configuration", config.to_toml()), ("data.train", train?), ("data.val", val?), ("checkpoint", checkpoint)])
}

/// The run's folder, which the first rank has created.
fn common_path(world: &World, run: Option<&Run>) -> Result<PathBuf, Failure> {
    let own = run.map_or(Path::new(""), Run::path);
    let first = world.gather(&own.display().to_string())?.swap_remove(0);
    Ok(run.map_or_else(|| PathBuf::from(first), |run| run.path().to_owned()))
}

/// The state before the first step.
fn first_state(config: &Config, windows: &Windows) -> Result<State, Failure> {
    Ok(State {
        windows: windows.count(),
        data: windows.fingerprint()?,
        seed: config.seed,
        configuration: config.weight_keys(),
        ..State::default()
    })
}

/// Whether a state matches the configuration and the data, whose initial state is `first`: the run then resumes bit for bit.
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
    let way_out = "data.seq_len must be unchanged; --set data.train=PATH says where the data are; `train --init` begins a new run on others";
    if first.windows != state.windows {
        let (found, expected) = (first.windows, state.windows);
        return Err(Failure::other(format!("{data}: found {found} windows, expected the {expected} that the run began with"))
            .hint(way_out));
    }
    if first.data != state.data {
        return Err(Failure::other(format!("{data}: found other tokens, expected those that the run began with")).hint(way_out));
    }
    Ok(())
}

/// `model.init_scale` scales weights that are drawn, not those of `--init`.
fn refuse_scale(config: &Config, init: &Path) -> Result<(), Failure> {
    if config.model.init_scale.values().all(|factor| *factor == 1.0) {
        return Ok(());
    }
    let found = &config.keys()["model.init_scale"];
    let init = init.display();
    Err(Failure::usage(format!("model.init_scale: found {found}, expected none with --init {init}, whose weights are not drawn"))
        .hint("--set model.init_scale={} removes it"))
}

/// A new run's training without its folder: what is needed to take steps.
pub fn rehearse(gpu: &Gpu, config: &Config) -> Result<(Llama, Trainer, Windows), Failure> {
    let (llama, trainer) = fresh(Model::fresh(gpu, config)?, config)?;
    Ok((llama, trainer.with_replicas(config.train.replicas)?, training_windows(config)?))
}

fn fresh(model: Model, config: &Config) -> Result<(Llama, Trainer), Failure> {
    let (optimizer, max_norm) = ((config.optimizer.rule().build)(&config.optimizer), config.train.max_grad_norm as f32);
    let trainer = Trainer::new(model.params, model.preconditioner, optimizer, max_norm)?;
    Ok((model.llama, trainer.with_precision(config.train.precision)))
}

fn model(gpu: &Gpu, config: &Config, init: Option<&Path>) -> Result<Model, Failure> {
    let Some(path) = init else { return Model::fresh(gpu, config) };
    let folder = import::initial_weights(path, config)?;
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
    let stream = TokenStream::open(Path::new(path), vocab, config.data.format)?;
    Windows::new(stream, path, config.data.seq_len, order)
}
