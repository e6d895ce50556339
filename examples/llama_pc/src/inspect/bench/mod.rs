//! `bench`: what an adapter reaches, measured in two minutes without a corpus. Every part checks its results before it times them, has
//! a share of the time, and says what it left out.
//!
//! `session` holds the clock and collects rows; `limits` to `steps` are the parts; `table`, `compare` and `page` show the rows.

mod attention;
pub mod compare;
mod limits;
mod memory;
#[cfg(test)]
mod page;
mod products;
mod report;
mod session;
mod sizes;
mod spectral;
mod steps;
mod table;
mod values;

use std::path::PathBuf;
use std::time::Duration;

use polytape::Gpu;

use crate::terminal::failure::Failure;
use crate::terminal::output;
use report::Report;
use session::{Case, Session};

/// What to measure, and for how long.
pub struct Request {
    /// All parts, if empty.
    pub only: Vec<Part>,
    pub seconds: f64,
    /// Print one JSON object instead of tables.
    pub json: bool,
    /// Earlier results, as `json` prints them, to compare with.
    pub compare: Option<PathBuf>,
}

/// A part of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// What the adapter does with nothing but multiply-adds, matrix products, or copies
    Limits,
    /// The matrix products of a training step, at each precision
    Products,
    /// Attention, forward and backward
    Attention,
    /// Kernels that memory bounds, against a copy
    Memory,
    /// PC layers and Muon
    Spectral,
    /// Whole training steps
    Steps,
}

impl Part {
    /// All parts in their order, each with its share of the time. What one does not use is the next one's.
    const SHARES: [(Self, f64); 6] = [
        (Self::Limits, 0.05),
        (Self::Products, 0.20),
        (Self::Attention, 0.12),
        (Self::Memory, 0.08),
        (Self::Spectral, 0.15),
        (Self::Steps, 0.40),
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Limits => "limits",
            Self::Products => "products",
            Self::Attention => "attention",
            Self::Memory => "memory",
            Self::Spectral => "spectral",
            Self::Steps => "steps",
        }
    }

    fn measure(self) -> fn(&mut Session) -> Case {
        match self {
            Self::Limits => limits::run,
            Self::Products => products::run,
            Self::Attention => attention::run,
            Self::Memory => memory::run,
            Self::Spectral => spectral::run,
            Self::Steps => steps::run,
        }
    }

    /// The parts of a request with their shares, which make 1 together. The limits are always among them: the others need them.
    fn chosen(only: &[Self]) -> Vec<(Self, f64)> {
        let is_chosen = |part: Self| only.is_empty() || only.contains(&part) || part == Self::Limits;
        let parts: Vec<_> = Self::SHARES.into_iter().filter(|(part, _)| is_chosen(*part)).collect();
        let total: f64 = parts.iter().map(|(_, share)| share).sum();
        parts.into_iter().map(|(part, share)| (part, share / total)).collect()
    }
}

/// Measures and prints.
pub fn run(gpu: &Gpu, request: &Request) -> Result<(), Failure> {
    // Before two minutes are spent.
    let earlier = request.compare.as_deref().map(|path| compare::read(path, gpu)).transpose()?;
    let mut report = Report::of(gpu);
    if !request.json {
        output::print(&report.heading())?;
    }
    let mut session = Session::new(gpu, Duration::from_secs_f64(request.seconds))?;
    let mut due = 0.0;
    for (part, share) in Part::chosen(&request.only) {
        due += share;
        session.begin(part.name(), due);
        let outcome = part.measure()(&mut session);
        session.end(outcome);
        if !request.json {
            output::print(&session.part_text())?;
        }
    }
    session.finish(&mut report);
    if request.json {
        output::print(&report.json())?;
    } else {
        output::print(&report.ending())?;
    }
    if let Some(earlier) = &earlier {
        output::print(&compare::text(earlier, &report))?;
    }
    match report.failed.len() {
        0 => Ok(()),
        failed => Err(Failure::other(format!("{}: {failed} measurements failed, expected none", report.adapter))
            .hint("please report the whole output; `selftest` checks every kernel by itself")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_make_one_and_the_limits_are_always_there() {
        for only in [&[][..], &[Part::Memory], &[Part::Steps, Part::Limits]] {
            let chosen = Part::chosen(only);
            assert_eq!(chosen[0].0, Part::Limits);
            assert!((chosen.iter().map(|(_, share)| share).sum::<f64>() - 1.0).abs() < 1e-12, "{chosen:?}");
        }
        assert_eq!(Part::chosen(&[]).len(), Part::SHARES.len());
    }
}
