//! The search for an arm's learning rate: on a grid of factors √2, until the best lies inside what was tried.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// A learning rate of the grid, 0.001·√2ⁿ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lr(pub i32);

impl Lr {
    /// Far beyond what anything trains at.
    pub const RANGE: RangeInclusive<Self> = Self(-60)..=Self(100);

    /// The learning rate, with four digits.
    pub fn value(self) -> f64 {
        let exact = 1e-3 * 2f64.powf(f64::from(self.0) / 2.0);
        format!("{exact:.3e}").parse().expect("bug: a number is none")
    }

    /// `places` steps up the grid.
    pub fn up(self, places: i32) -> Self {
        Self(self.0 + places)
    }

    /// This learning rate times a power of two.
    pub fn times_two_to(self, power: i32) -> Self {
        self.up(2 * power)
    }
}

/// The best learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Best {
    pub lr: Lr,
    /// Whether a lower and a higher one were tried: if not, the search was given up at the limit of its points.
    pub is_inside: bool,
}

/// What the search does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Learning rates that can be tried at the same time.
    Try(Vec<Lr>),
    Best(Best),
}

/// Given the losses so far, infinite where a run diverged: the center and its neighbors first, then on beyond an edge that is the
/// best, up to `points` in all. Where all diverged, the search goes down.
pub fn next(tried: &BTreeMap<Lr, f64>, center: Lr, points: usize) -> Next {
    let first: Vec<Lr> = [-1, 0, 1].map(|place| center.up(place)).into_iter().filter(|lr| !tried.contains_key(lr)).collect();
    if !first.is_empty() {
        return Next::Try(first);
    }
    // The lowest of equals: where all diverged, the edge to go on from.
    let better = |a: &(&Lr, &f64), b: &(&Lr, &f64)| a.1.total_cmp(b.1).then(a.0.cmp(b.0));
    let (&best, _) = tried.iter().min_by(better).expect("bug: three were tried");
    let (lowest, highest) = (tried.keys().next().copied(), tried.keys().next_back().copied());
    let beyond = match best {
        _ if Some(best) == lowest => best.up(-1),
        _ if Some(best) == highest => best.up(1),
        _ => return Next::Best(Best { lr: best, is_inside: true }),
    };
    if tried.len() < points { Next::Try(vec![beyond]) } else { Next::Best(Best { lr: best, is_inside: false }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the search over a loss; returns what was tried, in order, and the best.
    fn search(loss: impl Fn(i32) -> f64, center: i32, points: usize) -> (Vec<i32>, Best) {
        let (mut tried, mut order) = (BTreeMap::new(), Vec::new());
        loop {
            match next(&tried, Lr(center), points) {
                Next::Try(lrs) => {
                    for lr in lrs {
                        assert!(tried.insert(lr, loss(lr.0)).is_none(), "{lr:?} twice");
                        order.push(lr.0);
                    }
                }
                Next::Best(best) => return (order, best),
            }
        }
    }

    #[test]
    fn rates_are_half_octaves() {
        assert_eq!([-2, 0, 1, 2, 7].map(|n| Lr(n).value()), [5e-4, 1e-3, 1.414e-3, 2e-3, 1.131e-2]);
        assert_eq!(Lr(4).times_two_to(2), Lr(8));
        assert_eq!((Lr(4).value(), Lr(8).value()), (4e-3, 1.6e-2));
    }

    #[test]
    fn three_points_suffice_where_the_center_is_best() {
        let (order, best) = search(|n| f64::from(n * n), 0, 9);
        assert_eq!((order, best), (vec![-1, 0, 1], Best { lr: Lr(0), is_inside: true }));
    }

    #[test]
    fn the_search_goes_on_until_the_best_lies_inside() {
        for (optimum, expected) in [(3, vec![-1, 0, 1, 2, 3, 4]), (-2, vec![-1, 0, 1, -2, -3])] {
            let (order, best) = search(|n| f64::from((n - optimum).abs()), 0, 9);
            assert_eq!((order, best), (expected, Best { lr: Lr(optimum), is_inside: true }));
        }
    }

    #[test]
    fn a_limit_ends_the_search_and_is_reported() {
        let (order, best) = search(|n| -f64::from(n), 0, 5);
        assert_eq!((order.len(), best), (5, Best { lr: Lr(3), is_inside: false }));
    }

    #[test]
    fn divergence_leads_downwards() {
        let loss = |n: i32| if n > -3 { f64::INFINITY } else { f64::from((n + 4).abs()) };
        let (order, best) = search(loss, 0, 9);
        assert_eq!((order.last(), best), (Some(&-5), Best { lr: Lr(-4), is_inside: true }));
        let (order, best) = search(|_| f64::INFINITY, 0, 5);
        assert_eq!((order, best.is_inside), (vec![-1, 0, 1, -2, -3], false));
    }
}
