//! What the mappings of a VMM are, and what of them is resident (proc(5),
//! `/proc/PID/smaps`).

use crate::shape::Shape;

/// Where the VMM's RAM goes on above the hole below 4 GiB.
const BELOW_HOLE: u64 = 3 << 30;

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapping<'a> {
    pub(super) start: u64,
    pub(super) end: u64,
    writable: bool,
    /// File, or what the kernel calls it; empty where it is nothing.
    name: &'a str,
    /// Bytes.
    pub(super) resident: u64,
    /// Of that, what is no file's. Bytes.
    pub(super) anonymous: u64,
}

/// What a VMM has a mapping for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Guest RAM, a private view of a template's.
    Template,
    /// Guest RAM of a machine that booted by itself, private.
    PrivateRam,
    /// Guest RAM that backends map too.
    SharedRam,
    /// The DMA window.
    Window,
    /// Anything else.
    Vmm,
}

/// The mappings in the text of `smaps`; lines that are none are passed over.
pub(super) fn parse(text: &str) -> Vec<Mapping<'_>> {
    let mut mappings: Vec<Mapping<'_>> = Vec::new();
    for line in text.lines() {
        if let Some(mapping) = header(line) {
            mappings.push(mapping);
        } else if let Some(mapping) = mappings.last_mut() {
            if let Some(bytes) = value(line, "Rss:") {
                mapping.resident = bytes;
            } else if let Some(bytes) = value(line, "Anonymous:") {
                mapping.anonymous = bytes;
            }
        }
    }
    mappings
}

/// What the mapping at `index` is in the VMM of such a machine.
pub(super) fn part_of(all: &[Mapping<'_>], index: usize, shape: Shape) -> Part {
    let Some(mapping) = all.get(index) else {
        return Part::Vmm;
    };
    match mapping.memfd() {
        Some("template") => Part::Template,
        Some("guest-ram") => Part::SharedRam,
        Some("dma-window") => Part::Window,
        _ if mapping.is_anonymous() && is_ram(all, index, mapping, shape) => Part::PrivateRam,
        _ => Part::Vmm,
    }
}

/// Anonymous memory has no name to go by: guest RAM is what the window lies in, and what
/// is exactly as long as the rest above 4 GiB.
fn is_ram(all: &[Mapping<'_>], index: usize, mapping: &Mapping<'_>, shape: Shape) -> bool {
    let is_window = |at: Option<usize>| {
        at.and_then(|at| all.get(at))
            .filter(|other| other.memfd() == Some("dma-window"))
    };
    let before = is_window(index.checked_sub(1)).is_some_and(|other| other.end == mapping.start);
    let after = is_window(index.checked_add(1)).is_some_and(|other| other.start == mapping.end);
    let high = shape.memory_bytes.saturating_sub(BELOW_HOLE);
    before || after || (high > 0 && mapping.end - mapping.start == high)
}

impl Mapping<'_> {
    fn memfd(&self) -> Option<&str> {
        let name = self.name.strip_prefix("/memfd:")?;
        Some(name.strip_suffix(" (deleted)").unwrap_or(name))
    }

    fn is_anonymous(&self) -> bool {
        self.writable && (self.name.is_empty() || self.name.starts_with("[anon:"))
    }
}

/// `START-END PERMISSIONS OFFSET DEVICE INODE NAME`
fn header(line: &str) -> Option<Mapping<'_>> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let (start, end) = (
        u64::from_str_radix(start, 16).ok()?,
        u64::from_str_radix(end, 16).ok()?,
    );
    let permissions = words.next()?;
    let (_offset, _device, _inode) = (words.next()?, words.next()?, words.next()?);
    (start <= end).then_some(Mapping {
        start,
        end,
        writable: permissions.as_bytes().get(1) == Some(&b'w'),
        name: words.next().unwrap_or("").trim(),
        resident: 0,
        anonymous: 0,
    })
}

/// The bytes of a line `NAME   N kB`.
fn value(line: &str, name: &str) -> Option<u64> {
    let kib = line.strip_prefix(name)?.trim().strip_suffix("kB")?;
    kib.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "[0-9a-f:\\- kBrwRs\n]{0,300}") {
            for mapping in parse(&text) {
                prop_assert!(mapping.start <= mapping.end);
            }
        }
    }
}
