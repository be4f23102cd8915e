//! Checks whether a JPEG holds the data of every block. A JPEG decoder paints missing blocks grey
//! and reports success; this check steps over all Huffman codes (ITU T.81, annexes F and G) without
//! computing a pixel. Depends on `bits` and `huffman`. Promises an error if data end early, contain
//! a code that is in no table, or lack a restart marker or a scan; and no error for what decoders
//! rightly skip: fill bytes, stray bytes before a marker, anything after the last scan.

use super::bits::{BitReader, next_marker};
use super::huffman::SharedCodes;
use crate::support::failure;
use anyhow::{Context, Result, bail, ensure};

/// Largest number of scans of an image. Encoders write about ten; a small hostile file can hold
/// thousands, each of which takes as long as a whole image.
const MAX_SCANS: u32 = 500;

/// Checks the first image of a JPEG file. The frame header must be of a kind that the decoder
/// accepts.
///
/// # Errors
/// What is missing or damaged.
pub(super) fn check(bytes: &[u8]) -> Result<()> {
    let mut checker = ScanChecker {
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
            0x01 | 0xD0..=0xD8 => continue, // these markers have no segment
            0xD9 => break,
            _ => {}
        }
        let Some(segment) = segment(bytes, at) else {
            break;
        };
        at += 2 + segment.len();
        match marker {
            0xC0..=0xC2 => {
                ensure!(checker.frame.is_none(), "a second frame header");
                checker.frame = Some(Frame::read(segment, marker == 0xC2)?);
            }
            0xC4 => checker.tables(segment)?,
            0xDD => {
                checker.restart = u32::from(u16::from_be_bytes([
                    *segment.first().unwrap_or(&0),
                    *segment.get(1).unwrap_or(&0),
                ]))
            }
            0xDA => at = checker.scan(segment, at)?,
            _ => {}
        }
    }
    checker.frame.context("no frame header")?.check_complete()
}

/// Content of the segment whose length field is at `at`.
fn segment(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let length = usize::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    bytes.get(at + 2..at + length)
}

/// One colour plane.
struct Component {
    id: u8,
    h: u32,
    v: u32,
    /// Blocks across and down, without those that only pad the last units of a scan of several
    /// components.
    blocks: (u32, u32),
    /// For every coefficient the lowest bit that was sent; -1 = none yet.
    lowest: [i8; 64],
    /// For every block of a progressive image, a bit for each coefficient that is nonzero so far:
    /// refinements depend on it.
    nonzero: Vec<u64>,
}

/// The frame header.
struct Frame {
    progressive: bool,
    components: Vec<Component>,
    /// Units (MCUs) of all components across and down.
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

    /// Checks that every coefficient of every component was sent down to its last bit.
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

/// The state of the check: everything that the meaning of scan data depends on.
struct ScanChecker<'a> {
    bytes: &'a [u8],
    frame: Option<Frame>,
    dc: [Option<SharedCodes>; 4],
    ac: [Option<SharedCodes>; 4],
    /// Number of units between two restart markers; 0 = there are none.
    restart: u32,
    scans: u32,
}

/// What a scan sends for each block.
enum ScanKind {
    /// All coefficients of a block at once.
    Whole,
    /// The DC coefficient without its lowest bits.
    Dc,
    /// One further bit of the DC coefficient.
    DcRefined,
    /// A band of AC coefficients without their lowest bits.
    Ac,
    /// One further bit of a band of AC coefficients.
    AcRefined,
}

impl ScanChecker<'_> {
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
            *slot = Some(SharedCodes::get(definition, place >> 4 != 0)?);
            segment = behind;
        }
        Ok(())
    }

    /// Steps over the data of a scan that begin at `at`; returns the offset of the marker after
    /// them.
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
            (false, ..) => (ScanKind::Whole, 0, 63, 0),
            (true, 0, 0) => (ScanKind::Dc, 0, 0, low),
            (true, 0, _) => (ScanKind::DcRefined, 0, 0, low),
            (true, first, 0) => (ScanKind::Ac, first, band.1, low),
            (true, first, _) => (ScanKind::AcRefined, first, band.1, low),
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
            if matches!(kind, ScanKind::Ac | ScanKind::AcRefined) && component.nonzero.is_empty() {
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
        let needs = |table: Option<&'_ Option<SharedCodes>>| -> Result<_> {
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
            let dc = matches!(kind, ScanKind::Whole | ScanKind::Dc)
                .then(|| needs(dc))
                .transpose()?;
            let ac = matches!(kind, ScanKind::Whole | ScanKind::Ac | ScanKind::AcRefined)
                .then(|| needs(ac))
                .transpose()?;
            tables.push((dc, ac));
        }
        let units = u64::from(units.0) * u64::from(units.1);
        let mut bits = BitReader::new(self.bytes, at);
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
                        (ScanKind::Whole, Some(dc), Some(ac)) => bits.dc(dc) && bits.ac(ac),
                        (ScanKind::Dc, Some(dc), _) => bits.dc(dc),
                        (ScanKind::DcRefined, ..) => bits.skip_one(),
                        (ScanKind::Ac, _, Some(ac)) => bits.band(
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
