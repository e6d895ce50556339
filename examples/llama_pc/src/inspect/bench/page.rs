//! `docs/hardware.md`: a table over all adapters, then what was measured on each, from the lines of `benches/hardware.jsonl`.

use std::fmt::Write;

use super::compare::parse;
use super::report::{LeftOut, Report, Row, Unit};
use super::table::{digits, part};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../");

/// A column of the table over all adapters.
struct Column {
    title: &'static str,
    part: &'static str,
    /// What the names of its rows begin with.
    what: &'static str,
    column: &'static str,
    unit: Unit,
}

const COLUMNS: [Column; 11] = {
    const fn column(title: &'static str, names: [&'static str; 3], unit: Unit) -> Column {
        let [part, what, column] = names;
        Column { title, part, what, column, unit }
    }
    use Unit::{Gigabytes, Percent, Teraflops, Tokens};
    [
        column("multiply-adds, TFLOP/s", ["limits", "f32", ""], Teraflops),
        column("matrix units, TFLOP/s", ["limits", "f16", ""], Teraflops),
        column("copy, GB/s", ["limits", "copy", ""], Gigabytes),
        column("f32 products, TFLOP/s", ["products", "", "f32"], Teraflops),
        column("f16 products, TFLOP/s", ["products", "", "f16"], Teraflops),
        column("attention, TFLOP/s", ["attention", "", "forward"], Teraflops),
        column("backward, TFLOP/s", ["attention", "", "backward"], Teraflops),
        column("20M, tokens/s", ["steps", "20M at f32", "plain"], Tokens),
        column("271M, tokens/s", ["steps", "271M at f32", "plain"], Tokens),
        column("1B, tokens/s", ["steps", "1B at f32", "plain"], Tokens),
        column("PC layers of 20M, %", ["steps", "20M at f32", "PC of 8 micro-batches"], Percent),
    ]
};

impl Column {
    /// The best of its values.
    fn cell(&self, report: &Report) -> String {
        let is_own = |row: &&Row| {
            row.part == self.part && row.what.starts_with(self.what) && row.column == self.column && row.unit == self.unit
        };
        let values = report.rows.iter().filter(is_own).map(|row| row.value);
        values.reduce(f64::max).map_or_else(|| "–".to_owned(), digits)
    }
}

fn page(reports: &[Report]) -> String {
    let mut text = "# Hardware\n\nWhat `llama_pc bench` measured, by adapter. For products and attention the table shows the best value of any shape. To add an adapter, \
                    append a line to `benches/hardware.jsonl` and regenerate this page:\n\n\
                    \x20   cargo llama_pc bench --json >> benches/hardware.jsonl\n\
                    \x20   UPDATE_DOCS=1 cargo test -p llama_pc --lib hardware\n\n"
        .to_owned();
    let titles: Vec<&str> = COLUMNS.iter().map(|column| column.title).collect();
    let _ = writeln!(text, "| adapter | driver | kernels | {} |", titles.join(" | "));
    let _ = writeln!(text, "|---|---|---|{}", "---:|".repeat(COLUMNS.len()));
    for report in reports {
        let cells: Vec<String> = COLUMNS.iter().map(|column| column.cell(report)).collect();
        let Report { adapter, driver, kernels, .. } = report;
        let _ = writeln!(text, "| {adapter} | {driver} | {kernels} | {} |", cells.join(" | "));
    }
    for report in reports {
        let Report { adapter, kernels, .. } = report;
        let _ = write!(
            text,
            "\n## {adapter}, {kernels} kernels\n\n```\n{}{}{}```\n",
            report.heading(),
            tables(report),
            report.ending()
        );
    }
    text
}

fn tables(report: &Report) -> String {
    super::Part::SHARES
        .iter()
        .map(|(name, _)| {
            let rows: Vec<&Row> = report.rows.iter().filter(|row| row.part == name.name()).collect();
            let left_out: Vec<&LeftOut> = report.left_out.iter().filter(|left| left.part == name.name()).collect();
            if rows.is_empty() && left_out.is_empty() { String::new() } else { part(name.name(), &rows, &left_out) }
        })
        .collect()
}

#[test]
fn the_page_of_hardware_is_in_step() {
    let lines = std::fs::read_to_string(format!("{ROOT}benches/hardware.jsonl")).expect("benches/hardware.jsonl");
    let reports = parse(&lines).expect("measurements");
    let path = format!("{ROOT}docs/hardware.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, page(&reports)).expect("the page is written");
    }
    let found = std::fs::read_to_string(&path).expect("docs/hardware.md");
    assert!(found == page(&reports), "docs/hardware.md is out of step: run UPDATE_DOCS=1 cargo test -p llama_pc --lib hardware");
}
