//! The simulating engine for one MoE layer alone, as in the paper's studies of placement: the same policy and programs as
//! in a whole iteration, forward and backward of one micro-batch on every rank, and nothing around them.
//!
//! Online decisions and migrations are charged as in a whole run. The history is the layer's own, so a policy sees as much
//! of the past as it would in training. Memory is not followed: most of it belongs to what surrounds the layer.

use systems::iteration::Timing;
use systems::price::GroupPlace;
use systems::price::ledger::{Ledger, Phase};
use systems::{
    CostModel, Decision, Job, LoadHistory, Placement, Plan, Policy, RoutingCounts, System, iteration::layer,
};
use workloads::model::Moe;
use workloads::trace::BatchCounts;
use workloads::{Bytes, Seconds};

use systems::iteration::run::Iteration;

/// One layer under one system, before its next iteration.
pub struct LayerRun<'a> {
    job: &'a Job,
    costs: &'a CostModel,
    plan: Plan,
    policy: Box<dyn Policy>,
    /// Number of the layer among the model's MoE layers.
    layer: usize,
    moe: Moe,
    placement: Placement,
    history: LoadHistory,
    iteration: usize,
}

impl<'a> LayerRun<'a> {
    /// The layer at its start, experts in order; none where the job has no such layer. The plan has one stage and no
    /// tensor parallelism.
    pub fn new(job: &'a Job, costs: &'a CostModel, system: &dyn System, plan: Plan, layer: usize) -> Option<Self> {
        let moe = *job.model.moe_layers().nth(layer)?;
        let (policy, placement) = (system.policy(job, &plan), Placement::identity(moe.experts, plan.ep));
        Some(Self { job, costs, plan, policy, layer, moe, placement, history: LoadHistory::default(), iteration: 0 })
    }

    /// Runs the next iteration on `batch`: one layer, a chunk per rank.
    pub fn step(&mut self, batch: &BatchCounts) -> Iteration {
        let (decision, migration, moved) = self.place();
        let mut timing = Timing::default();
        let mut loads = vec![0; self.moe.experts];
        let mut slowest = (Seconds::ZERO, Ledger::default());
        for group in 0..self.plan.expert_dp {
            let (counts, time) = self.run_group(batch, group, &mut timing);
            for (sum, load) in loads.iter_mut().zip(counts.loads()) {
                *sum += load;
            }
            if time.0 > slowest.0 {
                slowest = time;
            }
        }
        self.remember(loads);
        let (time, mut ledger) = slowest;
        ledger.add(Phase::Decision, decision);
        ledger.add(Phase::Migration, migration);
        timing.step = decision + migration + time;
        timing.phases = vec![ledger];
        Iteration { timing, decision, migration, moved, failure: None, loss: None, predicted: None }
    }

    /// Asks the policy; returns what deciding and moving take, and how many experts moved.
    fn place(&mut self) -> (Seconds, Seconds, usize) {
        let now = &self.placement;
        let decided = self.policy.place(self.iteration, self.layer, &self.history, now);
        if decided == Decision::NotDue {
            return (Seconds::ZERO, Seconds::ZERO, 0);
        }
        let decision = self.costs.decision((now.experts() * now.ranks()) as u64);
        let Decision::Move(next) = decided else { return (decision, Seconds::ZERO, 0) };
        let moves = now.moves_to(&next);
        let bytes = Bytes(self.moe.expert_parameters() as f64 * self.policy.migrated_bytes_per_parameter());
        let migration = match bytes == Bytes::ZERO {
            true => Seconds::ZERO,
            false => (0..self.plan.expert_dp)
                .map(|group| self.costs.migration(group * self.plan.ep, self.plan.ep, &moves, bytes))
                .fold(Seconds::ZERO, Seconds::max),
        };
        self.placement = next;
        (decision, migration, moves.len())
    }

    /// One expert-parallel group: its entries, and its time with what that went to.
    fn run_group(&self, batch: &BatchCounts, group: usize, timing: &mut Timing) -> (RoutingCounts, (Seconds, Ledger)) {
        let ranks = self.plan.expert_group(0, group);
        let (tokens, top_k) = (self.plan.tokens(&self.moe), self.job.top_k());
        let mut counts = RoutingCounts::new(
            self.moe.experts,
            ranks.clone().flat_map(|rank| batch.chunk(0, rank)).copied().collect(),
        );
        for rank in 0..counts.ranks() {
            self.job.gate.admit(counts.row_mut(rank), tokens, top_k, &self.job.gate_statistics);
        }
        let nodes = self.job.nodes(ranks.clone());
        self.policy.restrict(&mut counts, &nodes);
        let program = self.policy.program(self.layer, &counts, &self.placement);
        let place = GroupPlace { group: self.costs.group(ranks, 1), nodes };
        let entries: u64 = counts.loads().iter().sum();
        timing.entries += entries;
        timing.dropped += ((tokens * top_k * counts.ranks()) as u64).saturating_sub(entries);
        timing.shadowed += program.shadowed.len() as u64;
        let time = layer::run(&program, &counts, &self.placement, &self.moe, tokens, &place, self.costs);
        (counts, time)
    }

    /// Adds the iteration's loads to what the policy sees. Other layers' places stay empty.
    fn remember(&mut self, loads: Vec<u64>) {
        let mut layers = vec![Vec::new(); self.layer];
        layers.push(loads);
        self.history.push(layers);
        self.iteration += 1;
    }
}

#[cfg(test)]
mod tests {
    use systems::{Placement, zoo::smartmoe};
    use workloads::suite::TraceUse;
    use workloads::trace::SynthSpec;
    use workloads::{Cluster, Gate, Model};

    use super::*;
    use crate::studies::layer::{LayerReader, LayerShape, Spot};
    use systems::plan::routing::JobRouting;

    /// Where micro-batches are the trace's own, a layer's first iteration is what the validation of single layers predicts.
    #[test]
    fn a_layer_alone_is_the_layer_that_is_validated() {
        let trace = SynthSpec { samples: 2, ..SynthSpec::default() }.generate().unwrap();
        let model = Model::named("test", "gpt-l24-h1024-e32").unwrap();
        let cluster = Cluster::named("test", "nico").unwrap();
        let (gpus, micro_batch, layer) = (16, 2, 6);
        let shape = LayerShape { hidden: 1024, seq_len: 1024 };
        let reader = LayerReader { trace: &trace, ranks: gpus, micro_batch, shape };
        let counts = reader.counts(Spot { sample: 0, layer }, 0);
        let expected = reader.time(&counts, &Placement::identity(32, gpus), &cluster);

        let job = Job::new(model, cluster, gpus, Gate::NoDrop, gpus * micro_batch).with_micro_batch(micro_batch);
        let routing = JobRouting::of_layer(&job, layer, TraceUse::default(), &trace, 0).unwrap();
        let plan = Plan { pp: 1, dp: gpus, tp: 1, ep: gpus, expert_dp: 1, micro_batch, placement_every: 1 };
        let costs = CostModel::new(&job.cluster);
        let mut run = LayerRun::new(&job, &costs, &smartmoe::SMARTMOE, plan, layer).unwrap();
        let first = run.step(&routing.iteration(0));
        assert_eq!((first.timing.step, first.moved), (expected, 0));
        // The next one has seen the first, and pays for what it moves.
        let second = run.step(&routing.iteration(0));
        assert!(second.moved > 0 && second.migration > Seconds::ZERO && second.decision > Seconds::ZERO);
        assert!(second.timing.step - second.decision - second.migration < expected);
        assert!(LayerRun::new(&job, &costs, &smartmoe::SMARTMOE, plan, 24).is_none());
    }
}
