//! The kernel that adds the gradients of several ranks, on fibers: for each rank of small and large
//! numbers of ranks, in three orders of lanes and blocks, against sums in the order of the
//! micro-batches, to the bit; and again under the address sanitizer.

use crate::{kernels_common, network_common};

use kernels_common::{Host, ORDERS, Order, compile, from_activations, to_activations};
use network_common::{scalars, spec};
use paragon::backend::cuda::{CudaSizing, add_gradients};
use paragon::model::{Network, StepSpec, training_plan};
use paragon::plan::LossKind::L1;
use paragon::plan::{BufferId, Plan, Precision};
use paragon::support::parts::Parts;
use paragon::support::rng::Rng;
use std::ops::Range;

/// A Nano step with memory for the exchange of gradients.
struct Step {
    plan: Plan,
    gradients: BufferId,
    exchange: BufferId,
    parts: Parts,
}

impl Step {
    fn new(ranks: usize) -> Step {
        let net = Network::new("nano", 2).unwrap();
        let parts = Parts::new(ranks, net.params().trainable());
        let spec = StepSpec {
            exchange: parts.device_values(),
            ..spec(1, (8, 8), &[(L1, 1.0)], false)
        };
        let sizing = CudaSizing {
            precision: Precision::F32,
        };
        let plan = training_plan(&net, &spec, &sizing).unwrap();
        let (gradients, exchange) = (plan.ports.gradients, plan.ports.exchange);
        Step {
            plan,
            gradients: gradients.unwrap(),
            exchange: exchange.unwrap(),
            parts,
        }
    }

    /// Where the gradients of another rank are, values of the exchange.
    fn received(&self, rank: usize, other: usize) -> Range<usize> {
        let start = (1 + other - usize::from(other > rank)) * self.parts.stride();
        start..start + self.parts.owned(rank).len()
    }
}

/// The gradient of a micro-batch: values of very different sizes, whose sum depends on the order, and
/// some that are -0 in every micro-batch.
fn gradient(micro_batch: usize, values: usize) -> Vec<f32> {
    let mut rng = Rng::new(&[micro_batch as u64]);
    let value = |at| {
        let value = (rng.unit() - 0.5) as f32 * 10f32.powi(rng.below(9) as i32);
        if at % 7 == 0 { -0.0 } else { value }
    };
    (0..values).map(value).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn store(host: &mut Host, buffer: BufferId, place: Range<usize>, values: &[f32]) {
    let bytes = to_activations(values, Precision::F32);
    host.bytes(buffer)[4 * place.start..4 * place.end].copy_from_slice(&bytes);
}

fn load(host: &mut Host, buffer: BufferId) -> Vec<f32> {
    from_activations(host.bytes(buffer), Precision::F32)
}

/// One iteration of a rank, in rounds; every value of both buffers is compared after each of them.
fn iteration(step: &Step, mut host: Host, rank: usize, rounds: usize) {
    let (ranks, owned) = (step.parts.ranks(), step.parts.owned(rank));
    let what = format!("rank {rank} of {ranks}, {rounds} rounds, {:?}", host.order);
    let mut sums: Vec<f32> = Vec::new();
    for round in 0..rounds {
        let of_rank = |other: usize| gradient(round * ranks + other, step.parts.values());
        for other in 0..ranks {
            let values = of_rank(other);
            let part = &values[owned.clone()];
            if other == rank {
                store(&mut host, step.gradients, 0..values.len(), &values);
            } else {
                store(&mut host, step.exchange, step.received(rank, other), part);
            }
            // the first gradient is taken as it is: -0 + 0 would be 0
            if round == 0 && other == 0 {
                sums = part.to_vec();
            } else {
                sums.iter_mut().zip(part).for_each(|(sum, g)| *sum += g);
            }
        }
        let mut expected = [step.gradients, step.exchange].map(|id| load(&mut host, id));
        let last = round + 1 == rounds;
        if last {
            expected[0][owned.clone()].copy_from_slice(&sums);
        } else {
            expected[1][..sums.len()].copy_from_slice(&sums);
        }
        let buffers = (step.gradients, step.exchange);
        let launch = add_gradients(buffers, step.parts, rank, (round == 0, last)).unwrap();
        let launch = launch.expect("this rank owns values");
        host.run(&scalars(), &[launch]).unwrap();
        for (id, expected) in [step.gradients, step.exchange].into_iter().zip(&expected) {
            let found = load(&mut host, id);
            assert!(bits(&found) == bits(expected), "{what}, round {round}");
        }
    }
}

/// Nano's gradients are sent whole to one or two other ranks, and divided among 32, where the last rank
/// that owns some owns fewer than the others.
#[test]
fn gradients_of_ranks_are_added_in_their_order() {
    let Some(program) = compile(Precision::F32, false) else {
        return;
    };
    let sanitized = compile(Precision::F32, true).unwrap();
    for (ranks, chosen) in [(2, &[0, 1][..]), (3, &[0, 1, 2]), (32, &[0, 17, 30])] {
        let step = Step::new(ranks);
        assert_eq!(step.parts.whole(), ranks < 32);
        for &rank in chosen {
            for rounds in 1..=2 {
                let host = |program, order| Host::new(step.plan.clone(), program, order);
                for order in ORDERS {
                    iteration(&step, host(program.clone(), order), rank, rounds);
                }
                let sanitized = host(sanitized.clone(), Order::Forward);
                iteration(&step, sanitized, rank, rounds);
            }
        }
    }
}

#[test]
fn a_rank_that_owns_no_values_adds_nothing() {
    let step = Step::new(32);
    let buffers = (step.gradients, step.exchange);
    assert!(step.parts.owned(30).len() < step.parts.longest());
    let launch = add_gradients(buffers, step.parts, 31, (true, true)).unwrap();
    assert_eq!((step.parts.owned(31).len(), launch), (0, None));
}
