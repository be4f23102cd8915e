//! The header of a file with machine code: it tells the PTX that the code was assembled from. Used
//! by the program and by build.rs; scripts/build_kernels.py writes it. Depends on nothing.

/// Bytes of a header.
pub const HEADER_BYTES: usize = 24;

/// The first bytes of machine code that was assembled from this PTX, compressed as the program
/// carries it: the FNV-1a sum of 64 bits in 16 hexadecimal digits, as a frame of zstd that decoders
/// skip.
pub fn header(ptx: &[u8]) -> [u8; HEADER_BYTES] {
    let mut header = *b"\x50\x2a\x4d\x18\x10\0\0\0................";
    let digits = format!("{:016x}", fnv1a(ptx));
    header[8..].copy_from_slice(digits.as_bytes());
    header
}

/// The FNV-1a sum of 64 bits.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
