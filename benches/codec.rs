//! Compares the codec on one core with the formats that it replaces: size, encoding and decoding in
//! the same run, in interleaved rounds, medians. `cargo bench --bench codec -- [DIR..]
//! [--lq own|other] [--rounds 7] [--most 400] [--json]`
//!
//! Pairs of LQ 128 / HR 256 are cut from every image of the folders. The images are HR; without a
//! folder, synthetic ones are used. The LQ is made by another library (`--lq other`, which is
//! harder to predict) or as `paragon shard` makes it (`--lq own`).

use image::codecs::png::{CompressionType, FilterType, PngDecoder, PngEncoder};
use image::{ExtendedColorType, ImageDecoder, ImageEncoder, RgbImage, imageops};
use paragon::dataset::degrade::{self, Filter};
use paragon::dataset::synth;
use paragon::shard::codec::{Codec, Crop, Decoder, Encoder};
use paragon::shard::format::Geometry;
use std::hint::black_box;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::Instant;

const GEOMETRY: Geometry = Geometry {
    scale: 2,
    lq_size: 128,
};
/// Pairs that a round encodes; few, because libwebp encodes only some 10 MB/s.
const ENCODED: usize = 12;

/// An LQ and an HR patch, u8 RGB.
type Pair = (Vec<u8>, Vec<u8>);

struct Options {
    folders: Vec<PathBuf>,
    own_lq: bool,
    rounds: usize,
    most: usize,
    json: bool,
}

fn options() -> Result<Options, String> {
    let mut out = Options {
        folders: Vec::new(),
        own_lq: false,
        rounds: 7,
        most: 400,
        json: false,
    };
    let mut args = std::env::args().skip(1);
    let number = |text: Option<String>, what: &str| {
        text.and_then(|t| t.parse().ok())
            .filter(|n| *n > 0)
            .ok_or(format!("{what} needs a positive number"))
    };
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bench" => {}
            "--json" => out.json = true,
            "--rounds" => out.rounds = number(args.next(), "--rounds")?,
            "--most" => out.most = number(args.next(), "--most")?,
            "--lq" => match args.next().as_deref() {
                Some("own") => out.own_lq = true,
                Some("other") => out.own_lq = false,
                _ => return Err("--lq must be own or other".into()),
            },
            _ if arg.starts_with('-') => return Err(format!("{arg} is not an option")),
            _ => out.folders.push(arg.into()),
        }
    }
    Ok(out)
}

/// Adds every whole patch of a grid that is centred in the image.
fn cut(image: &RgbImage, own_lq: bool, pairs: &mut Vec<Pair>) {
    let size = GEOMETRY.lq_size * GEOMETRY.scale;
    let (columns, rows) = (image.width() / size, image.height() / size);
    for i in 0..columns * rows {
        let x = (image.width() - columns * size) / 2 + i % columns * size;
        let y = (image.height() - rows * size) / 2 + i / columns * size;
        let hr: RgbImage = imageops::crop_imm(image, x, y, size, size).to_image();
        let lq = if own_lq {
            degrade::downscale(&hr, GEOMETRY.scale, Filter::Bicubic).expect("the sizes fit")
        } else {
            imageops::resize(
                &hr,
                GEOMETRY.lq_size,
                GEOMETRY.lq_size,
                imageops::FilterType::CatmullRom,
            )
        };
        pairs.push((lq.into_raw(), hr.into_raw()));
    }
}

fn pairs_of(folder: &Path, options: &Options, pairs: &mut Vec<Pair>) -> Result<(), String> {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut files: Vec<_> = entries
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.is_file())
        .collect();
    files.sort();
    for file in files {
        match image::open(&file) {
            Ok(image) if pairs.len() < options.most => cut(&image.to_rgb8(), options.own_lq, pairs),
            Ok(_) => break,
            Err(e) => eprintln!("left out {}: {e}", file.display()),
        }
    }
    Ok(())
}

/// A format that encodes a pair as bytes and decodes it.
trait Format {
    fn name(&self) -> &'static str;
    fn encode(&mut self, pair: &Pair) -> Packed;
    fn decode(&mut self, packed: &Packed, lq: &mut [u8], hr: &mut [u8]);
}

/// The payload of the pair in `first`, or those of LQ and HR in `first` and `second`.
#[derive(Default)]
struct Packed {
    codec: Option<Codec>,
    first: Vec<u8>,
    second: Vec<u8>,
}

struct PairCodec {
    codec: Codec,
    encoder: Encoder,
    decoder: Decoder,
}

impl Format for PairCodec {
    fn name(&self) -> &'static str {
        self.codec.name()
    }

    fn encode(&mut self, (lq, hr): &Pair) -> Packed {
        let mut first = Vec::with_capacity(lq.len() + hr.len() + 64);
        let used = self
            .encoder
            .encode(self.codec, lq, hr, &mut first)
            .expect("a pair of this geometry");
        Packed {
            codec: Some(used),
            first,
            second: Vec::new(),
        }
    }

    fn decode(&mut self, packed: &Packed, lq: &mut [u8], hr: &mut [u8]) {
        self.decoder
            .decode(packed.codec.expect("set by encode"), &packed.first, lq, hr)
            .expect("the bytes were just encoded");
    }
}

/// A format of image files, which encodes LQ and HR separately.
struct ImageFormat {
    name: &'static str,
    pack: fn(&[u8], u32) -> Vec<u8>,
    unpack: fn(&[u8], &mut [u8]),
}

impl Format for ImageFormat {
    fn name(&self) -> &'static str {
        self.name
    }

    fn encode(&mut self, (lq, hr): &Pair) -> Packed {
        let g = GEOMETRY;
        Packed {
            codec: None,
            first: (self.pack)(lq, g.lq_size),
            second: (self.pack)(hr, g.lq_size * g.scale),
        }
    }

    fn decode(&mut self, packed: &Packed, lq: &mut [u8], hr: &mut [u8]) {
        (self.unpack)(&packed.first, lq);
        (self.unpack)(&packed.second, hr);
    }
}

fn png(pixels: &[u8], size: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let encoder =
        PngEncoder::new_with_quality(&mut out, CompressionType::Level(6), FilterType::Adaptive);
    encoder
        .write_image(pixels, size, size, ExtendedColorType::Rgb8)
        .expect("PNG takes any image");
    out
}

fn from_png(bytes: &[u8], out: &mut [u8]) {
    PngDecoder::new(Cursor::new(bytes))
        .and_then(|d| d.read_image(out))
        .expect("the bytes were just encoded");
}

/// libwebp: lossless, method 4 with its usual effort (quality 75). Transparency and the colours of
/// transparent pixels play no part.
fn webp(pixels: &[u8], size: u32) -> Vec<u8> {
    let mut config = webp::WebPConfig::new().expect("libwebp has the version it was built for");
    (config.lossless, config.method, config.quality) = (1, 4, 75.0);
    webp::Encoder::from_rgb(pixels, size, size)
        .encode_advanced(&config)
        .expect("WebP takes any image")
        .to_vec()
}

fn from_webp(bytes: &[u8], out: &mut [u8]) {
    let image = webp::Decoder::new(bytes)
        .decode()
        .expect("the bytes were just encoded");
    out.copy_from_slice(&image);
}

fn formats() -> Vec<Box<dyn Format>> {
    let ours = |codec| -> Box<dyn Format> {
        let (encoder, decoder) = (
            Encoder::new(GEOMETRY).expect("zstd"),
            Decoder::new(GEOMETRY).expect("zstd"),
        );
        Box::new(PairCodec {
            codec,
            encoder,
            decoder,
        })
    };
    vec![
        ours(Codec::Raw),
        ours(Codec::Predict),
        Box::new(ImageFormat {
            name: "png-6",
            pack: png,
            unpack: from_png,
        }),
        Box::new(ImageFormat {
            name: "webp",
            pack: webp,
            unpack: from_webp,
        }),
        Box::new(ImageFormat {
            name: "qoi",
            pack: |pixels, size| {
                qoi::encode_to_vec(pixels, size, size).expect("QOI takes any image")
            },
            unpack: |bytes, out| {
                qoi::decode_to_buf(out, bytes).expect("the bytes were just encoded");
            },
        }),
    ]
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

fn main() {
    let fail = |e: String| -> ! {
        eprintln!("{e}");
        std::process::exit(2)
    };
    let options = options().unwrap_or_else(|e| fail(e));
    let mut pairs = Vec::new();
    for folder in &options.folders {
        pairs_of(folder, &options, &mut pairs).unwrap_or_else(|e| fail(e));
    }
    if options.folders.is_empty() {
        (0..24).for_each(|i| {
            cut(
                &synth::synthetic_image(1, i, 256, 256),
                options.own_lq,
                &mut pairs,
            )
        });
    }
    if pairs.is_empty() {
        fail("no image is at least 256 x 256".into());
    }
    report(&options, &pairs);
}

/// Checks that every format restores the pixels of every pair.
fn check_round_trips(formats: &mut [Box<dyn Format>], packed: &[Vec<Packed>], pairs: &[Pair]) {
    let (mut lq, mut hr) = (vec![0; GEOMETRY.lq_bytes()], vec![0; GEOMETRY.hr_bytes()]);
    for (format, packed) in formats.iter_mut().zip(packed) {
        for (packed, pair) in packed.iter().zip(pairs) {
            format.decode(packed, &mut lq, &mut hr);
            assert!(
                lq == pair.0 && hr == pair.1,
                "{} did not restore the pixels",
                format.name()
            );
        }
    }
}

/// Measures all formats in interleaved rounds and prints the medians.
fn report(options: &Options, pairs: &[Pair]) {
    let g = GEOMETRY;
    let whole = g.lq_bytes() + g.hr_bytes();
    let mut formats = formats();
    let packed: Vec<Vec<Packed>> = formats
        .iter_mut()
        .map(|f| pairs.iter().map(|p| f.encode(p)).collect())
        .collect();
    check_round_trips(&mut formats, &packed, pairs);
    let (mut lq, mut hr) = (vec![0; g.lq_bytes()], vec![0; g.hr_bytes()]);
    let crop = Crop {
        x: 37,
        y: 21,
        size: 64,
    };
    let mut decoder = Decoder::new(g).expect("zstd");
    let mut crops = Vec::new();
    let (mut encoding, mut decoding) = (
        vec![Vec::new(); formats.len()],
        vec![Vec::new(); formats.len()],
    );
    for round in 0..options.rounds {
        for (i, format) in formats.iter_mut().enumerate() {
            let some = pairs
                .iter()
                .cycle()
                .skip(round * ENCODED % pairs.len())
                .take(ENCODED);
            let time = seconds(|| some.for_each(|pair| drop(black_box(format.encode(pair)))));
            encoding[i].push((ENCODED * whole) as f64 / 1e6 / time);
            let time = seconds(|| {
                packed[i]
                    .iter()
                    .for_each(|p| format.decode(black_box(p), &mut lq, &mut hr))
            });
            decoding[i].push((pairs.len() * whole) as f64 / 1e6 / time);
        }
        let time = seconds(|| {
            for p in &packed[1] {
                let codec = p.codec.expect("set by encode");
                let (lq, hr) = (&mut lq[..64 * 64 * 3], &mut hr[..128 * 128 * 3]);
                decoder
                    .decode_crop(codec, black_box(&p.first), crop, lq, hr)
                    .expect("the bytes were just encoded");
            }
        });
        crops.push(pairs.len() as f64 / time);
    }
    let bytes: Vec<usize> = packed
        .iter()
        .map(|all| all.iter().map(|p| p.first.len() + p.second.len()).sum())
        .collect();
    let raw = (pairs.len() * whole) as f64;
    let rows = formats.iter().enumerate().map(|(i, format)| Row {
        name: format.name(),
        bytes: bytes[i] as f64 / pairs.len() as f64,
        of_raw: bytes[i] as f64 / raw,
        encode: median(&mut encoding[i]),
        decode: median(&mut decoding[i]),
    });
    print(
        options,
        pairs.len(),
        &rows.collect::<Vec<_>>(),
        median(&mut crops),
    );
}

struct Row {
    name: &'static str,
    /// Bytes per pair.
    bytes: f64,
    of_raw: f64,
    /// MB of pixels per second.
    encode: f64,
    decode: f64,
}

fn print(options: &Options, pairs: usize, rows: &[Row], crops: f64) {
    let of = |name: &str| {
        rows.iter()
            .find(|r| r.name == name)
            .expect("every format is measured")
    };
    let (png, webp) = (of("png-6"), of("webp"));
    let lq = if options.own_lq { "own" } else { "other" };
    if options.json {
        let formats: Vec<_> = rows
            .iter()
            .map(|r| {
                serde_json::json!({ "name": r.name, "bytes_per_pair": r.bytes, "of_raw": r.of_raw, "of_png": r.bytes / png.bytes,
                    "of_webp": r.bytes / webp.bytes, "encode_mb_s": r.encode, "decode_mb_s": r.decode })
            })
            .collect();
        println!(
            "{}",
            serde_json::json!({ "pairs": pairs, "lq": lq, "rounds": options.rounds, "crops_per_s": crops,
            "formats": formats })
        );
        return;
    }
    println!(
        "{pairs} pairs of LQ 128 / HR 256, LQ {lq}, one core, medians of {} rounds",
        options.rounds
    );
    println!(
        "format    bytes/pair   of raw   of PNG  of WebP   encode MB/s   decode MB/s   pairs/s   decode / PNG's"
    );
    for r in rows {
        println!(
            "{:8} {:11.0} {:8.4} {:8.3} {:8.3} {:13.0} {:13.0} {:9.0} {:16.2}",
            r.name,
            r.bytes,
            r.of_raw,
            r.bytes / png.bytes,
            r.bytes / webp.bytes,
            r.encode,
            r.decode,
            r.decode * 1e6 / (GEOMETRY.lq_bytes() + GEOMETRY.hr_bytes()) as f64,
            r.decode / png.decode
        );
    }
    println!("predict, crops of LQ 64 / HR 128: {crops:.0} pairs/s");
}
