//! llama_pc: pre-trains Llama models with PC layers on any GPU.

#![allow(
    dead_code,
    reason = "train, eval and sample, which use the rest, are still to come"
)]

mod cli;
mod config;
mod data;
mod failure;
mod output;
mod picture;
mod progress;
mod run;
mod sampling;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use config::Config;
use failure::Failure;

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::note(&format!("error: {failure}"));
            ExitCode::from(failure.status)
        }
    }
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Train(args) => {
            Config::load(args.config.as_deref(), &args.settings())?;
            Err(Failure::other("train is not part of this build yet"))
        }
        Command::Prepare(args) => data::prepare::run(&args),
        _ => Err(Failure::other("this command is not part of this build yet")),
    }
}
