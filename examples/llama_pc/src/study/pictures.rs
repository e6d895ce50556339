//! The pictures of docs/study.md.

use std::path::Path;

use plotters::style::RGBColor;

use super::arms::{Arm, Optimizer, Treatment};
use super::chart::{Axis, Bar, COLORS, Line, Panel, intervals, panels};
use super::findings::{ArmResult, Findings};
use super::page::size_title;
use super::queue;
use super::record::Record;
use super::statistics::mean;
use crate::terminal::failure::Failure;
use crate::terminal::picture::Curve;

const fn linear(title: &'static str) -> Axis {
    Axis { title, is_logarithmic: false }
}

const fn logarithmic(title: &'static str) -> Axis {
    Axis { title, is_logarithmic: true }
}

/// Writes every picture into the folder.
pub fn save_all(findings: &Findings<'_>, folder: &Path) -> Result<(), Failure> {
    differences(findings, &folder.join("differences.svg"))?;
    panels(&folder.join("loss.svg"), &losses(findings), 2)?;
    panels(&folder.join("rates.svg"), &rates(findings), 2)?;
    panels(&folder.join("spectra.svg"), &spectra(findings), 2)?;
    panels(&folder.join("condition.svg"), &conditions(findings), 2)?;
    panels(&folder.join("gamma.svg"), &gammas(findings), 2)?;
    panels(&folder.join("stability.svg"), &stabilities(findings), 2)?;
    panels(&folder.join("power-iterations.svg"), &iterations(findings), 1)
}

/// The colour of a treatment, the same in every picture.
fn color(treatment: Treatment) -> RGBColor {
    match treatment {
        Treatment::Plain => COLORS[0],
        Treatment::Scaled => COLORS[5],
        Treatment::Level(level) => COLORS[[1, 1, 7, 3, 2][usize::from(level)]],
        Treatment::QkNorm => COLORS[4],
        Treatment::QkNormLevel(_) => COLORS[6],
    }
}

fn line(label: String, color: RGBColor, points: Curve) -> Line {
    Line { label, color, is_dashed: false, has_dots: false, points }
}

/// The mean over runs of curves at the same steps; ends where the first of them does.
fn averaged(records: &[&Record], curve: impl Fn(&Record) -> Curve) -> Curve {
    let curves: Vec<Curve> = records.iter().map(|record| curve(record)).collect();
    let length = curves.iter().map(Vec::len).min().unwrap_or(0);
    let point = |at: usize| (curves[0][at].0, mean(&curves.iter().map(|curve| curve[at].1).collect::<Vec<_>>()));
    (0..length).map(point).collect()
}

/// A panel for every size and optimizer.
fn each(findings: &Findings<'_>, panel: impl Fn(usize, Optimizer) -> Panel) -> Vec<Panel> {
    let sizes = 0..findings.kept.header.sizes.len();
    let all = sizes.flat_map(|size| Optimizer::ALL.map(|optimizer| (size, optimizer)));
    all.map(|(size, optimizer)| panel(size, optimizer)).collect()
}

fn title(findings: &Findings<'_>, size: usize, optimizer: Optimizer) -> String {
    format!("{}, {}", optimizer.title(), size_title(&findings.kept.header, size))
}

fn differences(findings: &Findings<'_>, path: &Path) -> Result<(), Failure> {
    let bar = |result: &ArmResult<'_>| {
        let difference = result.difference?;
        let size = size_title(&findings.kept.header, result.size);
        Some(Bar {
            label: format!("{size}, {}: {}", result.arm.optimizer.title(), result.arm.title()),
            color: color(result.arm.treatment),
            mean: difference.mean,
            low: difference.low,
            high: difference.high,
        })
    };
    let bars: Vec<Bar> = findings.arms.iter().filter_map(bar).collect();
    intervals(path, "paired differences from the arm without, with 95 % intervals", &bars)
}

/// The last three quarters of the validation curves, where they can be told apart.
fn losses(findings: &Findings<'_>) -> Vec<Panel> {
    let per_step = findings.kept.header.tokens_per_step;
    each(findings, |size, optimizer| {
        let of = |result: &&ArmResult<'_>| {
            let curve = averaged(&result.records, |record| record.curve(per_step));
            let later = curve[curve.len() / 4..].to_vec();
            Line { has_dots: true, ..line(result.arm.title(), color(result.arm.treatment), later) }
        };
        let lines = findings.compared(size, optimizer).iter().map(of).collect();
        Panel {
            title: title(findings, size, optimizer),
            x: linear("tokens"),
            y: linear("validation loss, mean over seeds"),
            lines,
        }
    })
}

fn rates(findings: &Findings<'_>) -> Vec<Panel> {
    each(findings, |size, optimizer| {
        let of = |result: &&ArmResult<'_>| {
            let grid = findings.grid(size, result.arm);
            let points = grid.into_iter().map(|(lr, loss)| (lr.value(), loss)).collect();
            Line { has_dots: true, ..line(result.arm.title(), color(result.arm.treatment), points) }
        };
        let arms = findings.arms.iter().filter(|result| (result.size, result.arm.optimizer) == (size, optimizer));
        Panel {
            title: title(findings, size, optimizer),
            x: logarithmic("learning rate"),
            y: linear("final validation loss, seed 1"),
            lines: arms.collect::<Vec<_>>().iter().map(of).collect(),
        }
    })
}

/// GMCN: whole lines for the matrices that have PC layers where any have, dashed ones for the others.
fn conditions(findings: &Findings<'_>) -> Vec<Panel> {
    each(findings, |size, optimizer| {
        let mut lines = Vec::new();
        for result in findings.compared(size, optimizer) {
            let of = |value: fn(&crate::run::measured::Gmcn) -> Option<f64>| {
                averaged(&result.records, |record| {
                    record.gmcn.iter().filter_map(|(step, gmcn)| Some((*step as f64, value(gmcn)?))).collect()
                })
            };
            let color = color(result.arm.treatment);
            if result.arm.level().is_none() {
                lines.push(line(format!("{}: all", result.arm.title()), color, of(|gmcn| Some(gmcn.all))));
                continue;
            }
            lines.push(line(format!("{}: o, FFN", result.arm.title()), color, of(|gmcn| gmcn.pc)));
            let others = line(format!("{}: q, k, v", result.arm.title()), color, of(|gmcn| gmcn.plain));
            lines.push(Line { is_dashed: true, ..others });
        }
        Panel { title: title(findings, size, optimizer), x: linear("step"), y: logarithmic("condition number (GMCN)"), lines }
    })
}

/// The spectra that the first seed ends with.
fn spectra(findings: &Findings<'_>) -> Vec<Panel> {
    each(findings, |size, optimizer| {
        let of = |result: &&ArmResult<'_>| {
            let spectrum = result.records.first()?.spectrum.as_ref()?;
            Some(line(result.arm.title(), color(result.arm.treatment), spectrum.curve()))
        };
        Panel {
            title: title(findings, size, optimizer),
            x: linear("quantile of the singular values"),
            y: linear("σ/σ₁, mean over o and the FFN"),
            lines: findings.compared(size, optimizer).iter().filter_map(of).collect(),
        }
    })
}

/// γ of every matrix of the best level's first seed.
fn gammas(findings: &Findings<'_>) -> Vec<Panel> {
    each(findings, |size, optimizer| {
        let arm = findings.choices.best_level(optimizer);
        let record = findings.result(size, arm).and_then(|result| result.records.first());
        let of = |(name, values): (&String, &Vec<f32>), record: &Record| {
            let kinds = ["o_proj", "gate_proj", "up_proj", "down_proj"];
            let kind = kinds.iter().position(|kind| name.ends_with(kind)).unwrap_or(kinds.len());
            let points = record.gamma_steps.iter().zip(values).map(|(step, value)| (*step as f64, f64::from(*value)));
            let label = kinds.get(kind).map_or("others", |kind| kind.trim_end_matches("_proj"));
            line(label.to_owned(), COLORS[kind + 1], points.collect())
        };
        let lines = record.into_iter().flat_map(|record| record.gamma.iter().map(|entry| of(entry, record))).collect();
        Panel {
            title: format!("{}, {}", title(findings, size, optimizer), arm.title()),
            x: linear("step"),
            y: linear("γ, a line per block"),
            lines,
        }
    })
}

/// The gradient norms at one, two and four times the best learning rate: first seed, the largest of every hundredth of the steps.
fn stabilities(findings: &Findings<'_>) -> Vec<Panel> {
    let mut list = Vec::new();
    for optimizer in Optimizer::ALL {
        for arm in queue::stressed(optimizer, findings.choices.levels[&optimizer]) {
            let of = |at: super::findings::Stability<'_>| {
                let norms = at.records.first().map_or(&[][..], |record| &record.grad_norm[..]);
                let label = format!("{} times the best rate", 1 << at.power);
                line(label, COLORS[[1, 2, 6][at.power as usize]], coarse(norms))
            };
            list.push(Panel {
                title: format!("{}, {}", title(findings, 0, optimizer), arm.title()),
                x: linear("step"),
                y: logarithmic("gradient norm before clipping"),
                lines: findings.stability(arm).into_iter().map(of).collect(),
            });
        }
    }
    list
}

/// The largest norm of every hundredth of the steps: a mean would hide what is looked for.
fn coarse(norms: &[Option<f32>]) -> Curve {
    let group = norms.len().div_ceil(100).max(1);
    let largest = |(at, part): (usize, &[Option<f32>])| {
        let most = part.iter().flatten().copied().reduce(f32::max)?;
        Some((((at + 1) * group) as f64, f64::from(most)))
    };
    norms.chunks(group).enumerate().filter_map(largest).collect()
}

fn iterations(findings: &Findings<'_>) -> Vec<Panel> {
    let arm: Arm = queue::iterated();
    let of = |(number, at): (usize, super::findings::Iterations<'_>)| {
        let points = averaged(&at.records, |record| {
            record.sigma_error.iter().map(|(step, error)| (*step as f64, error.mean.max(1e-7))).collect()
        });
        Line { has_dots: true, ..line(format!("{} per step", at.iterations), COLORS[number + 1], points) }
    };
    vec![Panel {
        title: format!("{}, {}: error of the estimate of σ₁", title(findings, 0, arm.optimizer), arm.title()),
        x: linear("step"),
        y: logarithmic("mean relative error"),
        lines: findings.iterations().into_iter().enumerate().map(of).collect(),
    }]
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::kept;
    use super::*;

    #[test]
    fn every_picture_is_drawn() {
        let kept = kept();
        let folder = tempfile::tempdir().expect("a temporary folder");
        save_all(&Findings::new(&kept).expect("a finished study"), folder.path()).expect("pictures");
        let names = ["differences", "loss", "rates", "spectra", "condition", "gamma", "stability", "power-iterations"];
        for name in names {
            let svg = std::fs::read_to_string(folder.path().join(format!("{name}.svg"))).expect("a picture");
            assert!(svg.starts_with("<svg") && svg.contains("AdamW") | svg.contains("Muon"), "{name}");
        }
    }

    #[test]
    fn peaks_survive_the_thinning() {
        let mut norms = vec![Some(1.0f32); 1000];
        norms[555] = Some(30.0);
        let curve = coarse(&norms);
        assert_eq!(curve.len(), 100);
        assert_eq!(curve.iter().filter(|(_, norm)| *norm == 30.0).count(), 1);
        assert!(coarse(&[]).is_empty());
    }
}
