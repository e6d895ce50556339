//! The step in PyTorch on the CPU: `torch_step.py` in a process of its own, if Python has torch.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::{BETAS, EPS, Peer, RATE, Result, Setup, WEIGHT_DECAY};

pub struct Run {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    pub version: String,
}

impl Run {
    /// `None` if Python has no torch.
    pub fn new(setup: &Setup) -> Result<Option<Self>> {
        let probe = Command::new("python3").args(["-c", "import torch"]).stderr(Stdio::null()).status();
        if !probe.is_ok_and(|status| status.success()) {
            println!("PyTorch is left out: python3 cannot import torch");
            return Ok(None);
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("torch_step.py");
        let mut child = Command::new("python3").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let commands = child.stdin.take().ok_or("no standard input")?;
        let answers = BufReader::new(child.stdout.take().ok_or("no standard output")?);
        let mut run = Self { child, commands, answers, version: String::new() };
        run.commands.write_all(&input(setup))?;
        run.version = run.answer()?.trim_start_matches("ready ").to_owned();
        Ok(Some(run))
    }

    /// Runs a command and returns its answer.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        writeln!(self.commands, "{command}")?;
        self.answer()
    }

    fn answer(&mut self) -> Result<String> {
        self.commands.flush()?;
        let mut line = String::new();
        match self.answers.read_line(&mut line)? {
            0 => Err("torch_step.py has ended".into()),
            _ => Ok(line.trim().to_owned()),
        }
    }
}

/// What the script reads before the first command.
fn input(setup: &Setup) -> Vec<u8> {
    let config = &setup.config;
    let mut names: Vec<&String> = setup.weights.keys().collect();
    names.sort();
    let tensors: Vec<String> = names.iter().map(|name| format!("[\"{name}\", {:?}]", setup.weights[*name].0)).collect();
    let mut bytes = format!(
        "{{\"config\": {{\"dim\": {}, \"layers\": {}, \"heads\": {}, \"seq_len\": {}, \"micro_batches\": {}, \"theta\": {}, \"norm_eps\": {}, \
         \"lr\": {RATE}, \"betas\": {BETAS:?}, \"eps\": {EPS}, \"weight_decay\": {WEIGHT_DECAY}}}, \"tensors\": [{}], \"tokens\": {}}}\n",
        config.dim,
        config.layers,
        config.heads,
        config.max_seq_len,
        setup.micro_batches,
        config.rope_theta,
        config.norm_eps,
        tensors.join(", "),
        setup.inputs.len()
    )
    .into_bytes();
    let values = names.iter().flat_map(|name| setup.weights[*name].1.iter().map(|value| value.to_bits()));
    let words = values.chain(setup.inputs.iter().copied()).chain(setup.targets.iter().copied());
    bytes.extend(words.flat_map(u32::to_le_bytes));
    bytes
}

impl Peer for Run {
    fn step(&mut self, read: bool) -> Result<Option<f32>> {
        let loss = self.ask("step")?.parse()?;
        Ok(read.then_some(loss))
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended by itself
        let _ = self.child.wait();
    }
}
