use super::*;
use crate::model::{Network, SettingKind, known_networks};

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

#[test]
fn every_setting_of_every_network_is_a_key() {
    for network in known_networks() {
        let scale = network.scales[0];
        for spec in network.settings {
            let path = format!("network_g.{}", spec.name);
            let key = &KEYS[find(&path).unwrap()];
            assert_eq!(setting_of(key.path), Some(spec.name));
            assert!(key.unset.unwrap().contains(network.name), "{path}");
            // a setting of one name has one kind in all networks that have it
            let fits = match spec.kind {
                SettingKind::Flag(_) => matches!(key.kind, Kind::Bool),
                SettingKind::Whole { range, .. } => {
                    matches!(key.kind, Kind::Whole(low, high) if low <= range.0 as u64 && high >= range.1 as u64)
                }
                SettingKind::Number(_) => matches!(key.kind, Kind::Single),
                SettingKind::Choice(names) => {
                    matches!(key.kind, Kind::Choice(own) if names.iter().all(|n| own.iter().any(|o| o.0 == *n)))
                }
            };
            assert!(fits, "{path}: {:?} and {:?}", spec.kind, key.kind);
            let other = match spec.kind {
                SettingKind::Flag(default) => (!default).to_string(),
                SettingKind::Whole { range, .. } => range.1.to_string(),
                SettingKind::Number(_) => "0.125".to_string(),
                SettingKind::Choice(names) => names[names.len() - 1].to_string(),
            };
            let text = format!(
                "network_g: {{type: {}, {}: {other}}}",
                network.name, spec.name
            );
            let settings = read(&text).unwrap();
            let made = settings.network(scale).unwrap();
            let expected = spec.parse(&other).unwrap();
            assert!(
                made.settings()
                    .any(|(s, v)| s.name == spec.name && *v == expected),
                "{text}"
            );
            assert_eq!(
                parse_setting(&format!("{}={other}", spec.name)).unwrap().1,
                expected
            );
        }
        // what a run keeps beside it names every setting, and gives the same network
        let mut settings = Settings::default();
        let mut net = Network::new(network.aliases[network.aliases.len() - 1], scale).unwrap();
        settings.put_network(&net);
        assert_eq!(
            read(&docs::yaml(&settings, false))
                .unwrap()
                .network(scale)
                .unwrap(),
            net
        );
        let first = &network.settings[0];
        if let SettingKind::Whole { range, .. } = first.kind {
            net.set(first.name, range.0).unwrap();
            settings.put(
                &format!("network_g.{}", first.name),
                Value::Whole(range.0 as u64),
            );
            assert_eq!(settings.network(scale).unwrap(), net);
        }
    }
}

#[test]
fn settings_of_another_network_are_refused_with_their_place() {
    let error = |text: &str| {
        let mut settings = Settings::default();
        let taken = settings.take_file("my.yml", text.as_bytes());
        let error = taken.and_then(|_| settings.network(2).map(drop));
        format!("{:#}", error.unwrap_err())
    };
    for (text, words) in [
        (
            "network_g:\n  type: compact\n  upsampler_alpha: 0.1\n",
            &[
                "my.yml: line 3",
                "no setting 'upsampler_alpha'",
                "num_feat, num_conv",
                "=~",
            ][..],
        ),
        (
            "network_g:\n  num_feat: 64\n",
            &["line 2", "paragonsr2_realtime", "upsampler_alpha"],
        ),
        (
            "network_g: {type: span, feature_channels: 0}",
            &["my.yml: line 1", "from 1 to 256", "'0'"],
        ),
        (
            "network_g: {type: span, norm: 3}",
            &["line 1", "true or false"],
        ),
        ("network_g: {type: spam}", &["unknown network 'spam'"]),
    ] {
        let error = error(text);
        assert!(
            words.iter().all(|word| error.contains(word)),
            "{text}: {error}"
        );
    }
    // files of earlier versions name start values that had a default then
    let earlier = "network_g: {type: paragonsr2_realtime, upsampler_alpha: ~, detail_gain: ~, layer_scale: 1e-5}";
    let net = read(earlier).unwrap().network(2).unwrap();
    assert_eq!(net, Network::new("nano", 2).unwrap());
    for text in [
        "nonsense=1",
        "num_feat=0",
        "num_feat",
        "norm=~",
        "type=nano",
    ] {
        assert!(parse_setting(text).is_err(), "{text}");
    }
}

#[test]
fn presets_set_values_that_train() {
    for network in known_networks() {
        for preset in Preset::ALL {
            for total_iter in [1, 300, 2_000, 1_000_000] {
                let mut settings = Settings::default();
                settings.put(TYPE, Value::Text(network.name.into()));
                settings.put("train.total_iter", Value::Whole(total_iter));
                let chosen = settings.clone();
                preset.apply(&mut settings, &chosen);
                for (path, value) in preset.values(&network, total_iter) {
                    assert_eq!(*settings.value(&path), value, "{path}");
                }
                let config = settings.train_config(2, 128).unwrap();
                config.check().unwrap();
                if preset == Preset::Quick {
                    assert!(config.schedule.warmup <= 500 && config.ema_decay <= 0.999);
                    assert!(matches!(config.schedule.decay, Decay::Cosine { .. }));
                    assert!(
                        config.losses.len() == 1 && config.network.number("upsampler_alpha") == 0.0
                    );
                }
            }
        }
        assert!(Preset::Quick.explain().contains(network.name));
    }
    // settings that decide what is computed are named where a run cannot go on with them
    let config = |features: u64| {
        let mut settings = Settings::default();
        settings.put(TYPE, Value::Text("compact".into()));
        settings.put("network_g.num_feat", Value::Whole(features));
        settings.train_config(2, 128).unwrap()
    };
    let obstacles = config(64).changes(&config(32)).obstacles;
    assert_eq!(obstacles, ["--num-feat 64 -> 32"]);
}
