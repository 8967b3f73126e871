//! CRC-64/XZ (ECMA-182, reflected): any one flipped bit, and any damage within 64
//! bits, changes it; all else goes unnoticed once in 2⁶⁴.
//!
//! It finds damage, not forgery: whoever can write a state file can also compute its
//! checksum, whatever kind that is. What keeps others from writing is that the file
//! is the agent's own, sealed memfd.

/// The polynomial, lowest power in the highest bit.
const POLYNOMIAL: u64 = 0xC96C_5795_D787_0F42;

/// The checksum of each byte.
const TABLE: [u64; 256] = table();

const fn table() -> [u64; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut rest = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            rest = if rest & 1 == 1 {
                (rest >> 1) ^ POLYNOMIAL
            } else {
                rest >> 1
            };
            bit += 1;
        }
        table[byte] = rest;
        byte += 1;
    }
    table
}

/// The checksum of `bytes`.
pub(super) fn crc64(bytes: &[u8]) -> u64 {
    let mut crc = u64::MAX;
    for byte in bytes {
        let [low, ..] = crc.to_le_bytes();
        let entry = TABLE.get(usize::from(low ^ byte)).copied();
        crc = (crc >> 8) ^ entry.unwrap_or(0);
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_the_catalogue() {
        assert_eq!(crc64(b"123456789"), 0x995D_C9BB_DF19_39FA);
        assert_eq!(crc64(b""), 0);
    }
}
