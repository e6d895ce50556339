//! A configuration as a flat list of keys, and the differences of two.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::{Config, schema};

/// `section.key` → its value in TOML.
pub type Keys = BTreeMap<String, String>;

/// A key that two configurations do not share.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference {
    pub key: String,
    /// `None` where the key has no value.
    pub found: Option<String>,
    pub expected: Option<String>,
}

impl Config {
    /// Every key that has a value.
    pub fn keys(&self) -> Keys {
        let table: Table = self.to_toml().parse().expect("bug: a written configuration is not TOML");
        let mut keys = Keys::new();
        for (name, value) in table {
            match value {
                Value::Table(section) => {
                    keys.extend(section.into_iter().map(|(key, value)| (format!("{name}.{key}"), value.to_string())))
                }
                value => drop(keys.insert(name, value.to_string())),
            }
        }
        keys
    }

    /// The keys without which weights are another network: `[model]`.
    pub fn model_keys(&self) -> Keys {
        self.keys_of(&["model."])
    }

    /// The keys without which the tensors of a checkpoint are another network: `[model]` and `[pc]`.
    pub fn weight_keys(&self) -> Keys {
        self.keys_of(&["model.", "pc."])
    }

    fn keys_of(&self, sections: &[&str]) -> Keys {
        let mut keys = self.keys();
        // The scale of weights before their first step says nothing of the network.
        keys.retain(|key, _| key != "model.init_scale" && sections.iter().any(|section| key.starts_with(section)));
        keys
    }
}

/// The keys whose values differ, in the order of the reference: a key comes before those derived from it. A key that `expected` lacks
/// did not exist when it was recorded; its default is expected.
pub fn differences(found: &Keys, expected: &Keys) -> Vec<Difference> {
    let defaults = Config::default().keys();
    let mut all: Vec<&String> = found.keys().chain(expected.keys()).collect();
    all.sort_by_key(|key| (schema::position(key), *key));
    all.dedup();
    let differs = |key: &String| {
        let (found, expected) = (found.get(key), expected.get(key).or_else(|| defaults.get(key)));
        (found != expected).then(|| Difference { key: key.clone(), found: found.cloned(), expected: expected.cloned() })
    };
    all.into_iter().filter_map(differs).collect()
}

/// A value, or that there is none.
pub fn shown(value: Option<&String>) -> &str {
    value.map_or("none", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_flat() {
        let keys = Config::default().keys();
        assert_eq!(
            (keys["seed"].as_str(), keys["model.dim"].as_str(), keys["schedule.kind"].as_str()),
            ("1", "256", "\"cosine\"")
        );
    }

    #[test]
    fn configurations_differ_by_name() {
        let config = |sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
            Config::load(None, &sets).expect("a good configuration")
        };
        let (plain, with_pc) = (config(&[]).weight_keys(), config(&["pc.level=2"]).weight_keys());
        assert!(differences(&plain, &plain).is_empty());
        let other = config(&["model.heads=8", "train.steps=7"]).weight_keys();
        let found: Vec<String> = differences(&other, &plain).into_iter().map(|difference| difference.key).collect();
        assert_eq!(found, ["model.heads", "model.kv_heads", "model.head_dim"]);
        let level = differences(&plain, &with_pc).into_iter().find(|difference| difference.key == "pc.level");
        assert_eq!(level, Some(Difference { key: "pc.level".into(), found: None, expected: Some("2".into()) }));
        assert!(differences(&with_pc, &plain).iter().any(|difference| difference.key == "pc.level"));
    }

    #[test]
    fn the_initial_scale_is_no_part_of_the_network() {
        let scaled = Config::load(None, &["model.init_scale={ o = 2 }".to_owned()]).expect("a good configuration");
        assert_eq!(scaled.weight_keys(), Config::default().weight_keys());
        assert_ne!(scaled.keys(), Config::default().keys());
    }

    #[test]
    fn a_key_that_was_not_recorded_had_its_default() {
        let mut recorded = Config::default().weight_keys();
        recorded.remove("model.qk_norm");
        let mut config = Config::default();
        assert!(differences(&config.weight_keys(), &recorded).is_empty());
        config.model.qk_norm = true;
        assert_eq!(differences(&config.weight_keys(), &recorded).len(), 1);
    }
}
