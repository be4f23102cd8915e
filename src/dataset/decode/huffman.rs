//! Huffman tables of JPEG files (ITU T.81, annex C), in a form that steps over several codes at
//! once. Depends on nothing. Promises that a table which contradicts itself is refused.

use anyhow::{Result, ensure};
use std::cell::RefCell;
use std::rc::Rc;

/// Number of bits by which tables are indexed. Longer codes are rare and are searched for.
pub(super) const LOOK: u32 = 10;
/// Bits that must be buffered before a table is used: at least a code (16) and the bits that follow
/// it (15).
pub(super) const ENOUGH: i32 = 32;
/// The effect of one or several codes, packed into 16 bits: six for the number of bits that they
/// take (with the bits that follow each code), seven for the number of coefficients that they
/// advance, one for "the rest of the block is zero".
#[derive(Clone, Copy)]
pub(super) struct Step(pub u32);

impl Step {
    fn new(bits: u32, forward: u32, end: bool) -> Step {
        Step(bits | forward << 6 | u32::from(end) << 13)
    }

    pub fn bits(self) -> u32 {
        self.0 & 63
    }

    pub fn forward(self) -> u32 {
        self.0 >> 6 & 127
    }

    pub fn is_end(self) -> bool {
        self.0 >> 13 & 1 == 1
    }
}

/// A Huffman table.
pub(super) struct HuffmanCodes {
    /// Indexed by the next [`LOOK`] bits. Each entry holds two [`Step`]s: in the lower half that of
    /// the first code, in the upper half that of all codes that these bits hold completely. 0 = the
    /// code is longer, or there is none.
    pub look: Vec<u32>,
    /// Indexed by the next [`LOOK`] bits: length of the code in bits x 256 + symbol; 0 as above.
    pub plain: Vec<u16>,
    /// For each length: the first 16 bits that begin with a longer code.
    above: [u32; 17],
    /// For each length: the difference between the index of a symbol and its code.
    offset: [i32; 17],
    symbols: Vec<u8>,
}

/// A table that is shared by several images.
#[derive(Clone)]
pub(super) struct SharedCodes(pub Rc<HuffmanCodes>);

thread_local! {
    /// The tables that were made last: most files of a collection use the standard ones, and making
    /// a table takes as long as checking a small scan.
    static MADE: RefCell<Vec<(Vec<u8>, bool, SharedCodes)>> = const { RefCell::new(Vec::new()) };
}
/// Number of tables that are kept. A file with its own tables has up to four for a scan.
const KEPT: usize = 8;

impl SharedCodes {
    /// Returns the table of a definition: 16 counts, then the symbols.
    pub fn get(definition: &[u8], ac: bool) -> Result<SharedCodes> {
        MADE.with_borrow_mut(|made| {
            if let Some((.., table)) = made.iter().find(|(d, a, _)| d == definition && *a == ac) {
                return Ok(table.clone());
            }
            let table = SharedCodes(Rc::new(HuffmanCodes::new(definition, ac)?));
            if made.len() >= KEPT {
                made.remove(0);
            }
            made.push((definition.to_vec(), ac, table.clone()));
            Ok(table)
        })
    }
}

impl HuffmanCodes {
    fn new(definition: &[u8], ac: bool) -> Result<HuffmanCodes> {
        let (counts, symbols) = definition.split_at(16);
        let mut codes = HuffmanCodes {
            look: Vec::new(),
            plain: vec![0; 1 << LOOK],
            above: [0; 17],
            offset: [0; 17],
            symbols: symbols.to_vec(),
        };
        let (mut code, mut place) = (0u32, 0u32);
        for length in 1..=16u32 {
            let count = u32::from(counts[length as usize - 1]);
            codes.offset[length as usize] = place as i32 - code as i32;
            for _ in 0..count {
                ensure!(
                    code < 1 << length,
                    "a table of codes that contradicts itself"
                );
                if length <= LOOK {
                    let shift = LOOK - length;
                    let entry = (length as u16) << 8 | u16::from(symbols[place as usize]);
                    codes.plain[(code << shift) as usize..((code + 1) << shift) as usize]
                        .fill(entry);
                }
                code += 1;
                place += 1;
            }
            codes.above[length as usize] = code << (16 - length);
            code <<= 1;
        }
        codes.look = (0..1u32 << LOOK)
            .map(|bits| codes.entry(bits, ac))
            .collect();
        Ok(codes)
    }

    /// An entry of `look`.
    fn entry(&self, bits: u32, ac: bool) -> u32 {
        let (mut used, mut forward, mut end) = (0, 0, false);
        let mut first = None;
        while used < LOOK && !end {
            let plain = self.plain[(bits << used & ((1 << LOOK) - 1)) as usize];
            let (length, symbol) = (u32::from(plain >> 8), plain as u8);
            if plain == 0 || used + length > LOOK {
                break;
            }
            let step = if ac {
                ac_step(length, symbol)
            } else {
                Step::new(length + u32::from(symbol & 15), 0, true)
            };
            if used + step.bits() > ENOUGH as u32 - 1 {
                break;
            }
            used += step.bits();
            forward += step.forward();
            end = step.is_end();
            first.get_or_insert(step);
        }
        first.map_or(0, |first| {
            first.0 | Step::new(used, forward.min(127), end).0 << 16
        })
    }

    /// Length and symbol of the code at the start of these 16 bits.
    pub fn long(&self, bits: u32) -> Option<(u32, u8)> {
        let length = (1..=16).find(|&length| bits < self.above[length])?;
        let place = (bits >> (16 - length)) as i32 + self.offset[length];
        Some((length as u32, *self.symbols.get(place as usize)?))
    }
}

/// The effect of one AC code in a sequential image.
pub(super) fn ac_step(length: u32, symbol: u8) -> Step {
    let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
    match (run, size) {
        (15, 0) => Step::new(length, 16, false),
        (_, 0) => Step::new(length, 0, true),
        _ => Step::new(length + size, run + 1, false),
    }
}
