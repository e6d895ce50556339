//! Rows as a table for people: a line for what was measured, its values side by side.

use super::report::{LeftOut, Row};

/// Width of the first column, at least.
const NAMES: usize = 30;
/// Width of a value's column, at least.
const VALUES: usize = 11;

/// The table of a part, with a line for whatever was left out.
pub fn part(name: &str, rows: &[&Row], left_out: &[&LeftOut]) -> String {
    let columns = distinct(rows.iter().map(|row| (row.column.as_str(), row.unit)));
    let names = distinct(rows.iter().map(|row| row.what.as_str()));
    let head = |(column, unit): (&str, super::report::Unit)| format!("{column} {}", unit.name()).trim().to_owned();
    let mut lines = vec![std::iter::once(name.to_owned()).chain(columns.iter().copied().map(head)).collect::<Vec<_>>()];
    let mut notes = Vec::new();
    for what in &names {
        let own: Vec<&&Row> = rows.iter().filter(|row| row.what == *what).collect();
        let cell = |column: &(&str, _)| {
            own.iter().find(|row| (row.column.as_str(), row.unit) == *column).map_or_else(String::new, |row| cell(row))
        };
        let mut line = vec![(*what).to_owned()];
        line.extend(columns.iter().map(cell));
        lines.push(line);
        let spreads = own.iter().filter_map(|row| row.spread);
        let note = own.iter().filter_map(|row| row.note.clone()).collect::<Vec<_>>().join("; ");
        let spread = spreads.fold(None, |most: Option<f64>, spread| Some(most.map_or(spread, |most| most.max(spread))));
        notes.push((spread, note));
    }
    let widths: Vec<usize> = (0..=columns.len())
        .map(|at| {
            let widest = lines.iter().map(|line| line[at].chars().count()).max().unwrap_or_default();
            widest.max(if at == 0 { NAMES } else { VALUES })
        })
        .collect();
    let mut text = "\n".to_owned();
    for (number, line) in lines.iter().enumerate() {
        if number == 0 && rows.is_empty() {
            text.push_str(name);
        } else {
            for (at, (cell, &width)) in line.iter().zip(&widths).enumerate() {
                text.push_str(&if at == 0 { format!("{cell:<width$}") } else { format!("  {cell:>width$}") });
            }
        }
        let after = match number.checked_sub(1).map(|at| &notes[at]) {
            None if rows.iter().any(|row| row.spread.is_some()) => "  spread".to_owned(),
            None => String::new(),
            Some((spread, note)) => {
                let spread = spread.map_or_else(String::new, |spread| format!("{:.0} %", 100.0 * spread));
                format!("  {spread:>6}  {note}")
            }
        };
        text.push_str(after.trim_end());
        text.push('\n');
    }
    for LeftOut { what, reason, .. } in left_out {
        let what = if what.is_empty() { String::new() } else { format!("{what}: ") };
        text.push_str(&format!("left out: {what}{reason}\n"));
    }
    text
}

/// A value with its share of the limit.
fn cell(row: &Row) -> String {
    match row.of_limit {
        Some(share) => format!("{} {:>3.0} %", digits(row.value), 100.0 * share),
        None => digits(row.value),
    }
}

/// Three digits, and all of a large number.
pub fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 || size == 0.0 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.9995 => format!("{value:.2}"),
        size if size >= 0.0995 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

/// Seconds as a reader wants them: `0.4 s`, `12 s`, `5 min`.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        ..9.5 => format!("{seconds:.1} s"),
        ..120.0 => format!("{seconds:.0} s"),
        _ => format!("{:.0} min", seconds / 60.0),
    }
}

/// The values without repetitions, in the order of their first appearance.
fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    values.fold(Vec::new(), |mut list, value| {
        if !list.contains(&value) {
            list.push(value);
        }
        list
    })
}

#[cfg(test)]
mod tests {
    use super::super::report::Unit;
    use super::*;

    fn row(what: &str, column: &str, value: f64) -> Row {
        let (what, column) = (what.to_owned(), column.to_owned());
        Row { what, column, value, unit: Unit::Gigabytes, spread: Some(0.031), of_limit: Some(0.5), ..Row::default() }
    }

    #[test]
    fn values_of_one_name_share_a_line() {
        let rows = [row("copy", "f32", 12.34), row("sum", "f32", 1.0), row("copy", "f16", 0.5)];
        let left = LeftOut { part: "memory".into(), what: "adam".into(), reason: "takes about 9 s, 2 s left".into() };
        let text = part("memory", &rows.iter().collect::<Vec<_>>(), &[&left]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["memory", "f32", "GB/s", "f16", "GB/s", "spread"]);
        assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), ["copy", "12.3", "50", "%", "0.500", "50", "%", "3", "%"]);
        assert_eq!(lines[3].split_whitespace().collect::<Vec<_>>(), ["sum", "1.00", "50", "%", "3", "%"]);
        assert_eq!(lines[4], "left out: adam: takes about 9 s, 2 s left");
    }

    #[test]
    fn numbers_have_three_digits() {
        let shown = [0.0, 0.01234, 0.1234, 1.234, 12.34, 123.4, 12345.6].map(digits);
        assert_eq!(shown, ["0", "0.0123", "0.123", "1.23", "12.3", "123", "12346"]);
    }
}
