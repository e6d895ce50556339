//! Number formats of exported tensors.

use clap::ValueEnum;

/// How a matrix is stored. Vectors (norm weights) stay float32 in a GGUF, as llama.cpp wants them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// float32
    F32,
    /// IEEE half precision
    F16,
    /// The upper half of a float32
    Bf16,
    /// Blocks of 32 signed bytes with a float16 scale; GGUF only
    #[value(name = "q8_0")]
    Q8_0,
}

/// Values that share a scale in [`Dtype::Q8_0`].
pub const BLOCK: usize = 32;

/// The largest magnitude that rounds to a finite float16.
const F16_LIMIT: f32 = 65_520.0;

impl Dtype {
    /// Bytes that `values` take; whole blocks for [`Dtype::Q8_0`].
    pub fn bytes(self, values: usize) -> u64 {
        let values = values as u64;
        match self {
            Self::F32 => 4 * values,
            Self::F16 | Self::Bf16 => 2 * values,
            Self::Q8_0 => values / BLOCK as u64 * (BLOCK as u64 + 2),
        }
    }

    /// The values as little-endian bytes; the error is the first value that the format cannot hold.
    pub fn encode(self, values: &[f32]) -> Result<Vec<u8>, f32> {
        match self {
            Self::F32 => Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
            Self::Bf16 => Ok(values.iter().flat_map(|value| to_bf16(*value).to_le_bytes()).collect()),
            Self::F16 => match values.iter().find(|value| value.is_finite() && value.abs() >= F16_LIMIT) {
                Some(value) => Err(*value),
                None => Ok(values.iter().flat_map(|value| to_f16(*value).to_le_bytes()).collect()),
            },
            Self::Q8_0 => {
                let mut bytes = Vec::with_capacity(self.bytes(values.len()) as usize);
                for block in values.as_chunks::<BLOCK>().0 {
                    quantize(block, &mut bytes)?;
                }
                Ok(bytes)
            }
        }
    }
}

/// To the nearest half, ties to the even one, subnormal numbers included.
fn to_f16(value: f32) -> u16 {
    let sign = (value.to_bits() >> 16 & 0x8000) as u16;
    let magnitude = value.abs();
    let bits = magnitude.to_bits();
    let half = if magnitude.is_nan() {
        0x7e00
    } else if magnitude >= F16_LIMIT {
        0x7c00
    } else if magnitude < 2f32.powi(-14) {
        (magnitude * 2f32.powi(24)).round_ties_even() as u32
    } else {
        // 13 bits of the fraction go; a carry runs into the exponent, whose bias falls from 127 to 15.
        ((bits + 0xfff + (bits >> 13 & 1)) >> 13) - (112 << 10)
    };
    sign | half as u16
}

/// To the nearest upper half of a float32, ties to the even one.
fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40; // a NaN whose lower bits alone said so stays one
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Scale = largest magnitude / 127, then every value in units of it.
fn quantize(block: &[f32; BLOCK], bytes: &mut Vec<u8>) -> Result<(), f32> {
    let largest = block.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let scale = largest / 127.0;
    if let Some(value) = block.iter().find(|value| !value.is_finite() || scale >= F16_LIMIT) {
        return Err(*value);
    }
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    bytes.extend(to_f16(scale).to_le_bytes());
    bytes.extend(block.iter().map(|value| (value * inverse).round() as i8 as u8));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_f16(half: u16) -> f64 {
        let sign = if half & 0x8000 == 0 { 1.0 } else { -1.0 };
        let (exponent, fraction) = (i32::from(half >> 10 & 0x1f), f64::from(half & 0x3ff));
        match exponent {
            0 => sign * fraction * 2f64.powi(-24),
            _ => sign * (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
        }
    }

    #[test]
    fn every_half_and_every_middle_between_two_is_rounded_right() {
        for half in 0..0x7bffu16 {
            let (low, high) = (from_f16(half), from_f16(half + 1));
            let middle = ((low + high) / 2.0) as f32;
            assert_eq!(to_f16(low as f32), half);
            assert_eq!(to_f16(-low as f32), half | 0x8000);
            assert_eq!(to_f16(middle), half + half % 2, "ties go to the even one");
            assert_eq!(to_f16(middle.next_up()), half + 1);
            assert_eq!(to_f16(middle.next_down()), half);
        }
        assert_eq!([to_f16(f32::INFINITY), to_f16(65_519.0), to_f16(f32::NAN)], [0x7c00, 0x7bff, 0x7e00]);
        assert_eq!(Dtype::F16.encode(&[1.0, -65_520.0]), Err(-65_520.0));
    }

    #[test]
    fn bfloat16_is_the_nearest_upper_half() {
        for (value, want) in
            [(1.0f32, 0x3f80u16), (-2.0, 0xc000), (1.0 + 1.0 / 256.0, 0x3f80), (1.0 + 3.0 / 256.0, 0x3f82), (3.4e38, 0x7f80)]
        {
            assert_eq!(to_bf16(value), want, "{value}");
        }
        assert!(f32::from_bits(u32::from(to_bf16(f32::from_bits(0x7f80_0001))) << 16).is_nan());
    }

    #[test]
    fn a_quantised_block_is_within_half_a_step() {
        let values: [f32; BLOCK] = std::array::from_fn(|i| ((i * 7919 % 101) as f32 - 50.0) * 0.013);
        let bytes = Dtype::Q8_0.encode(&values).expect("finite values");
        assert_eq!(bytes.len() as u64, Dtype::Q8_0.bytes(BLOCK));
        let scale = from_f16(u16::from_le_bytes([bytes[0], bytes[1]]));
        for (value, byte) in values.iter().zip(&bytes[2..]) {
            let back = scale * f64::from(*byte as i8);
            // Half a step, and the scale's own rounding times up to 127 steps.
            assert!((back - f64::from(*value)).abs() <= scale * (0.5 + 127.0 / 2048.0), "{value} became {back}");
        }
        assert_eq!(Dtype::Q8_0.encode(&[0.0; BLOCK]).expect("zeros"), [0; BLOCK + 2]);
        assert!(Dtype::Q8_0.encode(&[f32::NAN; BLOCK]).is_err());
    }
}
