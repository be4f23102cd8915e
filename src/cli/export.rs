//! `paragon export`: writes a trained network as files for other programs. Depends on `export`.
//! Every file was compared with this program's own result before it is written, and nothing is
//! written if one of them differs too much.

use super::flags::{print, print_json, tell};
use super::recipe;
use anyhow::{Context, Result, ensure};
use clap::builder::NonEmptyStringValueParser;
use paragon::export::digest::sha256;
use paragon::export::examples::{Examples, of_folder, of_previews};
use paragon::export::model_db::{BLANK, Resource, Statements, entry};
use paragon::export::onnx::{Checked, check, least_psnr, onnx_bytes, opset};
use paragon::export::{Source, file_stem, safetensors_bytes, source};
use paragon::plan::Precision;
use paragon::support::files::{bounded_name, create_folder, write_atomic};
use paragon::support::text::bytes_text;
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Export a trained network for other programs: ONNX, safetensors, the entry of OpenModelDB.
///
/// The network is the average of the weights (EMA), as `model.safetensors` of a run holds it. Each
/// file is compared with this program's own result on a small image before it is written; a file
/// that differs is refused.
#[derive(clap::Args)]
pub struct Args {
    /// A run's folder, of which the best network is exported, or a network file
    #[arg(value_name = "RUN|MODEL")]
    source: PathBuf,
    /// The folder to write to; files of the same names are replaced
    #[arg(long, value_name = "DIR", default_value = "export")]
    out: PathBuf,
    /// Write ONNX files, for TensorRT, DirectML, ONNX Runtime, chaiNNer, vs-mlrt
    #[arg(long)]
    onnx: bool,
    /// Precision of the ONNX files, one file for each: f32, fp16, bf16
    #[arg(
        long,
        value_enum,
        value_name = "LIST",
        value_delimiter = ',',
        requires = "onnx",
        default_value = "f32"
    )]
    precision: Vec<Precision>,
    /// Write a safetensors file, for spandrel and chaiNNer (Compact, SPAN) or the author's code
    /// (ParagonSR2)
    #[arg(long)]
    safetensors: bool,
    /// Write the safetensors file as fp16, half the size
    #[arg(long, requires = "safetensors")]
    half: bool,
    /// Write the JSON of an OpenModelDB entry for the files that are exported with it
    #[arg(long)]
    openmodeldb: bool,
    /// Folder of LQ images for which side-by-side examples are written [default: the previews of
    /// the run]
    #[arg(long, value_name = "DIR", requires = "openmodeldb")]
    examples: Option<PathBuf>,
    /// Name of the network, also in the files' names [default: the run's folder or the file's name]
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// Ids of the authors in OpenModelDB
    #[arg(
        long,
        value_name = "ID",
        value_delimiter = ',',
        requires = "openmodeldb"
    )]
    author: Vec<String>,
    /// SPDX identifier of the licence, such as CC-BY-4.0
    #[arg(long, value_name = "SPDX", requires = "openmodeldb")]
    license: Option<String>,
    /// What the network is for, in Markdown
    #[arg(long, value_name = "TEXT", requires = "openmodeldb")]
    description: Option<String>,
    /// OpenModelDB's tags, such as photo,compression-removal
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        requires = "openmodeldb"
    )]
    tags: Vec<String>,
    #[command(flatten)]
    hints: recipe::HintFlags,
    /// Print a summary as JSON on stdout
    #[arg(long)]
    json: bool,
}

/// A file that was exported.
#[derive(Serialize)]
struct Exported {
    path: String,
    /// `onnx` or `safetensors`.
    kind: &'static str,
    precision: Precision,
    /// Version of ONNX's operators.
    #[serde(skip_serializing_if = "Option::is_none")]
    opset: Option<i64>,
    bytes: u64,
    sha256: String,
    /// Whether an earlier file of this name was replaced.
    replaced: bool,
    /// dB, against this program's own result; absent for f32 safetensors, which hold the same
    /// numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    psnr: Option<f64>,
}

/// A file that waits for the others to pass their checks.
struct Pending {
    name: String,
    bytes: Vec<u8>,
    kind: &'static str,
    precision: Precision,
    checked: Option<Checked>,
}

/// Exports, checks, writes.
pub fn run(args: &Args) -> Result<()> {
    ensure!(
        args.onnx || args.safetensors || args.openmodeldb,
        "nothing to write: give --onnx, --safetensors or --openmodeldb, or several of them"
    );
    ensure!(
        args.source.exists(),
        "{} does not exist: expected a run's folder or a network file",
        args.source.display()
    );
    let mut source = source(&args.source, &args.hints.hints())?;
    source.note.iter().for_each(tell);
    if let Some(name) = &args.name {
        source.name.clone_from(name);
    }
    let stem = file_stem(&source.name, source.net.scale)?;
    let pending = pending_files(args, &source, &stem)?;
    create_folder(&args.out)?;
    let exported: Vec<Exported> = pending
        .into_iter()
        .map(|file| write(&args.out, file))
        .collect::<Result<_>>()?;
    let model_db = args
        .openmodeldb
        .then(|| write_entry(args, &source, &exported))
        .transpose()?;
    if args.json {
        let (entry, examples) = match &model_db {
            None => (serde_json::Value::Null, Vec::new()),
            Some((path, missing, examples)) => (
                serde_json::json!({ "path": path.to_string_lossy(), "missing": missing }),
                examples.files.iter().map(|f| f.to_string_lossy()).collect(),
            ),
        };
        return print_json(&serde_json::json!({
            "network": source.net, "source": source.file.to_string_lossy(), "files": exported,
            "openmodeldb": entry, "examples": examples,
        }));
    }
    report(&source, &exported)?;
    model_db.map_or(Ok(()), |(path, missing, examples)| {
        report_entry(&path, &missing, &examples)
    })
}

/// Name of a precision in file names.
fn precision_name(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "fp32",
        Precision::Fp16 => "fp16",
        Precision::Bf16 => "bf16",
    }
}

/// The files in memory, each compared with this program's own result.
fn pending_files(args: &Args, source: &Source, stem: &str) -> Result<Vec<Pending>> {
    let mut files = Vec::new();
    let mut precisions = args.precision.clone();
    precisions.dedup();
    for precision in precisions.into_iter().filter(|_| args.onnx) {
        let about = about(source);
        let bytes = onnx_bytes(&source.net, &source.parameters, precision, &about)?;
        let checked = check(&bytes, &source.net, &source.parameters, precision)?;
        let ending = format!("_{}_op{}.onnx", precision_name(precision), opset(precision));
        files.push(Pending {
            name: bounded_name(stem, &ending),
            bytes,
            kind: "onnx",
            precision,
            checked: Some(checked),
        });
    }
    if args.safetensors {
        let iteration = source.meta.as_ref().and_then(|meta| meta.iteration);
        let (net, values) = (&source.net, &source.parameters);
        let (bytes, checked) = safetensors_bytes(net, values, iteration, args.half)?;
        let (ending, precision) = if args.half {
            ("_fp16.safetensors", Precision::Fp16)
        } else {
            (".safetensors", Precision::F32)
        };
        files.push(Pending {
            name: bounded_name(stem, ending),
            bytes,
            kind: "safetensors",
            precision,
            checked,
        });
    }
    Ok(files)
}

/// What the metadata of an ONNX file says about the run.
fn about(source: &Source) -> Vec<(String, String)> {
    let mut list = vec![("name".to_string(), source.name.clone())];
    if let Some(run) = source.run.as_ref().and_then(|run| run.file_name()) {
        list.push(("run".to_string(), run.to_string_lossy().into_owned()));
    }
    let iteration = source.meta.as_ref().and_then(|meta| meta.iteration);
    list.extend(iteration.map(|n| ("iteration".to_string(), n.to_string())));
    list
}

fn write(out: &Path, file: Pending) -> Result<Exported> {
    let path = out.join(&file.name);
    let replaced = path.is_file();
    write_atomic(&path, |to| Ok(to.write_all(&file.bytes)?))?;
    Ok(Exported {
        path: path.to_string_lossy().into_owned(),
        kind: file.kind,
        precision: file.precision,
        opset: (file.kind == "onnx").then(|| opset(file.precision)),
        bytes: file.bytes.len() as u64,
        sha256: sha256(&file.bytes),
        psnr: file.checked.map(|checked| checked.psnr),
        replaced,
    })
}

/// Writes examples and entry; returns the entry's path and what is missing.
fn write_entry(
    args: &Args,
    source: &Source,
    exported: &[Exported],
) -> Result<(PathBuf, Vec<String>, Examples)> {
    let examples = match (&args.examples, &source.run) {
        (Some(folder), _) => of_folder(source, folder, &args.out)
            .with_context(|| format!("no examples from {}", folder.display()))?,
        (None, Some(run)) => of_previews(run, &args.out)?,
        (None, None) => Examples::default(),
    };
    let said = Statements {
        name: args.name.clone(),
        authors: args.author.clone(),
        license: args.license.clone(),
        description: args.description.clone(),
        tags: args.tags.clone(),
    };
    let resources = exported.iter().map(|file| Resource {
        platform: if file.kind == "onnx" {
            "onnx"
        } else {
            "pytorch"
        },
        kind: file.kind,
        size: file.bytes,
        sha256: file.sha256.clone(),
        urls: vec![format!(
            "{BLANK}: URL of {}",
            Path::new(&file.path)
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
        )],
    });
    let written = entry(source, &said, resources.collect(), examples.pairs.clone())?;
    let path = args.out.join(&written.file);
    write_atomic(&path, |to| Ok(to.write_all(written.json.as_bytes())?))?;
    Ok((path, written.missing, examples))
}

fn report(source: &Source, exported: &[Exported]) -> Result<()> {
    let net = &source.net;
    let iteration = source.meta.as_ref().and_then(|meta| meta.iteration);
    let iteration = iteration.map_or(String::new(), |n| format!(" after iteration {n}"));
    print(format_args!(
        "{} x{}{iteration}, from {}",
        net.arch,
        net.scale,
        source.file.display()
    ))?;
    for file in exported {
        let checked = match file.psnr {
            None => "the same numbers".to_string(),
            Some(psnr) => {
                format!(
                    "{psnr:.1} dB against paragon's result (at least {})",
                    least_psnr(file.precision)
                )
            }
        };
        let replaced = if file.replaced { ", replaced" } else { "" };
        print(format_args!(
            "  {}  {}  {checked}{replaced}",
            file.path,
            bytes_text(file.bytes)
        ))?;
    }
    Ok(())
}

fn report_entry(path: &Path, missing: &[String], examples: &Examples) -> Result<()> {
    print(format_args!("  {}", path.display()))?;
    if !examples.pairs.is_empty() {
        let folder = examples.files.first().and_then(|file| file.parent());
        print(format_args!(
            "  {}  {} examples, each as LR, SR and side by side",
            folder.unwrap_or(path).display(),
            examples.pairs.len()
        ))?;
    }
    for line in &examples.left_out {
        tell(format_args!("note: {line}"));
    }
    if missing.is_empty() {
        return Ok(());
    }
    print(format_args!("still missing in {}:", path.display()))?;
    missing
        .iter()
        .try_for_each(|line| print(format_args!("  {line}")))
}
