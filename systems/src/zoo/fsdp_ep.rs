//! Fully sharded data parallelism with expert parallelism, as PyTorch's own stack trains MoE models (torchtitan; a baseline of
//! LAER, ASPLOS'26).
//!
//! Weights, gradients and optimizer state are sharded over replicas (ZeRO 3): dense state over all ranks, experts over the ranks
//! that hold the same ones. A block's weights are gathered while the block before it runs, in every pass, and gradients are
//! reduced behind the backward pass ([`crate::iteration`] states the rule). Experts stay, spread over as many ranks of the fast
//! domain as they divide among, and are one grouped product. No pipeline, no tensor parallelism; micro-batch and recomputation
//! are what a tuning run under even routing finds.
//!
//! `fsdp-ep-queued` is the stack that LAER's authors measured beside theirs: its gathers and reductions are in line with the exchanges of rows, which wait for
//! them. Published runs of other stacks (Megatron-FSDP on H100s, `moebench validate published`) do without.

use crate::plan::search;
use crate::program::LayerProgram;
use crate::{
    About, Candidate, CostModel, Job, Overlap, Placement, Plan, Policy, Recompute, RoutingCounts, System, Zero,
};

/// FSDP and expert parallelism.
pub struct FsdpEp {
    about: About,
    queued: bool,
}

/// With transfers of state out of the exchanges' way.
pub static FSDP_EP: FsdpEp = FsdpEp {
    about: About {
        name: "fsdp-ep",
        title: "FSDP+EP",
        summary: "Static experts in the fast domain, all state sharded over replicas and gathered ahead of each block (ZeRO 3, PyTorch's FSDP)",
    },
    queued: false,
};

/// With transfers of state in line with exchanges.
pub static QUEUED: FsdpEp = FsdpEp {
    about: About {
        name: "fsdp-ep-queued",
        title: "FSDP+EP (queued)",
        summary: "FSDP+EP whose gathers and reductions are in line with the exchanges of rows (a baseline of LAER, ASPLOS'26)",
    },
    queued: true,
};

impl System for FsdpEp {
    fn about(&self) -> About {
        self.about
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        let (dp, ep) = (job.gpus, search::experts_in_domain(job, job.gpus));
        let zero = if dp > 1 { Zero::Weights } else { Zero::Off };
        let shape = Plan { dp, ep, expert_dp: dp / ep, zero, ..Plan::default() };
        let of_size = |micro_batch| Recompute::ALL.map(|recompute| Plan { micro_batch, recompute, ..shape });
        let plans = search::micro_batches(job, dp).into_iter().flat_map(of_size);
        search::tuned(self, job, costs, plans.filter(|plan| plan.check(job).is_ok()).collect())
    }

    fn policy(&self, _job: &Job, _plan: &Plan) -> Box<dyn Policy> {
        Box::new(Grouped { queued: self.queued })
    }
}

struct Grouped {
    queued: bool,
}

impl Policy for Grouped {
    fn overlap(&self) -> Overlap {
        Overlap { queued: self.queued, ..Overlap::default() }
    }

    fn program(&self, _layer: usize, _counts: &RoutingCounts, _placement: &Placement) -> LayerProgram {
        LayerProgram::grouped()
    }
}
