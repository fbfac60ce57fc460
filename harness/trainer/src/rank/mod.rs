//! One rank's training.
//!
//! An iteration is: online placement and migration; a 1F1B pipeline of micro-batches; gradient synchronisation per group;
//! clipping; the optimizer. Policies see the loads of earlier iterations alone, summed over the stage.

mod groups;
mod pipeline;
pub mod report;
#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod saved_tests;
mod shares;
pub(crate) mod stage;
mod sync;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;

use systems::iteration::Start;
use systems::iteration::online::{self, Online};
use systems::iteration::timeline::{Activity, Gradients};
use systems::price::network::Group;
use systems::{Plan, Storage};
use tch::{Device, Kind, Tensor};
use workloads::Seconds;

use crate::clock::timer::Timer;
use crate::comm::Communicator;
use crate::error::TrainError;
use crate::layer::gate::{Given, LayerGate};
use crate::layer::migrate::migrate;
use crate::layer::moe::Layer;
use crate::layer::shards::Shards;
use crate::model::dense::Cut;
use crate::rank::groups::Groups;
use crate::rank::report::Report;
use crate::rank::stage::{FeedForward, Stage};
use crate::setup::{Setup, SetupError};

/// A rank between two iterations.
pub struct Rank<'a> {
    pub(crate) setup: &'a Setup<'a>,
    /// The plan as the policy makes it run.
    plan: Plan,
    pub(crate) groups: Groups,
    pub(crate) stage: Stage,
    /// The policy and the past loads that it sees.
    pub(crate) online: Online,
    /// Iterations that have run.
    pub(crate) iteration: usize,
    device: Device,
    stage_number: usize,
    /// Its number among the ranks of its stage.
    position: usize,
    /// Where the ranks of its expert-parallel group are.
    place: Group,
    /// `[iteration][layer of the stage][expert]`: its own entries in the iterations whose loads are not gathered yet.
    pub(crate) own_loads: Vec<Vec<Vec<i64>>>,
    /// Of this iteration, by MoE layer and micro-batch.
    given: BTreeMap<(usize, usize), Given>,
    timer: Timer,
    /// Under a virtual clock, when the weights of the next block are there, where they go in line with exchanges and have been asked for.
    asked: Cell<Option<Seconds>>,
}

impl<'a> Rank<'a> {
    /// At the start of training; a GPU has its kernels loaded.
    ///
    /// # Errors
    /// Copies of experts that would not stay equal; a peer that died.
    pub fn new(
        setup: &'a Setup<'a>,
        world: Box<dyn Communicator>,
        device: Device,
        timer: Timer,
    ) -> Result<Self, TrainError> {
        let policy = setup.system.policy(setup.job, &setup.plan);
        setup.plan.keeps_copies_equal(policy.as_ref()).map_err(SetupError::from)?;
        let start = Start::new(setup.job, &setup.plan, policy.as_ref());
        let plan = start.plan;
        let (stage_number, position) = (world.rank() / plan.stage_ranks(), world.rank() % plan.stage_ranks());
        let ranks = plan.expert_group(stage_number, position / plan.ep);
        Ok(Self {
            groups: Groups::new(world, &plan, policy.storage())?,
            stage: Stage::new(setup, (&start, policy.storage()), (stage_number, position), device),
            online: Online::new(policy, plan),
            plan,
            iteration: 0,
            setup,
            device,
            stage_number,
            position,
            place: setup.costs.group(ranks, 1),
            own_loads: Vec::new(),
            given: BTreeMap::new(),
            timer,
            asked: Cell::default(),
        })
    }

    /// Trains one iteration.
    ///
    /// # Errors
    /// A peer that died; a program that cannot be executed.
    pub fn step(&mut self) -> Result<Report, TrainError> {
        // What stands in for a gate's own choices is no part of an iteration.
        self.given = self.replayed_choices();
        self.groups.world.barrier()?;
        self.timer.start();
        let mut report = Report::default();
        self.place(&mut report)?;
        self.lay_weights()?;
        self.timer.begin_passes(&*self.groups.experts)?;
        let ran = self.pipeline()?;
        self.timer.end_passes(self.groups.experts.rank());
        self.reduce_gradients()?;
        self.balance_selection(&ran.stats)?;
        self.update()?;
        if let Some([_, weights]) = self.price_of_copies().filter(|[_, weights]| *weights > Seconds::ZERO) {
            self.timer.collective(Activity::WeightGather(Gradients::Experts), self.groups.stage(), weights)?;
        }
        self.complete(&ran, &mut report)?;
        self.iteration += 1;
        Ok(report)
    }

    /// Online placement, where it is due: loads are gathered, then come decisions and the migrations that follow.
    fn place(&mut self, report: &mut Report) -> Result<(), TrainError> {
        if !self.online.policy().placement_due(self.iteration) {
            return Ok(());
        }
        self.timed_gathering(report)?;
        let first = self.expert_group(self.stage_number).start;
        let bytes = self.online.policy().migrated_bytes_per_parameter();
        for block in &mut self.stage.blocks {
            let FeedForward::Moe(layer, _) = &mut block.feed_forward else { continue };
            self.timer.enter(None, Some(block.number));
            let before = self.timer.now();
            let decide = || self.online.decide(layer.number, layer.experts.moe(), &layer.placement);
            let decided = self.timer.compute(Activity::Decision, decide)?;
            report.decision += self.timer.now() - before;
            let Some(migration) = decided.migration else { continue };
            self.timer.synchronize();
            let before = self.timer.now();
            let group = self.groups.experts.as_ref();
            // Shards and parts stay where they are.
            if layer.experts.stand_in_slots() {
                self.timer.wait(Activity::Migration, || migrate(layer, &migration.placement, group, bytes))?;
            }
            self.timer.collective(Activity::Migration, group, migration.time(self.setup.costs, first))?;
            self.timer.synchronize();
            report.migration += self.timer.now() - before;
            if self.position == 0 {
                report.moved += migration.moves.len() as u64;
            }
            layer.placement = migration.placement;
        }
        Ok(())
    }

    /// Where only the optimizer's state is in shards, slots get the weights of their last update: under a virtual clock, they are paid for
    /// behind that update.
    fn lay_weights(&self) -> Result<(), TrainError> {
        if self.online.policy().storage() != Storage::OptimizerShards {
            return Ok(());
        }
        let group = self.groups.experts.as_ref();
        self.timer.wait(Activity::WeightGather(Gradients::Experts), || {
            self.stage.layers().try_for_each(|layer| layer.restore(group))?;
            let under_way = self.stage.layers().filter_map(|layer| layer.experts.shards.as_ref());
            under_way.flat_map(Shards::under_way).try_for_each(|pending| pending.wait().map(drop))?;
            Ok(())
        })
    }

    fn timed_gathering(&mut self, report: &mut Report) -> Result<(), TrainError> {
        let (before, iterations) = (self.timer.now(), self.own_loads.len());
        let sums = self.timer.wait(Activity::Gathering, || self.sum_loads())?;
        self.remember_loads(sums);
        let Setup { job, costs, .. } = self.setup;
        let price = online::gathering(job, &self.plan, self.stage_number, iterations, costs);
        self.timer.collective(Activity::Gathering, self.groups.stage(), price)?;
        report.decision += self.timer.now() - before;
        Ok(())
    }

    /// The ranks of its expert-parallel group, or those at the same positions of another stage.
    fn expert_group(&self, stage: usize) -> Range<usize> {
        self.plan.expert_group(stage, self.position / self.plan.ep)
    }

    /// All weights of this rank by name, in single precision on the CPU, and how tensor parallelism cuts them. All ranks call this
    /// together: what ranks keep parts of is gathered.
    ///
    /// # Errors
    /// A peer that died.
    pub fn weights(&self) -> Result<Vec<(String, Tensor, Option<Cut>)>, TrainError> {
        let copy = |tensor: Tensor| tensor.to_device(Device::Cpu).copy();
        let Stage { dense, embedding_weight, gates, .. } = &self.stage;
        let mut all = Vec::new();
        for named in &dense.named {
            let bucket = if named.cut.is_some() { &dense.sharded } else { &dense.replicated };
            let whole = bucket.whole_master(named.index, self.groups.data())?;
            all.push((named.name.clone(), copy(whole), named.cut));
        }
        if !embedding_weight.is_empty() {
            let by_vocabulary = Cut { dim: 0, pieces: 1 };
            let whole = embedding_weight.whole_master(0, self.groups.data())?;
            all.push(("embedding".to_owned(), copy(whole), Some(by_vocabulary)));
        }
        for layer in self.stage.layers() {
            let LayerGate { weight, bias, selection, .. } = layer.gate;
            let mut of_gate = Vec::new();
            for index in std::iter::once(weight).chain(bias) {
                of_gate.push(gates.scores.whole_master(index, self.groups.stage())?);
            }
            of_gate.extend(selection.map(|index| gates.selection.master_of(index)));
            let flat: Vec<Tensor> = of_gate.into_iter().map(|parameter| copy(parameter).reshape([-1])).collect();
            all.push((format!("layer {} gate", layer.number), Tensor::cat(&flat, 0), None));
            all.extend(self.expert_weights(layer)?.into_iter().map(|(name, row)| (name, copy(row), None)));
        }
        Ok(all)
    }

    /// The weights in a rank's slots, by name.
    fn expert_weights(&self, layer: &Layer) -> Result<Vec<(String, Tensor)>, TrainError> {
        let (Layer { experts, placement, number, .. }, group) = (layer, self.groups.experts.as_ref());
        let own = placement.experts_of(group.rank()).iter().enumerate();
        let own = own.filter_map(|(slot, expert)| Some((slot, (*expert)?)));
        let name = |expert: usize| format!("layer {number} expert {expert}");
        if let Some(parts) = &experts.parts {
            let rows = parts.whole(&parts.gather(&parts.bucket.master, placement, group)?.wait()?);
            return Ok(own.map(|(slot, expert)| (name(expert), rows.get(slot as i64))).collect());
        }
        let Some(shards) = &experts.shards else {
            let whole = |slot| experts.bucket.whole_master(slot, &*self.groups.replicas);
            return own.map(|(slot, expert)| Ok((name(expert), whole(slot)?))).collect();
        };
        let slots = Tensor::zeros([experts.bucket.len()], (Kind::Float, self.device));
        drop(shards.gather(&shards.bucket.master, &slots, placement, group)?.wait()?);
        Ok(own.map(|(slot, expert)| (name(expert), experts.row(&slots, slot))).collect())
    }
}
