//! The configuration's reference, docs/configuration.md, from the doc comments of its structs and the list of its keys. A test keeps the
//! file in step; with UPDATE_DOCS=1 in the environment it writes the file instead.

use std::fmt::Write;

use toml::Value;

use super::schema::{KEYS, Key, SECTIONS, find};
use super::{Config, Pc};

const SOURCE: &str = include_str!("sections.rs");

/// Defaults that depend on other keys or files.
const DEPENDENT: [(&str, &str, &str); 15] = [
    ("model", "preset", "none"),
    ("model", "kv_heads", "`heads`"),
    ("model", "head_dim", "`dim` / `heads`"),
    ("model", "rope_factor", "none"),
    ("model", "rope_original_seq_len", "none"),
    ("model", "rope_low_freq_factor", "`1.0`"),
    ("model", "rope_high_freq_factor", "`4.0`"),
    ("model", "rope_beta_fast", "`32.0`"),
    ("model", "rope_beta_slow", "`1.0`"),
    ("model", "rope_attention_factor", "0.1·ln(`rope_factor`) + 1"),
    ("model", "intermediate_size", "8·dim/3, rounded up to a multiple of 256"),
    ("model", "vocab", "the tokenizer's; of a preset without one, 32000"),
    ("model", "init_scale", "none"),
    ("pc", "coefficients", "the level's"),
    ("optimizer", "ns_steps", "5; 8 for `polar_express`"),
];

/// Doc comments of a struct and its fields.
struct Documented<'a> {
    text: String,
    fields: Vec<(&'a str, String)>,
}

/// The struct of that name in the source.
fn documented(name: &str) -> Documented<'static> {
    let mut comment = String::new();
    let mut found: Option<Documented<'static>> = None;
    for line in SOURCE.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            if !comment.is_empty() {
                comment.push(' ');
            }
            comment.push_str(text.trim());
        } else if line == format!("pub struct {name} {{") {
            found = Some(Documented { text: std::mem::take(&mut comment), fields: Vec::new() });
        } else if line == "}" && found.is_some() {
            break;
        } else if let (Some(found), Some((field, _))) =
            (&mut found, line.strip_prefix("pub ").and_then(|rest| rest.split_once(':')))
        {
            found.fields.push((field, std::mem::take(&mut comment)));
        } else if !line.starts_with("#[") {
            comment.clear();
        }
    }
    found.unwrap_or_else(|| panic!("no struct {name} in config/sections.rs"))
}

/// Without rustdoc's links.
fn plain(text: &str) -> String {
    text.replace("[`", "`").replace("`]", "`")
}

fn default_of(key: &Key, defaults: &toml::Table) -> String {
    if let Some((.., text)) = DEPENDENT.iter().find(|(section, name, _)| (*section, *name) == (key.section, key.name)) {
        return (*text).to_owned();
    }
    let table = if key.section.is_empty() { Some(defaults) } else { defaults.get(key.section).and_then(Value::as_table) };
    let value = table.and_then(|table| table.get(key.name));
    format!("`{}`", value.unwrap_or_else(|| panic!("{}.{} has no default", key.section, key.name)))
}

fn reference() -> String {
    let config = Config { pc: Some(Pc::default()), ..Config::default() };
    let defaults: toml::Table = config.to_toml().parse().expect("TOML");
    let mut text = "# Configuration\n\nGenerated from the doc comments of `examples/llama_pc/src/config/sections.rs`; do not edit by hand. `train --config \
                    FILE.toml` reads these keys, and `--set section.key=value` overrides one. An unknown key is an error that names the nearest \
                    known one. The run's folder keeps the resolved configuration as `config.toml`.\n"
        .to_owned();
    for section in [""].iter().chain(&SECTIONS) {
        let name = if section.is_empty() { "Config".to_owned() } else { section[..1].to_uppercase() + &section[1..] };
        let documented = documented(&name);
        let title = if section.is_empty() { "Top level".to_owned() } else { format!("`[{section}]`") };
        let _ = write!(
            text,
            "\n## {title}\n\n{}\n\n| key | meaning | value | default |\n|---|---|---|---|\n",
            plain(&documented.text)
        );
        for (field, comment) in &documented.fields {
            let Some(key) = find(section, field) else { continue };
            let (meaning, expected, default) = (plain(comment), key.expected(), default_of(key, &defaults));
            let _ = writeln!(text, "| `{field}` | {meaning} | {expected} | {default} |");
        }
    }
    text
}

#[test]
fn every_key_is_documented() {
    let text = reference();
    for key in &KEYS {
        let row = text.lines().find(|line| line.starts_with(&format!("| `{}` | ", key.name)));
        let row = row.unwrap_or_else(|| panic!("{} has no row", key.name));
        assert!(!row.contains("|  |"), "a cell is empty: {row}");
    }
}

#[test]
fn the_reference_in_docs_is_in_step() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, reference()).expect("the reference is written");
    }
    let found = std::fs::read_to_string(path).expect("docs/configuration.md");
    assert!(found == reference(), "docs/configuration.md is out of step: run UPDATE_DOCS=1 cargo test -p llama_pc reference");
}
