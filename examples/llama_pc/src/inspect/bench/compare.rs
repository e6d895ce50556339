//! `--compare`: ratios to an earlier measurement.

use std::path::Path;

use polytape::Gpu;

use super::report::{Report, Row};
use super::table::digits;
use crate::terminal::failure::Failure;
use crate::terminal::format::clipped;
use crate::terminal::output;

/// The last measurement of a file that has this device's adapter and kernels, or else its last one.
pub fn read(path: &Path, gpu: &Gpu) -> Result<Report, Failure> {
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => Failure::other(format!("{name}: not text, expected lines of `bench --json`")),
        _ => Failure::io("read", path, &error),
    })?;
    let mut reports = parse(&text).map_err(|problem| Failure::other(format!("{name}: {problem}")))?;
    let own = Report::of(gpu);
    let last = |reports: &[Report]| {
        let is_own = |report: &Report| (&report.adapter, &report.kernels) == (&own.adapter, &own.kernels);
        reports.iter().rposition(is_own)
    };
    if let Some(at) = last(&reports) {
        return Ok(reports.swap_remove(at));
    }
    let Some(other) = reports.pop() else {
        return Err(Failure::other(format!("{name}: found no measurement, expected lines of `bench --json`")));
    };
    let (adapter, kernels) = (clipped(&other.adapter, 80), clipped(&other.kernels, 80));
    output::note(&format!("note: {name} has nothing of this adapter with these kernels; compared with {adapter}, {kernels}"));
    Ok(other)
}

/// The measurements of a text: one JSON object a line.
pub fn parse(text: &str) -> Result<Vec<Report>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(at, line)| {
            let report: Report = serde_json::from_str(line)
                .map_err(|error| format!("line {}: not a measurement of `bench --json`: {error}", at + 1))?;
            match report.rows.iter().find(|row| !row.value.is_finite()) {
                Some(row) => Err(format!("line {}: {} has the value {}", at + 1, clipped(&row.what, 80), row.value)),
                None => Ok(report),
            }
        })
        .collect()
}

/// A line for every value of both, with how many times better the new one is, and their geometric mean.
pub fn text(earlier: &Report, now: &Report) -> String {
    let (adapter, driver, kernels) = (clipped(&earlier.adapter, 80), clipped(&earlier.driver, 80), clipped(&earlier.kernels, 80));
    let mut lines =
        vec![format!("\nagainst llama_pc {} on {adapter}, {driver}, {kernels} kernels", clipped(&earlier.version, 20))];
    let width = now.rows.iter().map(|row| label(row).chars().count()).max().unwrap_or_default();
    lines.push(format!("{:width$}  {:>10}  {:>10}  {:>8}", "", "then", "now", "better"));
    let (mut sum, mut count) = (0.0, 0_u32);
    for row in &now.rows {
        let Some(then) = earlier.find(row) else { continue };
        let ratio = better(then, row);
        let shown = ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2} ×"));
        let (then, now) = (digits(then.value), digits(row.value));
        lines.push(format!("{:width$}  {then:>10}  {now:>10}  {shown:>8}", label(row)));
        if let Some(ratio) = ratio.filter(|_| row.unit.is_rate()) {
            sum += ratio.ln();
            count += 1;
        }
    }
    let missing = |of: &Report, within: &Report| of.rows.iter().filter(|row| within.find(row).is_none()).count();
    match count {
        0 => lines.push("no value is in both".to_owned()),
        _ => lines.push(format!(
            "{:width$}  {:>10}  {:>10}  {:>6.2} ×",
            "mean of the rates",
            "",
            "",
            (sum / f64::from(count)).exp()
        )),
    }
    let (gone, new) = (missing(earlier, now), missing(now, earlier));
    if gone + new > 0 {
        lines.push(format!("{gone} values are only in the earlier measurement, {new} only in this one"));
    }
    lines.join("\n") + "\n"
}

fn label(row: &Row) -> String {
    format!("{}: {}, {} {}", row.part, row.what, row.column, row.unit.name()).replace(",  ", ", ")
}

/// How many times better `now` is; of what is not positive there is no ratio.
fn better(then: &Row, now: &Row) -> Option<f64> {
    let ratio = if now.unit.is_rate() { now.value / then.value } else { then.value / now.value };
    (then.unit == now.unit && then.value > 0.0 && now.value > 0.0).then_some(ratio)
}

#[cfg(test)]
mod tests {
    use super::super::report::Unit;
    use super::*;

    fn report(rate: f64, time: f64) -> Report {
        let row = |what: &str, unit, value| Row { part: "p".into(), what: what.into(), unit, value, ..Row::default() };
        Report {
            version: "0".into(),
            adapter: "card".into(),
            kind: String::new(),
            driver: "d".into(),
            kernels: "matrix".into(),
            system: String::new(),
            seconds: 1.0,
            interrupted: false,
            rows: vec![row("rate", Unit::Tokens, rate), row("time", Unit::Milliseconds, time)],
            left_out: Vec::new(),
            failed: Vec::new(),
        }
    }

    #[test]
    fn a_higher_rate_and_a_shorter_time_are_better() {
        let text = text(&report(100.0, 10.0), &report(150.0, 5.0));
        let ratios: Vec<&str> = text.lines().filter(|line| line.contains('×')).collect();
        assert!(ratios[0].ends_with("1.50 ×") && ratios[1].ends_with("2.00 ×") && ratios[2].ends_with("1.50 ×"), "{text}");
    }

    #[test]
    fn lines_are_read_back_and_foreign_ones_refused_by_number() {
        let line = report(1.0, 2.0).json();
        assert_eq!(parse(&format!("{line}\n{line}")).expect("two").len(), 2);
        let problem = parse(&format!("{line}{{\"a\": 1}}\n")).expect_err("foreign");
        assert!(problem.starts_with("line 2: not a measurement"), "{problem}");
    }

    #[test]
    fn nothing_in_common_is_said() {
        let mut other = report(1.0, 1.0);
        other.rows[0].what = "else".into();
        other.rows[1].what = "other".into();
        let text = text(&other, &report(1.0, 1.0));
        assert!(text.contains("no value is in both") && text.contains("2 values are only in the earlier"), "{text}");
    }
}
