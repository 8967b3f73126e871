//! A fault of QEMU's AMD-V, and a copy of QEMU without it.
//!
//! An interrupt that a hypervisor injects with VMRUN is delivered by `helper_vmrun`
//! (`target/i386/tcg/system/svm_helper.c`), which first stores its vector as an
//! exception to be raised, as it must for exceptions. For interrupts nobody takes it
//! away again. If the emulation is left for another reason (a timer of QEMU's own, say)
//! before the guest's next exit or exception, the same vector is raised a second time:
//! with interrupts disabled, in the midst of the handler. A guest's kernel that holds a
//! lock there waits for itself for ever. Of a hundred guests started at once several
//! hung so.
//!
//! Nothing reads what is stored; so the store is all that has to go. It is looked for
//! by what surrounds it, and a QEMU where it is not found exactly once runs as it is.

use std::ops::Range;

use elf::ElfBytes;
use elf::endian::LittleEndian;

/// An instruction of six bytes that does nothing.
const NOTHING: [u8; 6] = [0x66, 0x0F, 0x1F, 0x44, 0x00, 0x00];
/// The store is so near before the call that delivers the interrupt, in bytes.
const NEAR: usize = 96;
/// Vector of the non-maskable interrupt, which is stored in the same place.
const NMI: [u8; 4] = [2, 0, 0, 0];

/// Takes the store out of a program; false where it is not there, or not for sure.
pub(crate) fn repair(program: &mut [u8]) -> bool {
    let Some(store) = find(program) else {
        return false;
    };
    program[store].copy_from_slice(&NOTHING);
    true
}

/// A function of a program.
struct Function {
    address: u64,
    bytes: Range<usize>,
}

fn find(program: &[u8]) -> Option<Range<usize>> {
    let vmrun = function(program, "helper_vmrun")?;
    let deliver = function(program, "do_interrupt_x86_hardirq")?;
    let code = program.get(vmrun.bytes.clone())?;

    // mov dword [register + place], 2
    let place = only(code.windows(10).filter_map(|window| match window {
        [0xC7, mode @ 0x80..=0x87, place @ .., _, _, _, _] if window.ends_with(&NMI) => {
            Some((mode & 7, <[u8; 4]>::try_from(place).ok()?))
        }
        _ => None,
    }))?;
    // call do_interrupt_x86_hardirq
    let call = only(code.windows(5).enumerate().filter_map(|(at, window)| {
        let distance = i32::from_le_bytes(window.strip_prefix(&[0xE8])?.try_into().ok()?);
        let next = vmrun.address.checked_add(u64::try_from(at + 5).ok()?)?;
        let target = next.checked_add_signed(distance.into())?;
        (target == deliver.address).then_some(at)
    }))?;
    // mov [register + place], vector
    let first = call.saturating_sub(NEAR);
    let before = code.get(first..call)?.windows(6).enumerate();
    let store = only(before.filter_map(|(at, window)| match window {
        [0x89, mode @ 0x80..=0xBF, rest @ ..] => {
            ((mode & 7, rest) == (place.0, &place.1[..])).then_some(first + at)
        }
        _ => None,
    }))?;
    let start = vmrun.bytes.start + store;
    Some(start..start + NOTHING.len())
}

fn function(program: &[u8], name: &str) -> Option<Function> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(program).ok()?;
    let (symbols, names) = elf.dynamic_symbol_table().ok()??;
    let named = |symbol: &elf::symbol::Symbol| {
        let found = usize::try_from(symbol.st_name).ok();
        found.and_then(|at| names.get(at).ok()) == Some(name)
    };
    let symbol = symbols.iter().find(named)?;
    let holds = |segment: &elf::segment::ProgramHeader| {
        segment.p_type == elf::abi::PT_LOAD
            && (segment.p_vaddr..segment.p_vaddr.saturating_add(segment.p_filesz))
                .contains(&symbol.st_value)
    };
    let segment = elf.segments()?.iter().find(holds)?;
    let start = (symbol.st_value - segment.p_vaddr).checked_add(segment.p_offset)?;
    let end = start.checked_add(symbol.st_size)?;
    Some(Function {
        address: symbol.st_value,
        bytes: usize::try_from(start).ok()?..usize::try_from(end).ok()?,
    })
}

/// The only one there is.
fn only<T>(mut all: impl Iterator<Item = T>) -> Option<T> {
    let first = all.next()?;
    all.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two functions in an ELF file of one segment, as the linker would put them.
    fn program(vmrun: &[u8]) -> Vec<u8> {
        const CODE: u64 = 0x1000;
        let names = b"\0helper_vmrun\0do_interrupt_x86_hardirq\0";
        let symbol = |name: u32, at: u64, size: u64| {
            let mut bytes = name.to_le_bytes().to_vec();
            bytes.extend([0x12, 0, 1, 0]);
            bytes.extend((CODE + at).to_le_bytes());
            bytes.extend(size.to_le_bytes());
            bytes
        };
        let size = u64::try_from(vmrun.len()).unwrap();
        let mut symbols = vec![0; 24];
        symbols.extend(symbol(1, 0, size));
        symbols.extend(symbol(14, size, 1));

        let (names_at, symbols_at, code_at, sections_at) = (0x100, 0x200, 0x1000, 0x2000);
        let mut file = vec![0; 0x2100];
        let put = |file: &mut Vec<u8>, at: usize, bytes: &[u8]| {
            file[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(&mut file, 0, b"\x7FELF\x02\x01\x01");
        put(&mut file, 16, &[3, 0, 62, 0, 1, 0, 0, 0]);
        put(&mut file, 32, &64_u64.to_le_bytes());
        put(&mut file, 40, &0x2000_u64.to_le_bytes());
        put(&mut file, 52, &[64, 0, 56, 0, 1, 0, 64, 0, 3, 0, 0, 0]);
        let words = |words: &[u64]| {
            words
                .iter()
                .flat_map(|w| w.to_le_bytes())
                .collect::<Vec<_>>()
        };
        put(&mut file, 64, &[1, 0, 0, 0, 5, 0, 0, 0]);
        put(
            &mut file,
            72,
            &words(&[0x1000, CODE, CODE, 0x1000, 0x1000, 0x1000]),
        );
        put(&mut file, names_at, names);
        put(&mut file, symbols_at, &symbols);
        put(&mut file, code_at, vmrun);
        let section = |kind: u32, at: u64, size: usize, link: u32, entry: u64| {
            let mut bytes = vec![0; 4];
            bytes.extend(kind.to_le_bytes());
            bytes.extend(words(&[0, 0, at, u64::try_from(size).unwrap()]));
            bytes.extend(link.to_le_bytes());
            bytes.extend([1, 0, 0, 0]);
            bytes.extend(words(&[8, entry]));
            bytes
        };
        put(
            &mut file,
            sections_at + 64,
            &section(11, 0x200, symbols.len(), 2, 24),
        );
        put(
            &mut file,
            sections_at + 128,
            &section(3, 0x100, names.len(), 0, 0),
        );
        file
    }

    const STORE: [u8; 6] = [0x89, 0xB3, 0x10, 0xD7, 0xFF, 0xFF];

    /// As it is in QEMU 10.0.2: the store, the call, and the same for the NMI.
    fn vmrun(store: &[u8]) -> Vec<u8> {
        let mut code = vec![0x90; 8];
        code.extend(store);
        code.extend([0xC7, 0x83, 0xE4, 0x33, 0, 0, 0, 0, 0, 0]);
        let after = 10 + 4_u32;
        code.push(0xE8);
        code.extend(after.to_le_bytes());
        code.extend([0xC7, 0x83, 0x10, 0xD7, 0xFF, 0xFF, 2, 0, 0, 0]);
        code.extend([0x90; 4]);
        code
    }

    #[test]
    fn the_store_goes_and_nothing_else_does() {
        let mut repaired = program(&vmrun(&STORE));
        assert!(repair(&mut repaired));
        assert_eq!(repaired, program(&vmrun(&NOTHING)));
        assert!(!repair(&mut repaired), "it is gone");
    }

    #[test]
    fn what_is_not_found_for_sure_stays() {
        let twice = [STORE, STORE].concat();
        let elsewhere = [0x89, 0xB3, 0x14, 0xD7, 0xFF, 0xFF];
        for store in [&twice[..], &elsewhere, &[]] {
            let mut other = program(&vmrun(store));
            let before = other.clone();
            assert!(!repair(&mut other));
            assert_eq!(other, before);
        }
        assert!(!repair(&mut b"#!/bin/sh".to_vec()));
    }
}
