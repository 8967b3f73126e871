//! CRC-64/XZ (ECMA-182, reflected): any one flipped bit, and any damage within 64
//! bits, changes it; all else goes unnoticed once in 2⁶⁴.
//!
//! It finds damage, not forgery: whoever can write a state file can also compute its
//! checksum, whatever kind that is. What keeps others from writing is that the file
//! is the agent's own, sealed memfd.

/// The polynomial, lowest power in the highest bit.
const POLYNOMIAL: u64 = 0xC96C_5795_D787_0F42;

/// Bytes that are taken at once.
const STRIDE: usize = 8;

/// The checksum of each byte, followed by none to seven zeros.
static TABLES: [[u64; 256]; STRIDE] = tables();

const fn tables() -> [[u64; 256]; STRIDE] {
    let mut tables = [[0; 256]; STRIDE];
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
        tables[0][byte] = rest;
        byte += 1;
    }
    let mut zeros = 1;
    while zeros < STRIDE {
        let mut byte = 0;
        while byte < 256 {
            let shorter = tables[zeros - 1][byte];
            tables[zeros][byte] = (shorter >> 8) ^ tables[0][(shorter & 0xFF) as usize];
            byte += 1;
        }
        zeros += 1;
    }
    tables
}

/// The checksum of `bytes`, eight at a time (Kounavis and Berry, "A systematic approach
/// to building high performance software-based CRC generators", 2005).
pub(super) fn crc64(bytes: &[u8]) -> u64 {
    let (strides, rest) = bytes.as_chunks::<STRIDE>();
    let mut crc = u64::MAX;
    for stride in strides {
        let [a, b, c, d, e, f, g, h] = (crc ^ u64::from_le_bytes(*stride)).to_le_bytes();
        // The first byte has the most others after it.
        crc = TABLES[7][usize::from(a)]
            ^ TABLES[6][usize::from(b)]
            ^ TABLES[5][usize::from(c)]
            ^ TABLES[4][usize::from(d)]
            ^ TABLES[3][usize::from(e)]
            ^ TABLES[2][usize::from(f)]
            ^ TABLES[1][usize::from(g)]
            ^ TABLES[0][usize::from(h)];
    }
    for byte in rest {
        let [low, ..] = crc.to_le_bytes();
        crc = (crc >> 8) ^ TABLES[0][usize::from(low ^ byte)];
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
        // Known for what it is, not for how it is computed.
        let bitwise = |bytes: &[u8]| {
            !bytes.iter().fold(u64::MAX, |crc, byte| {
                (0..8).fold(crc ^ u64::from(*byte), |crc, _| {
                    (crc >> 1) ^ (POLYNOMIAL * (crc & 1))
                })
            })
        };
        let bytes: Vec<u8> = (0..1000_u32)
            .map(|n| (n * n % 251).to_le_bytes()[0])
            .collect();
        for len in [1, 7, 8, 9, 64, 999, 1000] {
            assert_eq!(crc64(&bytes[..len]), bitwise(&bytes[..len]));
        }
    }
}
