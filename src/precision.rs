//! [`Precision`]: the format that a model's products round their operands to. Set per tape; optimizers, norms, softmax and PC layers
//! always compute in f32, and so does attention, except with f16 on matrix units.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Operand format of products; accumulation is always f32.
///
/// f16 is IEEE binary16: 11 significant bits, round to nearest even, subnormals down to 2⁻²⁴, infinite from 65,520 on. Without
/// matrix units the rounding is emulated, which makes products slower than f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum Precision {
    /// f32, no rounding.
    #[default]
    F32,
    /// Two f16 per operand: high = f16(x) and low = f16((x - high)·2¹¹), scaled so that low underflows no earlier than high. A
    /// product is high·high + (high·low + low·high)/2¹¹: about the accuracy of f32, with the range of f16.
    F16x3,
    /// One f16 per operand.
    F16,
}

impl Precision {
    /// All formats.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16x3, Self::F16];

    /// f16 values per operand element; 0 for f32.
    pub(crate) fn f16_terms(self) -> u32 {
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
