//! Clusters as described hardware: GPUs, links and host, every constant with where it comes from.
//!
//! A cluster's TOML is data, not configuration: a constant is a value in SI units and a `source` (a datasheet, a
//! measurement, or a fit to named measurements with its uncertainty). Where the datasheet bounds it, it says so (`peak`),
//! and neither a file nor a fit may go beyond. Code has no default for any of them.

use std::borrow::Cow;

use serde::Deserialize;

use crate::Bytes;
use crate::error::{self, ConfigError};
use crate::fields;
use crate::measured::MeasuredOperation;
use crate::training::Gradients;

/// A cluster that can be simulated.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Its name on the command line.
    pub name: String,
    /// What it is, for people.
    #[serde(default)]
    pub description: String,
    /// Consecutive ranks that share a node.
    pub gpus_per_node: usize,
    /// One GPU.
    pub gpu: Gpu,
    /// Links inside and between nodes.
    pub network: Network,
    /// What the host adds.
    pub host: Host,
    /// What the training program does there, under every system; as the programs of the studies where it is absent.
    #[serde(default)]
    pub program: Program,
}

/// What a training program does otherwise than those of the studies, under every system: systems are compared in one program.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Program {
    /// A parameter's gradient as it is held and summed over replicas, B.
    pub gradient: Option<Constant>,
    /// What it keeps of a forward pass until the backward pass, and holds for copies of experts and for shards of optimizer state.
    pub activations: Activations,
    /// Whether a rank multiplies all of its experts in one grouped product; where absent, as each system does.
    pub grouped_products: Option<bool>,
    /// Whether what is done with model state once an iteration runs beside passes; where absent, as each system does.
    pub overlap_state: Option<bool>,
}

/// What a program keeps of a forward pass until the backward pass, and holds for copies of experts and for shards of optimizer state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activations {
    /// What the formulas of the studies say; all layers share what copies need.
    #[default]
    Published,
    /// What this program's trainer keeps, counted from its code ([`crate::model::saved`]); every layer has slots for copies, and
    /// shards of optimizer state alone have weights and gradients beside those in slots.
    Counted,
}

/// A GPU's rates and memory.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// Product name.
    pub name: String,
    /// Device memory, B.
    pub memory: Constant,
    /// Memory that a job cannot use: context, communication buffers, fragmentation, B.
    pub memory_reserved: Constant,
    /// Bandwidth of device memory that streaming kernels reach, B/s.
    pub memory_bandwidth: Constant,
    /// Bandwidth that kernels reach which gather and scatter rows by index, B/s.
    pub scatter_bandwidth: Constant,
    /// Rate that half-precision matrix products reach, FLOP/s.
    pub gemm_rate: Constant,
    /// What an expert with any rows takes beyond arithmetic and memory traffic, forward (twice that backward): the
    /// launches of its kernels, one after the other, s.
    pub expert_start: Constant,
    /// How many times what a block stores outside its experts goes through memory in a forward pass: twice, written and read, where
    /// its small kernels are fused and the cluster states no such constant; more where a program runs normalisations,
    /// rotations and sums one by one.
    pub block_traffic: Option<Constant>,
    /// What an hour of one costs, in the currency that its source names. No time depends on it.
    pub hour_price: Option<Constant>,
    /// Operations that were measured there one by one; formulas say what all others take.
    #[serde(default)]
    pub measured: Vec<MeasuredOperation>,
}

/// Bandwidths in each direction and start-up times. A node is the first tier; larger units of nodes may follow.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// One GPU's bandwidth to the others of its node, B/s each way.
    pub intra_bandwidth: Constant,
    /// What one GPU sends to the others of its node and receives from them, together, B/s: [`Self::intra_bandwidth`] to twice that, which is meant where it is absent.
    pub intra_both: Option<Constant>,
    /// A whole node's bandwidth to other nodes, shared by its GPUs, B/s each way.
    pub inter_bandwidth: Constant,
    /// One GPU's bandwidth to other nodes, B/s each way.
    pub port_bandwidth: Constant,
    /// Rate of a broadcast from, or a reduction to, one GPU across nodes, B/s.
    pub rooted_bandwidth: Constant,
    /// Start-up of one grouped call or collective, s.
    pub call_start: Constant,
    /// Start-up for each peer on another node in a grouped call, s.
    pub peer_start: Constant,
    /// Start-up of one send between two ranks, s.
    pub send_start: Constant,
    /// By how much longer kernels take while an exchange or a transfer of weights runs on their GPU, as a share of their time.
    pub slows_kernels: Option<Constant>,
    /// By how much longer a transfer of weights takes while kernels run on its GPUs, as a share of its time.
    pub slowed_by_kernels: Option<Constant>,
    /// Units of several nodes whose links to each other may be fewer than their nodes', smallest first. Without any, every
    /// node reaches every other at its full rate.
    #[serde(default)]
    pub tiers: Vec<Tier>,
}

impl Network {
    /// Multiplies every bandwidth between nodes; start-ups stay.
    pub fn scale_between_nodes(&mut self, factor: f64) {
        let tiers = self.tiers.iter_mut().map(|tier| &mut tier.bandwidth);
        let between = [&mut self.inter_bandwidth, &mut self.port_bandwidth, &mut self.rooted_bandwidth];
        between.into_iter().chain(tiers).for_each(|bandwidth| bandwidth.value *= factor);
    }
}

/// Nodes that share links to the rest of the cluster: a pod, a rack, a rail group.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    /// What such a unit is called.
    pub name: String,
    /// Consecutive nodes of a unit.
    pub nodes: usize,
    /// What a unit's nodes could send to other units together, were its links not oversubscribed, B/s each way.
    pub bandwidth: Constant,
    /// How many times more its nodes may send than its links carry; 1 for a tier that is no bottleneck by itself.
    pub oversubscription: Constant,
}

impl Tier {
    /// A whole unit's bandwidth to other units, B/s each way.
    pub fn uplink(&self) -> f64 {
        self.bandwidth.value / self.oversubscription.value
    }
}

/// Work of the host that the GPU waits for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Per training iteration: data loading, logging, loss scaling, s.
    pub iteration: Constant,
    /// Per pass through a transformer block: launches of its small kernels, s.
    pub block: Constant,
    /// Per wait of the host for the device, s.
    pub synchronisation: Constant,
    /// Per call of an exchange between ranks until it is issued, beside its parts, s. This and the three that follow count where operations state
    /// what they take to be issued ([`crate::measured::MeasuredOperation`]); exchanges take a host no time where they are absent.
    pub exchange: Option<Constant>,
    /// Besides, per rank and per part of a transfer that such a call sends to or receives from, s.
    pub part: Option<Constant>,
    /// Per call of an exchange when its result is needed: the GPU is told to wait for it, s.
    pub arrival: Option<Constant>,
    /// Per exchange of counts until it is issued, s.
    pub counts: Option<Constant>,
    /// From then until the host has read the counts of all ranks of a node, where nothing is before it on the GPU, s. Where absent, an exchange of as
    /// many bytes and, if a program says so, a synchronisation; between nodes, that exchange and what this is longer than a call.
    pub reading: Option<Constant>,
    /// Per image that a rank trains on: decoding and augmenting it, and launches of a deep thin network, where a model of images
    /// was measured, s.
    pub image: Option<Constant>,
    /// One elementary step of an online decision (one expert held against one rank), s.
    pub decision_step: Constant,
}

/// A number and where it comes from.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a constant such as { value = 8e10, source = \"where it comes from\" }")]
pub struct Constant {
    /// In SI units.
    pub value: f64,
    /// Standard error, in the same unit, when the value was fitted or measured.
    pub uncertainty: Option<f64>,
    /// What the hardware's datasheet promises at most, in the same unit.
    pub peak: Option<f64>,
    /// Datasheet, measurement or fit.
    pub source: String,
}

impl Constant {
    /// Whether it is a number of at least 0, not beyond its peak, with a source; `field` is its path in `file`.
    pub(crate) fn check(&self, file: &str, field: &str) -> Result<(), ConfigError> {
        for (part, value) in [("value", Some(self.value)), ("uncertainty", self.uncertainty), ("peak", self.peak)] {
            if let Some(value) = value.filter(|value| !(value.is_finite() && *value >= 0.0)) {
                let field = format!("{field}.{part}");
                return Err(ConfigError::value(file, field, value, "a number of at least 0"));
            }
        }
        if let Some(peak) = self.peak.filter(|&peak| self.value > peak) {
            let expected = format!("at most its peak, {peak:e}");
            return Err(ConfigError::value(file, format!("{field}.value"), format!("{:e}", self.value), expected));
        }
        if self.source.trim().is_empty() {
            return Err(ConfigError::value(file, format!("{field}.source"), "\"\"", "where the value comes from"));
        }
        Ok(())
    }
}

impl Gpu {
    /// Memory that a job can use.
    pub fn usable(&self) -> Bytes {
        Bytes(self.memory.value - self.memory_reserved.value)
    }
}

impl Cluster {
    /// Reads a cluster's TOML; `file` names it in errors.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        let cluster: Self = fields::parse(&fields::CLUSTER, file, text)?;
        ConfigError::check_extent(file, "gpus_per_node", cluster.gpus_per_node)?;
        for (field, constant, may_be_zero) in cluster.constants() {
            constant.check(file, &field)?;
            if constant.value == 0.0 && !may_be_zero {
                return Err(ConfigError::value(file, format!("{field}.value"), constant.value, "a number above 0"));
            }
        }
        let Gpu { memory, memory_reserved: reserved, .. } = &cluster.gpu;
        if reserved.value >= memory.value {
            let expected = format!("less than gpu.memory, {:e} B", memory.value);
            return Err(ConfigError::value(
                file,
                "gpu.memory_reserved.value",
                format!("{:e}", reserved.value),
                expected,
            ));
        }
        if let Some(price) = &cluster.gpu.hour_price {
            price.check(file, "gpu.hour_price")?;
        }
        if let (Some(both), one_way) = (&cluster.network.intra_both, cluster.network.intra_bandwidth.value)
            && !(one_way..=2.0 * one_way).contains(&both.value)
        {
            let expected = format!("from intra_bandwidth to twice that, {one_way:e} to {:e}", 2.0 * one_way);
            return Err(ConfigError::value(file, "network.intra_both.value", format!("{:e}", both.value), expected));
        }
        cluster.check_tiers(file)?;
        cluster.check_measured(file)?;
        Ok(cluster)
    }

    /// No operation is stated twice.
    fn check_measured(&self, file: &str) -> Result<(), ConfigError> {
        for (number, of) in self.gpu.measured.iter().enumerate() {
            of.check(file)?;
            let same = |other: &MeasuredOperation| other.operation == of.operation && other.shape == of.shape;
            if self.gpu.measured[..number].iter().any(same) {
                let field = format!("gpu.measured {} ({})", of.operation.name(), of.shape);
                return Err(ConfigError::value(file, field, "given twice", "every operation of a shape once"));
            }
        }
        Ok(())
    }

    /// Bytes of a parameter's gradient as it is held and summed over replicas, where that is stated.
    pub fn gradient_bytes(&self) -> Option<f64> {
        self.program.gradient.as_ref().map(|gradient| gradient.value)
    }

    /// Under a training that holds and sums gradients in that kind: where the program's are stated, half precision is told.
    pub fn with_gradients(&mut self, gradients: Gradients) {
        if let (Some(gradient), Gradients::Half) = (&mut self.program.gradient, gradients) {
            *gradient = Constant {
                value: gradients.bytes(),
                uncertainty: None,
                peak: None,
                source: "stated: training.gradients is half".to_owned(),
            };
        }
    }

    /// Every tier's units are made of whole units of the tier before, and no tier carries more than its bandwidth.
    fn check_tiers(&self, file: &str) -> Result<(), ConfigError> {
        let mut before = 1;
        for tier in &self.network.tiers {
            let field = |name: &str| format!("network.tiers.{}.{name}", tier.name);
            ConfigError::check_extent(file, &field("nodes"), tier.nodes)?;
            if tier.nodes <= before || !tier.nodes.is_multiple_of(before) {
                let expected = format!("a multiple of {before}, the nodes of the tier before, and more than that");
                return Err(ConfigError::value(file, field("nodes"), tier.nodes, expected));
            }
            let factor = tier.oversubscription.value;
            if factor < 1.0 {
                return Err(ConfigError::value(file, field("oversubscription.value"), factor, "at least 1"));
            }
            before = tier.nodes;
        }
        Ok(())
    }

    /// A cluster that comes with moebench.
    pub fn named(context: &str, name: &str) -> Result<Self, ConfigError> {
        Self::parse(name, Self::text(context, name)?)
    }

    /// The TOML of a cluster that comes with moebench.
    pub fn text(context: &str, name: &str) -> Result<&'static str, ConfigError> {
        error::find("cluster", context, name, CLUSTERS)
    }

    /// The names of all clusters that come with moebench.
    pub fn names() -> impl Iterator<Item = &'static str> {
        CLUSTERS.iter().map(|(name, _)| *name)
    }

    /// Every constant with its field's path and whether it may be zero. A tier's constants are `network.tiers.NAME.FIELD`.
    pub fn constants(&self) -> Vec<(Cow<'static, str>, &Constant, bool)> {
        let (gpu, network, host) = (&self.gpu, &self.network, &self.host);
        let fixed = [
            ("gpu.memory", &gpu.memory, false),
            ("gpu.memory_reserved", &gpu.memory_reserved, true),
            ("gpu.memory_bandwidth", &gpu.memory_bandwidth, false),
            ("gpu.scatter_bandwidth", &gpu.scatter_bandwidth, false),
            ("gpu.gemm_rate", &gpu.gemm_rate, false),
            ("gpu.expert_start", &gpu.expert_start, true),
            ("network.intra_bandwidth", &network.intra_bandwidth, false),
            ("network.inter_bandwidth", &network.inter_bandwidth, false),
            ("network.port_bandwidth", &network.port_bandwidth, false),
            ("network.rooted_bandwidth", &network.rooted_bandwidth, false),
            ("network.call_start", &network.call_start, true),
            ("network.peer_start", &network.peer_start, true),
            ("network.send_start", &network.send_start, true),
            ("host.iteration", &host.iteration, true),
            ("host.block", &host.block, true),
            ("host.synchronisation", &host.synchronisation, true),
            ("host.decision_step", &host.decision_step, true),
        ];
        let of_tiers = network.tiers.iter().flat_map(|tier| {
            [("bandwidth", &tier.bandwidth), ("oversubscription", &tier.oversubscription)]
                .map(|(field, constant)| (Cow::Owned(format!("network.tiers.{}.{field}", tier.name)), constant, false))
        });
        let traffic = gpu.block_traffic.iter().map(|constant| ("gpu.block_traffic", constant, false));
        let images = host.image.iter().map(|constant| ("host.image", constant, true));
        let exchanges = [
            ("host.exchange", &host.exchange),
            ("host.part", &host.part),
            ("host.arrival", &host.arrival),
            ("host.counts", &host.counts),
            ("host.reading", &host.reading),
        ];
        let exchanges = exchanges.into_iter().filter_map(|(path, constant)| Some((path, constant.as_ref()?, true)));
        let program = self.program.gradient.iter().map(|gradient| ("program.gradient", gradient, false));
        let beside = [
            ("network.intra_both", &network.intra_both, false),
            ("network.slows_kernels", &network.slows_kernels, true),
            ("network.slowed_by_kernels", &network.slowed_by_kernels, true),
        ];
        let beside = beside.into_iter().filter_map(|(path, constant, zero)| Some((path, constant.as_ref()?, zero)));
        let named = fixed
            .into_iter()
            .chain(traffic)
            .chain(images)
            .chain(exchanges)
            .chain(beside)
            .chain(program)
            .map(|(path, constant, zero)| (Cow::Borrowed(path), constant, zero));
        named.chain(of_tiers).collect()
    }

    /// Every constant with its field's path, to change.
    pub fn constants_mut(&mut self) -> Vec<(Cow<'static, str>, &mut Constant)> {
        let paths: Vec<Cow<'static, str>> = self.constants().into_iter().map(|(path, ..)| path).collect();
        let (gpu, network, host) = (&mut self.gpu, &mut self.network, &mut self.host);
        let program = self.program.gradient.iter_mut();
        let fixed = [
            &mut gpu.memory,
            &mut gpu.memory_reserved,
            &mut gpu.memory_bandwidth,
            &mut gpu.scatter_bandwidth,
            &mut gpu.gemm_rate,
            &mut gpu.expert_start,
            &mut network.intra_bandwidth,
            &mut network.inter_bandwidth,
            &mut network.port_bandwidth,
            &mut network.rooted_bandwidth,
            &mut network.call_start,
            &mut network.peer_start,
            &mut network.send_start,
            &mut host.iteration,
            &mut host.block,
            &mut host.synchronisation,
            &mut host.decision_step,
        ];
        let of_tiers = network.tiers.iter_mut().flat_map(|tier| [&mut tier.bandwidth, &mut tier.oversubscription]);
        let exchanges = [&mut host.exchange, &mut host.part, &mut host.arrival, &mut host.counts, &mut host.reading]
            .into_iter()
            .flatten();
        let beside =
            [&mut network.intra_both, &mut network.slows_kernels, &mut network.slowed_by_kernels].into_iter().flatten();
        let optional = gpu.block_traffic.iter_mut().chain(&mut host.image).chain(exchanges).chain(beside);
        paths.into_iter().zip(fixed.into_iter().chain(optional).chain(program).chain(of_tiers)).collect()
    }
}

macro_rules! embedded {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../clusters/", $name, ".toml")))),*] };
}

/// Every cluster in `workloads/clusters/`.
const CLUSTERS: &[(&str, &str)] =
    embedded!["inky", "pinky", "nico", "nico-placement", "a100x8", "h100x8", "h200x8", "b200x8", "gb200x72"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_in_half_precision_are_told_where_a_program_states_them() {
        let mut cluster = Cluster::named("test", "inky").unwrap();
        cluster.with_gradients(Gradients::Half);
        assert_eq!(cluster.gradient_bytes(), None);
        let gradient = Constant { value: 4.0, ..cluster.gpu.memory.clone() };
        cluster.program.gradient = Some(gradient);
        let bytes = |gradients| {
            let mut cluster = cluster.clone();
            cluster.with_gradients(gradients);
            cluster.gradient_bytes()
        };
        assert_eq!([Gradients::Single, Gradients::Half].map(bytes), [Some(4.0), Some(2.0)]);
    }

    #[test]
    fn all_clusters_are_sound() {
        for name in Cluster::names() {
            let cluster = Cluster::named("test", name).unwrap();
            assert_eq!(cluster.name, name);
        }
    }

    /// What a source says of another value: `taken as FIELD` of the same table, `taken from CLUSTER` of the same field.
    #[test]
    fn a_source_that_names_another_value_agrees_with_it() {
        let value = |cluster: &Cluster, path: &str| {
            let found = cluster.constants().into_iter().find(|(known, ..)| *known == path).map(|(_, c, _)| c.value);
            found.unwrap_or_else(|| panic!("{}: no constant `{path}`", cluster.name))
        };
        let after = |text: &str, words: &str| {
            let rest = &text[text.find(words)? + words.len()..];
            Some(rest.split([' ', ':', ';', ',']).next().unwrap_or("").to_owned())
        };
        let mut checked = 0;
        for name in Cluster::names() {
            let cluster = Cluster::named("test", name).unwrap();
            for (path, constant, _) in cluster.constants() {
                let place = format!("{name}: {path}: {}", constant.source);
                if let Some(field) = after(&constant.source, "taken as ") {
                    let table = path.split('.').next().unwrap();
                    assert_eq!(constant.value, value(&cluster, &format!("{table}.{field}")), "{place}");
                    checked += 1;
                }
                if let Some(other) = after(&constant.source, "taken from ") {
                    let other = Cluster::named("test", &other).unwrap();
                    assert_eq!(constant.value, value(&other, &path), "{place}");
                    checked += 1;
                }
            }
        }
        assert!(checked > 20, "{checked} sources name another value");
    }

    #[test]
    fn constants_to_change_are_those_to_read() {
        let mut cluster = Cluster::parse("tiers", &with_tiers(&[(2, 4.0), (8, 1.0)])).unwrap();
        for (path, constant) in cluster.constants_mut() {
            constant.source = path.into_owned();
        }
        assert_eq!(cluster.constants().len(), 17 + 4);
        assert!(cluster.constants().iter().all(|(path, constant, _)| constant.source == *path));
    }

    /// inky with tiers of that many nodes and that oversubscription.
    fn with_tiers(tiers: &[(usize, f64)]) -> String {
        let mut text = CLUSTERS[0].1.to_owned();
        for (nodes, factor) in tiers {
            text += &format!(
                "\n[[network.tiers]]\nname = \"of{nodes}\"\nnodes = {nodes}\n\
                 bandwidth = {{ value = 5e10, source = \"a test\" }}\n\
                 oversubscription = {{ value = {factor:?}, source = \"a test\" }}\n"
            );
        }
        text
    }

    #[test]
    fn tiers_hold_whole_tiers_and_carry_no_more_than_their_bandwidth() {
        let cluster = Cluster::parse("tiers", &with_tiers(&[(2, 4.0), (8, 1.0)])).unwrap();
        assert_eq!(cluster.network.tiers.iter().map(Tier::uplink).collect::<Vec<_>>(), [1.25e10, 5e10]);
        let check = |tiers: &[(usize, f64)], expected: &str| {
            let message = Cluster::parse("c.toml", &with_tiers(tiers)).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check(&[(1, 1.0)], "network.tiers.of1.nodes = 1: expected a multiple of 1");
        check(&[(4, 1.0), (6, 1.0)], "network.tiers.of6.nodes = 6: expected a multiple of 4");
        check(&[(4, 0.5)], "network.tiers.of4.oversubscription.value = 0.5: expected at least 1");
        check(&[(4, -1.0)], "network.tiers.of4.oversubscription.value = -1");
    }

    #[test]
    fn bad_constants_name_the_field() {
        let good = CLUSTERS[0].1;
        let check = |from: &str, to: &str, expected: &str| {
            assert!(good.contains(from), "{from}");
            let message = Cluster::parse("c.toml", &good.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check("gpus_per_node = 8", "gpus_per_node = 0", "gpus_per_node = 0: expected at least 1");
        check("gpus_per_node = 8", "gpus_per_node = 1000000000000", "expected 1 to 1048576");
        check("gpus_per_node = 8", "gpus_per_nod = 8", "unknown field `gpus_per_nod`");
        check("gemm_rate = { value = ", "gemm_rate = { value = -", "gpu.gemm_rate.value = -");
        check("gemm_rate = { value = ", "gemm_rate = { value = nan, unit = ", "unknown field `unit`");
        check("gemm_rate = { value = 1", "gemm_rate = { value = 9", "expected at most its peak, 3.12e14");
        check("gemm_rate = { value = 1.816e14", "gemm_rate = { value = inf", "gpu.gemm_rate.value = inf");
        check("peak = 3.12e14", "peak = nan", "gpu.gemm_rate.peak = NaN: expected a number of at least 0");
    }
}
