//! Rotary frequencies: θ^(-2i/head_dim), stretched where a model reads sequences longer than those it was first trained on.

use std::f64::consts::PI;

use crate::ops::frequencies;

/// How the rotary frequencies of a model are stretched. Formulas and names are those of transformers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Every frequency is divided by the factor.
    Linear {
        /// How much longer sequences may be, from 1 up.
        factor: f64,
    },
    /// Llama 3.1: frequencies that turn less than `low_freq_factor` times within `original_seq_len` are divided by the factor,
    /// those that turn more than `high_freq_factor` times stay, and those between are interpolated.
    Llama3 {
        /// How much longer sequences may be, from 1 up.
        factor: f64,
        /// Turns up to which a frequency is divided.
        low_freq_factor: f64,
        /// Turns from which a frequency stays.
        high_freq_factor: f64,
        /// Longest sequence of the first training.
        original_seq_len: usize,
    },
    /// YaRN: as Llama 3.1, but with a linear ramp over the index of the frequency, and cosines and sines times
    /// `attention_factor`.
    Yarn {
        /// How much longer sequences may be, from 1 up.
        factor: f64,
        /// Turns within `original_seq_len` at which the ramp starts.
        beta_fast: f64,
        /// Turns at which it ends.
        beta_slow: f64,
        /// Longest sequence of the first training.
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

    /// What is expected where it is not, if anything.
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
                let stretched = |frequency: f64| {
                    let turns = original_seq_len as f64 * frequency / (2.0 * PI);
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - kept) * frequency / factor + kept * frequency
                };
                plain.into_iter().map(stretched).collect()
            }
            Self::Yarn { factor, beta_fast, beta_slow, original_seq_len, .. } => {
                // The index, not rounded, whose frequency turns that often.
                let index =
                    |turns: f64| head_dim as f64 * (original_seq_len as f64 / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
                let start = index(beta_fast).floor().max(0.0);
                let mut end = index(beta_slow).ceil().min(head_dim as f64 - 1.0);
                if start == end {
                    end += 0.001; // as transformers does, so that the ramp is a step
                }
                let stretched = |(i, frequency): (usize, f64)| {
                    let divided = ((i as f64 - start) / (end - start)).clamp(0.0, 1.0);
                    divided * frequency / factor + (1.0 - divided) * frequency
                };
                plain.into_iter().enumerate().map(stretched).collect()
            }
        }
    }
}
