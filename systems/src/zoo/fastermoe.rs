//! FasterMoE (He et al., PPoPP'22): shadowing of popular experts, the smart schedule, and the topology-aware gate.
//!
//! *Shadowing* (section 4): when it pays, the weights of a popular expert are broadcast and every rank computes its own
//! entries of it, which then need no exchange; its gradients are reduced to the owner. *Smart schedule* (section 5):
//! exchanges are cut into steps between groups of ranks, so that experts start on the first rows while others travel.
//! *Topology gate* (section 6): limits the tokens that leave their node; this changes what is trained.
//!
//! Into groups of how many ranks exchanges are cut is chosen once for a run, by the cost model on the job's profile: each cut
//! adds start-ups, so that none at all may be fastest.

use workloads::model::Moe;
use workloads::{Bytes, BytesPerSecond, FlopsPerSecond, Seconds};

use crate::plan::search::{self, PerformanceModel};
use crate::program::split::Split;
use crate::program::{Exchange, Layout, Op, Pass, Products};
use crate::{About, Candidate, CostModel, Job, LayerProgram, Placement, Plan, Policy, RoutingCounts, System};

/// FasterMoE with its parts to switch.
pub struct FasterMoe {
    about: About,
    shadowing: Shadowing,
    schedule: Schedule,
    topology_gate: bool,
}

/// Which rates the shadowing policy believes in.
#[derive(Clone, Copy, PartialEq)]
enum Shadowing {
    Off,
    /// Those of the described cluster.
    Cluster,
    /// The public code's defaults, and its doubled charge for weights.
    Artifact,
}

/// How the smart schedule cuts exchanges.
#[derive(Clone, Copy, PartialEq)]
enum Schedule {
    /// Between the groups of ranks that are fastest on the job's profile.
    Chosen,
    /// Between groups of so many ranks; not where these do not divide the expert-parallel group.
    Groups(usize),
    /// Not at all.
    Whole,
}

/// All of FasterMoE that leaves training unchanged.
pub static FASTERMOE: FasterMoe = FasterMoe {
    about: About {
        name: "fastermoe",
        title: "FasterMoE",
        summary: "Shadowing by the cluster's rates and the smart schedule over groups of the fastest size (He et al., PPoPP'22)",
    },
    shadowing: Shadowing::Cluster,
    schedule: Schedule::Chosen,
    topology_gate: false,
};

/// With schedule groups of four ranks, whatever they take.
pub static GROUPS_OF_FOUR: FasterMoe = FasterMoe {
    about: About {
        name: "fastermoe-groups-of-4",
        title: "FasterMoE (groups of 4)",
        summary: "FasterMoE whose smart schedule always cuts exchanges between groups of 4 ranks: an ablation",
    },
    schedule: Schedule::Groups(4),
    ..FASTERMOE
};

/// As SmartMoE's authors ran it.
pub static UNPIPELINED: FasterMoe = FasterMoe {
    about: About {
        name: "fastermoe-unpipelined",
        title: "FasterMoE (unpipelined)",
        summary: "Shadowing by FasterMoE's built-in rates, exchanges not cut: what SmartMoE's artifact measured as FasterMoE",
    },
    shadowing: Shadowing::Artifact,
    schedule: Schedule::Whole,
    topology_gate: false,
};

/// The smart schedule alone.
pub static UNSHADOWED: FasterMoe = FasterMoe {
    about: About {
        name: "fastermoe-unshadowed",
        title: "FasterMoE (schedule only)",
        summary: "FasterMoE's smart schedule without shadowing: an ablation",
    },
    shadowing: Shadowing::Off,
    ..FASTERMOE
};

/// With the gate that keeps tokens on their node.
pub static TOPOLOGY_GATE: FasterMoe = FasterMoe {
    about: About {
        name: "fastermoe-topology",
        title: "FasterMoE (topology gate)",
        summary: "FasterMoE with its topology-aware gate, which changes what is trained",
    },
    topology_gate: true,
    ..FASTERMOE
};

impl System for FasterMoe {
    fn about(&self) -> About {
        self.about
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        search::expert_parallel(self, job, costs)
    }

    fn policy(&self, job: &Job, plan: &Plan) -> Box<dyn Policy> {
        Box::new(FasterPolicy::new(self, job, plan))
    }
}

/// Share of a rank's tokens whose first choice may leave the node under the topology gate (FasterMoE's public code).
const TOPOLOGY_SHARE: f64 = 0.14;

/// What shadowing an expert is charged, in bytes for every weight of its matrices: the paper's `16 a H^2` for two of `a H^2`.
const SHADOW_CHARGE: f64 = 8.0;

/// What FasterMoE's public code charges instead, and so SmartMoE's artifact: `32 a H^2`.
const ARTIFACT_SHADOW_CHARGE: f64 = 16.0;

/// Defaults of FasterMoE's public code where no rates are configured, as in SmartMoE's artifact.
const ARTIFACT_RATES: Rates = Rates { products: FlopsPerSecond(11.5e12), network: BytesPerSecond(6.25e9) };

struct FasterPolicy {
    /// `[moe layer]`, unless nothing is shadowed.
    shadowing: Option<Vec<ShadowCosts>>,
    /// Ranks per schedule group; none where exchanges are not cut.
    schedule_group: Option<usize>,
    topology_gate: bool,
    top_k: usize,
}

/// Rates that the shadowing policy believes in.
#[derive(Clone, Copy, Debug)]
struct Rates {
    products: FlopsPerSecond,
    network: BytesPerSecond,
}

impl Rates {
    /// Those of a job's cluster: one GPU's part of the slowest links that its expert-parallel group uses.
    fn of(job: &Job, plan: &Plan, costs: &CostModel) -> Self {
        let group = costs.group(plan.expert_group(0, 0), 1);
        Self { products: FlopsPerSecond(job.cluster.gpu.gemm_rate.value), network: costs.rank_bandwidth(&group) }
    }
}

/// What FasterMoE's model charges: seconds per entry computed, per entry received, per expert shadowed.
#[derive(Clone, Copy, Debug)]
struct ShadowCosts {
    compute: f64,
    exchange: f64,
    weights: f64,
}

impl ShadowCosts {
    /// `charge`: bytes for every weight of a shadowed expert's matrices.
    fn new(moe: &Moe, rates: Rates, charge: f64) -> Self {
        let matrices = if moe.expert.gated { 3 } else { 2 };
        let weights = (matrices * moe.width * moe.expert.inner) as f64;
        Self {
            // Forward, and twice that backward.
            compute: (moe.entry_flops() * 3.0 / rates.products).0,
            // Dispatch and combine, forward and backward.
            exchange: (moe.entry_bytes() * 4.0 / rates.network).0,
            weights: (Bytes(charge * weights) / rates.network).0,
        }
    }
}

impl FasterPolicy {
    fn new(system: &FasterMoe, job: &Job, plan: &Plan) -> Self {
        let costs = CostModel::new(&job.cluster, job.gpus);
        let of_layers =
            |rates, charge| job.model.moe_layers().map(|moe| ShadowCosts::new(moe, rates, charge)).collect();
        let mut policy = Self {
            shadowing: match system.shadowing {
                Shadowing::Off => None,
                Shadowing::Cluster => Some(of_layers(Rates::of(job, plan, &costs), SHADOW_CHARGE)),
                Shadowing::Artifact => Some(of_layers(ARTIFACT_RATES, ARTIFACT_SHADOW_CHARGE)),
            },
            schedule_group: None,
            topology_gate: system.topology_gate,
            top_k: job.top_k(),
        };
        policy.schedule_group = match system.schedule {
            Schedule::Whole => None,
            Schedule::Groups(size) => Some(size).filter(|size| plan.ep.is_multiple_of(*size)),
            Schedule::Chosen => policy.fastest_group(job, plan, &costs),
        };
        policy
    }

    /// The size of schedule groups with which the profile's first iteration takes least; none where that is not to cut, or
    /// where nothing is known of the routing.
    fn fastest_group(&mut self, job: &Job, plan: &Plan, costs: &CostModel) -> Option<usize> {
        let performance = PerformanceModel { job, costs, profile: &job.profile[..job.profile.len().min(1)] };
        let placements = plan.experts_in_order(job);
        let mut fastest: (Option<usize>, Option<Seconds>) = (None, None);
        for size in std::iter::once(None).chain((2..plan.ep).filter(|size| plan.ep.is_multiple_of(*size)).map(Some)) {
            self.schedule_group = size;
            let Ok(estimate) = performance.estimate(plan, self, &placements) else { continue };
            if fastest.1.is_none_or(|least| estimate.step < least) {
                fastest = (size, Some(estimate.step));
            }
        }
        fastest.0
    }
}

impl Policy for FasterPolicy {
    fn restrict(&self, counts: &mut RoutingCounts, nodes: &[usize]) {
        if self.topology_gate {
            keep_on_node(counts, nodes, self.top_k);
        }
    }

    fn program(&self, layer: usize, counts: &RoutingCounts, placement: &Placement) -> LayerProgram {
        let (shadowed, decision) = match &self.shadowing {
            Some(costs) => shadow(counts, placement, &costs[layer]),
            None => (Vec::new(), 0),
        };
        program(self.schedule_group.map_or(1, |size| counts.ranks() / size), shadowed, decision)
    }
}

/// The prefix of experts by descending load whose shadowing makes the modelled time least, and the elementary steps that
/// the decision took.
///
/// `T = 3 (4aH^2 / F) C + 4 (2H / W) B + i (weights / W)` with `C` the entries that the fullest rank computes and `B`
/// those that the busiest rank receives from others once `i` experts are shadowed. The paper writes both for one expert
/// per rank; here they are the load of the owner, which is the same there and also holds for more.
fn shadow(counts: &RoutingCounts, placement: &Placement, costs: &ShadowCosts) -> (Vec<usize>, u64) {
    let (ranks, experts) = (counts.ranks(), counts.experts());
    if ranks == 1 {
        return (Vec::new(), 0);
    }
    let loads = counts.loads();
    let mut by_load: Vec<usize> = (0..experts).collect();
    by_load.sort_by_key(|&e| (std::cmp::Reverse(loads[e]), e));

    let mut computed = vec![0u64; ranks];
    let mut received = vec![0u64; ranks];
    for (expert, &load) in loads.iter().enumerate() {
        let owner = placement.rank_of(expert);
        computed[owner] += load;
        received[owner] += load - u64::from(counts.row(owner)[expert]);
    }
    let most = |of: &[u64]| of.iter().copied().max().unwrap_or(0) as f64;
    let time = |computed: &[u64], received: &[u64], shadowed: usize| {
        costs.compute * most(computed) + costs.exchange * most(received) + costs.weights * shadowed as f64
    };
    let without = time(&computed, &received, 0);
    let (mut best, mut prefix) = (without, 0);
    let mut scanned = 0;
    for (index, &expert) in by_load.iter().enumerate() {
        let owner = placement.rank_of(expert);
        computed[owner] -= loads[expert];
        received[owner] -= loads[expert] - u64::from(counts.row(owner)[expert]);
        for (rank, sum) in computed.iter_mut().enumerate() {
            *sum += u64::from(counts.row(rank)[expert]);
        }
        let now = time(&computed, &received, index + 1);
        scanned = index + 1;
        if now >= without {
            break;
        }
        if now < best {
            (best, prefix) = (now, index + 1);
        }
    }
    by_load.truncate(prefix);
    let sorting = experts as u64 * u64::from(experts.ilog2().max(1));
    (by_load, sorting + (scanned * ranks) as u64)
}

/// The smart schedule. Communication stream, forward: dispatches, broadcasts, combines; compute stream: each step's experts,
/// then the shadows. Backward: dispatches, gradient reductions, combines; shadows come first there, so that their
/// reductions can start. The host waits as often as in expert parallelism alone, which this is when nothing is cut or
/// shadowed: for the first rows before their experts, and for the last that come back.
fn program(steps: usize, shadowed: Vec<usize>, decision: u64) -> LayerProgram {
    let mut forward = Pass::default();
    let gate = forward.start(Op::Gate);
    let counts = forward.then(Op::Counts, gate);
    let ready = match decision {
        0 => counts,
        steps => forward.then(Op::Decide { steps }, counts),
    };
    let permuted = forward.then(Op::Permute, ready);
    let dispatched: Vec<usize> = (0..steps).map(|step| forward.then(Op::Dispatch { step }, permuted)).collect();
    let broadcast: Vec<usize> = shadowed.iter().map(|&expert| forward.then(Op::Broadcast { expert }, ready)).collect();
    let last = experts_and_back(&mut forward, &dispatched);
    for (&expert, &there) in shadowed.iter().zip(&broadcast) {
        forward.then(Op::Shadow { expert }, there);
    }
    forward.then(Op::Sync, last);

    let mut backward = Pass::default();
    let dispatched: Vec<usize> = (0..steps).map(|step| backward.start(Op::Dispatch { step })).collect();
    for &expert in &shadowed {
        let shadow = backward.start(Op::Shadow { expert });
        backward.then(Op::ReduceGrad { expert }, shadow);
    }
    let last = experts_and_back(&mut backward, &dispatched);
    let back = backward.then(Op::Sync, last);
    backward.then(Op::Gate, back);
    LayerProgram {
        steps,
        shadowed,
        copies: Vec::new(),
        split: Split::Even,
        layout: Layout::Ragged,
        exchange: Exchange::PerExpert,
        products: Products::PerExpert,
        forward: forward.finish(),
        backward: backward.finish(),
    }
}

/// Each step's experts after its dispatch, each combine after its experts; returns the last combine.
fn experts_and_back(pass: &mut Pass, dispatched: &[usize]) -> usize {
    pass.then(Op::Sync, dispatched[0]);
    let computed: Vec<usize> =
        dispatched.iter().enumerate().map(|(step, &there)| pass.then(Op::Experts { step }, there)).collect();
    let combined = computed.iter().enumerate().map(|(step, &done)| pass.then(Op::Combine { step }, done));
    combined.last().expect("an exchange has a step")
}

/// The topology gate on counts: of the first choices that leave the node (a `top_k`-th of the entries that do), at most
/// [`TOPOLOGY_SHARE`] of the rank's tokens stay away; the others choose among the node's experts, in proportion to what
/// these already have.
fn keep_on_node(counts: &mut RoutingCounts, nodes: &[usize], top_k: usize) {
    let ranks = counts.ranks();
    let experts = counts.experts();
    let node_of = |expert: usize| nodes[expert * ranks / experts];
    for (rank, &here) in nodes.iter().enumerate() {
        let row = counts.row_mut(rank);
        let total: u64 = row.iter().map(|&c| u64::from(c)).sum();
        let away: u64 = (0..experts).filter(|&e| node_of(e) != here).map(|e| u64::from(row[e])).sum();
        let home = total - away;
        let limit = (TOPOLOGY_SHARE * (total / top_k as u64) as f64) as u64;
        let first_choices_away = away / top_k as u64;
        let kept = first_choices_away.saturating_sub(limit);
        if kept == 0 || home == 0 {
            continue;
        }
        // Cumulative rounding on both sides keeps the total.
        let (mut seen_away, mut seen_home) = (0, 0);
        for (expert, count) in row.iter_mut().enumerate() {
            let value = u64::from(*count);
            let (seen, whole, sign) =
                if node_of(expert) == here { (&mut seen_home, home, 1) } else { (&mut seen_away, away, -1) };
            let before = kept * *seen / whole;
            *seen += value;
            let share = (kept * *seen / whole - before) as i64;
            *count = (value as i64 + sign * share) as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use workloads::trace::BatchCounts;
    use workloads::{Cluster, Gate, Model};

    const COSTS: ShadowCosts = ShadowCosts { compute: 1.0, exchange: 1.0, weights: 10.0 };

    /// The plain reading of the policy: try every prefix, stop at the first that is no better than none.
    fn reference(counts: &RoutingCounts, placement: &Placement) -> Vec<usize> {
        let loads = counts.loads();
        let mut order: Vec<usize> = (0..counts.experts()).collect();
        order.sort_by_key(|&e| (std::cmp::Reverse(loads[e]), e));
        let time = |prefix: &[usize]| {
            let (mut c, mut b) = (0, 0);
            for rank in 0..counts.ranks() {
                let shadows: u64 = prefix.iter().map(|&e| u64::from(counts.row(rank)[e])).sum();
                let own = placement.experts_of(rank).iter().flatten().filter(|e| !prefix.contains(e));
                let here: u64 = own.clone().map(|&e| loads[e]).sum();
                let local: u64 = own.map(|&e| u64::from(counts.row(rank)[e])).sum();
                c = c.max(here + shadows);
                b = b.max(here - local);
            }
            c as f64 + b as f64 + 10.0 * prefix.len() as f64
        };
        let mut best = (time(&[]), 0);
        for i in 1..=order.len() {
            let now = time(&order[..i]);
            if now >= time(&[]) {
                break;
            }
            if now < best.0 {
                best = (now, i);
            }
        }
        order.truncate(best.1);
        order
    }

    #[test]
    fn shadows_the_best_prefix() {
        // Every rank sends 40 entries to expert 0 and 2 to each other expert.
        let ranks = 4;
        let row = |_: usize| [40, 2, 2, 2, 2, 2, 2, 2];
        let counts = RoutingCounts::new(8, (0..ranks).flat_map(row).collect());
        let placement = Placement::identity(8, ranks);
        let (shadowed, _) = shadow(&counts, &placement, &COSTS);
        assert_eq!(shadowed, [0]);
        assert_eq!(shadowed, reference(&counts, &placement));
    }

    #[test]
    fn shadowing_agrees_with_the_plain_reading() {
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let draw = state >> 24;
            if draw > 200 { draw } else { draw / 40 }
        };
        for ranks in [2, 4, 8] {
            for _ in 0..50 {
                let counts = RoutingCounts::new(8, (0..8 * ranks).map(|_| next()).collect());
                let placement = Placement::identity(8, ranks);
                assert_eq!(shadow(&counts, &placement, &COSTS).0, reference(&counts, &placement));
            }
        }
    }

    #[test]
    fn balanced_loads_are_not_shadowed() {
        let counts = RoutingCounts::new(4, vec![8; 16]);
        let placement = Placement::identity(4, 4);
        assert!(shadow(&counts, &placement, &COSTS).0.is_empty());
    }

    /// A job of one layer on two nodes of four ranks, whose exchanges start up in that time.
    fn job(start: f64, experts: u32) -> (Job, Plan) {
        let mut cluster = Cluster::named("test", "pinky").unwrap();
        cluster.network.call_start.value = start;
        cluster.network.peer_start.value = 0.0;
        let moe = Moe::plain(4096, 1024, 2048, experts as usize);
        let counts = vec![4096 / experts; (8 * experts) as usize];
        let job = Job::new(Model::of_layer(moe, 1), cluster, 8, Gate::NoDrop, 8).with_profile(vec![BatchCounts::new(
            1,
            8,
            experts as usize,
            counts,
        )]);
        (job, Plan { dp: 8, ep: 8, ..Plan::default() })
    }

    #[test]
    fn groups_are_as_large_as_is_fastest() {
        let chosen = |start, experts| {
            let (job, plan) = job(start, experts);
            let costs = CostModel::new(&job.cluster, job.gpus);
            let time = |schedule| {
                let system = FasterMoe { schedule, ..UNSHADOWED };
                let policy = FasterPolicy::new(&system, &job, &plan);
                let performance = PerformanceModel { job: &job, costs: &costs, profile: &job.profile };
                performance.estimate(&plan, &policy, &plan.experts_in_order(&job)).unwrap().step
            };
            let all = [Schedule::Whole, Schedule::Groups(2), Schedule::Groups(4)].map(time);
            assert_eq!(time(Schedule::Chosen), all.into_iter().reduce(Seconds::min).unwrap());
            FasterPolicy::new(&UNSHADOWED, &job, &plan).schedule_group
        };
        // Cuts cost nothing but start-ups.
        assert!(chosen(0.0, 8).is_some());
        assert_eq!(chosen(1.0, 8), None);
    }

    #[test]
    fn shadowing_believes_in_the_links_of_its_group() {
        let (mut job, _) = job(0.0, 8);
        let plan = |dp, ep| Plan { pp: 8 / dp, dp, ep, expert_dp: dp / ep, ..Plan::default() };
        let network = |job: &Job, plan| Rates::of(job, &plan, &CostModel::new(&job.cluster, job.gpus)).network.0;
        let constants = job.cluster.network.clone();
        // Groups of four are a node each, however many nodes the job has.
        assert_eq!(network(&job, plan(8, 4)), constants.intra_bandwidth.value);
        assert_eq!(network(&job, plan(8, 8)), constants.inter_bandwidth.value / 4.0);
        job.cluster.network.port_bandwidth.value = 1.0;
        assert_eq!(network(&job, plan(8, 8)), 1.0);
    }

    #[test]
    fn topology_gate_keeps_the_total_and_the_limit() {
        let mut counts = RoutingCounts::new(4, vec![10, 10, 40, 40, 40, 40, 10, 10]);
        keep_on_node(&mut counts, &[0, 1], 2);
        // 50 tokens: at most 7 first choices leave; 40 did, so 33 entries come home.
        assert_eq!(counts.row(0).iter().sum::<u32>(), 100);
        assert_eq!(counts.row(0)[2] + counts.row(0)[3], 80 - 33);
    }
}
