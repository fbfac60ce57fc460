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
//! | how experts are placed, what moves | [`placement`] |
//! | what a layer does, op by op | [`program`] |
//! | what an op costs | [`cost`], [`price`], [`traffic`] |
//! | how an iteration is put together (1F1B, gradient synchronisation, optimizer) | [`evaluate`], [`schedule`], [`streams`] |
//! | what time goes to, and who does what when | [`ledger`], [`timeline`] |
//! | what one MoE layer takes alone | [`layer`] |
//! | what a rank's memory holds | [`memory`] |
//! | which plans are possible, ranked | [`search`] |
//! | one system | the file of its name |

pub mod iteration;
pub mod plan;
pub mod price;
pub mod program;
pub mod zoo;

pub use plan::job::Job;
pub use plan::placement::{Move, Placement};
pub use plan::search::{Candidate, Estimate};
pub use plan::{Plan, PlanError};
pub use price::cost::CostModel;
pub use program::LayerProgram;
pub use program::routing::{LoadHistory, RoutingCounts};

/// What a system is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    /// On the command line and in records.
    pub name: &'static str,
    /// In figures and tables.
    pub title: &'static str,
    /// What it does, and where that is described, in a sentence or two.
    pub about: &'static str,
}

/// A training system: how it plans offline and what it does online.
pub trait System: Sync {
    /// What it is called.
    fn card(&self) -> Card;

    /// Its name on the command line and in records.
    fn name(&self) -> &'static str {
        self.card().name
    }

    /// Its name in figures and tables.
    fn title(&self) -> &'static str {
        self.card().title
    }

    /// Offline: every plan that the system considers for the job, best first, rejected ones last with the reason.
    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate>;

    /// Online: a fresh policy for one run under that plan.
    fn policy(&self, job: &Job, plan: &Plan) -> Box<dyn Policy>;

    /// Offline: the plan to train with, chosen before the first iteration.
    ///
    /// # Errors
    /// When no candidate can be used: the reason of the last one.
    fn plan(&self, job: &Job, costs: &CostModel) -> Result<Plan, PlanError> {
        self.best(job, costs).map(|(plan, _)| plan)
    }

    /// The same with what the search expects of the plan.
    ///
    /// # Errors
    /// As for [`Self::plan`].
    fn best(&self, job: &Job, costs: &CostModel) -> Result<(Plan, Estimate), PlanError> {
        let mut reason = PlanError::NoCandidate;
        for candidate in self.candidates(job, costs) {
            match candidate.outcome {
                Ok(estimate) => return Ok((candidate.plan, estimate)),
                Err(error) => reason = error,
            }
        }
        Err(reason)
    }
}

/// What a system does online, in one run.
pub trait Policy: Send {
    /// Before an iteration: whether and how the experts of one MoE layer move. `past` holds earlier iterations alone.
    fn place(&mut self, _iteration: usize, _layer: usize, _past: &LoadHistory, _now: &Placement) -> Decision {
        Decision::NotDue
    }

    /// Changes what the gate chose, where a system restricts the gate. `counts` are of one micro-batch in one
    /// expert-parallel group; training is no longer that of an unrestricted gate.
    fn restrict(&self, _counts: &mut RoutingCounts, _nodes: &[usize]) {}

    /// How MoE layer `layer` (counted among MoE layers) runs one micro-batch, once the gate's counts are known.
    fn program(&self, layer: usize, counts: &RoutingCounts, placement: &Placement) -> LayerProgram;

    /// Whether only the inputs of blocks are kept in the forward pass, and a block's forward pass, exchanges included, is
    /// run again before its backward pass.
    fn recomputes(&self) -> bool {
        false
    }

    /// Bytes that travel for each parameter of an expert that moves. Half-precision weight, single-precision master
    /// and two Adam moments unless the system says otherwise.
    fn migrated_bytes_per_parameter(&self) -> f64 {
        plan::memory::MIGRATED_BYTES_PER_PARAMETER
    }
}

/// What [`Policy::place`] decided.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// No decision was due.
    NotDue,
    /// A decision was made: the placement stays.
    Stay,
    /// A decision was made: the experts move to this placement.
    Move(Placement),
}

/// Every system, in the order of figures.
pub static ALL: &[&dyn System] = &[
    &zoo::expert_only::ExpertOnly,
    &zoo::fastermoe::FASTERMOE,
    &zoo::fastermoe::UNPIPELINED,
    &zoo::fastermoe::UNSHADOWED,
    &zoo::fastermoe::TOPOLOGY_GATE,
    &zoo::deepspeed::DEEPSPEED,
    &zoo::deepspeed::ARTIFACT,
    &zoo::tutel::Tutel,
    &zoo::alpa::Alpa,
    &zoo::smartmoe::SMARTMOE,
    &zoo::smartmoe::OFFLINE_ONLY,
    &zoo::smartmoe::UNIFORM_ESTIMATE,
    &zoo::smartmoe::FREE_MIGRATION,
    &zoo::smartmoe::WEIGHTS_ONLY_MIGRATION,
];

/// The system of that name, or all names.
///
/// # Errors
/// The list of known names.
pub fn by_name(name: &str) -> Result<&'static dyn System, String> {
    ALL.iter()
        .find(|system| system.name() == name)
        .copied()
        .ok_or_else(|| ALL.iter().map(|system| system.name()).collect::<Vec<_>>().join(", "))
}
