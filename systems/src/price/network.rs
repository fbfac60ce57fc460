//! Where the ranks of a job are in the network, and which part of its links a group of them has.
//!
//! The network has tiers: nodes, and, where a cluster describes them, larger units of nodes (pods, racks). What leaves a unit
//! goes over its uplink, which all ranks of the job in that unit share. The groups of a plan communicate at the same time,
//! so a group has the part of an uplink that its ranks are of the job's ranks in the unit. Links are exclusive to the job.

use std::ops::Range;

use workloads::{BytesPerSecond, Cluster};

/// The network under the first `gpus` ranks of a cluster.
#[derive(Clone, Debug)]
pub struct Network {
    gpus: usize,
    /// Nodes first.
    tiers: Vec<Tier>,
}

#[derive(Clone, Copy, Debug)]
struct Tier {
    /// Ranks of a unit.
    ranks: usize,
    /// A node's network over the unit's uplink: how many times longer a byte takes on the latter.
    slowness: f64,
}

/// Ranks that communicate, as the network sees them.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// `[tier][rank]`: the unit of each rank, counted from the group's first; nodes always, then the tiers that the group
    /// crosses.
    units: Vec<Vec<usize>>,
    /// `[tier][unit]`: how many times longer a byte takes on the group's part of the uplink than on a node's whole network.
    weights: Vec<Vec<f64>>,
}

impl Network {
    /// The network under a job on the first `gpus` ranks.
    pub fn new(cluster: &Cluster, gpus: usize) -> Self {
        let node = Tier { ranks: cluster.gpus_per_node, slowness: 1.0 };
        let larger = cluster.network.tiers.iter().map(|tier| Tier {
            ranks: tier.nodes * cluster.gpus_per_node,
            slowness: cluster.network.inter_bandwidth.value / tier.uplink(),
        });
        Self { gpus, tiers: std::iter::once(node).chain(larger).collect() }
    }

    /// Tiers of `(ranks, slowness)`.
    #[cfg(test)]
    pub(super) fn of_tiers(gpus: usize, tiers: &[(usize, f64)]) -> Self {
        Self { gpus, tiers: tiers.iter().map(|&(ranks, slowness)| Tier { ranks, slowness }).collect() }
    }

    /// Whether all sets of `size` ranks, one after the other, lie in the network alike: none in several units of a tier of which it does not fill each.
    pub fn lie_alike(&self, size: usize) -> bool {
        self.tiers.iter().all(|tier| tier.ranks.is_multiple_of(size) || size.is_multiple_of(tier.ranks))
    }

    /// `[rank]` of a set: its node, where the job's ranks are in sets of that size, one after the other. Ranks are of one node that are so in every set.
    pub fn nodes_of_sets(&self, size: usize) -> Vec<usize> {
        let node = self.tiers[0].ranks;
        let begins = |at: &usize| *at > 0 && (*at..self.gpus).step_by(size).any(|rank| rank.is_multiple_of(node));
        (0..size)
            .scan(0, |number, at| {
                *number += usize::from(begins(&at));
                Some(*number)
            })
            .collect()
    }

    /// `ranks`, spaced `stride` apart.
    pub fn group(&self, ranks: Range<usize>, stride: usize) -> Group {
        self.group_of(ranks.step_by(stride))
    }

    /// `ranks`, ascending.
    pub fn group_of(&self, ranks: impl Iterator<Item = usize> + Clone) -> Group {
        let first = ranks.clone().next().unwrap_or(0);
        let last = ranks.clone().last().unwrap_or(first);
        let mut group = Group { units: Vec::new(), weights: Vec::new() };
        for (index, tier) in self.tiers.iter().enumerate() {
            let units: Vec<usize> = ranks.clone().map(|rank| rank / tier.ranks - first / tier.ranks).collect();
            if index > 0 && units.last() == Some(&0) {
                break;
            }
            let mut own = vec![0usize; last / tier.ranks - first / tier.ranks + 1];
            units.iter().for_each(|&unit| own[unit] += 1);
            // A unit between two of the group's may have none of its ranks.
            let weight = |(unit, &own): (usize, &usize)| match own {
                0 => 0.0,
                own => tier.slowness * (self.job_ranks(tier, first / tier.ranks + unit) as f64 / own as f64),
            };
            group.weights.push(own.iter().enumerate().map(weight).collect());
            group.units.push(units);
        }
        group
    }

    /// How many times longer a byte takes from one rank to another than over a node's whole network, while the other ranks
    /// of both units send as well; none inside a node.
    pub fn between(&self, from: usize, to: usize) -> Option<f64> {
        let crossed = self.tiers.iter().filter(|tier| from / tier.ranks != to / tier.ranks);
        let weight = |tier: &Tier| {
            let most = [from, to].map(|rank| self.job_ranks(tier, rank / tier.ranks)).into_iter().fold(1, usize::max);
            tier.slowness * most as f64
        };
        crossed.map(weight).reduce(f64::max)
    }

    /// Ranks of the job in a unit.
    fn job_ranks(&self, tier: &Tier, unit: usize) -> usize {
        self.gpus.saturating_sub(unit * tier.ranks).min(tier.ranks)
    }
}

impl Group {
    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.nodes().len()
    }

    /// `[rank]`: its node, counted from the group's first.
    pub fn nodes(&self) -> &[usize] {
        &self.units[0]
    }

    /// Whether it is on one node.
    pub fn one_node(&self) -> bool {
        self.nodes().last().is_none_or(|&last| last == 0)
    }

    /// Tiers whose units two ranks do not share: 0 for ranks of one node.
    #[inline]
    pub fn crossed(&self, from: usize, to: usize) -> usize {
        self.units.iter().take_while(|units| units[from] != units[to]).count()
    }

    /// Of every tier that the group has ranks in several units of: `[rank]` units and `[unit]` weights.
    pub fn tiers(&self) -> impl Iterator<Item = (&[usize], &[f64])> {
        let several = usize::from(!self.one_node()) * self.units.len();
        self.units[..several].iter().zip(&self.weights).map(|(units, weights)| (units.as_slice(), weights.as_slice()))
    }

    /// The bandwidth of one rank's part of the slowest uplink, where a node's whole network has `node`; none on one node.
    pub fn rank_uplink(&self, node: BytesPerSecond) -> Option<BytesPerSecond> {
        let of_tier = |(units, weights): (&[usize], &[f64])| {
            let of_unit = units.chunk_by(|a, b| a == b).map(|unit| weights[unit[0]] * unit.len() as f64);
            of_unit.fold(0.0, f64::max)
        };
        self.tiers().map(of_tier).reduce(f64::max).map(|weight| node / weight)
    }

    /// The bandwidth of the group's part of its slowest uplink, where a node's whole network has `node` and a GPU's port `port`; none on one node.
    pub fn uplink(&self, node: BytesPerSecond, port: BytesPerSecond) -> Option<BytesPerSecond> {
        let (of_ranks, _) = self.tiers().next()?;
        let fewest = of_ranks.chunk_by(|a, b| a == b).map(<[usize]>::len).min()?;
        let slowest = self.tiers().flat_map(|(_, weights)| weights).copied().reduce(f64::max)?;
        Some((node / slowest).min(BytesPerSecond(port.0 * fewest as f64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights of the uplinks of `ranks`, by tier.
    fn weights(gpus: usize, tiers: &[(usize, f64)], ranks: Range<usize>, stride: usize) -> Vec<Vec<f64>> {
        Network::of_tiers(gpus, tiers).group(ranks, stride).tiers().map(|(_, weights)| weights.to_vec()).collect()
    }

    #[test]
    fn a_group_has_the_part_of_an_uplink_that_its_ranks_are() {
        let nodes_of = |size| [(size, 1.0)];
        // Inside a node there is no uplink.
        assert!(weights(8, &nodes_of(8), 0..8, 1).is_empty());
        // The second node has four of the job's ranks, all in the group.
        assert_eq!(weights(12, &nodes_of(8), 0..12, 1), [[1.0, 1.0]]);
        // Groups of six on three nodes of four: the node between is shared.
        assert_eq!(weights(12, &nodes_of(4), 0..6, 1), [[1.0, 2.0]]);
        assert_eq!(weights(12, &nodes_of(4), 6..12, 1), [[2.0, 1.0]]);
        // One rank on each node.
        assert_eq!(weights(16, &nodes_of(8), 0..16, 8), [[8.0, 8.0]]);
        // The first and the last of three nodes.
        assert_eq!(weights(24, &nodes_of(8), 0..17, 16), [[8.0, 0.0, 8.0]]);
    }

    /// The ninth of nine ranks has a node's whole network to itself, which it reaches by its own port.
    #[test]
    fn ranks_bring_no_more_than_their_ports() {
        let uplink = |gpus: usize| {
            let network = Network::of_tiers(gpus, &[(8, 1.0)]);
            network.group(0..gpus, 1).uplink(BytesPerSecond(80.0), BytesPerSecond(10.0)).map(|rate| rate.0)
        };
        assert_eq!([uplink(8), uplink(9), uplink(12), uplink(16)], [None, Some(10.0), Some(40.0), Some(80.0)]);
    }

    #[test]
    fn ranks_of_a_node_are_so_in_every_set() {
        let nodes = |gpus: usize, size: usize| Network::of_tiers(gpus, &[(12, 1.0)]).nodes_of_sets(size);
        assert_eq!(nodes(24, 4), [0; 4]);
        assert_eq!(nodes(48, 24), [[0; 12], [1; 12]].concat());
        // The second node begins with the fifth rank of the second set, which is the last.
        assert_eq!(nodes(16, 8), [0, 0, 0, 0, 1, 1, 1, 1]);
        assert_eq!(nodes(15, 5), [0, 0, 1, 1, 1]);
    }

    #[test]
    fn sets_that_fit_into_nodes_lie_alike() {
        let network = Network::of_tiers(48, &[(12, 1.0), (24, 2.0)]);
        assert!([1, 4, 6, 12, 24, 48].into_iter().all(|size| network.lie_alike(size)));
        assert!(![5, 8, 16, 36].into_iter().any(|size| network.lie_alike(size)));
    }

    #[test]
    fn tiers_count_where_they_are_crossed() {
        let tiers = [(2, 1.0), (4, 0.5), (8, 3.0)];
        let network = Network::of_tiers(12, &tiers);
        let group = network.group(0..4, 1);
        assert_eq!(group.tiers().count(), 1, "one pod, nothing leaves it");
        let group = network.group(2..12, 2);
        assert_eq!(group.nodes(), [0, 1, 2, 3, 4]);
        assert_eq!(
            weights(12, &tiers, 2..12, 2),
            [vec![2.0; 5], vec![0.5 * 4.0, 0.5 * 2.0, 0.5 * 2.0], vec![3.0 * 8.0 / 3.0, 3.0 * 2.0]]
        );
        assert_eq!([group.crossed(0, 1), group.crossed(1, 2), group.crossed(2, 3)], [2, 1, 3]);
        let port = BytesPerSecond(9.0);
        assert_eq!(group.uplink(BytesPerSecond(8.0), port), Some(BytesPerSecond(1.0)));
        // Eight ranks share the slowest tier's first uplink, which has a third of a node's network.
        assert_eq!(group.rank_uplink(BytesPerSecond(24.0)), Some(BytesPerSecond(1.0)));
        assert_eq!(
            [network.between(0, 1), network.between(1, 2), network.between(7, 8)],
            [None, Some(2.0), Some(24.0)]
        );
    }
}
