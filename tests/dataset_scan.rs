//! Finding and pairing files: the usual layouts of data sets, and each thing that can be wrong with one.

use paragon::dataset::scan::{Scan, ScanOptions, scan};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder with empty files of these names: scanning opens none.
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
    ScanOptions { scale, ..ScanOptions::default() }
}

/// "name hr lq" of each source, with paths below the root.
fn found(root: &Path, scan: &Scan) -> Vec<String> {
    let relative = |p: &PathBuf| p.strip_prefix(root).unwrap_or(p).display().to_string();
    scan.sources.iter().map(|s| format!("{} {} {}", s.name, relative(&s.hr), s.lq.as_ref().map_or("-".into(), relative))).collect()
}

/// Every file in exactly one place.
fn assert_counts(scan: &Scan) {
    let used: usize = scan.sources.iter().map(|s| 1 + usize::from(s.lq.is_some())).sum();
    assert_eq!(scan.hr_files + scan.lq_files, used + scan.rejected.len(), "{scan:?}");
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
    assert_eq!(pairs(&["gt/x/a.png", "lr_x2/x/a.png"], 2), ["x/a gt/x/a.png lr_x2/x/a.png"]);
    assert_eq!(pairs(&["hr/1.png", "lr_x2_bicubic_aa/1.png", "lr_x4/1.png"], 2), ["1 hr/1.png lr_x2_bicubic_aa/1.png"]);
    assert_eq!(pairs(&["HR_x3/1.png", "LRx3/1.png", "LRx2/1.png"], 3), ["1 HR_x3/1.png LRx3/1.png"]);
    assert_eq!(pairs(&["hr/1.png", "lr/1.png", "lr_x2/1.png"], 2), ["1 hr/1.png lr_x2/1.png"]);
    assert_eq!(
        pairs(&["DIV2K_train_HR/0001.png", "DIV2K_train_LR_bicubic/X2/0001x2.png", "DIV2K_train_LR_bicubic/X4/0001x4.png"], 4),
        ["0001 DIV2K_train_HR/0001.png DIV2K_train_LR_bicubic/X4/0001x4.png"]
    );
    assert_eq!(pairs(&["hr/a_1.png", "lq/a_1_X2.png"], 2), ["a_1 hr/a_1.png lq/a_1_X2.png"]);
}

#[test]
fn without_lq_the_pictures_are_hr_alone() {
    assert_eq!(pairs(&["b.png", "a/c.webp", "a/b.TIFF", "z.bmp"], 2), ["a/b a/b.TIFF -", "a/c a/c.webp -", "b b.png -", "z z.bmp -"]);
    assert_eq!(pairs(&["hr/a.jpeg"], 2), ["a hr/a.jpeg -"]);
}

#[test]
fn both_sides_in_one_folder_are_told_by_their_names() {
    let files = ["img_001_SRF_2_HR.png", "img_001_SRF_2_LR.png", "img_001_SRF_4_HR.png", "img_001_SRF_4_LR.png", "other.png"];
    let dir = tree(&files);
    let scan = scan(dir.path(), &options(2)).unwrap();
    assert_counts(&scan);
    assert_eq!(found(dir.path(), &scan), ["img_001_SRF_2 img_001_SRF_2_HR.png img_001_SRF_2_LR.png"]);
    let reasons: Vec<_> = scan.rejected.iter().map(|r| r.reason.as_str()).collect();
    assert!(reasons.len() == 3 && reasons[0].contains("scale 4") && reasons[2].contains("no LQ"), "{reasons:?}");
    assert_eq!(pairs(&["plain_HR.png", "other.png"], 2).len(), 2, "an ending on one side alone says nothing");
}

#[test]
fn other_and_hidden_files_are_left_out() {
    let dir = tree(&["hr/a.png", "hr/a.txt", "hr/readme", "hr/.hidden.png", "hr/.cache/b.png", "lq/a.png", "lq/Thumbs.db"]);
    let scan = scan(dir.path(), &options(2)).unwrap();
    assert_eq!(found(dir.path(), &scan), ["a hr/a.png lq/a.png"]);
    assert_eq!((scan.hr_files, scan.lq_files, scan.ignored), (1, 1, 3));
}

#[test]
fn files_without_a_partner_are_listed() {
    let dir = tree(&["hr/a.png", "hr/b.png", "lq/a.png", "lq/c.png"]);
    let scan = scan(dir.path(), &options(2)).unwrap();
    assert_counts(&scan);
    let rejected: Vec<_> =
        scan.rejected.iter().map(|r| (r.path.strip_prefix(dir.path()).unwrap().display().to_string(), &r.reason)).collect();
    assert_eq!(rejected.len(), 2);
    assert!(rejected[0].0 == "hr/b.png" && rejected[0].1.contains("no LQ"), "{rejected:?}");
    assert!(rejected[1].0 == "lq/c.png" && rejected[1].1.contains("no HR"), "{rejected:?}");
}

#[test]
fn files_of_one_stem_are_listed() {
    let dir = tree(&["hr/a.png", "hr/a.jpg", "hr/b.png", "lq/a.png", "lq/b.png", "lq/b_x2.png"]);
    let scan = scan(dir.path(), &options(2)).unwrap();
    assert_counts(&scan);
    assert_eq!(found(dir.path(), &scan), ["b hr/b.png lq/b.png"]);
    assert_eq!(scan.rejected.len(), 4);
    assert!(scan.rejected[0].reason.contains("a.jpg, a.png"), "{:?}", scan.rejected);
}

#[test]
fn a_stem_that_ends_like_a_scale_keeps_its_partner() {
    assert_eq!(pairs(&["hr/a.png", "hr/ax2.png", "lq/a.png", "lq/ax2.png"], 2), ["a hr/a.png lq/a.png", "ax2 hr/ax2.png lq/ax2.png"]);
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
    assert!(text.contains("no pictures") && text.contains("1 other"), "{text}");
}

#[test]
fn rejects_what_could_mean_more_than_one_thing() {
    let text = error(&["hr/a.png", "lr_x2_bicubic/a.png", "lr_x2_nearest/a.png"], 2);
    assert!(text.contains("--lq") && text.contains("lr_x2_nearest"), "{text}");
    let text = error(&["hr/a.png", "gt/a.png"], 2);
    assert!(text.contains("--hr"), "{text}");
    let text = error(&["hr/a.png", "lr_x4/a.png"], 2);
    assert!(text.contains("scale 2") && text.contains("lr_x4"), "{text}");
    let text = error(&["lq/a.png"], 2);
    assert!(text.contains("no HR folder"), "{text}");
    let text = error(&["train/hr/a.png", "train/lr/a.png", "test/hr/a.png", "test/lr/a.png"], 2);
    assert!(text.contains("further down") && text.contains("test/hr and test/lr"), "{text}");
    let text = error(&["hr/a.png", "lq/b.png"], 2);
    assert!(text.contains("2 were rejected") && text.contains("a.png"), "{text}");
    let text = error(&["hr/a.png", "lq/readme.txt"], 2);
    assert!(text.contains("no pictures") && text.contains("lq"), "{text}");
}

#[test]
fn named_folders_are_taken() {
    let dir = tree(&["one/a.png", "two/a.png", "hr/b.png", "three/lr/c.png"]);
    let with =
        |hr: Option<&str>, lq: Option<&str>| ScanOptions { scale: 2, hr: hr.map(PathBuf::from), lq: lq.map(PathBuf::from), out: None };
    let both = scan(dir.path(), &with(Some("one"), Some("two"))).unwrap();
    assert_eq!(found(dir.path(), &both), ["a one/a.png two/a.png"]);
    let alone = scan(dir.path(), &with(Some("one"), None)).unwrap();
    assert_eq!(found(dir.path(), &alone), ["a one/a.png -"]);
    let text = format!("{:#}", scan(dir.path(), &with(Some("nowhere"), None)).unwrap_err());
    assert!(text.contains("--hr nowhere"), "{text}");
    assert!(scan(dir.path(), &with(Some("one"), Some("one"))).is_err());
    // The rest of the root is HR when only the LQ folder is named, and that folder is not part of it.
    let dir = tree(&["a.png", "small/a.png"]);
    let lq_only = scan(dir.path(), &with(None, Some("small"))).unwrap();
    assert_eq!(found(dir.path(), &lq_only), ["a a.png small/a.png"]);
}

#[test]
fn the_train_folder_is_taken_beside_its_own_lq() {
    let files = ["DIV2K_train_HR/1.png", "DIV2K_train_LR_bicubic/X2/1x2.png", "DIV2K_valid_HR/2.png", "DIV2K_valid_LR_bicubic/X2/2x2.png"];
    let dir = tree(&files);
    assert!(scan(dir.path(), &options(2)).is_err());
    let chosen = ScanOptions { scale: 2, hr: Some("DIV2K_valid_HR".into()), ..options(2) };
    let scan = scan(dir.path(), &chosen).unwrap();
    assert_eq!(found(dir.path(), &scan), ["2 DIV2K_valid_HR/2.png DIV2K_valid_LR_bicubic/X2/2x2.png"]);
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_loops_end() {
    use std::os::unix::fs::symlink;
    let dir = tree(&["hr/a.png", "elsewhere/b.png"]);
    symlink(dir.path().join("hr"), dir.path().join("hr/loop")).unwrap();
    symlink(dir.path().join("elsewhere"), dir.path().join("hr/more")).unwrap();
    symlink(dir.path().join("nothing.png"), dir.path().join("hr/broken.png")).unwrap();
    let scan = scan(dir.path(), &options(2)).unwrap();
    assert_eq!(found(dir.path(), &scan), ["a hr/a.png -", "more/b hr/more/b.png -"]);
    assert_eq!(scan.rejected.len(), 1);
    assert_counts(&scan);
}

#[cfg(unix)]
#[test]
fn a_name_that_is_not_utf8_is_listed() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tree(&["a.png"]);
    fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"b\xFF.png")), b"").unwrap();
    let scan = scan(dir.path(), &options(2)).unwrap();
    assert_eq!(scan.sources.len(), 1);
    assert!(scan.rejected[0].reason.contains("UTF-8"));
}
