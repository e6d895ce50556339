//! The ranks that train a run together: one process, or those that `mpirun` started.

#[cfg(feature = "mpi")]
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use polytape::exchange::{Exchange, ExchangeOptions};
use polytape::{Error, Params, Trainer};

use crate::config::Config;
use crate::model::evaluate::Losses;
use crate::run::checkpoint;
use crate::run::measured::Exchanged;
use crate::terminal::failure::Failure;
#[cfg(feature = "mpi")]
use crate::terminal::output;

/// How much longer ranks wait for each other until the first step is done: kernels are compiled and timed, weights are loaded.
#[cfg(feature = "mpi")]
const FIRST: u32 = 5;
/// What launchers tell each process of their number.
const LAUNCHERS: [&str; 4] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"];

/// This process among the ranks.
pub struct World {
    exchange: Option<Arc<dyn Exchange>>,
    /// The host of each rank.
    hosts: Vec<String>,
    rank: usize,
    /// Whether gradients are sent during the backward.
    overlap: bool,
    /// What connects them, and how long they wait for each other.
    #[cfg(feature = "mpi")]
    mpi: Option<(Arc<polytape::exchange::Mpi>, Duration)>,
}

/// The number of processes that a launcher says it has started, if it is more than one, and the variable that says so.
fn launched() -> Option<(&'static str, usize)> {
    launched_in(|name| std::env::var(name).ok())
}

fn launched_in(environment: impl Fn(&str) -> Option<String>) -> Option<(&'static str, usize)> {
    let number = |&name: &&'static str| Some((name, environment(name)?.trim().parse::<usize>().ok()?));
    LAUNCHERS.iter().filter_map(number).find(|(_, count)| *count > 1)
}

/// What a build without MPI says as one of several processes: each would train alone, into the same folder.
#[cfg(any(test, not(feature = "mpi")))]
fn refuse_launcher(launched: Option<(&str, usize)>) -> Result<(), Failure> {
    let Some((variable, count)) = launched else { return Ok(()) };
    Err(Failure::usage(format!("found {variable} = {count}, expected a single process: this build has no MPI"))
        .hint("build it with `cargo build --release -p llama_pc --features mpi`; docs/distributed.md lists what that requires"))
}

/// The version, and a checksum of the file: builds of a version may differ.
#[cfg(feature = "mpi")]
fn program() -> String {
    // Also where the file was replaced since this process began.
    let path = if cfg!(target_os = "linux") { Ok("/proc/self/exe".into()) } else { std::env::current_exe() };
    let sum = path.and_then(std::fs::read).map(|bytes| format!("{:08x}", crc32c::crc32c(&bytes)));
    format!("version {} with the checksum {}", env!("CARGO_PKG_VERSION"), sum.unwrap_or_else(|_| "unknown".to_owned()))
}

/// A checksum of what is trained.
fn checksum(params: &Params) -> Result<String, Failure> {
    Ok(format!("the checksum {:08x}", checkpoint::checksum(params)?))
}

impl World {
    /// Joins the other ranks, if a launcher has started several.
    #[cfg(feature = "mpi")]
    pub fn join(patience: Duration, overlap: bool) -> Result<Self, Failure> {
        let Some((variable, count)) = launched() else { return Ok(Self::alone()) };
        let mpi = Arc::new(polytape::exchange::Mpi::start(FIRST * patience)?);
        let (rank, ranks) = (mpi.rank(), mpi.ranks());
        let exchange: Arc<dyn Exchange> = mpi.clone();
        let mut world = Self { exchange: Some(exchange), hosts: Vec::new(), rank, overlap, mpi: Some((mpi.clone(), patience)) };
        output::speak_for(rank, mpi.host());
        if ranks != count {
            let failure = Failure::usage(format!("found {ranks} ranks in MPI, expected the {count} of {variable}"));
            world.end(&failure.hint("the program must be built with the MPI whose mpirun starts it"));
        }
        match world.gather(mpi.host()) {
            Ok(hosts) => world.hosts = hosts,
            Err(failure) => world.end(&failure),
        }
        // Before anything else: another program says other things.
        if let Err(failure) = world.agree(&[("program", program())]) {
            world.end(&failure.hint("all hosts need the same build"));
        }
        Ok(world)
    }

    /// Refuses to be one of several.
    #[cfg(not(feature = "mpi"))]
    pub fn join(_patience: Duration, _overlap: bool) -> Result<Self, Failure> {
        refuse_launcher(launched()).map(|()| Self::alone())
    }

    /// A single process, for what several cannot do together.
    pub fn single() -> Result<Self, Failure> {
        match launched() {
            None => Ok(Self::alone()),
            Some((variable, count)) => Err(Failure::usage(format!("found {variable} = {count}, expected a single process"))),
        }
    }

    fn alone() -> Self {
        Self {
            exchange: None,
            hosts: vec![String::new()],
            rank: 0,
            overlap: true,
            #[cfg(feature = "mpi")]
            mpi: None,
        }
    }

    /// Runs what this rank does. If it fails, or panics, all ranks end.
    #[cfg(feature = "mpi")]
    pub fn run(&self, work: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        let Some((mpi, _)) = &self.mpi else { return work() };
        let failure = match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(())) => match mpi.finish() {
                Ok(()) => return Ok(()),
                Err(error) => self.explain(error),
            },
            Ok(Err(failure)) => failure,
            Err(_) => Failure::other("found a bug, described in the lines above"),
        };
        self.end(&failure)
    }

    #[cfg(not(feature = "mpi"))]
    pub fn run(&self, work: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        work()
    }

    /// Says why, and ends all ranks.
    #[cfg(feature = "mpi")]
    fn end(&self, failure: &Failure) -> ! {
        output::note(&format!("error: {failure}"));
        let (mpi, _) = self.mpi.as_ref().expect("bug: one of several ranks");
        mpi.abort(i32::from(failure.status))
    }

    /// Lets the first rank tell of an error that all have: it ends the others.
    pub fn leave_it_to_the_first(&self) {
        if let (Some(exchange), false) = (&self.exchange, self.is_first()) {
            // Nothing comes any more. Should the first rank be silent, too, this one speaks.
            let _ = exchange.receive(0);
        }
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn ranks(&self) -> usize {
        self.hosts.len()
    }

    /// Whether this is the rank that writes: metrics, checkpoints, the terminal.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    pub fn is_alone(&self) -> bool {
        self.exchange.is_none()
    }

    /// (This rank, all ranks) of this host, counted from 0.
    pub fn local(&self) -> (usize, usize) {
        let same = |hosts: &[String]| hosts.iter().filter(|host| **host == self.hosts[self.rank]).count();
        (same(&self.hosts[..self.rank]), same(&self.hosts))
    }

    /// Does work for which, on the first rank, the others wait as long as it takes: on its disk, say.
    pub fn busy<T>(&self, work: impl FnOnce() -> T) -> T {
        #[cfg(feature = "mpi")]
        if let (Some((mpi, _)), true) = (&self.mpi, self.is_first()) {
            return mpi.busy(work);
        }
        work()
    }

    /// Before each step: whether any rank says `stop`, and the step of the newest checkpoint, of which the first rank knows.
    pub fn call(&self, stop: bool, complete: Option<u64>) -> Result<(bool, Option<u64>), Failure> {
        let complete = complete.map_or(0, |step| step + 1);
        let all = self.gather_bytes([&[u8::from(stop)], &complete.to_le_bytes()[..]].concat())?;
        let complete = all[0].last_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Ok((all.iter().any(|bytes| bytes.first() == Some(&1)), complete.checked_sub(1)))
    }

    /// Bytes of all ranks, in order.
    pub fn gather_bytes(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>, Failure> {
        match &self.exchange {
            None => Ok(vec![own]),
            Some(exchange) => {
                let messages = exchange.all_gather(own).map_err(|error| self.explain(error))?;
                Ok(messages.iter().map(|message| message.to_vec()).collect())
            }
        }
    }

    /// What all ranks have exchanged, out of the bytes that this one has sent and the seconds that it took.
    pub fn exchanged(&self, (bytes, seconds): (u64, f64)) -> Result<Exchanged, Failure> {
        let all = self.gather_bytes([bytes.to_le_bytes(), seconds.to_le_bytes()].concat())?;
        let word = |bytes: &[u8], at: usize| bytes.as_chunks().0.get(at).copied().unwrap_or_default();
        let times: Vec<f64> = all.iter().map(|bytes| f64::from_le_bytes(word(bytes, 1))).collect();
        let slowest = (0..times.len()).min_by(|&a, &b| times[a].total_cmp(&times[b])).unwrap_or(0);
        Ok(Exchanged {
            count: all.len() as u64,
            bytes: all.iter().map(|bytes| u64::from_le_bytes(word(bytes, 0))).sum(),
            seconds: times.iter().sum::<f64>() / times.len() as f64,
            slowest: slowest as u64,
        })
    }

    /// Losses of all ranks, in order.
    pub fn gather_losses(&self, own: &Losses) -> Result<Losses, Failure> {
        let bytes = own.iter().flat_map(|(loss, count)| [loss.to_le_bytes().to_vec(), count.to_le_bytes().to_vec()]).flatten();
        let loss = |bytes: &[u8; 12]| {
            let (loss, count) = bytes.split_at(4);
            let (loss, count) = (loss.try_into().unwrap_or_default(), count.try_into().unwrap_or_default());
            (f32::from_le_bytes(loss), u64::from_le_bytes(count))
        };
        let all = self.gather_bytes(bytes.collect())?;
        Ok(all.iter().flat_map(|bytes| bytes.as_chunks().0).map(loss).collect())
    }

    /// Texts of all ranks, in order.
    pub fn gather(&self, own: &str) -> Result<Vec<String>, Failure> {
        let texts = self.gather_bytes(own.as_bytes().to_vec())?;
        Ok(texts.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect())
    }

    /// An error unless all ranks say the same about everything in the list: its name, and what this rank says.
    pub fn agree(&self, list: &[(&str, String)]) -> Result<(), Failure> {
        list.iter().try_for_each(|(name, own)| match self.dissent(own)? {
            None => Ok(()),
            Some(dissent) => {
                self.leave_it_to_the_first();
                Err(Failure::usage(format!("{name}: {dissent}")))
            }
        })
    }

    /// An error unless all ranks see the same weights: a rank with others would spoil every step that follows.
    pub fn agree_on_weights(&self, trainer: &Trainer) -> Result<(), Failure> {
        if self.is_alone() {
            return Ok(());
        }
        match self.dissent(&checksum(&trainer.effective_params()?)?)? {
            None => Ok(()),
            Some(dissent) => {
                self.leave_it_to_the_first();
                Err(Failure::other(format!("effective weights: {dissent}; the checkpoint was not written"))
                    .hint("that rank's device or memory is at fault"))
            }
        }
    }

    /// An error unless all ranks begin with the same weights.
    pub fn agree_on_initial_weights(&self, params: &Params) -> Result<(), Failure> {
        if self.is_alone() { Ok(()) } else { self.agree(&[("initial weights", checksum(params)?)]) }
    }

    /// What one rank says, and what most others do, where they differ.
    fn dissent(&self, own: &str) -> Result<Option<String>, Failure> {
        let all = self.gather(own)?;
        let votes = |rank: usize| all.iter().filter(|text| **text == all[rank]).count();
        // The last of the greatest: where the votes are equal, that of the first rank.
        let most = (0..all.len()).rev().max_by_key(|rank| votes(*rank)).unwrap_or(0);
        let Some(other) = all.iter().position(|text| *text != all[most]) else { return Ok(None) };
        let pair = || all[other].lines().zip(all[most].lines()).find(|(found, expected)| found != expected);
        let (found, expected) = pair().unwrap_or((&all[other], &all[most]));
        let name = |rank: usize| format!("rank {rank} (host {})", self.hosts[rank]);
        Ok(Some(format!("found {found} on {}, expected {expected} as on {}", name(other), name(most))))
    }

    /// Makes a trainer one of the ranks, or of the replicas alone.
    pub fn place(&self, trainer: Trainer, config: &Config) -> Result<Trainer, Failure> {
        let trainer = trainer.with_replicas(config.train.replicas)?;
        let Some(exchange) = &self.exchange else { return Ok(trainer) };
        let options = ExchangeOptions { wire: config.train.exchange, overlap: self.overlap, ..ExchangeOptions::default() };
        trainer.on_ranks(exchange.clone(), options).map_err(|error| self.explain(error))
    }

    /// An error unless this number of ranks can train the configuration.
    pub fn check(&self, config: &Config) -> Result<(), Failure> {
        let (ranks, replicas) = (self.ranks(), config.train.replicas);
        if !replicas.is_multiple_of(ranks) {
            let (accumulation, sequences) = (config.train.grad_accumulation, config.train.batch_size);
            let is_too_coarse = !accumulation.is_multiple_of(ranks) && sequences.is_multiple_of(ranks);
            let hint = if is_too_coarse && ranks.is_power_of_two() {
                let (accumulation, sequences) = (accumulation * ranks, sequences / ranks);
                format!(
                    "ranks share out micro-batches: a new run with --set train.grad_accumulation={accumulation} train.batch_size={sequences} \
                     has enough of them, for the same batch"
                )
            } else {
                format!(
                    "it is fixed when a run begins, as a power of two that divides train.grad_accumulation = {accumulation}; \
                     any number of ranks that divides it can train the run"
                )
            };
            return Err(
                Failure::usage(format!("train.replicas: found {replicas}, expected a multiple of the {ranks} ranks")).hint(hint)
            );
        }
        if ranks > 1 && config.train.log_layers_every > 0 {
            let found = config.train.log_layers_every;
            return Err(Failure::usage(format!("train.log_layers_every: found {found}, expected 0 on several ranks"))
                .hint("no rank has all gradients to measure; a single process measures them"));
        }
        Ok(())
    }

    /// To be called once a step is done: from now on ranks wait for each other as long as the user says.
    pub fn has_started(&self) {
        #[cfg(feature = "mpi")]
        if let Some((mpi, patience)) = &self.mpi {
            mpi.set_timeout(*patience);
        }
    }

    /// The error of an exchange, with the host.
    pub fn explain(&self, error: Error) -> Failure {
        match error {
            Error::Rank { rank, problem } if rank < self.hosts.len() => {
                Failure::other(format!("rank {rank} (host {}) {problem}", self.hosts[rank]))
            }
            error => error.into(),
        }
    }

    /// What resumes a run with as many ranks.
    pub fn resume_command(&self, run: &Path) -> String {
        let launcher = if self.is_alone() { String::new() } else { format!("mpirun -n {} ", self.ranks()) };
        format!("{launcher}llama_pc train --resume {}", run.display())
    }
}

#[cfg(test)]
mod tests {
    use polytape::exchange::in_process;
    use polytape::optim::{AdamConfig, AdamW};
    use polytape::{Gpu, GpuOptions, Role, Tensor};

    use super::*;

    /// What each of three ranks, which are threads on hosts of their own, makes of `work`.
    fn on_three<T: Send>(work: impl Fn(&World) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let locals = in_process(3, Duration::from_secs(20)).into_iter().enumerate();
            let threads: Vec<_> = locals
                .map(|(rank, local)| {
                    let work = &work;
                    scope.spawn(move || {
                        let hosts = ["a", "b", "c"].map(str::to_owned).to_vec();
                        work(&World { exchange: Some(Arc::new(local)), hosts, rank, ..World::alone() })
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        })
    }

    #[test]
    fn a_rank_with_other_weights_is_named() {
        let gpu = Gpu::open(&GpuOptions { warn: |_| (), ..Default::default() }).expect("an adapter");
        let agree = |odd: usize| {
            let found = on_three(|world| {
                let mut params = Params::new(&gpu);
                let last = if world.rank() == odd { f32::from_bits(1) } else { 0.0 };
                let tensor = Tensor::from_slice(&gpu, &[1.0, 2.0, last], &[3]).expect("a tensor");
                params.add("w", Role::Vector, tensor).expect("a name");
                let trainer = Trainer::resume(params, None, Box::new(AdamW::new(AdamConfig::default())), 1.0);
                world.agree_on_weights(&trainer).map_err(|failure| failure.to_string())
            });
            found.into_iter().next().expect("the first rank")
        };
        assert_eq!(agree(3), Ok(()));
        let text = agree(2).expect_err("other weights");
        assert!(text.starts_with("effective weights: found the checksum ") && text.contains(" on rank 2 (host c), "), "{text}");
        assert!(text.contains(" as on rank 0 (host a); the checkpoint was not written"), "{text}");
        let text = agree(0).expect_err("other weights");
        assert!(text.contains(" on rank 0 (host a), ") && text.contains(" as on rank 1 (host b); "), "most are right: {text}");
    }

    #[test]
    fn a_build_without_mpi_refuses_to_be_one_of_several() {
        let refused = |name: &str, count: &str| {
            let set = |asked: &str| (asked == name).then(|| count.to_owned());
            refuse_launcher(launched_in(set)).map_err(|failure| failure.to_string())
        };
        for variable in LAUNCHERS {
            let text = refused(variable, " 4").expect_err("one of four");
            let expected = format!("found {variable} = 4, expected a single process: this build has no MPI\nhint: build it with");
            assert!(text.starts_with(&expected) && text.contains("--features mpi"), "{text}");
            assert_eq!(refused(variable, "1"), Ok(()));
        }
        assert_eq!(refused("SLURM_NTASKS", "4"), Ok(()), "those of the job, of which this step may have one");
    }

    #[test]
    fn a_call_gathers_wishes_and_the_first_ranks_checkpoint() {
        let called = |stop: usize| on_three(|world| world.call(world.rank() == stop, (world.rank() == 0).then_some(7)).ok());
        assert_eq!(called(1), vec![Some((true, Some(7))); 3]);
        assert_eq!(called(3), vec![Some((false, Some(7))); 3]);
        assert_eq!(World::alone().call(true, None).ok(), Some((true, None)));
    }
}
