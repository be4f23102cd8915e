//! A hash for identities: of a configuration, of the input files, of a set. Depends on nothing.
//! Promises the same value on every machine and in every version.

/// Offset basis of 64-bit FNV-1a (Fowler, Noll, Vo).
const OFFSET_BASIS: u64 = 0xCBF2_9CE4_8422_2325;
/// Prime of 64-bit FNV-1a.
const PRIME: u64 = 0x0000_0100_0000_01B3;

/// 64-bit FNV-1a. It identifies configurations and inputs; CRC32 is what detects damage.
#[derive(Clone)]
pub struct Hash64(u64);

impl Default for Hash64 {
    fn default() -> Self {
        Hash64(OFFSET_BASIS)
    }
}

impl Hash64 {
    /// Mixes in bytes with their length, so that `"ab", "c"` and `"a", "bc"` differ.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.word(bytes.len() as u64);
        self.raw(bytes)
    }

    /// Mixes in one integer.
    pub fn word(&mut self, word: u64) -> &mut Self {
        self.raw(&word.to_le_bytes())
    }

    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        for &b in bytes {
            self.0 = (self.0 ^ u64::from(b)).wrapping_mul(PRIME);
        }
        self
    }

    /// Returns the hash of everything mixed in so far.
    pub fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_the_published_one_and_separates_fields() {
        assert_eq!(Hash64::default().raw(b"a").finish(), 0xAF63_DC4C_8601_EC8C);
        let two = |a: &[u8], b: &[u8]| Hash64::default().bytes(a).bytes(b).finish();
        assert_ne!(two(b"ab", b"c"), two(b"a", b"bc"));
    }
}
