use super::*;

fn read(text: &str) -> Result<Settings> {
    let mut settings = Settings::default();
    settings.read(&parse(text)?)?;
    Ok(settings)
}

#[test]
fn every_default_is_a_value_of_its_key() {
    for key in KEYS.iter() {
        let value = key
            .kind
            .accept(&parse(key.default).unwrap())
            .unwrap_or_else(|e| panic!("{}: {e}", key.path));
        assert_eq!(value == Value::Null, key.default == "~", "{}", key.path);
        assert!(
            value != Value::Null || key.unset.is_some(),
            "{} holds nothing and does not say what that means",
            key.path
        );
        assert_eq!(KEYS.iter().filter(|k| k.path == key.path).count(), 1);
    }
    Settings::default()
        .train_config(2, 4096)
        .unwrap()
        .check()
        .unwrap();
}

#[test]
fn what_is_written_reads_back() {
    let mut settings = read("name: 'yes'\ntrain: {losses: [{type: mssimloss, loss_weight: 0.08}, l1:1], grad_clip: true}\n").unwrap();
    settings.put("path.out", Value::Path("a b/#1: \"é\"".into()));
    settings.put("machine.host_memory", Value::Whole(1 << 30));
    for comments in [false, true] {
        assert_eq!(read(&docs::yaml(&settings, comments)).unwrap(), settings);
    }
    assert_eq!(read(&docs::starter()).unwrap(), Settings::default());
}

#[test]
fn files_that_are_no_yaml_are_named() {
    let large = vec![b'#'; MOST_FILE_BYTES + 1];
    for (content, words) in [
        (
            &b"[train]\ntotal_iter = 5\n"[..],
            &["looks like TOML", "paragon reads YAML"][..],
        ),
        (b"total_iter = 5\nlr = 1e-4\n", &["looks like TOML"]),
        (b"model = dict(type='SR')\n", &["Python"]),
        (b"<html><body>", &["web page"]),
        (b"\x89PNG\r\n\x1a\n\0\0", &["PNG image", "YAML"]),
        (b"PK\x03\x04\0\0archive/data.pkl", &["torch.save"]),
        (b"\xff\xfet\0r\0", &["UTF-16"]),
        (b"a: 1\nname: Z\xfcrich\n", &["line 2", "no UTF-8"]),
        (b"a: 1\n\nname: \0\n", &["line 3", "no UTF-8"]),
        (&large, &["longer than 1 MiB"]),
    ] {
        let error = format!("{:#}", Settings::default().take(content).unwrap_err());
        assert!(
            words.iter().all(|word| error.contains(word)),
            "{:.40}: {error}",
            String::from_utf8_lossy(content)
        );
    }
    // JSON is YAML, with tabs too, and a byte order mark is no text
    for content in [
        "{\n\t\"train\": {\n\t\t\"total_iter\": 1e1,\n\t\t\"grad_clip\": true\n\t}\n}\n",
        "\u{feff}train: {total_iter: 10}\n",
        "train:\r\n  total_iter: 10\r\n",
    ] {
        let mut settings = Settings::default();
        assert!(
            settings
                .take(content.as_bytes())
                .unwrap_or_else(|e| panic!("{content}: {e:#}"))
                .is_none()
        );
        assert_eq!(settings.whole("train.total_iter"), Some(10), "{content}");
    }
}

#[test]
fn wrong_files_name_line_key_and_what_was_meant() {
    for (text, words) in [
        (
            "train:\n  total_iters: 5",
            &[
                "line 2",
                "train.total_iters",
                "did you mean train.total_iter?",
            ][..],
        ),
        ("lq_size: 5", &["line 1", "did you mean data.lq_size?"]),
        (
            "logger:\n  save_checkpoint_frequency: 5",
            &["did you mean logger.save_checkpoint_freq?"],
        ),
        ("zzz: 5", &["unknown key zzz", "config explain"]),
        ("train: 5", &["line 1", "section"]),
        (
            "train:\n  optim_g:\n    lr: fast",
            &["line 3", "train.optim_g.lr", "above 0", "fast"],
        ),
        ("data: {batch_size_per_gpu: 0}", &["from 1 to", "'0'"]),
        ("data: {batch_size_per_gpu: ~}", &["found nothing"]),
        ("data: {batch_size_per_gpu: [1, 2]}", &["found a list"]),
        ("train: {optim_g: {betas: [0.9]}}", &["two numbers"]),
        ("train: {optim_g: {type: Lion}}", &["AdamW, Adam", "Lion"]),
        ("train: {losses: [{type: ganloss}]}", &["ganloss", "mssim"]),
        (
            "train: {losses: [{type: l1loss, weight: 1}]}",
            &["'weight' is unknown"],
        ),
        ("- 1", &["keys and values"]),
    ] {
        let error = format!("{:#}", read(text).unwrap_err());
        assert!(
            words.iter().all(|word| error.contains(word)),
            "{text}: {error}"
        );
    }
    assert!(parse_assignment("train.losses=[{type: l1loss}]").is_ok());
    assert_eq!(
        parse_assignment("train.scheduler.milestones=3,4").unwrap(),
        parse_assignment("train.scheduler.milestones=[3, 4]").unwrap()
    );
    assert!(parse_assignment("train.losses").is_err() && parse_assignment("a=1").is_err());
}
