//! One LQ/HR pair to the bytes of a record and back, without loss: `raw`, or prediction and zstd.
//! Depends on zstd. Promises that decoding returns exactly what was encoded, reads nothing outside
//! the record, fails with an error on any payload it cannot make sense of, and allocates nothing
//! when the scratch is reused.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod bands;
mod lq;
mod predict;

use super::format::{Geometry, u32_at};
use crate::support::isa::Isa;
use anyhow::{Context, Result, bail, ensure};
use bands::{Bands, Window};
use lq::Guess;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, ParamSwitch, Strategy};

/// Residuals of photographs hold no repetitions worth telling: zstd is to look for none and to pack
/// all bytes by Huffman's code alone, which is smaller and nearly twice as fast both ways
/// (docs/codec.md). This is its step between two looks, beyond the end of any plane.
const NO_SEARCH: u32 = 1 << 17;
/// Drawings and flat areas are all repetitions; where they may be, the plane is packed this way as
/// well.
const SEARCH_LEVEL: i32 = 1;
/// Shortest repetition looked for then: shorter ones cost more than they save.
const SEARCH_MIN_MATCH: u32 = 7;
/// A search is tried where this share of a plane's runs of 32 bytes are all zero: one in so many.
const SEARCH_SHARE: usize = 4;
/// What a zstd decompression context holds, measured with zstd 1.5 (counted in the loader's memory
/// bound).
const ZSTD_CONTEXT_BYTES: u64 = 192 << 10;

/// How the pairs of a new set are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Codec {
    /// The pixels as they are: the largest and the fastest.
    Raw,
    /// Predicted from their neighbours, the LQ from the HR, then zstd: lossless, about half the
    /// size.
    Predict,
}

impl Codec {
    /// The name used on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Codec::Raw => "raw",
            Codec::Predict => "predict",
        }
    }

    /// The identifier in a record's index entry.
    pub fn id(self) -> u8 {
        match self {
            Codec::Raw => 0,
            Codec::Predict => 1,
        }
    }

    /// The codec of an index entry, if this program knows it.
    pub fn from_id(id: u8) -> Option<Codec> {
        [Codec::Raw, Codec::Predict]
            .into_iter()
            .find(|c| c.id() == id)
    }
}

/// The frames of a `predict` payload: green, blue and red of the HR, then the LQ.
const FRAMES: usize = 4;
/// Byte 0 says how the LQ is predicted, 1..4 are zero, then the length of every frame.
const PREFIX_BYTES: usize = 4 + 4 * FRAMES;
/// Byte 0: the LQ is predicted from its own neighbours, as the HR is.
const LQ_OWN: u8 = 0;
/// Byte 0: the LQ is stored as the difference from the block means of the HR.
const LQ_MEAN: u8 = 1;
/// Byte 0: the LQ is stored as the difference from the bicubic half of the HR.
const LQ_HALF: u8 = 2;
/// Mean size of a difference up to which a way of telling the LQ is taken without trying the
/// others.
const GOOD_ENOUGH: u64 = 1;

/// Room for encoding, one for each thread.
pub struct Encoder {
    geometry: Geometry,
    /// Planes of the HR, of what is predicted of it, of its residuals.
    planes: Vec<u8>,
    values: Vec<u8>,
    residuals: Vec<u8>,
    /// Planes of the LQ, and of the best and the present try to tell it.
    lq_planes: Vec<u8>,
    best: Vec<u8>,
    present: Vec<u8>,
    room: lq::Room,
    isa: Isa,
    packer: Packer,
}

impl Encoder {
    /// Allocates for pairs of one geometry.
    pub fn new(geometry: Geometry) -> Result<Self> {
        let (lq, hr) = bands_of(geometry);
        Ok(Encoder {
            geometry,
            planes: vec![0; hr.bytes()],
            values: vec![0; hr.bytes()],
            residuals: vec![0; hr.bytes()],
            lq_planes: vec![0; lq.bytes()],
            best: vec![0; lq.bytes()],
            present: vec![0; lq.bytes()],
            room: lq::Room::new(hr),
            isa: Isa::detect(),
            packer: Packer::new(hr.plane().max(lq.bytes()))?,
        })
    }

    /// Appends the payload of one pair to `out` and returns the codec that it was stored with:
    /// `Raw` where prediction would not make it smaller.
    pub fn encode(
        &mut self,
        codec: Codec,
        lq: &[u8],
        hr: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Codec> {
        let g = self.geometry;
        ensure!(
            lq.len() == g.lq_bytes() && hr.len() == g.hr_bytes(),
            "the pair does not have the sizes of the set"
        );
        let start = out.len();
        if codec == Codec::Predict {
            self.predict(lq, hr, out)?;
            if out.len() - start < lq.len() + hr.len() {
                return Ok(Codec::Predict);
            }
            out.truncate(start);
        }
        out.extend_from_slice(lq);
        out.extend_from_slice(hr);
        Ok(Codec::Raw)
    }

    fn predict(&mut self, lq: &[u8], hr: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let (lq_bands, hr_bands) = bands_of(self.geometry);
        let start = out.len();
        out.extend_from_slice(&[0; PREFIX_BYTES]);
        bands::split(self.isa, hr, hr_bands, &mut self.planes);
        predict::residuals(
            self.isa,
            &self.planes,
            hr_bands,
            &mut self.values,
            &mut self.residuals,
        );
        for (number, plane) in self.residuals.chunks_exact(hr_bands.plane()).enumerate() {
            self.packer.push(plane, number, start, out)?;
        }
        bands::split(self.isa, lq, lq_bands, &mut self.lq_planes);
        out[start] = self.tell_lq(lq_bands, hr_bands);
        self.packer.push(&self.best, 3, start, out)
    }

    /// Leaves the cheapest way of telling the LQ in `best` and returns its number. An LQ that came
    /// with the images may be anything, so this is looked at for every pair.
    fn tell_lq(&mut self, lq: Bands, hr: Bands) -> u8 {
        let mut chosen = (LQ_OWN, u64::MAX);
        for way in [LQ_HALF, LQ_MEAN, LQ_OWN] {
            match guess_of(way, self.geometry) {
                Some(guess) => {
                    self.present.fill(0);
                    lq::add(
                        self.isa,
                        guess,
                        &self.planes,
                        hr,
                        &mut self.present,
                        lq,
                        &mut self.room,
                    );
                    difference(&self.lq_planes, &mut self.present, lq);
                }
                None if way == LQ_OWN => predict::residuals(
                    self.isa,
                    &self.lq_planes,
                    lq,
                    &mut self.values,
                    &mut self.present,
                ),
                None => continue,
            }
            let cost = cost(self.isa, &self.present);
            if cost < chosen.1 {
                chosen = (way, cost);
                std::mem::swap(&mut self.best, &mut self.present);
            }
            if cost <= GOOD_ENOUGH * lq.bytes() as u64 {
                break;
            }
        }
        chosen.0
    }
}

/// Turns a guess into what it lacks: green, and the others less the green.
fn difference(planes: &[u8], guess: &mut [u8], bands: Bands) {
    for (g, v) in guess.iter_mut().zip(planes) {
        *g = v.wrapping_sub(*g);
    }
    let (green, rest) = guess.split_at_mut(bands.plane());
    for other in rest.chunks_exact_mut(bands.plane()) {
        for (d, g) in other.iter_mut().zip(&*green) {
            *d = d.wrapping_sub(*g);
        }
        predict::clear_padding(other, bands);
    }
    predict::clear_padding(green, bands);
}

/// Sum of the sizes of residuals: foretells well enough what they will take.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
fn cost(isa: Isa, residuals: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        // SAFETY: an `Isa` with AVX2 exists only where the processor has it
        return unsafe { avx2::cost(residuals) };
    }
    cost_plain(residuals)
}

fn cost_plain(residuals: &[u8]) -> u64 {
    residuals
        .iter()
        .map(|&d| u64::from((d as i8).unsigned_abs()))
        .sum()
}

/// Planes of residuals to zstd frames.
struct Packer {
    literal: Compressor<'static>,
    searching: Compressor<'static>,
    frame: Vec<u8>,
    other: Vec<u8>,
}

impl Packer {
    fn new(longest: usize) -> Result<Self> {
        let with = |parameters: &[CParameter]| -> Result<Compressor<'static>> {
            let mut zstd = Compressor::new(SEARCH_LEVEL).context("cannot set up zstd")?;
            zstd.include_checksum(false)?; // the record has its own
            parameters
                .iter()
                .try_for_each(|p| zstd.set_parameter(*p))
                .context("cannot set up zstd")?;
            Ok(zstd)
        };
        let room = zstd::zstd_safe::compress_bound(longest);
        Ok(Packer {
            literal: with(&[
                CParameter::Strategy(Strategy::ZSTD_fast),
                CParameter::TargetLength(NO_SEARCH),
                CParameter::HashLog(6), // the smallest: less to clear
                CParameter::MinMatch(SEARCH_MIN_MATCH),
                CParameter::LiteralCompressionMode(ParamSwitch::Enable), // by itself zstd would store them as they are
            ])?,
            searching: with(&[CParameter::MinMatch(SEARCH_MIN_MATCH)])?,
            frame: vec![0; room],
            other: vec![0; room],
        })
    }

    /// Appends a plane's frame and writes its length into the prefix at `start`.
    fn push(&mut self, plane: &[u8], number: usize, start: usize, out: &mut Vec<u8>) -> Result<()> {
        let mut written = self
            .literal
            .compress_to_buffer(plane, &mut self.frame)
            .context("zstd cannot pack a plane")?;
        let empty = plane
            .as_chunks::<32>()
            .0
            .iter()
            .filter(|run| **run == [0; 32])
            .count();
        if empty >= plane.len() / 32 / SEARCH_SHARE {
            let found = self
                .searching
                .compress_to_buffer(plane, &mut self.other)
                .context("zstd cannot pack a plane")?;
            if found < written {
                written = found;
                std::mem::swap(&mut self.frame, &mut self.other);
            }
        }
        out[start + 4 + number * 4..][..4].copy_from_slice(&(written as u32).to_le_bytes());
        out.extend_from_slice(&self.frame[..written]);
        Ok(())
    }
}

/// How the LQ and the HR of a geometry lie in bands.
fn bands_of(geometry: Geometry) -> (Bands, Bands) {
    (
        Bands::new(geometry.lq(), 1),
        Bands::new(geometry.lq(), geometry.scale as usize),
    )
}

/// The guess that a prefix's byte 0 stands for, where there is one.
fn guess_of(way: u8, geometry: Geometry) -> Option<Guess> {
    match way {
        LQ_MEAN => Some(Guess::Mean),
        LQ_HALF if geometry.scale == 2 => Some(Guess::Half),
        _ => None,
    }
}

/// Room for decoding, one for each thread; reused from record to record.
pub struct Decoder {
    geometry: Geometry,
    planes: Vec<u8>,
    lq_planes: Vec<u8>,
    room: lq::Room,
    isa: Isa,
    zstd: Decompressor<'static>,
}

impl Decoder {
    /// Allocates for pairs of one geometry.
    pub fn new(geometry: Geometry) -> Result<Self> {
        let (lq, hr) = bands_of(geometry);
        let zstd = Decompressor::new().context("cannot set up zstd")?;
        Ok(Decoder {
            geometry,
            planes: vec![0; hr.bytes()],
            lq_planes: vec![0; lq.bytes()],
            room: lq::Room::new(hr),
            isa: Isa::detect(),
            zstd,
        })
    }

    /// What one decoder holds, in bytes.
    pub fn bytes(geometry: Geometry) -> u64 {
        let (lq, hr) = bands_of(geometry);
        (hr.bytes() + lq.bytes() + lq::Room::bytes(hr)) as u64 + ZSTD_CONTEXT_BYTES
    }

    /// Decodes a payload into the whole LQ and HR patch (RGB, `size x size x 3`).
    ///
    /// # Errors
    /// A payload that is not what the codec writes for this geometry.
    pub fn decode(
        &mut self,
        codec: Codec,
        payload: &[u8],
        lq: &mut [u8],
        hr: &mut [u8],
    ) -> Result<()> {
        self.decode_crop(
            codec,
            payload,
            Crop {
                x: 0,
                y: 0,
                size: self.geometry.lq(),
            },
            lq,
            hr,
        )
    }

    /// Decodes an aligned square of a payload; the slices have the size of the square.
    ///
    /// # Errors
    /// Those of [`Decoder::decode`], and a square that does not lie inside the patch.
    pub fn decode_crop(
        &mut self,
        codec: Codec,
        payload: &[u8],
        crop: Crop,
        lq: &mut [u8],
        hr: &mut [u8],
    ) -> Result<()> {
        let (size, scale) = (self.geometry.lq(), self.geometry.scale as usize);
        let inside = |at: usize| at.checked_add(crop.size).is_some_and(|end| end <= size);
        ensure!(
            crop.size > 0 && inside(crop.x) && inside(crop.y),
            "the crop {crop:?} does not lie in a patch of {size} x {size}"
        );
        let (lq_window, hr_window) = (crop.window(1), crop.window(scale));
        let fits = lq.len() == lq_window.bytes() && hr.len() == hr_window.bytes();
        ensure!(
            fits,
            "the room for the pair has another size than the pair ({crop:?} of a patch of {size} x {size})"
        );
        match codec {
            Codec::Raw => {
                let (lq_bytes, whole) = (
                    self.geometry.lq_bytes(),
                    self.geometry.lq_bytes() + self.geometry.hr_bytes(),
                );
                ensure!(
                    payload.len() == whole,
                    "a raw record has {} bytes where a pair has {whole}",
                    payload.len()
                );
                copy_window(&payload[..lq_bytes], size, lq_window, lq);
                copy_window(&payload[lq_bytes..], size * scale, hr_window, hr);
                Ok(())
            }
            Codec::Predict => self.unpredict(payload, (lq_window, lq), (hr_window, hr)),
        }
    }

    fn unpredict(
        &mut self,
        payload: &[u8],
        lq: (Window, &mut [u8]),
        hr: (Window, &mut [u8]),
    ) -> Result<()> {
        let (lq_bands, hr_bands) = bands_of(self.geometry);
        ensure!(
            payload.len() >= PREFIX_BYTES,
            "the record has {} bytes, less than its prefix",
            payload.len()
        );
        let (prefix, mut rest) = payload.split_at(PREFIX_BYTES);
        let mut frames = [&[][..]; FRAMES];
        for (i, frame) in frames.iter_mut().enumerate() {
            let length = u32_at(prefix, 4 + 4 * i) as usize;
            ensure!(
                length <= rest.len(),
                "frame {i} claims {length} bytes where {} are left",
                rest.len()
            );
            (*frame, rest) = rest.split_at(length);
        }
        ensure!(
            rest.is_empty(),
            "{} bytes are left over behind the last frame",
            rest.len()
        );
        let way = prefix[0];
        let guess = guess_of(way, self.geometry);
        if guess.is_none() && way != LQ_OWN {
            bail!(
                "the LQ is predicted in a way this paragon does not know at scale {} ({way})",
                self.geometry.scale
            );
        }
        let Decoder {
            planes,
            lq_planes,
            room,
            zstd,
            isa,
            ..
        } = self;
        let isa = *isa;
        for (number, plane) in planes.chunks_exact_mut(hr_bands.plane()).enumerate() {
            unzip(zstd, number, frames[number], plane)?;
        }
        let (window, image) = hr;
        predict::undo(isa, planes, hr_bands, |r, rows| {
            bands::join_row(isa, rows, hr_bands, r, window, image)
        });
        unzip(zstd, 3, frames[3], lq_planes)?;
        let (window, image) = lq;
        let Some(guess) = guess else {
            predict::undo(isa, lq_planes, lq_bands, |r, rows| {
                bands::join_row(isa, rows, lq_bands, r, window, image)
            });
            return Ok(());
        };
        let (green, others) = lq_planes.split_at_mut(lq_bands.plane());
        for other in others.chunks_exact_mut(lq_bands.plane()) {
            for (d, g) in other.iter_mut().zip(&*green) {
                *d = d.wrapping_add(*g);
            }
        }
        bands::repeat_last_row(planes, hr_bands);
        lq::add(isa, guess, planes, hr_bands, lq_planes, lq_bands, room);
        bands::join(isa, lq_planes, lq_bands, window, image);
        Ok(())
    }
}

/// A square inside the stored LQ patch, in LQ pixels; the HR square is `scale` times that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// Left edge.
    pub x: usize,
    /// Top edge.
    pub y: usize,
    /// Side.
    pub size: usize,
}

impl Crop {
    fn window(self, scale: usize) -> Window {
        Window {
            x: self.x * scale,
            y: self.y * scale,
            width: self.size * scale,
            height: self.size * scale,
        }
    }
}

fn copy_window(from: &[u8], width: usize, window: Window, to: &mut [u8]) {
    for (row, out) in from
        .chunks_exact(width * 3)
        .skip(window.y)
        .zip(to.chunks_exact_mut(window.width * 3))
    {
        out.copy_from_slice(&row[window.x * 3..(window.x + window.width) * 3]);
    }
}

fn unzip(zstd: &mut Decompressor, number: usize, frame: &[u8], room: &mut [u8]) -> Result<()> {
    let got = zstd
        .decompress_to_buffer(frame, room)
        .with_context(|| format!("frame {number} is no zstd frame"))?;
    ensure!(
        got == room.len(),
        "frame {number} unpacks to {got} bytes where {} are expected",
        room.len()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::rng::Rng;
    use proptest::prelude::*;

    /// A pair whose LQ is near the HR (`related`) or not at all.
    fn pair(g: Geometry, smooth: u64, related: bool, seed: u64) -> (Vec<u8>, Vec<u8>) {
        let mut rng = Rng::new(&[seed]);
        let hr: Vec<u8> = (0..g.hr_bytes())
            .map(|i| ((i / 3 % g.hr()) as u64 * 2 + rng.below(smooth)) as u8)
            .collect();
        let mut lq: Vec<u8> = (0..g.lq_bytes()).map(|_| rng.next_u64() as u8).collect();
        if related {
            for (i, v) in lq.iter_mut().enumerate() {
                let (y, x, c) = (i / 3 / g.lq(), i / 3 % g.lq(), i % 3);
                *v = hr[(y * g.scale as usize * g.hr() + x * g.scale as usize) * 3 + c];
            }
        }
        (lq, hr)
    }

    fn round_trip(g: Geometry, codec: Codec, lq: &[u8], hr: &[u8]) -> (Codec, usize) {
        let mut payload = vec![9, 9];
        let used = Encoder::new(g)
            .unwrap()
            .encode(codec, lq, hr, &mut payload)
            .unwrap();
        let (mut lq2, mut hr2) = (vec![0; lq.len()], vec![0; hr.len()]);
        Decoder::new(g)
            .unwrap()
            .decode(used, &payload[2..], &mut lq2, &mut hr2)
            .unwrap();
        assert!(lq2 == lq && hr2 == hr, "{g:?} {codec:?} did not come back");
        (used, payload.len() - 2)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn pairs_come_back(
            scale in 1u32..5, lq_size in 8u32..40, smooth in 1u64..256, related in any::<bool>(), seed in any::<u64>(),
        ) {
            let g = Geometry { scale, lq_size };
            let (lq, hr) = pair(g, smooth, related, seed);
            for codec in [Codec::Raw, Codec::Predict] {
                round_trip(g, codec, &lq, &hr);
            }
        }

        #[test]
        fn rejects_or_survives_any_payload(bytes in proptest::collection::vec(any::<u8>(), 0..300), id in 0u8..2) {
            let g = Geometry { scale: 2, lq_size: 8 };
            let (mut lq, mut hr) = (vec![0; g.lq_bytes()], vec![0; g.hr_bytes()]);
            let _ = Decoder::new(g).unwrap().decode(Codec::from_id(id).unwrap(), &bytes, &mut lq, &mut hr);
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bytes_and_pixels() {
        for (scale, lq_size, related) in [
            (2, 64, true),
            (2, 37, false),
            (3, 33, true),
            (1, 40, false),
            (2, 9, true),
        ] {
            let g = Geometry { scale, lq_size };
            let (lq, hr) = pair(g, 9, related, 3);
            let mut payloads = Vec::new();
            for isa in Isa::available() {
                let mut encoder = Encoder {
                    isa,
                    ..Encoder::new(g).unwrap()
                };
                let mut out = Vec::new();
                assert_eq!(
                    encoder.encode(Codec::Predict, &lq, &hr, &mut out).unwrap(),
                    Codec::Predict
                );
                payloads.push(out);
            }
            assert!(payloads.windows(2).all(|p| p[0] == p[1]), "{g:?}");
            for isa in Isa::available() {
                let mut decoder = Decoder {
                    isa,
                    ..Decoder::new(g).unwrap()
                };
                let (mut lq2, mut hr2) = (vec![0; lq.len()], vec![0; hr.len()]);
                decoder
                    .decode(Codec::Predict, &payloads[0], &mut lq2, &mut hr2)
                    .unwrap();
                assert!(lq2 == lq && hr2 == hr, "{g:?} {isa:?}");
            }
        }
    }

    #[test]
    fn repetitions_are_still_told_where_there_are_some() {
        let g = Geometry {
            scale: 2,
            lq_size: 64,
        };
        // a drawing: flat but for a few lines
        let hr: Vec<u8> = (0..g.hr_bytes())
            .map(|i| {
                if i / 3 % g.hr() == 40 || i / 3 / g.hr() == 9 {
                    200
                } else {
                    30
                }
            })
            .collect();
        let mut lq = vec![30; g.lq_bytes()];
        lq[600] = 200;
        let (used, bytes) = round_trip(g, Codec::Predict, &lq, &hr);
        assert!(
            used == Codec::Predict && bytes * 40 < lq.len() + hr.len(),
            "{bytes}"
        ); // Huffman's code alone: an eighth
    }

    #[test]
    fn noise_falls_back_to_raw_and_photographs_do_not() {
        let g = Geometry {
            scale: 2,
            lq_size: 32,
        };
        let (lq, mut hr) = pair(g, 256, false, 1);
        assert_eq!(
            round_trip(g, Codec::Predict, &lq, &hr),
            (Codec::Raw, lq.len() + hr.len())
        );
        hr.fill(100);
        let lq = vec![100; lq.len()];
        let (used, bytes) = round_trip(g, Codec::Predict, &lq, &hr);
        assert!(used == Codec::Predict && bytes < 200, "{bytes}");
    }

    #[test]
    fn the_bound_on_a_zstd_context_holds() {
        let mut context = zstd::zstd_safe::DCtx::create();
        let packed = zstd::bulk::compress(&vec![1; 1 << 18], SEARCH_LEVEL).unwrap();
        context
            .decompress(&mut vec![0; 1 << 18][..], &packed)
            .unwrap();
        assert!(
            context.sizeof() as u64 <= ZSTD_CONTEXT_BYTES,
            "{}",
            context.sizeof()
        );
    }

    #[test]
    fn rejects_a_damaged_payload_in_words() {
        let g = Geometry {
            scale: 2,
            lq_size: 16,
        };
        let (lq, hr) = pair(g, 4, true, 2);
        let mut payload = Vec::new();
        assert_eq!(
            Encoder::new(g)
                .unwrap()
                .encode(Codec::Predict, &lq, &hr, &mut payload)
                .unwrap(),
            Codec::Predict
        );
        let (mut lq, mut hr) = (lq, hr);
        let mut decoder = Decoder::new(g).unwrap();
        let mut message = |payload: &[u8]| {
            format!(
                "{:#}",
                decoder
                    .decode(Codec::Predict, payload, &mut lq, &mut hr)
                    .unwrap_err()
            )
        };
        for cut in 0..payload.len() {
            assert!(!message(&payload[..cut]).is_empty());
        }
        let longer = [&payload[..], &[0]].concat();
        assert!(message(&longer).contains("left over"));
        payload[0] = 9;
        assert!(message(&payload).contains("does not know"));
    }

    #[test]
    fn rejects_a_raw_record_of_the_wrong_size() {
        let g = Geometry {
            scale: 2,
            lq_size: 8,
        };
        let (mut lq, mut hr) = (vec![0; g.lq_bytes()], vec![0; g.hr_bytes()]);
        let short = vec![0; lq.len() + hr.len() - 1];
        let e = Decoder::new(g)
            .unwrap()
            .decode(Codec::Raw, &short, &mut lq, &mut hr)
            .unwrap_err();
        assert!(e.to_string().contains("where a pair has"));
    }
}
