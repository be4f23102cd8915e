//! Decodes an image file to upright 8-bit sRGB, and reports what was changed on the way. Depends on
//! the image crate and on `colour`. Promises that a damaged, hostile or unsuitable file gives an
//! error that names it and never a panic, and that nothing large is allocated before the header was
//! checked against the limits. An error of the system (a failed read, no memory) is retried and
//! then returned as such: [`failure::system_cause`] finds it.

mod bits;
mod deep;
mod entropy;
mod head;
mod huffman;
mod jpeg;
mod limits;
mod png;
mod source;
mod tiff;

pub use super::note::Note;
pub(super) use deep::decode_deep;
use deep::{Keep, Kept, deep_image, is_deep};
pub(super) use head::Metadata;
pub use limits::Limits;
pub(super) use limits::check_size;
use limits::{CMYK, MAX_JPEG_HEADER, MAX_PIXEL_BYTES};

use super::buffers::zeroed;
use super::colour::{self, Samples};
use super::thumbnail::Thumbnail;
use crate::support::failure;
use anyhow::{Context, Result, anyhow, bail, ensure};
use image::metadata::Orientation;
use image::{
    ColorType, DynamicImage, ExtendedColorType, GrayImage, ImageDecoder, ImageFormat, ImageReader,
    RgbImage,
};
use source::{FailureRecorder, ReplacedStart, copy_of};
use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Once;

/// A decoded image and what was changed on the way.
#[derive(Debug)]
pub struct Decoded {
    /// 8-bit sRGB, upright.
    pub image: RgbImage,
    /// What was changed on the way; empty for a plain 8-bit RGB file.
    pub notes: Vec<Note>,
    /// If the colours were converted from a profile: a thumbnail of the unconverted, upright image.
    pub unconverted: Option<Thumbnail>,
}

impl Decoded {
    /// How the stored image was turned; [`Orientation::NoTransforms`] if it was not.
    pub fn turn(&self) -> Orientation {
        let exif = self.notes.iter().find_map(|n| {
            if let Note::Orientation(exif) = n {
                Orientation::from_exif(*exif)
            } else {
                None
            }
        });
        exif.unwrap_or(Orientation::NoTransforms)
    }
}

/// Decodes a PNG, JPEG, WebP, TIFF or BMP file. The content decides the format, not the extension.
/// Of an animation the first frame is decoded.
///
/// # Errors
/// The file cannot be read, has another format, is damaged or cut short, is CMYK or floating point,
/// or is larger than `limits` allow. The error names the file.
pub fn decode(path: &Path, limits: &Limits) -> Result<Decoded> {
    probe(path, limits)?; // before the file is read into memory
    decode_loaded(path, &load(path, limits)?, limits)
}

/// Decodes a file as [`decode`] does, and also returns its alpha channel if it has one: 8 bits,
/// upright, of the size of the image.
///
/// # Errors
/// Those of [`decode`].
pub fn decode_with_alpha(path: &Path, limits: &Limits) -> Result<(Decoded, Option<GrayImage>)> {
    probe(path, limits)?; // before the file is read into memory
    let decoded = decode_bytes(path, &load(path, limits)?, limits, Keep::Alpha)?;
    Ok((decoded.plain, decoded.alpha))
}

/// Reads the bytes of an image file, for [`decode_loaded`].
///
/// # Errors
/// The file cannot be read, has no known format, or is larger than any image within the limits.
pub fn load(path: &Path, limits: &Limits) -> Result<Vec<u8>> {
    with_file(path, limits, |file, _, length| {
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(length as usize)
            .map_err(|_| failure::no_memory(length, "an image file"))?;
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    })
}

/// Decodes the bytes of a file that was read by [`load`]; `path` is used for errors only.
///
/// # Errors
/// Those of [`decode`].
pub fn decode_loaded(path: &Path, bytes: &[u8], limits: &Limits) -> Result<Decoded> {
    decode_bytes(path, bytes, limits, Keep::Nothing).map(|decoded| decoded.plain)
}

/// Decodes a file.
fn decode_bytes(path: &Path, bytes: &[u8], limits: &Limits, keep: Keep) -> Result<Kept> {
    guarded(path, || {
        let format = format_of(bytes)?;
        let mut head = Metadata::read(&mut Cursor::new(bytes), format, limits)?;
        if let Some(jpeg) = head.jpeg.take() {
            return read(jpeg::Decoder::new(bytes, &jpeg), format, head, limits, keep);
        }
        let shown = ReplacedStart::new(
            std::mem::take(&mut head.replaced),
            Cursor::new(bytes),
            head.skipped,
        )?;
        read(decoder(shown, format, limits)?, format, head, limits, keep)
    })
}

/// Reads width and height from the header, in pixels and after EXIF orientation.
///
/// # Errors
/// Those of [`decode`], except damage after the header.
pub fn probe(path: &Path, limits: &Limits) -> Result<(u32, u32)> {
    read_header(path, limits).map(|header| header.size)
}

/// The properties of an image that its header shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHeader {
    /// Width and height in pixels, after EXIF orientation.
    pub size: (u32, u32),
    /// Largest memory of decoding per pixel, bytes: with the result, without the file.
    pub pixel_bytes: u64,
    /// Largest memory of decoding for the metadata (profile, EXIF data, tables of a header), bytes.
    pub metadata_bytes: u64,
    /// Whether there is an alpha channel.
    pub alpha: bool,
    /// Whether there are 16 bits per channel.
    pub deep: bool,
}

/// Reads the header of a file: size, and the memory that decoding will take.
///
/// # Errors
/// Those of [`probe`].
pub fn read_header(path: &Path, limits: &Limits) -> Result<ImageHeader> {
    with_file(path, limits, |file, format, _| {
        let head = Metadata::read(file, format, limits)?;
        if let Some(jpeg) = &head.jpeg {
            let decoder = jpeg::Decoder::new(&jpeg.bytes, jpeg);
            decoder
                .check_header()
                .map_err(|e| explain(e, format_name(format)))?;
            return header(&decoder, format, &head, limits);
        }
        let shown = ReplacedStart::new(head.replaced.clone(), file, head.skipped)?;
        header(&decoder(shown, format, limits)?, format, &head, limits)
    })
}

/// Opens a file, detects its format from its first bytes and calls `work` with the file, the format
/// and the length in bytes. After a temporary error of the system it opens the file again.
fn with_file<T>(
    path: &Path,
    limits: &Limits,
    work: impl Fn(&mut FailureRecorder<BufReader<File>>, ImageFormat, u64) -> Result<T>,
) -> Result<T> {
    guarded(path, || {
        failure::retry(|| {
            let mut file = File::open(path)?;
            let length = match check_file(&file, limits) {
                Ok(length) => length,
                Err(e) => return Ok(Err(e)),
            };
            let start = start_of(&mut file)?;
            let mut file = FailureRecorder::new(BufReader::with_capacity(64 << 10, file));
            let outcome = format_of(&start).and_then(|format| work(&mut file, format, length));
            match (file.take_failure(), outcome) {
                (Some(error), _) => Err(error),
                (None, Err(error)) => match failure::system_cause(&error) {
                    Some(cause) => Err(copy_of(cause)),
                    None => Ok(Err(error)),
                },
                (None, outcome) => Ok(outcome),
            }
        })
        .context("cannot read the file")?
    })
}

/// Reads the first bytes of a file, enough to detect its format, and goes back to its start.
fn start_of(file: &mut File) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    Read::by_ref(file).take(64).read_to_end(&mut start)?;
    file.rewind()?;
    Ok(start)
}

/// A file that is whole as far as was seen, and of a kind that is not read. Every other fault of the
/// content is damage.
#[derive(Debug)]
pub(super) struct NotSupported(pub String);

impl std::fmt::Display for NotSupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotSupported {}

/// Whether a file was refused because of its kind (CMYK, another format, a size beyond the limits)
/// and not because it is damaged.
pub fn is_not_supported(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<NotSupported>())
}

/// Checks that a file can hold an image, and returns its length in bytes.
fn check_file(file: &File, limits: &Limits) -> Result<u64> {
    let meta = file.metadata()?;
    ensure!(meta.is_file(), "not a regular file");
    ensure!(meta.len() > 0, "the file is empty (0 bytes)");
    let longest = limits
        .max_pixels
        .saturating_mul(MAX_PIXEL_BYTES)
        .saturating_add(MAX_JPEG_HEADER);
    ensure!(
        meta.len() <= longest,
        NotSupported(format!(
            "the file has {} bytes: too many for {} million pixels",
            meta.len(),
            limits.max_pixels / 1_000_000
        ))
    );
    Ok(meta.len())
}

/// Detects the format of a file from its first bytes.
fn format_of(start: &[u8]) -> Result<ImageFormat> {
    match image::guess_format(start) {
        Ok(
            format @ (ImageFormat::Png
            | ImageFormat::Jpeg
            | ImageFormat::WebP
            | ImageFormat::Tiff
            | ImageFormat::Bmp),
        ) => Ok(format),
        Ok(other) => {
            bail!(NotSupported(format!(
                "a {other:?} file: only PNG, JPEG, WebP, TIFF and BMP are read; convert it"
            )))
        }
        Err(_) => {
            let shown: String = start
                .iter()
                .take(12)
                .map(|&b| {
                    if (32..127).contains(&b) {
                        b as char
                    } else {
                        '.'
                    }
                })
                .collect();
            bail!(NotSupported(format!(
                "not a PNG, JPEG, WebP, TIFF or BMP image, whatever its name says (it starts with \"{shown}\")"
            )));
        }
    }
}

/// Makes the decoder for a format; it has read the header.
fn decoder<'a, R: BufRead + Seek + 'a>(
    reader: R,
    format: ImageFormat,
    limits: &Limits,
) -> Result<impl ImageDecoder + 'a> {
    let mut reader = ImageReader::with_format(reader, format);
    let mut bounds = image::Limits::default();
    bounds.max_alloc = Some(limits.max_pixels.saturating_mul(MAX_PIXEL_BYTES));
    reader.limits(bounds);
    reader
        .into_decoder()
        .map_err(|e| explain(e, format_name(format)))
}

/// Converts an error of the image crate to ours.
fn explain(error: image::ImageError, format: &str) -> anyhow::Error {
    use image::ImageError::{Decoding, IoError, Limits, Unsupported};
    match error {
        IoError(e) if failure::is_system(&e) => {
            anyhow::Error::new(e).context(format!("cannot read the {format} data"))
        }
        IoError(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            anyhow!("the {format} data are cut short; fetch the file again")
        }
        IoError(e) => anyhow!("cannot read the {format} data: {e}"),
        Limits(_) => anyhow!("the {format} header asks for more memory than the size limit allows"),
        Unsupported(e) => {
            anyhow!(NotSupported(format!(
                "a kind of {format} that is not read ({e}); convert it to 8-bit RGB"
            )))
        }
        Decoding(e) if format == "JPEG" => {
            let why =
                std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
            anyhow!("the JPEG data are damaged: {why}; fetch the file again")
        }
        other => anyhow!("the {format} data are damaged or cut short ({other})"),
    }
}

fn format_name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Png => "PNG",
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Tiff => "TIFF",
        _ => "BMP",
    }
}

fn header(
    decoder: &impl ImageDecoder,
    format: ImageFormat,
    head: &Metadata,
    limits: &Limits,
) -> Result<ImageHeader> {
    let (width, height) = decoder.dimensions();
    check_size(width, height, limits)?;
    let turn = head.orientation;
    let samples = u64::from(decoder.color_type().bytes_per_pixel());
    // memory of the decoder besides its result: the coefficients of a progressive JPEG, the planes
    // of a WebP, a strip of a TIFF
    let beside = match format {
        ImageFormat::Png | ImageFormat::Bmp => 0,
        ImageFormat::Jpeg => 6,
        _ => MAX_PIXEL_BYTES,
    };
    // conversion to 8-bit RGB and turning each make another image
    let pixel_bytes = samples
        + beside.max(3)
        + if turn == Orientation::NoTransforms {
            0
        } else {
            3
        };
    let size = if turn.to_exif() >= 5 {
        (height, width)
    } else {
        (width, height)
    };
    Ok(ImageHeader {
        size,
        pixel_bytes,
        metadata_bytes: head.bytes,
        alpha: decoder.color_type().has_alpha(),
        deep: is_deep(decoder.color_type()),
    })
}

/// Decodes the pixels and converts them to upright 8-bit sRGB, and keeps what `keep` says.
fn read(
    decoder: impl ImageDecoder,
    format: ImageFormat,
    head: Metadata,
    limits: &Limits,
    keep: Keep,
) -> Result<Kept> {
    let (width, height) = decoder.dimensions();
    check_size(width, height, limits)?;
    let colour = decoder.color_type();
    if matches!(
        decoder.original_color_type(),
        ExtendedColorType::Cmyk8 | ExtendedColorType::Cmyk16
    ) {
        bail!(NotSupported(CMYK.into()));
    }
    let (channels, deep) = match colour {
        ColorType::L8 => (1, false),
        ColorType::La8 => (2, false),
        ColorType::Rgb8 => (3, false),
        ColorType::Rgba8 => (4, false),
        ColorType::L16 => (1, true),
        ColorType::La16 => (2, true),
        ColorType::Rgb16 => (3, true),
        ColorType::Rgba16 => (4, true),
        _ => bail!(NotSupported(
            "floating-point pixels have no agreed range; convert the file to 8 or 16 bits".into()
        )),
    };
    let turn = head.orientation;

    let pixels = width as usize * height as usize; // fits: checked against the limits above
    let samples = if deep {
        let mut data = zeroed::<u16>(pixels * channels, "pixels")?;
        read_into(decoder, format, bytemuck::cast_slice_mut(&mut data))?;
        Samples::Deep(data)
    } else {
        let mut data = zeroed::<u8>(pixels * channels, "pixels")?;
        read_into(decoder, format, &mut data)?;
        Samples::Plain(data)
    };

    let mut notes = Vec::new();
    if channels.is_multiple_of(2) {
        notes.push(Note::Alpha);
    }
    let kept = match &samples {
        Samples::Deep(data) if keep == Keep::Deep => {
            Some(deep_image(data, channels, (width, height), &head)?)
        }
        _ => None,
    };
    let alpha = if keep == Keep::Alpha {
        colour::alpha_of(&samples, channels)?
    } else {
        None
    };
    let (data, profile_note, mut unconverted) =
        colour::to_srgb(samples, channels, (width, height), &head.colours)?;
    if channels <= 2 {
        notes.push(Note::Grey);
    }
    if deep {
        notes.push(Note::SixteenBit);
    }
    notes.extend(profile_note);
    let image =
        RgbImage::from_raw(width, height, data).context("the decoded image has a wrong length")?;
    let mut image = DynamicImage::ImageRgb8(image);
    if turn != Orientation::NoTransforms {
        image.apply_orientation(turn);
        notes.push(Note::Orientation(turn.to_exif()));
        unconverted = unconverted.map(|thumbnail| thumbnail.turned(turn));
    }
    let alpha = alpha
        .map(|data| {
            GrayImage::from_raw(width, height, data).context("the alpha channel has a wrong length")
        })
        .transpose()?;
    let alpha = alpha.map(|plane| {
        let mut plane = DynamicImage::ImageLuma8(plane);
        plane.apply_orientation(turn);
        plane.into_luma8()
    });
    Ok(Kept {
        plain: Decoded {
            image: image.into_rgb8(),
            notes,
            unconverted,
        },
        alpha,
        deep: kept,
    })
}

fn read_into(decoder: impl ImageDecoder, format: ImageFormat, data: &mut [u8]) -> Result<()> {
    ensure!(
        decoder.total_bytes() == data.len() as u64,
        "the decoder wants {} bytes for {}",
        decoder.total_bytes(),
        data.len()
    );
    decoder
        .read_image(data)
        .map_err(|e| explain(e, format_name(format)))
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Stops panics inside decoders, which become errors, from being written to stderr as well. This
/// changes the panic hook of the whole process, so only a program's `main` may call it; the library
/// never does.
pub fn silence_decoder_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.with(Cell::get) {
                before(info);
            }
        }));
    });
}

/// Runs `work` on one file. A panic inside a decoder becomes an error, and every error names the
/// file.
pub(super) fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    QUIET.with(|q| q.set(true));
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(work));
    QUIET.with(|q| q.set(false));
    let result = outcome.unwrap_or_else(|payload| {
        let text = payload
            .downcast_ref::<&str>()
            .map(|s| s.to_string())
            .or_else(|| payload.downcast_ref::<String>().cloned());
        Err(anyhow!(
            "the decoder gave up on the file, which is probably damaged ({})",
            text.unwrap_or_else(|| "no message".into())
        ))
    });
    result.with_context(|| path.display().to_string())
}
