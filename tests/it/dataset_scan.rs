//! Finding and pairing files: the usual layouts of data sets, and everything that can be wrong with
//! a layout.

use paragon::dataset::scan::{Reason, Scan, ScanOptions, is_image_name, list_images, scan};
use paragon::shard::manifest::MANIFEST_NAME;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder with empty files of these names, which suffice because scanning opens no file.
fn tree(files: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"").unwrap();
    }
    dir
}

fn options(scale: u32) -> ScanOptions {
    ScanOptions {
        scale,
        ..ScanOptions::default()
    }
}

/// "name hr lq" of each source, with paths relative to the root.
fn found(root: &Path, scan: &Scan) -> Vec<String> {
    let relative = |p: &PathBuf| p.strip_prefix(root).unwrap_or(p).display().to_string();
    scan.sources
        .iter()
        .map(|s| {
            format!(
                "{} {} {}",
                s.name,
                relative(&s.hr),
                s.lq.as_ref().map_or("-".into(), relative)
            )
        })
        .collect()
}

/// Checks that every file is accounted for exactly once.
fn assert_counts(scan: &Scan) {
    let used: usize = scan
        .sources
        .iter()
        .map(|s| 1 + usize::from(s.lq.is_some()))
        .sum();
    assert_eq!(
        scan.hr_files + scan.lq_files,
        used + scan.rejected.len(),
        "{scan:?}"
    );
}

fn pairs(files: &[&str], scale: u32) -> Vec<String> {
    let dir = tree(files);
    let scan = scan(dir.path(), &options(scale)).unwrap();
    assert_counts(&scan);
    assert!(scan.rejected.is_empty(), "{:?}", scan.rejected);
    found(dir.path(), &scan)
}

fn error(files: &[&str], scale: u32) -> String {
    let dir = tree(files);
    format!("{:#}", scan(dir.path(), &options(scale)).unwrap_err())
}

#[test]
fn usual_layouts_are_paired() {
    assert_eq!(pairs(&["hr/a.png", "lq/a.png"], 2), ["a hr/a.png lq/a.png"]);
    assert_eq!(pairs(&["HR/a.PNG", "LR/a.jpg"], 4), ["a HR/a.PNG LR/a.jpg"]);
    assert_eq!(
        pairs(&["gt/x/a.png", "lr_x2/x/a.png"], 2),
        ["x/a gt/x/a.png lr_x2/x/a.png"]
    );
    assert_eq!(
        pairs(&["hr/1.png", "lr_x2_bicubic_aa/1.png", "lr_x4/1.png"], 2),
        ["1 hr/1.png lr_x2_bicubic_aa/1.png"]
    );
    assert_eq!(
        pairs(&["HR_x3/1.png", "LRx3/1.png", "LRx2/1.png"], 3),
        ["1 HR_x3/1.png LRx3/1.png"]
    );
    assert_eq!(
        pairs(&["hr/1.png", "lr/1.png", "lr_x2/1.png"], 2),
        ["1 hr/1.png lr_x2/1.png"]
    );
    assert_eq!(
        pairs(
            &[
                "DIV2K_train_HR/0001.png",
                "DIV2K_train_LR_bicubic/X2/0001x2.png",
                "DIV2K_train_LR_bicubic/X4/0001x4.png"
            ],
            4
        ),
        ["0001 DIV2K_train_HR/0001.png DIV2K_train_LR_bicubic/X4/0001x4.png"]
    );
    assert_eq!(
        pairs(&["hr/a_1.png", "lq/a_1_X2.png"], 2),
        ["a_1 hr/a_1.png lq/a_1_X2.png"]
    );
}

#[test]
fn without_lq_the_images_are_hr_alone() {
    assert_eq!(
        pairs(&["b.png", "a/c.webp", "a/b.TIFF", "z.bmp"], 2),
        ["a/b a/b.TIFF -", "a/c a/c.webp -", "b b.png -", "z z.bmp -"]
    );
    assert_eq!(pairs(&["hr/a.jpeg"], 2), ["a hr/a.jpeg -"]);
}

#[test]
fn both_sides_in_one_folder_are_told_by_their_names() {
    let files = [
        "img_001_SRF_2_HR.png",
        "img_001_SRF_2_LR.png",
        "img_001_SRF_4_HR.png",
        "img_001_SRF_4_LR.png",
        "other.png",
    ];
    let dir = tree(&files);
    let scan = scan(dir.path(), &options(2)).unwrap();
    assert_counts(&scan);
    assert_eq!(
        found(dir.path(), &scan),
        ["img_001_SRF_2 img_001_SRF_2_HR.png img_001_SRF_2_LR.png"]
    );
    let reasons: Vec<_> = scan.rejected.iter().map(|r| r.reason.as_str()).collect();
    assert!(
        reasons.len() == 3 && reasons[0].contains("scale 4") && reasons[2].contains("no LQ"),
        "{reasons:?}"
    );
    assert_eq!(
        pairs(&["plain_HR.png", "other.png"], 2).len(),
        2,
        "a suffix for one side only means nothing"
    );
}

#[test]
fn other_and_hidden_files_are_left_out() {
    let dir = tree(&[
        "hr/a.png",
        "hr/a.txt",
        "hr/readme",
        "hr/.hidden.png",
        "hr/.cache/b.png",
        "lq/a.png",
        "lq/Thumbs.db",
    ]);
    let scan = scan(dir.path(), &options(2)).unwrap();
    assert_eq!(found(dir.path(), &scan), ["a hr/a.png lq/a.png"]);
    assert_eq!((scan.hr_files, scan.lq_files, scan.ignored), (1, 1, 3));
}

#[test]
fn files_without_a_partner_are_listed() {
    let dir = tree(&["hr/a.png", "hr/b.png", "lq/a.png", "lq/c.png"]);
    let scan = scan(dir.path(), &options(2)).unwrap();
    assert_counts(&scan);
    let rejected: Vec<_> = scan
        .rejected
        .iter()
        .map(|r| {
            (
                r.path
                    .strip_prefix(dir.path())
                    .unwrap()
                    .display()
                    .to_string(),
                &r.reason,
            )
        })
        .collect();
    assert_eq!(rejected.len(), 2);
    assert!(
        rejected[0].0 == "hr/b.png" && rejected[0].1.contains("no LQ"),
        "{rejected:?}"
    );
    assert!(
        rejected[1].0 == "lq/c.png" && rejected[1].1.contains("no HR"),
        "{rejected:?}"
    );
}

#[test]
fn files_of_one_stem_are_listed() {
    let dir = tree(&[
        "hr/a.png",
        "hr/a.jpg",
        "hr/b.png",
        "lq/a.png",
        "lq/b.png",
        "lq/b_x2.png",
    ]);
    let scan = scan(dir.path(), &options(2)).unwrap();
    assert_counts(&scan);
    assert_eq!(found(dir.path(), &scan), ["b hr/b.png lq/b.png"]);
    assert_eq!(scan.rejected.len(), 4);
    assert!(
        scan.rejected[0].reason.contains("a.jpg, a.png"),
        "{:?}",
        scan.rejected
    );
}

#[test]
fn a_stem_that_ends_like_a_scale_keeps_its_partner() {
    assert_eq!(
        pairs(&["hr/a.png", "hr/ax2.png", "lq/a.png", "lq/ax2.png"], 2),
        ["a hr/a.png lq/a.png", "ax2 hr/ax2.png lq/ax2.png"]
    );
    // "ax2" belongs to the HR of that name, so nothing is left for "a".
    let dir = tree(&["hr/a.png", "hr/ax2.png", "lq/ax2.png", "lq/ax2x2.png"]);
    let scan = scan(dir.path(), &options(2)).unwrap();
    assert_eq!(found(dir.path(), &scan), ["ax2 hr/ax2.png lq/ax2.png"]);
    assert_eq!(scan.rejected.len(), 2);
    assert_counts(&scan);
}

#[test]
fn rejects_missing_empty_and_wrong_folders() {
    let dir = tree(&["file.png", "none/readme.txt"]);
    let fails = |path: PathBuf| format!("{:#}", scan(&path, &options(2)).unwrap_err());
    assert!(fails(dir.path().join("missing")).contains("does not exist"));
    assert!(fails(dir.path().join("file.png")).contains("is a file"));
    let text = fails(dir.path().join("none"));
    assert!(
        text.contains("no images") && text.contains("1 other"),
        "{text}"
    );
}

#[test]
fn rejects_what_could_mean_more_than_one_thing() {
    let text = error(
        &["hr/a.png", "lr_x2_bicubic/a.png", "lr_x2_nearest/a.png"],
        2,
    );
    assert!(
        text.contains("--lq") && text.contains("lr_x2_nearest"),
        "{text}"
    );
    let text = error(&["hr/a.png", "gt/a.png"], 2);
    assert!(text.contains("--hr"), "{text}");
    let text = error(&["hr/a.png", "lr_x4/a.png"], 2);
    assert!(text.contains("scale 2") && text.contains("lr_x4"), "{text}");
    let text = error(&["lq/a.png"], 2);
    assert!(text.contains("no HR folder"), "{text}");
    let text = error(
        &[
            "train/hr/a.png",
            "train/lr/a.png",
            "test/hr/a.png",
            "test/lr/a.png",
        ],
        2,
    );
    assert!(
        text.contains("further down") && text.contains("test/hr and test/lr"),
        "{text}"
    );
    let text = error(&["hr/a.png", "lq/b.png"], 2);
    assert!(
        text.contains("2 were rejected") && text.contains("a.png"),
        "{text}"
    );
    let text = error(&["hr/a.png", "lq/readme.txt"], 2);
    assert!(text.contains("no images") && text.contains("lq"), "{text}");
}

#[test]
fn named_folders_are_taken() {
    let dir = tree(&["one/a.png", "two/a.png", "hr/b.png", "three/lr/c.png"]);
    let with = |hr: Option<&str>, lq: Option<&str>| ScanOptions {
        scale: 2,
        hr: hr.map(PathBuf::from),
        lq: lq.map(PathBuf::from),
        out: None,
    };
    let both = scan(dir.path(), &with(Some("one"), Some("two"))).unwrap();
    assert_eq!(found(dir.path(), &both), ["a one/a.png two/a.png"]);
    let alone = scan(dir.path(), &with(Some("one"), None)).unwrap();
    assert_eq!(found(dir.path(), &alone), ["a one/a.png -"]);
    let text = format!(
        "{:#}",
        scan(dir.path(), &with(Some("nowhere"), None)).unwrap_err()
    );
    assert!(text.contains("--hr nowhere"), "{text}");
    assert!(scan(dir.path(), &with(Some("one"), Some("one"))).is_err());
    // The rest of the root is HR when only the LQ folder is named, and that folder is not part of
    // it.
    let dir = tree(&["a.png", "small/a.png"]);
    let lq_only = scan(dir.path(), &with(None, Some("small"))).unwrap();
    assert_eq!(found(dir.path(), &lq_only), ["a a.png small/a.png"]);
}

#[test]
fn the_train_folder_is_taken_beside_its_own_lq() {
    let files = [
        "DIV2K_train_HR/1.png",
        "DIV2K_train_LR_bicubic/X2/1x2.png",
        "DIV2K_valid_HR/2.png",
        "DIV2K_valid_LR_bicubic/X2/2x2.png",
    ];
    let dir = tree(&files);
    assert!(scan(dir.path(), &options(2)).is_err());
    let chosen = ScanOptions {
        scale: 2,
        hr: Some("DIV2K_valid_HR".into()),
        ..options(2)
    };
    let scan = scan(dir.path(), &chosen).unwrap();
    assert_eq!(
        found(dir.path(), &scan),
        ["2 DIV2K_valid_HR/2.png DIV2K_valid_LR_bicubic/X2/2x2.png"]
    );
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_loops_end() {
    use std::os::unix::fs::symlink;
    let dir = tree(&["hr/a.png", "elsewhere/b.png"]);
    symlink(dir.path().join("hr"), dir.path().join("hr/loop")).unwrap();
    symlink(dir.path().join("elsewhere"), dir.path().join("hr/more")).unwrap();
    symlink(
        dir.path().join("nothing.png"),
        dir.path().join("hr/broken.png"),
    )
    .unwrap();
    let scan = scan(dir.path(), &options(2)).unwrap();
    assert_eq!(
        found(dir.path(), &scan),
        ["a hr/a.png -", "more/b hr/more/b.png -"]
    );
    assert_eq!(scan.rejected.len(), 1);
    assert_counts(&scan);
}

#[cfg(unix)]
#[test]
fn a_name_that_is_not_utf8_is_listed() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tree(&["a.png"]);
    fs::write(
        dir.path().join(std::ffi::OsStr::from_bytes(b"b\xFF.png")),
        b"",
    )
    .unwrap();
    let scan = scan(dir.path(), &options(2)).unwrap();
    assert_eq!(scan.sources.len(), 1);
    assert!(scan.rejected[0].reason.contains("UTF-8"));
}

/// Adds images of one colour and of these sizes to a tree, for rules that depend on sizes.
fn sized(dir: &TempDir, files: &[(&str, u32, u32)]) {
    for (file, width, height) in files {
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::RgbImage::new(*width, *height).save(path).unwrap();
    }
}

/// Images and folders left out for a reason.
fn left_out(scan: &Scan, reason: Reason) -> (u64, u64) {
    scan.left_out
        .iter()
        .find(|l| l.reason == reason)
        .map_or((0, 0), |l| (l.images, l.folders))
}

#[test]
fn folders_of_benchmark_sets_are_sides() {
    let set5 = [
        "GTmod12/baby.png",
        "LRbicx2/baby.png",
        "LRbicx3/baby.png",
        "LRbicx4/baby.png",
        "original/baby.png",
    ];
    for scale in [2, 3, 4] {
        let dir = tree(&set5);
        let scan = scan(dir.path(), &options(scale)).unwrap();
        assert_eq!(
            found(dir.path(), &scan),
            [format!("baby GTmod12/baby.png LRbicx{scale}/baby.png")]
        );
        assert_eq!(
            (
                left_out(&scan, Reason::OtherScale),
                left_out(&scan, Reason::Outside)
            ),
            ((3, 0), (0, 0))
        );
    }
    assert_eq!(
        pairs(&["original/a.png", "LRbicx2/a.png"], 2),
        ["a original/a.png LRbicx2/a.png"]
    );
    assert_eq!(
        pairs(&["original/a.png", "hrvatska/b.png", "lrigby/c.png"], 2).len(),
        3,
        "no sides"
    );
    assert_eq!(
        pairs(
            &["x2/HR/a.png", "x2/LR/a.png", "x3/HR/a.png", "x3/LR/a.png"],
            3
        ),
        ["a x3/HR/a.png x3/LR/a.png"]
    );
    assert_eq!(
        pairs(
            &["HR/a.png", "LR_unknown/X3/ax3.png", "LR_unknown/X2/ax2.png"],
            3
        ),
        ["a HR/a.png LR_unknown/X3/ax3.png"]
    );
    assert_eq!(
        pairs(&["trainHR/a.png", "trainLR/a.png"], 2),
        ["a trainHR/a.png trainLR/a.png"]
    );
    assert_eq!(
        pairs(&["Ground Truth/a.png", "low-res/a.png"], 2),
        ["a Ground Truth/a.png low-res/a.png"]
    );
    let text = error(&["sets/Set5/GTmod12/a.png", "sets/Set5/LRbicx2/a.png"], 2);
    assert!(
        text.contains("further down") && text.contains("Set5"),
        "{text}"
    );
    let text = error(&["Set5/LRbicx2/a.png", "Set5/b.png"], 2);
    assert!(text.contains("LQ") && text.contains("--hr"), "{text}");
    let text = error(&["hr/a.png", "lr_x2/a.png"], 4);
    assert!(
        text.contains("itself") && text.contains("LQ is made"),
        "{text}"
    );
}

#[test]
fn the_same_names_at_different_sizes_are_asked_about() {
    let asks = |files: &[(&str, u32, u32)]| {
        let dir = tempfile::tempdir().unwrap();
        sized(&dir, files);
        match scan(dir.path(), &options(2)) {
            Ok(scan) => {
                assert!(
                    scan.lq_root.is_none() && scan.sources.len() == files.len(),
                    "{scan:?}"
                );
                false
            }
            Err(e) => {
                let text = format!("{e:#}");
                assert!(
                    text.contains("different sizes")
                        && text.contains("--hr")
                        && text.contains("--lq"),
                    "{text}"
                );
                let all = ScanOptions {
                    hr: Some(dir.path().to_path_buf()),
                    ..options(2)
                };
                assert_eq!(
                    scan(dir.path(), &all).unwrap().sources.len(),
                    files.len(),
                    "the user's choice must be used"
                );
                true
            }
        }
    };
    assert!(asks(&[
        ("big/a.png", 48, 36),
        ("big/b.png", 36, 48),
        ("small/a.png", 24, 18),
        ("small/b.png", 18, 24)
    ]));
    assert!(asks(&[
        ("full/c1/1.png", 96, 64),
        ("full/c2/1.png", 64, 64),
        ("web/c1/1.png", 32, 21),
        ("web/c2/1.png", 21, 21)
    ]));
    assert!(asks(&[
        ("a.png", 50, 50),
        ("b.png", 51, 49),
        ("thumb_of/a.png", 25, 25),
        ("thumb_of/b.png", 25, 24)
    ]));
    assert!(
        asks(&[("photo.png", 20, 30), ("photo_x2.png", 40, 60)]),
        "a result beside its image"
    );
    assert!(asks(&[
        ("a/1.png", 48, 48),
        ("b/1x4.png", 12, 12),
        ("c/9.png", 48, 48)
    ]));
    // Different images that happen to have the same name.
    assert!(!asks(&[("cats/1.png", 48, 48), ("dogs/1.png", 48, 48)]));
    assert!(!asks(&[
        ("cats/1.png", 48, 48),
        ("cats/2.png", 24, 24),
        ("dogs/1.png", 24, 24),
        ("dogs/2.png", 48, 48)
    ]));
    assert!(!asks(&[("y2020/1.png", 48, 36), ("y2021/1.png", 30, 45)]));
    assert!(!asks(&[
        ("a/1.png", 48, 48),
        ("a/2.png", 40, 48),
        ("b/1.png", 24, 24),
        ("b/3.png", 24, 24),
        ("b/4.png", 9, 24)
    ]));
}

#[test]
fn a_folder_called_hr_among_others_is_asked_about() {
    let files = ["DE/a.png", "FR/b.png", "HR/c.png", "IT/d.png", "IT/e.png"];
    let text = error(&files, 2);
    assert!(
        text.contains("(4, such as ") && text.contains("--hr") && text.contains("HR"),
        "{text}"
    );
    let text = error(&["gt/porsche.png", "sedan.png"], 2);
    assert!(
        text.contains("(1, such as ") && text.contains("sedan.png"),
        "{text}"
    );
    let dir = tree(&files);
    let with = |hr: PathBuf| {
        scan(
            dir.path(),
            &ScanOptions {
                hr: Some(hr),
                ..options(2)
            },
        )
        .unwrap()
    };
    assert_eq!(with(dir.path().to_path_buf()).sources.len(), 5);
    let alone = with("HR".into());
    assert_eq!(
        (alone.sources.len(), left_out(&alone, Reason::Outside)),
        (1, (4, 0))
    );
    // A folder that has a counterpart is used as HR or LQ; the other files are counted.
    let dir = tree(&["hr/a.png", "lr/a.png", "misc/x/b.png", "c.jpg"]);
    let paired = scan(dir.path(), &options(2)).unwrap();
    assert_eq!(
        (paired.sources.len(), left_out(&paired, Reason::Outside)),
        (1, (2, 0))
    );
    assert_eq!(
        paired.left_out[0].to_string(),
        format!(
            "2 images left out: outside the chosen folders (the first is {})",
            dir.path().join("c.jpg").display()
        )
    );
    assert_eq!(
        pairs(&["HR/a.png", "notes/readme.txt"], 2),
        ["a HR/a.png -"],
        "there is nothing else"
    );
}

#[test]
fn a_few_pairs_by_name_do_not_turn_a_set() {
    let photos = [
        "a.png", "b.jpg", "c/d.png", "c/e.png", "f.png", "g.png", "h.png", "i.png",
    ];
    // `paragon shards extract` wrote these into the working folder.
    let dir = tree(
        &[
            &photos[..],
            &[
                "00000000_hr.png",
                "00000000_lq.png",
                "x/00000017_hr.png",
                "x/00000017_lq.png",
            ],
        ]
        .concat(),
    );
    let scanned = scan(dir.path(), &options(2)).unwrap();
    assert!(scanned.lq_root.is_none() && scanned.rejected.is_empty());
    assert_eq!(
        (scanned.sources.len(), left_out(&scanned, Reason::OwnOutput)),
        (8, (4, 0))
    );
    assert_eq!(
        pairs(&["00000000_hr.png", "00000000_lq.png"], 2),
        ["00000000 00000000_hr.png 00000000_lq.png"]
    );
    let text = error(
        &[
            "00000000_hr.png",
            "00000000_lq.png",
            "00000001_hr.png",
            "00000001_lq.png",
            "photo.png",
        ],
        2,
    );
    assert!(
        text.contains("shards extract") && text.contains("--lq"),
        "{text}"
    );
    // One pair among photographs: its LQ is not used as an HR image.
    let dir = tree(&[&photos[..], &["test_HR.png", "test_LR.png"]].concat());
    let scanned = scan(dir.path(), &options(2)).unwrap();
    assert_counts(&scanned);
    assert!(
        scanned.lq_root.is_none() && scanned.sources.len() == 9,
        "{scanned:?}"
    );
    assert!(
        scanned.rejected.len() == 1 && scanned.rejected[0].reason.contains("LQ of a pair"),
        "{:?}",
        scanned.rejected
    );
    // Neither reading is clear, so the user must decide.
    let mixed = [
        "1_hr.png", "1_lr.png", "2_hr.png", "2_lr.png", "x.png", "y.png", "z.png",
    ];
    let text = error(&mixed, 2);
    assert!(
        text.contains("2 pairs") && text.contains("3 other images"),
        "{text}"
    );
    let dir = tree(&mixed);
    let root = Some(dir.path().to_path_buf());
    let by_name = scan(
        dir.path(),
        &ScanOptions {
            hr: root.clone(),
            lq: root.clone(),
            ..options(2)
        },
    )
    .unwrap();
    assert_eq!((by_name.sources.len(), by_name.rejected.len()), (2, 3));
    assert_eq!(
        scan(
            dir.path(),
            &ScanOptions {
                hr: root,
                ..options(2)
            }
        )
        .unwrap()
        .sources
        .len(),
        7
    );
    // Results of other methods beside a pair do not count as unrelated images.
    let bench = [
        "img_001_SRF_2_HR.png",
        "img_001_SRF_2_LR.png",
        "img_001_SRF_2_bicubic.png",
        "img_001_SRF_2_nearest.png",
    ];
    let dir = tree(&bench);
    assert_eq!(
        found(dir.path(), &scan(dir.path(), &options(2)).unwrap()),
        ["img_001_SRF_2 img_001_SRF_2_HR.png img_001_SRF_2_LR.png"]
    );
}

#[test]
fn our_own_output_is_left_out() {
    let dir = tree(&[
        "photos/a.png",
        "runs/one/log.jsonl",
        "runs/one/config.yml",
        "runs/one/previews/a.png",
        "runs/killed/states/state_1.safetensors",
        "runs/killed/models/net_g_1.safetensors",
        "runs/killed/previews/a.png",
        "demo/.paragon-demo",
        "demo/comparison.png",
        "made/b.png",
    ]);
    for (set, name) in [("shards", MANIFEST_NAME), ("unfinished", "journal.psj")] {
        fs::create_dir(dir.path().join(set)).unwrap();
        fs::write(dir.path().join(set).join(name), "").unwrap();
        fs::write(dir.path().join(set).join("sheet.png"), "").unwrap();
    }
    let scanned = scan(
        dir.path(),
        &ScanOptions {
            out: Some(dir.path().join("made")),
            ..options(2)
        },
    )
    .unwrap();
    assert_eq!(found(dir.path(), &scanned), ["photos/a photos/a.png -"]);
    assert_eq!(left_out(&scanned, Reason::OwnOutput), (0, 6));
    // A folder that the user names is used.
    let previews = scan(&dir.path().join("runs/one/previews"), &options(2)).unwrap();
    assert_eq!(previews.sources.len(), 1);
    assert_eq!(
        scan(
            dir.path(),
            &ScanOptions {
                out: Some(dir.path().into()),
                ..options(2)
            }
        )
        .unwrap()
        .sources
        .len(),
        2
    );
    assert_eq!(
        pairs(&["models/a.png", "states/b.png"], 2).len(),
        2,
        "these names alone do not show what the images are"
    );
}

#[test]
fn thumbnails_and_waste_bins_are_left_out() {
    let dir = tree(&[
        "a.png",
        "._a.png",
        "@eaDir/a.png/SYNOPHOTO_THUMB_XL.jpg",
        "trip/@eaDir/b.jpg/SYNOPHOTO_THUMB_M.jpg",
        "trip/b.jpg",
        "#recycle/c.png",
        "$RECYCLE.BIN/S-1-5/d.png",
        "@Recycle/e.png",
        ".@__thumb/f.jpg",
        "System Volume Information/g.png",
        "__MACOSX/._h.png",
        "Lost+Found/i.png",
        "FOUND.000/j.png",
        "Thumbs/k.png",
        "recycling/l.png",
    ]);
    let scanned = scan(dir.path(), &options(2)).unwrap();
    assert_eq!(
        found(dir.path(), &scanned),
        [
            "a a.png -",
            "recycling/l recycling/l.png -",
            "trip/b trip/b.jpg -"
        ]
    );
    assert_eq!(
        (
            left_out(&scanned, Reason::SystemFolder),
            left_out(&scanned, Reason::Hidden)
        ),
        ((0, 10), (1, 1))
    );
    // The same rule holds for a single folder.
    let flat = list_images(dir.path(), false).unwrap();
    let names: Vec<_> = flat.images.iter().map(|p| p.name.as_str()).collect();
    assert_eq!((names, flat.subfolders, flat.files()), (vec!["a"], 2, 1));
    assert_eq!(list_images(dir.path(), true).unwrap().images.len(), 3);
    assert_eq!(
        list_images(&dir.path().join("#recycle"), true)
            .unwrap()
            .images
            .len(),
        1,
        "a folder that the user names must be listed"
    );
    for (name, is) in [
        ("a.jpe", true),
        ("a.JFIF", true),
        ("._a.png", false),
        ("a", false),
        ("png", false),
    ] {
        assert_eq!(is_image_name(name.as_ref()), is, "{name}");
    }
}

#[test]
fn names_in_two_forms_of_unicode_are_partners() {
    let dir = tree(&[
        "hr/Zu\u{308}rich.png",
        "lq/Z\u{fc}rich.png",
        "hr/cafe\u{301}/1_HR.png",
        "lq/caf\u{e9}/1_LR.png",
    ]);
    let scanned = scan(dir.path(), &options(2)).unwrap();
    assert_counts(&scanned);
    assert!(
        scanned.rejected.is_empty() && scanned.sources.len() == 2,
        "{scanned:?}"
    );
    assert!(
        scanned
            .sources
            .iter()
            .all(|s| s.hr.is_file() && s.lq.as_ref().unwrap().is_file()),
        "paths must have the bytes of the listing"
    );
    // Both forms of names in the same folder.
    let dir = tree(&[
        "hr/e\u{301}.png",
        "hr/\u{e9}.png",
        "hr/b.png",
        "lq/\u{e9}.png",
        "lq/b.png",
    ]);
    let scanned = scan(dir.path(), &options(2)).unwrap();
    assert_counts(&scanned);
    assert_eq!((scanned.sources.len(), scanned.rejected.len()), (1, 3));
    assert!(
        scanned
            .rejected
            .iter()
            .any(|r| r.reason.contains("two forms of Unicode")),
        "{:?}",
        scanned.rejected
    );
    // HR and LQ in the same folder.
    let dir = tree(&["e\u{301}_HR.png", "\u{e9}_LR.png"]);
    assert_eq!(scan(dir.path(), &options(2)).unwrap().sources.len(), 1);
}

#[test]
fn words_at_the_end_of_names_are_read_alike_in_one_folder_and_in_two() {
    for (hr, lq) in [
        ("0001", "0001_bicLRx2"),
        ("0001", "0001_LR"),
        ("0001_HR", "0001_LR"),
        ("0001-gt", "0001-lq"),
        ("baby_HR_x2", "baby_LRBI_x2"),
        ("0001_HR", "0001_LR_bicubic_x2"),
        ("0001_hr", "0001_low_res"),
    ] {
        let two = pairs(&[&format!("hr/{hr}.png"), &format!("lr/{lq}.png")], 2);
        assert_eq!(two, [format!("{hr} hr/{hr}.png lr/{lq}.png")]);
        let one = pairs(&[&format!("{hr}.png"), &format!("{lq}.png")], 2);
        assert!(
            one.len() == 1 && one[0].ends_with(&format!("{hr}.png {lq}.png")),
            "{one:?}"
        );
    }
    assert_eq!(
        pairs(&["hr/0001_HR.png", "lr/0001.png"], 2),
        ["0001_HR hr/0001_HR.png lr/0001.png"]
    );
    assert_eq!(
        pairs(&["hr/0001.png", "lr/0001_bicubic.png"], 2),
        ["0001 hr/0001.png lr/0001_bicubic.png"]
    );
    // LQ for another scale, or for several.
    let rejected = |files: &[&str]| {
        let dir = tree(files);
        let scanned = scan(dir.path(), &options(2)).unwrap();
        assert_counts(&scanned);
        scanned
            .rejected
            .iter()
            .map(|r| r.reason.clone())
            .collect::<Vec<_>>()
    };
    let reasons = rejected(&["hr/1.png", "hr/2.png", "lr/1.png", "lr/2_LRx4.png"]);
    assert!(
        reasons.len() == 2 && reasons[1].contains("scale 4"),
        "{reasons:?}"
    );
    let reasons = rejected(&[
        "hr/1.png",
        "hr/2.png",
        "lr/1.png",
        "lr/2_bicLRx2.png",
        "lr/2_nearestLRx2.png",
    ]);
    assert!(
        reasons.len() == 3 && reasons.iter().all(|r| r.contains("could belong")),
        "{reasons:?}"
    );
}

#[test]
fn of_hr_images_with_one_name_the_one_that_lost_nothing_is_taken() {
    let dir = tree(&["a.jpg", "a.png", "b.JPEG", "b.webp", "b.tif", "c.png"]);
    let scanned = scan(dir.path(), &options(2)).unwrap();
    assert_counts(&scanned);
    assert_eq!(
        found(dir.path(), &scanned),
        ["a a.png -", "b b.tif -", "c c.png -"]
    );
    assert!(
        scanned.rejected.len() == 3 && scanned.rejected[0].reason.contains("a.png"),
        "{:?}",
        scanned.rejected
    );
}

#[test]
fn very_deep_folders_are_listed_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let deep: PathBuf = std::iter::repeat_n("d", 1900).collect();
    fs::create_dir_all(dir.path().join(&deep)).unwrap();
    fs::write(dir.path().join(&deep).join("a.png"), "").unwrap();
    let mut path = dir.path().to_path_buf();
    for _ in 0..20 {
        path.push("d");
        fs::write(path.join("b.png"), "").unwrap();
    }
    let start = std::time::Instant::now();
    assert_eq!(scan(dir.path(), &options(2)).unwrap().sources.len(), 21);
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

#[test]
fn at_scale_1_pairs_of_equal_names_are_needed() {
    assert_eq!(
        pairs(&["hr/a.png", "hr/b.png", "lq/a.jpg", "lq/b.jpg"], 1),
        ["a hr/a.png lq/a.jpg", "b hr/b.png lq/b.jpg"]
    );
    // in one folder, in folders for scales, and with the scale at the end of the names
    assert_eq!(pairs(&["a_hr.png", "a_lq.png"], 1), ["a a_hr.png a_lq.png"]);
    let scales = ["HR/a.png", "LR/X1/a.png", "LR/X2/a.png"];
    assert_eq!(pairs(&scales, 1), ["a HR/a.png LR/X1/a.png"]);
    assert_eq!(
        pairs(&["gt/a.png", "lrx1/ax1.png"], 1),
        ["a gt/a.png lrx1/ax1.png"]
    );
    // HR alone, folders whose names say no side, one folder named for HR, and a few pairs only
    let many: Vec<String> = (0..40).map(|i| format!("{i}.png")).collect();
    let mut few: Vec<&str> = many.iter().map(String::as_str).collect();
    few.extend(["x_hr.png", "x_lq.png"]);
    for files in [
        &["a.png", "b.png"][..],
        &["clean/a.png", "noisy/a.png"],
        &["HR/a.png"],
        &few,
    ] {
        let dir = tree(files);
        let error = format!("{:#}", scan(dir.path(), &options(1)).unwrap_err());
        assert!(
            error.contains("no LQ images") && error.contains("--lq"),
            "{error}"
        );
        assert!(!error.contains("the LQ made"), "{error}");
    }
    // folders for other scales are no help
    let dir = tree(&["HR/a.png", "LR/X2/a.png"]);
    let error = format!("{:#}", scan(dir.path(), &options(1)).unwrap_err());
    assert!(
        error.contains("scale 1") && !error.contains("then the LQ is made"),
        "{error}"
    );
}
