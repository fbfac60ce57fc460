//! The one cost model: what a matrix product, an exchange or a collective takes on a described cluster.
//!
//! Every price follows from amounts (rows, bytes, FLOP) and the cluster's constants. There is no constant per system, per
//! case or per op. An exchange lasts until its busiest port is done: the busiest GPU on the links of its node, or the
//! busiest node (or larger unit of the network) on the group's part of its uplink, plus a start-up per message; rings are
//! priced by their slowest link. Every collective starts up once: a ring's steps are one kernel.

use std::ops::Range;

use workloads::cluster::Constant;
use workloads::measured::{Line, MeasuredOperation, Operation, Passes};
use workloads::model::{Block, HALF, Model, Moe, shapes};
use workloads::{Bytes, BytesPerSecond, Cluster, Flops, FlopsPerSecond, Seconds};

use crate::plan::memory;
use crate::plan::placement::Move;
use crate::price::hosts::Issue;
use crate::price::network::{Group, Network};
use crate::price::streams::Beside;
use crate::price::traffic::Traffic;
use crate::program::{Direction, Products};

/// Bytes read and written per element of a one-hot tensor, forward: it is written in single precision (4), read for the
/// mask (4) that is written in bytes (1) and becomes half precision (1 + 2), as does the tensor (4 + 2); each half is
/// read by its product (2 + 2).
const ONE_HOT_TRAFFIC_FORWARD: f64 = 22.0;

/// Bytes read and written per element of a one-hot tensor, backward: both halves are read again (2 + 2); the tensor's gradient is written (2), becomes single precision
/// (2 + 4) and is read for the weights' gradients (4).
const ONE_HOT_TRAFFIC_BACKWARD: f64 = 16.0;

/// The prices of a cluster for a job on its first ranks.
#[derive(Clone, Debug)]
pub struct CostModel {
    cluster: Cluster,
    network: Network,
}

/// What an expert takes in one pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertPrice {
    /// Once for all that run together.
    pub call: Seconds,
    /// With any rows at all.
    pub start: Seconds,
    /// The part of `start` that a program's grouped product has once for all experts.
    pub launch: Seconds,
    /// For each row.
    pub row: Seconds,
}

impl ExpertPrice {
    fn of_line(line: Line) -> Self {
        let Line { start, unit, call, .. } = line;
        Self { call: Seconds(call), start: Seconds(start), launch: Seconds::ZERO, row: Seconds(unit) }
    }

    /// On that many rows; an expert without rows is not started.
    #[inline]
    pub fn of(&self, rows: u32) -> Seconds {
        if rows == 0 { Seconds::ZERO } else { self.call + self.start + self.row * f64::from(rows) }
    }

    /// Several experts, `rows` of each.
    #[inline]
    pub fn of_all(&self, rows: &[u32], products: Products) -> Seconds {
        let apart: Seconds = rows.iter().map(|&rows| self.of(rows)).sum();
        let once = match products {
            Products::PerExpert => self.call,
            Products::Grouped => self.call + self.launch,
        };
        if once == Seconds::ZERO {
            return apart;
        }
        let started = rows.iter().filter(|&&rows| rows > 0).count();
        apart - once * started.saturating_sub(1) as f64
    }
}

/// What an operation takes its host over its units.
#[derive(Clone, Copy, Debug)]
pub struct IssuePrice {
    host: Line,
    lead: Line,
}

impl IssuePrice {
    const NOTHING: Self = Self { host: NO_TIME, lead: NO_TIME };

    fn of(self, units: f64) -> Issue {
        self.sum(|line| Seconds(line.of(units)))
    }

    /// Several experts, `rows` of each.
    #[inline]
    pub fn of_experts(self, rows: &[u32]) -> Issue {
        self.sum(|line| ExpertPrice::of_line(line).of_all(rows, Products::PerExpert))
    }

    fn sum(self, of: impl Fn(Line) -> Seconds) -> Issue {
        Issue { host: of(self.host), lead: of(self.lead).max(Seconds::ZERO) }
    }
}

const NO_TIME: Line = Line { start: 0.0, unit: 0.0, call: 0.0, error: None };

impl CostModel {
    /// The prices of a cluster for a job on its first `gpus` ranks.
    pub fn new(cluster: &Cluster, gpus: usize) -> Self {
        Self { cluster: cluster.clone(), network: Network::new(cluster, gpus) }
    }

    /// `[rank]` of a group of `size` ranks, as all of the job are in: its node, the same in every group.
    pub fn nodes_of_groups(&self, size: usize) -> Vec<usize> {
        self.network.nodes_of_sets(size)
    }

    /// Whether all groups of `size` ranks, one after the other, lie in the network alike.
    pub fn groups_lie_alike(&self, size: usize) -> bool {
        self.network.lie_alike(size)
    }

    /// `ranks`, spaced `stride` apart.
    pub fn group(&self, ranks: Range<usize>, stride: usize) -> Group {
        self.network.group(ranks, stride)
    }

    /// `ranks`, ascending.
    pub fn group_of(&self, ranks: impl Iterator<Item = usize> + Clone) -> Group {
        self.network.group_of(ranks)
    }

    /// Matrix products with that arithmetic in all.
    pub fn matrix(&self, flops: Flops) -> Seconds {
        flops / FlopsPerSecond(self.cluster.gpu.gemm_rate.value)
    }

    /// Kernels bound by device memory that read and write that much.
    pub fn elementwise(&self, bytes: Bytes) -> Seconds {
        bytes / BytesPerSecond(self.cluster.gpu.memory_bandwidth.value)
    }

    /// How many times what a block stores outside its experts goes through memory in a forward pass: it is written and read, unless
    /// the cluster says more.
    pub fn block_traffic(&self) -> f64 {
        self.cluster.gpu.block_traffic.as_ref().map_or(2.0, |traffic| traffic.value)
    }

    /// Rows gathered or scattered by index: that much read and written.
    pub fn scatter(&self, bytes: Bytes) -> Seconds {
        bytes / BytesPerSecond(self.cluster.gpu.scatter_bandwidth.value)
    }

    /// One expert. Forward: its products, every stored activation written and read once, its weights read. Backward: twice
    /// the products and activations; weights read, gradients read, added to and written.
    ///
    /// Experts that were measured ran in grouped products, and cost what those do, whatever a program says; others do where the cluster's
    /// training program groups them.
    pub fn expert(&self, moe: &Moe, direction: Direction) -> ExpertPrice {
        if let Some(line) = self.measured(Operation::Expert, direction, || shapes::of_expert(moe)) {
            return ExpertPrice::of_line(line);
        }
        let once = Seconds(self.cluster.gpu.expert_start.value);
        let (call, apart, launch) = match self.cluster.program.grouped_products {
            Some(true) => (once, Seconds::ZERO, Seconds::ZERO),
            Some(false) => (Seconds::ZERO, once, Seconds::ZERO),
            None => (Seconds::ZERO, once, once),
        };
        let start = self.elementwise(self.weights(moe)) + apart;
        let row = self.matrix(moe.entry_flops()) + self.elementwise(moe.entry_activations() * 2.0);
        match direction {
            Direction::Forward => ExpertPrice { call, start, launch, row },
            Direction::Backward => {
                let start = start * 2.0 + self.elementwise(self.weights(moe) * 2.0);
                ExpertPrice { call: call * 2.0, start, launch: launch * 2.0, row: row * 2.0 }
            }
        }
    }

    /// Entries laid out and combined by products with a `[tokens, experts, rows]` tensor: two of `2 S E C H` FLOP forward
    /// (dispatch, combine), three backward (the mask has no gradient), and the tensor's own traffic.
    pub fn one_hot(&self, moe: &Moe, tokens: usize, rows: u32, direction: Direction) -> Seconds {
        let elements = tokens as f64 * moe.experts as f64 * f64::from(rows);
        let (products, traffic) = match direction {
            Direction::Forward => (2.0, ONE_HOT_TRAFFIC_FORWARD),
            Direction::Backward => (3.0, ONE_HOT_TRAFFIC_BACKWARD),
        };
        self.matrix(Flops(products * 2.0 * elements * moe.width as f64)) + self.elementwise(Bytes(elements * traffic))
    }

    fn weights(&self, moe: &Moe) -> Bytes {
        Bytes(moe.expert_parameters() as f64 * HALF)
    }

    /// The same prices where ranks are emulated: where hosts are followed, they run ahead, so that every operation takes what it takes behind
    /// other work, and data was read before; kernels, which are measured one rank after the other, have no transfer beside them.
    #[must_use]
    pub fn as_emulated(&self) -> Self {
        let mut emulated = self.clone();
        if self.follows_hosts() {
            emulated.cluster.host.iteration.value = 0.0;
        }
        for of in &mut emulated.cluster.gpu.measured {
            of.issue = None;
        }
        let network = &mut emulated.cluster.network;
        (network.slows_kernels, network.slowed_by_kernels) = (None, None);
        emulated
    }

    /// Whether hosts take time to issue anything: where an operation was measured behind other work, too.
    pub fn follows_hosts(&self) -> bool {
        self.cluster.gpu.measured.iter().any(|of| of.issue.is_some())
    }

    /// What the GPU takes for a measured operation's pass, if it was measured on this shape: behind other work where that was measured,
    /// otherwise from an idle GPU on.
    fn measured(&self, operation: Operation, direction: Direction, shape: impl FnOnce() -> String) -> Option<Line> {
        let of = self.operation(operation, shape)?;
        line_of(of.queued.unwrap_or(of.alone()), direction)
    }

    /// What it takes the host; nothing where that was not measured. The lead is what it takes from an idle GPU on beyond what it takes
    /// behind other work.
    fn issue(&self, operation: Operation, direction: Direction, shape: impl FnOnce() -> String) -> IssuePrice {
        let of_operation = |of: &MeasuredOperation| {
            let line = |passes| line_of(passes, direction);
            let [alone, queued, host] = [line(of.alone())?, line(of.queued?)?, line(of.issue?)?];
            let lead = Line {
                start: alone.start - queued.start,
                unit: alone.unit - queued.unit,
                call: alone.call - queued.call,
                error: None,
            };
            Some(IssuePrice { host, lead })
        };
        self.operation(operation, shape).and_then(of_operation).unwrap_or(IssuePrice::NOTHING)
    }

    /// What an exchange of that many calls takes the host, each of which sends to and receives from so many ranks or in so many parts, both
    /// counted. It begins once the first call is issued.
    pub fn exchange_issue(&self, calls: usize, parts: usize) -> Issue {
        let of = |constant: &Option<Constant>| Seconds(constant.as_ref().map_or(0.0, |constant| constant.value));
        let host = &self.cluster.host;
        let call = of(&host.exchange) + of(&host.part) * parts as f64;
        match calls {
            0 => Issue::default(),
            _ => Issue { host: (call + of(&host.arrival)) * calls as f64, lead: call },
        }
    }

    /// What kernels and transfers take of each other; nothing where the cluster does not say.
    pub fn beside(&self) -> Beside {
        let of = |constant: &Option<Constant>| constant.as_ref().map_or(0.0, |constant| constant.value);
        let network = &self.cluster.network;
        Beside { kernels: of(&network.slows_kernels), transfers: of(&network.slowed_by_kernels) }
    }

    /// The exchange of so many bytes of counts between all, until hosts have read them where that was measured: on a node, a call and what follows.
    pub fn counts(&self, group: &Group, bytes: Bytes) -> Seconds {
        let exchanged = || self.exchange(group, &Traffic::one_each(group), bytes);
        match self.cluster.host.reading.as_ref().map(|reading| Seconds(reading.value)) {
            _ if group.size() < 2 => Seconds::ZERO,
            Some(reading) if group.one_node() => reading,
            Some(reading) => exchanged() + (reading - self.call_start()).max(Seconds::ZERO),
            None => exchanged(),
        }
    }

    /// Whether what hosts take to read counts was measured: they wait for nothing besides.
    pub fn reads_counts(&self) -> bool {
        self.cluster.host.reading.is_some()
    }

    /// What it takes the host to ask for the counts of all ranks. It waits for them besides.
    pub fn counts_issue(&self) -> Issue {
        let counts = Seconds(self.cluster.host.counts.as_ref().map_or(0.0, |counts| counts.value));
        Issue { host: counts, lead: counts }
    }

    fn operation(&self, operation: Operation, shape: impl FnOnce() -> String) -> Option<&MeasuredOperation> {
        let known = &self.cluster.gpu.measured;
        if known.is_empty() {
            return None;
        }
        let shape = shape();
        known.iter().find(|of| of.operation == operation && of.shape == shape)
    }

    /// What experts take the host.
    pub fn expert_issue(&self, moe: &Moe, direction: Direction) -> IssuePrice {
        self.issue(Operation::Expert, direction, || shapes::of_expert(moe))
    }

    /// Everything of a block but its MoE layer, on that many samples, where it was measured: what a pass takes by itself, and
    /// what grows with the samples.
    pub fn measured_block(&self, block: &Block, samples: f64, direction: Direction) -> Option<[Seconds; 2]> {
        let line = self.measured(Operation::Block, direction, || shapes::of_block(block))?;
        Some([Seconds(line.start), Seconds(line.unit * samples)])
    }

    /// What that takes the host.
    pub fn block_issue(&self, block: &Block, samples: f64, direction: Direction) -> Issue {
        self.issue(Operation::Block, direction, || shapes::of_block(block)).of(samples)
    }

    /// Embedding, head and loss together, on that many samples, where they were measured.
    pub fn measured_edges(&self, model: &Model, samples: f64, direction: Direction) -> Option<Seconds> {
        let line = self.measured(Operation::Edges, direction, || shapes::of_edges(model))?;
        Some(Seconds(line.of(samples)))
    }

    /// What they take the host.
    pub fn edges_issue(&self, model: &Model, samples: f64, direction: Direction) -> Issue {
        self.issue(Operation::Edges, direction, || shapes::of_edges(model)).of(samples)
    }

    /// A gate on that many tokens of a rank, where it was measured.
    pub fn measured_gate(&self, moe: &Moe, tokens: usize, direction: Direction) -> Option<Seconds> {
        let line = self.measured(Operation::Gate, direction, || shapes::of_gate(moe))?;
        Some(Seconds(line.of(tokens as f64)))
    }

    /// Rows of that many tokens put into the order of the exchange, where that was measured apart; otherwise it is a part of the gate.
    pub fn measured_permute(&self, moe: &Moe, tokens: usize) -> Seconds {
        let line = self.measured(Operation::Permute, Direction::Forward, || shapes::of_gate(moe));
        line.map_or(Seconds::ZERO, |line| Seconds(line.of(tokens as f64)))
    }

    /// What that takes the host.
    pub fn permute_issue(&self, moe: &Moe, tokens: usize) -> Issue {
        self.issue(Operation::Permute, Direction::Forward, || shapes::of_gate(moe)).of(tokens as f64)
    }

    /// What it takes the host.
    pub fn gate_issue(&self, moe: &Moe, tokens: usize, direction: Direction) -> Issue {
        self.issue(Operation::Gate, direction, || shapes::of_gate(moe)).of(tokens as f64)
    }

    /// Bytes of a parameter's gradient as it is summed over replicas.
    pub fn gradient_bytes(&self) -> f64 {
        memory::gradient_bytes(&self.cluster)
    }

    /// Whether what is done with model state once an iteration runs beside passes, under a system that does so by itself or does not.
    pub fn overlaps_state(&self, by_itself: bool) -> bool {
        self.cluster.program.overlap_state.unwrap_or(by_itself)
    }

    /// Launches of a block's small kernels, once per pass.
    pub fn block(&self) -> Seconds {
        Seconds(self.cluster.host.block.value)
    }

    /// The host waits for the device.
    pub fn synchronisation(&self) -> Seconds {
        Seconds(self.cluster.host.synchronisation.value)
    }

    /// One grouped call of an exchange of entries of `entry` bytes: each rank of `group` sends to and receives from all.
    pub fn exchange(&self, group: &Group, traffic: &Traffic, entry: Bytes) -> Seconds {
        if group.size() < 2 {
            return Seconds::ZERO;
        }
        let one_way = entry * traffic.intra as f64 / self.intra();
        let intra = one_way.max(entry * traffic.both as f64 / (self.intra_both_ways() * 2.0));
        let inter = (entry * traffic.inter as f64 / self.port()).max(entry * traffic.uplink / self.node());
        self.call_start() + Seconds(self.cluster.network.peer_start.value) * traffic.peers as f64 + intra.max(inter)
    }

    /// A ring all-reduce of `bytes` on every rank.
    pub fn all_reduce(&self, group: &Group, bytes: Bytes) -> Seconds {
        self.ring(group, bytes * 2.0)
    }

    /// A ring all-gather that leaves `bytes` on every rank, or a reduce-scatter of as much.
    pub fn all_gather(&self, group: &Group, bytes: Bytes) -> Seconds {
        self.ring(group, bytes)
    }

    /// `bytes` once around a ring, but for the part that a rank has.
    fn ring(&self, group: &Group, bytes: Bytes) -> Seconds {
        let size = group.size() as f64;
        if group.size() < 2 || bytes == Bytes::ZERO {
            return Seconds::ZERO;
        }
        bytes * ((size - 1.0) / size) / self.slowest_link(group) + self.call_start()
    }

    /// A ring reduce-scatter of `bytes` on every rank: the other half of an all-reduce.
    pub fn reduce_scatter(&self, group: &Group, bytes: Bytes) -> Seconds {
        self.all_gather(group, bytes)
    }

    /// One rank's `bytes` to the whole group, or the group's sum to one rank.
    pub fn broadcast(&self, group: &Group, bytes: Bytes) -> Seconds {
        if group.size() < 2 {
            return Seconds::ZERO;
        }
        let rooted = BytesPerSecond(self.cluster.network.rooted_bandwidth.value);
        let rate = if group.one_node() { self.intra_both_ways() } else { rooted.min(self.slowest_link(group)) };
        bytes / rate + self.call_start()
    }

    /// `bytes` from one rank to another while the other ranks of their nodes do the same.
    pub fn send(&self, from: usize, to: usize, bytes: Bytes) -> Seconds {
        let rate = match self.network.between(from, to) {
            None => self.intra(),
            Some(weight) => (self.node() / weight).min(self.port()),
        };
        bytes / rate + Seconds(self.cluster.network.send_start.value)
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

    /// One rank's part of the slowest links inside a group.
    pub fn rank_bandwidth(&self, group: &Group) -> BytesPerSecond {
        group.rank_uplink(self.node()).map_or(self.intra_both_ways(), |uplink| uplink.min(self.port()))
    }

    /// A decision of that many elementary steps on the host.
    pub fn decision(&self, steps: u64) -> Seconds {
        Seconds(self.cluster.host.decision_step.value) * steps as f64
    }

    /// Adam in mixed precision on `parameters`: bound by device memory, unless it was measured.
    pub fn optimizer(&self, parameters: f64) -> Seconds {
        if let Some(line) = self.measured(Operation::Optimizer, Direction::Forward, String::new) {
            return Seconds(line.of(parameters));
        }
        self.elementwise(Bytes(parameters * memory::OPTIMIZER_TRAFFIC_PER_PARAMETER))
    }

    /// What it takes the host.
    pub fn optimizer_issue(&self, parameters: f64) -> Issue {
        self.issue(Operation::Optimizer, Direction::Forward, String::new).of(parameters)
    }

    /// What the host takes for that many images of a rank; nothing where the cluster states no such constant.
    pub fn images(&self, images: f64) -> Seconds {
        Seconds(self.cluster.host.image.as_ref().map_or(0.0, |image| image.value)) * images
    }

    /// What every iteration costs besides.
    pub fn iteration(&self) -> Seconds {
        Seconds(self.cluster.host.iteration.value)
    }

    fn call_start(&self) -> Seconds {
        Seconds(self.cluster.network.call_start.value)
    }

    fn intra(&self) -> BytesPerSecond {
        BytesPerSecond(self.cluster.network.intra_bandwidth.value)
    }

    /// Each way, of a GPU that sends as much as it receives.
    pub fn intra_both_ways(&self) -> BytesPerSecond {
        let both = self.cluster.network.intra_both.as_ref();
        both.map_or(self.intra(), |both| BytesPerSecond(both.value / 2.0).min(self.intra()))
    }

    /// A whole node's bandwidth to others.
    fn node(&self) -> BytesPerSecond {
        BytesPerSecond(self.cluster.network.inter_bandwidth.value)
    }

    /// One GPU's bandwidth to other nodes.
    fn port(&self) -> BytesPerSecond {
        BytesPerSecond(self.cluster.network.port_bandwidth.value)
    }

    fn slowest_link(&self, group: &Group) -> BytesPerSecond {
        let intra = self.intra_both_ways();
        group.uplink(self.node(), self.port()).map_or(intra, |uplink| uplink.min(intra))
    }
}

fn line_of(passes: Passes, direction: Direction) -> Option<Line> {
    match direction {
        Direction::Forward => Some(passes.forward),
        Direction::Backward => passes.backward,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A GPU that receives three times what it sends takes as long as its links need one way; one that sends as much, as they need for both.
    #[test]
    fn links_are_full_one_way_or_both() {
        let mut cluster = Cluster::named("test", "h100x8").unwrap();
        let constant = |value| workloads::cluster::Constant { value, ..cluster.network.call_start.clone() };
        (cluster.network.intra_bandwidth, cluster.network.intra_both) = (constant(3e11), Some(constant(4e11)));
        let costs = CostModel::new(&cluster, 8);
        let group = costs.group(0..8, 1);
        let time = |sent: u64, received: u64| {
            let traffic = Traffic { intra: sent.max(received), both: sent + received, ..Traffic::default() };
            (costs.exchange(&group, &traffic, Bytes(1e9)) - costs.call_start()).0
        };
        assert!((time(1, 3) - 3.0 / 300.0).abs() < 1e-12 && (time(3, 3) - 6.0 / 400.0).abs() < 1e-12);
        let ring = costs.all_gather(&group, Bytes(8e9)) - costs.call_start();
        assert!((ring.0 - 7.0 / 200.0).abs() < 1e-12, "each way at once");
    }

    /// Of two experts, one start is left where they are multiplied together: as the program says, or as the cluster's does under every one.
    #[test]
    fn experts_start_together_or_apart() {
        let mut cluster = Cluster::named("test", "inky").unwrap();
        let moe = Moe::plain(8, 64, 1, 8);
        let start = cluster.gpu.expert_start.value;
        for (of_cluster, apart, together) in [(None, 2.0, 1.0), (Some(true), 1.0, 1.0), (Some(false), 2.0, 2.0)] {
            cluster.program.grouped_products = of_cluster;
            let costs = CostModel::new(&cluster, 1);
            for (direction, starts) in [(Direction::Forward, 1.0), (Direction::Backward, 2.0)] {
                let price = costs.expert(&moe, direction);
                let work = 2.0 * (price.of(9).0 - starts * start);
                for (products, number) in [(Products::PerExpert, apart), (Products::Grouped, together)] {
                    let found = price.of_all(&[9, 0, 9], products).0 - work;
                    assert!((found / start / starts - number).abs() < 1e-6, "{of_cluster:?}, {products:?}: {found}");
                }
            }
        }
    }

    /// 2 S E C H FLOP per product; 3 products backward for 2 forward.
    #[test]
    fn one_hot_products_are_the_formula() {
        let cluster = Cluster::named("test", "inky").unwrap();
        let costs = CostModel::new(&cluster, 1);
        let moe = Moe::plain(1, 64, 1, 8);
        let elements = 100.0 * 8.0 * 10.0;
        let expected = |products: f64, bytes: f64| {
            products * 2.0 * elements * 64.0 / cluster.gpu.gemm_rate.value
                + bytes * elements / cluster.gpu.memory_bandwidth.value
        };
        assert!((costs.one_hot(&moe, 100, 10, Direction::Forward).0 / expected(2.0, 22.0) - 1.0).abs() < 1e-12);
        assert!((costs.one_hot(&moe, 100, 10, Direction::Backward).0 / expected(3.0, 16.0) - 1.0).abs() < 1e-12);
    }
}
