//! The five polynomials of the PC layers: what each level makes of a singular value, relative to the largest. Prints a table and writes
//! `polynomials.svg`, the picture of docs/pc-layer.md. Needs no adapter.
//!
//!     cargo run --release --example polynomials

use plotters::prelude::*;
use polytape::Result;
use polytape::spectral::level_coefficients;

const GREY: RGBColor = RGBColor(128, 128, 128);
/// Of middle brightness, for white and for dark backgrounds.
const COLORS: [RGBColor; 5] =
    [GREY, RGBColor(59, 130, 196), RGBColor(31, 158, 137), RGBColor(178, 102, 178), RGBColor(217, 119, 54)];

/// σ·P(σ²)
fn image(coefficients: &[f32], sigma: f32) -> f32 {
    sigma * coefficients.iter().rev().fold(0.0, |sum, a| sum * sigma * sigma + a)
}

fn draw(levels: &[Vec<f32>]) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new("polynomials.svg", (640, 460)).into_drawing_area();
    let text = |size: u32| ("sans-serif", size).into_font().color(&GREY);
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(52)
        .build_cartesian_2d(0f32..1.0, 0f32..1.05)?;
    chart
        .configure_mesh()
        .axis_style(GREY)
        .bold_line_style(GREY.mix(0.25))
        .light_line_style(TRANSPARENT)
        .label_style(text(13))
        .axis_desc_style(text(14))
        .x_desc("singular value of W, relative to the largest")
        .y_desc("singular value of the effective weight")
        .draw()?;
    for (level, coefficients) in levels.iter().enumerate() {
        let style = COLORS[level].stroke_width(2);
        let points = (0..=200).map(|i| i as f32 / 200.0).map(|sigma| (sigma, image(coefficients, sigma)));
        let label = if level == 0 { "level 0: plain".to_string() } else { format!("level {level}, degree {}", 2 * level + 1) };
        let series = chart.draw_series(LineSeries::new(points, style))?;
        series.label(label).legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .label_font(text(13))
        .border_style(TRANSPARENT)
        .draw()?;
    Ok(root.present()?)
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let levels = (0..=4).map(level_coefficients).collect::<Result<Vec<_>>>()?;
    println!("{:>6}  level 0  level 1  level 2  level 3  level 4", "σ/σ₁");
    for sigma in [0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0, 1.05, 1.1, 1.15] {
        let images: Vec<String> = levels.iter().map(|level| format!("{:>7.3}", image(level, sigma))).collect();
        println!("{sigma:>6}  {}", images.join("  "));
    }
    draw(&levels)?;
    println!("beyond 1: where the estimate of the largest singular value is too low; the picture is polynomials.svg");
    Ok(())
}
