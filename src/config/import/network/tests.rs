use super::super::super::{Settings, TYPE, Value};
use super::super::Imported;
use super::super::tests::{LEAST, ignored, read, reason, value};

/// The network of an imported file.
fn network(imported: &Imported, scale: usize) -> crate::model::Network {
    let mut settings = Settings::default();
    imported.apply(&mut settings);
    settings.network(scale).unwrap()
}

#[test]
fn names_of_other_trainers_give_their_networks() {
    for (text, sizes) in [
        ("{type: compact}", (64, 16)),
        ("{type: ultracompact}", (64, 8)),
        ("{type: superultracompact}", (24, 8)),
        ("{type: compact, num_feat: 48, num_conv: 12}", (48, 12)),
        (
            "{type: SRVGGNetCompact, num_in_ch: 3, num_out_ch: 3, num_feat: 64, num_conv: 32, upscale: 4, act_type: prelu}",
            (64, 32),
        ),
    ] {
        let imported = read(&format!("{LEAST}scale: 4\nnetwork_g: {text}\n")).unwrap();
        let net = network(&imported, 4);
        assert_eq!(net.arch, "compact", "{text}");
        assert_eq!(
            (net.whole("num_feat"), net.whole("num_conv")),
            sizes,
            "{text}"
        );
        assert_eq!(net.choice("act_type"), "prelu");
        assert_eq!(ignored(&imported), Vec::<&str>::new(), "{text}");
    }
    for (text, features, norm) in [
        ("{type: span}", 52, false),
        ("{type: SPAN}", 52, false),
        (
            "{type: span, norm: true, img_range: 255.0, rgb_mean: [0.4488, 0.4371, 0.4040]}",
            52,
            true,
        ),
        (
            "{type: span, norm: false, img_range: 1.0, bias: true, num_blocks: 6}",
            52,
            false,
        ),
        ("{type: span_s}", 48, false),
        ("{type: span_f32}", 32, false),
        ("{type: span_f64}", 64, false),
        ("{type: span_f96, norm: true}", 96, true),
        (
            "{type: SPAN, num_in_ch: 3, num_out_ch: 3, upscale: 4}",
            48,
            true,
        ),
        ("{type: SPAN, upscale: 4, feature_channels: 28}", 28, true),
    ] {
        let imported = read(&format!("{LEAST}scale: 4\nnetwork_g: {text}\n")).unwrap();
        let net = network(&imported, 4);
        assert_eq!(
            (
                net.arch.as_str(),
                net.whole("feature_channels"),
                net.flag("norm")
            ),
            ("span", features, norm),
            "{text}"
        );
        assert_eq!(ignored(&imported), Vec::<&str>::new(), "{text}");
        // what the file does not say is reported
        let report = imported.report("x.yml");
        for (key, value) in [
            ("feature_channels", features.to_string()),
            ("norm", norm.to_string()),
        ] {
            let line = format!("not in the file: network_g.{key} is {value}");
            assert_eq!(
                report.contains(&line),
                !text.contains(key),
                "{text}: {report}"
            );
        }
    }
    // the scale of the network counts where the file has no other
    let imported = read(&format!(
        "{LEAST}network_g: {{type: SRVGGNetCompact, upscale: 2}}\n"
    ));
    assert_eq!(
        value(&imported.unwrap(), "scale"),
        Some(Value::Text("2".into()))
    );
}

#[test]
fn keys_that_make_another_network_are_refused_or_listed() {
    for (text, words) in [
        (
            "{type: SRVGGNetCompact, upscale: 2}",
            ["upscale is 2", "scale is 4"],
        ),
        ("{type: compact, num_in_ch: 1}", ["num_in_ch is 1", "has 3"]),
        (
            "{type: compact, num_feat: 0}",
            ["network_g.num_feat", "from 1 to"],
        ),
        (
            "{type: compact, act_type: gelu}",
            ["act_type", "prelu, relu, leakyrelu"],
        ),
        ("{type: span, num_blocks: 4}", ["num_blocks is 4", "has 6"]),
        (
            "{type: span, learn_residual: true}",
            ["learn_residual", "has false"],
        ),
        (
            "{type: span, norm: true, img_range: 1.0}",
            ["img_range is 1.0", "has 255"],
        ),
        (
            "{type: span, rgb_mean: [0.5, 0.5, 0.5], norm: on}",
            ["rgb_mean is [0.5", "0.4488"],
        ),
    ] {
        let error = read(&format!("{LEAST}scale: 4\nnetwork_g: {text}\n"))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("line 4: ") && words.iter().all(|word| error.contains(word)),
            "{text}: {error}"
        );
    }
    for (text, key, word) in [
        (
            "{type: compact, upsampler_alpha: 0.1}",
            "network_g.upsampler_alpha",
            "num_feat, num_conv, act_type",
        ),
        (
            "{type: span, num_conv: 16}",
            "network_g.num_conv",
            "feature_channels, norm",
        ),
        (
            "{type: nano, num_feat: 32}",
            "network_g.num_feat",
            "upsampler_alpha",
        ),
        (
            "{type: nano, use_checkpointing: true}",
            "network_g.use_checkpointing",
            "machine.recompute",
        ),
        (
            "{type: RRDBNet, num_block: 23}",
            "network_g.num_block",
            "not known",
        ),
    ] {
        let imported = read(&format!("{LEAST}network_g: {text}\n")).unwrap();
        assert!(
            reason(&imported, key).contains(word),
            "{text}: {:?}",
            imported.ignored
        );
    }
    // an imported setting does not stand in the way of another network
    let mut settings = Settings::default();
    read(&format!("{LEAST}network_g: {{type: span, norm: true}}\n"))
        .unwrap()
        .apply(&mut settings);
    settings.put(TYPE, Value::Text("nano".into()));
    assert!(settings.network(2).is_err());
    assert_eq!(
        settings.drop_foreign_settings(),
        [("network_g.norm", "true".to_string())]
    );
    assert_eq!(settings.network(2).unwrap().arch, "paragonsr2_realtime");
}
