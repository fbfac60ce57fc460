//! Measured loads: how many entries the experts of each rank computed in one micro-batch of one layer; and what the gate must have
//! chosen for that.
//!
//! Loads of ranks whose experts stand in order are the gate's own choices, summed over what nobody counted apart. The mapping
//! ([`Micro::choices`]) is: (1) ranks of a node that hold the same experts share the choices of that node, so their loads
//! are added up to one load for each set of experts and node; (2) inside a set, experts differ as much as independent loads do whose sums
//! scatter as the sets of the layer do, the first of a set being the most loaded ([`within_sets`]); (3) the ranks of a node
//! chose alike. Where no expert is copied across nodes, (1) and (3) give every rank the very load that was measured.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use serde::Deserialize;

use crate::measurements;

/// Loads of several runs, by method and model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RankLoads {
    runs: BTreeMap<(String, String), RunLoads>,
}

/// Loads of one run: `[layer][iteration]`, as far as they were recorded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunLoads {
    pub layers: Vec<Vec<Micro>>,
}

/// Entries that the experts of each rank computed in one micro-batch: `[rank]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Micro(pub Vec<u64>);

#[derive(Deserialize)]
struct Row {
    rank: usize,
    method: String,
    model_name: String,
    layer: usize,
    iter: usize,
    token_num: u64,
}

/// A load above this is no number of entries.
const MOST_ENTRIES: u64 = 1 << 40;

/// `[layer][iteration][rank]`, as numbered in the file.
type Numbered = BTreeMap<usize, BTreeMap<usize, BTreeMap<usize, u64>>>;

impl RankLoads {
    /// Adds a file.
    ///
    /// # Errors
    /// A cell that is no number, a load given twice, or ranks that are missing: with file, line and column.
    pub fn add(&mut self, path: &Path) -> Result<()> {
        let file = measurements::open(path)?;
        let mut numbered: BTreeMap<(String, String), Numbered> = BTreeMap::new();
        for row in file.rows() {
            let Row { rank, method, model_name, layer, iter, token_num } = row.read()?;
            if token_num > MOST_ENTRIES {
                return Err(row
                    .wrong(format!("token_num = {token_num}: expected at most {MOST_ENTRIES} entries"))
                    .into());
            }
            let key = (method.to_lowercase(), model_name);
            let ranks = numbered.entry(key).or_default().entry(layer).or_default().entry(iter).or_default();
            if ranks.insert(rank, token_num).is_some() {
                let place = format!("rank = {rank}, layer = {layer}, iter = {iter}");
                return Err(row.wrong(format!("{place}: expected every load once")).into());
            }
        }
        for (run, layers) in numbered {
            let place = format!("{}: {} on {}", file.name(), run.0, run.1);
            if self.runs.insert(run, RunLoads::new(&place, layers)?).is_some() {
                bail!("{place}: loads of this run are in another file, too: expected them once");
            }
        }
        Ok(())
    }

    /// The runs of a method, by model.
    pub fn of(&self, method: &str) -> impl Iterator<Item = (&str, &RunLoads)> {
        let runs = self.runs.iter().filter(move |((other, _), _)| other == method);
        runs.map(|((_, model), loads)| (model.as_str(), loads))
    }
}

impl RunLoads {
    /// Numbers of layers and iterations may have gaps; ranks may not, and all micro-batches have as many.
    fn new(place: &str, layers: Numbered) -> Result<Self> {
        let ranks = layers.values().flat_map(BTreeMap::values).map(BTreeMap::len).max().unwrap_or(0);
        for (layer, iterations) in &layers {
            for (iteration, loads) in iterations {
                let missing = (0..ranks).find(|rank| !loads.contains_key(rank));
                if let Some(missing) = missing {
                    bail!(
                        "{place}: layer {layer}, iter {iteration}: no load of rank {missing}, expected {ranks} ranks"
                    );
                }
                ensure!(loads.values().any(|&load| load > 0), "{place}: layer {layer}, iter {iteration}: no entries");
            }
        }
        let micro = |loads: BTreeMap<usize, u64>| Micro(loads.into_values().collect());
        let of_layer = |layer: BTreeMap<usize, _>| layer.into_values().map(micro).collect();
        Ok(Self { layers: layers.into_values().map(of_layer).collect() })
    }

    /// The micro-batch that stands for iteration `iteration` of layer `layer` of a model of `layers` layers: recorded layers
    /// are spread over the model's, and recorded iterations gone through again.
    pub fn micro(&self, layer: usize, layers: usize, iteration: usize) -> &Micro {
        let of_layer = &self.layers[layer * self.layers.len() / layers];
        &of_layer[iteration % of_layer.len()]
    }
}

impl Micro {
    /// The busiest rank's load over the mean.
    pub fn imbalance(&self) -> f64 {
        let (sum, most) = self.0.iter().fold((0, 0), |(sum, most), &load| (sum + load, most.max(load)));
        most as f64 * self.0.len() as f64 / sum as f64
    }

    /// What the gate chose on each node, as shares of its entries, `[node][expert]`: of ranks, `per_node` a node, of which those
    /// `sets` apart hold the same `experts / sets` experts, in order.
    pub fn choices(&self, per_node: usize, sets: usize, experts: usize) -> Vec<Vec<f64>> {
        let held = experts / sets;
        let of_sets = |loads: &[u64]| {
            let mut of_sets = vec![0.0; sets];
            loads.iter().enumerate().for_each(|(rank, &load)| of_sets[rank % sets] += load as f64);
            let all: f64 = of_sets.iter().sum();
            of_sets.iter_mut().for_each(|load| *load /= all.max(1.0));
            of_sets
        };
        let within = within_sets(&of_sets(&self.0), held);
        let of_experts = |of_sets: Vec<f64>| {
            of_sets
                .iter()
                .zip(within.chunks_exact(held))
                .flat_map(|(&set, within)| within.iter().map(move |w| set * w))
                .collect()
        };
        self.0.chunks(per_node).map(|node| of_experts(of_sets(node))).collect()
    }
}

/// What each of `held` experts has of its set, `[set][expert]`, flat, the first of a set most; `sets`: what each set has of all.
///
/// Independent loads of variance `v` (of a mean of 1) have sums over a set whose mean varies by `v / held`, and differ from that mean by
/// `v (1 - 1 / held)`: `held - 1` times as much. The experts of a set stand at equal distances around it, so far apart that this is their variance, and no
/// load is below 0.
pub fn within_sets(sets: &[f64], held: usize) -> Vec<f64> {
    let count = sets.len() as f64;
    let variance = sets.iter().map(|set| (set * count - 1.0).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    let deviation = (variance * (held as f64 - 1.0)).sqrt();
    // Equally spaced from -1 to 1: mean square (held + 1) / (3 (held - 1)).
    let step = |index: usize| 1.0 - 2.0 * index as f64 / (held as f64 - 1.0).max(1.0);
    let mean_square = (held as f64 + 1.0) / (3.0 * (held as f64 - 1.0).max(1.0));
    let of_set = |set: f64| {
        // Of experts whose mean is the set's.
        let reach = (deviation / mean_square.sqrt() / (set * count).max(f64::MIN_POSITIVE)).min(1.0);
        (0..held).map(move |index| if held == 1 { 1.0 } else { (1.0 + reach * step(index)) / held as f64 })
    };
    sets.iter().flat_map(|&set| of_set(set)).collect()
}

/// Whole numbers in proportion to `shares`, which add up to 1, that add up to `total`.
pub fn entries(shares: &[f64], total: u32) -> Vec<u32> {
    let (mut before, mut sum) = (0, 0.0);
    let part = |&share: &f64| {
        sum += share;
        let now = ((sum * f64::from(total)).round() as u32).clamp(before, total);
        std::mem::replace(&mut before, now).abs_diff(now)
    };
    let mut parts: Vec<u32> = shares.iter().map(part).collect();
    // What rounding of the shares' sum left.
    if let Some(last) = parts.last_mut() {
        *last += total - before;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "rank,method,model_name,layer,iter,token_num";

    fn file(name: &str, text: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("moebench-{}-{name}.csv", std::process::id()));
        std::fs::write(&path, text).unwrap();
        path
    }

    fn read(name: &str, rows: &str) -> Result<RankLoads> {
        let path = file(name, &format!("{HEADER}\n{rows}"));
        let mut loads = RankLoads::default();
        let added = loads.add(&path);
        std::fs::remove_file(path).unwrap();
        added.map(|()| loads)
    }

    #[test]
    fn loads_are_read_by_method_and_model() {
        let rows = "1,FSDP,m,3,7,5\n0,FSDP,m,3,7,4\n0,FSDP,m,0,7,6\n1,FSDP,m,0,7,3\n0,LAER,m,0,0,1\n1,LAER,m,0,0,8\n";
        let loads = read("loads", rows).unwrap();
        let (model, run) = loads.of("fsdp").next().unwrap();
        assert_eq!((model, run.layers.len(), loads.of("laer").count(), loads.of("flex").count()), ("m", 2, 1, 0));
        // Two recorded layers stand for four, the one recorded iteration for all.
        let micros: Vec<&[u64]> = (0..4).map(|layer| run.micro(layer, 4, layer).0.as_slice()).collect();
        assert_eq!(micros, [[6, 3], [6, 3], [4, 5], [4, 5]]);
        assert!((run.micro(0, 2, 0).imbalance() - 6.0 / 4.5).abs() < 1e-12);
    }

    #[test]
    fn bad_loads_name_line_and_column() {
        let check = |name: &str, rows: &str, expected: &[&str]| {
            let message = format!("{:#}", read(name, rows).unwrap_err());
            assert!(expected.iter().all(|part| message.contains(part)), "{message}");
        };
        check("loads-number", "0,FSDP,m,0,0,4\n1,FSDP,m,0,0,many\n", &["line 3", "token_num = many"]);
        check("loads-twice", "0,FSDP,m,0,0,4\n0,FSDP,m,0,0,4\n", &["line 3", "rank = 0, layer = 0, iter = 0"]);
        check("loads-gap", "0,FSDP,m,0,0,4\n2,FSDP,m,0,0,4\n1,FSDP,m,0,1,4\n", &["layer 0, iter 0: no load of rank 1"]);
        check("loads-none", "0,FSDP,m,0,0,0\n", &["layer 0, iter 0: no entries"]);
        check(
            "loads-huge",
            "0,FSDP,m,0,0,99999999999999\n",
            &["line 2", "token_num = 99999999999999: expected at most"],
        );
    }

    /// Two nodes of four ranks, two sets of two experts: what a set's ranks on a node computed is what the node's tokens chose of
    /// it, and the first expert of a set is the hotter one.
    #[test]
    fn choices_of_a_node_are_what_its_ranks_computed() {
        let micro = Micro(vec![30, 10, 30, 10, 20, 20, 20, 20]);
        let choices = micro.choices(4, 2, 4);
        let set = |node: usize, set: usize| choices[node][2 * set] + choices[node][2 * set + 1];
        for (node, sets) in [(0, [0.75, 0.25]), (1, [0.5, 0.5])] {
            assert!((0..2).all(|at| (set(node, at) - sets[at]).abs() < 1e-12), "{choices:?}");
            assert!((0..2).all(|at| choices[node][2 * at] > choices[node][2 * at + 1]), "{choices:?}");
        }
    }

    /// Sets of 5/8 and 3/8 vary by 1/8 (unbiased) around a mean of 1, so the experts of a set differ from it by as much.
    #[test]
    fn experts_of_a_set_differ_as_sets_do() {
        let within = within_sets(&[0.625, 0.375], 2);
        let deviation = |set: f64, share: f64| (share * 2.0 - 1.0) * set * 2.0;
        assert!((deviation(0.625, within[0]).powi(2) - 0.125).abs() < 1e-12, "{within:?}");
        assert!((deviation(0.375, within[2]).powi(2) - 0.125).abs() < 1e-12, "{within:?}");
        // Even sets have even experts; experts alone are their sets; nothing is below 0.
        assert_eq!(within_sets(&[0.25; 4], 2), [0.5; 8]);
        assert_eq!(within_sets(&[0.9, 0.1], 1), [1.0, 1.0]);
        let within = within_sets(&[0.999, 0.001], 4);
        assert!(within.iter().all(|&share| share >= 0.0));
        assert!(within.chunks(4).all(|set| (set.iter().sum::<f64>() - 1.0).abs() < 1e-12));
    }

    #[test]
    fn entries_add_up() {
        assert_eq!(entries(&[0.5, 0.25, 0.25], 8), [4, 2, 2]);
        for total in [0, 1, 7, 16384] {
            let parts = entries(&[0.1, 0.7, 0.15, 0.05], total);
            assert_eq!(parts.iter().sum::<u32>(), total, "{parts:?}");
        }
    }
}
