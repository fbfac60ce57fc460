//! Whole iterations (the paper's figures 8 and 10), with the constants of the clusters as shipped; the configurations that
//! are far off beside what people know of them.

use anyhow::Result;
use workloads::gate::GateStatistics;
use workloads::trace::RoutingTrace;

use super::page::Section;
use super::tables::{lines_table, ms, percent, statistics_table};
use super::{Explanation, Inputs, Study, claims};
use crate::figures::performance_model;
use crate::measurements::iterations::{self, Configuration};
use crate::measurements::order::{self, Compared, IterationErrors};
use runs::prepare;
use runs::summary::errors::{Errors, Pair};
use runs::summary::model_error::{ClusterError, Measured, Part};

/// The name of the section's figure.
pub(super) const FIGURE: &str = "iterations";

pub struct EndToEnd<'a> {
    pub configurations: Vec<Configuration>,
    pub trace: &'a RoutingTrace,
    pub statistics: GateStatistics,
    /// Iterations after the warm-up that are simulated; all measured ones by default.
    pub most: Option<usize>,
    pub explanations: &'a [Explanation],
}

/// The folder's configurations, on the clusters that the files name; none where there is no file.
pub(super) fn configurations(inputs: &Inputs) -> Result<Option<Vec<Configuration>>> {
    let mut all = Vec::new();
    for path in inputs.files_of("end_to_end")? {
        all.extend(iterations::read(&path, &|name| prepare::cluster("cluster", name))?);
    }
    Ok((!all.is_empty()).then_some(all))
}

impl<'a> Study<'a> for EndToEnd<'a> {
    type Outcome = IterationErrors;

    fn read(inputs: &'a Inputs) -> Result<Option<Self>> {
        let Some(configurations) = configurations(inputs)? else { return Ok(None) };
        let (trace, explanations) = (&inputs.trace, &inputs.explanations);
        Ok(Some(Self { configurations, trace, statistics: GateStatistics::default(), most: None, explanations }))
    }

    fn predict(&self) -> Result<IterationErrors> {
        order::predict(&self.configurations, self.trace, &self.statistics, self.most)
    }

    fn section(&self, outcome: &IterationErrors) -> Result<Section> {
        let mut section = Section::new("Whole iterations (figures 8 and 10)");
        section.add(include_str!("prose/end_to_end.md"));
        section.picture(performance_model::end_to_end(FIGURE, outcome));
        let sums = [("medians".to_owned(), outcome.errors), ("sums, start-up included".to_owned(), outcome.sum_errors)];
        section.table(statistics_table(&sums, "relative errors of"));
        section.claims.extend(errors_by_cluster(outcome).iter().map(|(name, errors)| claims::iterations(name, errors)));
        section.claims.push(claims::order(outcome));
        let headlines = outcome.headlines();
        section.claims.extend(headlines.iter().map(|((cluster, gpus), pair)| claims::headline(cluster, *gpus, pair)));
        outcome.ordered_wrong.iter().for_each(|wrong| section.add(format!("Wrong order: {wrong}.")));
        section.add("Measured sums hold the start-up of each run, which the simulator does not have.");
        add_far(&mut section, outcome, self.explanations);
        section.add("All configurations:");
        section.table(lines_table(&outcome.lines));
        section.errors = cluster_errors(outcome);
        Ok(section)
    }
}

/// Errors above this are shown with what is known about them.
const FAR: f64 = 0.15;

/// The configurations that are far off, the worst first, and what people know of them.
fn add_far(section: &mut Section, outcome: &IterationErrors, known: &[Explanation]) {
    let size = |line: &Compared| line.error.unwrap_or(0.0).abs();
    let mut far: Vec<&Compared> = outcome.lines.iter().filter(|line| size(line) > FAR).collect();
    far.sort_by(|a, b| size(b).total_cmp(&size(a)));
    section.add(format!("{} configurations are more than {:.0}% off, the worst first:", far.len(), FAR * 100.0));
    section.add(far.iter().map(|line| far_line(line, known)).collect::<String>());
    if let Some(worst) = far.first() {
        let siblings = outcome.lines.iter().filter(|line| line.gpus == worst.gpus && line.plan == worst.plan);
        section.add(format!("The worst one beside all that ran {} on {} GPUs:", worst.plan, worst.gpus));
        section.table(lines_table(&siblings.cloned().collect::<Vec<_>>()));
    }
}

fn far_line(line: &Compared, known: &[Explanation]) -> String {
    let label = format!("{} {}/{}/{}", line.cluster, line.gpus, line.gate, line.system);
    let why = known.iter().find(|known| known.configuration == label);
    let why = why.map_or("not explained", |known| known.explanation.as_str());
    let error = line.error.map_or(String::new(), percent);
    format!("- **{label}**, {error}: {} ms for {} ms. {why}\n", ms(line.predicted), ms(line.measured))
}

fn errors_by_cluster(outcome: &IterationErrors) -> Vec<(String, Errors)> {
    let mut clusters: Vec<&str> = outcome.lines.iter().map(|line| line.cluster.as_str()).collect();
    clusters.sort_unstable();
    clusters.dedup();
    let errors = clusters.into_iter().filter_map(|cluster| {
        let lines = outcome.lines.iter().filter(|line| line.cluster == cluster);
        Some((cluster.to_owned(), Errors::new(&lines.filter_map(Compared::pair).collect::<Vec<Pair>>())?))
    });
    errors.collect()
}

fn cluster_errors(outcome: &IterationErrors) -> Vec<ClusterError> {
    let all = errors_by_cluster(outcome);
    let error =
        |(cluster, errors): &(String, Errors)| ClusterError::new(cluster, Part::Iteration, errors, Measured::Fitted);
    all.iter().map(error).collect()
}
