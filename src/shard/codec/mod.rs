//! One LQ/HR pair to the bytes of a record and back, without loss: `raw`, or prediction and zstd. Depends on zstd. Promises
//! that decoding returns exactly what was encoded, reads nothing outside the record, fails with an error on any payload
//! it cannot make sense of, and allocates nothing when the scratch is reused.

mod bands;
mod lq;
mod predict;

use super::format::{Geometry, u32_at};
use anyhow::{Context, Result, bail, ensure};
use bands::Bands;
use lq::Guess;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::CParameter;

/// Level of zstd: after the prediction higher levels decode slower and gain nothing.
const ZSTD_LEVEL: i32 = 1;
/// Shortest repetition that zstd looks for: residuals hold no long ones, and short ones cost more than they save (4% smaller
/// and a quarter faster to decode than with the level's own 5, on photographs).
const ZSTD_MIN_MATCH: u32 = 7;
/// What a zstd decompression context holds, measured with zstd 1.5 (counted in the loader's memory bound).
const ZSTD_CONTEXT_BYTES: u64 = 192 << 10;

/// How the pairs of a new set are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Codec {
    /// The pixels as they are: the largest and the fastest.
    Raw,
    /// Predicted from their neighbours, the LQ from the HR, then zstd: lossless, about half the size.
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
        [Codec::Raw, Codec::Predict].into_iter().find(|c| c.id() == id)
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
/// Mean size of a difference up to which a way of telling the LQ is taken without trying the others.
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
    frame: Vec<u8>,
    zstd: Compressor<'static>,
}

impl Encoder {
    /// Allocates for pairs of one geometry.
    pub fn new(geometry: Geometry) -> Result<Self> {
        let (lq, hr) = bands_of(geometry);
        let mut zstd = Compressor::new(ZSTD_LEVEL).context("cannot set up zstd")?;
        zstd.include_checksum(false)?; // the record has its own
        zstd.set_parameter(CParameter::MinMatch(ZSTD_MIN_MATCH))?;
        Ok(Encoder {
            geometry,
            planes: vec![0; hr.bytes()],
            values: vec![0; hr.bytes()],
            residuals: vec![0; hr.bytes()],
            lq_planes: vec![0; lq.bytes()],
            best: vec![0; lq.bytes()],
            present: vec![0; lq.bytes()],
            room: lq::Room::new(hr),
            frame: vec![0; zstd::zstd_safe::compress_bound(hr.plane().max(lq.bytes()))],
            zstd,
        })
    }

    /// Appends the payload of one pair to `out` and returns the codec that it was stored with: `Raw` where prediction
    /// would not make it smaller.
    pub fn encode(&mut self, codec: Codec, lq: &[u8], hr: &[u8], out: &mut Vec<u8>) -> Result<Codec> {
        let g = self.geometry;
        ensure!(lq.len() == g.lq_bytes() && hr.len() == g.hr_bytes(), "the pair does not have the sizes of the set");
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
        bands::split(hr, hr_bands, &mut self.planes);
        predict::residuals(&self.planes, hr_bands, &mut self.values, &mut self.residuals);
        for (number, plane) in self.residuals.chunks_exact(hr_bands.plane()).enumerate() {
            push_frame(&mut self.zstd, plane, &mut self.frame, number, start, out)?;
        }
        bands::split(lq, lq_bands, &mut self.lq_planes);
        out[start] = self.tell_lq(lq_bands, hr_bands);
        push_frame(&mut self.zstd, &self.best, &mut self.frame, 3, start, out)
    }

    /// Leaves the cheapest way of telling the LQ in `best` and returns its number. An LQ that came with the images may be
    /// anything, so this is looked at for every pair.
    fn tell_lq(&mut self, lq: Bands, hr: Bands) -> u8 {
        let mut chosen = (LQ_OWN, u64::MAX);
        for way in [LQ_HALF, LQ_MEAN, LQ_OWN] {
            match guess_of(way, self.geometry) {
                Some(guess) => {
                    self.present.fill(0);
                    lq::add(guess, &self.planes, hr, &mut self.present, lq, &mut self.room);
                    difference(&self.lq_planes, &mut self.present, lq);
                }
                None if way == LQ_OWN => predict::residuals(&self.lq_planes, lq, &mut self.values, &mut self.present),
                None => continue,
            }
            let cost: u64 = self.present.iter().map(|&d| u64::from((d as i8).unsigned_abs())).sum();
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

fn push_frame(zstd: &mut Compressor, bytes: &[u8], frame: &mut [u8], number: usize, start: usize, out: &mut Vec<u8>) -> Result<()> {
    let written = zstd.compress_to_buffer(bytes, frame).context("zstd cannot pack a plane")?;
    out[start + 4 + number * 4..][..4].copy_from_slice(&(written as u32).to_le_bytes());
    out.extend_from_slice(&frame[..written]);
    Ok(())
}

/// How the LQ and the HR of a geometry lie in bands.
fn bands_of(geometry: Geometry) -> (Bands, Bands) {
    (Bands::new(geometry.lq(), 1), Bands::new(geometry.lq(), geometry.scale as usize))
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
    zstd: Decompressor<'static>,
}

impl Decoder {
    /// Allocates for pairs of one geometry.
    pub fn new(geometry: Geometry) -> Result<Self> {
        let (lq, hr) = bands_of(geometry);
        let zstd = Decompressor::new().context("cannot set up zstd")?;
        Ok(Decoder { geometry, planes: vec![0; hr.bytes()], lq_planes: vec![0; lq.bytes()], room: lq::Room::new(hr), zstd })
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
    pub fn decode(&mut self, codec: Codec, payload: &[u8], lq: &mut [u8], hr: &mut [u8]) -> Result<()> {
        let g = self.geometry;
        ensure!(lq.len() == g.lq_bytes() && hr.len() == g.hr_bytes(), "the room for the pair has another size than the set");
        match codec {
            Codec::Raw => {
                let whole = lq.len() + hr.len();
                ensure!(payload.len() == whole, "a raw record has {} bytes where a pair has {whole}", payload.len());
                lq.copy_from_slice(&payload[..lq.len()]);
                hr.copy_from_slice(&payload[lq.len()..]);
                Ok(())
            }
            Codec::Predict => self.unpredict(payload, lq, hr),
        }
    }

    fn unpredict(&mut self, payload: &[u8], lq: &mut [u8], hr: &mut [u8]) -> Result<()> {
        let (lq_bands, hr_bands) = bands_of(self.geometry);
        ensure!(payload.len() >= PREFIX_BYTES, "the record has {} bytes, less than its prefix", payload.len());
        let (prefix, mut rest) = payload.split_at(PREFIX_BYTES);
        let mut frames = [&[][..]; FRAMES];
        for (i, frame) in frames.iter_mut().enumerate() {
            let length = u32_at(prefix, 4 + 4 * i) as usize;
            ensure!(length <= rest.len(), "frame {i} claims {length} bytes where {} are left", rest.len());
            (*frame, rest) = rest.split_at(length);
        }
        ensure!(rest.is_empty(), "{} bytes are left over behind the last frame", rest.len());
        let way = prefix[0];
        let guess = guess_of(way, self.geometry);
        if guess.is_none() && way != LQ_OWN {
            bail!("the LQ is predicted in a way this paragon does not know at scale {} ({way})", self.geometry.scale);
        }
        let Decoder { planes, lq_planes, room, zstd, .. } = self;
        for (number, plane) in planes.chunks_exact_mut(hr_bands.plane()).enumerate() {
            unzip(zstd, number, frames[number], plane)?;
        }
        predict::undo(planes, hr_bands);
        bands::join(planes, hr_bands, hr);
        unzip(zstd, 3, frames[3], lq_planes)?;
        match guess {
            Some(guess) => {
                let (green, others) = lq_planes.split_at_mut(lq_bands.plane());
                for other in others.chunks_exact_mut(lq_bands.plane()) {
                    for (d, g) in other.iter_mut().zip(&*green) {
                        *d = d.wrapping_add(*g);
                    }
                }
                bands::repeat_last_row(planes, hr_bands);
                lq::add(guess, planes, hr_bands, lq_planes, lq_bands, room);
            }
            None => predict::undo(lq_planes, lq_bands),
        }
        bands::join(lq_planes, lq_bands, lq);
        Ok(())
    }
}

fn unzip(zstd: &mut Decompressor, number: usize, frame: &[u8], room: &mut [u8]) -> Result<()> {
    let got = zstd.decompress_to_buffer(frame, room).with_context(|| format!("frame {number} is no zstd frame"))?;
    ensure!(got == room.len(), "frame {number} unpacks to {got} bytes where {} are expected", room.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use proptest::prelude::*;

    /// A pair whose LQ is near the HR (`related`) or not at all.
    fn pair(g: Geometry, smooth: u64, related: bool, seed: u64) -> (Vec<u8>, Vec<u8>) {
        let mut rng = Rng::new(&[seed]);
        let hr: Vec<u8> = (0..g.hr_bytes()).map(|i| ((i / 3 % g.hr()) as u64 * 2 + rng.below(smooth)) as u8).collect();
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
        let used = Encoder::new(g).unwrap().encode(codec, lq, hr, &mut payload).unwrap();
        let (mut lq2, mut hr2) = (vec![0; lq.len()], vec![0; hr.len()]);
        Decoder::new(g).unwrap().decode(used, &payload[2..], &mut lq2, &mut hr2).unwrap();
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
    fn noise_falls_back_to_raw_and_photographs_do_not() {
        let g = Geometry { scale: 2, lq_size: 32 };
        let (lq, mut hr) = pair(g, 256, false, 1);
        assert_eq!(round_trip(g, Codec::Predict, &lq, &hr), (Codec::Raw, lq.len() + hr.len()));
        hr.fill(100);
        let lq = vec![100; lq.len()];
        let (used, bytes) = round_trip(g, Codec::Predict, &lq, &hr);
        assert!(used == Codec::Predict && bytes < 200, "{bytes}");
    }

    #[test]
    fn the_bound_on_a_zstd_context_holds() {
        let mut context = zstd::zstd_safe::DCtx::create();
        let packed = zstd::bulk::compress(&vec![1; 1 << 18], ZSTD_LEVEL).unwrap();
        context.decompress(&mut vec![0; 1 << 18][..], &packed).unwrap();
        assert!(context.sizeof() as u64 <= ZSTD_CONTEXT_BYTES, "{}", context.sizeof());
    }

    #[test]
    fn rejects_a_damaged_payload_in_words() {
        let g = Geometry { scale: 2, lq_size: 16 };
        let (lq, hr) = pair(g, 4, true, 2);
        let mut payload = Vec::new();
        assert_eq!(Encoder::new(g).unwrap().encode(Codec::Predict, &lq, &hr, &mut payload).unwrap(), Codec::Predict);
        let (mut lq, mut hr) = (lq, hr);
        let mut decoder = Decoder::new(g).unwrap();
        let mut message = |payload: &[u8]| format!("{:#}", decoder.decode(Codec::Predict, payload, &mut lq, &mut hr).unwrap_err());
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
        let g = Geometry { scale: 2, lq_size: 8 };
        let (mut lq, mut hr) = (vec![0; g.lq_bytes()], vec![0; g.hr_bytes()]);
        let short = vec![0; lq.len() + hr.len() - 1];
        let e = Decoder::new(g).unwrap().decode(Codec::Raw, &short, &mut lq, &mut hr).unwrap_err();
        assert!(e.to_string().contains("where a pair has"));
    }
}
