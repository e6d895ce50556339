//! Rotary frequencies: θ^(-2i/head_dim), scaled where a model reads sequences longer than in its original training.

use std::f64::consts::PI;

use crate::ops::frequencies;

/// How the rotary frequencies of a model are scaled. Formulas and names are those of transformers.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum RopeScaling {
    /// Every frequency is divided by the factor.
    Linear {
        /// Ratio of the new to the original sequence length, at least 1.
        factor: f64,
    },
    /// Llama 3.1: frequencies with fewer than `low_freq_factor` rotations within `original_seq_len` are divided by the factor,
    /// those with more than `high_freq_factor` are unchanged, and those between are interpolated.
    Llama3 {
        /// Ratio of the new to the original sequence length, at least 1.
        factor: f64,
        /// Rotations below which a frequency is divided.
        low_freq_factor: f64,
        /// Rotations above which a frequency is unchanged.
        high_freq_factor: f64,
        /// Maximum sequence length of the original training.
        original_seq_len: usize,
    },
    /// YaRN: as Llama 3.1, but with a linear ramp over the index of the frequency, and cosines and sines times
    /// `attention_factor`.
    Yarn {
        /// Ratio of the new to the original sequence length, at least 1.
        factor: f64,
        /// Rotations within `original_seq_len` at which the ramp starts.
        beta_fast: f64,
        /// Rotations at which it ends.
        beta_slow: f64,
        /// Maximum sequence length of the original training.
        original_seq_len: usize,
        /// Factor of queries and keys alike; usually [`RopeScaling::yarn_attention_factor`].
        attention_factor: f64,
    },
}

impl RopeScaling {
    /// YaRN's own attention factor: 0.1·ln(factor) + 1.
    pub fn yarn_attention_factor(factor: f64) -> f64 {
        0.1 * factor.max(1.0).ln() + 1.0
    }

    /// What cosines and sines are multiplied by.
    pub fn attention_factor(&self) -> f64 {
        match self {
            Self::Yarn { attention_factor, .. } => *attention_factor,
            Self::Linear { .. } | Self::Llama3 { .. } => 1.0,
        }
    }

    /// What an error says was expected; `None` if the values are valid.
    pub(super) fn problem(&self, theta: f64) -> Option<&'static str> {
        let (Self::Linear { factor } | Self::Llama3 { factor, .. } | Self::Yarn { factor, .. }) = *self;
        if !(factor.is_finite() && factor >= 1.0) {
            return Some("a rope factor of at least 1");
        }
        match *self {
            Self::Linear { .. } => None,
            Self::Llama3 { low_freq_factor: low, high_freq_factor: high, original_seq_len, .. } => {
                let fits = original_seq_len > 0 && low > 0.0 && high > low && high.is_finite();
                (!fits).then_some("an original_seq_len above 0 and a high_freq_factor above low_freq_factor above 0")
            }
            Self::Yarn { beta_fast, beta_slow, original_seq_len, attention_factor, .. } => {
                let ramp = original_seq_len > 0 && beta_slow > 0.0 && beta_fast > beta_slow && beta_fast.is_finite();
                let fits = ramp && theta > 1.0 && attention_factor > 0.0 && attention_factor.is_finite();
                (!fits).then_some(
                    "an original_seq_len above 0, a beta_fast above beta_slow above 0, an attention_factor above 0 and a \
                     rope_theta above 1",
                )
            }
        }
    }

    /// The frequencies of heads of width `head_dim`.
    pub(super) fn frequencies(&self, head_dim: usize, theta: f64) -> Vec<f64> {
        let plain = frequencies(head_dim, theta);
        match *self {
            Self::Linear { factor } => plain.into_iter().map(|frequency| frequency / factor).collect(),
            Self::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_seq_len } => {
                let scaled = |frequency: f64| {
                    let rotations = original_seq_len as f64 * frequency / (2.0 * PI);
                    let kept = ((rotations - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - kept) * frequency / factor + kept * frequency
                };
                plain.into_iter().map(scaled).collect()
            }
            Self::Yarn { factor, beta_fast, beta_slow, original_seq_len, .. } => {
                // The unrounded index whose frequency has that many rotations.
                let index = |rotations: f64| {
                    head_dim as f64 * (original_seq_len as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln())
                };
                let start = index(beta_fast).floor().max(0.0);
                let mut end = index(beta_slow).ceil().min(head_dim as f64 - 1.0);
                if start == end {
                    end += 0.001; // as transformers does, so that the ramp is a step
                }
                let scaled = |(i, frequency): (usize, f64)| {
                    let divided = ((i as f64 - start) / (end - start)).clamp(0.0, 1.0);
                    divided * frequency / factor + (1.0 - divided) * frequency
                };
                plain.into_iter().enumerate().map(scaled).collect()
            }
        }
    }
}
