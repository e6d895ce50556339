//! The one list of keys: section, name, type and range. Checking a value, naming what was expected and suggesting a
//! nearby key all read this list, so that an error always says the same as the check.

use std::ops::Bound::{self, Excluded, Included, Unbounded};
use std::ops::RangeInclusive;

use toml::Value;

use polytape::MAX_HEAD_DIM;
use polytape::llama::PRESETS;

/// A key of the configuration. Top-level keys have the section "".
pub struct Key {
    pub section: &'static str,
    pub name: &'static str,
    kind: Kind,
}

enum Kind {
    Flag,
    Text,
    Integer(RangeInclusive<i64>),
    Number(Range),
    /// A list of that many numbers, each in the range.
    Numbers(RangeInclusive<usize>, Range),
    Choice(&'static [&'static str]),
    /// Any number of these names.
    Choices(&'static [&'static str]),
    /// A table from any of these names to numbers, each in the range.
    Factors(&'static [&'static str], Range),
}

struct Range(Bound<f64>, Bound<f64>);

const FLAG: Kind = Kind::Flag;
const TEXT: Kind = Kind::Text;
const COUNT: Kind = Kind::Integer(1..=i64::MAX);
const COUNT_OR_NEVER: Kind = Kind::Integer(0..=i64::MAX);
const POSITIVE: Kind = Kind::Number(Range(Excluded(0.0), Unbounded));
const NOT_NEGATIVE: Kind = Kind::Number(Range(Included(0.0), Unbounded));
/// A moving average's decay rate: at 1 it would never change.
const MEMORY: Range = Range(Included(0.0), Excluded(1.0));

const PRESET_NAMES: [&str; PRESETS.len()] = {
    let mut names = [""; PRESETS.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = PRESETS[i].0;
        i += 1;
    }
    names
};

/// The matrices of a block, and groups of them.
const TARGETS: [&str; 9] = ["q", "k", "v", "o", "gate", "up", "down", "qk", "ffn"];

const fn key(section: &'static str, name: &'static str, kind: Kind) -> Key {
    Key { section, name, kind }
}

/// The longest sequences to train on, to evaluate or to write.
pub const MAX_SEQ_LEN: usize = 1 << 20;

/// Every key there is. The upper limits of sizes are far beyond any device and keep products of them in 64 bits.
pub static KEYS: [Key; 68] = [
    key("", "seed", COUNT_OR_NEVER),
    key("model", "preset", Kind::Choice(&PRESET_NAMES)),
    key("model", "dim", Kind::Integer(2..=65_536)),
    key("model", "layers", Kind::Integer(1..=1024)),
    key("model", "heads", Kind::Integer(1..=1024)),
    key("model", "kv_heads", Kind::Integer(1..=1024)),
    key("model", "head_dim", Kind::Integer(2..=MAX_HEAD_DIM as i64)),
    key("model", "intermediate_size", Kind::Integer(1..=1 << 20)),
    key("model", "vocab", Kind::Integer(2..=1 << 24)),
    key("model", "norm_eps", POSITIVE),
    key("model", "rope_theta", POSITIVE),
    key("model", "rope_scaling", Kind::Choice(&["none", "linear", "llama3", "yarn"])),
    key("model", "rope_factor", Kind::Number(Range(Included(1.0), Unbounded))),
    key("model", "rope_original_seq_len", Kind::Integer(1..=1 << 30)),
    key("model", "rope_low_freq_factor", POSITIVE),
    key("model", "rope_high_freq_factor", POSITIVE),
    key("model", "rope_beta_fast", POSITIVE),
    key("model", "rope_beta_slow", POSITIVE),
    key("model", "rope_attention_factor", POSITIVE),
    key("model", "qk_norm", FLAG),
    key("model", "tied", FLAG),
    // Beyond these limits weights would leave the range of f32, or their squares would.
    key("model", "init_scale", Kind::Factors(&TARGETS, Range(Included(1e-6), Included(1e6)))),
    key("pc", "targets", Kind::Choices(&TARGETS)),
    key("pc", "level", Kind::Integer(0..=4)),
    key("pc", "coefficients", Kind::Numbers(1..=16, Range(Unbounded, Unbounded))),
    key("pc", "norm", Kind::Choice(&["spectral", "frobenius", "none"])),
    key("pc", "power_iterations", Kind::Integer(1..=1000)),
    key("pc", "eps", POSITIVE),
    key("pc", "recover_norm", FLAG),
    key("pc", "learnable_gamma", FLAG),
    key("pc", "gamma_init", Kind::Number(Range(Unbounded, Unbounded))),
    key("pc", "per_head", FLAG),
    key("optimizer", "kind", Kind::Choice(&super::optimizers::NAMES)),
    key("optimizer", "lr", NOT_NEGATIVE),
    key("optimizer", "betas", Kind::Numbers(2..=2, MEMORY)),
    key("optimizer", "eps", POSITIVE),
    key("optimizer", "weight_decay", NOT_NEGATIVE),
    key("optimizer", "decay", Kind::Choice(&["all", "matrices"])),
    key("optimizer", "momentum", Kind::Number(MEMORY)),
    key("optimizer", "ns_steps", Kind::Integer(1..=100)),
    key("optimizer", "ns_coefficients", Kind::Choice(&["simple", "quintic", "polar_express", "aol"])),
    key("optimizer", "lr_ratio", Kind::Choice(&["moonlight", "spectral_mup", "keller_jordan"])),
    key("schedule", "kind", Kind::Choice(&["cosine", "linear", "wsd", "constant"])),
    key("schedule", "warmup_steps", COUNT_OR_NEVER),
    key("schedule", "end_ratio", Kind::Number(Range(Included(0.0), Included(1.0)))),
    key("schedule", "decay_steps", COUNT_OR_NEVER),
    key("schedule", "decay", Kind::Choice(&["linear", "sqrt", "cosine"])),
    key("data", "train", TEXT),
    key("data", "val", TEXT),
    key("data", "seq_len", Kind::Integer(1..=MAX_SEQ_LEN as i64)),
    key("data", "format", Kind::Choice(&["auto", "u16", "u32"])),
    key("data", "order", Kind::Choice(&["shuffled", "sequential"])),
    key("train", "steps", COUNT),
    key("train", "batch_size", Kind::Integer(1..=1 << 20)),
    key("train", "grad_accumulation", Kind::Integer(1..=1 << 20)),
    key("train", "replicas", Kind::Integer(1..=4096)),
    key("train", "exchange", Kind::Choice(&["f32", "bf16"])),
    key("train", "max_grad_norm", POSITIVE),
    key("train", "checkpoint_activations", FLAG),
    key("train", "precision", Kind::Choice(&["f32", "f16x3", "f16"])),
    key("train", "val_every", COUNT_OR_NEVER),
    key("train", "val_batches", COUNT),
    key("train", "checkpoint_every", COUNT_OR_NEVER),
    key("train", "keep_checkpoints", COUNT),
    key("train", "log_every", COUNT),
    key("train", "log_spectrum_every", COUNT_OR_NEVER),
    key("train", "log_layers_every", COUNT_OR_NEVER),
    key("train", "skip_spikes", NOT_NEGATIVE),
];

/// The keys that a resumed run may change: none affects the steps that have been done.
pub const RESUMABLE: [&str; 13] = [
    "data.train",
    "data.val",
    "data.format",
    "train.steps",
    "train.checkpoint_activations",
    "train.val_every",
    "train.val_batches",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.log_spectrum_every",
    "train.log_layers_every",
    "train.skip_spikes",
];

/// Renamed keys: section, old name, new name. The old names are still read, never written.
pub const RENAMED: [(&str, &str, &str); 1] = [("model", "hidden", "intermediate_size")];

/// The sections, in the order of the file.
pub const SECTIONS: [&str; 6] = ["model", "pc", "optimizer", "schedule", "data", "train"];

/// The key of that name in the section, if there is one.
pub fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section == section && key.name == name)
}

/// The name of a key that may be given by an old one.
pub fn current_name<'a>(section: &str, name: &'a str) -> &'a str {
    RENAMED.iter().find(|(within, old, _)| (*within, *old) == (section, name)).map_or(name, |(_, _, new)| new)
}

/// The place of a full name in the list; one that is not there comes last.
pub fn position(full: &str) -> usize {
    KEYS.iter().position(|key| full_name(key.section, key.name) == full).unwrap_or(KEYS.len())
}

/// The full name of a key: `section.name`, or the name alone at the top level.
pub fn full_name(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// The known key or section that a wrong name most likely meant: the same name elsewhere, or else the nearest one in
/// its own section.
pub fn nearest(section: &str, name: &str) -> String {
    if let Some(key) = KEYS.iter().find(|key| key.name == name) {
        return full_name(key.section, key.name);
    }
    let siblings = KEYS.iter().filter(|key| key.section == section).map(|key| key.name);
    let sections = SECTIONS.iter().copied().filter(|_| section.is_empty());
    let best = siblings.chain(sections).min_by_key(|known| edit_distance(name, known));
    full_name(section, best.unwrap_or("seed"))
}

/// The section that a wrong section name most likely meant.
pub fn nearest_section(name: &str) -> &'static str {
    SECTIONS.iter().copied().min_by_key(|known| edit_distance(name, known)).unwrap_or("model")
}

/// Levenshtein's distance: insertions, deletions and replacements, one row of the table at a time.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

impl Key {
    /// What values are accepted, in words.
    #[cfg(test)]
    pub fn expected(&self) -> String {
        self.kind.expected()
    }

    /// Whether the value has the key's type and lies in its range; the error says what was found and expected.
    pub fn check(&self, value: &Value) -> Result<(), String> {
        let fits = match &self.kind {
            Kind::Flag => value.is_bool(),
            Kind::Text => value.as_str().is_some_and(|text| !text.is_empty()),
            Kind::Integer(range) => value.as_integer().is_some_and(|n| range.contains(&n)),
            Kind::Number(range) => range.holds(value),
            Kind::Numbers(count, range) => {
                value.as_array().is_some_and(|list| count.contains(&list.len()) && list.iter().all(|v| range.holds(v)))
            }
            Kind::Choice(names) => one_of(value, names),
            Kind::Choices(names) => value.as_array().is_some_and(|list| list.iter().all(|v| one_of(v, names))),
            Kind::Factors(names, range) => value
                .as_table()
                .is_some_and(|table| table.iter().all(|(name, v)| names.contains(&name.as_str()) && range.holds(v))),
        };
        if fits {
            return Ok(());
        }
        let name = full_name(self.section, self.name);
        Err(format!("{name}: found {value}, expected {}", self.kind.expected()))
    }
}

fn one_of(value: &Value, names: &[&str]) -> bool {
    value.as_str().is_some_and(|name| names.contains(&name))
}

impl Range {
    fn holds(&self, value: &Value) -> bool {
        use std::ops::RangeBounds;
        let number = value.as_float().or_else(|| value.as_integer().map(|n| n as f64));
        number.is_some_and(|n| n.is_finite() && (self.0, self.1).contains(&n))
    }

    fn expected(&self) -> String {
        let low = match (self.0, self.1) {
            (Included(low), Unbounded) => return format!("of at least {low}"),
            (Included(low), _) => format!("from {low}"),
            (Excluded(low), _) => format!("above {low}"),
            (Unbounded, _) => String::new(),
        };
        let high = match self.1 {
            Included(high) => format!("to {high}"),
            Excluded(high) => format!("to below {high}"),
            Unbounded => String::new(),
        };
        [low, high].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
    }
}

impl Kind {
    fn expected(&self) -> String {
        match self {
            Self::Flag => "true or false".to_owned(),
            Self::Text => "a text".to_owned(),
            Self::Integer(range) if *range.end() == i64::MAX => {
                format!("a whole number of at least {}", range.start())
            }
            Self::Integer(range) => {
                format!("a whole number from {} to {}", range.start(), range.end())
            }
            Self::Number(range) => format!("a number {}", range.expected()).trim_end().to_owned(),
            Self::Numbers(count, range) => {
                let count = match (count.start(), count.end()) {
                    (low, high) if low == high => low.to_string(),
                    (low, high) => format!("{low} to {high}"),
                };
                let range = range.expected();
                let each = if range.is_empty() { String::new() } else { format!(", each {range}") };
                format!("a list of {count} numbers{each}")
            }
            Self::Choice(names) => format!("one of {}", names.join(", ")),
            Self::Choices(names) => format!("a list of names out of {}", names.join(", ")),
            Self::Factors(names, range) => {
                format!("a table from names out of {} to numbers {}", names.join(", "), range.expected())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance_counts_changes() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("steps", "steps"), 0);
    }

    #[test]
    fn a_misplaced_key_is_found_in_its_own_section() {
        assert_eq!(nearest("train", "lr"), "optimizer.lr");
        assert_eq!(nearest("train", "batchsize"), "train.batch_size");
        assert_eq!(nearest("", "sed"), "seed");
        assert_eq!(nearest_section("optimiser"), "optimizer");
    }

    #[test]
    fn resumable_keys_are_keys() {
        let is_key = |name: &&str| KEYS.iter().any(|key| full_name(key.section, key.name) == *name);
        assert!(RESUMABLE.iter().all(is_key));
    }

    #[test]
    fn every_key_has_a_known_section() {
        assert!(KEYS.iter().all(|key| key.section.is_empty() || SECTIONS.contains(&key.section)));
    }
}
