//! Reads a document field by field, knows each one's path, and refuses those that
//! nobody read.

use std::collections::HashMap;

use longship_proto::Failure;
use serde_json::{Map, Value};

/// A mapping in a document, and where it is.
#[derive(Debug)]
pub(crate) struct Fields {
    path: String,
    left: Map<String, Value>,
}

impl Fields {
    /// # Errors
    /// `Invalid` at `path` where `value` is no mapping.
    pub(crate) fn of(path: &str, value: Value) -> Result<Self, Failure> {
        match value {
            Value::Object(left) => Ok(Self {
                path: path.to_owned(),
                left,
            }),
            other => Err(wrong_type(path, "a mapping", &other)),
        }
    }

    /// The path of the field `key`.
    pub(crate) fn path(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// Takes a field; one that is null counts as absent, as in Kubernetes.
    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        self.left.remove(key).filter(|value| !value.is_null())
    }

    pub(crate) fn string(&mut self, key: &str) -> Result<Option<String>, Failure> {
        let path = self.path(key);
        self.take(key)
            .map(|value| as_string(&path, value))
            .transpose()
    }

    /// A string that has to be there.
    pub(crate) fn required(&mut self, key: &str) -> Result<String, Failure> {
        match self.string(key)? {
            Some(text) if !text.is_empty() => Ok(text),
            _ => Err(Failure::invalid(self.path(key), "is missing")),
        }
    }

    pub(crate) fn strings(&mut self, key: &str) -> Result<Vec<String>, Failure> {
        self.list(key)?
            .into_iter()
            .map(|(path, value)| as_string(&path, value))
            .collect()
    }

    pub(crate) fn string_map(&mut self, key: &str) -> Result<HashMap<String, String>, Failure> {
        let path = self.path(key);
        let Some(value) = self.take(key) else {
            return Ok(HashMap::new());
        };
        let fields = Self::of(&path, value)?;
        fields
            .left
            .into_iter()
            .map(|(key, value)| {
                let text = as_string(&format!("{path}.{key}"), value)?;
                Ok((key, text))
            })
            .collect()
    }

    pub(crate) fn u32(&mut self, key: &str) -> Result<Option<u32>, Failure> {
        let path = self.path(key);
        self.take(key)
            .map(|value| {
                value
                    .as_u64()
                    .and_then(|number| u32::try_from(number).ok())
                    .ok_or_else(|| wrong_type(&path, "a whole number from 0", &value))
            })
            .transpose()
    }

    pub(crate) fn i32(&mut self, key: &str) -> Result<Option<i32>, Failure> {
        let path = self.path(key);
        self.take(key)
            .map(|value| {
                value
                    .as_i64()
                    .and_then(|number| i32::try_from(number).ok())
                    .ok_or_else(|| wrong_type(&path, "a whole number", &value))
            })
            .transpose()
    }

    pub(crate) fn bool(&mut self, key: &str) -> Result<Option<bool>, Failure> {
        let path = self.path(key);
        self.take(key)
            .map(|value| {
                let flag = value.as_bool();
                flag.ok_or_else(|| wrong_type(&path, "true or false", &value))
            })
            .transpose()
    }

    /// A mapping inside this one.
    pub(crate) fn fields(&mut self, key: &str) -> Result<Option<Self>, Failure> {
        let path = self.path(key);
        self.take(key)
            .map(|value| Self::of(&path, value))
            .transpose()
    }

    /// The items of a list, each with its path; empty where there is none.
    pub(crate) fn list(&mut self, key: &str) -> Result<Vec<(String, Value)>, Failure> {
        let path = self.path(key);
        match self.take(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => Ok(items
                .into_iter()
                .enumerate()
                .map(|(index, item)| (format!("{path}[{index}]"), item))
                .collect()),
            Some(other) => Err(wrong_type(&path, "a list", &other)),
        }
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// `Invalid` at a field that nobody took.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(key) => Err(Failure::invalid(
                self.path(key),
                "is no field that is known",
            )),
        }
    }
}

/// A string; anything else is refused, since YAML's guesses (`on`, `1.10`, `0777`)
/// are seldom what was meant.
pub(crate) fn as_string(path: &str, value: Value) -> Result<String, Failure> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(path, "a string (write it in quotes)", &other)),
    }
}

pub(crate) fn wrong_type(path: &str, wanted: &str, got: &Value) -> Failure {
    let got = match got {
        Value::Null => "nothing".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("`{text}`"),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
    };
    Failure::invalid(path, format!("must be {wanted}, not {got}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_lead_to_the_field() {
        let mut root = Fields::of("", json!({"spec": {"list": ["a", 1]}})).unwrap();
        let mut spec = root.fields("spec").unwrap().unwrap();
        let failure = spec.strings("list").unwrap_err();
        assert_eq!(failure.field, "spec.list[1]");
        assert_eq!(
            failure.message,
            "must be a string (write it in quotes), not 1"
        );
    }

    #[test]
    fn what_nobody_read_is_refused() {
        let mut fields = Fields::of("spec", json!({"a": null, "b": 1})).unwrap();
        assert!(fields.take("a").is_none());
        assert_eq!(fields.finish().unwrap_err().field, "spec.b");
    }

    #[test]
    fn numbers_have_limits() {
        let mut fields = Fields::of("", json!({"a": 4_294_967_296_u64, "b": -1, "c": 7})).unwrap();
        assert!(fields.u32("a").is_err());
        assert!(fields.u32("b").is_err());
        assert_eq!(fields.u32("c").unwrap(), Some(7));
    }
}
