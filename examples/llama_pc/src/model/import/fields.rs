//! The fields of a JSON object, by name and kind.

use serde_json::Value;

/// The fields of an object of JSON; null is as if it were not there.
pub struct Fields<'a>(pub &'a Value);

impl<'a> Fields<'a> {
    pub fn value(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A field of a kind, which `take` recognizes.
    fn typed<T>(&self, name: &str, expected: &str, take: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, String> {
        let wrong = |value: &Value| format!("found {name} {value}, expected {expected}");
        self.value(name).map(|value| take(value).ok_or_else(|| wrong(value))).transpose()
    }

    pub fn count(&self, name: &str) -> Result<Option<usize>, String> {
        // TOML, which configurations are written in, has no larger ones.
        self.typed(name, "a whole number below 2^63", |value| usize::try_from(i64::try_from(value.as_u64()?).ok()?).ok())
    }

    pub fn number(&self, name: &str) -> Result<Option<f64>, String> {
        self.typed(name, "a number", Value::as_f64)
    }

    pub fn flag(&self, name: &str) -> Result<Option<bool>, String> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub fn text(&self, name: &str) -> Result<Option<&'a str>, String> {
        self.typed(name, "a text", Value::as_str)
    }

    pub fn needed(&self, name: &str) -> Result<usize, String> {
        self.count(name)?.ok_or_else(|| format!("found no {name}, expected one"))
    }
}
