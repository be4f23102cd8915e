//! What was changed on the way from an image file to 8-bit sRGB. Depends on nothing.

use std::fmt;

/// A change on the way from a file to 8-bit RGB.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Note {
    /// The one grey channel was repeated three times.
    Grey,
    /// The alpha channel was dropped. The stored colours stay as they are, as in OpenCV and
    /// Pillow's `convert("RGB")`.
    Alpha,
    /// 16 bits per channel were rounded to 8 (x * 255 / 65535).
    SixteenBit,
    /// The image was turned or flipped upright; holds the EXIF value (2 to 8).
    Orientation(u8),
    /// The image was converted to sRGB from the embedded colour profile of this name.
    Profile(String),
    /// The embedded colour profile was not used, for this reason; the colours are read as sRGB.
    ProfileIgnored(String),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Grey => f.write_str("grey, repeated to RGB"),
            Note::Alpha => f.write_str("alpha channel dropped"),
            Note::SixteenBit => f.write_str("16 bits rounded to 8"),
            Note::Orientation(exif) => write!(f, "turned upright (EXIF orientation {exif})"),
            Note::Profile(name) => write!(f, "converted to sRGB from the profile \"{name}\""),
            Note::ProfileIgnored(why) => write!(f, "taken as sRGB: {why}"),
        }
    }
}
