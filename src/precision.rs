//! [`Precision`]: what the products of a model round their operands to. A tape carries it; optimizers, norms, softmax, attention
//! and PC layers know nothing of it and stay in f32.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// What a product rounds its operands to; its sums are f32 always.
///
/// A half is an IEEE binary16: 11 bits, rounded to nearest, ties to even, with subnormals down to 2⁻²⁴; from 65,520 on it is an
/// infinity. Without matrix units the rounding is computed, which makes a product slower than f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum Precision {
    /// Not at all.
    #[default]
    F32,
    /// To the sum of two halves, high + low/2¹¹ with low = half((x - high)·2¹¹), so that low does not underflow where high does
    /// not. A product sums high·high + (high·low + low·high)/2¹¹: about as exact as f32, with the range of a half.
    F16x3,
    /// To one half.
    F16,
}

impl Precision {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16x3, Self::F16];

    /// How many halves stand for an operand; 0 where it stays as it is.
    pub(crate) fn halves(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16x3 => 2,
            Self::F16 => 1,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16x3 => "f16x3",
            Self::F16 => "f16",
        })
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|precision| precision.to_string() == text);
        found.ok_or_else(|| Error::Value(format!("precision: found `{text}`, expected f32, f16x3 or f16")))
    }
}
