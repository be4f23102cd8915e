//! Every level of recomputation gives the same bits: gradients, loss and several iterations with
//! slices equal those without, for every loss, odd sizes, several micro-batches and any number of
//! threads.

use crate::network_common;

use network_common::{Twin, options, spec};
use paragon::backend::cpu::Isa;
use paragon::backend::{Backend, Scalars};
use paragon::model::Recompute;
use paragon::plan::LossKind::{self, L1, MsSsim, Mse, Ssim};
use paragon::support::rng::Rng;

fn bytes(count: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(&[seed]);
    (0..count).map(|_| rng.next_u64() as u8).collect()
}

/// Loss, gradients, parameters after two iterations of two micro-batches.
fn trajectory(
    twin: &Twin,
    batch: usize,
    lq: usize,
    losses: &[(LossKind, f32)],
    level: Recompute,
    threads: usize,
) -> (u64, Vec<Vec<f32>>) {
    let mut spec = spec(batch, (lq, lq), losses, false);
    spec.recompute = level;
    let mut step = twin.load(&spec, options(Isa::detect(), threads));
    let s = twin.net.scale;
    let mut out = Vec::new();
    for iteration in 0..2u64 {
        for micro in 0..2u64 {
            let seed = iteration * 2 + micro;
            let (x, y) = (
                bytes(batch * lq * lq * 3, seed),
                bytes(batch * lq * lq * 3 * s * s, 100 + seed),
            );
            let codes: Vec<u8> = bytes(batch, 200 + seed).iter().map(|c| c % 8).collect();
            let scalars = Scalars {
                lr: 1e-3,
                step: iteration + 1,
                clip: 1.0,
                ema_decay: 0.5,
                micro_scale: 0.5,
                loss_scale: 1.0,
                accumulate: micro > 0,
            };
            step.bytes(&x, &y, &codes, &scalars);
            out.push(step.gradients());
            if micro == 1 {
                step.backend.update(&scalars).unwrap();
                out.push(step.parameters());
                out.push(step.ema());
            }
        }
    }
    (step.loss().to_bits(), out)
}

#[test]
fn slices_of_the_tail_give_the_bits_of_the_whole() {
    let lists: [&[(LossKind, f32)]; 4] = [
        &[(L1, 1.0)],
        &[(L1, 1.0), (Ssim, 0.05)],
        &[(Ssim, 0.3), (MsSsim, 0.2), (Mse, 1.0)],
        &[(MsSsim, 1.0)],
    ];
    // (scale, batch, LQ size): one image per slice; several; a last slice that is smaller.
    for (scale, batch, lq) in [(2, 3, 192), (2, 5, 97), (3, 2, 130), (4, 7, 45)] {
        let twin = Twin::new(scale, 7);
        for losses in &lists {
            let whole = trajectory(&twin, batch, lq, losses, Recompute::Block, 2);
            assert!(whole.1.iter().flatten().all(|v| v.is_finite()));
            for threads in [1, 3] {
                let sliced = trajectory(&twin, batch, lq, losses, Recompute::Full, threads);
                assert!(
                    sliced == whole,
                    "x{scale}, batch {batch}, LQ {lq}, {losses:?}, {threads} threads"
                );
            }
        }
    }
}

#[test]
fn full_recomputation_makes_slices_where_the_tail_is_large() {
    for (batch, hr, images) in [
        (16, 256 * 256, 2),
        (64, 512 * 512, 1),
        (4, 96 * 96, 4),
        (40, 96 * 96, 14),
        (1, 1 << 30, 1),
    ] {
        assert_eq!(Recompute::Full.slice_images(batch, hr, 0), images);
        assert_eq!(Recompute::Block.slice_images(batch, hr, 0), batch);
    }
}
