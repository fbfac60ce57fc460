//! Tests of two ranks or more that each have a device: on CPUs over TCP, and on GPUs over NCCL, which need them: two, or as many as
//! `MOEBENCH_TEST_RANKS` says, 4 or 8.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use systems::iteration::timeline::Activity;
use systems::program::Op;
use systems::zoo::{cobalance, eplb, expert_only, fastermoe, fsdp_ep, laer, microep, quota, smartmoe, symi};
use systems::{CostModel, Job, Plan, System, Zero};
use tch::{Device, Kind, Tensor};
use workloads::{Cluster, Gate, Model, Training};

use crate::clock::timer::Timer;
use crate::comm::nccl::{Kept, Nccl};
use crate::comm::tcp_tests::free_port;
use crate::comm::{Communicator, Exchange, preflight, selfcheck, tcp, threads};
use crate::cuda::{self, Gpu};
use crate::data::{Language, Samples};
use crate::host::to_host;
use crate::model::dense::Cut;
use crate::model::parameters::{Initial, initial};
use crate::rank::Rank;
use crate::rank::report::Report;
use crate::setup::{self, Setup};
use crate::world::{self, Place};

/// Where the ranks are.
#[derive(Clone, Copy, PartialEq)]
enum On {
    Cpus,
    Gpus,
}

impl On {
    fn device(self, rank: usize) -> Device {
        if self == Self::Gpus { Device::Cuda(rank) } else { Device::Cpu }
    }
}

const PATIENCE: Duration = Duration::from_secs(60);

/// How many ranks the tests on GPUs have.
fn ranks_on_gpus() -> usize {
    let asked = std::env::var("MOEBENCH_TEST_RANKS").map_or(2, |count| count.parse().unwrap());
    assert!([2, 4, 8].contains(&asked), "MOEBENCH_TEST_RANKS={asked}: expected 2, 4 or 8");
    asked
}

/// Runs both ranks, each in a thread with its own communicator, and a group of both over the CPUs' backend.
fn pair<T: Send>(
    on: On,
    patience: Duration,
    rank: impl Fn(Box<dyn Communicator>, &Exchange, Device) -> T + Sync,
) -> [T; 2] {
    let Ok(both) = ranks(on, 2, patience, rank).try_into() else { panic!("two ranks") };
    both
}

fn nothing_kept(ranks: usize) -> Vec<Kept> {
    (0..ranks).map(|_| Kept::default()).collect()
}

/// Runs so many ranks likewise.
fn ranks<T: Send>(
    on: On,
    size: usize,
    patience: Duration,
    rank: impl Fn(Box<dyn Communicator>, &Exchange, Device) -> T + Sync,
) -> Vec<T> {
    let kept = nothing_kept(size);
    ranks_keeping(on, patience, &kept, |world, reference, device| {
        let member = world.rank();
        let result = rank(world, reference, device);
        // NCCL ends a communicator when all do.
        kept[member].give_up();
        result
    })
}

/// All ranks end what they keep.
fn give_up(kept: &[Kept]) {
    thread::scope(|scope| kept.iter().for_each(|kept| drop(scope.spawn(|| kept.give_up()))));
}

/// Runs ranks that keep communicators of one world for the next, each its own.
fn ranks_keeping<T: Send>(
    on: On,
    patience: Duration,
    kept: &[Kept],
    rank: impl Fn(Box<dyn Communicator>, &Exchange, Device) -> T + Sync,
) -> Vec<T> {
    let port = free_port();
    let (rank, size) = (&rank, kept.len());
    thread::scope(|scope| {
        let spawn = |(number, (reference, kept)): (usize, (Exchange, _))| {
            scope.spawn(move || {
                let control = tcp::world(number, size, ("127.0.0.1", port), patience).unwrap();
                let world: Box<dyn Communicator> = match on {
                    On::Cpus => Box::new(control),
                    On::Gpus => {
                        let gpu = cuda::load().and_then(|_| Gpu::open(number)).unwrap();
                        Box::new(Nccl::world(control, gpu, kept).unwrap())
                    }
                };
                rank(world, &reference, on.device(number))
            })
        };
        let threads: Vec<_> = threads::world(size, PATIENCE).into_iter().zip(kept).enumerate().map(spawn).collect();
        threads.into_iter().map(|thread| thread.join().expect("all ranks end")).collect()
    })
}

/// Random numbers that follow from the names of test and rank. A sum of two is the same in any order; of more ranks, small whole numbers
/// are, which half precision holds with their sums.
fn random(name: &str, group: &dyn Communicator, shape: &[i64], kind: Kind) -> Tensor {
    let numbers = initial(5, &format!("{name} {}", group.rank()), shape, Initial::Normal(50.0), Device::Cpu);
    let whole = |numbers: Tensor| (numbers / 5.0).round().clamp(-31.0, 31.0);
    (if group.size() > 2 { whole(numbers) } else { numbers }).to_kind(kind)
}

fn collectives_agree(on: On, size: usize) {
    ranks(on, size, PATIENCE, |world, reference, device| {
        preflight(&*world, device).unwrap();
        selfcheck(&*world, device).unwrap();
        compare_collectives(&*world, reference, device);
    });
}

/// Rows from each of two ranks to each.
const SPLITS: [[usize; 2]; 4] = [[0, 1000], [1000, 0], [613, 387], [999, 1]];

/// `[from][to]`: 1000 rows of every rank, split in several ways: of two ranks, by [`SPLITS`] with what goes to the first of the first kept;
/// of more, all to the next, all to one, and unevenly to all.
fn tables(size: usize) -> Vec<Vec<Vec<usize>>> {
    if size == 2 {
        return SPLITS.map(|[to_first, kept]| vec![vec![kept, to_first], vec![to_first, kept]]).into();
    }
    let all_to = |to: usize| (0..size).map(|other| if other == to { 1000 } else { 0 }).collect::<Vec<_>>();
    let uneven = |from: usize| {
        let weights: Vec<usize> = (0..size).map(|to| (from * 7 + to * 5) % 11).collect();
        let mut rows: Vec<usize> = weights.iter().map(|weight| 1000 * weight / weights.iter().sum::<usize>()).collect();
        rows[from] += 1000 - rows.iter().sum::<usize>();
        rows
    };
    let tables: [&dyn Fn(usize) -> Vec<usize>; 3] = [&|from| all_to((from + 1) % size), &|_| all_to(1), &uneven];
    tables.map(|row| (0..size).map(row).collect()).into()
}

/// Every collective of all ranks on random data gives the bits that the CPUs' backend gives. Transfers are those of pairs side by side.
fn compare_collectives(group: &dyn Communicator, reference: &Exchange, device: Device) {
    let _guard = tch::no_grad_guard();
    let (me, other) = (group.rank(), group.rank() ^ 1);
    for kind in [Kind::Float, Kind::BFloat16, Kind::Double] {
        let own = random("collective", group, &[1000, 37], kind);
        let there = own.to_device(device);
        let compare = |what: &str, of: &dyn Fn(&dyn Communicator, &Tensor) -> Tensor| {
            let (found, expected) = (of(group, &there), of(reference, &own));
            assert!(found.to_device(Device::Cpu).equal(&expected), "{what} of {kind:?} on rank {me}");
        };
        compare("all-reduce", &|group, own| group.all_reduce(own).unwrap().wait().unwrap());
        compare("all-gather", &|group, own| group.all_gather(own).unwrap().wait().unwrap());
        compare("reduce-scatter", &|group, own| {
            let row = 1000 / group.size() as i64;
            let rows = own.narrow(0, 0, row * group.size() as i64).view([group.size() as i64, row, 37]);
            group.reduce_scatter(&rows).unwrap().wait().unwrap()
        });
        compare("broadcast", &|group, own| group.broadcast(own, 1).unwrap().wait().unwrap());
        compare("reduce", &|group, own| group.reduce(own, 1).unwrap().wait().unwrap());
        compare("send", &|group, own| {
            let first = |group: &dyn Communicator| group.send(own, other).unwrap().wait().unwrap();
            let second = |group: &dyn Communicator| group.receive(&own.size(), kind, other).unwrap().wait().unwrap();
            let sent = (me < other).then(|| first(group));
            let received = second(group);
            drop(sent.unwrap_or_else(|| first(group)));
            received
        });
        for table in tables(group.size()) {
            let received: Vec<usize> = table.iter().map(|row| row[me]).collect();
            compare("all-to-all", &|group, own| group.all_to_all(own, &table[me], &received).unwrap().wait().unwrap());
        }
    }
}

/// Worlds one after the other in the same processes, each with a group beside that of all: every collective gives the bits that the CPUs'
/// backend gives, and on GPUs the communicators are those of the first world until one fails.
fn worlds_keep_communicators(on: On) {
    let kept = nothing_kept(2);
    let world = |fails: bool| -> Vec<u64> {
        ranks_keeping(on, PATIENCE, &kept, |world, reference, device| {
            preflight(&*world, device).unwrap();
            let group = world.split("rows", &[vec![0, 1]]).unwrap();
            for of in [&world, &group] {
                compare_collectives(&**of, reference, device);
            }
            world.barrier().unwrap();
            if fails {
                world.fail("on purpose");
            }
        });
        let [first, second] = [0, 1].map(|rank| kept[rank].identities());
        assert_eq!(first, second);
        first
    };
    let count = if on == On::Gpus { 2 } else { 0 };
    let first = world(false);
    assert_eq!(first.len(), count);
    for _ in 0..3 {
        assert_eq!(world(false), first);
    }
    assert!(world(true).is_empty());
    let anew = world(false);
    give_up(&kept);
    assert!(anew.len() == count && anew.iter().all(|identity| !first.contains(identity)), "{first:?}, {anew:?}");
}

/// Two groups of all ranks, and of more than two ranks halves cut both ways, with operations under way in each beside products: all are
/// right, in whatever order they are waited for.
fn groups_side_by_side_agree(on: On, size: usize) {
    let all: Vec<usize> = (0..size).collect();
    let mut named = vec![("one", vec![all.clone()]), ("other", vec![all.iter().rev().copied().collect()])];
    if size > 2 {
        let across = |first: usize| (first..size).step_by(size / 2).collect();
        named.push(("halves", all.chunks(size / 2).map(<[usize]>::to_vec).collect()));
        named.push(("across", (0..size / 2).map(across).collect()));
    }
    ranks(on, size, PATIENCE, |world, reference, device| {
        let _guard = tch::no_grad_guard();
        let groups: Vec<_> = named.iter().map(|(name, of)| world.split(name, of).unwrap()).collect();
        let references: Vec<_> = named.iter().map(|(name, of)| reference.split(name, of).unwrap()).collect();
        let me = world.rank();
        let matrix = random("matrix", &*world, &[512, 512], Kind::Float).to_device(device);
        for round in 0..20 {
            let of = |n: usize| random(&format!("{round} {n}"), &*world, &[300 + n as i64, 64], Kind::Float);
            let own: Vec<Tensor> = (0..2 * groups.len()).map(of).collect();
            let there: Vec<Tensor> = own.iter().map(|own| own.to_device(device)).collect();
            let mut pending: Vec<_> =
                there.iter().zip(groups.iter().cycle()).map(|(own, group)| group.all_reduce(own).unwrap()).collect();
            let product = matrix.matmul(&matrix);
            // The last operation reads what a product has just written.
            let late = groups[0].all_gather(&product).unwrap();
            let expected = own.iter().zip(references.iter().cycle());
            let expected: Vec<Tensor> =
                expected.map(|(own, group)| group.all_reduce(own).unwrap().wait().unwrap()).collect();
            for expected in expected.iter().rev() {
                let found = pending.pop().unwrap().wait().unwrap();
                assert!(found.to_device(Device::Cpu).equal(expected), "round {round} on rank {me}");
            }
            let gathered = late.wait().unwrap();
            assert!(gathered.get(me as i64).equal(&product), "round {round} on rank {me}");
        }
    });
}

/// Worlds one after the other, each left while its last operations may be under way: NCCL ends a group when all members do.
fn worlds_follow_each_other(on: On, size: usize) {
    let everyone = [(0..size).collect::<Vec<usize>>()];
    // Groups of many take long to make.
    for number in 0..if size > 2 { 2 } else { 8 } {
        ranks(on, size, PATIENCE, |world, _, device| {
            let groups = ["one", "other", "third"].map(|name| world.split(name, &everyone).unwrap());
            let own = Tensor::ones([1 << 16], (Kind::Float, device));
            let pending: Vec<_> = groups.iter().map(|group| group.all_reduce(&own).unwrap()).collect();
            // One rank is late.
            thread::sleep(Duration::from_millis(7 * number * world.rank() as u64));
            // Not in the order in which the watchdog knows them.
            for (sum, _left) in pending.into_iter().zip(groups).rev() {
                assert_eq!(to_host::<f32>(&sum.wait().unwrap()).unwrap()[0], size as f32);
            }
        });
    }
}

/// A rank that hangs while the other waits for it is named, and soon. On GPUs, two processes show it (`scripts/gpu deaths`): one that holds
/// both ranks would have to abort one's communicators while the other's are in use.
#[test]
fn on_cpus_a_rank_that_hangs_is_named() {
    let patience = Duration::from_secs(2);
    let [told, _] = pair(On::Cpus, patience, |world, _, device| {
        let _guard = tch::no_grad_guard();
        preflight(&*world, device).unwrap();
        if world.rank() == 1 {
            thread::sleep(Duration::from_secs(9));
            return (String::new(), Duration::ZERO);
        }
        let began = Instant::now();
        let own = Tensor::ones([4], (Kind::Float, device));
        let waiting = || -> Result<(), crate::TrainError> {
            let sum = world.all_reduce(&own)?.wait()?;
            let _: Vec<f32> = to_host(&sum)?;
            let _ = world.all_reduce(&own)?.wait()?;
            Ok(())
        };
        let error = waiting().unwrap_err().to_string();
        (error, began.elapsed())
    });
    assert!(told.0.contains("rank 1 did not arrive within 2s"), "{}", told.0);
    assert!(told.1 < Duration::from_secs(8), "{:?}", told.1);
}

/// A rank that fails alone says why before it leaves its groups, which on GPUs waits for the other.
#[test]
fn a_rank_that_fails_alone_tells_the_other_why() {
    let folder = std::env::temp_dir().join(format!("moebench-pairs-{}", std::process::id()));
    // Where one rank cannot write its part of a checkpoint.
    fs::create_dir_all(folder.join("iteration-1/rank-1.safetensors")).unwrap();
    let system = &expert_only::ExpertOnly;
    let model = Model::parse("test", GPT).unwrap();
    let asked = Asked { model, system, plan: plan([1, 2, 1, 2, 1]), kind: Kind::Float, ranks: 2 };
    let began = Instant::now();
    let told = asked.with_setup(Some(folder.clone()), |setup| {
        pair(On::Cpus, PATIENCE, |world, _, device| {
            let mut sink = |_: usize, _: Vec<Report>| ();
            let sink: Mutex<&mut world::Sink> = Mutex::new(&mut sink);
            let place = Place { device, alone: true, timer: Timer::new(world.rank(), None).on(device) };
            world::train(setup, &*world, place, &sink, &|_: &Rank| ()).unwrap_err().to_string()
        })
    });
    let waited = began.elapsed();
    assert!(told.iter().all(|told| told.contains("iteration-1/rank-1.safetensors")), "{told:?}");
    assert!(waited < PATIENCE / 2, "{waited:?}");
    fs::remove_dir_all(folder).unwrap();
}

#[derive(Debug)]
struct Trained {
    losses: Vec<f64>,
    weights: BTreeMap<String, Vec<f32>>,
    moved: u64,
    /// Whether experts had copies, for good or for a micro-batch.
    copied: bool,
}

/// A training run of a few iterations.
struct Asked {
    model: Model,
    system: &'static dyn System,
    plan: Plan,
    kind: Kind,
    /// How many ranks there are in what it is compared with.
    ranks: usize,
}

/// A GPT whose widths the kernels of a GPU take.
const GPT: &str = r#"
name = "pair"
source = "tests"
[gpt]
layers = 4
hidden = 64
heads = 4
seq_len = 16
vocabulary = 64
expert_ratio = 2
experts = 8
moe_every = 2
top_k = 2
"#;

/// `pp, dp, tp, ep, expert_dp`.
type Degrees = [usize; 5];

/// Those of a number of ranks.
type OfRanks = fn(usize) -> Degrees;

/// Micro-batches of two samples.
fn plan([pp, dp, tp, ep, expert_dp]: Degrees) -> Plan {
    Plan { pp, dp, tp, ep, expert_dp, micro_batch: 2, placement_every: 1, ..Plan::default() }
}

type Weights = Vec<(String, Tensor, Option<Cut>)>;

impl Asked {
    /// Describes the run to `then`; with checkpoints after every iteration where they have a folder.
    fn with_setup<T>(&self, checkpoints: Option<PathBuf>, then: impl FnOnce(&Setup) -> T) -> T {
        let (plan, batch) = (self.plan, 8.max(2 * self.ranks));
        let mut cluster = Cluster::named("test", "inky").unwrap();
        // Slow products: FasterMoE shadows as soon as one expert has more than the others.
        cluster.gpu.gemm_rate.value = 1e9;
        let job =
            Job::new(self.model.clone(), cluster, plan.pp * plan.dp * plan.tp, Gate::NoDrop, batch).with_micro_batch(2);
        let costs = CostModel::new(&job.cluster, job.gpus);
        let gpt = setup::gpt(&job, &plan).unwrap();
        let samples = Language::new(gpt.vocabulary, gpt.seq_len, 7).unwrap();
        let samples: &dyn Samples = &samples;
        then(&Setup {
            job: &job,
            plan,
            system: self.system,
            costs: &costs,
            // Gradients that are nothing but rounding must not become whole steps; of more samples, nor make a gate choose otherwise.
            training: Training {
                learning_rate: 1e-2,
                epsilon: if self.ranks > 2 { 1e-2 } else { 1e-4 },
                ..Training::default()
            },
            samples,
            seed: 3,
            iterations: 5,
            replay: None,
            record: None,
            record_spans: true,
            checkpoint: checkpoints.map(|folder| (folder, 1)),
            kind: self.kind,
            gpt,
        })
    }

    /// Of several ranks, each takes communicators of `kept`.
    fn train(&self, on: On, kept: &[Kept]) -> Trained {
        self.with_setup(None, |setup| Self::train_as(setup, on, kept))
    }

    fn train_as(setup: &Setup, on: On, kept: &[Kept]) -> Trained {
        let (iterations, copied) = (Mutex::new(Vec::new()), AtomicBool::new(false));
        let keep = |_: usize, reports: Vec<Report>| {
            let mut spans = reports.iter().flat_map(|report| &report.spans);
            let copies = spans.any(|span| span.activity == Activity::Op(Op::CopyWeights));
            copied.fetch_or(copies, Ordering::SeqCst);
            iterations.lock().unwrap().push(world::iteration(setup, &reports));
        };
        let last = |rank: &Rank| {
            let standing = rank.stage.layers().any(|layer| layer.placement.has_copies());
            copied.fetch_or(standing, Ordering::SeqCst);
            rank.weights()
        };
        let train = |world: Box<dyn Communicator>, device: Device| -> Weights {
            let mut sink = keep;
            let sink: Mutex<&mut world::Sink> = Mutex::new(&mut sink);
            let timer = Timer::new(world.rank(), None).on(device);
            world::train(setup, &*world, Place { device, alone: true, timer }, &sink, &last).unwrap().unwrap()
        };
        let ranks: Vec<Weights> = match setup.job.gpus {
            1 => vec![train(Box::new(threads::world(1, PATIENCE).remove(0)), on.device(0))],
            _ => ranks_keeping(on, PATIENCE, kept, |world, _, device| train(world, device)),
        };
        let iterations = iterations.into_inner().unwrap();
        Trained {
            losses: iterations.iter().filter_map(|iteration| iteration.loss).collect(),
            weights: join(ranks, setup.plan.tp),
            moved: iterations.iter().map(|iteration| iteration.moved as u64).sum(),
            copied: copied.into_inner(),
        }
    }
}

/// Whole parameters by name, from the parts of every rank. Ranks that hold the same must hold the same bits.
fn join(ranks: Vec<Weights>, tp: usize) -> BTreeMap<String, Vec<f32>> {
    let mut parts: BTreeMap<String, (Option<Cut>, BTreeMap<usize, Tensor>)> = BTreeMap::new();
    for (rank, weights) in ranks.into_iter().enumerate() {
        for (name, tensor, cut) in weights {
            let slot = if cut.is_some() { rank % tp } else { 0 };
            let (_, of_name) = parts.entry(name.clone()).or_insert((cut, BTreeMap::new()));
            if let Some(other) = of_name.insert(slot, tensor.shallow_clone()) {
                assert!(tensor.equal(&other), "{name}: ranks that hold the same differ");
            }
        }
    }
    let whole = |(cut, parts): (Option<Cut>, BTreeMap<usize, Tensor>)| {
        let Some(Cut { dim, pieces }) = cut else { return parts.into_values().next().unwrap() };
        let piece = |piece: i64| {
            let of: Vec<Tensor> = parts.values().map(|part| part.chunk(pieces, dim).remove(piece as usize)).collect();
            Tensor::cat(&of, dim)
        };
        Tensor::cat(&(0..pieces).map(piece).collect::<Vec<_>>(), dim)
    };
    parts.into_iter().map(|(name, of)| (name, Vec::try_from(whole(of).reshape([-1])).unwrap())).collect()
}

/// The largest relative distance of losses, and of a parameter's weights.
fn distances(found: &Trained, expected: &Trained) -> [f64; 2] {
    assert!(found.losses.len() == 5 && expected.losses.len() == 5, "{found:?}");
    assert!(found.weights.keys().eq(expected.weights.keys()), "{:?}", found.weights.keys());
    let losses = found.losses.iter().zip(&expected.losses).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let weights = expected.weights.iter().map(|(name, expected)| {
        let found = &found.weights[name];
        let apart = norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(a - b)));
        apart / norm(&mut expected.iter().map(|&value| f64::from(value))).max(1e-3)
    });
    [losses, weights.fold(0.0, f64::max)]
}

/// Every rank has its part of all experts.
fn experts_apart(ranks: usize) -> Degrees {
    [1, ranks, 1, ranks, 1]
}

/// Every expert is on two ranks.
fn experts_twice(ranks: usize) -> Degrees {
    [1, ranks, 1, ranks / 2, 2]
}

/// Each with its name; as in [`COPYING`], those of the same groups follow each other, which keep their communicators.
fn degrees(ranks: usize) -> Vec<(String, Degrees)> {
    let half = ranks / 2;
    let with_tensor = half.max(2);
    vec![
        (format!("tp 2, ep {with_tensor}"), [1, half, 2, with_tensor, ranks / with_tensor]),
        (format!("pp 2, ep {half}"), [2, half, 1, half, 1]),
        ("one rank again".to_owned(), [1, 1, 1, 1, 1]),
        (format!("dp {ranks} with replicas of experts"), experts_twice(ranks)),
        (format!("ep {ranks}"), experts_apart(ranks)),
    ]
}

/// Copies for good and for a micro-batch, quotas, entries split between copies, and every state in shards.
const COPYING: &[(&dyn System, OfRanks)] = &[
    (&eplb::Eplb, experts_apart),
    (&quota::ULTRAEP, experts_apart),
    (&laer::Laer, experts_apart),
    (&symi::Symi, experts_apart),
    // Its replicas are those of the plan.
    (&microep::ASYMMETRIC, experts_twice),
];

/// Every kind of model that is trained.
const ALL: [&str; 4] = ["gpt", "mixtral-micro", "deepseek-micro", "qwen3-micro"];

/// A model of the tests, of whose experts each rank has some to give away.
fn model(name: &str, ranks: usize) -> Model {
    let experts = 8.max(2 * ranks);
    match name {
        "gpt" => Model::parse("test", &GPT.replace("experts = 8", &format!("experts = {experts}"))),
        name => Model::named("test", name),
    }
    .unwrap()
}

/// Ranks under every degree, and systems that shadow and migrate, train what one rank trains; in half precision more than two with their
/// experts apart alone, for groups take long to make.
fn ranks_train_what_one_does(on: On, ranks: usize, kind: Kind, models: &[&str]) {
    let kept = nothing_kept(ranks);
    for &name in models {
        let asked = |system, plan: Plan, auxiliary: bool, kind: Kind| {
            let mut model = model(name, ranks);
            model.router.auxiliary_loss *= f64::from(u8::from(auxiliary));
            Asked { model, system, plan, kind, ranks }
        };
        let train = |system, plan, auxiliary, kind| asked(system, plan, auxiliary, kind).train(on, &kept);
        // The balance loss of a tensor-parallel rank is that of its own tokens: another loss than that of all.
        let ones = [false, true].map(|auxiliary| train(&expert_only::ExpertOnly, plan([1; 5]), auxiliary, kind));
        // Half precision alone moves one rank this far from single precision.
        let exact = (kind != Kind::Float).then(|| train(&expert_only::ExpertOnly, plan([1; 5]), true, Kind::Float));
        let most = exact.map_or([1e-4; 2], |exact| distances(&ones[1], &exact).map(|distance| 2.0 * distance));
        let compare = |what: &str, system: &'static dyn System, plan: Plan| {
            let auxiliary = plan.tp == 1;
            let found = train(system, plan, auxiliary, kind);
            let [losses, weights] = distances(&found, &ones[usize::from(auxiliary)]);
            println!(
                "{name}, {ranks} ranks, {what}, {kind:?}: losses {losses:.1e}, weights {weights:.1e} from one rank"
            );
            assert!(losses <= most[0] && weights <= most[1], "{name}, {what}: {losses:e}, {weights:e}");
            found
        };
        let taken = |degrees: Degrees| ranks == 2 || kind == Kind::Float || degrees == experts_apart(ranks);
        for (what, degrees) in degrees(ranks).into_iter().filter(|(_, degrees)| taken(*degrees)) {
            compare(&what, &expert_only::ExpertOnly, plan(degrees));
        }
        compare("FasterMoE", &fastermoe::FASTERMOE, plan(experts_apart(ranks)));
        let placed = compare("SmartMoE, migrating", &smartmoe::SMARTMOE, plan(experts_apart(ranks)));
        assert!(placed.moved > 0, "{name}: nothing migrated");
        // It copies where that pays, which here it may not.
        compare("CoBalance", &cobalance::CoBalance, plan(experts_apart(ranks)));
        for (what, degrees) in [("FSDP", experts_apart(ranks)), ("FSDP with replicas of experts", experts_twice(ranks))]
        {
            if taken(degrees) {
                compare(what, &fsdp_ep::FSDP_EP, Plan { zero: Zero::Weights, ..plan(degrees) });
            }
        }
        for (system, degrees) in COPYING.iter().filter(|(_, degrees)| taken(degrees(ranks))) {
            let found = compare(system.name(), *system, plan(degrees(ranks)));
            assert!(found.copied, "{name}, {}: no expert had a copy", system.name());
        }
    }
    give_up(&kept);
}

/// All communication of so many ranks.
fn ranks_agree_with_the_backend_of_threads(on: On, ranks: usize) {
    collectives_agree(on, ranks);
    groups_side_by_side_agree(on, ranks);
    worlds_follow_each_other(on, ranks);
}

/// Of more than two ranks, whose groups take long to make, one kind of model.
fn of_ranks(ranks: usize) -> &'static [&'static str] {
    if ranks > 2 { &ALL[..1] } else { &ALL }
}

#[test]
fn two_ranks_on_cpus_agree_with_the_backend_of_threads() {
    ranks_agree_with_the_backend_of_threads(On::Cpus, 2);
}

#[test]
fn four_ranks_on_cpus_agree_with_the_backend_of_threads() {
    ranks_agree_with_the_backend_of_threads(On::Cpus, 4);
}

#[test]
fn two_ranks_on_cpus_agree_in_world_after_world() {
    worlds_keep_communicators(On::Cpus);
}

#[test]
fn two_ranks_on_cpus_train_what_one_does() {
    ranks_train_what_one_does(On::Cpus, 2, Kind::Float, &["gpt"]);
}

#[test]
fn four_ranks_on_cpus_train_what_one_does() {
    ranks_train_what_one_does(On::Cpus, 4, Kind::Float, &["gpt"]);
}

#[test]
#[ignore = "long: eight ranks on the cores that there are"]
fn eight_ranks_on_cpus_train_what_one_does() {
    ranks_agree_with_the_backend_of_threads(On::Cpus, 8);
    ranks_train_what_one_does(On::Cpus, 8, Kind::Float, &["gpt"]);
}

#[test]
#[ignore = "needs CUDA GPUs: two, or MOEBENCH_TEST_RANKS"]
fn ranks_on_gpus_agree_with_the_backend_of_threads() {
    ranks_agree_with_the_backend_of_threads(On::Gpus, ranks_on_gpus());
}

#[test]
#[ignore = "needs two CUDA GPUs"]
fn two_ranks_on_gpus_keep_communicators_from_world_to_world() {
    worlds_keep_communicators(On::Gpus);
}

#[test]
#[ignore = "needs CUDA GPUs: two, or MOEBENCH_TEST_RANKS"]
fn ranks_on_gpus_train_what_one_does_in_single_precision() {
    ranks_train_what_one_does(On::Gpus, ranks_on_gpus(), Kind::Float, of_ranks(ranks_on_gpus()));
}

#[test]
#[ignore = "needs CUDA GPUs: two, or MOEBENCH_TEST_RANKS"]
fn ranks_on_gpus_train_what_one_does_in_half_precision() {
    ranks_train_what_one_does(On::Gpus, ranks_on_gpus(), Kind::BFloat16, of_ranks(ranks_on_gpus()));
}
