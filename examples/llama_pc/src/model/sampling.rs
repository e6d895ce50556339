//! From logits to a token, and from tokens to text as it grows.

use rand::rngs::ChaCha12Rng;
use rand::{RngExt, SeedableRng};

use crate::terminal::failure::Failure;

/// Draws tokens; the same seed and logits give the same tokens.
pub struct Sampler {
    temperature: f32,
    top_k: usize,
    top_p: f64,
    rng: ChaCha12Rng,
}

impl Sampler {
    /// `temperature` 0 always takes the likeliest token; `top_k` 0 and `top_p` 1 leave all tokens in.
    pub fn new(temperature: f32, top_k: usize, top_p: f64, seed: u64) -> Result<Self, Failure> {
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(Failure::usage(format!("--temperature: found {temperature}, expected a number of at least 0")));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Failure::usage(format!("--top-p: found {top_p}, expected a number above 0 to 1")));
        }
        Ok(Self { temperature, top_k, top_p, rng: ChaCha12Rng::seed_from_u64(seed) })
    }

    /// Chooses one of `logits` `[vocab]`. The draw is made in f64 over the tokens from the likeliest down, so that it does
    /// not depend on how a sum of many small probabilities is rounded.
    pub fn choose(&mut self, logits: &[f32]) -> Result<u32, Failure> {
        if let Some(token) = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            let found = logits[token];
            return Err(Failure::other(format!("the model's logit of token {token} is {found}, expected a finite number")));
        }
        let mut tokens: Vec<usize> = (0..logits.len()).collect();
        let likelier = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
        let kept = match (self.temperature == 0.0, self.top_k) {
            (true, _) => 1,
            (false, 0) => tokens.len(),
            (false, top_k) => top_k.min(tokens.len()),
        };
        if (1..tokens.len()).contains(&kept) {
            tokens.select_nth_unstable_by(kept - 1, likelier);
            tokens.truncate(kept);
        }
        tokens.sort_unstable_by(likelier);
        let best = *tokens.first().ok_or_else(|| Failure::other("the model gave no logits, expected one a token"))?;
        if kept == 1 {
            return Ok(best as u32);
        }
        let weight = |token: &usize| (f64::from(logits[*token] - logits[best]) / f64::from(self.temperature)).exp();
        let mut total: f64 = tokens.iter().map(weight).sum();
        if self.top_p < 1.0 {
            // The fewest of the likeliest that hold the share; always one at least.
            let mut rest = self.top_p * total;
            let enough = tokens.iter().position(|token| {
                rest -= weight(token);
                rest <= 0.0
            });
            tokens.truncate(enough.map_or(tokens.len(), |last| last + 1));
            total = tokens.iter().map(weight).sum();
        }
        let mut left = self.rng.random::<f64>() * total;
        for token in &tokens {
            left -= weight(token);
            if left < 0.0 {
                return Ok(*token as u32);
            }
        }
        // Only rounding leads here: the draw was within an ulp of the total.
        Ok(best as u32)
    }
}

/// Turns tokens into text as they come. A token may hold a part of a character only, and some decoders drop the space
/// before the first word; so text is decoded together with what stands before it, and held back until it is whole.
pub struct TextStream {
    tokens: Vec<u32>,
    /// Text of tokens[start..shown] is known to the reader and gives the next its context.
    start: usize,
    shown: usize,
}

impl TextStream {
    /// Continues after tokens whose text is already shown.
    pub fn after(context: &[u32]) -> Self {
        Self { tokens: context.to_vec(), start: 0, shown: context.len() }
    }

    /// Adds a token and returns the text that is whole with it, if any.
    pub fn push(&mut self, token: u32, decode: impl Fn(&[u32]) -> Result<String, Failure>) -> Result<String, Failure> {
        self.tokens.push(token);
        let text = self.pending(decode)?;
        if text.is_empty() || text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.start = self.shown;
        self.shown = self.tokens.len();
        Ok(text)
    }

    /// The rest at the end, whole or not.
    pub fn finish(&self, decode: impl Fn(&[u32]) -> Result<String, Failure>) -> Result<String, Failure> {
        self.pending(decode)
    }

    fn pending(&self, decode: impl Fn(&[u32]) -> Result<String, Failure>) -> Result<String, Failure> {
        let known = decode(&self.tokens[self.start..self.shown])?;
        let all = decode(&self.tokens[self.start..])?;
        Ok(all.get(known.len()..).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f32, top_k: usize, seed: u64) -> Sampler {
        Sampler::new(temperature, top_k, 1.0, seed).expect("good settings")
    }

    #[test]
    fn temperature_zero_takes_the_likeliest() {
        let mut sampler = sampler(0.0, 0, 1);
        assert_eq!(sampler.choose(&[0.0, 3.0, -1.0, 3.0]).expect("a token"), 1);
        assert_eq!(sampler.choose(&[f32::NEG_INFINITY, -5.0]).expect("a token"), 1);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [1.0f32, 0.0, 2.0, -40.0];
        let draws = |temperature: f32, top_k| {
            let mut sampler = sampler(temperature, top_k, 7);
            let mut counts = [0.0; 4];
            for _ in 0..20_000 {
                counts[sampler.choose(&logits).expect("a token") as usize] += 1.0 / 20_000.0;
            }
            counts
        };
        for (temperature, top_k) in [(1.0, 0), (0.5, 0), (1.0, 2), (2.0, 9)] {
            let kept = |i: usize| top_k != 2 || i == 0 || i == 2;
            let weight = |i: usize| {
                if kept(i) { (f64::from(logits[i]) / f64::from(temperature)).exp() } else { 0.0 }
            };
            let total: f64 = (0..4).map(weight).sum();
            for (i, share) in draws(temperature, top_k).into_iter().enumerate() {
                // Four standard deviations of a share at 20,000 draws are at most 0.015.
                assert!((share - weight(i) / total).abs() < 0.015, "temperature {temperature}, top-k {top_k}: {share}");
            }
        }
    }

    #[test]
    fn top_p_keeps_the_fewest_tokens_that_hold_the_share() {
        // Shares of 0.6, 0.3 and 0.1.
        let logits = [0.3f32.ln(), 0.6f32.ln(), 0.1f32.ln()];
        let drawn = |top_p: f64, top_k: usize| {
            let mut sampler = Sampler::new(1.0, top_k, top_p, 5).expect("good settings");
            let mut counts = [0; 3];
            for _ in 0..3000 {
                counts[sampler.choose(&logits).expect("a token") as usize] += 1;
            }
            counts
        };
        assert_eq!(drawn(0.5, 0), [0, 3000, 0]);
        let [second, first, third] = drawn(0.8, 0);
        // 2000 of 3000 expected, with a standard deviation of 26.
        assert!(third == 0 && (1870..2130).contains(&first), "{first} and {second}");
        assert!(drawn(0.95, 0)[2] > 0 && drawn(0.95, 2)[2] == 0, "top-k holds beside it");
    }

    #[test]
    fn the_seed_decides() {
        let tokens = |seed| -> Vec<u32> {
            let mut sampler = sampler(1.0, 0, seed);
            (0..50).map(|_| sampler.choose(&[0.0; 100]).expect("a token")).collect()
        };
        assert_eq!(tokens(3), tokens(3));
        assert_ne!(tokens(3), tokens(4));
    }

    #[test]
    fn bad_settings_and_logits_are_refused() {
        assert_eq!(Sampler::new(-1.0, 0, 1.0, 1).err().map(|failure| failure.status), Some(2));
        assert!(Sampler::new(f32::NAN, 0, 1.0, 1).is_err());
        for top_p in [0.0, 1.1, f64::NAN] {
            assert_eq!(Sampler::new(1.0, 0, top_p, 1).err().map(|failure| failure.status), Some(2), "{top_p}");
        }
        let failure = sampler(1.0, 0, 1).choose(&[0.0, f32::NAN]).expect_err("not a number");
        assert_eq!(failure.to_string(), "the model's logit of token 1 is NaN, expected a finite number");
        assert!(sampler(1.0, 0, 1).choose(&[]).is_err());
    }

    /// Tokens are bytes; a space at the very beginning is dropped, as SentencePiece does.
    fn bytes(tokens: &[u32]) -> Result<String, Failure> {
        let bytes: Vec<u8> = tokens.iter().map(|token| *token as u8).collect();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(text.strip_prefix(' ').map(str::to_owned).unwrap_or(text))
    }

    #[test]
    fn text_comes_in_whole_characters() {
        let text = "héllo wörld 🦀 日本";
        let mut stream = TextStream::after(b"say".map(u32::from).as_slice());
        let mut pieces = Vec::new();
        for byte in format!(" {text}").bytes() {
            pieces.push(stream.push(byte.into(), bytes).expect("text"));
        }
        assert_eq!(pieces.concat(), format!(" {text}"));
        assert!(pieces.iter().all(|piece| piece.chars().count() <= 1));
        assert_eq!(stream.finish(bytes).expect("text"), "");
    }

    #[test]
    fn a_broken_end_is_shown_at_the_end() {
        let mut stream = TextStream::after(&[]);
        assert_eq!(stream.push(0x61, bytes).expect("text"), "a");
        assert_eq!(stream.push(0xe6, bytes).expect("text"), "");
        assert_eq!(stream.finish(bytes).expect("text"), "\u{fffd}");
    }
}
