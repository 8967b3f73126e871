//! Label selectors in Kubernetes' syntax: `app=web,tier in (a,b),!canary`.

use std::collections::BTreeSet;
use std::collections::btree_map::Entry;

use longship_proto::Failure;
use longship_scheduler::{Expression, Operator, Selector};

use super::metadata::{label_key, label_value};
use super::names::shown;

/// The longest selector, in bytes.
const MAX_BYTES: usize = 4096;
/// Conditions of one selector, and values of one condition.
const MAX_CONDITIONS: usize = 64;

/// Reads a selector; an empty text means every pod.
///
/// # Errors
/// `INVALID` at `field`.
pub(crate) fn selector(field: &str, text: &str) -> Result<Selector, Failure> {
    if text.len() > MAX_BYTES {
        return Err(Failure::invalid(
            field,
            format!("has {} bytes; at most {MAX_BYTES}", text.len()),
        ));
    }
    let words = words(text);
    let mut parser = Parser {
        field,
        text,
        words: &words,
    };
    let mut selector = Selector::default();
    if parser.words.is_empty() {
        return Ok(selector);
    }
    for count in 0.. {
        if count == MAX_CONDITIONS {
            return Err(parser.wrong(&format!("it has over {MAX_CONDITIONS} conditions")));
        }
        parser.condition(&mut selector)?;
        match parser.next() {
            None => break,
            Some(",") => {}
            Some(other) => return Err(parser.unexpected("`,` or the end", Some(other))),
        }
    }
    Ok(selector)
}

/// Signs and the words between them; spaces only separate.
fn words(text: &str) -> Vec<&str> {
    const SIGNS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", "<", ">"];
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
        let end = sign.map_or_else(
            || {
                let ends = |c: char| c.is_whitespace() || "=!(),<>".contains(c);
                rest.find(ends).unwrap_or(rest.len())
            },
            |sign| sign.len(),
        );
        let (word, after) = rest.split_at(end);
        words.push(word);
        rest = after.trim_start();
    }
    words
}

fn is_sign(word: &str) -> bool {
    word.starts_with(|c: char| "=!(),<>".contains(c))
}

struct Parser<'a> {
    field: &'a str,
    text: &'a str,
    words: &'a [&'a str],
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let (first, rest) = self.words.split_first()?;
        self.words = rest;
        Some(first)
    }

    fn peek(&self) -> Option<&'a str> {
        self.words.first().copied()
    }

    fn wrong(&self, what: &str) -> Failure {
        let text = shown(self.text);
        Failure::invalid(self.field, format!("`{text}` is no label selector: {what}"))
    }

    fn unexpected(&self, wanted: &str, got: Option<&str>) -> Failure {
        let got = got.map_or_else(|| "the end".into(), |got| format!("`{}`", shown(got)));
        self.wrong(&format!("expected {wanted}, found {got}"))
    }

    fn key(&mut self) -> Result<String, Failure> {
        match self.next() {
            Some(key) if !is_sign(key) => {
                label_key(|| self.field.to_owned(), key)?;
                Ok(key.to_owned())
            }
            other => Err(self.unexpected("a label's key", other)),
        }
    }

    /// A value; nothing at all is the empty one.
    fn value(&mut self) -> Result<String, Failure> {
        match self.peek() {
            Some(value) if !is_sign(value) => {
                self.next();
                label_value(|| self.field.to_owned(), value)?;
                Ok(value.to_owned())
            }
            None | Some("," | ")") => Ok(String::new()),
            other => Err(self.unexpected("a value", other)),
        }
    }

    fn values(&mut self) -> Result<BTreeSet<String>, Failure> {
        match self.next() {
            Some("(") => {}
            other => return Err(self.unexpected("`(`", other)),
        }
        let mut values = BTreeSet::new();
        loop {
            values.insert(self.value()?);
            if values.len() > MAX_CONDITIONS {
                return Err(self.wrong(&format!("a condition has over {MAX_CONDITIONS} values")));
            }
            match self.next() {
                Some(",") => {}
                Some(")") => return Ok(values),
                other => return Err(self.unexpected("`,` or `)`", other)),
            }
        }
    }

    fn condition(&mut self, selector: &mut Selector) -> Result<(), Failure> {
        if self.peek() == Some("!") {
            self.next();
            let key = self.key()?;
            let operator = Operator::DoesNotExist;
            selector.expressions.push(Expression { key, operator });
            return Ok(());
        }
        let key = self.key()?;
        let operator = match self.peek() {
            None | Some(",") => Operator::Exists,
            Some("=" | "==") => {
                self.next();
                let value = self.value()?;
                // The first value of a label has a place of its own, by which it is
                // found quickly.
                if let Entry::Vacant(place) = selector.labels.entry(key.clone()) {
                    place.insert(value);
                    return Ok(());
                }
                Operator::In(BTreeSet::from([value]))
            }
            Some("!=") => {
                self.next();
                Operator::NotIn(BTreeSet::from([self.value()?]))
            }
            Some("in") => {
                self.next();
                Operator::In(self.values()?)
            }
            Some("notin") => {
                self.next();
                Operator::NotIn(self.values()?)
            }
            Some("<" | ">") => return Err(self.wrong("labels have no order")),
            other => return Err(self.unexpected("`=`, `!=`, `in` or `notin`", other)),
        };
        selector.expressions.push(Expression { key, operator });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use longship_scheduler::Labels;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        let owned = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        owned.collect()
    }

    #[test]
    fn every_form_means_what_it_means_in_kubernetes() {
        let web = labels(&[
            ("app", "web"),
            ("tier", "front"),
            ("x.io/in", ""),
            ("in", "in"),
        ]);
        for (text, meant) in [
            ("", true),
            ("  ", true),
            ("app=web", true),
            ("app==web", true),
            (" app = web , tier=front", true),
            ("app=db", false),
            ("app!=db", true),
            ("gone!=db", true),
            ("app!=web", false),
            ("app in (db,web)", true),
            ("app in (db, cache)", false),
            ("app notin (db)", true),
            ("gone notin (db)", true),
            ("app", true),
            ("gone", false),
            ("!gone", true),
            ("! app", false),
            ("x.io/in=", true),
            ("x.io/in in ()", true),
            ("x.io/in in (a,)", true),
            ("x.io/in=,app=web", true),
            ("in=in", true),
            ("in in (in)", true),
            ("app=web,app=db", false),
            ("app=web,app!=db,app in (web),!canary", true),
        ] {
            let read = selector("s", text).unwrap();
            assert_eq!(read.matches(&web), meant, "{text}: {read:?}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused_with_its_field() {
        for text in [
            ",",
            "a=b,",
            "=b",
            "a=b=c",
            "a b",
            "a in",
            "a in b",
            "a in (b",
            "a in (b c)",
            "a in (b))",
            "!",
            "!a=b",
            "a<1",
            "a!",
            "a=(b)",
            "a b=c",
            "-a=b",
            "a=b b",
            "ü=b",
            "a=ü",
            &format!("a={}", "b".repeat(64)),
            &"a,".repeat(3000),
            &vec!["a"; 65].join(","),
            &format!(
                "a in ({})",
                (0..65).map(|n| n.to_string()).collect::<Vec<_>>().join(",")
            ),
        ] {
            let refused = selector("spec.s", text).unwrap_err();
            assert_eq!(refused.field, "spec.s", "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[a-c=!(), \\PC]{0,30}") {
            let _ = selector("s", &text);
        }
    }
}
