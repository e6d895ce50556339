//! What values look like between ranks.

use crate::error::Result;
use crate::gpu::Gpu;
use crate::tensor::Tensor;

/// The format of gradients and weights between ranks. Sums are f32 with either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Wire {
    /// As they are.
    #[default]
    F32,
    /// Rounded to the upper half of an f32: half the bytes. The model sees rounded weights on every rank; the owner's raw ones are not.
    Bf16,
}

impl Wire {
    /// Bytes of a value.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// Appends f32 values, given as bytes.
    pub(super) fn encode(self, values: &[u8], message: &mut Vec<u8>) {
        match self {
            Self::F32 => message.extend_from_slice(values),
            Self::Bf16 => {
                let (values, _) = values.as_chunks();
                message.extend(values.iter().flat_map(|bytes| bf16(f32::from_ne_bytes(*bytes)).to_ne_bytes()));
            }
        }
    }

    /// A tensor of the values that begin at `at`, which it moves behind them.
    pub(super) fn decode(self, gpu: &Gpu, message: &[u8], at: &mut usize, shape: &[usize]) -> Result<Tensor> {
        let count: usize = shape.iter().product();
        let bytes = &message[*at..*at + count * self.size()];
        *at += bytes.len();
        match self {
            Self::F32 => Tensor::from_bytes(gpu, bytes, shape),
            Self::Bf16 => {
                let (halves, _) = bytes.as_chunks();
                let widen = |half: &[u8; 2]| u32::from(u16::from_ne_bytes(*half)) << 16;
                let wide: Vec<u32> = halves.iter().map(widen).collect();
                Tensor::from_bytes(gpu, bytemuck::cast_slice(&wide), shape)
            }
        }
    }
}

/// The upper half of an f32, rounded to nearest, ties to even; a NaN stays one.
fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    let half = 0x7fff + (bits >> 16 & 1);
    (bits.wrapping_add(half) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_rounded_to_the_nearest_half() {
        let up = |bits: u16| f32::from_bits(u32::from(bits) << 16);
        for bits in [0, 0x8000, 0x3f80, 0x0001, 0x7f7f, 0x7f80, 0xff80, 0xc2f7] {
            assert_eq!(bf16(up(bits)), bits);
        }
        let between = |bits: u16, more: u32| f32::from_bits((u32::from(bits) << 16) + more);
        assert_eq!(bf16(between(0x3f80, 0x8000)), 0x3f80, "a tie to the even one");
        assert_eq!(bf16(between(0x3f81, 0x8000)), 0x3f82, "a tie to the even one");
        assert_eq!([bf16(between(0x3f80, 0x7fff)), bf16(between(0x3f80, 0x8001))], [0x3f80, 0x3f81]);
        assert_eq!(bf16(f32::MAX), 0x7f80, "beyond the largest");
        assert!(up(bf16(f32::NAN)).is_nan() && up(bf16(f32::from_bits(0x7f80_0001))).is_nan());
    }
}
