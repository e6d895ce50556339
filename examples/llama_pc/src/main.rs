//! llama_pc: pre-trains Llama models with PC layers on any GPU.

#[allow(dead_code, reason = "train, eval and sample are still to come")]
mod cli;
#[allow(dead_code, reason = "train, eval and sample are still to come")]
mod config;
#[allow(dead_code, reason = "train, eval and sample are still to come")]
mod data;
mod failure;
mod progress;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use config::Config;
use failure::Failure;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.status)
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Train(args) => {
            Config::load(args.config.as_deref(), &args.settings())?;
            Err(Failure::other("train is not part of this build yet"))
        }
        Command::Prepare(args) => data::prepare::run(&args),
        _ => Err(Failure::other("this command is not part of this build yet")),
    }
}
