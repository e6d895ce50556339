//! The plan: runs and minutes by kind, from measured step times, before the first run.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::arms::{Arm, FEWER_ITERATIONS, ITERATIONS, LEVELS, Optimizer};
use super::queue::{self, STRESS};
use super::scale::Setup;
use super::statistics::rounded;
use super::timing::StepTime;
use crate::terminal::failure::Failure;
use crate::terminal::format::{duration, grouped};

/// A line of the plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub what: String,
    pub runs: u64,
    pub minutes: f64,
}

/// Rates beyond the first three that a grid is expected to need, on average.
const BEYOND: u64 = 1;

/// Validation is a forward without a backward: a third of a step's work per token.
const FORWARD: f64 = 1.0 / 3.0;

/// The plan of a study of `jobs` runs at a time.
pub fn rows(setup: &Setup, times: &[StepTime], jobs: usize) -> Result<Vec<Row>, Failure> {
    let (scale, steps) = (&setup.scale, setup.steps()?);
    let seeds = scale.design.seeds;
    let tuning = 3 + BEYOND + seeds - 1;
    let tokens = (steps as usize * setup.tokens_per_step()) as f64;
    let validated = (scale.validations as usize * scale.val_sequences * scale.seq_len) as f64;
    let minutes = |size: usize, arm: Arm| -> Result<f64, Failure> {
        let seconds = StepTime::of(times, size, arm).ok_or_else(|| Failure::other("study.json: found no step time of an arm"))?;
        Ok(steps as f64 * seconds * (1.0 + FORWARD * validated / tokens) / 60.0)
    };
    let mut rows = Vec::new();
    let mut add = |what: String, runs: u64, minutes: f64| {
        rows.push(Row { what, runs, minutes: rounded(runs as f64 * minutes / jobs as f64) })
    };
    let label = |size: usize| setup.parameters(size).map(size_label);
    for optimizer in Optimizer::ALL {
        for arm in Arm::all(optimizer) {
            add(format!("{}, {}, {}: rates and seeds", label(0)?, optimizer.title(), arm.title()), tuning, minutes(0, arm)?);
        }
    }
    // The best level is not known yet: assume the most expensive one.
    let level = LEVELS[LEVELS.len() - 1];
    for optimizer in Optimizer::ALL {
        for arm in queue::arms_of_second(optimizer, level) {
            let title = if arm.level().is_some() { "PC, best level".to_owned() } else { arm.title() };
            add(format!("{}, {}, {title}: rates and seeds", label(1)?, optimizer.title()), tuning, minutes(1, arm)?);
        }
    }
    for optimizer in Optimizer::ALL {
        let stressed = queue::stressed(optimizer, level);
        let mean = stressed.iter().map(|arm| minutes(0, *arm)).sum::<Result<f64, _>>()? / stressed.len() as f64;
        let runs = stressed.len() as u64 * STRESS.len() as u64 * seeds;
        add(format!("{}, {}: stability at 2 and 4 times the best rate", label(0)?, optimizer.title()), runs, mean);
    }
    let arm = queue::iterated();
    let [one, two, five] = FEWER_ITERATIONS;
    let what = format!(
        "{}, {}, {}: {one}, {two} and {five} power iterations instead of {ITERATIONS}",
        label(0)?,
        arm.optimizer.title(),
        arm.title()
    );
    add(what, FEWER_ITERATIONS.len() as u64 * seeds, minutes(0, arm)?);
    Ok(rows)
}

/// `0.10M`.
pub fn size_label(parameters: usize) -> String {
    format!("{:.2}M", parameters as f64 / 1e6)
}

/// All runs, and all minutes.
pub fn total(rows: &[Row]) -> (u64, f64) {
    (rows.iter().map(|row| row.runs).sum(), rows.iter().map(|row| row.minutes).sum())
}

/// The plan as a table in Markdown.
pub fn table(rows: &[Row], jobs: usize) -> String {
    let mut text = "| what | runs | minutes |\n|---|---:|---:|\n".to_owned();
    for Row { what, runs, minutes } in rows {
        let _ = writeln!(text, "| {what} | {runs} | {minutes:.1} |");
    }
    let (runs, minutes) = total(rows);
    let _ = writeln!(text, "| **in all** | **{}** | **{minutes:.0}** ({}) |", grouped(runs), duration(60.0 * minutes));
    if jobs > 1 {
        let _ = writeln!(text, "\n{jobs} runs at a time.");
    }
    text
}

/// Refuses a plan beyond the limit.
pub fn check(rows: &[Row], max_hours: f64) -> Result<(), Failure> {
    let hours = total(rows).1 / 60.0;
    if hours <= max_hours {
        return Ok(());
    }
    Err(Failure::usage(format!("--max-hours: found a plan of {hours:.1} hours on this machine, expected at most {max_hours}"))
        .hint("an idle machine is faster; --max-hours N, fewer --seeds, or --scale tiny to try it"))
}

#[cfg(test)]
mod tests {
    use super::super::scale::tests::setup;
    use super::*;

    fn times(tokens_per_second: [f64; 2]) -> Vec<StepTime> {
        let of = |size: usize| {
            let arms = Optimizer::ALL.into_iter().flat_map(Arm::all);
            arms.map(move |arm| StepTime { size, arm, seconds: 2048.0 / tokens_per_second[size] })
        };
        of(0).chain(of(1)).collect()
    }

    #[test]
    fn the_small_scale_fits_six_hours_at_the_speed_that_it_is_made_for() {
        let rows = rows(&setup(), &times([30_000.0, 12_000.0]), 1).expect("a plan");
        let (runs, minutes) = total(&rows);
        assert_eq!(runs, 16 * 7 + 6 * 7 + 32 + 12);
        assert!((4.5..6.0).contains(&(minutes / 60.0)), "{} hours", minutes / 60.0);
        assert!(check(&rows, 6.0).is_ok());
        let failure = check(&rows, 1.0).expect_err("too long");
        assert!(failure.status == 2 && failure.to_string().contains("expected at most 1"), "{failure}");
        let table = table(&rows, 1);
        assert!(table.contains("| 0.10M, AdamW, plain: rates and seeds | 7 | "), "{table}");
        assert!(table.contains("| **198** |") || table.contains("**198**"), "{table}");
    }
}
