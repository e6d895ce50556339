//! The rotary embedding in `config.json`: `rope_theta` with `rope_scaling`, or transformers 5's `rope_parameters`.

use std::fmt::Display;

use serde_json::Value;

use super::fields::Fields;
use crate::config::{Model, RopeScaling};

/// Everything that a kind of scaling may say; what a kind does not read, transformers ignores.
const KNOWN: [&str; 15] = [
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "finetuned",
];

/// An object of scaling, and its name in `config.json`.
struct Rope<'a> {
    name: &'static str,
    fields: Fields<'a>,
}

/// Sets the rotary embedding's keys; `positions` are those that the model was trained for.
pub fn read(config: &Fields<'_>, positions: Option<usize>, model: &mut Model) -> Result<(), String> {
    let scaling = object(config, "rope_scaling")?;
    let parameters = object(config, "rope_parameters")?;
    if let (Some(one), Some(other)) = (&scaling, &parameters) {
        same(one, other)?;
    }
    let rope = scaling.or(parameters).unwrap_or(Rope { name: "rope_parameters", fields: Fields(&Value::Null) });
    let inner = &rope.fields;
    refuse_partial(&[config, inner])?;
    let theta = agreed("rope_theta", config.number("rope_theta")?, inner.number("rope_theta")?)?;
    model.rope_theta = theta.unwrap_or(model.rope_theta);
    model.rope_scaling = match rope.kind()? {
        "default" => return Ok(()),
        "linear" => RopeScaling::Linear,
        "llama3" => RopeScaling::Llama3,
        "yarn" => RopeScaling::Yarn,
        other => {
            return Err(format!(
                "found {} of type {other:?}, expected \"default\", \"linear\", \"llama3\" or \"yarn\"",
                rope.name
            ));
        }
    };
    if model.rope_scaling == RopeScaling::Linear {
        model.rope_factor = Some(rope.needed("factor")?);
        return Ok(());
    }
    let original = |fields: &Fields<'_>| fields.count("original_max_position_embeddings");
    let original = agreed("original_max_position_embeddings", original(config)?, original(inner)?)?.or(positions);
    let original = original.ok_or_else(|| format!("found no {}.original_max_position_embeddings, expected one", rope.name))?;
    model.rope_original_seq_len = Some(original);
    if model.rope_scaling == RopeScaling::Llama3 {
        model.rope_factor = Some(rope.needed("factor")?);
        model.rope_low_freq_factor = Some(rope.needed("low_freq_factor")?);
        model.rope_high_freq_factor = Some(rope.needed("high_freq_factor")?);
        return Ok(());
    }
    yarn(&rope, positions, original, model)
}

fn yarn(rope: &Rope<'_>, positions: Option<usize>, original: usize, model: &mut Model) -> Result<(), String> {
    // A factor of null is the ratio of the lengths.
    let is_null = rope.fields.0.get("factor").is_some_and(Value::is_null);
    let factor = match positions.filter(|_| is_null) {
        Some(positions) => positions as f64 / original as f64,
        None => rope.needed("factor")?,
    };
    if rope.fields.0.get("truncate").is_some_and(|truncate| *truncate != true) {
        return Err(format!("found {}.truncate {}, expected true", rope.name, rope.fields.0["truncate"]));
    }
    // transformers reads a zero as if it were not there.
    let number = |name: &str| Ok::<_, String>(rope.fields.number(name)?.filter(|number| *number != 0.0));
    let scale = |times: f64| if factor <= 1.0 { 1.0 } else { 0.1 * times * factor.ln() + 1.0 };
    model.rope_attention_factor = match (rope.fields.number("attention_factor")?, number("mscale")?, number("mscale_all_dim")?) {
        (Some(given), ..) => Some(given),
        (None, Some(mscale), Some(all)) => Some(scale(mscale) / scale(all)),
        // The default is filled in with the others.
        _ => None,
    };
    model.rope_beta_fast = number("beta_fast")?;
    model.rope_beta_slow = number("beta_slow")?;
    model.rope_factor = Some(factor);
    Ok(())
}

/// The object of that name; an empty one is none.
fn object<'a>(config: &Fields<'a>, name: &'static str) -> Result<Option<Rope<'a>>, String> {
    let Some(value) = config.value(name) else { return Ok(None) };
    let object = value.as_object().ok_or_else(|| format!("found {name} {value}, expected an object"))?;
    if let Some((key, _)) = object.iter().find(|(key, _)| !KNOWN.contains(&key.as_str())) {
        return Err(format!("found {name}.{key}, expected keys of the kinds default, linear, llama3 and yarn only"));
    }
    Ok((!object.is_empty()).then_some(Rope { name, fields: Fields(value) }))
}

/// Refuses two objects that say different things; `rope_theta` is looked at apart.
fn same(one: &Rope<'_>, other: &Rope<'_>) -> Result<(), String> {
    let differs =
        |key: &&str| !["rope_type", "type", "rope_theta"].contains(key) && one.fields.value(key) != other.fields.value(key);
    let key = if one.kind()? == other.kind()? { KNOWN.iter().copied().find(differs) } else { Some("rope_type") };
    let theta = |rope: &Rope<'_>| rope.fields.number("rope_theta");
    let key = match (theta(one)?, theta(other)?) {
        (Some(one), Some(other)) if one != other => Some("rope_theta"),
        _ => key,
    };
    key.map_or(Ok(()), |key| Err(format!("found {} and {} with another {key}, expected the same", one.name, other.name)))
}

/// A field of `config.json` itself or of its object of scaling; where both have it, it must be the same.
fn agreed<T: PartialEq + Display>(name: &str, outer: Option<T>, inner: Option<T>) -> Result<Option<T>, String> {
    match (outer, inner) {
        (Some(outer), Some(inner)) if outer != inner => {
            Err(format!("found {name} {outer} and, with the rotary embedding's other keys, {inner}, expected the same"))
        }
        (outer, inner) => Ok(outer.or(inner)),
    }
}

/// Only whole heads are rotated here.
fn refuse_partial(objects: &[&Fields<'_>]) -> Result<(), String> {
    for fields in objects {
        if let Some(share) = fields.number("partial_rotary_factor")?.filter(|share| *share != 1.0) {
            return Err(format!("found partial_rotary_factor {share}, expected 1"));
        }
    }
    Ok(())
}

impl<'a> Rope<'a> {
    fn kind(&self) -> Result<&'a str, String> {
        match (self.fields.text("rope_type")?, self.fields.text("type")?) {
            (Some(one), Some(other)) if one != other => {
                Err(format!("found {}.rope_type {one:?} and type {other:?}, expected the same", self.name))
            }
            (one, other) => Ok(one.or(other).unwrap_or("default")),
        }
    }

    fn needed(&self, key: &str) -> Result<f64, String> {
        self.fields.number(key)?.ok_or_else(|| format!("found no {}.{key}, expected one", self.name))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(config: &Value) -> Result<Model, String> {
        let mut model = Model::default();
        super::read(&Fields(config), Some(64), &mut model)?;
        Ok(model)
    }

    #[test]
    fn both_forms_say_the_same() {
        let llama3 = json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4.0});
        let older = read(&json!({"rope_theta": 5e5, "rope_scaling": llama3})).expect("a known kind");
        let mut newer = llama3.clone();
        newer["rope_theta"] = json!(500_000);
        newer["original_max_position_embeddings"] = json!(64);
        assert_eq!(read(&json!({"rope_parameters": newer})).expect("a known kind"), older);
        assert_eq!((older.rope_factor, older.rope_original_seq_len, older.rope_theta), (Some(8.0), Some(64), 5e5));
        let both = json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 5e5}});
        assert_eq!(read(&both).expect("the same twice").rope_factor, Some(2.0));
        let empty = read(&json!({"rope_scaling": {}, "rope_parameters": null})).expect("none at all");
        assert_eq!(empty, Model::default());
    }

    #[test]
    fn yarns_factors_are_those_of_transformers() {
        let yarn = |more: Value| {
            let mut scaling = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16});
            scaling.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            read(&json!({"rope_scaling": scaling})).expect("a known kind")
        };
        assert_eq!(yarn(json!({})).rope_attention_factor, None);
        assert_eq!(yarn(json!({"mscale": 2.0})).rope_attention_factor, None);
        let both = yarn(json!({"mscale": 2.0, "mscale_all_dim": 1.0})).rope_attention_factor;
        assert!((both.expect("a factor") - (0.2 * 4f64.ln() + 1.0) / (0.1 * 4f64.ln() + 1.0)).abs() < 1e-15);
        assert_eq!(yarn(json!({"mscale": 2.0, "mscale_all_dim": 1.0, "attention_factor": 1.5})).rope_attention_factor, Some(1.5));
        assert_eq!(yarn(json!({"factor": null})).rope_factor, Some(4.0), "64 / 16");
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let cases = [
            (json!({"rope_scaling": {"type": "dynamic", "factor": 2}}), "found rope_scaling of type \"dynamic\""),
            (json!({"rope_parameters": {"rope_type": "longrope"}}), "found rope_parameters of type \"longrope\""),
            (json!({"rope_scaling": "linear"}), "found rope_scaling \"linear\", expected an object"),
            (json!({"rope_scaling": {"type": "linear"}}), "found no rope_scaling.factor"),
            (json!({"rope_scaling": {"type": "llama3", "factor": 2}}), "found no rope_scaling.low_freq_factor"),
            (json!({"rope_scaling": {"type": "linear", "rope_type": "yarn"}}), "rope_type \"yarn\" and type \"linear\""),
            (json!({"rope_scaling": {"type": "yarn", "factor": 2, "truncate": false}}), "found rope_scaling.truncate false"),
            (json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}), "found rope_parameters.full_attention"),
            (json!({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}), "found rope_theta 10000 and"),
            (json!({"partial_rotary_factor": 0.5}), "found partial_rotary_factor 0.5, expected 1"),
            (json!({"rope_parameters": {"partial_rotary_factor": 0.5}}), "found partial_rotary_factor 0.5, expected 1"),
            (
                json!({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"type": "linear", "factor": 4}}),
                "found rope_scaling and rope_parameters with another factor",
            ),
        ];
        for (config, expected) in cases {
            let problem = read(&config).expect_err("not to be read");
            assert!(problem.contains(expected), "{problem}");
        }
    }
}
