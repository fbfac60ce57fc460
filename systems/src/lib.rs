//! Training systems for Mixture-of-Experts models, each written once.
//!
//! A [`System`] chooses a [`Plan`] offline and gives a [`Policy`] that places experts and states the [`LayerProgram`] of
//! every micro-batch online. Engines take all three: the simulator prices programs, a trainer executes them.
//!
//! Nothing here reads a file, a clock or the environment, and no engine knows a system by name. The cost model and the
//! evaluator live here too, because an offline search must price plans with the very rules that the simulator uses.
//!
//! | to find | look in |
//! |---|---|
//! | one system | [`zoo`], the file of its paper |
//! | degrees of parallelism, placements, what moves | [`plan`], [`plan::placement`] |
//! | which plans are possible, ranked | [`plan::search`] |
//! | how load is spread over ranks: copies, quotas, layouts | [`balance`] |
//! | what a rank's memory holds | [`plan::memory`] |
//! | what a layer does, op by op, and on which rows | [`program`] |
//! | what an op costs | [`price`], [`price::cost`], [`price::traffic`] |
//! | how an iteration is put together (1F1B, gradient synchronisation, optimizer) | [`iteration`] |
//! | what time goes to, and who does what when | [`price::ledger`], [`iteration::timeline`] |

pub mod balance;
pub mod iteration;
pub mod plan;
pub mod price;
pub mod program;
pub mod zoo;

pub use plan::job::Job;
pub use plan::placement::{Move, Placement};
pub use plan::search::{Candidate, Estimate};
pub use plan::{Plan, PlanError, Recompute, Zero};
pub use price::cost::CostModel;
pub use program::LayerProgram;
pub use program::routing::{LoadHistory, RoutingCounts};
pub use zoo::ALL;

use thiserror::Error;
use workloads::model::Moe;

/// A system's names, and what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    /// On the command line and in records.
    pub name: &'static str,
    /// In figures and tables.
    pub title: &'static str,
    /// What it does, and where that is described, in a sentence or two.
    pub summary: &'static str,
}

/// A training system: how it plans offline and what it does online.
pub trait System: Sync {
    /// Its names, and what it does.
    fn about(&self) -> About;

    /// Its name on the command line and in records.
    fn name(&self) -> &'static str {
        self.about().name
    }

    /// Its name in figures and tables.
    fn title(&self) -> &'static str {
        self.about().title
    }

    /// Offline: every plan that the system considers for the job, best first, rejected ones last with the reason.
    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate>;

    /// Whether its candidates are all that [`plan::search::pools`] knows: then a search has nothing to add.
    fn searches(&self) -> bool {
        false
    }

    /// Whether it is a bound that nothing can train at: it stands beside the systems and never counts as the fastest of them.
    fn is_bound(&self) -> bool {
        false
    }

    /// Online: a fresh policy for one run under that plan.
    fn policy(&self, job: &Job, plan: &Plan) -> Box<dyn Policy>;

    /// Offline: the plan to train with, chosen before the first iteration.
    ///
    /// # Errors
    /// When no candidate can be used: the reason of the last one.
    fn plan(&self, job: &Job, costs: &CostModel) -> Result<Plan, PlanError> {
        self.best(job, costs).map(|(plan, _)| plan)
    }

    /// What a system decided beside the degrees of a plan, and why, for people; nothing unless it decides something.
    fn explain(&self, _job: &Job, _plan: &Plan) -> Option<String> {
        None
    }

    /// The plan of [`Self::plan`] and what the search expects of it.
    ///
    /// # Errors
    /// When no candidate can be used: the reason of the last one.
    fn best(&self, job: &Job, costs: &CostModel) -> Result<(Plan, Estimate), PlanError> {
        plan::search::first_usable(self.candidates(job, costs))
    }
}

/// What a system does online, in one run.
pub trait Policy: Send {
    /// Whether experts are placed before an iteration. The loads of the iterations since the last time are gathered first,
    /// which takes time.
    fn placement_due(&self, _iteration: usize) -> bool {
        false
    }

    /// Before an iteration for which it is due: whether and how the experts of one MoE layer move. `past` holds earlier
    /// iterations alone.
    fn place(&mut self, _iteration: usize, _layer: usize, _past: &LoadHistory, _now: &Placement) -> Decision {
        Decision::Stay
    }

    /// Where the experts of MoE layer `layer` (counted among MoE layers) are at the start, on the `ranks` ranks that exchange
    /// rows: in order, a slot each, unless the system has more slots. Empty slots are room for copies that programs make.
    fn first_placement(&self, _layer: usize, moe: &Moe, ranks: usize) -> Placement {
        Placement::identity(moe.experts, ranks)
    }

    /// Whether a stage's replicas of the set of experts exchange rows as one group of `ep * expert_dp` ranks: then the copies that
    /// expert-data parallelism has anyhow may stand on different ranks, and entries may go to any of them.
    fn joins_replicas(&self) -> bool {
        false
    }

    /// Where the state of experts is. Shards lie over one expert-parallel group: a policy that has some joins replicas, or its plans have none.
    fn storage(&self) -> Storage {
        Storage::Slots
    }

    /// Changes what the gate chose, where a system restricts the gate. `counts` are of one micro-batch in one
    /// expert-parallel group; training is no longer that of an unrestricted gate.
    fn restrict(&self, _counts: &mut RoutingCounts, _nodes: &[usize]) {}

    /// How MoE layer `layer` (counted among MoE layers) runs one micro-batch, once the gate's counts are known: one dispatch,
    /// the local experts, one combine, unless the system says otherwise.
    fn program(&self, _layer: usize, _counts: &RoutingCounts, _placement: &Placement) -> LayerProgram {
        LayerProgram::expert_parallel()
    }

    /// What the backward pass computes again: what the plan says, unless the system has its own way. A full recomputation
    /// includes the exchanges of MoE layers.
    fn recompute(&self, plan: &Plan) -> Recompute {
        plan.recompute
    }

    /// What runs beside computation.
    fn overlap(&self) -> Overlap {
        Overlap::default()
    }

    /// Bytes that travel for each parameter of an expert that moves. Half-precision weight, single-precision master
    /// and two Adam moments unless the system says otherwise.
    fn migrated_bytes_per_parameter(&self) -> f64 {
        plan::memory::MIGRATED_BYTES_PER_PARAMETER
    }
}

/// Communication that a system runs beside computation; none unless it says so, as in the systems of SmartMoE's study.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overlap {
    /// What is done with model state once an iteration: gradients are reduced beside the last backward pass, and weights whose
    /// optimizer state is sharded are gathered beside the first forward pass. A cluster's training program may say otherwise, for all systems.
    pub state: bool,
    /// Gathers and reductions of sharded state that accompany a micro-batch go block by block and in line with the exchanges of rows, which use the same
    /// links and wait for what was asked for before them. Otherwise they are out of the exchanges' way.
    pub queued: bool,
    /// Exchanges of one micro-batch run beside the computation of another, where the schedule has both, block by
    /// block: one forward pass more runs before the first backward pass, and one block more is kept.
    pub exchanges: bool,
}

/// Where the weights, gradients and optimizer state of a layer's experts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Every copy that a placement has keeps all of its state, and copies stay equal by an all-reduce of their gradients.
    Slots,
    /// Copies keep weights and gradients. Optimizer state is cut into equal shards over the ranks of the group and stays there
    /// whatever the placement: gradients go to the shards, and new weights come from them, in every iteration.
    OptimizerShards,
    /// All is cut into equal shards over the ranks of the group. Slots are filled for the passes of a layer alone, two layers at a
    /// time, because one is restored while the one before it runs.
    Shards,
    /// The copies of an expert keep an equal part of its inner width each, and all state of that part. Programs compute with the parts, or
    /// restore whole experts from them for a pass. Experts stand in parts for good ([`Placement::in_parts`]).
    Parts,
}

/// The policy of expert parallelism alone: experts stay, and every layer is one dispatch, the local experts, one combine.
pub struct Plain;

impl Policy for Plain {}

/// What [`Policy::place`] decided.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// The placement stays.
    Stay,
    /// The experts move to this placement.
    Move(Placement),
}

/// A name that no system has.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("unknown system `{name}`; known: {}", workloads::error::known(name, known))]
pub struct UnknownSystem {
    /// The name.
    pub name: String,
    /// The names of all systems.
    pub known: Vec<&'static str>,
}

/// The system of that name.
///
/// # Errors
/// When there is none.
pub fn by_name(name: &str) -> Result<&'static dyn System, UnknownSystem> {
    let found = ALL.iter().find(|system| system.name() == name).copied();
    found
        .ok_or_else(|| UnknownSystem { name: name.to_owned(), known: ALL.iter().map(|system| system.name()).collect() })
}
