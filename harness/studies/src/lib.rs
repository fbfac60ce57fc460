//! The studies behind `moebench validate`: published measurements, the simulator held against them, and what a page says of
//! the outcome.
//!
//! A study reads its measurements from a folder, predicts, and writes a section; the commands and the tests share all
//! three steps. What a section claims does not depend on what was found: [`claims`] states every one with its threshold,
//! and a claim that is not met is a row that says so. Saving files is left to the command.

pub mod calibrate;
pub mod claims;
pub mod end_to_end;
pub mod figures;
pub mod laer;
pub mod left_out;
pub mod measurements;
pub mod moe_layer;
pub mod page;
pub mod paper;
pub mod placement;
pub mod plan_comparison;
pub mod plans;
pub mod published;
pub mod tables;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use workloads::Cluster;
use workloads::trace::RoutingTrace;

use measurements::{layer::LayerShape, series::SeriesSetup};
use page::Section;
use runs::summary::model_error::ClusterError;
use runs::{prepare, traces};

/// Measurements of one kind, and the simulator held against them.
pub trait Study<'a>: Sized {
    /// What was found.
    type Outcome;

    /// The study's measurements; none where the folder does not hold its file.
    ///
    /// # Errors
    /// What is wrong with a file.
    fn read(inputs: &'a Inputs) -> Result<Option<Self>>;

    /// Predicts what was measured.
    ///
    /// # Errors
    /// A trace that does not fit what was measured, or a fit that fails.
    fn predict(&self) -> Result<Self::Outcome>;

    /// Says what was found.
    ///
    /// # Errors
    /// A figure that cannot be drawn.
    fn section(&self, outcome: &Self::Outcome) -> Result<Section>;
}

/// The sections of all studies that the folder holds measurements for, in the order of the page.
///
/// # Errors
/// As for [`Study`].
pub fn sections(inputs: &Inputs) -> Result<Vec<Section>> {
    let mut iterations = section::<end_to_end::EndToEnd>(inputs)?;
    let left_out = section::<left_out::LeftOut>(inputs)?;
    if let Some(section) = &mut iterations {
        let unseen = left_out.as_ref().map_or(&[][..], |left_out| &left_out.errors);
        section.add_to_caption(end_to_end::FIGURE, &left_out::in_sample(unseen));
    }
    let sections = [
        section::<moe_layer::MoeLayers>(inputs)?,
        iterations,
        left_out,
        section::<placement::Placements>(inputs)?,
        section::<plans::Plans>(inputs)?,
        section::<published::PublishedRuns>(inputs)?,
        section::<laer::LaerStudy>(inputs)?,
    ];
    Ok(sections.into_iter().flatten().collect())
}

/// The errors that stand beside simulated numbers: of each cluster and part those of the last section that has any, so those on
/// what a fit did not see where there are such.
pub fn errors(sections: &[Section]) -> Vec<ClusterError> {
    let mut errors: Vec<ClusterError> = Vec::new();
    for error in sections.iter().flat_map(|section| &section.errors) {
        match errors.iter_mut().find(|other| (&other.cluster, other.part) == (&error.cluster, error.part)) {
            Some(other) => *other = error.clone(),
            None => errors.push(error.clone()),
        }
    }
    errors
}

fn section<'a, S: Study<'a>>(inputs: &'a Inputs) -> Result<Option<Section>> {
    let Some(study) = S::read(inputs)? else { return Ok(None) };
    study.section(&study.predict()?).map(Some)
}

/// The folder of LAER-MoE's measurements.
const LAER_FOLDER: &str = "laer-ae";

/// nico as the study of online placement met it.
pub const PLACEMENT_CLUSTER: &str = "nico-placement";

/// What the files of a folder leave unsaid; SmartMoE's authors' studies where nothing else is.
#[derive(Clone, Debug, clap::Args)]
pub struct Unsaid {
    /// Cluster of the single layers, by name or path
    #[arg(long, default_value_t = Self::default().layer_cluster)]
    pub layer_cluster: String,
    /// Cluster of the layer over time, by name or path [default: that of the single layers; nico-placement beside nico]
    #[arg(long)]
    pub placement_cluster: Option<String>,
    #[command(flatten)]
    pub shape: LayerShape,
    /// The layer that experts are placed for over time
    #[command(flatten)]
    pub setup: SeriesSetup,
    /// Suite whose cases state the plans that SmartMoE's authors ran, by name or path
    #[arg(long, default_value_t = Self::default().suite)]
    pub suite: String,
}

impl Default for Unsaid {
    fn default() -> Self {
        Self {
            layer_cluster: "nico".to_owned(),
            placement_cluster: None,
            shape: LayerShape::default(),
            setup: SeriesSetup::default(),
            suite: "paper-gpt-authors".to_owned(),
        }
    }
}

impl Unsaid {
    /// The placement study met a slower network than the layer study, on what both call the same cluster.
    fn placement_cluster(&self) -> String {
        let beside = if self.layer_cluster == "nico" { PLACEMENT_CLUSTER } else { &self.layer_cluster };
        self.placement_cluster.clone().unwrap_or_else(|| beside.to_owned())
    }
}

/// What all studies read.
pub struct Inputs {
    /// Holds any of `end_to_end*.csv`, `moe_layer*.csv` and `adaptive_everyN.csv`.
    folder: PathBuf,
    trace_file: PathBuf,
    trace: RoutingTrace,
    unsaid: Unsaid,
    layer_cluster: Cluster,
    placement_cluster: Cluster,
    explanations: Vec<Explanation>,
}

/// What people know of a configuration that is far off.
#[derive(Clone, Debug, Deserialize)]
pub struct Explanation {
    configuration: String,
    explanation: String,
}

impl Inputs {
    /// Of a folder of measurements. The trace is the folder's moe_trace.tar.xz unless given, `explanations` a CSV that need
    /// not exist.
    ///
    /// # Errors
    /// What is wrong with the trace, the cluster or the explanations.
    pub fn read(folder: &Path, trace: Option<&Path>, unsaid: Unsaid, explanations: &Path) -> Result<Self> {
        let trace_file = trace.map_or_else(|| folder.join("moe_trace.tar.xz"), Path::to_owned);
        Ok(Self {
            folder: folder.to_owned(),
            trace: traces::load(Some(&trace_file))?,
            trace_file,
            layer_cluster: prepare::cluster("--layer-cluster", &unsaid.layer_cluster)?,
            placement_cluster: prepare::cluster("--placement-cluster", &unsaid.placement_cluster())?,
            unsaid,
            explanations: match explanations.exists() {
                true => measurements::open(explanations)?.read()?,
                false => Vec::new(),
            },
        })
    }

    /// The folder's CSVs of one kind, whose names start with it, by name.
    fn files_of(&self, kind: &str) -> Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(&self.folder).with_context(|| self.folder.display().to_string())?;
        let paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
        let is_of = |path: &Path| {
            let name = path.file_name().map(|name| name.to_string_lossy());
            name.is_some_and(|name| name.starts_with(kind) && name.ends_with(".csv"))
        };
        let mut files: Vec<PathBuf> = paths.into_iter().filter(|path| is_of(path)).collect();
        files.sort();
        Ok(files)
    }

    /// Where LAER-MoE's measurements are, if they are there: a folder of [`LAER_FOLDER`]'s name in the folder or beside it.
    fn laer_folder(&self) -> Option<PathBuf> {
        let inside = self.folder.join(LAER_FOLDER);
        let beside = self.folder.canonicalize().ok().and_then(|folder| Some(folder.parent()?.join(LAER_FOLDER)));
        [Some(inside), beside].into_iter().flatten().find(|folder| folder.join(laer::MEASURED).is_file())
    }

    /// The trace and the measurements.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = vec![self.trace_file.clone()];
        files.extend(self.files_of("end_to_end")?);
        files.extend(self.files_of("moe_layer")?);
        files.extend(placement::files(&self.folder)?.into_iter().map(|(_, path)| path));
        Ok(files)
    }
}
