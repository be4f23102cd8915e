//! Synthetic images: they have the same bytes on every machine and any size, and bicubic resampling
//! loses about as much of them as of photographs.

use paragon::dataset::degrade::{Filter, downscale, upscale_bicubic};
use paragon::dataset::synth::synthetic_image;
use paragon::inference::metrics::{Channels, psnr};

/// Pins the pixels: this fails if they change, by intention or from one machine to another.
#[test]
fn the_same_bytes_on_every_machine() {
    let sums: Vec<u32> = (0..4)
        .map(|i| crc32fast::hash(synthetic_image(1, i, 96, 80).as_raw()))
        .collect();
    assert_eq!(
        sums,
        [606531192, 1547773306, 3625899562, 4076537460],
        "synthetic images changed"
    );
}

#[test]
fn every_thread_draws_the_same_and_every_number_another() {
    let here: Vec<_> = (0..6).map(|i| synthetic_image(5, i, 64, 64)).collect();
    let there: Vec<_> = (0..6)
        .map(|i| std::thread::spawn(move || synthetic_image(5, i, 64, 64)))
        .collect();
    for (a, b) in here.iter().zip(there) {
        assert!(*a == b.join().unwrap());
    }
    for i in 0..6 {
        assert!(
            here.iter()
                .enumerate()
                .all(|(j, other)| i == j || *other != here[i])
        );
        assert!(
            synthetic_image(6, i as u64, 64, 64) != here[i],
            "another seed"
        );
    }
}

#[test]
fn any_size_is_drawn() {
    for (width, height) in [(1, 1), (1, 40), (40, 1), (3, 2), (700, 9), (31, 257)] {
        for index in 0..3 {
            assert_eq!(
                synthetic_image(2, index, width, height).dimensions(),
                (width, height)
            );
        }
    }
}

/// Photographs have a PSNR of some 23 to 35 dB when they are halved and enlarged again (median 28
/// on BSDS300).
#[test]
fn bicubic_loses_about_as_much_as_on_photographs() {
    let mut all: Vec<f64> = (0..24)
        .map(|index| {
            let hr = synthetic_image(3, index, 128, 128);
            let up = upscale_bicubic(&downscale(&hr, 2, Filter::Bicubic).unwrap(), 2).unwrap();
            psnr(&hr, &up, 2, Channels::Rgb).unwrap()
        })
        .collect();
    all.sort_by(f64::total_cmp);
    println!("dB: {all:.1?}");
    assert!(all[0] > 18.0 && all[23] < 45.0, "{all:?}");
    assert!((25.0..33.0).contains(&all[12]), "the median is {}", all[12]);
}

fn paragon(arguments: &[&str]) -> std::process::Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_paragon"))
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn the_command_writes_the_same_files_for_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let read = |folder: &str| -> Vec<(String, Vec<u8>)> {
        let entries = std::fs::read_dir(dir.path().join(folder))
            .unwrap()
            .map(|e| e.unwrap());
        let mut files: Vec<_> = entries
            .map(|e| {
                (
                    e.file_name().into_string().unwrap(),
                    std::fs::read(e.path()).unwrap(),
                )
            })
            .collect();
        files.sort();
        files
    };
    for (folder, format, threads) in [("a", "png", "1"), ("b", "png", "3"), ("c", "jpeg", "2")] {
        let out = dir.path().join(folder);
        let out = out.to_str().unwrap();
        let run = paragon(&[
            "synth",
            out,
            "--count",
            "5",
            "--size",
            "40x24",
            "--format",
            format,
            "--threads",
            threads,
            "--json",
        ]);
        assert!(run.status.success(), "{run:?}");
        let summary: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
        assert_eq!(
            (&summary["written"], &summary["width"], &summary["height"]),
            (&5.into(), &40.into(), &24.into())
        );
    }
    let (a, c) = (read("a"), read("c"));
    assert!(a == read("b"));
    assert_eq!(
        a.iter().map(|f| f.0.as_str()).collect::<Vec<_>>(),
        [
            "000000.png",
            "000001.png",
            "000002.png",
            "000003.png",
            "000004.png"
        ]
    );
    assert!(c.len() == 5 && c[0].0 == "000000.jpg");
    assert_eq!(
        image::load_from_memory(&a[1].1).unwrap().to_rgb8(),
        synthetic_image(1, 1, 40, 24)
    );
    // A resumed command writes the missing files and leaves the others unchanged.
    std::fs::remove_file(dir.path().join("a/000002.png")).unwrap();
    let run = paragon(&[
        "synth",
        dir.path().join("a").to_str().unwrap(),
        "--count",
        "5",
        "--size",
        "40x24",
        "--resume",
        "--json",
    ]);
    let summary: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(
        (&summary["written"], &summary["kept"]),
        (&1.into(), &4.into())
    );
    assert!(read("a") == a);
}

#[test]
fn the_command_refuses_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let run = paragon(&["synth", file.to_str().unwrap(), "--count", "1"]);
    let text = String::from_utf8(run.stderr).unwrap();
    assert!(
        run.status.code() == Some(1) && text.contains("is a file"),
        "{text}"
    );
    for wrong in [
        ["--size", "0"],
        ["--size", "12x"],
        ["--quality", "0"],
        ["--format", "gif"],
    ] {
        assert_eq!(
            paragon(&["synth", "unused", wrong[0], wrong[1]])
                .status
                .code(),
            Some(2),
            "{wrong:?}"
        );
    }
    assert_eq!(
        paragon(&["synth", "unused", "--count", "0"]).status.code(),
        Some(2)
    );
    assert!(!std::path::Path::new("unused").exists());
}
