//! The numbers behind the page's curves.

use serde::Serialize;
use serde_json::Value;

use super::gather::RunData;

/// A logged step.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Point {
    pub step: u64,
    pub tokens: u64,
    pub seconds: f64,
    pub loss: f64,
    /// Null where the gradient overflowed.
    pub grad_norm: Option<f64>,
    pub lr: f64,
    pub tokens_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
}

impl Point {
    /// From a line of metrics; `None` if a key is missing.
    pub fn of(row: &Value) -> Option<Self> {
        let number = |key: &str| row[key].as_f64();
        Some(Self {
            step: row["step"].as_u64()?,
            tokens: row["tokens"].as_u64()?,
            seconds: number("seconds")?,
            loss: number("loss")?,
            grad_norm: row.get("grad_norm")?.as_f64(),
            lr: number("lr")?,
            tokens_per_second: number("tokens_per_second")?,
            val_loss: number("val_loss"),
        })
    }
}

/// Averages every `group` neighboring points, at the position of the last one.
pub fn thinned(points: &[Point], group: usize) -> Vec<Point> {
    let join = |part: &[Point]| {
        let mean = |value: fn(&Point) -> f64| part.iter().map(value).sum::<f64>() / part.len() as f64;
        let norms: Vec<f64> = part.iter().filter_map(|point| point.grad_norm).collect();
        let last = part.last().expect("bug: chunks are not empty");
        Point {
            loss: mean(|point| point.loss),
            grad_norm: (!norms.is_empty()).then(|| norms.iter().sum::<f64>() / norms.len() as f64),
            tokens_per_second: mean(|point| point.tokens_per_second),
            val_loss: None,
            ..last.clone()
        }
    };
    points.chunks(group).map(join).collect()
}

/// A centered moving average over about 2 % of the points, symmetric at the beginning, where the loss is steep; truncated at the end,
/// so that the final value is an average, too.
pub fn smoothed(points: &[Point]) -> Vec<f64> {
    let last = points.len().saturating_sub(1);
    let mean = |i: usize| {
        let reach = (points.len() / 100).min(i);
        let near = &points[i - reach..=(i + reach).min(last)];
        near.iter().map(|point| point.loss).sum::<f64>() / near.len() as f64
    };
    (0..points.len()).map(mean).collect()
}

/// What a run needs to reach another's final loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Reach {
    /// The other's final loss.
    pub loss: f64,
    /// Tokens at which the run's curve first reaches it, by linear interpolation; absent if it never does.
    pub tokens: Option<f64>,
    /// Tokens that the other needed.
    pub other_tokens: u64,
    /// Whether both curves are validation losses; smoothed training losses otherwise.
    pub is_validation: bool,
}

/// `None` where there is nothing to compare: the same run, or one without losses.
pub fn reach(run: &RunData, other: &RunData) -> Option<Reach> {
    if std::ptr::eq(run, other) {
        return None;
    }
    let is_validation = run.validation.len() > 1 && other.validation.len() > 1;
    let curve = |data: &RunData| -> Vec<(f64, f64)> {
        let points: Vec<(u64, f64)> = if is_validation {
            data.validation.iter().filter_map(|point| Some((point.tokens, point.val_loss?))).collect()
        } else {
            data.train.iter().zip(&data.smoothed).map(|(point, loss)| (point.tokens, *loss)).collect()
        };
        points.into_iter().map(|(tokens, loss)| (tokens as f64, loss)).collect()
    };
    let (own, others) = (curve(run), curve(other));
    let &(other_tokens, loss) = others.last()?;
    own.last()?;
    Some(Reach { loss, tokens: first_below(&own, loss), other_tokens: other_tokens as u64, is_validation })
}

fn first_below(curve: &[(f64, f64)], target: f64) -> Option<f64> {
    let at = curve.iter().position(|(_, loss)| *loss <= target)?;
    let (tokens, loss) = curve[at];
    let Some(&(before, higher)) = at.checked_sub(1).map(|before| &curve[before]) else { return Some(tokens) };
    Some(before + (tokens - before) * (higher - target) / (higher - loss))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(losses: &[(u64, f64)], validated: bool) -> RunData {
        let points = losses.iter().map(|&(tokens, loss)| Point { tokens, loss, val_loss: Some(loss), ..Point::default() });
        let points: Vec<Point> = points.collect();
        RunData {
            smoothed: points.iter().map(|point| point.loss).collect(),
            validation: if validated { points.clone() } else { Vec::new() },
            train: points,
            ..RunData::default()
        }
    }

    #[test]
    fn a_target_is_reached_between_two_points() {
        let slow = run(&[(100, 6.0), (200, 5.0), (400, 4.0)], true);
        let fast = run(&[(100, 5.0), (200, 3.0)], true);
        let found = reach(&fast, &slow).expect("two runs");
        assert_eq!((found.loss, found.tokens, found.other_tokens, found.is_validation), (4.0, Some(150.0), 400, true));
        assert_eq!(reach(&slow, &fast).expect("two runs").tokens, None);
        assert_eq!(reach(&slow, &slow), None);
        assert_eq!(first_below(&[(100.0, 3.0)], 4.0), Some(100.0));
    }

    #[test]
    fn without_validations_the_training_loss_counts() {
        let found = reach(&run(&[(100, 6.0), (200, 4.0)], false), &run(&[(100, 5.0)], true)).expect("two runs");
        assert_eq!((found.tokens, found.is_validation), (Some(150.0), false));
        assert_eq!(reach(&run(&[], false), &run(&[(1, 1.0)], false)), None);
    }

    #[test]
    fn joined_points_are_means_at_the_last_place() {
        let points: Vec<Point> = (1..=5).map(|step| Point { step, loss: step as f64, ..Point::default() }).collect();
        let joined = thinned(&points, 2);
        let found: Vec<(u64, f64)> = joined.iter().map(|point| (point.step, point.loss)).collect();
        assert_eq!(found, [(2, 1.5), (4, 3.5), (5, 5.0)]);
        assert_eq!(thinned(&points, 1), points);
    }

    #[test]
    fn smoothing_keeps_a_straight_line_and_calms_the_end() {
        let points: Vec<Point> = (0..500).map(|step| Point { loss: 9.0 - 0.01 * f64::from(step), ..Point::default() }).collect();
        let smooth = smoothed(&points);
        assert!(smooth.iter().zip(&points).take(495).all(|(smooth, point)| (smooth - point.loss).abs() < 1e-12));
        // The mean over the last six points of a slope of 0.01.
        assert!((smooth[499] - (points[499].loss + 0.025)).abs() < 1e-12);
    }
}
