//! The smallest guest: a program that says one byte on its console and waits. Every
//! VMM can run it and be measured by it.

use std::fs;
use std::path::Path;

use crate::error::{BenchError, file};

/// Where the program is loaded.
const ADDRESS: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;

/// `write(1, "\n", 1)`, then `pause()` for ever (x86-64; the kernel has opened the
/// console as its descriptors 0 to 2).
const CODE: [u8; 34] = [
    0xb8, 1, 0, 0, 0, // mov eax, 1
    0xbf, 1, 0, 0, 0, // mov edi, 1
    0x48, 0x8d, 0x35, 16, 0, 0, 0, // lea rsi, [rip + 16]
    0xba, 1, 0, 0, 0, // mov edx, 1
    0x0f, 0x05, // syscall
    0xb8, 34, 0, 0, 0, // mov eax, 34
    0x0f, 0x05, // syscall
    0xeb, 0xf7, // jmp to the `mov eax, 34`
    b'\n',
];

/// Writes an initramfs with that program as `/init` to `path`.
///
/// # Errors
/// [`BenchError::File`].
pub(crate) fn write(path: &Path) -> Result<(), BenchError> {
    fs::write(path, archive()).map_err(file("write", path))
}

fn archive() -> Vec<u8> {
    let mut archive = Vec::new();
    entry(&mut archive, "dev", 0o040_755, &[], (0, 0));
    entry(&mut archive, "dev/console", 0o020_600, &[], (5, 1));
    entry(&mut archive, "init", 0o100_755, &program(), (0, 0));
    entry(&mut archive, "TRAILER!!!", 0, &[], (0, 0));
    archive
}

/// An ELF program of one segment (ELF-64 object file format, 1.5).
fn program() -> Vec<u8> {
    let mut elf = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let half = |elf: &mut Vec<u8>, value: u16| elf.extend(value.to_le_bytes());
    let word = |elf: &mut Vec<u8>, value: u32| elf.extend(value.to_le_bytes());
    let long = |elf: &mut Vec<u8>, value: u64| elf.extend(value.to_le_bytes());
    half(&mut elf, 2); // e_type: executable
    half(&mut elf, 62); // e_machine: x86-64
    word(&mut elf, 1); // e_version
    long(&mut elf, ADDRESS + HEADERS); // e_entry
    long(&mut elf, 64); // e_phoff
    long(&mut elf, 0); // e_shoff
    word(&mut elf, 0); // e_flags
    for value in [64, 56, 1, 64, 0, 0] {
        half(&mut elf, value); // sizes and numbers of headers
    }
    let bytes = HEADERS + CODE.len() as u64;
    word(&mut elf, 1); // p_type: loaded
    word(&mut elf, 5); // p_flags: read, execute
    for value in [0, ADDRESS, ADDRESS, bytes, bytes, 0x1000] {
        long(&mut elf, value); // offset, addresses, sizes, alignment
    }
    elf.extend(CODE);
    elf
}

/// One entry of the "newc" format (Linux, early-userspace/buffer-format): 110 bytes of
/// header, the name and the content, each padded to four bytes.
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8], device: (u32, u32)) {
    let name_size = name.len() + 1;
    let fields = [
        0, // inode: not looked at where there is one link
        u64::from(mode),
        0,
        0,
        1,
        0,
        content.len() as u64,
        0,
        0,
        u64::from(device.0),
        u64::from(device.1),
        name_size as u64,
        0,
    ];
    archive.extend(b"070701");
    for field in fields {
        archive.extend(format!("{field:08X}").bytes());
    }
    archive.extend(name.bytes());
    archive.push(0);
    pad(archive);
    archive.extend(content);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    while !archive.len().is_multiple_of(4) {
        archive.push(0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_program_says_one_byte_and_waits() {
        let path = std::env::temp_dir().join(format!("longship-init-{}", std::process::id()));
        fs::write(&path, program()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = Command::new(&path).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = [0];
        child.stdout.take().unwrap().read_exact(&mut said).unwrap();
        assert_eq!(said, *b"\n");
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_archive_lists_as_it_should() {
        let archive = archive();
        assert!(archive.len().is_multiple_of(4));
        let mut list = Command::new("cpio")
            .args(["-it", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut list.stdin.take().unwrap(), &archive).unwrap();
        let listed = list.wait_with_output().unwrap();
        assert_eq!(
            String::from_utf8(listed.stdout).unwrap(),
            "dev\ndev/console\ninit\n"
        );
    }
}
