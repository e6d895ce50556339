//! The keys of `model.rope_scaling`: which of them each kind takes, and their defaults.

use polytape::llama;
use toml::{Table, Value};

use super::{Model, RopeScaling};

/// The keys that some kinds take.
pub(super) const KEYS: [&str; 7] = [
    "rope_factor",
    "rope_original_seq_len",
    "rope_low_freq_factor",
    "rope_high_freq_factor",
    "rope_beta_fast",
    "rope_beta_slow",
    "rope_attention_factor",
];

/// What the entries of a `rope_scaling` that is a table are called, here or in `config.json`, and the keys that they stand for.
const ENTRIES: [(&str, &str); 10] = [
    ("type", "rope_scaling"),
    ("rope_type", "rope_scaling"),
    ("factor", "rope_factor"),
    ("original_max_seq_len", "rope_original_seq_len"),
    ("original_max_position_embeddings", "rope_original_seq_len"),
    ("low_freq_factor", "rope_low_freq_factor"),
    ("high_freq_factor", "rope_high_freq_factor"),
    ("beta_fast", "rope_beta_fast"),
    ("beta_slow", "rope_beta_slow"),
    ("attention_factor", "rope_attention_factor"),
];

/// The keys that a `rope_scaling` which is a table stands for.
pub(super) fn keys_of(entries: Table) -> Result<Table, String> {
    let mut keys = Table::new();
    for (name, value) in entries {
        let Some((_, key)) = ENTRIES.iter().find(|(known, _)| *known == name) else {
            let names = ENTRIES.map(|(known, _)| known).join(", ");
            return Err(format!("model.rope_scaling: found the entry {name}, expected some of {names}"));
        };
        if keys.insert((*key).to_owned(), value).is_some() {
            return Err(format!("model.rope_scaling: found two entries for {key}, expected one"));
        }
    }
    if !keys.contains_key("rope_scaling") {
        return Err("model.rope_scaling: found a table without type, expected one of none, linear, llama3, yarn".to_owned());
    }
    Ok(keys)
}

/// Fills in the defaults of a kind; a key that it does not take, or one without a default that is not there, is an error.
pub(super) fn resolve(model: &mut Model) -> Result<(), String> {
    let kind = model.rope_scaling;
    let (is_llama3, is_yarn) = (kind == RopeScaling::Llama3, kind == RopeScaling::Yarn);
    let takes = [kind != RopeScaling::None, is_llama3 || is_yarn, is_llama3, is_llama3, is_yarn, is_yarn, is_yarn];
    let name = Value::try_from(kind).expect("bug: a kind does not serialise");
    if is_llama3 {
        model.rope_low_freq_factor.get_or_insert(1.0);
        model.rope_high_freq_factor.get_or_insert(4.0);
    }
    if is_yarn {
        model.rope_beta_fast.get_or_insert(32.0);
        model.rope_beta_slow.get_or_insert(1.0);
        let usual = model.rope_factor.map(llama::RopeScaling::yarn_attention_factor);
        model.rope_attention_factor = model.rope_attention_factor.or(usual);
    }
    let found = [
        model.rope_factor,
        model.rope_original_seq_len.map(|length| length as f64),
        model.rope_low_freq_factor,
        model.rope_high_freq_factor,
        model.rope_beta_fast,
        model.rope_beta_slow,
        model.rope_attention_factor,
    ];
    for ((key, takes), found) in KEYS.into_iter().zip(takes).zip(found) {
        match found {
            Some(found) if !takes => {
                return Err(format!("model.{key}: found {found}, expected none where model.rope_scaling is {name}"));
            }
            None if takes => return Err(format!("model.{key}: found none, expected one where model.rope_scaling is {name}")),
            _ => {}
        }
    }
    for (low, high, least) in [
        ("rope_low_freq_factor", "rope_high_freq_factor", (model.rope_low_freq_factor, model.rope_high_freq_factor)),
        ("rope_beta_slow", "rope_beta_fast", (model.rope_beta_slow, model.rope_beta_fast)),
    ] {
        if let (Some(least), Some(found)) = least
            && found <= least
        {
            return Err(format!("model.{high}: found {found}, expected more than {low} = {least}"));
        }
    }
    if is_yarn && model.rope_theta <= 1.0 {
        return Err(format!(
            "model.rope_theta: found {}, expected more than 1 where model.rope_scaling is {name}",
            model.rope_theta
        ));
    }
    Ok(())
}

impl Model {
    /// How the engine stretches the rotary frequencies.
    pub fn rope(&self) -> Option<llama::RopeScaling> {
        const RESOLVED: &str = "bug: the keys of rope_scaling are not resolved";
        let factor = || self.rope_factor.expect(RESOLVED);
        let original_seq_len = || self.rope_original_seq_len.expect(RESOLVED);
        Some(match self.rope_scaling {
            RopeScaling::None => return None,
            RopeScaling::Linear => llama::RopeScaling::Linear { factor: factor() },
            RopeScaling::Llama3 => llama::RopeScaling::Llama3 {
                factor: factor(),
                low_freq_factor: self.rope_low_freq_factor.expect(RESOLVED),
                high_freq_factor: self.rope_high_freq_factor.expect(RESOLVED),
                original_seq_len: original_seq_len(),
            },
            RopeScaling::Yarn => llama::RopeScaling::Yarn {
                factor: factor(),
                beta_fast: self.rope_beta_fast.expect(RESOLVED),
                beta_slow: self.rope_beta_slow.expect(RESOLVED),
                original_seq_len: original_seq_len(),
                attention_factor: self.rope_attention_factor.expect(RESOLVED),
            },
        })
    }
}
