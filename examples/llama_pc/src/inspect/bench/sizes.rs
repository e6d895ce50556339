//! The models whose shapes are measured, and how many tokens of them a slow adapter takes.

use polytape::llama::LlamaConfig;

use super::session::Case;

/// The published sizes, and the small one for adapters that are too slow for them.
pub const PUBLISHED: [&str; 2] = ["271M", "1B"];
pub const SMALL: &str = "20M";

/// Tokens of a product, or positions of attention: what the published runs have, and what slower adapters have time for.
pub const TOKENS: [usize; 3] = [8192, 2048, 512];

/// The sizes of a preset.
pub fn preset(name: &str) -> Case<LlamaConfig> {
    Ok(LlamaConfig::preset(name)?)
}

/// The most tokens that the estimate, in seconds, finds time for.
pub fn tokens(seconds: f64, estimate: impl Fn(usize) -> f64) -> Option<usize> {
    TOKENS.into_iter().find(|&tokens| estimate(tokens) <= seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_adapters_take_fewer_tokens() {
        let taken = [1.0, 10.0, 50.0].map(|slowness| tokens(10_000.0, |tokens| slowness * tokens as f64));
        assert_eq!(taken, [Some(8192), Some(512), None]);
    }
}
