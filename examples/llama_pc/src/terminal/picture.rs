//! Curves as SVG that read on white and on dark backgrounds: no background of their own, and colours of middle brightness.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::failure::Failure;

/// (step, value) in ascending order of the steps.
pub type Curve = Vec<(f64, f64)>;

/// Where a picture is drawn.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// What drawing returns.
pub type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Axes and text.
pub const GREY: RGBColor = RGBColor(128, 128, 128);
/// The first of two curves.
pub const BLUE: RGBColor = RGBColor(59, 130, 196);
/// The second.
pub const ORANGE: RGBColor = RGBColor(217, 119, 54);

/// Writes what `draw` draws as an SVG of that size.
pub fn save(path: &Path, size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<(), Failure> {
    let svg = svg(size, draw).map_err(|error| Failure::other(format!("cannot draw {}: {error}", path.display())))?;
    std::fs::write(path, svg).map_err(|error| Failure::io("write", path, &error))
}

fn svg(size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String, Box<dyn std::error::Error>> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        draw(&area)?;
        area.present()?;
    }
    Ok(svg)
}

/// Text of that size.
pub fn text(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&GREY)
}

/// The training loss, pale; its mean over neighbours; and the validation losses as points. Losses that are not finite are left out.
pub fn loss_curve(train: &Curve, val: &Curve, path: &Path) -> Result<(), Failure> {
    save(path, LOSS_SIZE, |area| draw_losses(train, val, area))
}

const LOSS_SIZE: (u32, u32) = (900, 500);

fn draw_losses(train: &Curve, val: &Curve, area: &Area<'_>) -> Drawn {
    let finite = |curve: &Curve| -> Curve { curve.iter().copied().filter(|(_, loss)| loss.is_finite()).collect() };
    let (train, val) = (finite(train), finite(val));
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .margin_right(24)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(step_axis(&train), loss_axis(train.iter().chain(&val)))?;
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

/// The x axis: from 0 to the last step.
fn step_axis(train: &[(f64, f64)]) -> std::ops::Range<f64> {
    0.0..train.last().map_or(1.0, |(step, _)| step.max(1.0))
}

/// The y axis: all losses and a margin.
fn loss_axis<'a>(points: impl Iterator<Item = &'a (f64, f64)> + Clone) -> std::ops::Range<f64> {
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

    /// Training and validation losses.
    fn losses(count: u64) -> [Curve; 2] {
        let train = |step: u64| 3.0 + 5.0 / (step as f64).sqrt() + 0.2 * (step as f64 * 12.9898).sin();
        let val = |step: u64| 3.1 + 5.0 / (step as f64).sqrt();
        [
            (1..=count).map(|step| (step as f64, train(step))).collect(),
            (100..=count).step_by(100).map(|step| (step as f64, val(step))).collect(),
        ]
    }

    fn drawn([train, val]: [Curve; 2]) -> String {
        svg(LOSS_SIZE, |area| draw_losses(&train, &val, area)).expect("a picture")
    }

    #[test]
    fn the_picture_has_its_lines_labels_and_points() {
        let svg = drawn(losses(1000));
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for label in ["step", "loss (nats per token)", "training", "validation"] {
            assert!(svg.contains(label), "no {label}");
        }
        assert_eq!(svg.matches("<circle").count(), 10 + 1, "ten points and the legend's");
    }

    #[test]
    fn short_and_broken_runs_can_be_drawn() {
        let mut broken = losses(3);
        broken[0][2].1 = f64::NAN;
        for losses in [losses(0), losses(1), losses(2), broken] {
            assert!(!drawn(losses).contains("NaN"));
        }
    }

    #[test]
    fn smoothing_keeps_a_straight_line() {
        let line: Vec<(f64, f64)> = (0..500).map(|step| (f64::from(step), 9.0 - 0.01 * f64::from(step))).collect();
        assert!(smoothed(&line).iter().zip(&line).all(|(smooth, raw)| (smooth.1 - raw.1).abs() < 1e-12));
    }
}
