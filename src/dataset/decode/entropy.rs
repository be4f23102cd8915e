//! Whether every block of a JPEG is in its data. A JPEG decoder paints what is missing grey and
//! reports success; this walk over the Huffman codes (ITU T.81, annexes F and G) finds out what is
//! missing without making a pixel. Depends on `failure` alone. Promises an error in words for data
//! that end early, hold a code of no table, lack a restart marker or lack a scan, and no alarm for
//! what decoders rightly skip: fill bytes, stray bytes before a marker, anything behind the last
//! scan.

use crate::support::failure;
use anyhow::{Context, Result, bail, ensure};
use std::cell::RefCell;

/// Bits of a code that one look into a table covers; longer codes are rare and are searched for.
const LOOK: u32 = 10;
/// Bits in hand before a table is asked: enough for a code (16) and the bits that follow it (15).
const ENOUGH: i32 = 32;
/// Bytes that may stand between the last block of a part and the next marker. Some cameras write a
/// few; a damaged part that happens to give all its blocks mostly leaves more.
const MAX_STRAY: usize = 16;

/// Scans of an image. Encoders make ten or so; a small file can hold thousands, each of which
/// takes as long as a whole image.
const MAX_SCANS: u32 = 500;

/// Checks the image that a JPEG file begins with. The frame header must be one that the decoder
/// takes.
pub(super) fn check(bytes: &[u8]) -> Result<()> {
    let mut walk = Walk {
        bytes,
        frame: None,
        dc: [const { None }; 4],
        ac: [const { None }; 4],
        restart: 0,
        scans: 0,
    };
    let mut at = 2;
    while let Some((marker, behind)) = next_marker(bytes, at) {
        at = behind;
        match marker {
            0x01 | 0xD0..=0xD8 => continue, // these stand alone, without a length
            0xD9 => break,
            _ => {}
        }
        let Some(segment) = segment(bytes, at) else {
            break;
        };
        at += 2 + segment.len();
        match marker {
            0xC0..=0xC2 => {
                ensure!(walk.frame.is_none(), "a second frame header");
                walk.frame = Some(Frame::read(segment, marker == 0xC2)?);
            }
            0xC4 => walk.tables(segment)?,
            0xDD => {
                walk.restart = u32::from(u16::from_be_bytes([
                    *segment.first().unwrap_or(&0),
                    *segment.get(1).unwrap_or(&0),
                ]))
            }
            0xDA => at = walk.scan(segment, at)?,
            _ => {}
        }
    }
    walk.frame.context("no frame header")?.check_complete()
}

/// The next marker at or behind `at`, and the place behind it. Fill bytes (FF) and stray bytes may
/// stand before it.
fn next_marker(bytes: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at += bytes.get(at..)?.iter().position(|&b| b == 0xFF)? + 1;
        match *bytes.get(at)? {
            0 | 0xFF => {}
            marker => return Some((marker, at + 1)),
        }
    }
}

/// What a segment holds whose length stands at `at`.
fn segment(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let length = usize::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    bytes.get(at + 2..at + length)
}

/// One colour plane.
struct Component {
    id: u8,
    h: u32,
    v: u32,
    /// Blocks across and down, without those that only fill up a last unit of several components.
    blocks: (u32, u32),
    /// For every coefficient the lowest bit that was sent; -1 = none yet.
    lowest: [i8; 64],
    /// For every block of a progressive image which coefficients are not zero so far: refinements
    /// depend on it.
    nonzero: Vec<u64>,
}

struct Frame {
    progressive: bool,
    components: Vec<Component>,
    /// Units of all components across and down.
    units: (u32, u32),
}

impl Frame {
    fn read(segment: &[u8], progressive: bool) -> Result<Frame> {
        ensure!(
            segment.len() >= 6 && segment.len() >= 6 + 3 * usize::from(segment[5]),
            "the frame header is cut short"
        );
        let height = u32::from(u16::from_be_bytes([segment[1], segment[2]]));
        let width = u32::from(u16::from_be_bytes([segment[3], segment[4]]));
        let each = segment[6..].chunks_exact(3).take(segment[5].into());
        let factors: Vec<(u8, u32, u32)> = each
            .map(|c| (c[0], u32::from(c[1] >> 4), u32::from(c[1] & 15)))
            .collect();
        ensure!(
            !factors.is_empty()
                && factors
                    .iter()
                    .all(|f| (1..=4).contains(&f.1) && (1..=4).contains(&f.2)),
            "sampling factors out of range"
        );
        let (h_max, v_max) = factors
            .iter()
            .fold((1, 1), |(h, v), f| (h.max(f.1), v.max(f.2)));
        let component = |&(id, h, v): &(u8, u32, u32)| Component {
            id,
            h,
            v,
            blocks: (
                (width * h).div_ceil(h_max).div_ceil(8),
                (height * v).div_ceil(v_max).div_ceil(8),
            ),
            lowest: [-1; 64],
            nonzero: Vec::new(),
        };
        let components = factors.iter().map(component).collect();
        Ok(Frame {
            progressive,
            components,
            units: (width.div_ceil(8 * h_max), height.div_ceil(8 * v_max)),
        })
    }

    /// Whether every coefficient of every component came to its last bit.
    fn check_complete(&self) -> Result<()> {
        for (i, component) in self.components.iter().enumerate() {
            let sent = component.lowest.iter().filter(|&&l| l >= 0).count();
            let (i, all) = (i + 1, self.components.len());
            ensure!(sent > 0, "no data for colour plane {i} of {all}");
            ensure!(
                sent == 64,
                "only {sent} of 64 frequencies were sent for colour plane {i} of {all}"
            );
            ensure!(
                component.lowest == [0; 64],
                "the last refinement is missing for colour plane {i} of {all}"
            );
        }
        Ok(())
    }
}

/// Everything the data depend on.
struct Walk<'a> {
    bytes: &'a [u8],
    frame: Option<Frame>,
    dc: [Option<Table>; 4],
    ac: [Option<Table>; 4],
    /// Units between two restart markers; 0 = there are none.
    restart: u32,
    scans: u32,
}

/// Part of a scan that works in the same way for every unit.
enum Kind {
    /// All coefficients of a block at once.
    Whole,
    /// The DC coefficient, all bits but the lowest ones.
    Dc,
    /// One further bit of the DC coefficient.
    DcRefined,
    /// A band of AC coefficients, all bits but the lowest ones.
    Ac,
    /// One further bit of a band of AC coefficients.
    AcRefined,
}

impl Walk<'_> {
    /// Reads the Huffman tables of a segment.
    fn tables(&mut self, mut segment: &[u8]) -> Result<()> {
        const SHORT: &str = "a table of codes is cut short";
        while let Some((&place, rest)) = segment.split_first() {
            ensure!(rest.len() >= 16, SHORT);
            let count: usize = rest[..16].iter().map(|&n| usize::from(n)).sum();
            ensure!(count <= 256 && rest.len() >= 16 + count, SHORT);
            let (definition, behind) = rest.split_at(16 + count);
            let tables = if place >> 4 == 0 {
                &mut self.dc
            } else {
                &mut self.ac
            };
            let slot = tables
                .get_mut(usize::from(place & 15))
                .context("a table of codes with a number above 3")?;
            *slot = Some(Table::get(definition, place >> 4 != 0)?);
            segment = behind;
        }
        Ok(())
    }

    /// Walks the data of a scan that begin at `at`; gives the place behind them.
    fn scan(&mut self, header: &[u8], at: usize) -> Result<usize> {
        self.scans += 1;
        ensure!(self.scans <= MAX_SCANS, "more than {MAX_SCANS} scans");
        let frame = self
            .frame
            .as_mut()
            .context("data before the frame header")?;
        let count = usize::from(*header.first().context("an empty scan header")?);
        ensure!(
            (1..=4).contains(&count) && header.len() >= 4 + 2 * count,
            "the header of scan {} is cut short",
            self.scans
        );
        let mut members = Vec::with_capacity(count);
        for pair in header[1..1 + 2 * count].chunks_exact(2) {
            let index = frame.components.iter().position(|c| c.id == pair[0]);
            let index = index.with_context(|| {
                format!(
                    "scan {} is for a colour plane that the frame lacks",
                    self.scans
                )
            })?;
            members.push((
                index,
                self.dc.get(usize::from(pair[1] >> 4)),
                self.ac.get(usize::from(pair[1] & 15)),
            ));
        }
        let band = (
            usize::from(header[1 + 2 * count]),
            usize::from(header[2 + 2 * count]),
        );
        let (high, low) = (
            (header[3 + 2 * count] >> 4) as i8,
            (header[3 + 2 * count] & 15) as i8,
        );
        let (kind, first, last, low) = match (frame.progressive, band.0, high) {
            (false, ..) => (Kind::Whole, 0, 63, 0),
            (true, 0, 0) => (Kind::Dc, 0, 0, low),
            (true, 0, _) => (Kind::DcRefined, 0, 0, low),
            (true, first, 0) => (Kind::Ac, first, band.1, low),
            (true, first, _) => (Kind::AcRefined, first, band.1, low),
        };
        ensure!(
            first <= last && last < 64 && (first == 0 || count == 1),
            "scan {} has an impossible range of frequencies",
            self.scans
        );
        for &(index, ..) in &members {
            let component = &mut frame.components[index];
            for lowest in &mut component.lowest[first..=last] {
                ensure!(
                    high == 0 || *lowest >= 0,
                    "scan {} refines what was never sent",
                    self.scans
                );
                *lowest = low;
            }
            if matches!(kind, Kind::Ac | Kind::AcRefined) && component.nonzero.is_empty() {
                let blocks = component.blocks.0 as usize * component.blocks.1 as usize;
                component
                    .nonzero
                    .try_reserve_exact(blocks)
                    .map_err(|_| failure::no_memory(blocks * 8, "blocks"))?;
                component.nonzero.resize(blocks, 0);
            }
        }
        // A scan of one component goes block by block; one of several goes by units, with some
        // blocks of each.
        let (units, repeats): (_, Vec<u32>) = match members[..] {
            [(index, ..)] => (frame.components[index].blocks, vec![1]),
            _ => (
                frame.units,
                members
                    .iter()
                    .map(|&(i, ..)| frame.components[i].h * frame.components[i].v)
                    .collect(),
            ),
        };
        let needs = |table: Option<&'_ Option<Table>>| -> Result<_> {
            Ok(table
                .and_then(Option::clone)
                .with_context(|| {
                    format!(
                        "scan {} uses a table of codes that is not there",
                        self.scans
                    )
                })?
                .0)
        };
        let mut tables = Vec::with_capacity(count);
        for &(_, dc, ac) in &members {
            let dc = matches!(kind, Kind::Whole | Kind::Dc)
                .then(|| needs(dc))
                .transpose()?;
            let ac = matches!(kind, Kind::Whole | Kind::Ac | Kind::AcRefined)
                .then(|| needs(ac))
                .transpose()?;
            tables.push((dc, ac));
        }
        let units = u64::from(units.0) * u64::from(units.1);
        let mut bits = Bits::new(self.bytes, at);
        let mut run = 0u32; // blocks that are still to be skipped, in a band of AC coefficients
        let place = |unit: u64| format!("scan {}, block {} of {units}", self.scans, unit + 1);
        for unit in 0..units {
            if self.restart > 0 && unit > 0 && unit.is_multiple_of(self.restart.into()) {
                let wanted = (unit / u64::from(self.restart) - 1) % 8;
                bits.restart(wanted as u8).with_context(|| place(unit))?;
                run = 0;
            }
            for ((dc, ac), &repeat) in tables.iter().zip(&repeats) {
                for _ in 0..repeat {
                    let step = match (&kind, dc, ac) {
                        (Kind::Whole, Some(dc), Some(ac)) => bits.dc(dc) && bits.ac(ac),
                        (Kind::Dc, Some(dc), _) => bits.dc(dc),
                        (Kind::DcRefined, ..) => bits.skip_one(),
                        (Kind::Ac, _, Some(ac)) => bits.band(
                            ac,
                            first,
                            last,
                            &mut run,
                            &mut frame.components[members[0].0].nonzero[unit as usize],
                        ),
                        (_, _, Some(ac)) => bits.refine(
                            ac,
                            first,
                            last,
                            &mut run,
                            &mut frame.components[members[0].0].nonzero[unit as usize],
                        ),
                        _ => false,
                    };
                    if bits.have < 0 {
                        bail!("the data end in {}", place(unit));
                    }
                    ensure!(step, "an impossible code in {}", place(unit));
                }
            }
        }
        bits.finish()
            .with_context(|| format!("scan {}", self.scans))
    }
}

/// What one or several codes do, in 16 bits: six for the bits that they take (with those that
/// follow a code), seven for how many coefficients they go forward, one for "the rest of the block
/// is zero".
#[derive(Clone, Copy)]
struct Half(u32);

impl Half {
    fn new(bits: u32, forward: u32, end: bool) -> Half {
        Half(bits | forward << 6 | u32::from(end) << 13)
    }

    fn bits(self) -> u32 {
        self.0 & 63
    }

    fn forward(self) -> u32 {
        self.0 >> 6 & 127
    }

    fn is_end(self) -> bool {
        self.0 >> 13 & 1 == 1
    }
}

/// A Huffman table.
struct Codes {
    /// By the next [`LOOK`] bits: two [`Half`]s, the lower one for the first code, the upper one
    /// for all codes that lie in these bits whole; 0 = a longer code, or none.
    look: Vec<u32>,
    /// By the next [`LOOK`] bits: length of the code in bits x 256 + symbol; 0 as above.
    plain: Vec<u16>,
    /// The first code that is longer than so many bits, moved up to 16 bits.
    above: [u32; 17],
    /// What to add to a code of so many bits for its place among the symbols.
    offset: [i32; 17],
    symbols: Vec<u8>,
}

/// A table that several images share.
#[derive(Clone)]
struct Table(std::rc::Rc<Codes>);

thread_local! {
    /// The last tables: most files of a collection share the standard ones, and making one takes as
    /// long as walking a small scan.
    static MADE: RefCell<Vec<(Vec<u8>, bool, Table)>> = const { RefCell::new(Vec::new()) };
}
/// Tables kept. A file with tables of its own has up to four for a scan.
const KEPT: usize = 8;

impl Table {
    /// The table of a definition: 16 counts and the symbols.
    fn get(definition: &[u8], ac: bool) -> Result<Table> {
        MADE.with_borrow_mut(|made| {
            if let Some((.., table)) = made.iter().find(|(d, a, _)| d == definition && *a == ac) {
                return Ok(table.clone());
            }
            let table = Table(std::rc::Rc::new(Codes::new(definition, ac)?));
            if made.len() >= KEPT {
                made.remove(0);
            }
            made.push((definition.to_vec(), ac, table.clone()));
            Ok(table)
        })
    }
}

impl Codes {
    fn new(definition: &[u8], ac: bool) -> Result<Codes> {
        let (counts, symbols) = definition.split_at(16);
        let mut codes = Codes {
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
                Half::new(length + u32::from(symbol & 15), 0, true)
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
            first.0 | Half::new(used, forward.min(127), end).0 << 16
        })
    }

    /// Length and symbol of the code that the upper 16 bits begin with.
    fn long(&self, bits: u32) -> Option<(u32, u8)> {
        let length = (1..=16).find(|&length| bits < self.above[length])?;
        let place = (bits >> (16 - length)) as i32 + self.offset[length];
        Some((length as u32, *self.symbols.get(place as usize)?))
    }
}

/// The step of one AC code in a sequential image.
fn ac_step(length: u32, symbol: u8) -> Half {
    let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
    match (run, size) {
        (15, 0) => Half::new(length, 16, false),
        (_, 0) => Half::new(length, 0, true),
        _ => Half::new(length + size, run + 1, false),
    }
}

/// The bits of a scan without the stuffed zeros, up to the next marker.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The next bits, from the top.
    buffer: u64,
    /// How many of them are there; below 0 where more were asked for than the data hold.
    have: i32,
    /// Whether `at` is the place of a marker or the end of the file.
    ended: bool,
}

impl Bits<'_> {
    fn new(bytes: &[u8], at: usize) -> Bits<'_> {
        Bits {
            bytes,
            at,
            buffer: 0,
            have: 0,
            ended: false,
        }
    }

    /// Brings at least 56 bits in hand, where there are as many.
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
                // the bits of a byte that was not taken whole come again
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

    /// The next symbol, its code taken.
    #[inline(always)]
    fn symbol(&mut self, codes: &Codes) -> Option<u8> {
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

    /// A DC coefficient. Here and below: false where the data hold no such code.
    #[inline(always)]
    fn dc(&mut self, codes: &Codes) -> bool {
        if self.have < ENOUGH {
            self.refill();
        }
        let entry = codes.look[(self.buffer >> (64 - LOOK)) as usize];
        if entry != 0 {
            self.take(Half(entry).bits());
            return true;
        }
        let Some((length, symbol)) = codes.long((self.buffer >> 48) as u32) else {
            return false;
        };
        self.take(length + u32::from(symbol & 15));
        true
    }

    /// The AC coefficients of a block of a sequential image.
    #[inline(always)]
    fn ac(&mut self, codes: &Codes) -> bool {
        let mut k = 1;
        loop {
            if self.have < ENOUGH {
                self.refill();
            }
            let entry = codes.look[(self.buffer >> (64 - LOOK)) as usize];
            let several = Half(entry >> 16);
            let step = if entry != 0 && k + several.forward() < 64 {
                several
            } else if entry != 0 {
                Half(entry)
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

    fn skip_one(&mut self) -> bool {
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

    /// The run of blocks without further coefficients that a code of size 0 begins.
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

    /// A band of AC coefficients of one block, sent for the first time.
    fn band(
        &mut self,
        codes: &Codes,
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

    /// One further bit of a band of AC coefficients of one block.
    fn refine(
        &mut self,
        codes: &Codes,
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
            // so many zeros are passed, and each coefficient between them that is not zero has a
            // bit of its own
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

    /// Goes to the next marker, and says what it is and where it stands. Fails where what is left
    /// is more than padding.
    fn end_of_part(&mut self) -> Result<(Option<u8>, usize)> {
        let padding = (self.have.max(0) % 8) as u32;
        let padded = padding == 0 || self.buffer >> (64 - padding) == (1 << padding) - 1;
        self.take(padding);
        // bytes in hand, then those before the marker
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

    /// Goes over a restart marker.
    fn restart(&mut self, wanted: u8) -> Result<()> {
        let (marker, at) = self.end_of_part()?;
        ensure!(
            marker == Some(0xD0 + wanted),
            "the restart marker {wanted} is missing"
        );
        *self = Bits::new(self.bytes, at + 2);
        Ok(())
    }

    /// The place of the marker behind the scan.
    fn finish(mut self) -> Result<usize> {
        Ok(self.end_of_part()?.1)
    }
}
