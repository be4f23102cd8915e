//! Reads the content of a network file, for fuzzers, as `eval` and `upscale` do and as `train
//! --pretrain` does. Depends on the library's network files. For any content the result must be
//! finite parameters or a short error.

use paragon::model::Network;
use paragon::model::{ModelHints, read_model, read_pretrained};
use std::path::Path;

/// Largest length of an error, bytes.
const LONGEST_ERROR: usize = 4000;

/// Reads the content as a network, from a file at `path`. Returns whether it was one.
pub fn model(path: &Path, content: &[u8]) -> bool {
    std::fs::write(path, content).unwrap();
    let check = |error: anyhow::Error| {
        let text = format!("{error:#}");
        assert!(
            text.len() < LONGEST_ERROR && text.contains("model.safetensors"),
            "an error of {} bytes: {text:.300}",
            text.len()
        );
    };
    let net = Network::new("nano", 2).unwrap();
    let start = vec![0.0; net.params().len()];
    for strict in [true, false] {
        match read_pretrained(path, &net, start.clone(), strict) {
            Ok(read) => assert!(read.taken > 0 && read.values.iter().all(|v| v.is_finite())),
            Err(error) => check(error.into()),
        }
    }
    let mut read = false;
    for hints in [
        ModelHints::default(),
        ModelHints {
            scale: Some(2),
            settings: [("upsampler_alpha".to_string(), 0.3.into())].into(),
            ..ModelHints::default()
        },
    ] {
        match read_model(path, &hints) {
            Ok((net, values, _)) => {
                assert!(values.len() == net.params().len() && values.iter().all(|v| v.is_finite()));
                read = true;
            }
            Err(error) => check(error.into()),
        }
    }
    read
}
