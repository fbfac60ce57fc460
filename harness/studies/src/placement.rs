//! Online placement of one layer over time (the paper's figure 13): as the study placed experts, and as a trainer could.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use workloads::Cluster;

use super::page::Section;
use super::paper::{fitted_to, was_fitted_to};
use super::tables::{gains_table, series_table};
use super::{Inputs, Study, claims};
use crate::figures::adaptive;
use crate::measurements::series::{self, PredictedStep, Rhythm, Series, SeriesErrors, SeriesSetup};

/// The study: a series per file.
pub struct Placements<'a> {
    cluster: &'a Cluster,
    setup: SeriesSetup,
    /// By the iterations between placements.
    series: Vec<(usize, Series<'a>)>,
}

/// What is found about one series.
pub struct SeriesOutcome {
    pub steps: Vec<PredictedStep>,
    pub errors: SeriesErrors,
    /// The same where decisions see a sample less.
    pub lagged: SeriesErrors,
}

/// (N, path) of every `adaptive_everyN.csv`, by N.
pub(super) fn files(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
    let every = |path: &Path| -> Option<usize> {
        let number = path.file_name()?.to_str()?.strip_prefix("adaptive_every")?.strip_suffix(".csv")?;
        number.parse().ok().filter(|every| *every > 0)
    };
    let mut files: Vec<(usize, PathBuf)> = paths.into_iter().filter_map(|path| Some((every(&path)?, path))).collect();
    files.sort();
    Ok(files)
}

fn file_of(every: usize) -> String {
    format!("adaptive_every{every}.csv")
}

impl<'a> Study<'a> for Placements<'a> {
    type Outcome = Vec<SeriesOutcome>;

    fn read(inputs: &'a Inputs) -> Result<Option<Self>> {
        let (cluster, shape, setup) = (&inputs.placement_cluster, inputs.unsaid.shape, inputs.unsaid.setup);
        let read = |(every, path): (usize, PathBuf)| Ok((every, series::read(&path, &inputs.trace, shape, setup)?));
        let series: Vec<_> = files(&inputs.folder)?.into_iter().map(read).collect::<Result<_>>()?;
        Ok((!series.is_empty()).then_some(Self { cluster, setup, series }))
    }

    fn predict(&self) -> Result<Vec<SeriesOutcome>> {
        let outcome = |(every, series): &(usize, Series)| {
            let predict = |lag| series.predict(self.cluster, Rhythm { every: *every, lag });
            let steps = predict(0);
            let errors = SeriesErrors::new(&series.samples, &steps).context("no iterations")?;
            let lagged = SeriesErrors::new(&series.samples, &predict(1)).context("no iterations")?;
            Ok(SeriesOutcome { steps, errors, lagged })
        };
        self.series.iter().map(outcome).collect()
    }

    fn section(&self, outcome: &Vec<SeriesOutcome>) -> Result<Section> {
        let mut section = Section::new("Online placement of one layer over time (figure 13)");
        let SeriesSetup { gpus, layer, micro_batch } = self.setup;
        section.add(format!(include_str!("prose/placement.md"), layer = layer, gpus = gpus, micro_batch = micro_batch));
        for ((every, series), SeriesOutcome { steps, errors, lagged }) in self.series.iter().zip(outcome) {
            section.add(format!("Placed every {every} iterations:"));
            let (figure, file) = (format!("placement_every{every}"), file_of(*every));
            section.picture(adaptive::figure(&figure, &series.samples, steps));
            section.add_to_caption(&figure, &fitted_to(self.cluster, &[&file]));
            section.table(series_table(errors));
            section.table(gains_table(errors, lagged));
            let in_sample = was_fitted_to(self.cluster, &[&file]);
            section.claims.extend([claims::gain(*every, in_sample, errors), claims::correlation(in_sample, errors)]);
        }
        Ok(section)
    }
}
