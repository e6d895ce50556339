//! Spectra as SVG: for every run, panels per kind of matrix with a line per block, and the condition numbers of all runs over their
//! steps. Middle brightness on no background, to be read on white and on dark.

use std::path::Path;

use plotters::prelude::*;

use super::report::{Report, RunSpectra, Spectra};
use crate::model::spectra::{Matrix, Spectrum};
use crate::terminal::failure::Failure;
use crate::terminal::picture::{Area, BLUE, Curve as Line, Drawn, GREY, ORANGE, save, text};

/// Colours of runs that red-green colour-blind readers can tell apart.
const RUNS: [RGBColor; 6] =
    [BLUE, ORANGE, RGBColor(31, 158, 137), RGBColor(178, 102, 178), RGBColor(150, 140, 40), RGBColor(200, 80, 100)];

/// A curve of a spectrum: file name, title of both axes, points.
struct Curve {
    file: &'static str,
    x: &'static str,
    y: &'static str,
    points: fn(&Spectrum) -> Line,
}

const CURVES: [Curve; 3] = [
    Curve { file: "histogram", x: "σ/σ₁", y: "share of the singular values", points: histogram },
    Curve { file: "cumulative", x: "σ/σ₁", y: "share at or below", points: cumulative },
    Curve { file: "quantiles", x: "quantile", y: "σ/σ₁", points: quantiles },
];

/// Steps, so that a bin is seen as wide as it is.
fn histogram(spectrum: &Spectrum) -> Line {
    let width = 1.0 / spectrum.histogram.len() as f64;
    let bin = |(at, share): (usize, &f64)| [(at as f64 * width, *share), ((at + 1) as f64 * width, *share)];
    spectrum.histogram.iter().enumerate().flat_map(bin).collect()
}

fn cumulative(spectrum: &Spectrum) -> Line {
    let width = 1.0 / spectrum.cumulative.len() as f64;
    let edges = spectrum.cumulative.iter().enumerate().map(|(at, share)| ((at + 1) as f64 * width, *share));
    std::iter::once((0.0, 0.0)).chain(edges).collect()
}

fn quantiles(spectrum: &Spectrum) -> Line {
    let last = (spectrum.quantiles.len() - 1) as f64;
    spectrum.quantiles.iter().enumerate().map(|(at, value)| (at as f64 / last, *value)).collect()
}

/// Writes every picture into the folder.
pub fn save_all(report: &Report, folder: &Path) -> Result<(), Failure> {
    for (number, run) in (1..).zip(&report.runs) {
        for curve in &CURVES {
            let name = match report.runs.len() {
                1 => format!("{}.svg", curve.file),
                _ => format!("{}-{number}.svg", curve.file),
            };
            save(&folder.join(name), (1200, 640), |area| panels(run, curve, area))?;
        }
    }
    save(&folder.join("gmcn.svg"), (900, 500), |area| gmcn(report, area))
}

/// The newest checkpoint: a panel per kind of matrix, in it the raw weights of every block and, in another colour, the effective ones.
fn panels(run: &RunSpectra, curve: &Curve, area: &Area<'_>) -> Drawn {
    let Some(newest) = run.checkpoints.last() else { return Ok(()) };
    let mut kinds: Vec<&str> = Vec::new();
    for matrix in &newest.matrices {
        let kind = matrix.place().1;
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let step = newest.step.map_or(String::new(), |step| format!(", step {step}"));
    area.draw_text(&format!("{}{step}: {} of σ/σ₁, a line per block", run.run, curve.file), &text(18), (16, 12))?;
    let legend = [(RUNS[0], "raw weights"), (ORANGE, "after the polynomial")];
    for (row, (color, label)) in (0..).zip(legend) {
        let y = 20 + 16 * row;
        area.draw(&PathElement::new([(880, y), (904, y)], color.stroke_width(2)))?;
        area.draw_text(label, &text(14), (912, y - 8))?;
    }
    let (_, below) = area.split_vertically(52);
    for (panel, kind) in below.split_evenly((2, kinds.len().div_ceil(2).max(1))).iter().zip(&kinds) {
        let matrices: Vec<&Matrix> = newest.matrices.iter().filter(|matrix| matrix.place().1 == *kind).collect();
        let raw: Vec<Line> = matrices.iter().map(|matrix| (curve.points)(&matrix.raw)).collect();
        let effective: Vec<Line> = matrices.iter().filter_map(|matrix| matrix.effective.as_ref().map(curve.points)).collect();
        let high = raw.iter().chain(&effective).flatten().map(|(_, y)| *y).fold(0.0, f64::max);
        let mut chart = chart(panel, kind, 0.0..1.0, 0.0..high.max(1e-9) * 1.05, (curve.x, curve.y))?;
        for (lines, color) in [(raw, RUNS[0]), (effective, ORANGE)] {
            for line in lines {
                chart.draw_series(LineSeries::new(line, color.mix(0.7)))?;
            }
        }
    }
    Ok(())
}

type Chart<'a, 'b> =
    ChartContext<'a, SVGBackend<'b>, Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>>;

fn chart<'a, 'b>(
    area: &'a Area<'b>,
    title: &str,
    x: std::ops::Range<f64>,
    y: std::ops::Range<f64>,
    (x_title, y_title): (&str, &str),
) -> Result<Chart<'a, 'b>, Box<dyn std::error::Error>> {
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .margin_right(18)
        .caption(title, text(16))
        .x_label_area_size(36)
        .y_label_area_size(58)
        .build_cartesian_2d(x.clone(), y)?;
    chart
        .configure_mesh()
        .axis_style(GREY)
        .bold_line_style(GREY.mix(0.25))
        .light_line_style(TRANSPARENT)
        .x_labels(5)
        .y_labels(5)
        .label_style(text(12))
        .axis_desc_style(text(13))
        .x_desc(x_title)
        .y_desc(y_title)
        .x_label_formatter(&|value| if x.end > 2.0 { format!("{value:.0}") } else { format!("{value:.2}") })
        .draw()?;
    Ok(chart)
}

/// GMCN over the steps: whole lines for all matrices, dots for the blocks with PC layers and the others where a run has both.
fn gmcn(report: &Report, area: &Area<'_>) -> Drawn {
    let point = |step: Option<u64>, value: f64| (step.unwrap_or_default() as f64, value.log10());
    let mut curves: Vec<(String, RGBColor, Line)> = Vec::new();
    for (run, color) in report.runs.iter().zip(RUNS.iter().cycle()) {
        let of = |value: &dyn Fn(&Spectra) -> Option<f64>| -> Line {
            run.checkpoints.iter().filter_map(|at| Some(point(at.step, value(at).filter(|v| v.is_finite())?))).collect()
        };
        curves.push((format!("{}, all", run.run), *color, of(&|at| Some(at.gmcn.all))));
        if run.checkpoints.iter().any(|at| at.gmcn.pc.is_some()) {
            curves.push((format!("{}, PC blocks", run.run), *color, of(&|at| at.gmcn.pc)));
            curves.push((format!("{}, others", run.run), *color, of(&|at| at.gmcn.plain)));
            curves.push((format!("{}, all, before the polynomial", run.run), *color, of(&|at| Some(at.gmcn_raw.all))));
        }
    }
    let all = || curves.iter().flat_map(|(.., line)| line);
    let last = all().map(|(x, _)| *x).fold(1.0, f64::max);
    let high = all().map(|(_, y)| *y).fold(0.1, f64::max);
    let titles = ("step", "log₁₀ of the geometric mean of modified condition numbers");
    let mut chart = chart(area, "GMCN", 0.0..last * 1.02, 0.0..high * 1.1, titles)?;
    for (at, (label, color, line)) in curves.into_iter().enumerate() {
        // Of one run, colours tell the curves apart; of several, colours are the runs' and shades tell the curves apart.
        let shade = if report.runs.len() == 1 { RUNS[at].mix(1.0) } else { color.mix([1.0, 0.75, 0.5, 0.3][at % 4]) };
        chart.draw_series(LineSeries::new(line.clone(), shade.stroke_width(2)))?;
        chart
            .draw_series(line.into_iter().map(|place| Circle::new(place, 4, shade.filled())))?
            .label(label)
            .legend(move |(x, y)| Circle::new((x + 8, y), 4, shade.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(text(13))
        .border_style(TRANSPARENT)
        .draw()?;
    Ok(())
}
