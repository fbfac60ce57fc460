//! The one cost model: what a matrix product, an exchange or a collective takes on a described cluster.
//!
//! Every price follows from amounts (rows, bytes, FLOP) and the cluster's constants. There is no constant per system, per
//! case or per op. An exchange lasts until its busiest port is done: the busiest GPU on the links of its node, or the
//! busiest node on its share of the network, plus a start-up per message; rings are priced by their slowest link.

use std::ops::Range;

use workloads::model::Moe;
use workloads::{Bytes, BytesPerSecond, Cluster, Flops, FlopsPerSecond, Seconds};

use crate::memory;
use crate::placement::Move;

/// A cluster's constants, ready to price with.
#[derive(Clone, Debug)]
pub struct CostModel {
    gpus_per_node: usize,
    gemm_rate: FlopsPerSecond,
    gemm_start: Seconds,
    memory_bandwidth: BytesPerSecond,
    intra_bandwidth: BytesPerSecond,
    intra_start: Seconds,
    inter_bandwidth: BytesPerSecond,
    port_bandwidth: BytesPerSecond,
    inter_start: Seconds,
    iteration: Seconds,
    synchronisation: Seconds,
    decision_step: Seconds,
    contention: bool,
}

/// Ranks that communicate, as the network sees them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// Number of ranks.
    pub size: usize,
    /// Number of nodes that they are on.
    pub nodes: usize,
    /// The part of a node's network bandwidth that is theirs.
    pub share: f64,
}

/// What one grouped call of an exchange puts on the busiest ports, in entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Sent to, or received from, its own node by the busiest GPU.
    pub intra: u64,
    /// Sent to, or received from, other nodes by the busiest GPU.
    pub inter: u64,
    /// Sent to, or received from, other nodes by the busiest node.
    pub node: u64,
}

impl CostModel {
    /// The prices of a cluster.
    pub fn new(cluster: &Cluster) -> Self {
        Self {
            gpus_per_node: cluster.gpus_per_node,
            gemm_rate: FlopsPerSecond(cluster.gpu.gemm_rate.value),
            gemm_start: Seconds(cluster.gpu.gemm_start.value),
            memory_bandwidth: BytesPerSecond(cluster.gpu.memory_bandwidth.value),
            intra_bandwidth: BytesPerSecond(cluster.network.intra_bandwidth.value),
            intra_start: Seconds(cluster.network.intra_start.value),
            inter_bandwidth: BytesPerSecond(cluster.network.inter_bandwidth.value),
            port_bandwidth: BytesPerSecond(cluster.network.port_bandwidth.value),
            inter_start: Seconds(cluster.network.inter_start.value),
            iteration: Seconds(cluster.host.iteration.value),
            synchronisation: Seconds(cluster.host.synchronisation.value),
            decision_step: Seconds(cluster.host.decision_step.value),
            contention: true,
        }
    }

    /// The same cluster if concurrent groups did not share a node's network: for sensitivity tests alone.
    pub fn without_contention(mut self) -> Self {
        self.contention = false;
        self
    }

    /// `ranks`, spaced `stride` apart, of a job that fills its nodes.
    pub fn group(&self, ranks: Range<usize>, stride: usize) -> Group {
        let size = ranks.len().div_ceil(stride);
        let last = ranks.start + (size.max(1) - 1) * stride;
        let nodes = last / self.gpus_per_node - ranks.start / self.gpus_per_node + 1;
        let nodes = nodes.min(size.max(1));
        let per_node = size.div_ceil(nodes).min(self.gpus_per_node);
        let share = if self.contention {
            per_node as f64 / self.gpus_per_node as f64
        } else {
            1.0
        };
        Group { size, nodes, share }
    }

    /// Matrix products with that arithmetic in all.
    pub fn matrix(&self, flops: Flops, products: usize) -> Seconds {
        flops / self.gemm_rate + self.gemm_start * products as f64
    }

    /// Kernels bound by device memory that read and write that much.
    pub fn elementwise(&self, bytes: Bytes) -> Seconds {
        bytes / self.memory_bandwidth
    }

    /// One expert on `rows` entries, forward: two products, and every stored activation written and read once.
    pub fn expert_forward(&self, moe: &Moe, rows: u32) -> Seconds {
        if rows == 0 {
            return Seconds::ZERO;
        }
        let rows = f64::from(rows);
        self.matrix(moe.entry_flops() * rows, 2)
            + self.elementwise(moe.entry_activations() * (2.0 * rows))
    }

    /// The same, backward: four products and twice the memory traffic.
    pub fn expert_backward(&self, moe: &Moe, rows: u32) -> Seconds {
        self.expert_forward(moe, rows) * 2.0
    }

    /// The host waits for the device, once per call of an MoE layer.
    pub fn synchronisation(&self) -> Seconds {
        self.synchronisation
    }

    /// One grouped call of an exchange of entries of `entry` bytes: each rank of `group` sends to and receives from all.
    pub fn exchange(&self, group: &Group, traffic: &Traffic, entry: Bytes) -> Seconds {
        let intra = entry * traffic.intra as f64 / self.intra_bandwidth;
        let inter = (entry * traffic.inter as f64 / self.port_bandwidth)
            .max(entry * traffic.node as f64 / self.inter(group));
        self.exchange_start(group) + intra.max(inter)
    }

    fn exchange_start(&self, group: &Group) -> Seconds {
        if group.size < 2 {
            return Seconds::ZERO;
        }
        let beside = group.size.div_ceil(group.nodes) - 1;
        let beyond = group.size - 1 - beside;
        self.intra_start * beside as f64 + self.inter_start * beyond as f64
    }

    /// A ring all-reduce of `bytes` on every rank.
    pub fn all_reduce(&self, group: &Group, bytes: Bytes) -> Seconds {
        let steps = 2.0 * (group.size as f64 - 1.0);
        if group.size < 2 || bytes == Bytes::ZERO {
            return Seconds::ZERO;
        }
        bytes * (steps / group.size as f64) / self.ring(group) + self.start(group) * steps
    }

    /// One rank's `bytes` to the whole group, or the group's sum to one rank, along a ring in pieces.
    pub fn broadcast(&self, group: &Group, bytes: Bytes) -> Seconds {
        if group.size < 2 {
            return Seconds::ZERO;
        }
        bytes / self.ring(group) + self.start(group) * (group.size as f64).log2().ceil()
    }

    /// `bytes` from one rank to another.
    pub fn send(&self, from: usize, to: usize, bytes: Bytes) -> Seconds {
        if from / self.gpus_per_node == to / self.gpus_per_node {
            bytes / self.intra_bandwidth + self.intra_start
        } else {
            let share = self.inter(&self.group(from..from + 1, 1));
            bytes / share.min(self.port_bandwidth) + self.inter_start
        }
    }

    /// Experts of `bytes` each change rank inside the group that starts at rank `first`: blocking sends in expert order,
    /// two moves at once only between four different ranks.
    pub fn migration(&self, first: usize, ranks: usize, moves: &[Move], bytes: Bytes) -> Seconds {
        let mut free = vec![Seconds::ZERO; ranks];
        for m in moves {
            let start = free[m.from].max(free[m.to]);
            let end = start + self.send(first + m.from, first + m.to, bytes);
            free[m.from] = end;
            free[m.to] = end;
        }
        free.into_iter().fold(Seconds::ZERO, Seconds::max)
    }

    /// A decision of that many elementary steps on the host.
    pub fn decision(&self, steps: u64) -> Seconds {
        self.decision_step * steps as f64
    }

    /// Adam in mixed precision on `parameters`: bound by device memory.
    pub fn optimizer(&self, parameters: f64) -> Seconds {
        self.elementwise(Bytes(parameters * memory::OPTIMIZER_TRAFFIC_PER_PARAMETER))
    }

    /// What every iteration costs besides.
    pub fn iteration(&self) -> Seconds {
        self.iteration
    }

    fn inter(&self, group: &Group) -> BytesPerSecond {
        self.inter_bandwidth * group.share
    }

    fn ring(&self, group: &Group) -> BytesPerSecond {
        if group.nodes > 1 {
            self.inter(group).min(self.port_bandwidth).min(self.intra_bandwidth)
        } else {
            self.intra_bandwidth
        }
    }

    fn start(&self, group: &Group) -> Seconds {
        if group.nodes > 1 {
            self.inter_start
        } else {
            self.intra_start
        }
    }
}
