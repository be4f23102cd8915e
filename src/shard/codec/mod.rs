//! Converts an HR patch and its LQ patches (one, several variants, or none) to the bytes of a
//! record and back, without loss: the raw pixels, or prediction and zstd (docs/codec.md). Depends
//! on zstd. Promises that decoding returns exactly what was encoded, reads nothing outside the
//! record, returns an error for any other payload, and allocates nothing if the decoder is reused.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod bands;
mod decode;
mod encode;
mod lq;
mod predict;

pub use decode::Decoder;
pub use encode::Encoder;

use super::format::Geometry;
use bands::{Bands, Window};
use lq::LqPredictor;

/// How the pairs of a new set are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Codec {
    /// The pixels as they are: the largest and the fastest.
    Raw,
    /// Pixels predicted from their neighbours, the LQ from the HR, then zstd: lossless, about half
    /// the size.
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

/// The first zstd frames of a `predict` payload: green, blue and red of the HR.
const HR_FRAMES: usize = 3;
/// A `predict` payload begins with a prefix: a byte for each LQ patch that says how it is predicted
/// (at least one byte, padded with zeros to a multiple of 4), then the length of every frame (u32).
/// The frames follow: [`HR_FRAMES`] of the HR, then one for each LQ patch.
#[derive(Clone, Copy, Debug)]
struct Prefix {
    /// LQ patches of the record.
    lqs: usize,
}

impl Prefix {
    /// Where the length of a frame is.
    const fn frame_length_at(self, frame: usize) -> usize {
        let modes = if self.lqs == 0 { 1 } else { self.lqs };
        modes.next_multiple_of(4) + 4 * frame
    }

    /// Frames of the record.
    const fn frames(self) -> usize {
        HR_FRAMES + self.lqs
    }

    /// Bytes of the prefix.
    const fn bytes(self) -> usize {
        self.frame_length_at(self.frames())
    }
}

/// The LQ is predicted from its own neighbours, as the HR is.
const LQ_OWN: u8 = 0;
/// The LQ is stored as the difference from the block means of the HR.
const LQ_MEAN: u8 = 1;
/// The LQ is stored as the difference from the bicubic half of the HR.
const LQ_HALF: u8 = 2;

/// The bands of the LQ and of the HR of a geometry.
fn bands_of(geometry: Geometry) -> (Bands, Bands) {
    (
        Bands::new(geometry.lq(), 1),
        Bands::new(geometry.lq(), geometry.scale as usize),
    )
}

/// The predictor that a byte of the prefix stands for. `None` for [`LQ_OWN`] and unknown values.
fn lq_predictor(mode: u8, geometry: Geometry) -> Option<LqPredictor> {
    match mode {
        LQ_MEAN => Some(LqPredictor::Mean),
        LQ_HALF if geometry.scale == 2 => Some(LqPredictor::Half),
        _ => None,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::isa::Isa;
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
                let mut encoder = Encoder::new(g).unwrap();
                encoder.isa = isa;
                let mut out = Vec::new();
                assert_eq!(
                    encoder.encode(Codec::Predict, &lq, &hr, &mut out).unwrap(),
                    Codec::Predict
                );
                payloads.push(out);
            }
            assert!(payloads.windows(2).all(|p| p[0] == p[1]), "{g:?}");
            for isa in Isa::available() {
                let mut decoder = Decoder::new(g).unwrap();
                decoder.isa = isa;
                let (mut lq2, mut hr2) = (vec![0; lq.len()], vec![0; hr.len()]);
                decoder
                    .decode(Codec::Predict, &payloads[0], &mut lq2, &mut hr2)
                    .unwrap();
                assert!(lq2 == lq && hr2 == hr, "{g:?} {isa:?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// The LQ of restoration is the HR with errors of any size; crops of both sides agree with
        /// the whole patches.
        #[test]
        fn pairs_of_equal_size_come_back(
            lq_size in 8u32..70, smooth in 1u64..64, error in 0u64..40, seed in any::<u64>(),
        ) {
            let g = Geometry { scale: 1, lq_size };
            let hr = pair(g, smooth, false, seed).1;
            let mut rng = Rng::new(&[seed, 1]);
            let lq: Vec<u8> = hr.iter().map(|&v| v.wrapping_add(rng.below(error + 1) as u8)).collect();
            for codec in [Codec::Raw, Codec::Predict] {
                round_trip(g, codec, &lq, &hr);
            }
            let mut payload = Vec::new();
            let used = Encoder::new(g).unwrap().encode(Codec::Predict, &lq, &hr, &mut payload).unwrap();
            let size = 1 + rng.below(lq_size.into()) as usize;
            let mut at = || rng.below((g.lq() - size + 1) as u64) as usize;
            let crop = Crop { x: at(), y: at(), size };
            let (mut small_lq, mut small_hr) = (vec![0; size * size * 3], vec![0; size * size * 3]);
            let mut decoder = Decoder::new(g).unwrap();
            decoder.decode_crop(used, &payload, crop, &mut small_lq, &mut small_hr).unwrap();
            for (whole, small) in [(&lq, &small_lq), (&hr, &small_hr)] {
                for (row, line) in small.chunks_exact(size * 3).enumerate() {
                    let from = ((crop.y + row) * g.lq() + crop.x) * 3;
                    prop_assert_eq!(&whole[from..from + size * 3], line);
                }
            }
        }
    }

    #[test]
    fn the_lq_of_equal_size_is_predicted_in_the_cheaper_way() {
        let g = Geometry {
            scale: 1,
            lq_size: 64,
        };
        let (_, hr) = pair(g, 64, false, 7);
        let mut rng = Rng::new(&[8]);
        let near: Vec<u8> = hr.iter().map(|v| v ^ (rng.below(8) == 0) as u8).collect();
        // a blurred LQ is cheaper by itself than by its difference from a noisy HR
        let smooth: Vec<u8> = (0..g.lq_bytes())
            .map(|i| (i / 3 % g.lq() * 2) as u8 + rng.below(2) as u8)
            .collect();
        let mut encoder = Encoder::new(g).unwrap();
        let mut frames = |lq: &[u8], hr: &[u8]| {
            let mut payload = Vec::new();
            let used = encoder.encode(Codec::Predict, lq, hr, &mut payload);
            assert_eq!(used.unwrap(), Codec::Predict);
            let prefix = Prefix { lqs: 1 };
            let length = |frame: usize| {
                crate::shard::format::u32_at(&payload, prefix.frame_length_at(frame)) as usize
            };
            let hr_frames: usize = (0..HR_FRAMES).map(length).sum();
            (payload[0], hr_frames, length(HR_FRAMES))
        };
        let alone = frames(&hr, &smooth).1;
        let (mode, _, bytes) = frames(&smooth, &hr);
        assert!(
            mode == LQ_OWN && bytes <= alone + 100,
            "{mode} {bytes} {alone}"
        );
        let (mode, hr_frames, bytes) = frames(&near, &hr);
        assert!(
            mode == LQ_MEAN && bytes * 3 < hr_frames,
            "{mode} {bytes} {hr_frames}"
        );
        // an LQ that is the HR takes next to nothing
        assert!(frames(&hr, &hr).2 < 100);
    }

    #[test]
    fn records_with_several_lq_patches_or_none_come_back() {
        for (scale, lqs) in [(1, 0), (1, 3), (2, 0), (2, 2), (2, 5), (4, 64)] {
            let g = Geometry { scale, lq_size: 24 };
            let hr = pair(g, 9, true, 4).1;
            let lq: Vec<u8> = (0..lqs)
                .flat_map(|i| pair(g, 9, i % 2 == 0, 5 + i).0)
                .collect();
            let lqs = lqs as u16;
            let (mut encoder, mut decoder) = (
                Encoder::with_lqs(g, lqs).unwrap(),
                Decoder::with_lqs(g, lqs).unwrap(),
            );
            for codec in [Codec::Raw, Codec::Predict] {
                let mut payload = Vec::new();
                let used = encoder.encode(codec, &lq, &hr, &mut payload).unwrap();
                assert_eq!(used, codec, "x{scale} {lqs}");
                let whole = Crop {
                    x: 0,
                    y: 0,
                    size: g.lq(),
                };
                let (mut one, mut high) = (vec![0; g.lq_bytes()], vec![0; g.hr_bytes()]);
                for variant in 0..lqs {
                    let room = Some((variant, &mut one[..]));
                    decoder
                        .decode_part(used, &payload, whole, room, &mut high)
                        .unwrap();
                    let from = usize::from(variant) * g.lq_bytes();
                    assert!(one == lq[from..from + g.lq_bytes()] && high == hr);
                }
                high.fill(0);
                decoder
                    .decode_part(used, &payload, whole, None, &mut high)
                    .unwrap();
                assert!(high == hr, "x{scale} {lqs} {codec:?}");
                let outside = decoder.decode_part(
                    used,
                    &payload,
                    whole,
                    Some((lqs, &mut one[..])),
                    &mut high,
                );
                assert!(outside.is_err(), "variant {lqs}");
                for cut in (0..payload.len()).step_by(97) {
                    decoder
                        .decode_part(used, &payload[..cut], whole, None, &mut high)
                        .unwrap_err();
                }
            }
        }
    }

    #[test]
    fn repetitions_are_still_found_in_drawings() {
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
