//! An iteration in outline: a formula in place of a pipeline that is followed pass by pass, for searches among many plans.
//!
//! One micro-batch in one expert-parallel group stands for all, and a few MoE layers for the others. A stage `s` whose passes
//! take `t_s` in sum is busy for `m t_s` with `m` micro-batches, and waits `(sum of the others' t) / vp` for the pipeline to fill
//! and to drain (Narayanan et al., SC'21, section 2.2); the slowest stage decides. Left out: what uneven micro-batches make
//! stages wait for each other, so that real iterations take longer, and overlap.

use std::cell::RefCell;
use std::collections::HashMap;

use workloads::Seconds;
use workloads::model::Recompute;
use workloads::trace::BatchCounts;

use crate::iteration::dense::Dense;
use crate::iteration::state::StateTraffic;
use crate::iteration::{Charge, Coverage, Evaluation};
use crate::plan::job::Job;
use crate::plan::memory::StageParameters;
use crate::plan::placement::Placement;
use crate::price::cost::CostModel;
use crate::price::hosts::Hosts;
use crate::price::ledger::Ledger;
use crate::price::streams::{Links, Streams};
use crate::price::{Scratch, Setting};
use crate::program::Direction;
use crate::program::routing::RoutingCounts;
use crate::{Plain, Plan, Policy, Zero};

const DIRECTIONS: [Direction; 2] = [Direction::Forward, Direction::Backward];

/// MoE layers that stand for all of them, evenly spread. Not sourced: of equal layers, routing alone differs.
const LAYERS: usize = 4;

/// Outlines of one job; what plans share is priced once.
pub struct Outline<'a> {
    job: &'a Job,
    costs: &'a CostModel,
    /// What the gate chooses, one element an iteration.
    profile: &'a [BatchCounts],
    /// `[direction]` of an MoE layer, by `ep`, `tp` and micro-batch.
    layers: RefCell<HashMap<[usize; 3], [Seconds; 2]>>,
    /// By everything but micro-batch and recomputation.
    state: RefCell<HashMap<Plan, State>>,
}

/// Time for model state.
#[derive(Clone, Copy)]
struct State {
    /// `[direction]`: with every pass of a micro-batch through a stage.
    of_passes: [Seconds; 2],
    /// Once an iteration, with the optimizer and the host.
    once: Seconds,
}

impl<'a> Outline<'a> {
    /// Under plain expert parallelism and a profile of the routing.
    pub fn new(job: &'a Job, costs: &'a CostModel, profile: &'a [BatchCounts]) -> Self {
        Self { job, costs, profile, layers: RefCell::default(), state: RefCell::default() }
    }

    /// About what an iteration takes under a plan that fits the job. `placements`: `[moe layer]`, asked for where needed.
    pub fn step(&self, plan: &Plan, placements: impl Fn() -> Vec<Placement>) -> Seconds {
        let &Self { job, costs, .. } = self;
        let moe = self.layer(plan, placements);
        let state = self.state(plan);
        let dense = Dense::new(job, plan, costs, 0);
        let mut stages = vec![Seconds::ZERO; plan.pp];
        for chunk in 0..plan.chunks() {
            stages[chunk % plan.pp] += self.chunk(plan, chunk, &dense, moe);
        }
        let sum: Seconds = stages.iter().copied().sum();
        let of_state: Seconds = state.of_passes.into_iter().sum();
        let micro_batches = plan.micro_batches(job) as f64;
        let of_stage = |&busy: &Seconds| {
            // Transfers beside passes show where they take longer than the passes do.
            let busy_or_sharding = busy.max(of_state);
            busy_or_sharding * micro_batches + (sum - busy) / plan.vp as f64
        };
        stages.iter().map(of_stage).fold(Seconds::ZERO, Seconds::max) + state.once
    }

    /// Both passes of a micro-batch through a chunk.
    fn chunk(&self, plan: &Plan, chunk: usize, dense: &Dense, moe: [Seconds; 2]) -> Seconds {
        let &Self { job, costs, .. } = self;
        let blocks = plan.chunk_blocks(job, chunk);
        let ends = [blocks.start == 0, blocks.end == job.model.blocks.len()];
        let mut time = Seconds::ZERO;
        for block in &job.model.blocks[blocks] {
            let pass = |direction| {
                let layer = block.moe().map_or(Seconds::ZERO, |_| moe[direction as usize]);
                dense.block(block, direction).into_iter().sum::<Seconds>() + dense.collectives(block, direction) + layer
            };
            time += DIRECTIONS.map(pass).into_iter().sum();
            time += match plan.recompute {
                Recompute::None => Seconds::ZERO,
                Recompute::Selective => dense.again(block, plan.recompute),
                Recompute::Full => pass(Direction::Forward),
            };
        }
        for direction in DIRECTIONS {
            time += dense.edges(ends, direction) + dense.edge_collectives(ends, direction);
        }
        if plan.chunks() > 1 {
            let bytes = job.model.blocks[0].boundary_bytes() * (plan.micro_batch as f64 / plan.tp as f64);
            time += costs.send(0, plan.stage_ranks(), bytes) * 2.0;
        }
        time
    }

    /// `[direction]`: an MoE layer in one micro-batch, mean over some layers and the profile's iterations.
    fn layer(&self, plan: &Plan, placements: impl Fn() -> Vec<Placement>) -> [Seconds; 2] {
        let key = [plan.ep, plan.tp, plan.micro_batch];
        if let Some(&known) = self.layers.borrow().get(&key) {
            return known;
        }
        let &Self { job, costs, profile, .. } = self;
        let placements = placements();
        let moes: Vec<_> = job.model.moe_layers().enumerate().collect();
        let step = moes.len().div_ceil(LAYERS).max(1);
        let place = costs.group(0..plan.ep, 1);
        let (mut counts, mut scratch, mut streams) =
            (RoutingCounts::new(1, Vec::new()), Scratch::default(), Streams::default());
        let (mut sum, mut priced) = ([Seconds::ZERO; 2], 0);
        for batch in profile {
            let charges = vec![Charge::default(); plan.pp];
            let (policy, coverage): (&dyn Policy, _) = (&Plain, Coverage::Sample);
            let evaluation =
                Evaluation { job, plan, costs, policy, placements: &placements, batch, charges: &charges, coverage };
            for &(layer, moe) in moes.iter().step_by(step) {
                evaluation.count([0, 0], layer, moe, place.nodes(), &mut counts);
                let program = policy.program(layer, &counts, &placements[layer]);
                let setting = Setting { moe, tokens: plan.tokens(moe), place: &place, costs };
                let price = setting.price_in(&mut scratch, &program, &counts, &placements[layer]);
                for direction in DIRECTIONS {
                    let mut clock = vec![Seconds::ZERO; plan.ep];
                    let (pass, hosts) = (price.pass(&program, direction), &mut Hosts::default());
                    let (links, ledger) = (&mut Links::default(), &mut Ledger::default());
                    streams.run(&pass, &mut clock, hosts, links, ledger, |_, _, _| ());
                    sum[direction as usize] += clock.into_iter().fold(Seconds::ZERO, Seconds::max);
                }
                scratch.reuse(price);
                priced += 1;
            }
        }
        let mean = sum.map(|time| time / f64::from(priced.max(1)));
        self.layers.borrow_mut().insert(key, mean);
        mean
    }

    /// Of the first stage, which stands for all.
    fn state(&self, plan: &Plan) -> State {
        let key = Plan { micro_batch: 1, recompute: Recompute::None, ..*plan };
        if let Some(&known) = self.state.borrow().get(&key) {
            return known;
        }
        let &Self { job, costs, .. } = self;
        let parameters = StageParameters::new(job, plan, 0);
        let traffic = StateTraffic { costs, plan, ranks: 0..plan.stage_ranks(), parameters };
        let all = |times: &mut dyn Iterator<Item = Seconds>| times.sum::<Seconds>();
        let mut once = costs.optimizer(parameters.updated(plan).total()) + costs.iteration();
        if plan.zero < Zero::Gradients {
            once += all(&mut traffic.reductions().map(|(_, time)| time));
        }
        if matches!(plan.zero, Zero::Optimizer | Zero::Gradients) {
            once += all(&mut traffic.gathers().map(|(_, time)| time));
        }
        let state = State { of_passes: DIRECTIONS.map(|direction| traffic.of_pass(direction)), once };
        self.state.borrow_mut().insert(key, state);
        state
    }
}
