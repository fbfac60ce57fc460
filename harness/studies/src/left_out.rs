//! Whole iterations once more: constants are fitted without some configurations of a cluster, and tested on those. Left out
//! are, in turn, each number of GPUs, each system and each shape of plan.

use anyhow::{Context, Result};
use rayon::prelude::*;
use workloads::gate::GateStatistics;
use workloads::trace::RoutingTrace;

use super::end_to_end::configurations;
use super::page::Section;
use super::tables::{percent, share};
use super::{Inputs, Study, claims};
use crate::calibrate;
use crate::calibrate::constants::{END_TO_END_CONSTANTS, Fitted, Point, Space};
use crate::calibrate::targets::Targets;
use crate::measurements::iterations::Configuration;
use crate::measurements::order::{ORDER_TOLERANCE, in_order};
use runs::summary::errors::{Errors, Pair};
use runs::summary::model_error::{ClusterError, Measured, Part};
use runs::{prepare, report};

/// Iterations simulated per configuration.
const SIMULATED: usize = 4;

/// What configurations are left out by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Gpus,
    /// What simulates them: plans of one system under two names are left out together.
    System,
    /// Degrees of pipeline, expert and expert-data parallelism.
    Shape,
}

impl By {
    const ALL: [Self; 3] = [Self::Gpus, Self::System, Self::Shape];

    /// What each fit leaves out.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpus => "number of GPUs",
            Self::System => "system",
            Self::Shape => "shape of plan",
        }
    }

    fn of(self, configuration: &Configuration) -> String {
        let plan = &configuration.plan;
        match self {
            Self::Gpus => format!("{} GPUs", configuration.gpus),
            Self::System => configuration.simulated_by().unwrap_or_default().to_owned(),
            Self::Shape => format!("pp{} ep{} edp{}", plan.pp, plan.ep, plan.expert_dp),
        }
    }
}

pub struct LeftOut<'a> {
    /// Those that ended and that something simulates.
    configurations: Vec<Configuration>,
    trace: &'a RoutingTrace,
}

/// A configuration that a fit did not see.
#[derive(Clone, Debug)]
pub struct Unseen {
    /// `GPUs/gate/system`.
    pub label: String,
    pub pair: Pair,
}

/// A fit without some configurations of a cluster.
#[derive(Clone, Debug)]
pub struct Fold {
    pub by: By,
    pub cluster: String,
    /// What was left out.
    pub what: String,
    /// Errors on what was fitted to.
    pub seen: Errors,
    pub unseen: Vec<Unseen>,
    /// Constants that nothing it was fitted to tells: they stay as shipped, so what was left out may have been fitted to.
    pub undetermined: Vec<String>,
    /// Configurations that were left out and not tested: their predictions hang on such constants.
    pub untested: usize,
    /// Pairs of an unseen configuration and another of its case that were measured apart, and how many of them come out in
    /// the measured order.
    pub pairs: usize,
    pub ordered: usize,
}

impl Fold {
    fn errors(&self) -> Option<Errors> {
        Errors::new(&self.unseen.iter().map(|unseen| unseen.pair).collect::<Vec<_>>())
    }
}

impl<'a> Study<'a> for LeftOut<'a> {
    type Outcome = Vec<Fold>;

    fn read(inputs: &'a Inputs) -> Result<Option<Self>> {
        let Some(mut configurations) = configurations(inputs)? else { return Ok(None) };
        configurations.retain(|configuration| configuration.missing().is_none() && configuration.measured().is_some());
        Ok(Some(Self { configurations, trace: &inputs.trace }))
    }

    fn predict(&self) -> Result<Vec<Fold>> {
        let mut folds: Vec<(By, &str, String)> = Vec::new();
        for by in By::ALL {
            for configuration in &self.configurations {
                let fold = (by, configuration.cluster.as_str(), by.of(configuration));
                if !folds.contains(&fold) {
                    folds.push(fold);
                }
            }
        }
        let fits = folds.into_par_iter().map(|(by, cluster, what)| self.fold(by, cluster, &what));
        Ok(fits.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn section(&self, outcome: &Vec<Fold>) -> Result<Section> {
        let mut section = Section::new("Fitted without some configurations, tested on those");
        let constants = END_TO_END_CONSTANTS.map(|name| format!("`{name}`")).join(", ");
        section.add(format!(include_str!("prose/left_out.md"), constants = constants));
        outcome.iter().filter_map(untested).for_each(|what| section.add(what));
        section.table(table(outcome));
        let mut clusters: Vec<&str> = outcome.iter().map(|fold| fold.cluster.as_str()).collect();
        clusters.dedup();
        clusters.sort_unstable();
        clusters.dedup();
        section.errors.extend(clusters.iter().filter_map(|cluster| unseen_systems(cluster, outcome)));
        for cluster in clusters {
            for by in By::ALL {
                let folds: Vec<&Fold> =
                    outcome.iter().filter(|fold| fold.by == by && fold.cluster == cluster).collect();
                section.claims.extend(claims::left_out(by, cluster, &folds));
            }
        }
        Ok(section)
    }
}

/// Errors of a cluster's systems, each unseen by the fit that predicts it: what stands beside numbers that were not measured.
fn unseen_systems(cluster: &str, outcome: &[Fold]) -> Option<ClusterError> {
    let folds = outcome.iter().filter(|fold| fold.by == By::System && fold.cluster == cluster);
    let pairs: Vec<Pair> = folds.flat_map(|fold| &fold.unseen).map(|unseen| unseen.pair).collect();
    Some(ClusterError::new(cluster, Part::Iteration, &Errors::new(&pairs)?, Measured::Unseen))
}

/// What a figure of runs that constants were fitted to says of those that a fit did not see.
pub(super) fn in_sample(unseen: &[ClusterError]) -> String {
    let one = |error: &ClusterError| {
        let (cluster, median, p90) = (&error.cluster, share(error.median), share(error.p90));
        format!(
            " With one system left out of the fit at a time, `{cluster}`'s median error is {median}, its 90th percentile {p90}."
        )
    };
    let unseen: String = unseen.iter().map(one).collect();
    format!("**In sample**: the clusters' constants were fitted to these very runs.{unseen}")
}

impl LeftOut<'_> {
    /// None where too few configurations would be left to fit to.
    fn fold(&self, by: By, cluster: &str, what: &str) -> Result<Option<Fold>> {
        let of_cluster: Vec<&Configuration> = self.configurations.iter().filter(|c| c.cluster == cluster).collect();
        let (unseen, seen): (Vec<&Configuration>, Vec<&Configuration>) =
            of_cluster.into_iter().partition(|c| by.of(c) == what);
        if seen.len() < END_TO_END_CONSTANTS.len() {
            return Ok(None);
        }
        let start = Point { cluster: prepare::cluster("cluster", cluster)?, gate: GateStatistics::default() };
        let sampled = seen.iter().map(|&c| (c, c.iterations(Some(SIMULATED)))).collect();
        let targets = Targets { end_to_end: sampled, ..Targets::none(self.trace) };
        let (point, fitted) = calibrate::fit(&start, &END_TO_END_CONSTANTS.map(str::to_owned), &targets)?;
        let undetermined = undetermined(&fitted);
        let (untested, unseen) = self.split(&unseen, &point, &undetermined)?;
        let unseen = self.predicted(&unseen, &point)?;
        let seen = self.predicted(&seen, &point)?;
        let (pairs, ordered) = pairs(&unseen, &seen);
        let errors = Errors::new(&seen.iter().map(|(_, pair)| *pair).collect::<Vec<_>>());
        let unseen = unseen.into_iter().map(|(c, pair)| Unseen { label: c.label(), pair });
        Ok(Some(Fold {
            by,
            cluster: cluster.to_owned(),
            what: what.to_owned(),
            seen: errors.context("no configuration was predicted")?,
            unseen: unseen.collect(),
            undetermined,
            untested,
            pairs,
            ordered,
        }))
    }

    /// How many configurations hang on any of `constants`, and the others. One hangs on them if its prediction is another where
    /// they are about e times as large or as small.
    fn split<'c>(
        &self,
        all: &[&'c Configuration],
        point: &Point,
        constants: &[String],
    ) -> Result<(usize, Vec<&'c Configuration>)> {
        if constants.is_empty() {
            return Ok((0, all.to_vec()));
        }
        let here = self.predicted(all, point)?;
        let mut hangs = vec![false; here.len()];
        let space = Space::new(point, constants)?;
        for step in [-1.0, 1.0] {
            let x: Vec<f64> = space.start().iter().map(|x| x + step).collect();
            let there = self.predicted(all, &space.point(point, &x)?)?;
            let same = |(c, pair): &(&Configuration, Pair)| {
                there.iter().any(|(other, moved)| std::ptr::eq(*c, *other) && moved.predicted == pair.predicted)
            };
            hangs.iter_mut().zip(&here).for_each(|(hangs, one)| *hangs |= !same(one));
        }
        let kept = here.iter().zip(&hangs).filter(|(_, hangs)| !**hangs).map(|((c, _), _)| *c);
        Ok((hangs.iter().filter(|hangs| **hangs).count(), kept.collect()))
    }

    fn predicted<'c>(
        &self,
        configurations: &[&'c Configuration],
        point: &Point,
    ) -> Result<Vec<(&'c Configuration, Pair)>> {
        let mut pairs = Vec::new();
        for &configuration in configurations {
            let iterations = configuration.iterations(Some(SIMULATED));
            let prediction = configuration.predict(self.trace, Some(&point.cluster), &point.gate, &iterations)?;
            let both = prediction.and_then(|p| p.median()).zip(configuration.measured());
            pairs.extend(both.map(|(predicted, measured)| (configuration, Pair { predicted, measured })));
        }
        Ok(pairs)
    }
}

/// The constants that a fit's measurements say nothing of.
fn undetermined(fitted: &[Fitted]) -> Vec<String> {
    fitted.iter().filter(|constant| !constant.determined()).map(|constant| constant.name.clone()).collect()
}

/// What a fold did not test, and why.
fn untested(fold: &Fold) -> Option<String> {
    let Fold { by, cluster, what, undetermined, untested, .. } = fold;
    let names = undetermined.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" and ");
    (*untested > 0).then(|| {
        format!(
            "Not tested: {untested} of {cluster}'s configurations where this {} is left out: {what}. Their times hang on {names}, which nothing \
             else determines, and its shipped value may have been fitted to them.",
            by.name()
        )
    })
}

/// Of each case, the pairs that hold at least one unseen configuration: how many were measured apart, and how many of these
/// come out in the measured order.
fn pairs(unseen: &[(&Configuration, Pair)], seen: &[(&Configuration, Pair)]) -> (usize, usize) {
    let (mut apart, mut ordered) = (0, 0);
    for (index, (one, pair)) in unseen.iter().enumerate() {
        let others = unseen[index + 1..].iter().chain(seen);
        for (_, other) in others.filter(|(other, _)| (other.gpus, &other.gate) == (one.gpus, &one.gate)) {
            if let Some(right) = in_order(pair, other, ORDER_TOLERANCE) {
                apart += 1;
                ordered += usize::from(right);
            }
        }
    }
    (apart, ordered)
}

fn table(outcome: &[Fold]) -> comfy_table::Table {
    let header = ["left out", "n", "median", "p90", "largest", "bias", "order", "worst", "error", "the others' median"];
    let mut table = report::table(&header, &[1, 2, 3, 4, 5, 6, 8, 9]);
    for fold in outcome {
        let Some(errors) = fold.errors() else { continue };
        let worst = worst(&[fold]);
        table.add_row([
            format!("{}, {}: {}", fold.cluster, fold.by.name(), fold.what),
            errors.count.to_string(),
            share(errors.median),
            share(errors.p90),
            share(errors.max),
            percent(errors.bias),
            format!("{} of {}", fold.ordered, fold.pairs),
            worst.map_or(String::new(), |worst| worst.label.clone()),
            worst.map_or(String::new(), |worst| percent(worst.pair.error())),
            share(fold.seen.median),
        ]);
    }
    table
}

/// The unseen configuration that is furthest off.
pub fn worst<'f>(folds: &[&'f Fold]) -> Option<&'f Unseen> {
    let size = |unseen: &&Unseen| unseen.pair.error().abs();
    folds.iter().flat_map(|fold| &fold.unseen).max_by(|a, b| size(a).total_cmp(&size(b)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measurements::iterations;
    use workloads::trace::{Skew, SkewSpec, TraceShape};

    #[test]
    fn a_figure_in_sample_says_what_unseen_systems_are_off() {
        let errors = Errors::new(&[Pair { predicted: 1.1, measured: 1.0 }]).unwrap();
        let unseen = ClusterError::new("inky", Part::Iteration, &errors, Measured::Unseen);
        assert!(in_sample(&[unseen]).ends_with("`inky`'s median error is 10.0%, its 90th percentile 10.0%."));
        assert_eq!(in_sample(&[]), "**In sample**: the clusters' constants were fitted to these very runs.");
    }

    /// Broadcasts of shadowed experts alone take their time by `network.rooted_bandwidth`.
    #[test]
    fn what_hangs_on_a_constant_that_is_not_determined_is_not_tested() {
        let skew = Skew { max_over_mean: Some(6.0), ..Skew::default() };
        let shape = TraceShape { layers: 2, micro_batches: 1, ranks: 16, experts: 16, entries: 1024, top_k: 2 };
        let trace = SkewSpec { shape, samples: 4, step: 1, seed: 1, skew }.generate().unwrap();
        let path = std::env::temp_dir().join(format!("moebench-{}-hang.csv", std::process::id()));
        let rows = ["fastmoe", "fastermoe"].into_iter().flat_map(|system| {
            let of = format!("inky,16,{system},no-drop,2,1024,16,512,64,2,1,16,16");
            (11..14).map(move |iteration| format!("\n{of},{iteration},{}", 1.0 + system.len() as f64))
        });
        let header = "cluster,gpus,system,gate,layers,hidden,experts,seq_len,global_batch,micro_batch,pp,dp,ep,iteration,elapsed_ms";
        std::fs::write(&path, header.to_owned() + &rows.collect::<String>()).unwrap();
        let cluster = prepare::cluster("test", "inky").unwrap();
        let configurations = iterations::read(&path, &|_| Ok(cluster.clone())).unwrap();
        std::fs::remove_file(path).unwrap();
        let study = LeftOut { configurations, trace: &trace };
        let all: Vec<&Configuration> = study.configurations.iter().collect();
        let point = Point { cluster, gate: GateStatistics::default() };
        let split = |constants: &[&str]| {
            let constants: Vec<String> = constants.iter().map(|&name| name.to_owned()).collect();
            let (untested, kept) = study.split(&all, &point, &constants).unwrap();
            (untested, kept.iter().map(|kept| kept.published.as_str()).collect::<Vec<_>>())
        };
        assert_eq!(split(&[]), (0, vec!["fastmoe", "fastermoe"]));
        assert_eq!(split(&["network.rooted_bandwidth"]), (1, vec!["fastmoe"]));
        assert_eq!(split(&["gpu.gemm_rate"]), (2, Vec::new()));
    }

    #[test]
    fn the_worst_of_all_folds_is_named() {
        let fold = |label: &str, predicted| Fold {
            by: By::System,
            cluster: "inky".to_owned(),
            what: label.to_owned(),
            seen: Errors::new(&[Pair { predicted: 1.0, measured: 1.0 }]).unwrap(),
            unseen: vec![Unseen { label: label.to_owned(), pair: Pair { predicted, measured: 1.0 } }],
            undetermined: vec!["network.rooted_bandwidth".to_owned()],
            untested: 0,
            pairs: 2,
            ordered: 1,
        };
        let folds = [fold("a", 1.2), fold("b", 0.7), fold("c", 1.0)];
        assert_eq!(worst(&folds.iter().collect::<Vec<_>>()).unwrap().label, "b");
        let claim = claims::left_out(By::System, "inky", &folds.iter().collect::<Vec<_>>());
        assert_eq!(claim.len(), 2);
        assert_eq!(untested(&folds[0]), None);
        let eight = Fold { untested: 8, unseen: Vec::new(), ..folds[0].clone() };
        let said = untested(&eight).unwrap();
        assert!(said.starts_with("Not tested: 8 of inky's configurations where this system is left out: a."), "{said}");
        assert!(said.contains("hang on `network.rooted_bandwidth`"), "{said}");
        let claims = claims::left_out(By::System, "inky", &[&folds[0], &eight]);
        assert!(claims[0].found.ends_with("(worst: a +20.0%, 8 not tested)"), "{claims:?}");
        assert!(claim[0].found.contains("b -30.0%") && !claim[0].met && claim[1].found == "3 of 6", "{claim:?}");
    }
}
