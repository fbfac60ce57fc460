//! What a forward pass leaves in use, held against the count that memory is predicted with.
//!
//! On the CPU, libtorch's memory is the C library's, which says how much is in use: in a process of its own, where nothing else changes it.

use std::process::Command;
use std::time::Duration;

use systems::plan::memory::{StageParameters, largest_block_parameters};
use systems::zoo::expert_only::ExpertOnly;
use systems::{CostModel, Job, Plan, Zero};
use tch::{Device, Kind};
use workloads::model::attention::{Projections, QkNorm};
use workloads::model::saved::Runs;
use workloads::model::{Attention, Ffn, HALF, NormKind};
use workloads::{Cluster, Gate, Model, Training};

use crate::clock::timer::Timer;
use crate::comm::{Communicator, threads};
use crate::data::Uniform;
use crate::error::TrainError;
use crate::rank::Rank;
use crate::setup::{self, Setup};

const SHAPE: &str = "layers = 3\nhidden = 256\nheads = 8\nseq_len = 128\nvocabulary = 512\ntop_k = 2\ndropout = false\nfused_attention = true\n";
const LIKE_LLAMA: &str =
    "bias = false\nnorm = \"rms\"\npositions = \"rotary\"\nexpert_gated = true\nactivation = \"silu\"\ntied = false\n";

/// GPT-2's kind; Mixtral's, with grouped queries; Qwen3's, with normalised heads; DeepSeek-V3's, with a shared expert and a dense layer.
fn models() -> Vec<Model> {
    let plain = "experts = 4\nexpert_ratio = 2\nmoe_every = 1\n".to_owned();
    let mixtral =
        format!("{LIKE_LLAMA}experts = 4\nexpert_inner = 448\nkv_heads = 2\n[gpt.router]\nauxiliary_loss = 0.04\n");
    let qwen = format!(
        "{LIKE_LLAMA}experts = 8\nexpert_inner = 192\nkv_heads = 4\nqk_norm = \"head\"\n[gpt.router]\nauxiliary_loss = 0.001\n"
    );
    let deepseek = format!(
        "{LIKE_LLAMA}experts = 8\nexpert_inner = 128\nshared_experts = 1\nfirst_dense = 1\ndense_inner = 640\ndense_gated = true\n\
         [gpt.latent]\nq_rank = 96\nkv_rank = 64\nnope = 16\nrope = 16\nvalue = 32\n\
         [gpt.router]\nscore = \"sigmoid\"\nbias = \"selection\"\ngroups = 4\nkept_groups = 2\nscale = 2.5\nauxiliary_loss = 1e-4\n"
    );
    let of = |(name, more): (&str, String)| {
        Model::parse(name, &format!("name = \"{name}\"\nsource = \"tests\"\n[gpt]\n{SHAPE}{more}")).unwrap()
    };
    [("plain", plain), ("mixtral", mixtral), ("qwen", qwen), ("deepseek", deepseek)].map(of).into()
}

const MICRO_BATCH: usize = 8;

/// Calls `of` with what `ranks` data-parallel ranks need to train the model, all experts on each.
fn with_setup<T>(model: &Model, ranks: usize, zero: Zero, of: impl FnOnce(&Setup) -> T) -> T {
    let cluster = Cluster::named("test", "inky").unwrap();
    let costs = CostModel::new(&cluster, ranks);
    let job = Job::new(model.clone(), cluster, ranks, Gate::NoDrop, ranks * MICRO_BATCH).with_micro_batch(MICRO_BATCH);
    let plan = Plan { dp: ranks, expert_dp: ranks, micro_batch: MICRO_BATCH, zero, ..Plan::default() };
    let gpt = setup::gpt(&job, &plan).unwrap();
    let samples = Uniform { vocabulary: gpt.vocabulary, sequence: gpt.seq_len, seed: 1 };
    of(&Setup {
        job: &job,
        plan,
        system: &ExpertOnly,
        costs: &costs,
        training: Training::default(),
        samples: &samples,
        seed: 1,
        iterations: 1,
        replay: None,
        record: None,
        record_spans: false,
        checkpoint: None,
        kind: Kind::Float,
        gpt,
    })
}

/// Bytes of a micro-batch's forward pass that stay in use.
fn kept(model: &Model) -> f64 {
    with_setup(model, 1, Zero::Off, |setup| {
        let _guard = tch::no_grad_guard();
        let world = threads::world(1, Duration::from_secs(60)).remove(0);
        let rank = Rank::new(setup, Box::new(world), Device::Cpu, Timer::new(0, None)).unwrap();
        let forward = || rank.forward(0, None, &mut Default::default()).unwrap();
        // What libtorch allocates once.
        drop(forward());
        let before = in_use();
        let saved = forward();
        let bytes = in_use() - before;
        drop(saved);
        bytes
    })
}

const REPLICAS: usize = 4;

/// Bytes that all replicas together hold before the first iteration, what two iterations leave, and what a forward pass adds.
fn held(model: &Model, zero: Zero) -> [f64; 3] {
    with_setup(model, REPLICAS, zero, |setup| {
        let before = in_use();
        let of_ranks = threads::run(REPLICAS, Duration::from_secs(60), |member| -> Result<_, TrainError> {
            let _guard = tch::no_grad_guard();
            tch::set_num_threads(1);
            let world = member.split("world", &[(0..REPLICAS).collect()])?;
            let mut rank = Rank::new(setup, world, Device::Cpu, Timer::new(member.rank(), None))?;
            // Nobody allocates anything between two barriers.
            let now = || {
                member.barrier()?;
                let bytes = in_use() - before;
                member.barrier()?;
                Ok::<f64, TrainError>(bytes)
            };
            let built = now()?;
            rank.step()?;
            rank.step()?;
            let trained = now()?;
            let saved = rank.forward(0, None, &mut Default::default())?;
            let kept = now()? - trained;
            drop(saved);
            Ok([built, trained - built, kept])
        });
        of_ranks.into_iter().next().unwrap().unwrap_or_else(|_| panic!("a rank failed"))
    })
}

/// By the count, all replicas together: parts of weights, gradients, master weights and moments, where weights are their own masters; of one block
/// and of the tied words, whole weights and gradients.
fn sharded(model: &Model) -> f64 {
    with_setup(model, REPLICAS, Zero::Weights, |setup| {
        let parts = StageParameters::new(setup.job, &setup.plan, 0).share(&setup.plan).total();
        let whole = largest_block_parameters(setup.job, &setup.plan, 0) + model.tied_parameters as f64;
        REPLICAS as f64 * (16.0 * parts + 8.0 * whole)
    })
}

/// The same by the count, which is of a GPU: on the CPU, a normalisation by the root of the mean square keeps its input divided by that, too.
fn counted(model: &Model) -> f64 {
    let runs = Runs { kernels: false, tp: 1 };
    let mut sum = 0.0;
    for block in &model.blocks {
        let tokens = (MICRO_BATCH * block.tokens) as f64;
        let of_token = model.saved_in(block, runs);
        let divided = divided(model, block.hidden) * 2.0 + divided_in_heads(&block.attention);
        sum += tokens * 4.0 * (of_token.half + of_token.single + divided);
        if let Ffn::Moe(moe) = &block.ffn {
            // In single precision already, the gate's tokens are no copy.
            sum -= tokens * 4.0 * moe.width as f64;
            sum += tokens * model.top_k as f64 * moe.entry_activations().0 / HALF * 4.0;
        }
    }
    let last = model.blocks.last().unwrap();
    let edges = [model.saved_by_embedding(), model.saved_by_head(runs)].map(|saved| saved.half + saved.single);
    sum + (MICRO_BATCH * last.tokens) as f64 * 4.0 * (edges[0] + edges[1] + divided(model, last.hidden))
}

/// Of a normalisation of that width.
fn divided(model: &Model, width: usize) -> f64 {
    if model.blocks[0].norm.kind == NormKind::Rms { width as f64 } else { 0.0 }
}

/// Of those between projections.
fn divided_in_heads(of: &Attention) -> f64 {
    let width = match (of.projections, of.qk_norm) {
        (Projections::Latent(latent), _) => latent.q_rank.unwrap_or(0) + latent.kv_rank,
        (_, QkNorm::None) => 0,
        (Projections::Grouped { kv_heads, head_width }, _) => (of.heads + kv_heads) * head_width,
    };
    width as f64
}

/// What this process has allocated and not freed.
fn in_use() -> f64 {
    /// `mallinfo2` of malloc.h: the eighth number is of bytes in use, the fifth of those that were mapped alone.
    #[repr(C)]
    struct Numbers([usize; 10]);
    unsafe extern "C" {
        fn mallinfo2() -> Numbers;
    }
    // SAFETY: takes nothing, and may be called at any time.
    let Numbers(numbers) = unsafe { mallinfo2() };
    (numbers[7] + numbers[4]) as f64
}

const ASKED: &str = "MOEBENCH_TEST_SAVED";

/// Not a test of its own: what the process of the next one runs.
#[test]
fn child_that_counts() {
    if std::env::var_os(ASKED).is_some() {
        tch::set_num_threads(1);
        models().iter().for_each(|model| println!("\nkept {} {} {}", model.name, kept(model), counted(model)));
        let model = &models()[0];
        let numbers = [held(model, Zero::Off), held(model, Zero::Weights), [sharded(model), 0.0, 0.0]].concat();
        println!("\nheld {}", numbers.iter().map(f64::to_string).collect::<Vec<_>>().join(" "));
    }
}

fn counted_by_a_child() -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "rank::saved_tests::child_that_counts", "--nocapture", "--test-threads", "1"])
        .env(ASKED, "1")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Under ZeRO 3, replicas hold parts and one block, whatever they have done, and autograd keeps no weights.
#[test]
fn replicas_hold_parts_and_a_block() {
    let text = counted_by_a_child();
    let line = text.lines().find_map(|line| line.strip_prefix("held ")).unwrap_or_else(|| panic!("{text}"));
    let numbers: Vec<f64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
    let [whole, left, kept, parts, left_of_parts, kept_of_parts, counted, ..] = numbers[..] else { panic!("{line}") };
    assert!((parts / counted - 1.0).abs() < 0.03, "{parts} B in use, {counted} B counted");
    assert!(parts < 0.5 * whole, "{parts} B in parts, {whole} B whole");
    // What libtorch allocates once.
    assert!(left_of_parts < 1.05 * left, "{left_of_parts} B left with parts, {left} B without");
    assert!((kept_of_parts / kept - 1.0).abs() < 0.02, "{kept_of_parts} B kept with parts, {kept} B without");
}

#[test]
fn a_forward_pass_keeps_what_is_counted() {
    let text = counted_by_a_child();
    let lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("kept ")).collect();
    assert_eq!(lines.len(), 4, "{text}");
    for line in lines {
        let [name, found, counted] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let [found, counted]: [f64; 2] = [found, counted].map(|number| number.parse().unwrap());
        assert!((counted / found - 1.0).abs() < 0.02, "{name}: {found} B in use, {counted} B counted");
    }
}
