//! Half precision: an IEEE binary16 has 11 bits, rounds to nearest, ties to even, goes down to 2⁻²⁴ and ends at 65,504. And
//! products whose operands are rounded to one half or to the sum of two.

use super::array::Array;
use super::matmul::{matmul, matmul_vjp};

/// What a product makes of its operands before it multiplies and sums them exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operands {
    /// Nothing.
    Whole,
    /// high + low of [`split`]; the product of the two lows is left out.
    Split,
    /// [`round`].
    Half,
}

impl Operands {
    /// A product, or whatever is linear in both of its operands.
    pub fn multiply(self, x: &Array, y: &Array, product: impl Fn(&Array, &Array) -> Array) -> Array {
        match self {
            Self::Whole => product(x, y),
            Self::Half => product(&x.map(round), &y.map(round)),
            Self::Split => {
                let [high_x, low_x] = split_array(x);
                let [high_y, low_y] = split_array(y);
                product(&high_x, &high_y).plus(&product(&high_x, &low_y)).plus(&product(&low_x, &high_y))
            }
        }
    }

    /// [`matmul`] with rounded operands.
    pub fn matmul(self, a: &Array, b: &Array, transpose_a: bool, transpose_b: bool) -> Array {
        self.multiply(a, b, |a, b| matmul(a, b, transpose_a, transpose_b))
    }

    /// [`matmul_vjp`] with rounded operands, of which dy is one.
    pub fn matmul_vjp(self, a: &Array, b: &Array, transpose_a: bool, transpose_b: bool, dy: &Array) -> [Array; 2] {
        let vjp = |a: &Array, b: &Array, dy: &Array| matmul_vjp(a, b, transpose_a, transpose_b, dy);
        let da = self.multiply(dy, b, |dy, b| vjp(a, b, dy).into_iter().next().expect("two gradients"));
        let db = self.multiply(dy, a, |dy, a| vjp(a, b, dy).into_iter().nth(1).expect("two gradients"));
        [da, db]
    }
}

/// The nearest half; from 65,520 on an infinity.
pub fn round(x: f64) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    // Halves of x's size are multiples of this: 2⁻¹⁰ of its power of two, which counts as 2⁻¹⁴ below that.
    let exponent = ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023;
    let unit = 2f64.powi(exponent.max(-14) - 10);
    let nearest = (x / unit).round_ties_even() * unit;
    if nearest.abs() > 65_504.0 { f64::INFINITY.copysign(x) } else { nearest }
}

/// (high, low): the nearest half, and what is left of x as a half times 2⁻¹¹.
pub fn split(x: f64) -> [f64; 2] {
    let high = round(x);
    [high, round((x - high) * 2048.0) / 2048.0]
}

fn split_array(x: &Array) -> [Array; 2] {
    [x.map(|x| split(x)[0]), x.map(|x| split(x)[1])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differences::random_arrays;

    /// Every finite half from 0 up, by the definition: 1024 subnormals, then 1024 in each of 30 powers of two.
    fn halves() -> Vec<f64> {
        let subnormal = (0..1024).map(|m| f64::from(m) * 2f64.powi(-24));
        let normal = (-14..=15).flat_map(|exponent| (0..1024).map(move |m| (1.0 + f64::from(m) / 1024.0) * 2f64.powi(exponent)));
        subnormal.chain(normal).collect()
    }

    #[test]
    fn every_half_is_itself_and_what_lies_between_goes_to_the_nearer() {
        let halves = halves();
        assert_eq!((halves.len(), halves[1], halves[31_743]), (31_744, 2f64.powi(-24), 65_504.0));
        for (index, pair) in halves.windows(2).enumerate() {
            let [low, high] = [pair[0], pair[1]];
            let middle = 0.5 * (low + high);
            // Their bits are their numbers in this order, so the even one of two neighbours is the one with the even number.
            let even = if index % 2 == 0 { low } else { high };
            let quarter = 0.25 * (high - low);
            for (x, want) in [
                (low, low),
                (low + quarter, low),
                (middle.next_down(), low),
                (middle, even),
                (middle.next_up(), high),
                (high - quarter, high),
            ] {
                assert_eq!((round(x), round(-x)), (want, -want), "{x:e}");
            }
        }
    }

    #[test]
    fn what_is_too_large_is_an_infinity() {
        assert_eq!([65_519.9, 65_520.0, 1e30].map(round), [65_504.0, f64::INFINITY, f64::INFINITY]);
        assert_eq!([-65_519.9, -65_520.0, f64::NEG_INFINITY].map(round), [-65_504.0, f64::NEG_INFINITY, f64::NEG_INFINITY]);
        assert!(round(f64::NAN).is_nan());
    }

    #[test]
    fn what_is_too_small_is_a_zero_of_its_sign() {
        assert_eq!(round(2f64.powi(-25)), 0.0);
        assert_eq!(round(2f64.powi(-25).next_up()), 2f64.powi(-24));
        assert!(round(-1e-30).is_sign_negative() && round(-0.0).is_sign_negative());
    }

    #[test]
    fn two_halves_hold_twice_the_bits() {
        let [x] = random_arrays(141, [&[2000]]);
        for exponent in -40..16 {
            for x in x.data.iter().map(|x| x * 2f64.powi(exponent)).filter(|x| x.abs() < 65_504.0) {
                let [high, low] = split(x);
                assert_eq!([round(high), round(low * 2048.0)], [high, low * 2048.0]);
                let most = (x.abs() * 2f64.powi(-22)).max(2f64.powi(-36));
                assert!((x - high - low).abs() <= most, "{x:e} as {high:e} + {low:e}");
            }
        }
        assert_eq!(split(1.5), [1.5, 0.0]);
    }

    #[test]
    fn a_product_of_two_halves_is_far_closer_than_one_of_one() {
        let [a, b, dy] = random_arrays(142, [&[40, 30], &[20, 30], &[40, 20]]);
        let error = |operands: Operands| {
            let exact = matmul(&a, &b, false, true);
            let [da, db] = matmul_vjp(&a, &b, false, true, &dy);
            let [found_da, found_db] = operands.matmul_vjp(&a, &b, false, true, &dy);
            let found = operands.matmul(&a, &b, false, true);
            [(found, exact), (found_da, da), (found_db, db)].map(|(found, exact)| found.minus(&exact).norm() / exact.norm())
        };
        assert_eq!(error(Operands::Whole), [0.0; 3]);
        for (split, half) in error(Operands::Split).into_iter().zip(error(Operands::Half)) {
            // A rounding loses 2⁻¹² at most and about a third of that on average, of each operand; what is left of it 2⁻¹¹.
            assert!((1e-4..5e-4).contains(&half) && (1e-9..2e-7).contains(&split), "{half:e}, {split:e}");
        }
    }
}
