//! Tiny programs for guests, made of machine code: whole guests that run in the
//! state in which a kernel starts, and a program for a Linux guest's `/init`.

#![allow(dead_code, unreachable_pub, reason = "each test uses its own part")]

use std::fs::File;
use std::io::Write;

/// Where a program's code and data lie, each less than 64 KiB.
const CODE: u64 = 0x100_0000;
const DATA: u64 = 0x101_0000;

/// Machine code for x86-64, and the bytes it refers to.
#[derive(Debug, Default)]
pub struct Program {
    code: Vec<u8>,
    data: Vec<u8>,
}

impl Program {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds instructions.
    pub fn code(mut self, bytes: &[u8]) -> Self {
        self.code.extend_from_slice(bytes);
        self
    }

    /// Writes `text` to the serial port.
    pub fn print(mut self, text: &str) -> Self {
        for byte in text.bytes() {
            // mov al, byte; mov dx, 0x3f8; out dx, al
            self.code
                .extend_from_slice(&[0xB0, byte, 0x66, 0xBA, 0xF8, 0x03, 0xEE]);
        }
        self
    }

    /// Asks for a reset: mov al, 0xfe; out 0x64, al; then halts for ever.
    pub fn reset(self) -> Self {
        self.code(&[0xB0, 0xFE, 0xE6, 0x64]).halt()
    }

    /// cli; hlt; again.
    pub fn halt(self) -> Self {
        self.code(&[0xFA, 0xF4, 0xEB, 0xFC])
    }

    /// Runs in a circle without any exit.
    pub fn spin(self) -> Self {
        self.code(&[0xEB, 0xFE])
    }

    /// Linux: a system call with up to four arguments.
    pub fn call(mut self, number: u64, arguments: &[u64]) -> Self {
        // mov rax | rdi | rsi | rdx | r10, imm64
        let registers = [
            [0x48, 0xB8],
            [0x48, 0xBF],
            [0x48, 0xBE],
            [0x48, 0xBA],
            [0x49, 0xBA],
        ];
        let values = [&[number], arguments].concat();
        for (register, value) in registers.iter().zip(&values) {
            self.code.extend_from_slice(register);
            self.code.extend_from_slice(&value.to_le_bytes());
        }
        self.code(&[0x0F, 0x05])
    }

    /// Adds bytes with a final zero to the data; returns their address.
    pub fn text(&mut self, text: &str) -> u64 {
        self.bytes(&[text.as_bytes(), &[0]].concat())
    }

    /// Adds bytes to the data; returns their address.
    pub fn bytes(&mut self, bytes: &[u8]) -> u64 {
        let at = DATA + self.data.len() as u64;
        self.data.extend_from_slice(bytes);
        at
    }

    /// Linux: prints `text` to the console.
    pub fn say(mut self, text: &str) -> Self {
        let at = self.text(text);
        self.call(1, &[1, at, text.len() as u64])
    }

    /// Linux: restarts the machine.
    pub fn reboot(self) -> Self {
        self.call(169, &[0xFEE1_DEAD, 672_274_793, 0x0123_4567, 0])
            .spin()
    }

    /// The program as an ELF executable.
    pub fn elf(&self) -> Vec<u8> {
        let mut elf = Vec::new();
        elf.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        elf.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
        for word in [CODE, 64, 0] {
            elf.extend_from_slice(&word.to_le_bytes());
        }
        elf.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        let parts = [(CODE, &self.code, 0x1000_u64), (DATA, &self.data, 0x1_1000)];
        for (address, bytes, offset) in parts {
            // PT_LOAD; readable, writable, executable.
            elf.extend_from_slice(&[1, 0, 0, 0, 7, 0, 0, 0]);
            let len = bytes.len() as u64;
            for word in [offset, address, address, len, len.max(0x1_0000), 0x1000] {
                elf.extend_from_slice(&word.to_le_bytes());
            }
        }
        elf.resize(0x1000, 0);
        elf.extend_from_slice(&self.code);
        elf.resize(0x1_1000, 0);
        elf.extend_from_slice(&self.data);
        elf
    }

    /// The program as a guest's kernel.
    pub fn kernel(&self) -> File {
        file(&self.elf())
    }

    /// The program as `/init` of an initramfs.
    pub fn initramfs(&self) -> File {
        initramfs(&[("init", &self.elf())])
    }
}

/// A shell script as `/init` of an initramfs, with Debian's static busybox.
pub fn script(text: &str) -> File {
    let busybox = std::fs::read("/bin/busybox").expect("the package busybox-static");
    let text = format!("#!/busybox sh\n{text}\n/busybox reboot -f\n");
    initramfs(&[("init", text.as_bytes()), ("busybox", &busybox)])
}

/// An initramfs of executable files.
pub fn initramfs(files: &[(&str, &[u8])]) -> File {
    let mut cpio = Vec::new();
    for (name, content) in files {
        entry(&mut cpio, name, 0o100_755, content);
    }
    entry(&mut cpio, "TRAILER!!!", 0, &[]);
    file(&cpio)
}

/// One entry of a cpio archive (newc).
fn entry(cpio: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let pad = |cpio: &mut Vec<u8>| cpio.resize(cpio.len().next_multiple_of(4), 0);
    cpio.extend_from_slice(b"070701");
    let (size, name_size) = (content.len(), name.len() + 1);
    let fields = [1, mode as usize, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    for field in fields {
        cpio.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    cpio.extend_from_slice(name.as_bytes());
    cpio.push(0);
    pad(cpio);
    cpio.extend_from_slice(content);
    pad(cpio);
}

/// A file with these bytes.
pub fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}
