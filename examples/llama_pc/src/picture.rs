//! The loss curve of a run as an SVG that reads on white and on dark backgrounds: no background of its own, and colours of
//! middle brightness.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::failure::Failure;
use crate::metrics::Metrics;

const SIZE: (u32, u32) = (900, 500);
const GREY: RGBColor = RGBColor(128, 128, 128);
const BLUE: RGBColor = RGBColor(59, 130, 196);
const ORANGE: RGBColor = RGBColor(217, 119, 54);

/// Writes the picture of a run's metrics.
pub fn save(rows: &[Metrics], path: &Path) -> Result<(), Failure> {
    let svg = loss_curve(rows).map_err(|error| Failure::other(format!("cannot draw {}: {error}", path.display())))?;
    std::fs::write(path, svg).map_err(|error| Failure::io("write", path, &error))
}

/// The training loss of every row, light; its mean over neighbours; and the validation losses as points.
fn loss_curve(rows: &[Metrics]) -> Result<String, Box<dyn std::error::Error>> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        draw(rows, &area)?;
        area.present()?;
    }
    Ok(svg)
}

fn draw(rows: &[Metrics], area: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), Box<dyn std::error::Error>> {
    let train: Vec<(f64, f64)> = points(rows, |row| Some(row.loss));
    let val: Vec<(f64, f64)> = points(rows, |row| row.val_loss);
    let text = |size: u32| ("sans-serif", size).into_font().color(&GREY);

    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .margin_right(24)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(steps(&train), losses(train.iter().chain(&val)))?;
    chart
        .configure_mesh()
        .axis_style(GREY)
        .bold_line_style(GREY.mix(0.25))
        .light_line_style(TRANSPARENT)
        .label_style(text(14))
        .axis_desc_style(text(15))
        .x_desc("step")
        .y_desc("loss (nats per token)")
        .x_label_formatter(&|step| format!("{step:.0}"))
        .draw()?;
    chart.draw_series(LineSeries::new(train.iter().copied(), BLUE.mix(0.45)))?;
    chart
        .draw_series(LineSeries::new(smoothed(&train), BLUE.stroke_width(2)))?
        .label("training")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], BLUE.stroke_width(2)));
    if !val.is_empty() {
        chart.draw_series(LineSeries::new(val.iter().copied(), ORANGE.mix(0.5)))?;
        chart
            .draw_series(val.iter().map(|point| Circle::new(*point, 4, ORANGE.filled())))?
            .label("validation")
            .legend(|(x, y)| Circle::new((x + 8, y), 4, ORANGE.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(text(14))
        .border_style(TRANSPARENT)
        .draw()?;
    Ok(())
}

/// (step, value) of the rows that have a finite one.
fn points(rows: &[Metrics], value: impl Fn(&Metrics) -> Option<f64>) -> Vec<(f64, f64)> {
    let point = |row: &Metrics| Some((row.step as f64, value(row).filter(|loss| loss.is_finite())?));
    rows.iter().filter_map(point).collect()
}

/// The x axis: from 0 to the last step.
fn steps(train: &[(f64, f64)]) -> std::ops::Range<f64> {
    0.0..train.last().map_or(1.0, |(step, _)| step.max(1.0))
}

/// The y axis: all losses and a margin.
fn losses<'a>(points: impl Iterator<Item = &'a (f64, f64)> + Clone) -> std::ops::Range<f64> {
    let low = points.clone().map(|(_, loss)| *loss).fold(f64::INFINITY, f64::min);
    let high = points.map(|(_, loss)| *loss).fold(f64::NEG_INFINITY, f64::max);
    if low > high {
        return 0.0..1.0;
    }
    let margin = 0.05 * (high - low).max(0.1);
    low - margin..high + margin
}

/// The mean over about a fiftieth of the points, as many before as after each, so that a steep beginning is not smeared.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let last = points.len().saturating_sub(1);
    let mean = |i: usize| {
        let reach = (points.len() / 100).min(i).min(last - i);
        let near = &points[i - reach..=i + reach];
        near.iter().map(|(_, loss)| loss).sum::<f64>() / near.len() as f64
    };
    points.iter().enumerate().map(|(i, (step, _))| (*step, mean(i))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: u64) -> Vec<Metrics> {
        let row = |step: u64| Metrics {
            step,
            tokens: step,
            loss: 3.0 + 5.0 / (step as f64).sqrt() + 0.2 * (step as f64 * 12.9898).sin(),
            grad_norm: Some(1.0),
            lr: 1.0,
            tokens_per_second: 1.0,
            seconds: 1.0,
            memory_bytes: 0,
            val_loss: step.is_multiple_of(100).then(|| 3.1 + 5.0 / (step as f64).sqrt()),
            ..Metrics::default()
        };
        (1..=count).map(row).collect()
    }

    #[test]
    fn the_picture_has_its_lines_labels_and_points() {
        let svg = loss_curve(&rows(1000)).expect("a picture");
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for label in ["step", "loss (nats per token)", "training", "validation"] {
            assert!(svg.contains(label), "no {label}");
        }
        assert_eq!(svg.matches("<circle").count(), 10 + 1, "ten points and the legend's");
    }

    #[test]
    fn short_and_broken_runs_can_be_drawn() {
        let mut broken = rows(3);
        broken[2].loss = f64::NAN;
        for rows in [rows(0), rows(1), rows(2), broken] {
            assert!(!loss_curve(&rows).expect("a picture").contains("NaN"));
        }
    }

    #[test]
    fn smoothing_keeps_a_straight_line() {
        let line: Vec<(f64, f64)> = (0..500).map(|step| (f64::from(step), 9.0 - 0.01 * f64::from(step))).collect();
        assert!(smoothed(&line).iter().zip(&line).all(|(smooth, raw)| (smooth.1 - raw.1).abs() < 1e-12));
    }
}
