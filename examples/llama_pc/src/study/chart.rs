//! Panels of lines as SVG, with one legend for all of them; logarithmic axes by powers of ten.

use std::ops::Range;
use std::path::Path;

use plotters::prelude::*;

use crate::terminal::failure::Failure;
use crate::terminal::picture::{Area, BLUE, Curve, Drawn, GREY, ORANGE, save, text};

/// Colours that red-green colour-blind readers can tell apart, of middle brightness, for white and for dark backgrounds.
pub const COLORS: [RGBColor; 8] = [
    GREY,
    BLUE,
    ORANGE,
    RGBColor(31, 158, 137),
    RGBColor(178, 102, 178),
    RGBColor(150, 140, 40),
    RGBColor(200, 80, 100),
    RGBColor(90, 110, 210),
];

/// A line of a panel.
pub struct Line {
    pub label: String,
    pub color: RGBColor,
    pub is_dashed: bool,
    /// Whether its points are marked.
    pub has_dots: bool,
    pub points: Curve,
}

/// An axis: its title, and whether it is logarithmic.
#[derive(Clone, Copy)]
pub struct Axis {
    pub title: &'static str,
    pub is_logarithmic: bool,
}

/// One chart of a picture.
pub struct Panel {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub lines: Vec<Line>,
}

const PANEL: (u32, u32) = (460, 300);
const LEGEND_ROW: u32 = 20;
const LEGEND_WIDTH: u32 = 230;

/// Writes the panels in a grid with that many columns.
pub fn panels(path: &Path, panels: &[Panel], beside: usize) -> Result<(), Failure> {
    let width = PANEL.0 * beside as u32;
    let legend = legend(panels);
    let columns = (width / LEGEND_WIDTH).max(1) as usize;
    let head = 10 + LEGEND_ROW * legend.len().div_ceil(columns) as u32;
    let rows = panels.len().div_ceil(beside);
    save(path, (width, head + PANEL.1 * rows as u32), |area| {
        let (above, below) = area.split_vertically(head);
        for (at, line) in legend.iter().enumerate() {
            let (x, y) = ((at % columns) as i32 * LEGEND_WIDTH as i32 + 16, (at / columns) as i32 * LEGEND_ROW as i32 + 16);
            draw_sample(&above, line, (x, y))?;
        }
        for (area, panel) in below.split_evenly((rows, beside)).iter().zip(panels) {
            draw(area, panel)?;
        }
        Ok(())
    })
}

/// The first line of every label.
fn legend(panels: &[Panel]) -> Vec<&Line> {
    let mut found: Vec<&Line> = Vec::new();
    for line in panels.iter().flat_map(|panel| &panel.lines) {
        if found.iter().all(|known| known.label != line.label) {
            found.push(line);
        }
    }
    found
}

fn draw_sample(area: &Area<'_>, line: &Line, (x, y): (i32, i32)) -> Drawn {
    let dashes: &[(i32, i32)] = if line.is_dashed { &[(0, 7), (11, 18), (22, 28)] } else { &[(0, 28)] };
    for (from, to) in dashes {
        area.draw(&PathElement::new([(x + from, y), (x + to, y)], line.color.stroke_width(2)))?;
    }
    Ok(area.draw_text(&line.label, &text(13), (x + 36, y - 7))?)
}

fn draw(area: &Area<'_>, panel: &Panel) -> Drawn {
    let scaled = |axis: Axis, value: f64| if axis.is_logarithmic { value.log10() } else { value };
    let point = |&(x, y): &(f64, f64)| (scaled(panel.x, x), scaled(panel.y, y));
    let finite = |(x, y): &(f64, f64)| x.is_finite() && y.is_finite();
    let lines: Vec<(&Line, Curve)> =
        panel.lines.iter().map(|line| (line, line.points.iter().map(point).filter(finite).collect())).collect();
    let all = || lines.iter().flat_map(|(_, points)| points);
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .margin_right(20)
        .caption(&panel.title, text(15))
        .x_label_area_size(38)
        .y_label_area_size(62)
        .build_cartesian_2d(range(all().map(|point| point.0), 0.0), range(all().map(|point| point.1), 0.06))?;
    let label = |axis: Axis| move |value: &f64| shown(if axis.is_logarithmic { 10f64.powf(*value) } else { *value });
    chart
        .configure_mesh()
        .axis_style(GREY)
        .bold_line_style(GREY.mix(0.25))
        .light_line_style(TRANSPARENT)
        .x_labels(5)
        .y_labels(6)
        .label_style(text(12))
        .axis_desc_style(text(13))
        .x_desc(panel.x.title)
        .y_desc(panel.y.title)
        .x_label_formatter(&label(panel.x))
        .y_label_formatter(&label(panel.y))
        .draw()?;
    for (line, points) in lines {
        let style = line.color.stroke_width(2);
        if line.has_dots {
            chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, line.color.filled())))?;
        }
        if line.is_dashed {
            chart.draw_series(DashedLineSeries::new(points, 6, 4, style))?;
        } else {
            chart.draw_series(LineSeries::new(points, style))?;
        }
    }
    Ok(())
}

/// All values, with a share of their distance as margin.
fn range(values: impl Iterator<Item = f64> + Clone, margin: f64) -> Range<f64> {
    let (low, high) = (values.clone().fold(f64::INFINITY, f64::min), values.fold(f64::NEG_INFINITY, f64::max));
    if low > high {
        return 0.0..1.0;
    }
    let margin = (margin * (high - low)).max(1e-6 * high.abs()).max(1e-9);
    low - margin..high + margin
}

/// A number as an axis shows it: three digits, or a power of ten.
fn shown(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if !(1e-3..1e9).contains(&size) => format!("{value:.0e}"),
        size if size >= 1e4 => format!("{:.3}M", value / 1e6).replace(".000M", "M"),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 1.0 => without_zeros(format!("{value:.2}")),
        _ => without_zeros(format!("{value:.4}")),
    }
}

fn without_zeros(number: String) -> String {
    number.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A difference with its interval.
pub struct Bar {
    pub label: String,
    pub color: RGBColor,
    pub mean: f64,
    pub low: f64,
    pub high: f64,
}

/// Writes a row per difference, with a line at 0.
pub fn intervals(path: &Path, title: &str, bars: &[Bar]) -> Result<(), Failure> {
    const ROW: u32 = 22;
    let height = 90 + ROW * bars.len() as u32;
    save(path, (920, height), |area| {
        let values = bars.iter().flat_map(|bar| [bar.low, bar.high]).chain([0.0]);
        let (labels, right) = area.split_horizontally(280);
        let mut chart = ChartBuilder::on(&right)
            .margin(10)
            .margin_right(24)
            .caption(title, text(15))
            .x_label_area_size(38)
            .build_cartesian_2d(range(values, 0.05), -0.5..bars.len().max(1) as f64 - 0.5)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .axis_style(GREY)
            .bold_line_style(GREY.mix(0.25))
            .light_line_style(TRANSPARENT)
            .x_labels(7)
            .label_style(text(12))
            .axis_desc_style(text(13))
            .x_desc("difference of the validation loss, nats per token: left of 0 is better")
            .x_label_formatter(&|value| without_zeros(format!("{:+.3}", if value.abs() < 5e-4 { 0.0 } else { *value })))
            .draw()?;
        let top = bars.len() as f64 - 1.0;
        chart.draw_series([PathElement::new([(0.0, -0.5), (0.0, top + 0.5)], GREY)])?;
        for (row, bar) in bars.iter().enumerate() {
            let y = top - row as f64;
            chart.draw_series([PathElement::new([(bar.low, y), (bar.high, y)], bar.color.stroke_width(2))])?;
            chart.draw_series([Circle::new((bar.mean, y), 4, bar.color.filled())])?;
            let (_, pixel) = chart.backend_coord(&(0.0, y));
            labels.draw_text(&bar.label, &text(13), (12, pixel - 7))?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_on_axes_are_short() {
        let found = [0.0, 3.4567, 1.0, 1024.0, 2_000_000.0, 0.0141, 0.5, 250_000.0, 1e-5].map(shown);
        assert_eq!(found, ["0", "3.46", "1", "1024", "2M", "0.0141", "0.5", "0.250M", "1e-5"]);
    }

    #[test]
    fn a_legend_names_each_kind_of_line_once() {
        let line = |label: &str| Line {
            label: label.into(),
            color: BLUE,
            is_dashed: false,
            has_dots: true,
            points: vec![(1.0, 2.0), (2.0, f64::NAN)],
        };
        let axis = Axis { title: "x", is_logarithmic: true };
        let panel = |labels: &[&str]| Panel {
            title: "t".into(),
            x: axis,
            y: axis,
            lines: labels.iter().map(|label| line(label)).collect(),
        };
        let list = [panel(&["a", "b"]), panel(&["b", "c"]), panel(&[])];
        assert_eq!(legend(&list).iter().map(|line| line.label.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.svg");
        panels(&path, &list, 2).expect("a picture");
        let svg = std::fs::read_to_string(&path).expect("a picture");
        assert!(svg.starts_with("<svg") && !svg.contains("NaN"));
        intervals(&path, "t", &[Bar { label: "a".into(), color: BLUE, mean: -0.1, low: -0.2, high: 0.1 }]).expect("a picture");
    }
}
