//! Guests of a few instructions, which speak to their VMM by the machine's own ports
//! (`longship_framed::machine_ports`).

#![allow(unreachable_pub, reason = "a part of tests")]

use std::path::{Path, PathBuf};

/// Where the program lies.
const CODE: u64 = 0x100_0000;

/// Pages that are touched before it parks: 8 MiB.
pub const PAGES_BEFORE: u32 = 2048;
/// Pages that each machine touches afterwards: 1 MiB.
pub const PAGES_AFTER: u32 = 256;

/// mov dx, 0x2f04; in eax, dx; test al, 1
const ASK_KIND: [u8; 7] = [0x66, 0xBA, 0x04, 0x2F, 0xED, 0xA8, 0x01];
/// mov dx, 0x2f00; mov eax, 2; out dx, eax
const PARK: [u8; 10] = [0x66, 0xBA, 0x00, 0x2F, 0xB8, 2, 0, 0, 0, 0xEF];
/// mov dx, 0x2f00; mov eax, 1; out dx, eax
const ALIVE: [u8; 10] = [0x66, 0xBA, 0x00, 0x2F, 0xB8, 1, 0, 0, 0, 0xEF];
/// mov al, 0xfe; out 0x64, al
const RESET: [u8; 4] = [0xB0, 0xFE, 0xE6, 0x64];
/// cli; hlt; again
const HALT: [u8; 4] = [0xFA, 0xF4, 0xEB, 0xFC];

/// Writes a word to each of `pages` pages from 32 MiB on.
fn touch(pages: u32) -> Vec<u8> {
    let mut code = vec![0x48, 0xC7, 0xC7, 0, 0, 0, 2]; // mov rdi, 0x2000000
    code.push(0xB9); // mov ecx, pages
    code.extend(pages.to_le_bytes());
    code.extend([0x48, 0x89, 0x0F]); // mov [rdi], rcx
    code.extend([0x48, 0x81, 0xC7, 0, 0x10, 0, 0]); // add rdi, 4096
    code.extend([0xFF, 0xC9, 0x75, 0xF2]); // dec ecx; jnz -14
    code
}

/// A guest that parks where it is to become a template, and otherwise touches some
/// memory and waits for ever.
pub fn parks(folder: &Path) -> PathBuf {
    let before = touch(PAGES_BEFORE);
    let mut code = ASK_KIND.to_vec();
    // jz over what a template does
    code.extend([0x74, u8::try_from(before.len() + PARK.len()).unwrap()]);
    code.extend(before);
    code.extend(PARK);
    code.extend(ALIVE);
    code.extend(touch(PAGES_AFTER));
    code.extend(HALT);
    write(folder, &code)
}

/// A guest that says a word and ends where it is to become a template.
pub fn refuses_to_park(folder: &Path) -> PathBuf {
    // mov dx, 0x3f8; mov al, 'N'; out dx, al
    let say = [0x66, 0xBA, 0xF8, 0x03, 0xB0, b'N', 0xEE];
    let mut code = ASK_KIND.to_vec();
    code.extend([0x74, u8::try_from(say.len() + RESET.len()).unwrap()]);
    code.extend(say);
    code.extend(RESET);
    code.extend(ALIVE);
    code.extend(HALT);
    write(folder, &code)
}

/// A guest that runs in a circle where it is to become a template.
pub fn never_parks(folder: &Path) -> PathBuf {
    let mut code = ASK_KIND.to_vec();
    // jz over `jmp` to itself
    code.extend([0x74, 2, 0xEB, 0xFE]);
    code.extend(ALIVE);
    code.extend(HALT);
    write(folder, &code)
}

/// An ELF file (ELF-64 object file format, 1.5) with the code as its one segment.
fn write(folder: &Path, code: &[u8]) -> PathBuf {
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend(2_u16.to_le_bytes()); // an executable
    elf.extend(62_u16.to_le_bytes()); // for x86-64
    elf.extend(1_u32.to_le_bytes());
    elf.extend(CODE.to_le_bytes()); // entry
    elf.extend(64_u64.to_le_bytes()); // program headers
    elf.extend(0_u64.to_le_bytes()); // no sections
    elf.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 64, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1_u32.to_le_bytes()); // to be loaded
    elf.extend(7_u32.to_le_bytes()); // read, write, execute
    let len = u64::try_from(code.len()).unwrap();
    for word in [0x1000, CODE, CODE, len, len, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.resize(0x1000, 0);
    elf.extend(code);
    let path = folder.join("guest.elf");
    std::fs::write(&path, elf).unwrap();
    path
}
