//! What was changed on the way from an image file to 8-bit sRGB. Depends on nothing.

use std::fmt;

/// Something about a file that was changed on the way to 8-bit RGB.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Note {
    /// One grey channel, repeated three times.
    Grey,
    /// An alpha channel, dropped as OpenCV and Pillow's `convert("RGB")` do: the stored colours
    /// stay, whatever the alpha.
    Alpha,
    /// 16 bits a channel, rounded to 8 (x * 255 / 65535).
    SixteenBit,
    /// Turned or flipped upright; the EXIF value (2 to 8).
    Orientation(u8),
    /// Converted to sRGB from the embedded colour profile of this name.
    Profile(String),
    /// An embedded colour profile that could not be used, and why; the colours were taken as sRGB.
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
