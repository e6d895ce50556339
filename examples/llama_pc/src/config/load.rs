//! From TOML and `--set` to a checked [`Config`].
//!
//! Each source is checked against the schema while its name is still known; then the sources are merged, the defaults that
//! depend on other keys are filled in, and constraints between keys are checked last.

use std::collections::BTreeMap;
use std::path::Path;

use polytape::MAX_HEAD_DIM;
use polytape::llama::{LlamaConfig, PRESET_VOCAB, PRESETS};
use polytape::optim::ScheduleKind;
use polytape::spectral::NewtonSchulz;
use serde::de::{Deserialize, Deserializer, Error as _, IntoDeserializer};
use toml::{Table, Value};

use super::rope;
use super::schema::{self, SECTIONS};
use super::{Config, Model, Target};
use crate::terminal::failure::Failure;

impl Config {
    /// Reads the file, if one is given, applies each `section.key=value` in order, and checks the result.
    pub fn load(file: Option<&Path>, sets: &[String]) -> Result<Self, Failure> {
        let mut table = match file {
            Some(path) => read(path)?,
            None => Table::new(),
        };
        for set in sets {
            apply(&mut table, set)?;
        }
        resolve(table).map_err(Failure::usage)
    }

    /// [`Config::load`] for a resumed run: only some keys may change.
    pub fn resume(file: &Path, sets: &[String]) -> Result<Self, Failure> {
        let config = Self::load(Some(file), sets)?;
        for set in sets {
            let key = set.split('=').next().unwrap_or_default().trim();
            if !schema::RESUMABLE.contains(&key) {
                let allowed = schema::RESUMABLE.join(", ");
                return Err(Failure::usage(format!("--set {set}: found {key}, expected a key that a resumed run may change"))
                    .hint(format!("these may: {allowed}; `train --init` begins a new run with these weights")));
            }
        }
        Ok(config)
    }

    /// Resolves the vocabulary size: the key, else the tokenizer's, else a preset's 32,000.
    pub fn resolve_vocab(&mut self, tokenizer: Option<usize>) -> Result<usize, Failure> {
        let preset = self.model.preset.take().map(|_| PRESET_VOCAB);
        let vocab = self.model.vocab.or(tokenizer).or(preset).ok_or_else(|| {
            let train = &self.data.train;
            Failure::usage(format!(
                "model.vocab is not set and data.train = {train:?} has no tokenizer.json beside it to take it from"
            ))
            .hint("`prepare` writes one; or give the number of tokens: --set model.vocab=N")
        })?;
        if let Some(tokens) = tokenizer.filter(|tokens| *tokens > vocab) {
            return Err(Failure::usage(format!("model.vocab: found {vocab}, expected at least the tokenizer's {tokens}")));
        }
        self.model.vocab = Some(vocab);
        Ok(vocab)
    }

    /// Checks a configuration that was not read from TOML as if it had been.
    pub fn check(&mut self) -> Result<(), String> {
        let table: Table = self.to_toml().parse().expect("bug: a written configuration is not TOML");
        check_table(&table).map_err(|error| error.message)?;
        rope::resolve(&mut self.model)?;
        check_whole(self)
    }

    /// The configuration as TOML, with every key that has a value.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("bug: the configuration does not serialise")
    }
}

fn read(path: &Path) -> Result<Table, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| Failure::io("read", path, &error))?;
    let mut table: Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        let reason = error.message().replace('\n', ", ");
        Failure::usage(format!("{}: line {line}: {reason}", path.display()))
    })?;
    let within = |error: KeyError| error.within(&path.display().to_string());
    rename_keys(&mut table).map_err(within)?;
    spread_rope_scaling(&mut table).map_err(|problem| within(KeyError::value(problem)))?;
    check_table(&table).map_err(within)?;
    Ok(table)
}

/// Renames keys that are given by their old names.
fn rename_keys(table: &mut Table) -> Result<(), KeyError> {
    for (section, old, new) in schema::RENAMED {
        let Some(Value::Table(keys)) = table.get_mut(section) else { continue };
        let Some(value) = keys.remove(old) else { continue };
        if keys.insert(new.to_owned(), value).is_some() {
            return Err(KeyError::value(format!(
                "{section}: found {old} and {new}, expected one of them: {old} is its old name"
            )));
        }
    }
    Ok(())
}

/// Replaces a `rope_scaling` that is a table by the keys that it stands for.
fn spread_rope_scaling(table: &mut Table) -> Result<(), String> {
    let Some(Value::Table(model)) = table.get_mut("model") else { return Ok(()) };
    let Some(Value::Table(entries)) = model.get("rope_scaling").cloned() else { return Ok(()) };
    model.remove("rope_scaling");
    for (key, value) in rope::keys_of(entries)? {
        if model.contains_key(&key) {
            return Err(format!("model.{key}: found a value here and one in rope_scaling, expected one"));
        }
        model.insert(key, value);
    }
    Ok(())
}

/// Checks every key of the table against the schema.
fn check_table(table: &Table) -> Result<(), KeyError> {
    for (name, value) in table {
        match value {
            Value::Table(section) if SECTIONS.contains(&name.as_str()) => {
                for (key, value) in section {
                    check_key(name, key, value)?;
                }
            }
            Value::Table(_) if schema::find("", name).is_none() => {
                let nearest = schema::nearest_section(name);
                return Err(KeyError::unknown(format!("unknown section [{name}]"), format!("[{nearest}]")));
            }
            _ if SECTIONS.contains(&name.as_str()) => {
                return Err(KeyError::value(format!("{name}: found {value}, expected a section [{name}]")));
            }
            _ => check_key("", name, value)?,
        }
    }
    Ok(())
}

fn check_key(section: &str, name: &str, value: &Value) -> Result<(), KeyError> {
    match schema::find(section, name) {
        Some(key) => key.check(value).map_err(KeyError::value),
        None => {
            let place = if section.is_empty() { "at the top level".to_owned() } else { format!("in [{section}]") };
            let nearest = schema::nearest(section, name);
            Err(KeyError::unknown(format!("unknown key \"{name}\" {place}"), nearest))
        }
    }
}

/// What is wrong with a key; the name of its source is added later.
struct KeyError {
    message: String,
    meant: Option<String>,
}

impl KeyError {
    fn value(message: String) -> Self {
        Self { message, meant: None }
    }

    fn unknown(message: String, meant: String) -> Self {
        Self { message, meant: Some(meant) }
    }

    fn within(self, source: &str) -> Failure {
        let failure = Failure::usage(format!("{source}: {}", self.message));
        match self.meant {
            Some(meant) => failure.hint(format!("did you mean {meant}?")),
            None => failure,
        }
    }
}

/// Applies one `section.key=value`. The value is read as TOML; what TOML cannot read is a string.
fn apply(table: &mut Table, set: &str) -> Result<(), Failure> {
    let source = format!("--set {set}");
    let (path, text) =
        set.split_once('=').ok_or_else(|| Failure::usage(format!("{source}: found no \"=\", expected section.key=value")))?;
    let (section, name) = path.trim().rsplit_once('.').unwrap_or(("", path.trim()));
    let name = schema::current_name(section, name);
    let text = text.trim();
    let value = format!("value = {text}")
        .parse::<Table>()
        .ok()
        .filter(|parsed| parsed.len() == 1)
        .and_then(|mut parsed| parsed.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()));
    let values = values_of(section, name, value).map_err(|error| error.within(&source))?;
    let keys = match section {
        "" => table,
        _ => {
            let keys = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            keys.as_table_mut().expect("bug: a section that is no table was not refused")
        }
    };
    for displaced in displaced(section, name) {
        keys.remove(*displaced);
    }
    keys.extend(values);
    Ok(())
}

/// What a `--set` sets: a key, or those that a table stands for, each checked.
fn values_of(section: &str, name: &str, value: Value) -> Result<Table, KeyError> {
    if !section.is_empty() && !SECTIONS.contains(&section) {
        let nearest = schema::nearest_section(section);
        return Err(KeyError::unknown(format!("unknown section [{section}]"), format!("[{nearest}]")));
    }
    let values = match value {
        Value::Table(entries) if (section, name) == ("model", "rope_scaling") => {
            rope::keys_of(entries).map_err(KeyError::value)?
        }
        value => Table::from_iter([(name.to_owned(), value)]),
    };
    values.iter().try_for_each(|(name, value)| check_key(section, name, value))?;
    Ok(values)
}

/// Keys that a `--set` of this one overrides, because they set the same thing.
fn displaced(section: &str, name: &str) -> &'static [&'static str] {
    match (section, name) {
        ("model", "preset") => &["dim", "layers", "heads", "kv_heads", "head_dim", "intermediate_size"],
        ("model", "rope_scaling") => &rope::KEYS,
        ("pc", "level") => &["coefficients"],
        ("pc", "coefficients") => &["level"],
        _ => &[],
    }
}

/// Fills in defaults that depend on other keys, then checks constraints between keys.
fn resolve(mut table: Table) -> Result<Config, String> {
    let has = |section: &str, name: &str| table.get(section).is_some_and(|keys| keys.get(name).is_some());
    let (kv_heads, intermediate_size) = (has("model", "kv_heads"), has("model", "intermediate_size"));
    let (head_dim, ns_steps) = (has("model", "head_dim"), has("optimizer", "ns_steps"));
    if let Some(Value::Table(model)) = table.get_mut("model") {
        fill_preset(model);
    }
    let mut config = Config::deserialize(table).map_err(|error| error.message().to_owned())?;
    if !kv_heads {
        config.model.kv_heads = config.model.heads;
    }
    if !head_dim {
        config.model.head_dim = head_dim_of(&config.model)?;
    }
    if !intermediate_size {
        config.model.intermediate_size = LlamaConfig::default_intermediate_size(config.model.dim);
    }
    if !ns_steps && config.optimizer.ns_coefficients == NewtonSchulz::PolarExpress {
        config.optimizer.ns_steps = 8;
    }
    if let Some(pc) = &mut config.pc {
        match (pc.level, &pc.coefficients) {
            (Some(_), Some(_)) => {
                return Err("pc: found level and coefficients, expected one of them".to_owned());
            }
            (None, None) => pc.level = Some(4),
            _ => {}
        }
    }
    rope::resolve(&mut config.model)?;
    check_whole(&config)?;
    Ok(config)
}

/// The width of the heads that share `dim` among them.
fn head_dim_of(model: &Model) -> Result<usize, String> {
    let (dim, heads) = (model.dim, model.heads);
    let problem = match dim / heads {
        _ if !dim.is_multiple_of(2 * heads) => {
            format!("a multiple of 2·heads = {} (rotary turns pairs within a head), or model.head_dim", 2 * heads)
        }
        width if width > MAX_HEAD_DIM => format!("at most {MAX_HEAD_DIM}·heads = {}, or model.head_dim", MAX_HEAD_DIM * heads),
        width => return Ok(width),
    };
    Err(format!("model.dim: found {dim}, expected {problem}"))
}

/// Fills in the preset's sizes where the table does not set them.
fn fill_preset(model: &mut Table) {
    let preset = model.get("preset").and_then(Value::as_str);
    if let Some((_, dim, layers, heads)) = PRESETS.iter().find(|(name, ..)| preset == Some(name)) {
        for (name, size) in [("dim", dim), ("layers", layers), ("heads", heads)] {
            model.entry(name).or_insert(Value::Integer(*size as i64));
        }
    }
}

fn check_whole(config: &Config) -> Result<(), String> {
    let model = &config.model;
    let (heads, kv_heads, head_dim) = (model.heads, model.kv_heads, model.head_dim);
    if !head_dim.is_multiple_of(2) {
        return Err(format!("model.head_dim: found {head_dim}, expected an even number (rotary turns pairs within a head)"));
    }
    if !heads.is_multiple_of(kv_heads) {
        return Err(format!("model.kv_heads: found {kv_heads}, expected a divisor of heads = {heads}"));
    }
    let (replicas, accumulation) = (config.train.replicas, config.train.grad_accumulation);
    if !replicas.is_power_of_two() || !accumulation.is_multiple_of(replicas) {
        return Err(format!(
            "train.replicas: found {replicas}, expected a power of two that divides train.grad_accumulation = {accumulation}"
        ));
    }
    let (decay, steps) = (config.schedule.decay_steps, config.train.steps);
    if config.schedule.kind == ScheduleKind::Wsd && decay > steps {
        return Err(format!("schedule.decay_steps: found {decay}, expected at most train.steps = {steps}"));
    }
    Ok(())
}

/// Expands the groups of `pc.targets`; the result is sorted and has no duplicates.
pub(super) fn targets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Target>, D::Error> {
    let mut targets = Vec::new();
    for name in Vec::<String>::deserialize(deserializer)? {
        targets.extend(named(&name)?);
    }
    targets.sort();
    targets.dedup();
    Ok(targets)
}

/// Expands the groups of `model.init_scale`; a matrix that gets two factors is an error.
pub(super) fn factors<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<Target, f64>, D::Error> {
    let mut factors = BTreeMap::new();
    for (name, factor) in BTreeMap::<String, f64>::deserialize(deserializer)? {
        for target in named(&name)? {
            if factors.insert(target, factor).is_some() {
                let twice = Value::try_from(target).expect("bug: a target does not serialise");
                return Err(D::Error::custom(format!("model.init_scale: found two factors of {twice}, expected one")));
            }
        }
    }
    Ok(factors)
}

/// The matrices that a name stands for.
fn named<E: serde::de::Error>(name: &str) -> Result<Vec<Target>, E> {
    match name {
        "qk" => Ok(vec![Target::Q, Target::K]),
        "ffn" => Ok(vec![Target::Gate, Target::Up, Target::Down]),
        single => Target::deserialize(single.into_deserializer()).map(|target| vec![target]),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
