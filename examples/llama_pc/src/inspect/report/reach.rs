//! How soon one run reaches the final loss of another.

use serde::Serialize;

use super::gather::RunData;

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
    use super::super::curves::Point;
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
}
