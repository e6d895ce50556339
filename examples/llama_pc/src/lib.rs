//! The program `llama_pc`, which pre-trains Llama models with PC layers on any GPU: [`main`], and [`readers`] to be tested from outside.

mod checkpoint;
mod cli;
mod config;
mod crc32c;
mod data;
mod devices;
mod engine;
mod evaluate;
mod events;
mod export;
mod failure;
mod guard;
mod hugging_face;
mod metrics;
mod output;
mod partial;
mod picture;
mod plan;
mod progress;
pub mod readers;
mod report;
mod run;
mod sample;
mod sampling;
mod selftest;
mod spectrum;
mod train;
mod weights;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use failure::Failure;

/// Runs the command that the command line asks for.
pub fn main() -> ExitCode {
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
        Command::Devices => devices::run(),
        Command::Selftest(args) => selftest::run(&args),
        Command::Prepare(args) => data::prepare::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Eval(args) => evaluate::run(&args),
        Command::Sample(args) => sample::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Spectrum(args) => spectrum::run(&args),
        Command::Report(args) => report::run(&args),
    }
}
