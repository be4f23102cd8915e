//! Images computed in stages, beside one pass over the whole image.

use super::tests::{Rows, noise};
use super::*;
use crate::backend::read_floats;
use crate::dataset::rows::PixelRows;
use crate::model::Network;

/// Pro with windows of two pixels, so that tiles are small, and with blocks that contribute.
fn small_pro() -> (Network, Vec<f32>) {
    let mut net = Network::new("pro", 2).unwrap();
    net.set("window_size", 2).unwrap();
    net.set("layer_scale", 0.2).unwrap();
    net.set("detail_gain", 1.0).unwrap();
    let params = net.params().start_values(3);
    (net, params)
}

/// The f32 result of one pass over the whole image, `[H, W, 3]`.
fn in_one_pass(net: &Network, params: &[f32], lq: &RgbImage) -> Vec<f32> {
    let mut upscaler = Upscaler::new(net.clone(), params.to_vec(), CpuOptions::new(2), 0).unwrap();
    upscaler.upscale(lq).unwrap();
    let (_, backend) = upscaler.loaded.as_mut().unwrap();
    let output = backend.plan().ports.output.unwrap();
    let mut values = vec![0.0; 4 * lq.as_raw().len()];
    read_floats(backend, output, &mut values).unwrap();
    values
}

#[test]
fn stages_give_the_bits_of_the_whole_image() {
    let (net, params) = small_pro();
    let folder = tempfile::tempdir().unwrap();
    // two bands of rows, and a remainder of both sides to the window
    let lq = noise(23, 37);
    let whole = in_one_pass(&net, &params, &lq);
    for (tile, threads) in [(16, 1), (21, 2)] {
        let options = CpuOptions::new(threads);
        let mut upscaler = Upscaler::new(net.clone(), params.clone(), options, 0).unwrap();
        upscaler.use_stages(folder.path().into(), tile).unwrap();
        let mut source = Rows(&lq, None, 0);
        let progress = Progress::hidden();
        let mut rows = upscaler.upscale_rows(&mut source, &progress).unwrap();
        let mut found = vec![0; 4 * lq.as_raw().len()];
        rows.read(&mut found).unwrap();
        drop(rows);
        let pairs = found.iter().zip(&whole);
        assert!(pairs.clone().all(|(&f, &w)| f == tiles::to_u8(w)), "{tile}");
        // the last tile in f32
        let grid = upscaler.tiler.grid(lq.dimensions()).unwrap();
        assert!(grid.rows.len() > 1 && grid.columns.len() > 1, "{tile}");
        let (row, column) = (grid.rows.last().unwrap(), grid.columns.last().unwrap());
        for (i, y) in (row.valid.0 * 2..row.valid.1 * 2).enumerate() {
            let from = ((row.valid_at() * 2 + i) * grid.shape.1 + column.valid_at()) * 6;
            let tile = &upscaler.tiler.output[from..][..column.valid_len() * 6];
            let at = (y * grid.width + column.valid.0) * 6;
            assert!(tile == &whole[at..at + tile.len()], "{row:?} {column:?}");
        }
    }
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}
