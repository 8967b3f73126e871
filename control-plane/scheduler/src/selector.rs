//! Labels, and selectors over them, by Kubernetes' rules.

use std::collections::{BTreeMap, BTreeSet};

/// A pod's labels.
pub type Labels = BTreeMap<String, String>;

/// Which pods are meant: those with all of these labels that meet all of these
/// expressions. An empty selector means every pod of the tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selector {
    /// Labels with their values.
    pub labels: Labels,
    /// More conditions.
    pub expressions: Vec<Expression>,
}

/// A condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Expression {
    /// The label's key.
    pub key: String,
    /// What must hold for it.
    pub operator: Operator,
}

/// What must hold for a label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operator {
    /// It has one of these values.
    In(BTreeSet<String>),
    /// It has none of these values, or is absent.
    NotIn(BTreeSet<String>),
    /// It is there.
    Exists,
    /// It is absent.
    DoesNotExist,
}

impl Selector {
    /// The pods with that label.
    #[must_use]
    pub fn label(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            labels: Labels::from([(key.into(), value.into())]),
            expressions: Vec::new(),
        }
    }

    /// Whether a pod with these labels is meant.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// As [`Selector::matches`], for labels that are kept in another way: `label` gives
    /// the value of a key.
    #[must_use]
    pub fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.labels
            .iter()
            .all(|(key, value)| label(key) == Some(value))
            && self
                .expressions
                .iter()
                .all(|one| one.operator.holds(label(&one.key)))
    }
}

impl Operator {
    fn holds(&self, value: Option<&str>) -> bool {
        match self {
            Operator::In(values) => value.is_some_and(|value| values.contains(value)),
            Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_mean_what_they_mean_in_kubernetes() {
        let labels = |pairs: &[(&str, &str)]| {
            let pairs = pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            pairs.collect::<Labels>()
        };
        let web = labels(&[("app", "web"), ("tier", "front")]);
        let values = |values: &[&str]| values.iter().map(|v| (*v).to_owned()).collect();
        let with = |key: &str, operator| Selector {
            labels: Labels::new(),
            expressions: vec![Expression {
                key: key.into(),
                operator,
            }],
        };
        for (selector, meant) in [
            (Selector::default(), true),
            (Selector::label("app", "web"), true),
            (Selector::label("app", "db"), false),
            (Selector::label("zone", "web"), false),
            (with("app", Operator::In(values(&["db", "web"]))), true),
            (with("gone", Operator::In(values(&["web"]))), false),
            (with("app", Operator::NotIn(values(&["web"]))), false),
            (with("gone", Operator::NotIn(values(&["web"]))), true),
            (with("tier", Operator::Exists), true),
            (with("tier", Operator::DoesNotExist), false),
            (with("gone", Operator::DoesNotExist), true),
        ] {
            assert_eq!(selector.matches(&web), meant, "{selector:?}");
        }
    }
}
