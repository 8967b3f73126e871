//! One record a line: `CHECK\tKIND\tFIELD…\n`. CHECK is a hash of the rest in 16 hex
//! digits, so that a line that a crash cut off, or a disk damaged, is known.

/// One change of what the card holds or knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    Take {
        pod_uid: String,
        generation: u64,
        kind: String,
        name: String,
    },
    Clear {
        pod_uid: String,
    },
    Reference {
        reference: String,
        digest: String,
    },
}

impl Record {
    /// Whether it may not be lost. A pod whose end is forgotten is released once
    /// more, and a reference looked up once more: both come with the next sync.
    pub(super) fn is_durable(&self) -> bool {
        matches!(self, Self::Take { .. })
    }

    /// A field that would not fit into a line, if there is one.
    pub(super) fn illegal(&self) -> Option<&str> {
        let fields: &[&String] = match self {
            Self::Take {
                pod_uid,
                kind,
                name,
                ..
            } => &[pod_uid, kind, name],
            Self::Clear { pod_uid } => &[pod_uid],
            Self::Reference { reference, digest } => &[reference, digest],
        };
        let illegal = |field: &&&String| field.contains(['\t', '\n']);
        fields.iter().find(illegal).map(|field| field.as_str())
    }

    /// Its line, with the line's end.
    pub(super) fn line(&self) -> String {
        let fields = match self {
            Self::Take {
                pod_uid,
                generation,
                kind,
                name,
            } => format!("take\t{pod_uid}\t{generation}\t{kind}\t{name}"),
            Self::Clear { pod_uid } => format!("clear\t{pod_uid}"),
            Self::Reference { reference, digest } => format!("reference\t{reference}\t{digest}"),
        };
        format!("{:016x}\t{fields}\n", check(fields.as_bytes()))
    }

    /// The record of a line; `None` where it is not whole.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
        let (checked, fields) = line.split_once('\t')?;
        if checked != format!("{:016x}", check(fields.as_bytes())) {
            return None;
        }
        let fields: Vec<&str> = fields.split('\t').collect();
        match *fields.as_slice() {
            ["take", pod_uid, generation, kind, name] => Some(Self::Take {
                pod_uid: pod_uid.to_owned(),
                generation: generation.parse().ok()?,
                kind: kind.to_owned(),
                name: name.to_owned(),
            }),
            ["clear", pod_uid] => Some(Self::Clear {
                pod_uid: pod_uid.to_owned(),
            }),
            ["reference", reference, digest] => Some(Self::Reference {
                reference: reference.to_owned(),
                digest: digest.to_owned(),
            }),
            _ => None,
        }
    }
}

/// FNV-1a of 64 bits: enough against accidents, which is what this is for.
fn check(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> [Record; 3] {
        [
            Record::Take {
                pod_uid: "uid".into(),
                generation: u64::MAX,
                kind: "eni".into(),
                name: "with space".into(),
            },
            Record::Clear {
                pod_uid: "uid".into(),
            },
            Record::Reference {
                reference: "h:5000/a:1".into(),
                digest: "sha256:0".into(),
            },
        ]
    }

    #[test]
    fn a_record_is_what_its_line_says() {
        for record in records() {
            assert_eq!(Record::parse(record.line().as_bytes()), Some(record));
        }
    }

    #[test]
    fn a_line_that_is_cut_or_changed_anywhere_is_no_record() {
        for line in records().map(|r| r.line().into_bytes()) {
            for at in 0..line.len() {
                assert_eq!(Record::parse(&line[..at]), None);
                for bit in 0..8 {
                    let mut changed = line.clone();
                    changed[at] ^= 1 << bit;
                    assert_eq!(Record::parse(&changed), None, "{changed:?}");
                }
            }
        }
    }

    #[test]
    fn what_would_break_a_line_is_found() {
        assert!(records().iter().all(|r| r.illegal().is_none()));
        for bad in ["a\tb", "a\nb"] {
            let record = Record::Clear {
                pod_uid: bad.into(),
            };
            assert_eq!(record.illegal(), Some(bad));
        }
    }
}
