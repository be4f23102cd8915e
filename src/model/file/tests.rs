use super::read::load_model_bytes;
use super::*;
use crate::model::error::{CONVERT, Mismatch};
use crate::model::{Error, Network};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::collections::HashMap;
use std::path::Path;

fn sample() -> (tempfile::TempDir, std::path::PathBuf, Network, Vec<f32>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let net = Network::new("nano", 2).unwrap();
    let values = net.params().start_values(5);
    write_model(&path, &net, &values, Some(7)).unwrap();
    (dir, path, net, values)
}

#[test]
fn a_model_survives_the_round_trip_and_repeats_its_bytes() {
    let (_dir, path, net, values) = sample();
    let (read_net, read_values, meta) = read_model(&path, &ModelHints::default()).unwrap();
    assert_eq!((&read_net, &read_values), (&net, &values));
    assert_eq!(meta.unwrap().iteration, Some(7));
    let first = std::fs::read(&path).unwrap();
    write_model(&path, &net, &values, Some(7)).unwrap();
    assert_eq!(first, std::fs::read(&path).unwrap());
}

#[test]
fn rejects_a_truncated_file_another_scale_and_missing_metadata() {
    let (dir, path, net, values) = sample();
    let bytes = std::fs::read(&path).unwrap();
    for len in [0, 7, 100, bytes.len() - 1] {
        assert!(
            load_model_bytes(&bytes[..len], &ModelHints::default()).is_err(),
            "{len} bytes were accepted"
        );
    }
    let other = ModelHints {
        scale: Some(4),
        ..ModelHints::default()
    };
    let error = format!("{:#}", read_model(&path, &other).unwrap_err());
    assert!(
        error.contains("up.0.weight") && error.contains("m.safetensors"),
        "{error}"
    );

    let plain = dir.path().join("plain.safetensors");
    let table = net.params();
    let views = table.params.iter().map(|p| {
        let bytes = bytemuck::cast_slice(&values[p.range.offset..][..p.range.len]);
        (
            format!("params_ema.{}", p.name),
            TensorView::new(Dtype::F32, p.shape.clone(), bytes).unwrap(),
        )
    });
    std::fs::write(&plain, safetensors::serialize(views, None).unwrap()).unwrap();
    let error = format!(
        "{:#}",
        read_model(&plain, &ModelHints::default()).unwrap_err()
    );
    assert!(error.contains("--alpha"), "{error}");
    let hints = ModelHints {
        settings: [("upsampler_alpha".to_string(), 0.3.into())].into(),
        ..ModelHints::default()
    };
    assert_eq!(read_model(&plain, &hints).unwrap().1, values);
}

#[test]
fn training_starts_from_what_fits() {
    let (dir, path, net, values) = sample();
    let fresh = net.params().start_values(9);
    let all = read_pretrained(&path, &net, fresh.clone(), true).unwrap();
    assert!(all.values == values && all.mismatches.is_empty());
    // at another scale only the pixel shuffle's convolution does not fit
    let other = Network::new("nano", 4).unwrap();
    let error = format!(
        "{:#}",
        read_pretrained(&path, &other, other.params().start_values(9), true).unwrap_err()
    );
    assert!(
        error.contains("up.0.weight")
            && error.contains("--lenient")
            && error.contains("m.safetensors"),
        "{error}"
    );
    let part = read_pretrained(&path, &other, other.params().start_values(9), false).unwrap();
    assert!(
        part.mismatches.len() == 2 && part.mismatches.iter().all(|m| m.contains("up.0")),
        "{:?}",
        part.mismatches
    );
    let at = |net: &Network, name: &str| net.params().get(name).unwrap().range;
    let (here, there) = (at(&net, "conv_in.weight"), at(&other, "conv_in.weight"));
    assert_eq!(
        part.values[there.offset..][..there.len],
        values[here.offset..][..here.len]
    );
    // a file that holds the network and its average: the average is read
    let table = net.params();
    let views = ["params", "params_ema"].into_iter().flat_map(|prefix| {
        let values = if prefix == "params" { &fresh } else { &values };
        table.params.iter().map(move |p| {
            let bytes = bytemuck::cast_slice(&values[p.range.offset..][..p.range.len]);
            (
                format!("{prefix}.module.{}", p.name),
                TensorView::new(Dtype::F32, p.shape.clone(), bytes).unwrap(),
            )
        })
    });
    let twice = dir.path().join("twice.safetensors");
    std::fs::write(
        &twice,
        safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap(),
    )
    .unwrap();
    assert_eq!(
        read_pretrained(&twice, &net, fresh.clone(), true)
            .unwrap()
            .values,
        values
    );
    let foreign = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
    std::fs::write(
        &twice,
        safetensors::serialize([("x", foreign)], None).unwrap(),
    )
    .unwrap();
    assert!(
        format!(
            "{:#}",
            read_pretrained(&twice, &net, fresh, false).unwrap_err()
        )
        .contains("none of its tensors")
    );
}

/// Writes a file of tensors (name, shape, value); each holds one value in all its elements.
fn file_of(path: &Path, list: &[(String, Vec<usize>, f32)]) {
    let bytes: Vec<Vec<u8>> = list
        .iter()
        .map(|(_, shape, v)| v.to_le_bytes().repeat(shape.iter().product()))
        .collect();
    let views = list.iter().zip(&bytes).map(|((name, shape, _), b)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), b).unwrap())
    });
    std::fs::write(
        path,
        safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap(),
    )
    .unwrap();
}

/// The tensors of a Nano x2 whose parameters all have one value, with changed names.
fn named(name: impl Fn(&str) -> String, value: f32) -> Vec<(String, Vec<usize>, f32)> {
    let table = Network::new("nano", 2).unwrap().params();
    table
        .params
        .iter()
        .filter(|p| p.trainable)
        .map(|p| (name(&p.name), p.shape.clone(), value))
        .collect()
}

/// The one value that all parameters have at the start of a training from the file, or the error.
fn started(path: &Path) -> Result<f32, String> {
    let net = Network::new("nano", 2).unwrap();
    let table = net.params();
    let read =
        read_pretrained(path, &net, vec![0.0; table.len()], false).map_err(|e| format!("{e:#}"))?;
    let values: Vec<f32> = read.values[..table.trainable()].to_vec();
    assert_eq!(
        read.taken,
        table.params.iter().filter(|p| p.trainable).count(),
        "{:?}",
        read.mismatches
    );
    assert!(
        values.iter().all(|v| *v == values[0]),
        "a mixture of two networks"
    );
    Ok(values[0])
}

#[test]
fn keys_of_wrapped_networks_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n.safetensors");
    for prefix in [
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "params.module.",
        "params_ema._orig_mod.module.",
        "net_g.",
        "state_dict.generator.",
        "model_state_dict.netG.module.",
        "_forward_module.model.",
    ] {
        file_of(&path, &named(|n| format!("{prefix}{n}"), 0.25));
        assert_eq!(started(&path), Ok(0.25), "{prefix}");
    }
    // parts of a network that were wrapped one by one
    file_of(
        &path,
        &named(
            |n| {
                n.replace(
                    "body.0.blocks.",
                    "body._orig_mod.0._fsdp_wrapped_module.blocks.",
                )
            },
            0.25,
        ),
    );
    assert_eq!(started(&path), Ok(0.25));
    // the counter of an average is ignored
    let mut list = named(|n| format!("module.{n}"), 0.25);
    list.push(("n_averaged".into(), vec![], 7.0));
    file_of(&path, &list);
    assert_eq!(started(&path), Ok(0.25));
}

#[test]
fn a_name_that_stands_for_two_tensors_is_refused_with_both() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n.safetensors");
    let twice = |a: &str, b: &str| {
        let list = [
            named(|n| format!("{a}{n}"), 0.25),
            named(|n| format!("{b}{n}"), 0.5),
        ]
        .concat();
        file_of(&path, &list);
        started(&path)
    };
    for (a, b) in [
        ("", "module."),
        ("params.", "_orig_mod."),
        ("params_ema.", "net_g_ema."),
        ("net_g.", "generator."),
    ] {
        let error = twice(a, b).unwrap_err();
        assert!(
            error.contains(&format!("{a}body.0"))
                && error.contains(&format!("{b}body.0"))
                && error.contains("twice"),
            "{error}"
        );
    }
    // an average replaces the network, never single tensors of it
    assert_eq!(twice("params.", "params_ema."), Ok(0.5));
    assert_eq!(twice("g_ema.", ""), Ok(0.25));
    let mut list = named(|n| format!("params.{n}"), 0.25);
    list.push(("params_ema.conv_in.bias".into(), vec![16], 0.5));
    file_of(&path, &list);
    let net = Network::new("nano", 2).unwrap();
    let part = read_pretrained(&path, &net, vec![0.0; net.params().len()], false).unwrap();
    assert_eq!(part.taken, 1);
    assert!(
        format!(
            "{:#}",
            read_pretrained(&path, &net, part.values, true).unwrap_err()
        )
        .contains("is missing")
    );
}

#[test]
fn sides_of_one_do_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n.safetensors");
    let mut list = named(str::to_string, 0.25);
    for (name, shape, _) in &mut list {
        match name.as_str() {
            "detail_gain" => *shape = vec![1],
            "body.0.blocks.0.scale.gamma" => *shape = vec![16],
            "body.0.blocks.1.conv1.weight" => *shape = vec![32, 16],
            _ => {}
        }
    }
    file_of(&path, &list);
    assert_eq!(started(&path), Ok(0.25));
    for wrong in [vec![2], vec![0], vec![1, 2]] {
        list.iter_mut()
            .find(|(name, ..)| name == "detail_gain")
            .unwrap()
            .1 = wrong.clone();
        file_of(&path, &list);
        let net = Network::new("nano", 2).unwrap();
        let read = read_pretrained(&path, &net, vec![0.0; net.params().len()], false).unwrap();
        let line = format!("detail_gain has shape {wrong:?}, expected []");
        assert!(read.mismatches.contains(&line), "{:?}", read.mismatches);
    }
}

#[test]
fn other_files_are_named_with_what_helps() {
    let (dir, path, net, values) = sample();
    let other = dir.path().join("other.bin");
    let whole = std::fs::read(&path).unwrap();
    let huge = [&(5u64 << 20).to_le_bytes()[..], b"{", &vec![b' '; 5 << 20]].concat();
    let many: String = (0..30_000)
        .map(|i| format!("\"{i}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}},"))
        .collect();
    let many = format!("{{{}}}", many.trim_end_matches(','));
    let many = [&(many.len() as u64).to_le_bytes()[..], many.as_bytes()].concat();
    for (content, words) in [
        (
            &b"PK\x03\x04\0\0\0\0\0\0archive/data.pkl"[..],
            &["no checkpoint of PyTorch", "cut short"][..],
        ),
        (
            b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
            &["no checkpoint of PyTorch", "cut short"],
        ),
        (b"\x80\x02}q\0.", &["pickle", "torch.save"]),
        (b"GGUF\x03\0\0\0\0\0", &["GGUF", "safetensors and from"]),
        (b"\x08\x08\x12\x07pytorch\x1a\x05", &["ONNX"]),
        (b"\x89HDF\r\n\x1a\n", &["HDF5"]),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            &["Git LFS pointer", "git lfs pull"],
        ),
        (b"<!DOCTYPE html>\n<html>", &["web page", "fetch it again"]),
        (b"404: Not Found", &["text file"]),
        (b"\x1f\x8b\x08\0", &["gzip", "unpack"]),
        (b"", &["empty"]),
        (&[0; 64], &["zeros"]),
        (
            b"\x01\x02\x03\x04\x05\x06\x07\x08\x09",
            &["neither a safetensors file nor a checkpoint"],
        ),
        (&whole[..whole.len() - 1], &["not a whole safetensors file"]),
        (&whole[..200], &["not a whole safetensors file", "200"]),
        (&huge, &["header has 5242880 bytes"]),
        (&many, &["30000 tensors"]),
    ] {
        std::fs::write(&other, content).unwrap();
        let fresh = net.params().start_values(1);
        for error in [
            read_model(&other, &ModelHints::default()).unwrap_err(),
            read_pretrained(&other, &net, fresh, false).unwrap_err(),
        ] {
            let error = format!("{error:#}");
            assert!(
                error.contains("other.bin") && words.iter().all(|word| error.contains(word)),
                "{words:?}: {error}"
            );
        }
    }
    // a header whose length begins with the bytes of a pickle is still a network's
    let mut padded = whole[8..].to_vec();
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let wanted = length.next_multiple_of(0x10000) + 0x0280;
    padded.splice(length..length, vec![b' '; wanted - length]);
    std::fs::write(
        &other,
        [&(wanted as u64).to_le_bytes()[..], &padded].concat(),
    )
    .unwrap();
    assert_eq!(
        read_model(&other, &ModelHints::default()).unwrap().1,
        values
    );
    let error = format!(
        "{:#}",
        read_model(dir.path(), &ModelHints::default()).unwrap_err()
    );
    assert!(
        error.contains("a folder") && error.contains("model.safetensors"),
        "{error}"
    );
}

#[test]
fn the_line_that_converts_is_that_of_the_documentation() {
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/training.md"))
            .unwrap();
    assert!(
        page.contains(CONVERT),
        "docs/training.md does not hold: {CONVERT}"
    );
}

#[test]
fn the_state_of_a_training_is_no_network() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state_1.safetensors");
    let zero = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
    let metadata = HashMap::from([(STATE_METADATA_KEY.to_string(), "{}".to_string())]);
    std::fs::write(
        &path,
        safetensors::serialize([("parameters", zero)], Some(metadata)).unwrap(),
    )
    .unwrap();
    let error = format!(
        "{:#}",
        read_model(&path, &ModelHints::default()).unwrap_err()
    );
    assert!(
        error.contains("the state of a training") && error.contains("model.safetensors"),
        "{error}"
    );
}

/// The error inside the one that names the file.
fn reason(error: Error) -> Error {
    match error {
        Error::File { reason, .. } => *reason,
        other => other,
    }
}

#[test]
fn callers_can_match_on_the_reason() {
    let (dir, path, net, values) = sample();
    let hints = ModelHints::default();
    let read = |content: &[u8]| {
        let other = dir.path().join("other.bin");
        std::fs::write(&other, content).unwrap();
        reason(read_model(&other, &ModelHints::default()).unwrap_err())
    };
    let whole = std::fs::read(&path).unwrap();
    assert!(matches!(
        read(b"PK\x03\x04\0\0\0\0\0\0archive/data.pkl"),
        Error::Checkpoint { convert: false, .. }
    ));
    assert!(matches!(
        read(b"GGUF\x03\0\0\0\0\0"),
        Error::OtherFormat { found: Some(_), .. }
    ));
    assert!(matches!(read(&whole[..whole.len() - 1]), Error::Damaged(_)));
    assert!(matches!(
        reason(read_model(dir.path(), &hints).unwrap_err()),
        Error::NotAFile { folder: true }
    ));
    let hints_x4 = ModelHints {
        scale: Some(4),
        ..hints.clone()
    };
    let Error::Tensors { mismatches, .. } = reason(read_model(&path, &hints_x4).unwrap_err())
    else {
        panic!("another scale has other tensors")
    };
    assert!(
        mismatches
            .iter()
            .all(|m| matches!(m, Mismatch::Shape { name, .. } if name.starts_with("up.0")))
    );
    let unknown = ModelHints {
        arch: Some("esrgan".into()),
        ..hints.clone()
    };
    assert!(matches!(
        reason(read_model(&path, &unknown).unwrap_err()),
        Error::UnknownArchitecture { name } if name == "esrgan"
    ));
    file_of(
        &path,
        &[
            named(str::to_string, 0.25),
            named(|n| format!("module.{n}"), 0.5),
        ]
        .concat(),
    );
    assert!(matches!(
        reason(read_model(&path, &hints).unwrap_err()),
        Error::Ambiguous { second, .. } if second.starts_with("module.")
    ));
    let error = write_model(&path, &net, &values[1..], None).unwrap_err();
    assert!(matches!(
        error.downcast_ref(),
        Some(Error::ParameterCount { .. })
    ));
}

#[test]
fn a_missing_file_is_an_error_of_the_system_with_the_path() {
    let path = Path::new("/no/such/folder/m.safetensors");
    let error = read_model(path, &ModelHints::default()).unwrap_err();
    assert!(matches!(&error, Error::Read { path: named, .. } if named == path));
    let error = anyhow::Error::from(error).context("a caller's own words");
    let cause = crate::support::failure::system_cause(&error).unwrap();
    assert_eq!(cause.kind(), std::io::ErrorKind::NotFound);
    assert!(matches!(error.downcast_ref(), Some(Error::Read { .. })));
}

#[test]
fn networks_that_do_not_exist_are_refused_before_their_sizes_are_computed() {
    let (_dir, path, net, values) = sample();
    let huge = Network {
        scale: usize::MAX,
        ..net
    };
    let error = write_model(&path, &huge, &values, None).unwrap_err();
    assert!(matches!(
        error.downcast_ref(),
        Some(Error::UnknownScale { .. })
    ));
    let error = read_pretrained(&path, &huge, values, true).unwrap_err();
    assert!(matches!(error, Error::UnknownScale { .. }));
}
