//! Vectors for twins: code compiled for the processor's widest vectors, sums of fixed order, exponentials.
//!
//! Sums go over [`LANES`] partial sums whatever the processor's width, and products are fused into them (FMA) everywhere, so that every
//! processor gets the same bits.

use std::ops::Range;

/// Partial sums per reduction.
pub(crate) const LANES: usize = 16;

/// Runs `f` compiled for the processor's vector instructions: plain loops use them, in `f` and in what is inlined into it. `f` has to
/// be marked `#[inline(always)]`.
#[inline(always)]
pub(crate) fn dispatch<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Asks for the cache line of an address that will be read soon; it need not be valid.
#[inline(always)]
pub(crate) fn prefetch(place: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Calls `f` with ranges that together make 0..`count`, and prefetches what the inputs have `ahead` elements after each: a kernel of rows
/// reads the next row from memory while it computes this one.
#[inline(always)]
pub(crate) fn ahead<const N: usize>(count: usize, inputs: [&[f32]; N], ahead: isize, mut f: impl FnMut(Range<usize>)) {
    const LINE: usize = 16;
    const BLOCK: usize = 8 * LINE;
    for start in (0..count).step_by(BLOCK) {
        let range = start..count.min(start + BLOCK);
        for input in inputs {
            for line in range.clone().step_by(LINE) {
                prefetch(input.as_ptr().wrapping_add(line).wrapping_offset(ahead));
            }
        }
        f(range);
    }
}

/// Σ f(i) over 0..count, in [`LANES`] interleaved partial sums.
#[inline(always)]
pub(crate) fn sum(count: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    for chunk in 0..count / LANES {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += f(chunk * LANES + lane);
        }
    }
    for (lane, sum) in sums.iter_mut().enumerate().take(count % LANES) {
        *sum += f(count / LANES * LANES + lane);
    }
    total(sums)
}

/// Σ f over the values at each place of slices of one length, in [`LANES`] interleaved partial sums.
#[inline(always)]
pub(crate) fn sum_of<const N: usize>(inputs: [&[f32]; N], f: impl Fn([f32; N]) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    let parts = inputs.map(|input| input.as_chunks::<LANES>());
    for chunk in 0..inputs[0].len() / LANES {
        let chunks = parts.map(|(chunks, _)| &chunks[chunk]);
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += f(chunks.map(|chunk| chunk[lane]));
        }
    }
    let rests = parts.map(|(_, rest)| rest);
    for (lane, sum) in sums.iter_mut().enumerate().take(rests[0].len()) {
        *sum += f(rests.map(|rest| rest[lane]));
    }
    total(sums)
}

/// Σ a·b.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = a.mul_add(*b, *sum);
        }
    }
    for ((sum, a), b) in sums.iter_mut().zip(a_rest).zip(b_rest) {
        *sum = a.mul_add(*b, *sum);
    }
    total(sums)
}

/// The largest value; -∞ of none. NaNs are passed over.
#[inline(always)]
pub(crate) fn maximum(values: &[f32]) -> f32 {
    let mut most = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (most, value) in most.iter_mut().zip(chunk) {
            *most = if *value > *most { *value } else { *most };
        }
    }
    most.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// The sum of partial sums, by halves.
#[inline(always)]
pub(crate) fn total(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

/// eˣ to 1 ulp: 0 below −86.9, infinite above 88.72, NaN of NaN. eˣ = 2ⁿ⁻¹·2eʳ with |r| ≤ ln 2 / 2, and a minimax polynomial of degree 6
/// for 2eʳ, so that 2ⁿ⁻¹ is a normal number for every n.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LEAST: f32 = -86.9;
    const LN_2_HIGH: f32 = 0.693_359_4; // 10 bits: its product with n is exact
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // 1.5·2²³: adding it rounds to an integer, which stands in the low bits
    let clamped = if x > 89.0 { 89.0 } else { x }; // infinite; NaN stays
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, clamped));
    let mut p = 0.002_785_275_2;
    p = r.mul_add(p, 0.016_726_667);
    p = r.mul_add(p, 0.083_333_105);
    p = r.mul_add(p, 0.333_331_53);
    p = r.mul_add(p, 1.0);
    p = r.mul_add(p, 2.0);
    p = r.mul_add(p, 2.0);
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(126 << 23));
    if x < LEAST { 0.0 } else { p * power }
}

/// The logistic function 1 / (1 + e⁻ˣ).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Rounds to f16, ties to even, as an f32; infinite from 65,520. The values of `to_half` in `half.wgsl`.
#[inline(always)]
pub(crate) fn to_half(x: f32) -> f32 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    // f16 has 13 mantissa bits less, and below 2⁻¹⁴ (subnormal) one less per power of two.
    let shift = 126 - (magnitude >> 23).clamp(103, 113);
    let unit = 1 << shift;
    let rounded = (magnitude + (unit >> 1) - 1 + ((magnitude >> shift) & 1)) & !(unit - 1);
    // Below the smallest subnormal, 2⁻²⁴: more than half of it rounds up, the rest to zero.
    let rounded = if magnitude < 0x3380_0000 { 0x3380_0000 } else { rounded };
    let rounded = if magnitude <= 0x3300_0000 { 0 } else { rounded };
    // Overflow to infinity; max keeps a NaN.
    let rounded = if rounded >= 0x4780_0000 { magnitude.max(0x7f80_0000) } else { rounded };
    f32::from_bits(rounded | (bits & 0x8000_0000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_to_one_ulp() {
        let mut worst = 0.0f64;
        for i in -1_100_000..=900_000 {
            let x = i as f32 * 1e-4;
            let (found, want) = (exp(x), f64::from(x).exp());
            if want > f64::from(f32::MAX) {
                assert_eq!(found, f32::INFINITY, "exp({x})");
                continue;
            }
            if x < -86.9 {
                assert_eq!(found, 0.0, "exp({x})");
                continue;
            }
            let ulp = f64::from((want as f32).next_up() - want as f32);
            worst = worst.max((f64::from(found) - want).abs() / ulp);
        }
        assert!(worst < 1.0, "{worst} ulp");
        assert_eq!([exp(0.0), exp(f32::NEG_INFINITY), exp(f32::INFINITY)], [1.0, 0.0, f32::INFINITY]);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_of_any_length_are_complete() {
        for count in 0..70 {
            let values: Vec<f32> = (1..=count).map(|value| value as f32).collect();
            let want = (count * (count + 1) / 2) as f32;
            assert_eq!(sum(values.len(), |i| values[i]), want);
            assert_eq!(sum_of([&values, &values], |[a, b]| 3.0 * a - 2.0 * b), want);
            assert_eq!(dot(&values, &vec![1.0; values.len()]), want);
            assert_eq!(maximum(&values), if count == 0 { f32::NEG_INFINITY } else { count as f32 });
        }
    }

    #[test]
    fn halves_are_those_of_ieee_754() {
        for (x, want) in [
            (1.0, 1.0),
            (2049.0, 2048.0),
            (2051.0, 2052.0),
            (65_519.0, 65_504.0),
            (65_520.0, f32::INFINITY),
            (-1e-8, -0.0),
            (4e-8, 2f32.powi(-24)),
            (2f32.powi(-25), 0.0),
        ] {
            assert_eq!(to_half(x).to_bits(), f32::to_bits(want), "{x}");
        }
        assert!(to_half(f32::NAN).is_nan());
    }
}
