//! What a kernel file holds: read and checked before there is a VM to load it into.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::memory::layout;

/// Size of an ELF64 file header.
const ELF_HEADER: usize = 64;
/// Size of an ELF64 program header.
const PROGRAM_HEADER: usize = 56;
/// More program headers than any kernel has.
const MAX_PROGRAM_HEADERS: u16 = 64;
/// `PT_LOAD`.
const LOAD: u32 = 1;
/// `ET_EXEC`.
const EXECUTABLE: u16 = 2;
/// `EM_X86_64`.
const X86_64: u16 = 62;

/// The setup header begins here in a bzImage and in the zero page
/// (Documentation/arch/x86/boot.rst).
pub(crate) const SETUP_HEADER: usize = 0x1F1;
/// As much of a bzImage as may hold its setup header.
const SETUP_AREA: usize = 0x280;
/// `XLF_KERNEL_64`: there is a 64-bit entry point.
const HAS_64_BIT_ENTRY: u16 = 1;
/// The 64-bit entry point lies so far after the load address.
const ENTRY_64: u64 = 0x200;

/// Why a file is not taken as a kernel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("cannot be read: {0}")]
    Read(#[from] std::io::Error),
    #[error("is no ELF vmlinux and no bzImage: it begins with {0:02x?}")]
    Unknown([u8; 4]),
    #[error("is an ELF file, but {0}")]
    Elf(&'static str),
    #[error("is a bzImage, but {0}")]
    BzImage(&'static str),
}

/// A piece of the file and its place in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Where it begins in the file.
    pub(crate) offset: u64,
    /// Bytes in the file.
    pub(crate) bytes: u64,
    /// Guest-physical address.
    pub(crate) guest: u64,
}

/// A kernel that can be loaded, by the 64-bit Linux boot protocol.
#[derive(Debug)]
pub(crate) struct KernelImage {
    /// The file.
    pub(crate) file: File,
    /// What is loaded from it.
    pub(crate) segments: Vec<Segment>,
    /// Guest-physical address of the 64-bit entry point.
    pub(crate) entry: u64,
    /// First guest-physical address that the kernel does not use while it starts.
    pub(crate) end: u64,
    /// A bzImage's setup header, to be copied to the zero page.
    pub(crate) setup_header: Option<Vec<u8>>,
}

/// Reads what `file` says of itself.
pub(crate) fn inspect(file: File) -> Result<KernelImage, ImageError> {
    let mut head = [0; SETUP_AREA];
    let len = read_up_to(&file, &mut head)?;
    let size = file.metadata()?.len();
    let head = head.get(..len).unwrap_or_default();
    if head.starts_with(b"\x7fELF") {
        elf(file, head, size)
    } else if head.get(0x202..0x206) == Some(b"HdrS") {
        bz_image(file, head, size)
    } else {
        let mut first = [0; 4];
        for (to, from) in first.iter_mut().zip(head) {
            *to = *from;
        }
        Err(ImageError::Unknown(first))
    }
}

fn elf(file: File, head: &[u8], size: u64) -> Result<KernelImage, ImageError> {
    let short = || ImageError::Elf("it is cut off");
    let header = head.get(..ELF_HEADER).ok_or_else(short)?;
    // EI_CLASS and EI_DATA: 64 bits, little endian.
    if header.get(4..6) != Some(&[2, 1]) {
        return Err(ImageError::Elf("not for 64-bit little-endian machines"));
    }
    if u16_at(header, 16) != Some(EXECUTABLE) || u16_at(header, 18) != Some(X86_64) {
        return Err(ImageError::Elf("no executable for x86-64"));
    }
    let entry = u64_at(header, 24).ok_or_else(short)?;
    let table = u64_at(header, 32).ok_or_else(short)?;
    let count = u16_at(header, 56).ok_or_else(short)?;
    if u16_at(header, 54).map(usize::from) != Some(PROGRAM_HEADER) {
        return Err(ImageError::Elf("its program headers have an unknown size"));
    }
    if count == 0 || count > MAX_PROGRAM_HEADERS {
        return Err(ImageError::Elf("it has no or too many program headers"));
    }
    let mut segments = Vec::new();
    let mut end = 0;
    for index in 0..u64::from(count) {
        let at = table
            .checked_add(index * PROGRAM_HEADER as u64)
            .ok_or_else(short)?;
        let mut bytes = [0; PROGRAM_HEADER];
        file.read_exact_at(&mut bytes, at).map_err(|_| short())?;
        if u32_at(&bytes, 0) != Some(LOAD) {
            continue;
        }
        let field = |at| u64_at(&bytes, at).ok_or_else(short);
        let (offset, guest, in_file, in_memory) = (field(8)?, field(24)?, field(32)?, field(40)?);
        if offset.checked_add(in_file).is_none_or(|end| end > size) {
            return Err(short());
        }
        if in_memory < in_file {
            return Err(ImageError::Elf("a segment is longer than its memory"));
        }
        if guest < layout::HIGH_MEMORY && in_memory > 0 {
            return Err(ImageError::Elf("a segment lies below 1 MiB"));
        }
        let last = guest
            .checked_add(in_memory)
            .ok_or(ImageError::Elf("a segment ends beyond all addresses"))?;
        end = end.max(last);
        if in_file > 0 {
            segments.push(Segment {
                offset,
                bytes: in_file,
                guest,
            });
        }
    }
    let inside = segments
        .iter()
        .any(|s| entry >= s.guest && entry - s.guest < s.bytes);
    if !inside {
        return Err(ImageError::Elf(
            "its entry point is in none of its segments",
        ));
    }
    Ok(KernelImage {
        file,
        segments,
        entry,
        end,
        setup_header: None,
    })
}

fn bz_image(file: File, head: &[u8], size: u64) -> Result<KernelImage, ImageError> {
    let short = || ImageError::BzImage("it is cut off");
    // 2.12 is the first protocol that tells of the 64-bit entry point.
    if u16_at(head, 0x206).is_none_or(|version| version < 0x20C) {
        return Err(ImageError::BzImage("its boot protocol is older than 2.12"));
    }
    if u16_at(head, 0x236).is_none_or(|flags| flags & HAS_64_BIT_ENTRY == 0) {
        return Err(ImageError::BzImage("it has no 64-bit entry point"));
    }
    let sectors = match head.get(SETUP_HEADER) {
        Some(0) => 4,
        Some(n) => u64::from(*n),
        None => return Err(short()),
    };
    let offset = (sectors + 1) * 512;
    let bytes = size
        .checked_sub(offset)
        .filter(|n| *n > ENTRY_64)
        .ok_or_else(short)?;
    let preferred = u64_at(head, 0x258).ok_or_else(short)?;
    let init_size = u64::from(u32_at(head, 0x260).ok_or_else(short)?);
    let load = layout::HIGH_MEMORY;
    // The kernel unpacks itself to its preferred address, or to where it was loaded.
    let end = load
        .max(preferred)
        .checked_add(init_size)
        .ok_or(ImageError::BzImage("it ends beyond all addresses"))?
        .max(load + bytes);
    // The byte at 0x201 is the low byte of a jump over the header: its length.
    let len = head
        .get(0x201)
        .map_or(0, |n| 0x202 - SETUP_HEADER + usize::from(*n));
    let header = head
        .get(SETUP_HEADER..SETUP_HEADER + len)
        .ok_or_else(short)?;
    Ok(KernelImage {
        segments: vec![Segment {
            offset,
            bytes,
            guest: load,
        }],
        entry: load + ENTRY_64,
        end,
        setup_header: Some(header.to_vec()),
        file,
    })
}

/// Fills as much of `buffer` as the file has.
fn read_up_to(file: &File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array_at(bytes, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// An ELF executable with one segment of `code` at 16 MiB.
    fn executable(code: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0_u8; ELF_HEADER + PROGRAM_HEADER];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[16..20].copy_from_slice(&[2, 0, 62, 0]);
        bytes[24..32].copy_from_slice(&0x100_0000_u64.to_le_bytes());
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        let phdr = &mut bytes[ELF_HEADER..];
        phdr[0] = 1;
        phdr[8] = 120;
        phdr[24..32].copy_from_slice(&0x100_0000_u64.to_le_bytes());
        phdr[32..40].copy_from_slice(&(code.len() as u64).to_le_bytes());
        phdr[40..48].copy_from_slice(&0x1000_u64.to_le_bytes());
        bytes.extend_from_slice(code);
        bytes
    }

    #[test]
    fn an_executable_is_planned_with_its_bss() {
        let image = inspect(file(&executable(&[0xF4; 10]))).unwrap();
        assert_eq!(image.entry, 0x100_0000);
        assert_eq!(image.end, 0x100_1000);
        assert_eq!(
            image.segments,
            [Segment {
                offset: 120,
                bytes: 10,
                guest: 0x100_0000
            }]
        );
    }

    #[test]
    fn what_is_no_kernel_is_named_so() {
        let text = inspect(file(b"#!/bin/sh\n")).unwrap_err().to_string();
        assert_eq!(
            text,
            "is no ELF vmlinux and no bzImage: it begins with [23, 21, 2f, 62]"
        );
        assert!(matches!(
            inspect(file(b"")),
            Err(ImageError::Unknown([0, 0, 0, 0]))
        ));
        let cut = &executable(&[0xF4; 10])[..125];
        assert!(matches!(
            inspect(file(cut)),
            Err(ImageError::Elf("it is cut off"))
        ));
    }

    #[test]
    fn a_segment_over_the_boot_data_is_refused() {
        let mut bytes = executable(&[0xF4; 10]);
        bytes[ELF_HEADER + 24..ELF_HEADER + 32].copy_from_slice(&0x7000_u64.to_le_bytes());
        assert!(matches!(inspect(file(&bytes)), Err(ImageError::Elf(_))));
    }

    proptest! {
        #[test]
        fn no_damage_to_a_kernel_panics(
            at in 0_usize..120, value in any::<u8>(), cut in 0_usize..140,
            bz in any::<bool>(),
        ) {
            let mut bytes = executable(&[0xF4; 20]);
            if bz {
                bytes[0] = 0;
                bytes.resize(0x300, 1);
                bytes[0x202..0x206].copy_from_slice(b"HdrS");
                bytes[0x1F1 + at] = value;
                bytes.truncate(0x300 - cut);
            } else {
                bytes[at] = value;
                bytes.truncate(cut);
            }
            let _ = inspect(file(&bytes));
        }
    }
}
