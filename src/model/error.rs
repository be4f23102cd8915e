//! Why a network, or a file that holds one, is refused: the error type of this module's border. A
//! caller can match on the variant; the text is written for the user. Depends on the standard
//! library and on the escaping of foreign text alone.

use super::architecture::ARCHITECTURES;
use crate::plan::{MAX_IMAGES, MAX_SIDE};
use crate::support::text::brief;
use std::fmt::{self, Display};
use std::io;
use std::path::PathBuf;

/// Why a network, or a file that holds one, is refused.
///
/// Functions of this module that fail in no other way return this type. If a function returns
/// [`anyhow::Error`], `downcast_ref::<model::Error>()` finds it there. `{}` prints the error
/// without its source, `{:#}` with it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The operating system could not read the file: it is missing, access is denied, a disk
    /// failed. The source is the [`io::Error`].
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file was read and cannot be used. The source is the reason, another variant of this
    /// type.
    File {
        /// The file.
        path: PathBuf,
        /// What it was wanted for.
        purpose: Purpose,
        /// Why it cannot be used.
        reason: Box<Error>,
    },
    /// The path leads to a folder, pipe or device.
    NotAFile {
        /// Whether it is a folder.
        folder: bool,
    },
    /// The folder holds no network; the source of [`Error::File`].
    NoNetwork,
    /// The pickle of a checkpoint asks for a name that a file of tensors does not need: PyTorch
    /// would import it, and run it.
    ForbiddenName {
        /// Module and name, e.g. `os.system`.
        name: String,
    },
    /// The file is a checkpoint of PyTorch that cannot be read.
    Checkpoint {
        /// What is wrong with it.
        why: String,
        /// Whether PyTorch may read it nevertheless, so that converting it helps.
        convert: bool,
    },
    /// The file's tensors are those of a network that this program does not have.
    OtherNetwork {
        /// Its name.
        looks_like: String,
    },
    /// The file's tensors are those of no network that is known.
    Unrecognised {
        /// The first of them.
        tensors: String,
    },
    /// The file has another format.
    OtherFormat {
        /// The format with its article; `None` if it is not recognised.
        found: Option<&'static str>,
        /// What the user can do about it.
        advice: &'static str,
    },
    /// The file is a safetensors file that was cut off or altered.
    Damaged(String),
    /// The file is too large for a network of this family: header, tensors or length.
    TooLarge(String),
    /// The file is the state of a training run, not a network.
    TrainingState,
    /// Two tensors of the file have the same name once the prefixes of trainers are removed.
    Ambiguous {
        /// The name without prefixes.
        name: String,
        /// The key of the first tensor in the file.
        first: String,
        /// The key of the second tensor in the file.
        second: String,
    },
    /// The `paragon` entry of the file's metadata cannot be read.
    Metadata(String),
    /// Neither the metadata, the tensors nor the caller give the scale.
    NoScale,
    /// Neither the tensors, the metadata nor the caller give a setting of the network.
    SettingMissing {
        /// The network's name.
        arch: String,
        /// The setting.
        name: &'static str,
        /// Its usual value.
        usual: String,
    },
    /// The file's tensors are not those of the network.
    Tensors {
        /// Name and scale, e.g. `paragonsr2_realtime x2`.
        network: String,
        /// Every difference, sorted by its text.
        mismatches: Vec<Mismatch>,
        /// Whether a lenient read would accept the file.
        lenient_helps: bool,
    },
    /// A lenient read found no tensor of the network in the file.
    NoTensorFits {
        /// Name and scale, e.g. `paragonsr2_realtime x2`.
        network: String,
        /// Every difference, sorted by its text.
        mismatches: Vec<Mismatch>,
    },
    /// A tensor of the file holds an infinity or NaN.
    NotFinite {
        /// The parameter.
        name: String,
        /// The first such value.
        value: f32,
    },
    /// The file's fixed taps of the base upsampler are not those that this program computes with.
    OtherTaps {
        /// The parameter.
        name: String,
    },
    /// No network has this name.
    UnknownArchitecture {
        /// The name that was asked for.
        name: String,
    },
    /// The network cannot have this scale.
    UnknownScale {
        /// The scale that was asked for.
        scale: usize,
        /// The network's name.
        arch: &'static str,
        /// The scales that it can have.
        scales: &'static [usize],
    },
    /// The network has no setting of this name.
    NoSetting {
        /// The network's name.
        arch: String,
        /// The name that was asked for.
        name: String,
        /// The settings that it has.
        known: Vec<&'static str>,
    },
    /// A setting of the network cannot have this value.
    SettingValue {
        /// The network's name.
        arch: String,
        /// The setting.
        name: &'static str,
        /// The value that was asked for.
        value: String,
        /// The values that it can have, in words.
        allowed: String,
    },
    /// A network's file names a parameter that its table does not have: a bug in that file.
    NoParameter {
        /// The parameter.
        name: String,
    },
    /// A network's file builds a plan that breaks a rule: a bug in that file.
    Plan(crate::plan::Error),
    /// The number of parameter values is not the network's.
    ParameterCount {
        /// Values given.
        given: usize,
        /// Values of the network.
        expected: usize,
    },
    /// A plan cannot be made for this number of images.
    Images {
        /// Images in a micro-batch.
        images: usize,
    },
    /// A plan cannot be made for images of this size.
    Size {
        /// Rows in LQ pixels.
        height: usize,
        /// Columns in LQ pixels.
        width: usize,
        /// The network's scale.
        scale: usize,
    },
}

/// What a file was wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// To run the network: [`super::read_model`].
    Model,
    /// To start training from it: [`super::read_pretrained`].
    Start,
}

/// One difference between the tensors of a file and the parameters of a network.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Mismatch {
    /// The file has no such tensor.
    Missing {
        /// The parameter.
        name: String,
    },
    /// The shapes differ in more than sides of 1.
    Shape {
        /// The parameter.
        name: String,
        /// The tensor's shape.
        found: Vec<usize>,
        /// The parameter's shape.
        expected: Vec<usize>,
    },
    /// The tensor is none of F32, F16 and BF16.
    Type {
        /// The parameter.
        name: String,
        /// The tensor's type as safetensors writes it.
        found: String,
    },
    /// The network has no such parameter.
    Unknown {
        /// The tensor.
        name: String,
        /// Name and scale of the network.
        network: String,
    },
}

impl Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mismatch::Missing { name } => write!(f, "{name} is missing"),
            Mismatch::Shape {
                name,
                found,
                expected,
            } => write!(
                f,
                "{name} has shape {}, expected {expected:?}",
                brief(format!("{found:?}"))
            ),
            Mismatch::Type { name, found } => write!(f, "{name} has type {found}"),
            Mismatch::Unknown { name, network } => {
                write!(f, "{} is not part of {network}", brief(name))
            }
        }
    }
}

/// The canonical names of all networks.
fn known() -> Vec<&'static str> {
    let all = ARCHITECTURES.into_iter();
    all.map(|architecture| architecture.row().name).collect()
}

/// How many mismatches a message lists; it counts the others.
const SHOWN_MISMATCHES: usize = 5;

/// The first mismatches, and how many follow.
struct Shortened<'a>(&'a [Mismatch]);

impl Display for Shortened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mismatch) in self.0.iter().take(SHOWN_MISMATCHES).enumerate() {
            write!(f, "{}{mismatch}", if i > 0 { "; " } else { "" })?;
        }
        match self.0.len().saturating_sub(SHOWN_MISMATCHES) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

/// How PyTorch converts a checkpoint to a safetensors file; docs/training.md has the same line.
pub(super) const CONVERT: &str = "import torch, safetensors.torch as s; n = torch.load('net.pth', map_location='cpu', weights_only=True); \
                       n = n.get('params_ema', n.get('params', n)); \
                       s.save_file({k: v.clone() for k, v in n.items()}, 'net.safetensors')";

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_text(f)?;
        match std::error::Error::source(self) {
            Some(source) if f.alternate() => write!(f, ": {source:#}"),
            _ => Ok(()),
        }
    }
}

impl Error {
    /// The text without that of the source.
    fn write_text(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Read { path, .. } => write!(f, "cannot read the model {}", path.display()),
            Error::File { path, purpose, .. } => match purpose {
                Purpose::Model => write!(f, "cannot use {} as a model", path.display()),
                Purpose::Start => write!(f, "cannot start from {}", path.display()),
            },
            Error::NotAFile { folder: true } => {
                f.write_str("it is a folder; give the file in it, as model.safetensors")
            }
            Error::NotAFile { folder: false } => f.write_str("it is no regular file"),
            Error::NoNetwork => f.write_str(
                "it is a folder without a network; expected a file, or the folder of a run with \
                 models/best_net_g_ema.safetensors or model.safetensors in it",
            ),
            Error::ForbiddenName { name } => write!(
                f,
                "it asks for {name}: a checkpoint must hold tensors only. Nothing of it was run; if \
                 you trust its author, load it in Python and save the tensors of the network alone \
                 (torch.save(net.state_dict(), ...))"
            ),
            Error::Checkpoint { why, convert } => {
                write!(f, "it is no checkpoint of PyTorch that can be read: {why}")?;
                if *convert {
                    write!(f, "; PyTorch may be able to convert it: python -c \"{CONVERT}\"")?;
                }
                Ok(())
            }
            Error::OtherNetwork { looks_like } => write!(
                f,
                "this looks like {looks_like}, which paragon does not have; it has {}",
                known().join(", ")
            ),
            Error::Unrecognised { tensors } => write!(
                f,
                "its tensors ({tensors}) are of no network that paragon knows ({}); if it is one of these \
                 with a part missing, --network and --scale show what differs",
                known().join(", ")
            ),
            Error::OtherFormat {
                found: Some(found),
                advice,
            } => write!(f, "it is {found}, not a safetensors file or a checkpoint; {advice}"),
            Error::OtherFormat { found: None, .. } => {
                f.write_str("it is neither a safetensors file nor a checkpoint of PyTorch (.pth), and its format is not recognised")
            }
            Error::Damaged(why) => write!(f, "it is not a whole safetensors file: {why}"),
            Error::TooLarge(why) => f.write_str(why),
            Error::TrainingState => f.write_str(
                "it is the state of a training (a folder `states`); give a network of the same run: model.safetensors or one of `models`",
            ),
            Error::Ambiguous {
                name,
                first,
                second,
            } => write!(
                f,
                "it holds {} twice, as {} and as {}, and does not say which counts; write a file with one of them",
                brief(name),
                brief(first),
                brief(second)
            ),
            Error::Metadata(why) => write!(f, "its `paragon` metadata cannot be read: {why}"),
            Error::NoScale => f.write_str(
                "neither its metadata nor its tensors give the scale; give --scale (and check that it is a network that `paragon networks` lists)",
            ),
            Error::SettingMissing { arch, name, usual } => {
                let flag = match *name {
                    "upsampler_alpha" => "--alpha".to_string(),
                    name => format!("--network-set {name}=VALUE"),
                };
                write!(
                    f,
                    "it has no metadata, and no tensor gives {name}; give {flag} (the published {arch} uses {usual})"
                )
            }
            Error::Tensors {
                network,
                mismatches,
                lenient_helps,
            } => {
                let mismatches = Shortened(mismatches);
                write!(f, "its tensors are not those of {network}: {mismatches}")?;
                f.write_str(if *lenient_helps {
                    " (--lenient takes what fits)"
                } else {
                    ""
                })
            }
            Error::NoTensorFits {
                network,
                mismatches,
            } => {
                let mismatches = Shortened(mismatches);
                write!(f, "none of its tensors is one of {network}: {mismatches}")
            }
            Error::NotFinite { name, value } => {
                write!(f, "{name} holds {value}, which is not finite")
            }
            Error::OtherTaps { name } => write!(
                f,
                "its fixed taps {name} are not those of Magic Kernel Sharp 2021, which is the only base there is"
            ),
            Error::UnknownArchitecture { name } => {
                write!(
                    f,
                    "unknown network '{}'; known are {}, and nano for paragonsr2_realtime",
                    brief(name),
                    known().join(", ")
                )
            }
            Error::UnknownScale {
                scale,
                arch,
                scales,
            } => {
                let scales: Vec<String> = scales.iter().map(usize::to_string).collect();
                let scales = scales.join(", ");
                write!(f, "scale {scale} is not one of {scales}, which {arch} can have")
            }
            Error::NoSetting { arch, name, known } => write!(
                f,
                "{arch} has no setting '{}'; it has {}",
                brief(name),
                known.join(", ")
            ),
            Error::SettingValue {
                arch,
                name,
                value,
                allowed,
            } => write!(
                f,
                "{name} of {arch} cannot be {}: it is {allowed}",
                brief(value)
            ),
            Error::NoParameter { name } => write!(f, "the network has no parameter {name}"),
            Error::Plan(error) => write!(f, "{error}"),
            Error::ParameterCount { given, expected } => {
                write!(f, "{given} values for a network of {expected}")
            }
            Error::Images { images } => write!(
                f,
                "{images} images at once; a plan takes 1 to {MAX_IMAGES}"
            ),
            Error::Size {
                height,
                width,
                scale,
            } => write!(
                f,
                "{width}x{height} LQ pixels; a plan takes sides of 1 to {} at scale {scale}",
                MAX_SIDE / scale.max(&1)
            ),
        }
    }
}

impl From<crate::plan::Error> for Error {
    fn from(error: crate::plan::Error) -> Error {
        Error::Plan(error)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Read { source, .. } => Some(source),
            Error::File { reason, .. } => Some(reason.as_ref()),
            _ => None,
        }
    }
}
