//! The program `llama_pc`, which pre-trains Llama models with PC layers on any GPU: [`main`], and [`readers`] to be tested from outside.
//!
//! Imports point one way: commands → study → train, inspect → model → run → data → config → terminal.

mod commands;
mod config;
mod data;
mod inspect;
mod model;
pub mod readers;
mod run;
mod study;
mod terminal;
mod train;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use commands::{bench, devices, eval, export, plan, prepare, report, sample, selftest, spectrum};
use terminal::failure::Failure;
use terminal::output;

/// Pre-trains Llama models with PC layers on any GPU.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Subcommand)]
enum Command {
    /// List the adapters: index, name, kind, driver, limits, features and the kernels that each would use
    Devices,
    /// Check every kernel that an adapter can run against a float64 reference and print a table for bug reports
    Selftest(selftest::Args),
    /// Measure what an adapter reaches: products, attention, memory, PC layers, Muon and whole steps, in two minutes
    Bench(bench::Args),
    /// Tokenize text into shards for training and validation
    Prepare(prepare::Args),
    /// Estimate what a configuration needs: parameters, memory, FLOPs, and whether it fits
    Plan(plan::Args),
    /// Train a model
    Train(commands::train::Args),
    /// Evaluate loss, perplexity and bits per byte of a run or an exported folder
    Eval(eval::Args),
    /// Generate text with a run or an exported folder
    Sample(sample::Args),
    /// Merge the PC layers and export a folder for transformers or a GGUF file for llama.cpp
    Export(export::Args),
    /// Measure the singular values of every matrix, before and after the polynomial, and the condition numbers
    Spectrum(spectrum::Args),
    /// Write an HTML report about one or more runs
    Report(report::Args),
    /// Measure what PC layers gain: train models with and without them, and write a page about it
    Study(commands::study::Args),
}

/// Runs the command that the command line asks for.
pub fn main() -> ExitCode {
    match Cli::try_parse().map_err(refusal).and_then(|cli| dispatch(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::note(&format!("error: {failure}"));
            ExitCode::from(failure.status)
        }
    }
}

/// What is wrong with a command line, as one sentence. Help and the version end the process.
fn refusal(error: clap::Error) -> Failure {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        error.exit();
    }
    let text = error.to_string();
    let lines =
        text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage: ") && !line.starts_with("For more information"));
    let (tips, said): (Vec<&str>, Vec<&str>) = lines.filter(|line| !line.is_empty()).partition(|line| line.starts_with("tip: "));
    let said = said.join(" ");
    let hint = tips.first().and_then(|tip| tip.strip_prefix("tip: ")).unwrap_or("--help tells what the command takes");
    Failure::usage(said.strip_prefix("error: ").unwrap_or(&said)).hint(hint)
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Devices => devices::run(),
        Command::Selftest(args) => selftest::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Prepare(args) => prepare::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Train(args) => commands::train::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Sample(args) => sample::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Spectrum(args) => spectrum::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Study(args) => commands::study::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
