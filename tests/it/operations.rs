//! Every operation of the plan has a plain reference that a test compares it with, a backward pass,
//! and a cost. An operation without one is refused here. (That it has an implementation on the CPU,
//! or says that CUDA has none, is asked by the compiler.)

use paragon::backend::cpu::CpuOptions;
use paragon::model::{Network, StepSpec, known_networks, training_plan};
use paragon::plan::{LossKind, Op};
use std::collections::BTreeSet;
use std::path::Path;

/// An operation, and the test that compares it with a plain f64 form: the file, and a word that the
/// test contains.
const REFERENCES: &[(&str, &str, &str)] = &[
    (
        "Unpack",
        "tests/it/golden_network.rs",
        "trajectories_match_the_golden_files",
    ),
    ("Conv", "src/backend/cpu/conv/tests.rs", "Conv"),
    ("ConvBack", "src/backend/cpu/conv/tests.rs", "ConvBack"),
    ("Activate", "src/backend/cpu/plain_tests.rs", "Activate"),
    ("ActivateBack", "src/backend/cpu/plain_tests.rs", "Activate"),
    ("Gate", "src/backend/cpu/plain_tests.rs", "Gate"),
    ("GateBack", "src/backend/cpu/plain_tests.rs", "GateBack"),
    ("Concat", "src/backend/cpu/plain_tests.rs", "Concat"),
    ("ConcatBack", "src/backend/cpu/plain_tests.rs", "Concat"),
    ("ScaledSum", "src/backend/cpu/plain_tests.rs", "ScaledSum"),
    (
        "ScaledSumBack",
        "src/backend/cpu/plain_tests.rs",
        "ScaledSum",
    ),
    ("Accumulate", "src/backend/cpu/plain_tests.rs", "Accumulate"),
    ("Shuffle", "src/backend/cpu/plain_tests.rs", "Shuffle"),
    (
        "ShuffleBack",
        "src/backend/cpu/plain_tests.rs",
        "ShuffleBack",
    ),
    (
        "ComposeConv",
        "src/backend/cpu/compose/tests.rs",
        "ComposeConv",
    ),
    (
        "ComposeConvBack",
        "src/backend/cpu/compose/tests.rs",
        "ComposeConvBack",
    ),
    (
        "WindowAttention",
        "src/backend/cpu/window_attention/tests.rs",
        "WindowAttention",
    ),
    (
        "WindowAttentionBack",
        "src/backend/cpu/window_attention/tests.rs",
        "WindowAttentionBack",
    ),
    (
        "RmsNorm",
        "src/backend/cpu/rms_norm/tests.rs",
        "rms_norm_is_that_of_f64",
    ),
    (
        "RmsNormBack",
        "src/backend/cpu/rms_norm/tests.rs",
        "RmsNormBack",
    ),
    (
        "ChannelAttention",
        "src/backend/cpu/channel_attention/tests.rs",
        "ChannelAttention",
    ),
    (
        "ChannelAttentionBack",
        "src/backend/cpu/channel_attention/tests.rs",
        "check_whole",
    ),
    (
        "TokenAttention",
        "src/backend/cpu/token_attention/tests.rs",
        "TokenAttention",
    ),
    (
        "TokenAttentionBack",
        "src/backend/cpu/token_attention/tests.rs",
        "check_whole",
    ),
    ("NanoBlock", "tests/it/f64_reference.rs", "Twin"),
    ("NanoBlockBack", "tests/it/f64_reference.rs", "Twin"),
    (
        "StreamBlock",
        "src/backend/cpu/stream/tests.rs",
        "StreamBlock",
    ),
    (
        "StreamBlockBack",
        "src/backend/cpu/stream/tests.rs",
        "StreamBlockBack",
    ),
    ("Reconstruct", "tests/it/f64_reference.rs", "Twin"),
    ("ReconstructBack", "tests/it/f64_reference.rs", "Twin"),
    ("PixelLoss", "tests/it/f64_reference.rs", "Twin"),
    ("StructuralLoss", "tests/it/structural.rs", "similarity"),
    (
        "Update",
        "tests/it/optimizer.rs",
        "updates_follow_the_formulas",
    ),
];

/// Operations that sum or move values and multiply nothing worth counting.
const WITHOUT_COST: &[&str] = &[
    "Unpack",
    "Activate",
    "ActivateBack",
    "Gate",
    "GateBack",
    "Concat",
    "ConcatBack",
    "ScaledSum",
    "ScaledSumBack",
    "Accumulate",
    "Shuffle",
    "ShuffleBack",
    "PixelLoss",
    "StructuralLoss",
    "Update",
];

#[test]
fn every_operation_is_compared_with_a_plain_form() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for name in Op::NAMES {
        let row = REFERENCES.iter().find(|(operation, ..)| operation == name);
        let (_, file, word) = row.unwrap_or_else(|| panic!("{name} has no reference"));
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        assert!(text.contains(word), "{file} does not test {name}");
    }
    assert_eq!(REFERENCES.len(), Op::NAMES.len());
}

/// Operations of a step that have no backward pass of their own: what stages, measures and updates.
const WITHOUT_BACKWARD: &[&str] = &[
    "Unpack",
    "PixelLoss",
    "StructuralLoss",
    "Update",
    "Accumulate",
];

#[test]
fn every_operation_has_a_backward_pass_and_a_cost() {
    let forward = Op::NAMES.iter().filter(|name| !name.ends_with("Back"));
    for name in forward.filter(|name| !WITHOUT_BACKWARD.contains(name)) {
        let back = format!("{name}Back");
        assert!(Op::NAMES.contains(&back.as_str()), "{name} has no {back}");
    }
    let mut seen = BTreeSet::new();
    for known in known_networks() {
        let net = Network::new(known.name, 2).unwrap();
        let spec = StepSpec::new(2, (24, 24), vec![(LossKind::L1, 1.0)]);
        let plan = training_plan(&net, &spec, &CpuOptions::new(1)).unwrap();
        let names: Vec<&str> = plan.ops.iter().map(|op| op.name()).collect();
        for op in &plan.ops {
            let costs = op.multiply_adds() > 0;
            assert_ne!(costs, WITHOUT_COST.contains(&op.name()), "{}", op.name());
            // every forward operation of a step is differentiated in the same step
            let back = format!("{}Back", op.name());
            let forward = !op.name().ends_with("Back") && !WITHOUT_BACKWARD.contains(&op.name());
            assert!(!forward || names.contains(&back.as_str()), "{}", op.name());
            seen.insert(op.name());
        }
    }
    // the plain forms of the fused blocks, which no network of the table needs
    let unused = ["Accumulate", "ScaledSum", "ScaledSumBack", "StructuralLoss"];
    let missing: Vec<_> = Op::NAMES
        .iter()
        .filter(|name| !seen.contains(**name))
        .collect();
    assert!(
        missing.iter().all(|name| unused.contains(name)),
        "{missing:?}"
    );
}
