//! One rank's training.
//!
//! An iteration is: online placement and migration; a 1F1B pipeline of micro-batches; gradient synchronisation per group;
//! clipping; the optimizer. Policies see the loads of earlier iterations alone, summed over the stage.

mod groups;
mod pipeline;
pub mod report;
pub(crate) mod stage;
mod sync;

use std::ops::Range;

use systems::iteration::online::{self, Online};
use systems::iteration::timeline::Activity;
use systems::price::network::Group;
use tch::{Device, Tensor};

use crate::clock::timer::Timer;
use crate::comm::Communicator;
use crate::error::TrainError;
use crate::kernels;
use crate::layer::gate::LayerGate;
use crate::layer::migrate::migrate;
use crate::layer::moe::Layer;
use crate::model::dense::Cut;
use crate::rank::groups::Groups;
use crate::rank::report::Report;
use crate::rank::stage::{FeedForward, Stage};
use crate::setup::Setup;

/// A rank between two iterations.
pub struct Rank<'a> {
    pub(crate) setup: &'a Setup<'a>,
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
    timer: Timer,
}

impl<'a> Rank<'a> {
    /// # Errors
    /// A peer that died; kernels that cannot be compiled for the GPU.
    pub fn new(
        setup: &'a Setup<'a>,
        world: Box<dyn Communicator>,
        device: Device,
        timer: Timer,
    ) -> Result<Self, TrainError> {
        if let Device::Cuda(ordinal) = device {
            kernels::load(ordinal)?;
        }
        let plan = &setup.plan;
        let (stage_number, position) = (world.rank() / plan.stage_ranks(), world.rank() % plan.stage_ranks());
        let ranks = plan.expert_group(stage_number, position / plan.ep);
        Ok(Self {
            groups: Groups::new(world, plan)?,
            stage: Stage::new(setup, stage_number, position, device),
            online: Online::new(setup.system.policy(setup.job, plan)),
            iteration: 0,
            setup,
            device,
            stage_number,
            position,
            place: setup.costs.group(ranks, 1),
            own_loads: Vec::new(),
            timer,
        })
    }

    /// Trains one iteration.
    ///
    /// # Errors
    /// A peer that died; a program that cannot be executed.
    pub fn step(&mut self) -> Result<Report, TrainError> {
        self.groups.world.barrier()?;
        self.timer.start();
        let mut report = Report::default();
        self.place(&mut report)?;
        let ran = self.pipeline()?;
        self.reduce_gradients()?;
        self.balance_selection(&ran.stats)?;
        self.update()?;
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
            self.timer.wait(Activity::Migration, || migrate(layer, &migration.placement, group, bytes))?;
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

    fn timed_gathering(&mut self, report: &mut Report) -> Result<(), TrainError> {
        let (before, iterations) = (self.timer.now(), self.own_loads.len());
        let sums = self.timer.wait(Activity::Gathering, || self.sum_loads())?;
        self.remember_loads(sums);
        let Setup { job, plan, costs, .. } = self.setup;
        let price = online::gathering(job, plan, self.stage_number, iterations, costs);
        self.timer.collective(Activity::Gathering, &*self.groups.stage, price)?;
        report.decision += self.timer.now() - before;
        Ok(())
    }

    /// The ranks of its expert-parallel group, or those at the same positions of another stage.
    fn expert_group(&self, stage: usize) -> Range<usize> {
        self.setup.plan.expert_group(stage, self.position / self.setup.plan.ep)
    }

    /// All weights of this rank by name, in single precision on the CPU, and how tensor parallelism cuts them.
    pub fn weights(&self) -> Vec<(String, Tensor, Option<Cut>)> {
        let copy = |tensor: Tensor| tensor.to_device(Device::Cpu).copy();
        let Stage { dense, embedding_weight, gates, .. } = &self.stage;
        let of_dense = dense.named.iter().map(|named| {
            let bucket = if named.cut.is_some() { &dense.sharded } else { &dense.replicated };
            (named.name.clone(), copy(bucket.master_of(named.index)), named.cut)
        });
        let mut all: Vec<_> = of_dense.collect();
        if !embedding_weight.is_empty() {
            let by_vocabulary = Cut { dim: 0, pieces: 1 };
            all.push(("embedding".to_owned(), copy(embedding_weight.master_of(0)), Some(by_vocabulary)));
        }
        for layer in self.stage.layers() {
            let LayerGate { weight, bias, selection, .. } = layer.gate;
            let of_scores = std::iter::once(weight).chain(bias).map(|index| gates.scores.master_of(index));
            let all_of_gate = of_scores.chain(selection.map(|index| gates.selection.master_of(index)));
            let flat: Vec<Tensor> = all_of_gate.map(|parameter| copy(parameter).reshape([-1])).collect();
            all.push((format!("layer {} gate", layer.number), Tensor::cat(&flat, 0), None));
            all.extend(self.expert_weights(layer));
        }
        all
    }

    fn expert_weights(&self, layer: &Layer) -> impl Iterator<Item = (String, Tensor, Option<Cut>)> {
        let own = layer.placement.experts_of(self.groups.experts.rank());
        own.iter().enumerate().filter_map(|(slot, expert)| Some((slot, (*expert)?))).map(|(slot, expert)| {
            let row = layer.experts.row(&layer.experts.bucket.master, slot).to_device(Device::Cpu).copy();
            (format!("layer {} expert {expert}", layer.number), row, None)
        })
    }
}
