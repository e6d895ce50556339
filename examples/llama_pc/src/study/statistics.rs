//! Means, spreads and paired differences.

/// Mean and standard deviation of a few values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    pub mean: f64,
    /// 0 of a single value.
    pub std: f64,
}

/// `None` of nothing, or of values that are not finite.
pub fn summary(values: &[f64]) -> Option<Summary> {
    if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some(Summary { mean, std: (squares / (values.len() - 1).max(1) as f64).sqrt() })
}

/// A difference over pairs of runs, with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Paired {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
}

/// What a paired difference of losses says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Better,
    Worse,
    /// The interval holds 0.
    BelowNoise,
}

impl Paired {
    /// Of a loss: less is better.
    pub fn verdict(&self) -> Verdict {
        match self {
            _ if self.high < 0.0 => Verdict::Better,
            _ if self.low > 0.0 => Verdict::Worse,
            _ => Verdict::BelowNoise,
        }
    }
}

/// `own` − `others` pair by pair, by Student's t over the differences. `None` with fewer than two pairs, or a value that is not finite.
pub fn paired(own: &[f64], others: &[f64]) -> Option<Paired> {
    if own.len() != others.len() || own.len() < 2 {
        return None;
    }
    let differences: Vec<f64> = own.iter().zip(others).map(|(own, other)| own - other).collect();
    let Summary { mean, std } = summary(&differences)?;
    let reach = student_95(differences.len() - 1) * std / (differences.len() as f64).sqrt();
    Some(Paired { mean, low: mean - reach, high: mean + reach })
}

/// The 97.5 % quantile of Student's t.
fn student_95(freedom: usize) -> f64 {
    const TABLE: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    // The expansion in 1/n, within 0.001 beyond the table.
    let expansion = || {
        let (z, n) = (1.959_964_f64, freedom as f64);
        z + (z.powi(3) + z) / (4.0 * n)
            + (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * n * n)
            + (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / (384.0 * n.powi(3))
    };
    TABLE.get(freedom - 1).copied().unwrap_or_else(expansion)
}

pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The middle value, or the mean of the two. `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (half, last) = (sorted.len() / 2, sorted.len().checked_sub(1)?);
    Some((sorted[half] + sorted[last - half]) / 2.0)
}

/// The place at which a curve of (x, loss) first comes down to `target`, by linear interpolation.
pub fn first_at(curve: &[(f64, f64)], target: f64) -> Option<f64> {
    let at = curve.iter().position(|(_, loss)| *loss <= target)?;
    let (x, loss) = curve[at];
    let Some(&(before, higher)) = at.checked_sub(1).map(|before| &curve[before]) else { return Some(x) };
    Some(before + (x - before) * (higher - target) / (higher - loss))
}

/// Steps that the mean of a spike's neighbors is taken over, and how many of their standard deviations it lies above.
pub const SPIKE: (usize, f64) = (50, 5.0);

/// Steps whose loss is far above those before.
pub fn spikes(losses: &[f32]) -> usize {
    let (window, deviations) = SPIKE;
    let is_spike = |at: &usize| {
        let before: Vec<f64> = losses[at - window..*at].iter().map(|loss| f64::from(*loss)).collect();
        summary(&before).is_some_and(|before| f64::from(losses[*at]) > before.mean + deviations * before.std)
    };
    (window..losses.len()).filter(is_spike).count()
}

/// The largest gradient norm over the median, after the first tenth of the steps: the warm-up's are large in every run.
pub fn peak(norms: &[Option<f32>]) -> Option<f64> {
    let later: Vec<f64> = norms[norms.len() / 10..].iter().flatten().map(|norm| f64::from(*norm)).collect();
    let largest = later.iter().copied().reduce(f64::max)?;
    Some(largest / median(&later)?)
}

/// To six decimals, which is far below the noise, and which JSON keeps exactly.
pub fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_the_textbooks() {
        let found = summary(&[2.0, 4.0, 4.0, 6.0]).expect("four values");
        assert!((found.mean - 4.0).abs() < 1e-12 && (found.std - (8.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(summary(&[3.0]), Some(Summary { mean: 3.0, std: 0.0 }));
        assert_eq!((summary(&[]), summary(&[1.0, f64::INFINITY])), (None, None));
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0]), median(&[])), (Some(2.0), Some(2.5), None));
    }

    #[test]
    fn pairs_see_a_difference_that_the_spread_would_hide() {
        // Seeds differ by 0.1, the arms by 0.01 ± 0.001.
        let others = [3.0, 3.1, 3.2];
        let own = [2.989, 3.090, 3.191];
        let found = paired(&own, &others).expect("three pairs");
        // By hand: mean -0.010, standard deviation 0.001, t = 4.303.
        let reach = 4.303 * 0.001 / 3f64.sqrt();
        assert!((found.mean + 0.010).abs() < 1e-9 && (found.high - (reach - 0.010)).abs() < 1e-9, "{found:?}");
        assert_eq!(found.verdict(), Verdict::Better);
        assert_eq!(paired(&others, &own).expect("three pairs").verdict(), Verdict::Worse);
    }

    #[test]
    fn a_difference_within_the_noise_is_called_so() {
        let found = paired(&[3.00, 3.12, 3.19], &[3.01, 3.10, 3.21]).expect("three pairs");
        assert_eq!(found.verdict(), Verdict::BelowNoise);
        assert_eq!(paired(&[1.0], &[2.0]), None, "one pair says nothing");
        assert_eq!(paired(&[1.0, f64::INFINITY], &[2.0, 2.0]), None);
    }

    #[test]
    fn the_quantile_goes_on_beyond_its_table() {
        for (freedom, known) in [(1, 12.706), (2, 4.303), (10, 2.228), (11, 2.201), (20, 2.086), (100, 1.984)] {
            assert!((student_95(freedom) - known).abs() < 2e-3, "{freedom}: {}", student_95(freedom));
        }
    }

    #[test]
    fn a_target_is_reached_between_two_points() {
        let curve = [(100.0, 6.0), (200.0, 4.0), (300.0, 3.0)];
        assert_eq!([6.5, 5.0, 3.0, 2.0].map(|target| first_at(&curve, target)), [Some(100.0), Some(150.0), Some(300.0), None]);
    }

    #[test]
    fn spikes_and_peaks_stand_out_of_the_noise() {
        let noise = |step: usize| 0.05 * (step as f32 * 12.9898).sin();
        let mut losses: Vec<f32> = (0..400).map(|step| 3.0 + 5.0 / (1.0 + step as f32) + noise(step)).collect();
        assert_eq!(spikes(&losses), 0);
        losses[200] += 1.0;
        losses[300] += 1.0;
        assert_eq!(spikes(&losses), 2);
        assert_eq!(spikes(&losses[..20]), 0);
        let mut norms = vec![Some(0.5f32); 100];
        (norms[3], norms[50], norms[60]) = (Some(9.0), Some(2.0), None);
        assert_eq!(peak(&norms), Some(4.0));
        assert_eq!(peak(&[]), None);
    }
}
