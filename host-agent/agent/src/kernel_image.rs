//! Tells a guest kernel from any other file, by its first bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What kind of kernel a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KernelImage {
    /// An ELF file for x86-64 (ELF specification, chapter 4).
    Vmlinux,
    /// Linux/x86's own format (Documentation/arch/x86/boot.rst, "The real-mode
    /// kernel header").
    BzImage,
}

/// Looks at the head of `file`; `None` where it is neither.
pub(crate) fn recognise(file: &File) -> io::Result<Option<KernelImage>> {
    let mut head = [0; 0x206];
    let mut got = 0;
    while let Some(rest) = head.get_mut(got..).filter(|rest| !rest.is_empty()) {
        let offset = u64::try_from(got).map_err(io::Error::other)?;
        match file.read_at(rest, offset) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(kind_of(head.get(..got).unwrap_or_default()))
}

fn kind_of(head: &[u8]) -> Option<KernelImage> {
    let at = |offset: usize, len: usize| head.get(offset..offset + len);
    // 64-bit, little endian; EM_X86_64.
    if at(0, 6) == Some(b"\x7fELF\x02\x01") && at(18, 2) == Some(&[62, 0]) {
        return Some(KernelImage::Vmlinux);
    }
    if at(0x1fe, 2) == Some(&[0x55, 0xaa]) && at(0x202, 4) == Some(b"HdrS") {
        return Some(KernelImage::BzImage);
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn elf(machine: u8) -> Vec<u8> {
        let mut head = vec![0; 64];
        head[..6].copy_from_slice(b"\x7fELF\x02\x01");
        head[18] = machine;
        head
    }

    #[test]
    fn both_formats_are_known() {
        assert_eq!(kind_of(&elf(62)), Some(KernelImage::Vmlinux));
        let mut bz = vec![0; 0x206];
        bz[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        bz[0x202..].copy_from_slice(b"HdrS");
        assert_eq!(kind_of(&bz), Some(KernelImage::BzImage));
    }

    #[test]
    fn programs_for_other_machines_and_boot_sectors_are_none() {
        assert_eq!(kind_of(&elf(183)), None);
        let mut sector = vec![0; 512];
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(kind_of(&sector), None);
    }

    proptest! {
        #[test]
        fn no_head_is_too_short_or_too_strange(head in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert_eq!(kind_of(&head), None);
        }
    }
}
