//! Single MoE layers (the paper's figure 11): with the constants of a cluster as shipped, and with constants that are fitted
//! to half of the rows and tested on the other.

use anyhow::Result;
use workloads::Cluster;
use workloads::trace::RoutingTrace;

use super::claims;
use super::page::Section;
use super::tables::{constants_table, settings_table};
use super::{Inputs, Study};
use crate::calibrate::constants::{Fitted, LAYER_CONSTANTS};
use crate::figures::performance_model;
use crate::measurements::layers::{self, Hundreds, LayerErrors, MeasuredLayer};
use crate::{calibrate, measurements::layer::LayerShape};
use runs::summary::errors::{Errors, Pair};
use runs::summary::model_error::{ClusterError, Measured, Part};

/// Layers to fit constants to, and layers to test them on.
pub struct LayerTest<'a> {
    pub trace: &'a RoutingTrace,
    /// Whose constants are used as shipped, or fitted.
    pub cluster: &'a Cluster,
    /// Empty where nothing is fitted.
    pub fitted_to: Vec<MeasuredLayer<'a>>,
    pub tested: Vec<MeasuredLayer<'a>>,
}

/// The constants that were fitted, if any, and the errors per setting.
pub struct LayerOutcome {
    pub fitted: Vec<Fitted>,
    pub settings: Vec<LayerErrors>,
}

impl LayerTest<'_> {
    /// Fits, if there is what to fit to, and predicts.
    ///
    /// # Errors
    /// A fit that fails.
    pub fn run(&self) -> Result<LayerOutcome> {
        if self.fitted_to.is_empty() {
            return Ok(LayerOutcome { fitted: Vec::new(), settings: layers::predict(&self.tested, self.cluster) });
        }
        let (cluster, fitted) = calibrate::fit_layers(self.cluster, self.trace, &self.fitted_to)?;
        Ok(LayerOutcome { fitted, settings: layers::predict(&self.tested, &cluster) })
    }
}

/// The study: all rows on the shipped constants, and, where there are enough, those with odd hundreds of iterations on
/// constants that are fitted to the even ones.
pub struct MoeLayers<'a> {
    shape: LayerShape,
    shipped: LayerTest<'a>,
    halves: Option<LayerTest<'a>>,
}

pub struct MoeLayersOutcome {
    pub shipped: LayerOutcome,
    pub held_out: Option<LayerOutcome>,
}

impl<'a> Study<'a> for MoeLayers<'a> {
    type Outcome = MoeLayersOutcome;

    fn read(inputs: &'a Inputs) -> Result<Option<Self>> {
        let paths = inputs.files_of("moe_layer")?;
        if paths.is_empty() {
            return Ok(None);
        }
        let (trace, cluster, shape) = (&inputs.trace, &inputs.layer_cluster, inputs.unsaid.shape);
        let read = |rows| -> Result<Vec<MeasuredLayer>> {
            let mut all = Vec::new();
            for path in &paths {
                all.extend(layers::read(path, rows, trace, shape, &[0])?);
            }
            Ok(all)
        };
        let shipped = LayerTest { trace, cluster, fitted_to: Vec::new(), tested: read(Hundreds::All)? };
        let halves = match (read(Hundreds::Even), read(Hundreds::Odd)) {
            (Ok(even), Ok(odd)) if even.len() > calibrate::layer_constants(cluster, &even).len() => {
                Some(LayerTest { trace, cluster, fitted_to: even, tested: odd })
            }
            _ => None,
        };
        Ok(Some(Self { shape, shipped, halves }))
    }

    fn predict(&self) -> Result<MoeLayersOutcome> {
        let held_out = self.halves.as_ref().map(LayerTest::run).transpose()?;
        Ok(MoeLayersOutcome { shipped: self.shipped.run()?, held_out })
    }

    fn section(&self, outcome: &MoeLayersOutcome) -> Result<Section> {
        let mut section = Section::new("Single MoE layers (figure 11)");
        section.add(format!(
            "One layer, forward and backward, experts in order; one set of constants for all numbers of GPUs. Its width is not in the files: {} is inferred (`--hidden`), \
             an expert's inner width being twice that.",
            self.shape.hidden
        ));
        match &outcome.held_out {
            Some(held_out) => add_held_out(&mut section, held_out, self.shipped.cluster)?,
            None => add_too_few(&mut section, &outcome.shipped)?,
        }
        let (cluster, settings) = (&self.shipped.cluster.name, &outcome.shipped.settings);
        section.add(format!("With the constants of `{cluster}` as shipped, all rows:"));
        section.table(settings_table(settings));
        // What a fit did not see, where there was enough to leave out.
        let (settings, measured) = match &outcome.held_out {
            Some(held_out) => (&held_out.settings, Measured::Unseen),
            None => (settings, Measured::Fitted),
        };
        let all: Vec<Pair> = settings.iter().flat_map(|setting| setting.pairs.iter().copied()).collect();
        section.errors.extend(Errors::new(&all).map(|e| ClusterError::new(cluster, Part::Layer, &e, measured)));
        Ok(section)
    }
}

fn add_held_out(section: &mut Section, held_out: &LayerOutcome, cluster: &Cluster) -> Result<()> {
    section.add(format!(
        "{} constants are fitted to the rows with even `(iteration - 1) / 100` and tested on the others:",
        held_out.fitted.len()
    ));
    section.picture(performance_model::moe_layer("layers", &held_out.settings));
    section.table(settings_table(&held_out.settings));
    section.add("The constants of that fit:");
    section.table(constants_table(&held_out.fitted));
    let across = |setting: &LayerErrors| setting.gpus > cluster.gpus_per_node;
    section.claims.extend(held_out.settings.iter().map(|setting| claims::layers(setting, across(setting))));
    Ok(())
}

fn add_too_few(section: &mut Section, shipped: &LayerOutcome) -> Result<()> {
    section.picture(performance_model::moe_layer("layers", &shipped.settings));
    section.add(format!(
        "There are too few rows to fit {} constants to those with even `(iteration - 1) / 100` and test the others.",
        LAYER_CONSTANTS.len()
    ));
    Ok(())
}
