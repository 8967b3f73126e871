//! A container to start.

use longship_framed::error::Failure;
use longship_framed::guest;

use super::{ProcessSpec, serial};

/// Longest name of a container, in bytes (a DNS label, as in Kubernetes).
const MAX_NAME: usize = 63;
/// Least CPU that `cpu.max` can express: 1 ms in each 100 ms.
const LEAST_CPU_MILLIS: u32 = 10;
/// Least memory with which a process can be set up at all, in bytes.
const LEAST_MEMORY: u64 = 4 << 20;

/// A checked [`guest::Start`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContainerSpec {
    pub(crate) name: String,
    pub(crate) image_serial: String,
    pub(crate) process: ProcessSpec,
    pub(crate) cpu_millis: Option<u32>,
    pub(crate) memory_bytes: Option<u64>,
}

impl TryFrom<guest::Start> for ContainerSpec {
    type Error = Failure;

    fn try_from(asked: guest::Start) -> Result<Self, Failure> {
        let name = container_name(&asked.container)?;
        let image_serial = serial("image_serial", &asked.image_serial)?;
        let process = ProcessSpec::checked("process", asked.process)?;
        if (1..LEAST_CPU_MILLIS).contains(&asked.cpu_millis) {
            let text = format!("{} is below {LEAST_CPU_MILLIS}", asked.cpu_millis);
            return Err(Failure::invalid("cpu_millis", text));
        }
        if (1..LEAST_MEMORY).contains(&asked.memory_bytes) {
            let text = format!("{} is below {LEAST_MEMORY}", asked.memory_bytes);
            return Err(Failure::invalid("memory_bytes", text));
        }
        Ok(Self {
            name,
            image_serial,
            process,
            cpu_millis: Some(asked.cpu_millis).filter(|n| *n > 0),
            memory_bytes: Some(asked.memory_bytes).filter(|n| *n > 0),
        })
    }
}

/// A DNS label; it names a cgroup and a directory too.
fn container_name(text: &str) -> Result<String, Failure> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let fits = !text.is_empty() && text.len() <= MAX_NAME;
    if fits && text.bytes().all(plain) && !text.starts_with('-') && !text.ends_with('-') {
        return Ok(text.to_owned());
    }
    let text = format!("{text:?} is no container name: lower-case letters, digits, inner `-`");
    Err(Failure::invalid("container", text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> guest::Start {
        guest::Start {
            container: "main".into(),
            image_serial: "image".into(),
            process: Some(guest::Process {
                argv: vec!["true".into()],
                ..guest::Process::default()
            }),
            cpu_millis: 10,
            memory_bytes: 4 << 20,
        }
    }

    #[test]
    fn the_least_limits_pass_and_none_is_none() {
        let least = ContainerSpec::try_from(good()).unwrap();
        assert_eq!(
            (least.cpu_millis, least.memory_bytes),
            (Some(10), Some(4 << 20))
        );
        let none = guest::Start {
            cpu_millis: 0,
            memory_bytes: 0,
            ..good()
        };
        let none = ContainerSpec::try_from(none).unwrap();
        assert_eq!((none.cpu_millis, none.memory_bytes), (None, None));
    }

    #[test]
    fn every_wrong_field_is_named() {
        type Spoil = fn(&mut guest::Start);
        let cases: [(&str, Spoil); 8] = [
            ("container", |s| s.container = "../up".into()),
            ("container", |s| s.container = "Main".into()),
            ("container", |s| s.container = String::new()),
            ("image_serial", |s| s.image_serial = String::new()),
            ("process", |s| s.process = None),
            ("process.argv", |s| {
                s.process = Some(guest::Process::default())
            }),
            ("cpu_millis", |s| s.cpu_millis = 9),
            ("memory_bytes", |s| s.memory_bytes = 4095),
        ];
        for (field, spoil) in cases {
            let mut message = good();
            spoil(&mut message);
            assert_eq!(ContainerSpec::try_from(message).unwrap_err().field, field);
        }
    }
}
