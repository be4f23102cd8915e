//! Lowering of the network's end, base + gain x conv_out(shuffle(up.0)), and its gradients:
//! kernels/up_head.cu and kernels/folded.cuh.

use super::launch::{Arg, Lowering, int};
use super::nano::{FEATURES, halves, tiles};
use super::pixels;
use super::reduce::{self, Sums};
use super::sizing::SUM_BLOCKS;
use crate::plan::{BufferId, PixelLoss, Precision, Reconstruct, ReconstructBack};
use anyhow::{Context, Result, ensure};

/// Rows and columns of one tile of LQ pixels, which a block takes at a time.
const TILE: usize = 16;
/// f32 elements of the base's arrays: `BASE_..` of kernels/base.cuh.
const BASE_RAW: usize = (TILE + 8) * (TILE + 8) * 3;
const BASE_ROWS: usize = (TILE + 8) * (TILE + 2) * 3;
const BASE_CELLS: usize = (TILE + 2) * (TILE + 4) * 6;
const BASE_TAPS: usize = 32;
/// The numbers of kernels/folded.cuh: entries of a group of slots, one's elements, and sums of
/// all pixels and of one edge.
const ENTRIES: usize = 53;
const ENTRY: usize = FEATURES * 16;
const INTERIOR_SUMS: usize = 25 * ENTRY + 16;
const EDGE_SUMS: usize = 4 * (7 * ENTRY + 3 * 16);
/// Bytes of an entry as the lanes of a warp take it.
const FRAGMENT: usize = 32 * 16;
/// Threads of a backward block with tensor cores: ten warps.
const BACK_THREADS: u32 = 320;

/// What a launch of `up_head_back` computes.
const DATA: i32 = 1;
const SUMS: i32 = 2;

/// Groups of 16 slots: four HR pixels of an LQ pixel's square each.
fn groups(o: &Reconstruct) -> usize {
    (o.scale * o.scale).div_ceil(4)
}

/// Bytes of the composition: f32, and for halves the operands of both passes.
pub(super) fn folded(o: &Reconstruct, precision: Precision) -> u64 {
    let fragments = if precision == Precision::F32 {
        0
    } else {
        2 * ENTRIES * FRAGMENT
    };
    (groups(o) * (4 * (INTERIOR_SUMS + EDGE_SUMS) + fragments)) as u64
}

/// Sums of one block over all pixels, and of one over edges.
fn counts(o: &Reconstruct) -> (usize, usize) {
    (groups(o) * INTERIOR_SUMS, groups(o) * EDGE_SUMS)
}

/// Sums that are carried from slice to slice.
pub(super) fn sum_count(o: &ReconstructBack) -> usize {
    let (interior, edges) = counts(&o.forward);
    interior + edges
}

/// Blocks that each have a partial sum of all pixels, and of edges; with several groups of slots as
/// many blocks share one.
fn sum_blocks(o: &Reconstruct) -> (usize, usize) {
    let e = o.extent;
    let strips = e.n * e.h.max(e.w).div_ceil(16);
    let blocks = tiles(e).min((SUM_BLOCKS as usize / groups(o)).max(1));
    // one edge a block
    (blocks, strips.min(blocks.div_ceil(4)))
}

pub(super) fn workspace(o: &ReconstructBack) -> u64 {
    let ((interior, edges), (blocks, edge_blocks)) = (counts(&o.forward), sum_blocks(&o.forward));
    reduce::partial_bytes(interior, blocks) as u64
        + reduce::workspace(edges, edge_blocks)
        + 8 * interior as u64
}

fn check(o: &Reconstruct) -> Result<()> {
    ensure!(
        o.features == FEATURES,
        "the CUDA kernels of the network's end take {FEATURES} features, not {}",
        o.features
    );
    ensure!(
        (2..=8).contains(&o.scale),
        "the CUDA kernels of the network's end take scales 2 to 8, not {}",
        o.scale
    );
    Ok(())
}

fn composed_buffer(o: &Reconstruct) -> Result<BufferId> {
    Ok(o.folded
        .context("the plan keeps no composition for the CUDA kernels")?
        .buffer)
}

fn sizes(o: &Reconstruct) -> Result<[Arg; 4]> {
    Ok([
        int(o.extent.n)?,
        int(o.extent.h)?,
        int(o.extent.w)?,
        int(o.scale)?,
    ])
}

/// Bytes of a tile of 16 values a pixel with two pixels around it, as the kernels lay it out in
/// planes.
fn tile_bytes(half: bool) -> usize {
    let reached = (TILE + 4) * (TILE + 4);
    if half {
        2 * (reached + 4) * 16
    } else {
        4 * (reached + 1) * 16
    }
}

/// Blocks of the forward kernel where it sums the losses.
pub(super) fn loss_blocks(o: &Reconstruct) -> usize {
    tiles(o.extent).min(SUM_BLOCKS as usize)
}

/// `loss`: computed on the way.
pub(super) fn forward(
    l: &mut Lowering<'_>,
    o: &Reconstruct,
    loss: Option<&PixelLoss>,
) -> Result<()> {
    check(o)?;
    let folded = composed_buffer(o)?;
    let gain = l.element(o.parameters, o.gain.offset);
    if o.folded.is_some_and(|c| c.first) {
        let mut args: Vec<Arg> = [o.up_weight, o.up_bias, o.weight, o.bias]
            .iter()
            .map(|r| l.element(o.parameters, r.offset))
            .collect();
        args.extend([gain, l.at(folded), int(o.scale)?]);
        l.early("compose_up_head", [ENTRIES + 1, groups(o), 1], 256, 0, args)?;
    }
    let [target, codes] = match o.target {
        Some(b) => [b.hr_of(0), b.augment_of(0)].map(|at| l.at_bytes(b.buffer, at)),
        None => [Arg::Null, Arg::Null],
    };
    let mut args = vec![
        l.at(folded),
        gain,
        l.at(o.input),
        l.at(o.features_in),
        l.at(o.output),
        target,
        codes,
    ];
    args.extend(sizes(o)?);
    args.push(Arg::Float(o.alpha));
    let half = halves(l, o.features_in, o.extent, FEATURES);
    // f32 has its weights, those of four slots at a time, in the place of the base's scratch
    let weights = if half { 25 * FRAGMENT } else { 0 };
    let shared = tile_bytes(half) + weights + 4 * (BASE_CELLS + BASE_TAPS + BASE_RAW + BASE_ROWS);
    let kernel = if half && o.scale == 2 {
        "up_head_double"
    } else {
        "up_head"
    };
    if let Some(loss) = loss {
        args.push(l.at(l.workspace(loss.workspace)?));
        args.extend(pixels::loss_terms(l, loss)?);
        l.launch(kernel, [loss_blocks(o), 1, 1], 256, shared, args)?;
    } else {
        args.extend([
            Arg::Null,
            Arg::Int(0),
            Arg::Float(0.0),
            Arg::Float(0.0),
            Arg::Float(0.0),
            Arg::Null,
        ]);
        l.walk(kernel, tiles(o.extent), 256, shared, args)?;
    }
    // the composition is made aside
    l.meet();
    Ok(())
}

pub(super) fn backward(l: &mut Lowering<'_>, o: &ReconstructBack) -> Result<()> {
    let f = &o.forward;
    check(f)?;
    let folded = composed_buffer(f)?;
    let ((interior, edges), (blocks, edge_blocks)) = (counts(f), sum_blocks(f));
    let workspace = l.workspace(o.workspace)?;
    let (edge_partials, totals) = (
        reduce::partial_bytes(interior, blocks),
        reduce::partial_bytes(edges, edge_blocks),
    );
    let totals = match o.slice.carry {
        Some(carry) => (carry, 0),
        None => (workspace, edge_partials + totals),
    };
    let (partials, edge_partials) = (l.at(workspace), l.at_bytes(workspace, edge_partials));
    let sums = Sums::new(partials, l.at_bytes(totals.0, totals.1), interior, blocks);
    let edge_sums = Sums::new(
        edge_partials,
        l.at_bytes(totals.0, totals.1 + 8 * interior),
        edges,
        edge_blocks,
    );
    let gain = l.element(f.parameters, f.gain.offset);
    let mut args = vec![
        l.at(folded),
        gain,
        l.at(f.features_in),
        l.at(o.d_output),
        l.at(o.d_features),
        partials,
        edge_partials,
    ];
    args.extend(sizes(f)?);
    let half = halves(l, f.features_in, f.extent, FEATURES);
    let (groups, threads) = (groups(f), if half { BACK_THREADS } else { 256 });
    let tile = tile_bytes(half);
    let edge_blocks = int(edge_blocks)?;
    let part = |part: i32| [&args[..], &[Arg::Int(part), edge_blocks]].concat();
    let with_weights = if half {
        2 * tile + 25 * FRAGMENT
    } else {
        tile + 25 * FEATURES * 16
    };
    if half && groups == 1 {
        l.launch(
            "up_head_back_double",
            [blocks, 1, 1],
            threads,
            with_weights,
            part(DATA | SUMS),
        )?;
    } else {
        // weights of all slots, or f32 ones of four at a time; f32 sums have the tile's gradients
        // beside its features
        l.walk(
            "up_head_back",
            tiles(f.extent),
            threads,
            with_weights,
            part(DATA),
        )?;
        let shared = if half {
            2 * tile
        } else {
            tile + TILE * TILE * 16 * 4
        };
        l.launch(
            "up_head_back",
            [blocks, groups, 1],
            threads,
            shared,
            part(SUMS),
        )?;
    }
    if let Some(d_input) = o.d_input {
        let mut args = vec![l.at(o.d_output), l.at(d_input)];
        args.extend(sizes(f)?);
        args.push(Arg::Float(f.alpha));
        l.launch(
            "base_back",
            [(f.extent.pixels() * 3).div_ceil(256), 1, 1],
            256,
            0,
            args,
        )?;
    }
    reduce::totals(l, o.slice, &[sums, edge_sums])?;
    if !o.slice.last {
        return Ok(());
    }
    let ranges = [f.up_weight, f.up_bias, f.weight, f.bias, f.gain];
    let mut args = vec![sums.totals, edge_sums.totals];
    args.extend(ranges.map(|r| l.element(f.parameters, r.offset)));
    args.push(l.at(folded));
    args.extend(ranges.map(|r| l.element(o.gradients, r.offset)));
    args.extend([int(f.scale)?, l.scalars()?]);
    // weights of up.0, a warp for each of conv_out's, biases, the gain
    let blocks = f.up_weight.len.div_ceil(256) + f.weight.len / 8 + 2;
    l.aside("finish_up_head", [blocks, 1, 1], 256, 256 * 8, args)
}
