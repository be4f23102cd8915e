//! One LQ/HR pair to the bytes of a record and back, without loss: `raw`, or prediction and zstd. Depends on zstd. Promises
//! that decoding returns exactly what was encoded, reads nothing outside the record, fails with an error on any payload
//! it cannot make sense of, and allocates nothing when the scratch is reused.

mod lq;
mod predict;

use super::format::{Geometry, u32_at};
use anyhow::{Context, Result, bail, ensure};
use zstd::bulk::{Compressor, Decompressor};

/// Level of zstd: after the prediction higher levels decode slower and gain nothing.
const ZSTD_LEVEL: i32 = 1;
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
/// The LQ is predicted from its own neighbours.
const LQ_OWN: u8 = 0;
/// The LQ is stored as the difference from the block means of the HR.
const LQ_FROM_HR: u8 = 1;

/// Room for encoding, one for each thread.
pub struct Encoder {
    geometry: Geometry,
    values: Vec<u8>,
    residuals: Vec<u8>,
    frame: Vec<u8>,
    zstd: Compressor<'static>,
}

impl Encoder {
    /// Allocates for pairs of one geometry.
    pub fn new(geometry: Geometry) -> Result<Self> {
        let room = planes_bytes(geometry);
        let mut zstd = Compressor::new(ZSTD_LEVEL).context("cannot set up zstd")?;
        zstd.include_checksum(false)?; // the record has its own
        Ok(Encoder {
            geometry,
            values: vec![0; room],
            residuals: vec![0; room],
            frame: vec![0; zstd::zstd_safe::compress_bound(room)],
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
        let (lq_size, hr_size) = (self.geometry.lq(), self.geometry.hr());
        let start = out.len();
        out.extend_from_slice(&[0; PREFIX_BYTES]);
        let plane = predict::plane_bytes(hr_size, hr_size);
        predict::forward(hr, hr_size, hr_size, &mut self.values, &mut self.residuals);
        for i in 0..predict::PLANES {
            let written = self.zstd.compress_to_buffer(&self.residuals[i * plane..(i + 1) * plane], &mut self.frame[..])?;
            push_frame(out, start, i, &self.frame[..written]);
        }
        // both ways for the LQ, and the shorter is kept: an LQ that came with the images may be anything
        lq::difference(lq, hr, lq_size, self.geometry.scale as usize, &mut self.residuals);
        let from_hr = self.zstd.compress_to_buffer(&self.residuals[..lq.len()], &mut self.frame[..])?;
        let cheap = from_hr < lq.len() / 2;
        let at = out.len();
        push_frame(out, start, 3, &self.frame[..from_hr]);
        out[start] = LQ_FROM_HR;
        if !cheap {
            let room = predict::plane_bytes(lq_size, lq_size) * predict::PLANES;
            predict::forward(lq, lq_size, lq_size, &mut self.values, &mut self.residuals);
            let own = self.zstd.compress_to_buffer(&self.residuals[..room], &mut self.frame[..])?;
            if own < from_hr {
                out.truncate(at);
                push_frame(out, start, 3, &self.frame[..own]);
                out[start] = LQ_OWN;
            }
        }
        Ok(())
    }
}

fn push_frame(out: &mut Vec<u8>, start: usize, number: usize, frame: &[u8]) {
    out[start + 4 + number * 4..][..4].copy_from_slice(&(frame.len() as u32).to_le_bytes());
    out.extend_from_slice(frame);
}

/// Bytes of the residual planes of the larger patch.
fn planes_bytes(geometry: Geometry) -> usize {
    predict::PLANES * predict::plane_bytes(geometry.hr(), geometry.hr())
}

/// Room for decoding, one for each thread; reused from record to record.
pub struct Decoder {
    geometry: Geometry,
    planes: Vec<u8>,
    zstd: Decompressor<'static>,
}

impl Decoder {
    /// Allocates for pairs of one geometry.
    pub fn new(geometry: Geometry) -> Result<Self> {
        let zstd = Decompressor::new().context("cannot set up zstd")?;
        Ok(Decoder { geometry, planes: vec![0; planes_bytes(geometry)], zstd })
    }

    /// What one decoder holds, in bytes.
    pub fn bytes(geometry: Geometry) -> u64 {
        planes_bytes(geometry) as u64 + ZSTD_CONTEXT_BYTES
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
        let (lq_size, hr_size) = (self.geometry.lq(), self.geometry.hr());
        ensure!(payload.len() >= PREFIX_BYTES, "the record has {} bytes, less than its prefix", payload.len());
        let (prefix, mut rest) = payload.split_at(PREFIX_BYTES);
        let mut frames = [&[][..]; FRAMES];
        for (i, frame) in frames.iter_mut().enumerate() {
            let length = u32_at(prefix, 4 + 4 * i) as usize;
            ensure!(length <= rest.len(), "frame {i} claims {length} bytes where {} are left", rest.len());
            (*frame, rest) = rest.split_at(length);
        }
        ensure!(rest.is_empty(), "{} bytes are left over behind the last frame", rest.len());
        let plane = predict::plane_bytes(hr_size, hr_size);
        for (i, frame) in frames[..predict::PLANES].iter().enumerate() {
            self.unzip(i, frame, i * plane, plane)?;
        }
        predict::inverse(&mut self.planes, hr_size, hr_size, hr);
        match prefix[0] {
            LQ_FROM_HR => {
                self.unzip(3, frames[3], 0, lq.len())?;
                lq::restore(&self.planes, hr, lq_size, self.geometry.scale as usize, lq);
            }
            LQ_OWN => {
                self.unzip(3, frames[3], 0, predict::plane_bytes(lq_size, lq_size) * predict::PLANES)?;
                predict::inverse(&mut self.planes, lq_size, lq_size, lq);
            }
            other => bail!("the LQ is predicted in a way this paragon does not know ({other})"),
        }
        Ok(())
    }

    fn unzip(&mut self, number: usize, frame: &[u8], at: usize, bytes: usize) -> Result<()> {
        let room = &mut self.planes[at..at + bytes];
        let got = self.zstd.decompress_to_buffer(frame, room).with_context(|| format!("frame {number} is no zstd frame"))?;
        ensure!(got == bytes, "frame {number} unpacks to {got} bytes; a plane has {bytes}");
        Ok(())
    }
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
        assert!(message(&payload).contains("does not know (9)"));
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
