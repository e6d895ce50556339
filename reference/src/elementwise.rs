//! Elementwise operations, row broadcasts and full sums.

use super::array::Array;

pub fn add(a: &Array, b: &Array) -> Array {
    a.plus(b)
}

pub fn add_vjp(dy: &Array) -> [Array; 2] {
    [dy.clone(), dy.clone()]
}

pub fn sub(a: &Array, b: &Array) -> Array {
    a.minus(b)
}

pub fn sub_vjp(dy: &Array) -> [Array; 2] {
    [dy.clone(), dy.times(-1.0)]
}

pub fn mul(a: &Array, b: &Array) -> Array {
    a.zip(b, |a, b| a * b)
}

pub fn mul_vjp(a: &Array, b: &Array, dy: &Array) -> [Array; 2] {
    [mul(dy, b), mul(dy, a)]
}

pub fn scale(x: &Array, factor: f64) -> Array {
    x.times(factor)
}

pub fn scale_vjp(factor: f64, dy: &Array) -> [Array; 1] {
    [dy.times(factor)]
}

/// x `[.., cols]`, row `[cols]` → y = x + row in every row
pub fn add_row(x: &Array, row: &Array) -> Array {
    with_row(x, row, |x, r| x + r)
}

pub fn add_row_vjp(dy: &Array) -> [Array; 2] {
    [dy.clone(), column_sums(dy)]
}

/// x `[.., cols]`, row `[cols]` → y = x·row in every row
pub fn mul_row(x: &Array, row: &Array) -> Array {
    with_row(x, row, |x, r| x * r)
}

pub fn mul_row_vjp(x: &Array, row: &Array, dy: &Array) -> [Array; 2] {
    [mul_row(dy, row), column_sums(&mul(dy, x))]
}

fn with_row(x: &Array, row: &Array, f: impl Fn(f64, f64) -> f64) -> Array {
    let (_, cols) = x.rows_and_cols();
    assert_eq!(row.shape, [cols]);
    Array::from_fn(&x.shape, |index| f(x.data[index], row.data[index % cols]))
}

/// x `[.., cols]` → `[cols]`
pub fn column_sums(x: &Array) -> Array {
    let (rows, cols) = x.rows_and_cols();
    Array::from_fn(&[cols], |col| (0..rows).map(|row| x.row(row)[col]).sum())
}

/// x → `[1]`
pub fn sum(x: &Array) -> Array {
    Array::scalar(x.data.iter().sum())
}

pub fn sum_vjp(x: &Array, dy: &Array) -> [Array; 1] {
    [Array::full(&x.shape, dy.item())]
}

/// x → `[1]`
pub fn mean(x: &Array) -> Array {
    sum(x).times(1.0 / x.len() as f64)
}

pub fn mean_vjp(x: &Array, dy: &Array) -> [Array; 1] {
    [Array::full(&x.shape, dy.item() / x.len() as f64)]
}

pub fn relu(x: &Array) -> Array {
    x.map(|x| x.max(0.0))
}

pub fn relu_vjp(x: &Array, dy: &Array) -> [Array; 1] {
    [x.zip(dy, |x, dy| if x > 0.0 { dy } else { 0.0 })]
}

pub fn tanh(x: &Array) -> Array {
    x.map(f64::tanh)
}

pub fn tanh_vjp(x: &Array, dy: &Array) -> [Array; 1] {
    [x.zip(dy, |x, dy| dy / (x.cosh() * x.cosh()))]
}

pub fn exp(x: &Array) -> Array {
    x.map(f64::exp)
}

pub fn exp_vjp(x: &Array, dy: &Array) -> [Array; 1] {
    [x.zip(dy, |x, dy| dy * x.exp())]
}

pub fn log(x: &Array) -> Array {
    x.map(f64::ln)
}

pub fn log_vjp(x: &Array, dy: &Array) -> [Array; 1] {
    [x.zip(dy, |x, dy| dy / x)]
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub fn silu(x: &Array) -> Array {
    x.map(|x| x * sigmoid(x))
}

pub fn silu_vjp(x: &Array, dy: &Array) -> [Array; 1] {
    [x.zip(dy, |x, dy| dy * sigmoid(x) * (1.0 + x * sigmoid(-x)))]
}

/// y = silu(gate)·up
pub fn swiglu(gate: &Array, up: &Array) -> Array {
    mul(&silu(gate), up)
}

pub fn swiglu_vjp(gate: &Array, up: &Array, dy: &Array) -> [Array; 2] {
    let [dgate] = silu_vjp(gate, &mul(dy, up));
    [dgate, mul(dy, &silu(gate))]
}

/// The exact form: x·Φ(x), Φ the normal distribution function.
pub fn gelu(x: &Array) -> Array {
    x.map(|x| x * normal_distribution(x))
}

pub fn gelu_vjp(x: &Array, dy: &Array) -> [Array; 1] {
    let density = |x: f64| (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
    [x.zip(dy, |x, dy| dy * (normal_distribution(x) + x * density(x)))]
}

fn normal_distribution(x: f64) -> f64 {
    0.5 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

/// erf(x) = 2/√π·e^(-x²)·Σ 2ⁿx²ⁿ⁺¹/(2n+1)!!, a series of positive terms: nothing cancels. From |x| = 6 on it is ±1 in float64.
pub fn erf(x: f64) -> f64 {
    if x.abs() >= 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut odd) = (x, x, 1.0);
    while term.abs() > 1e-17 * sum.abs() {
        odd += 2.0;
        term *= 2.0 * x * x / odd;
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differences::{check_vjp, random_arrays};

    #[test]
    fn erf_has_all_its_digits() {
        // Abramowitz and Stegun, table 7.1, and its complement at 3.
        let known = [(0.5, 0.5204998778130465), (1.0, 0.8427007929497149), (2.0, 0.9953222650189527)];
        for (x, want) in known {
            assert!((erf(x) - want).abs() < 1e-15, "erf({x}) = {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
        assert!((1.0 - erf(3.0) - 2.209049699858544e-5).abs() < 1e-15);
        assert_eq!((erf(0.0), erf(7.0)), (0.0, 1.0));
    }

    #[test]
    fn vjps_of_two_operands_match_finite_differences() {
        let pair = || random_arrays(1, [&[3, 5], &[3, 5]]);
        check_vjp("add", pair(), |x| add(&x[0], &x[1]), |_, dy| add_vjp(dy));
        check_vjp("sub", pair(), |x| sub(&x[0], &x[1]), |_, dy| sub_vjp(dy));
        check_vjp("mul", pair(), |x| mul(&x[0], &x[1]), |x, dy| mul_vjp(&x[0], &x[1], dy));
        check_vjp("swiglu", pair(), |x| swiglu(&x[0], &x[1]), |x, dy| swiglu_vjp(&x[0], &x[1], dy));
        let with_row = || random_arrays(2, [&[2, 3, 5], &[5]]);
        check_vjp("add_row", with_row(), |x| add_row(&x[0], &x[1]), |_, dy| add_row_vjp(dy));
        check_vjp("mul_row", with_row(), |x| mul_row(&x[0], &x[1]), |x, dy| mul_row_vjp(&x[0], &x[1], dy));
    }

    #[test]
    fn vjps_of_one_operand_match_finite_differences() {
        let one = || random_arrays(3, [&[4, 6]]);
        check_vjp("scale", one(), |x| scale(&x[0], -1.7), |_, dy| scale_vjp(-1.7, dy));
        check_vjp("sum", one(), |x| sum(&x[0]), |x, dy| sum_vjp(&x[0], dy));
        check_vjp("mean", one(), |x| mean(&x[0]), |x, dy| mean_vjp(&x[0], dy));
        check_vjp("relu", one(), |x| relu(&x[0]), |x, dy| relu_vjp(&x[0], dy));
        check_vjp("tanh", one(), |x| tanh(&x[0]), |x, dy| tanh_vjp(&x[0], dy));
        check_vjp("exp", one(), |x| exp(&x[0]), |x, dy| exp_vjp(&x[0], dy));
        check_vjp("silu", one(), |x| silu(&x[0]), |x, dy| silu_vjp(&x[0], dy));
        check_vjp("gelu", one(), |x| gelu(&x[0]), |x, dy| gelu_vjp(&x[0], dy));
        let positive = [one()[0].map(|x| x.abs() + 0.1)];
        check_vjp("log", positive, |x| log(&x[0]), |x, dy| log_vjp(&x[0], dy));
    }
}
