//! One training iteration, evaluated: a 1F1B pipeline of micro-batches over stages, then gradient synchronisation, then
//! the optimizer. The simulator runs it on every iteration; an offline search runs it on a sample of one.
//!
//! Expert-parallel groups do not talk to each other before the gradients do, so each group's pipeline (a *lane*: the
//! group with the same number on every stage) is run on its own, in `lane.rs`. Every rank has a clock; a collective starts
//! when the last participant has arrived. Where a tensor-parallel group spans several expert-parallel groups (`ep < tp`), its
//! collectives take their time on each, and nobody waits for the others. What the evaluator leaves out: jitter.

pub mod copies;
mod dense;
mod exchanged;
#[cfg(test)]
mod host_tests;
mod lane;
pub mod moved;
pub mod online;
pub mod outline;
#[cfg(test)]
mod plan_tests;
pub mod run;
pub mod schedule;
pub mod state;
pub mod timeline;

use std::ops::Range;

use workloads::gate::RouterBias;
use workloads::trace::BatchCounts;
use workloads::{Bytes, Seconds};

use crate::iteration::copies::Copies;
use crate::iteration::lane::{Lane, StageResult, Workspace};
use crate::iteration::state::{StateTraffic, exposed};
use crate::iteration::timeline::{Activity, Gradients, Recorder, Span, Watch};
use crate::plan::job::{Job, Scope};
use crate::plan::memory::StageParameters;
use crate::plan::placement::Placement;
use crate::plan::slots::{SlotState, layers_of};
use crate::price::Moved;
use crate::price::cost::CostModel;
use crate::price::ledger::{Ledger, Phase};
use crate::price::network::Group;
use crate::program::Direction;
use crate::{Plan, Policy, Storage, Zero};

/// How much of an iteration is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// Every lane and micro-batch.
    Full,
    /// A few lanes and enough micro-batches to fill the pipeline; the rest of each lane is extrapolated at the pace of its
    /// slowest stage. For offline searches.
    Sample,
}

/// Ranks of a stage that a sample looks at: several lanes where lanes are small, which differ most and cost least, one
/// where they are large.
const SAMPLED_RANKS: usize = 16;

/// Micro-batches of a sample beyond one for each stage, where stages are not interleaved: with the pipeline full, a few more show its pace. Not sourced: the more,
/// the closer a sample comes to the whole iteration and the longer a search takes.
const STEADY_MICRO_BATCHES: usize = 3;

/// Time charged to a stage before its first micro-batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Charge {
    /// Gathering the loads that online decisions look at.
    pub gathering: Seconds,
    /// Online decisions.
    pub decision: Seconds,
    /// Experts changing ranks.
    pub migration: Seconds,
}

/// Everything that one iteration depends on.
pub struct Evaluation<'a> {
    /// What is trained.
    pub job: &'a Job,
    /// Under which plan.
    pub plan: &'a Plan,
    /// At which prices.
    pub costs: &'a CostModel,
    /// With which programs.
    pub policy: &'a dyn Policy,
    /// `[moe layer]`.
    pub placements: &'a [Placement],
    /// What the gate chooses in this iteration, a chunk per sample of the global batch.
    pub batch: &'a BatchCounts,
    /// `[stage]`.
    pub charges: &'a [Charge],
    /// How much of it.
    pub coverage: Coverage,
}

/// A run at its start.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    /// The plan as it is evaluated.
    pub plan: Plan,
    /// `[moe layer]`.
    pub placements: Vec<Placement>,
}

impl Start {
    /// Of a job under a plan and a policy.
    pub fn new(job: &Job, plan: &Plan, policy: &dyn Policy) -> Self {
        let plan = plan.evaluated(policy);
        let layers = job.model.moe_layers().enumerate();
        let placements = layers.map(|(layer, moe)| policy.first_placement(layer, moe, plan.ep)).collect();
        Self { plan, placements }
    }
}

/// What an iteration may take and hold to be of interest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// Duration of the iteration.
    pub step: Seconds,
    /// On the fullest rank.
    pub bytes: Bytes,
}

/// The part of a [`Limit`] that an iteration is sure to exceed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Exceeded {
    /// It takes so long at least.
    Step(Seconds),
    /// Its fullest rank holds so much at least.
    Memory(Peak),
}

impl Limit {
    /// Everything is of interest.
    pub const NONE: Self = Self { step: Seconds(f64::INFINITY), bytes: Bytes(f64::INFINITY) };

    /// By a lane as far as it has run: clocks, busy time and memory only grow. Each stage is followed by its tail, `rest`
    /// micro-batches are not evaluated.
    fn exceeded_by(self, lane: &Lane, tails: &[Seconds], rest: usize) -> Option<Exceeded> {
        if self == Self::NONE {
            return None;
        }
        let held = lane.held();
        if held.bytes > self.bytes {
            return Some(Exceeded::Memory(held));
        }
        let ends =
            lane.stages().zip(tails).flat_map(|(stage, &tail)| stage.clock.iter().map(move |&clock| clock + tail));
        let step = ends.fold(Seconds::ZERO, Seconds::max) + lane.pace() * rest as f64;
        // The sums of a lane that has ended are taken in another order.
        (step > self.step * (1.0 + 1e-9)).then_some(Exceeded::Step(step))
    }
}

/// The fullest rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Peak {
    /// Global rank.
    pub rank: usize,
    /// Its peak.
    pub bytes: Bytes,
}

/// What an iteration took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timing {
    /// From its start to the end of the slowest rank.
    pub step: Seconds,
    /// `[stage]`: time per phase, mean over the stage's ranks.
    pub phases: Vec<Ledger>,
    /// Memory of the fullest rank.
    pub peak: Peak,
    /// `[global rank]`: its peak, 0 where it was not evaluated; empty where memory is not followed.
    pub memory: Vec<Bytes>,
    /// Entries that the gate let through.
    pub entries: u64,
    /// Choices that became no entry.
    pub dropped: u64,
    /// Copies of experts made for one micro-batch, shadowed experts included, summed over layers, micro-batches and groups.
    pub copied: u64,
    /// `[stage]`: weights and gradients of shadowed, copied and restored experts in the passes evaluated: what all ranks send, and what that
    /// takes one of them, mean over groups.
    pub moved: Vec<Moved>,
    /// Rows that the fullest rank of a group computes over the mean of its ranks: mean over MoE layers, micro-batches and groups; 0 without any.
    pub max_over_mean: f64,
    /// `[moe layer][expert]` entries, for the history of loads.
    pub loads: Vec<Vec<u64>>,
}

impl Timing {
    /// The stage that waits least for others.
    pub fn slowest_stage(&self) -> Ledger {
        let bubble = |ledger: &&Ledger| ledger.of(Phase::Bubble).0;
        *self.phases.iter().min_by(|a, b| bubble(a).total_cmp(&bubble(b))).expect("a plan has a stage")
    }
}

impl Evaluation<'_> {
    /// Evaluates the iteration.
    pub fn run(&self) -> Timing {
        self.evaluate(&mut Recorder::new(Watch::Nobody))
    }

    /// Evaluates the iteration as long as it may stay within a limit.
    ///
    /// # Errors
    /// Which part of the limit it is sure to exceed, as soon as that is sure.
    pub fn run_within(&self, limit: Limit) -> Result<Timing, Exceeded> {
        self.evaluate_within(limit, &mut Recorder::new(Watch::Nobody))
    }

    /// Evaluates the iteration and says what every rank does when; of a sample, what is evaluated of it.
    pub fn observe(&self) -> (Timing, Vec<Span>) {
        let mut recorder = Recorder::new(Watch::Everybody);
        let timing = self.evaluate(&mut recorder);
        (timing, recorder.into_spans())
    }

    fn evaluate(&self, recorder: &mut Recorder) -> Timing {
        self.evaluate_within(Limit::NONE, recorder).expect("nothing exceeds no limit")
    }

    fn evaluate_within(&self, limit: Limit, recorder: &mut Recorder) -> Result<Timing, Exceeded> {
        let tails = if limit == Limit::NONE { Vec::new() } else { self.tails() };
        let all = self.plan.micro_batches(self.job);
        let (groups, micro_batches) = self.sampled(all);
        let lanes = groups.len();
        let mut stages = vec![StageSum::default(); self.plan.pp];
        let mut peak = Peak::default();
        let mut memory = match self.job.scope {
            Scope::Iteration => vec![Bytes::ZERO; self.plan.pp * self.plan.stage_ranks()],
            Scope::Layer => Vec::new(),
        };
        let mut workspace = Workspace::new(self.job);
        let mut replicas = Vec::new();
        for group in groups {
            let mut lane = Lane::new(self, group, micro_batches, recorder.watch());
            let exceeded = |lane: &Lane| limit.exceeded_by(lane, &tails, all - micro_batches);
            if !lane.run(&mut workspace, |lane| exceeded(lane).is_some()) {
                return Err(exceeded(&lane).expect("that is why it did not end"));
            }
            let rest = lane.pace() * (all - micro_batches) as f64;
            for (sum, stage) in stages.iter_mut().zip(lane.stages()) {
                sum.add(&stage, lanes, rest);
                if self.plan.pp == 1 {
                    replicas.push(Replica::new(&stage));
                }
            }
            if self.job.scope == Scope::Iteration {
                lane.raise(|rank, bytes| memory[rank] = bytes, &mut peak);
            }
            lane.into_recorders().for_each(|of_stage| recorder.append(of_stage));
        }
        if let [stage] = stages.as_mut_slice() {
            stage.meet(&replicas, all as f64 / micro_batches as f64);
        }
        // To the mean over the ranks that were evaluated, in all of their micro-batches.
        let scale = all as f64 / micro_batches as f64 / (lanes * self.plan.ep) as f64;
        let (step, phases) = self.finish(&stages, scale, recorder);
        let routed = workspace.routed;
        Ok(Timing {
            step,
            phases,
            peak,
            memory,
            entries: routed.entries,
            dropped: routed.dropped,
            copied: routed.copied,
            moved: stages.iter().map(|stage| stage.moved).collect(),
            max_over_mean: routed.fullest.0 / routed.fullest.1.max(1) as f64,
            loads: routed.loads,
        })
    }

    /// `[stage]`: what follows its lanes at least. Nothing where that depends on what they compute.
    fn tails(&self) -> Vec<Seconds> {
        let pp = self.plan.pp;
        if self.job.scope == Scope::Layer || self.overlaps_state() {
            return vec![Seconds::ZERO; pp];
        }
        // No host of theirs has anything left to issue.
        let of_stage = StageSum { issued: Seconds(f64::NEG_INFINITY), ..StageSum::default() };
        let (stages, mut nobody) = (vec![of_stage; pp], Recorder::new(Watch::Nobody));
        (0..pp).map(|index| self.update(index, &stages, &mut Ledger::default(), &mut nobody)).collect()
    }

    /// Which lanes, and how many of `all` micro-batches, are evaluated. Of a sample, every way in which lanes lie in the network is one.
    fn sampled(&self, all: usize) -> (Vec<usize>, usize) {
        let Plan { pp, vp, ep, expert_dp: lanes, .. } = *self.plan;
        match self.coverage {
            Coverage::Full => ((0..lanes).collect(), all),
            Coverage::Sample => {
                let number = (SAMPLED_RANKS / ep).clamp(1, lanes);
                let mut sample: Vec<usize> = (0..number).map(|index| index * lanes / number).collect();
                if !self.costs.groups_lie_alike(ep) {
                    let place = |lane: usize| -> Vec<Group> {
                        (0..pp).map(|stage| self.costs.group(self.plan.expert_group(stage, lane), 1)).collect()
                    };
                    let mut seen: Vec<Vec<Group>> = sample.iter().map(|&lane| place(lane)).collect();
                    for lane in 0..lanes {
                        let place = place(lane);
                        if !seen.contains(&place) {
                            seen.push(place);
                            sample.push(lane);
                        }
                    }
                    sample.sort_unstable();
                }
                let steady = if vp == 1 { pp + STEADY_MICRO_BATCHES } else { 2 * pp };
                (sample, all.min(steady))
            }
        }
    }

    /// What follows the lanes. Returns when the slowest stage is done, and each stage's time by phase, `scale` times that of
    /// its lanes.
    fn finish(&self, stages: &[StageSum], scale: f64, recorder: &mut Recorder) -> (Seconds, Vec<Ledger>) {
        let mut step = Seconds::ZERO;
        let mut phases = Vec::with_capacity(stages.len());
        for (index, stage) in stages.iter().enumerate() {
            let mut ledger = Ledger::default();
            ledger.merge(&stage.ledger, scale);
            ledger.add(Phase::Decision, self.charges[index].gathering + self.charges[index].decision);
            ledger.add(Phase::Migration, self.charges[index].migration);
            let end = match self.job.scope {
                Scope::Iteration => self.update(index, stages, &mut ledger, recorder),
                Scope::Layer => stage.end,
            };
            step = step.max(end);
            phases.push(ledger);
        }
        // Stages that are done early wait for the others; ranks of a layer alone for its last one.
        let idle = match self.job.scope {
            Scope::Iteration => Phase::Bubble,
            Scope::Layer => Phase::Wait,
        };
        for ledger in &mut phases {
            if idle == Phase::Bubble {
                // A sample of the micro-batches has the whole bubble, which more of them do not make longer.
                ledger.add(idle, Seconds::ZERO - ledger.of(idle));
            }
            let rest = step - ledger.total();
            ledger.add(idle, rest.max(Seconds::ZERO));
        }
        (step, phases)
    }

    /// Gradient synchronisation, optimizer and host of one stage; returns when they are done.
    fn update(&self, index: usize, stages: &[StageSum], ledger: &mut Ledger, recorder: &mut Recorder) -> Seconds {
        let (costs, plan, ranks) = (self.costs, self.plan, self.stage_ranks(index));
        let traffic = self.traffic(index);
        let parameters = traffic.parameters;
        let mut spans = StageSpans { ranks, recorder };
        let synchronised = self.synchronise(&traffic, index, stages, &mut spans);
        let updates = parameters.updated(plan).total();
        // From when the stage is synchronised until the host has issued it, and until it begins if the GPU is idle.
        let issue = costs.optimizer_issue(updates);
        let [host, lead] = [issue.host, issue.lead].map(|time| stages[index].issued + time - synchronised);
        let optimizer = costs.optimizer(updates);
        let optimizer = optimizer.max(host).max(lead + optimizer);
        let host = costs.iteration() + self.images();
        let updated = spans.show(Activity::Optimizer, synchronised, optimizer);
        let mut gathers: Vec<_> = match plan.zero {
            Zero::Optimizer | Zero::Gradients => traffic.gathers().collect(),
            Zero::Off | Zero::Weights => Vec::new(),
        };
        if let Some([_, weights]) = self.copies(index).synchronisation() {
            // Sums over all that hold an expert are whole on each of them: replicas gather nothing besides.
            gathers.retain(|(of, _)| *of != Gradients::Experts);
            gathers.extend((weights > Seconds::ZERO).then_some((Gradients::Experts, weights)));
        }
        let shown = self.shown(gathers, &stages[index], Direction::Forward).into_iter();
        let gathered = shown.fold(updated, |done, (of, time)| spans.show(Activity::WeightGather(of), done, time));
        ledger.add(Phase::GradientSync, (synchronised - stages[index].end) + (gathered - updated));
        ledger.add(Phase::Optimizer, optimizer);
        ledger.add(Phase::Host, host);
        spans.show(Activity::Host, gathered, host)
    }

    /// What a stage synchronises once an iteration.
    fn traffic(&self, stage: usize) -> StateTraffic<'_> {
        let mut parameters = StageParameters::new(self.job, self.plan, stage);
        if let Some(slots) = self.slots(stage) {
            parameters.experts = slots.parameters;
        }
        StateTraffic { costs: self.costs, plan: self.plan, ranks: self.stage_ranks(stage), parameters }
    }

    /// What the experts' slots of a stage hold, unless that is an equal part of the experts on every rank.
    fn slots(&self, stage: usize) -> Option<SlotState> {
        let storage = self.policy.storage();
        let equal = storage == Storage::Slots && self.placements.iter().all(Placement::is_bijection);
        let layers = layers_of(self.job, self.plan, stage, self.placements);
        (!equal).then(|| SlotState::new(storage, self.plan, &self.job.cluster, layers))
    }

    fn copies(&self, stage: usize) -> Copies<'_> {
        let Evaluation { job, plan, costs, policy, placements, .. } = *self;
        Copies {
            plan,
            costs,
            stage,
            storage: policy.storage(),
            layers: layers_of(job, plan, stage, placements).collect(),
        }
    }

    /// The host's share of a model of images.
    fn images(&self) -> Seconds {
        let of_images = self.job.model.vocabulary.is_none() && self.job.scope == Scope::Iteration;
        if of_images { self.costs.images(self.job.global_batch as f64 / self.plan.dp as f64) } else { Seconds::ZERO }
    }

    fn stage_ranks(&self, stage: usize) -> Range<usize> {
        let first = stage * self.plan.stage_ranks();
        first..first + self.plan.stage_ranks()
    }

    fn overlaps_state(&self) -> bool {
        self.costs.overlaps_state(self.policy.overlap().state)
    }

    /// What shows of transfers that are done once an iteration, beside a pass in `direction` where they overlap.
    fn shown(
        &self,
        mut transfers: Vec<(Gradients, Seconds)>,
        stage: &StageSum,
        direction: Direction,
    ) -> Vec<(Gradients, Seconds)> {
        if self.overlaps_state() {
            let all: Seconds = transfers.iter().map(|&(_, time)| time).sum();
            let beside = exposed(all, stage.computation[direction as usize], stage.blocks);
            let part = if all > Seconds::ZERO { beside / all } else { 0.0 };
            transfers.iter_mut().for_each(|(_, time)| *time = *time * part);
        }
        transfers
    }

    /// When the gradients of a stage are synchronised, and the loads that biases for the choice move against.
    fn synchronise(
        &self,
        traffic: &StateTraffic,
        index: usize,
        stages: &[StageSum],
        spans: &mut StageSpans,
    ) -> Seconds {
        let plan = self.plan;
        let mut done = stages[index].end;
        let mut tied = Seconds::ZERO;
        if plan.zero < Zero::Gradients {
            let mut reductions: Vec<_> = traffic.reductions().collect();
            if let Some([time, _]) = self.copies(index).synchronisation() {
                let experts = reductions.iter_mut().filter(|(of, _)| *of == Gradients::Experts);
                experts.for_each(|(_, of_experts)| *of_experts = time);
            }
            for (gradients, time) in self.shown(reductions, &stages[index], Direction::Backward) {
                done = spans.show(Activity::GradientSync(gradients), done, time);
                tied = time;
            }
        } else if let Some([time, _]) = self.copies(index).synchronisation() {
            // Every micro-batch reduces gradients over the replicas of a set of experts; copies elsewhere follow once.
            let of_copies = vec![(Gradients::Experts, time)];
            for (gradients, time) in self.shown(of_copies, &stages[index], Direction::Backward) {
                done = spans.show(Activity::GradientSync(gradients), done, time);
            }
        }
        if traffic.parameters.tied > 0.0 && plan.pp > 1 {
            // The two copies of the embedding are summed between the first and the last stage.
            let both = stages[0].end.max(stages[plan.pp - 1].end) + tied;
            let span = plan.stage_ranks() * (plan.pp - 1) + 1;
            let group = self.costs.group(0..span, span - 1);
            let between = self.costs.all_reduce(&group, Bytes(traffic.parameters.tied * self.costs.gradient_bytes()));
            done = spans.show(Activity::GradientSync(Gradients::TiedStages), done.max(both), between);
        }
        if self.job.model.router.bias == RouterBias::Selection {
            let loads = online::gathering(self.job, plan, index, 1, self.costs);
            done = spans.show(Activity::SelectionLoads, done, loads);
        }
        done
    }
}

/// Spans of ranks that do the same at the same time, after their last pass.
struct StageSpans<'a> {
    ranks: Range<usize>,
    recorder: &'a mut Recorder,
}

impl StageSpans<'_> {
    /// Shows an activity and returns when it ends.
    fn show(&mut self, activity: Activity, start: Seconds, time: Seconds) -> Seconds {
        self.recorder.together(self.ranks.clone(), activity, start, time)
    }
}

/// When a lane came to each of the gathers of weights that all replicas take part in, and when it was done.
struct Replica {
    met: Vec<Seconds>,
    end: Seconds,
    ranks: usize,
}

impl Replica {
    fn new(stage: &StageResult) -> Self {
        let end = stage.clock.iter().copied().fold(Seconds::ZERO, Seconds::max);
        Self { met: stage.met.to_vec(), end, ranks: stage.clock.len() }
    }

    /// When it came to the gather after that one, or was done.
    fn after(&self, gather: usize) -> Seconds {
        self.met.get(gather + 1).copied().unwrap_or(self.end)
    }
}

/// How much later the last of several lanes is done that were evaluated apart, where a block's weights are gathered among all of them: the gather is over
/// once all have asked for it, at the beginning of the block before, and the exchanges of that block wait for it on the same links. So
/// all go through a block together, and the slowest decides.
fn lag(replicas: &[Replica]) -> Seconds {
    let last = |times: &dyn Fn(&Replica) -> Seconds| replicas.iter().map(times).fold(Seconds::ZERO, Seconds::max);
    let gathers = replicas.iter().map(|replica| replica.met.len()).min().unwrap_or(0);
    let together = (0..gathers).map(|at| last(&|replica| replica.after(at) - replica.met[at]));
    let first = if gathers > 0 { last(&|replica| replica.met[0]) } else { last(&|replica| replica.end) };
    first + together.sum::<Seconds>() - last(&|replica| replica.end)
}

/// What the lanes of a stage add up to.
#[derive(Clone, Debug, Default)]
struct StageSum {
    ledger: Ledger,
    end: Seconds,
    /// When the last of its hosts has issued all passes.
    issued: Seconds,
    /// `[direction]`: what a rank computes in one micro-batch, mean over lanes.
    computation: [Seconds; 2],
    blocks: usize,
    moved: Moved,
}

impl StageSum {
    /// Adds one of `lanes` lanes, whose micro-batches that are not evaluated take `rest`.
    fn add(&mut self, lane: &StageResult, lanes: usize, rest: Seconds) {
        self.ledger.merge(lane.ledger, 1.0);
        self.end = lane.clock.iter().map(|&clock| clock + rest).fold(self.end, Seconds::max);
        self.issued = lane.hosts.iter().map(|&host| host + rest).fold(self.issued, Seconds::max);
        for (sum, time) in self.computation.iter_mut().zip(lane.computation) {
            *sum += time * (1.0 / lanes as f64);
        }
        self.blocks = lane.blocks;
        self.moved += Moved { time: lane.moved.time / lanes as f64, ..lane.moved };
    }

    /// Its lanes wait for each other's gathers; `scale`: an iteration's micro-batches over those that were evaluated.
    fn meet(&mut self, replicas: &[Replica], scale: f64) {
        let lag = lag(replicas);
        if lag > Seconds::ZERO {
            self.end += lag * scale;
            self.ledger.add(Phase::Wait, lag * replicas.iter().map(|replica| replica.ranks).sum::<usize>() as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Plain;
    use workloads::model::Moe;
    use workloads::{BytesPerSecond, Cluster, Gate, Model};

    /// Two lanes of two blocks, slow in turn: apart each takes 4 s, together 3 s a block.
    #[test]
    fn replicas_go_through_blocks_together() {
        let replica = |met: [f64; 2], end| Replica { met: met.map(Seconds).to_vec(), end: Seconds(end), ranks: 1 };
        assert_eq!(lag(&[replica([0.0, 3.0], 4.0), replica([0.0, 1.0], 4.0)]), Seconds(2.0));
        assert_eq!(lag(&[replica([0.0, 3.0], 4.0), replica([0.0, 3.0], 4.0)]), Seconds::ZERO);
        let alone = |end| Replica { met: Vec::new(), end: Seconds(end), ranks: 1 };
        assert_eq!(lag(&[alone(4.0), alone(5.0)]), Seconds::ZERO);
    }

    /// All prices are linear: the rows of the fullest rank, and what its port receives, decide.
    #[test]
    fn the_fullest_rank_decides_a_layer() {
        let moe = Moe::plain(64, 256, 512, 4);
        let cluster = Cluster::named("test", "nico").unwrap();
        let bandwidth = BytesPerSecond(cluster.network.intra_bandwidth.value);
        let whole = Job::new(Model::of_layer(moe, 2), cluster, 2, Gate::NoDrop, 2);
        let job = whole.layer_alone(0).unwrap();
        let costs = CostModel::new(&job.cluster, job.gpus);
        let plan = Plan { pp: 1, dp: 2, tp: 1, ep: 2, ..Plan::default() };
        let layer = |counts: [u32; 8]| {
            let timing = Evaluation {
                job: &job,
                plan: &plan,
                costs: &costs,
                policy: &Plain,
                placements: &plan.experts_in_order(&job),
                batch: &BatchCounts::new(1, 2, 4, counts.to_vec()),
                charges: &[Charge::default()],
                coverage: Coverage::Full,
            }
            .run();
            assert!((timing.phases[0].total() - timing.step).0.abs() < 1e-12);
            assert_eq!(timing.peak, Peak::default());
            timing.step
        };
        let even = layer([32, 32, 32, 32, 32, 32, 32, 32]);
        let local = layer([64, 64, 0, 0, 0, 0, 64, 64]);
        let skewed = layer([64, 64, 0, 0, 64, 64, 0, 0]);
        assert!(local < even, "what stays on its rank does not travel");
        let experts =
            |rows| costs.expert(&moe, Direction::Forward).of(rows) + costs.expert(&moe, Direction::Backward).of(rows);
        let difference = (skewed - even).0 - 2.0 * (experts(128) - experts(64)).0;
        let travel = moe.entry_bytes() / bandwidth;
        assert!((difference - travel.0 * 4.0 * 64.0).abs() < 1e-9, "{difference}");
    }
}
