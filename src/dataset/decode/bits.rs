//! The entropy-coded bits of a JPEG scan, and the steps over its coefficients (ITU T.81, annexes F
//! and G). Depends on `huffman`. Promises never to read beyond the data: when they end, `have`
//! becomes negative.

use super::huffman::{ENOUGH, HuffmanCodes, LOOK, Step, ac_step};
use anyhow::{Result, ensure};

/// Most bytes that may follow the last block before a marker. Some cameras write a few. Damaged
/// data that happen to decode to all blocks mostly leave more.
const MAX_STRAY: usize = 16;

/// Finds the next marker from `at` on; returns it with the offset of the byte after it. Fill bytes
/// (FF) and stray bytes before it are skipped.
pub(super) fn next_marker(bytes: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at += bytes.get(at..)?.iter().position(|&b| b == 0xFF)? + 1;
        match *bytes.get(at)? {
            0 | 0xFF => {}
            marker => return Some((marker, at + 1)),
        }
    }
}

/// Reads the bits of a scan up to the next marker, without the stuffed zeros.
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The next bits, from the highest down.
    buffer: u64,
    /// Number of bits in `buffer`; negative if more were taken than the data hold.
    pub have: i32,
    /// Whether `at` is the offset of a marker or the end of the file.
    ended: bool,
}

impl BitReader<'_> {
    pub fn new(bytes: &[u8], at: usize) -> BitReader<'_> {
        BitReader {
            bytes,
            at,
            buffer: 0,
            have: 0,
            ended: false,
        }
    }

    /// Fills the buffer with at least 56 bits, unless the data end before.
    #[inline(always)]
    fn refill(&mut self) {
        if let Some(next) = self.bytes.get(self.at..self.at + 8)
            && let Ok(next) = <[u8; 8]>::try_from(next)
            && self.have >= 0
        {
            let word = u64::from_be_bytes(next);
            // no byte is FF
            if (!word).wrapping_sub(0x0101_0101_0101_0101) & word & 0x8080_8080_8080_8080 == 0 {
                self.buffer |= word >> self.have;
                self.at += (63 - self.have as usize) >> 3;
                self.have |= 56;
                // the bits of a byte that does not fit completely are read again next time
                self.buffer &= !0 << (64 - self.have);
                return;
            }
        }
        self.refill_slowly();
    }

    #[inline(never)]
    fn refill_slowly(&mut self) {
        while (0..=56).contains(&self.have) && !self.ended {
            let Some(&byte) = self.bytes.get(self.at) else {
                self.ended = true;
                break;
            };
            let mut next = self.at + 1;
            if byte == 0xFF {
                while self.bytes.get(next) == Some(&0xFF) {
                    next += 1;
                }
                if self.bytes.get(next) != Some(&0) {
                    self.ended = true;
                    break;
                }
                next += 1;
            }
            self.buffer |= u64::from(byte) << (56 - self.have);
            self.have += 8;
            self.at = next;
        }
    }

    #[inline(always)]
    fn take(&mut self, bits: u32) {
        self.buffer <<= bits;
        self.have -= bits as i32;
    }

    /// Takes the next code and returns its symbol.
    #[inline(always)]
    fn symbol(&mut self, codes: &HuffmanCodes) -> Option<u8> {
        if self.have < ENOUGH {
            self.refill();
        }
        let plain = codes.plain[(self.buffer >> (64 - LOOK)) as usize];
        let (length, symbol) = match plain {
            0 => codes.long((self.buffer >> 48) as u32)?,
            _ => (u32::from(plain >> 8), plain as u8),
        };
        self.take(length);
        Some(symbol)
    }

    /// Steps over a DC coefficient. Here and below, the result is `false` if the data hold a code
    /// that is not in the table.
    #[inline(always)]
    pub fn dc(&mut self, codes: &HuffmanCodes) -> bool {
        if self.have < ENOUGH {
            self.refill();
        }
        let entry = codes.look[(self.buffer >> (64 - LOOK)) as usize];
        if entry != 0 {
            self.take(Step(entry).bits());
            return true;
        }
        let Some((length, symbol)) = codes.long((self.buffer >> 48) as u32) else {
            return false;
        };
        self.take(length + u32::from(symbol & 15));
        true
    }

    /// Steps over the AC coefficients of a block of a sequential image.
    #[inline(always)]
    pub fn ac(&mut self, codes: &HuffmanCodes) -> bool {
        let mut k = 1;
        loop {
            if self.have < ENOUGH {
                self.refill();
            }
            let entry = codes.look[(self.buffer >> (64 - LOOK)) as usize];
            let several = Step(entry >> 16);
            let step = if entry != 0 && k + several.forward() < 64 {
                several
            } else if entry != 0 {
                Step(entry)
            } else {
                match codes.long((self.buffer >> 48) as u32) {
                    Some((length, symbol)) => ac_step(length, symbol),
                    None => return false,
                }
            };
            self.take(step.bits());
            k += step.forward();
            if step.is_end() || k >= 64 {
                return k <= 64;
            }
        }
    }

    pub fn skip_one(&mut self) -> bool {
        self.skip(1);
        true
    }

    /// Takes any number of bits.
    fn skip(&mut self, mut bits: u32) {
        while bits > 0 && self.have >= 0 {
            if self.have < ENOUGH {
                self.refill();
            }
            let now = bits.min(ENOUGH as u32);
            self.take(now);
            bits -= now;
        }
    }

    /// Reads the length of the run of blocks without further coefficients that a code of size 0
    /// begins.
    fn run(&mut self, size: u32) -> u32 {
        if self.have < ENOUGH {
            self.refill();
        }
        let more = if size == 0 {
            0
        } else {
            (self.buffer >> (64 - size)) as u32
        };
        self.take(size);
        (1 << size) + more
    }

    /// Steps over a band of AC coefficients of one block that is sent for the first time.
    pub fn band(
        &mut self,
        codes: &HuffmanCodes,
        first: usize,
        last: usize,
        run: &mut u32,
        nonzero: &mut u64,
    ) -> bool {
        if *run > 0 {
            *run -= 1;
            return true;
        }
        let mut k = first;
        while k <= last {
            let Some(symbol) = self.symbol(codes) else {
                return false;
            };
            let (zeros, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
            if size == 0 && zeros < 15 {
                *run = self.run(zeros as u32) - 1;
                return true;
            }
            k += zeros;
            if size > 0 {
                if k > last {
                    return false;
                }
                *nonzero |= 1 << k;
                self.take(size);
            }
            k += 1;
        }
        true
    }

    /// Steps over one further bit of a band of AC coefficients of one block.
    pub fn refine(
        &mut self,
        codes: &HuffmanCodes,
        first: usize,
        last: usize,
        run: &mut u32,
        nonzero: &mut u64,
    ) -> bool {
        let before = *nonzero;
        let mut k = first;
        while *run == 0 && k <= last {
            let Some(symbol) = self.symbol(codes) else {
                return false;
            };
            let (mut zeros, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
            if size == 0 && zeros < 15 {
                *run = self.run(zeros);
                break;
            }
            self.take(u32::from(size > 0)); // its sign
            // the code skips this many zero coefficients; each nonzero one between them has a
            // correction bit
            let mut corrections = 0;
            while k <= last {
                if before >> k & 1 == 1 {
                    corrections += 1;
                } else if zeros == 0 {
                    break;
                } else {
                    zeros -= 1;
                }
                k += 1;
            }
            self.skip(corrections);
            if size > 0 {
                if k > last {
                    return false;
                }
                *nonzero |= 1 << k;
            }
            k += 1;
        }
        if *run > 0 {
            if k <= last {
                self.skip((before >> k << k & (!0 >> (63 - last))).count_ones());
            }
            *run -= 1;
        }
        true
    }

    /// Goes to the next marker; returns it and its offset.
    ///
    /// # Errors
    /// More than padding is left before the marker.
    fn end_of_part(&mut self) -> Result<(Option<u8>, usize)> {
        let padding = (self.have.max(0) % 8) as u32;
        let padded = padding == 0 || self.buffer >> (64 - padding) == (1 << padding) - 1;
        self.take(padding);
        // whole bytes in the buffer, then those before the marker
        let mut stray = self.have.max(0) as usize / 8;
        let mut blank = (0..stray).all(|i| matches!((self.buffer >> (56 - 8 * i)) as u8, 0 | 0xFF));
        let found = next_marker(self.bytes, self.at);
        let marker_at = found.map_or(self.bytes.len(), |(_, behind)| behind - 2);
        let rest = &self.bytes[self.at.min(marker_at)..marker_at];
        stray += rest.len();
        blank &= rest.iter().all(|&b| matches!(b, 0 | 0xFF));
        ensure!(
            blank || (padded && stray <= MAX_STRAY),
            "{stray} bytes are left over behind the last block"
        );
        Ok((found.map(|(marker, _)| marker), marker_at))
    }

    /// Steps over a restart marker.
    ///
    /// # Errors
    /// The next marker is another one.
    pub fn restart(&mut self, wanted: u8) -> Result<()> {
        let (marker, at) = self.end_of_part()?;
        ensure!(
            marker == Some(0xD0 + wanted),
            "the restart marker {wanted} is missing"
        );
        *self = BitReader::new(self.bytes, at + 2);
        Ok(())
    }

    /// Returns the offset of the marker after the scan.
    pub fn finish(mut self) -> Result<usize> {
        Ok(self.end_of_part()?.1)
    }
}
