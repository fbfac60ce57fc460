//! Predictions held against published measurements: what a simulated number is worth.
//!
//! Three studies, each read from a CSV of one row per measurement ([`sheet`]): whole iterations ([`end_to_end`]), single
//! MoE layers ([`moe_layer`]), and one layer over time under two placements ([`adaptive`]). All are predicted with the
//! systems, the cost model and the evaluator that `moebench run` uses; nothing here has a formula of its own. A fourth needs
//! no file: the offline search's plans beside those that SmartMoE's authors ran ([`plans`]).

pub mod adaptive;
pub mod end_to_end;
pub mod errors;
pub mod layer;
pub mod moe_layer;
pub mod page;
pub mod plans;
pub mod sheet;
pub(crate) mod tables;

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use workloads::Cluster;
    use workloads::gate::GateStatistics;
    use workloads::trace::RoutingTrace;

    use super::adaptive::Study;
    use super::errors::{Errors, Pair};
    use super::layer::LayerShape;
    use super::moe_layer::Rows;
    use super::*;
    use crate::summary::model_error::{self, Part};
    use crate::{runs::prepare, traces};

    const SHAPE: LayerShape = LayerShape { hidden: 1024, seq_len: 1024 };

    /// The published trace and a file of measurements, or None (said on stderr) where the shared data is not at hand.
    fn published(file: &str) -> Option<(RoutingTrace, PathBuf)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/smartmoe-ae");
        let trace = folder.join("moe_trace.tar.xz");
        if !trace.exists() {
            eprintln!("skipped: {} is not here", trace.display());
            return None;
        }
        Some((traces::load(Some(&trace)).unwrap(), folder.join(file)))
    }

    fn nico() -> Cluster {
        Cluster::named("test", "nico").unwrap()
    }

    #[test]
    fn layers_are_predicted_better_than_by_the_paper() {
        let Some((trace, file)) = published("moe_layer.csv") else { return };
        let samples = moe_layer::read(&file, Rows::Odd, &trace, SHAPE, &[0]).unwrap();
        for setting in moe_layer::predict(&samples, &nico()) {
            assert!(setting.errors.mean <= 0.03, "{setting:?}");
            assert!(setting.errors.r_squared.unwrap() >= 0.95, "{:?}", setting.errors);
            assert!(setting.paper.unwrap().mean > 0.08 && setting.uniform.unwrap().mean > 0.15);
        }
    }

    /// The errors beside simulated bars are those of the clusters as they are shipped: `scripts/validation` renews them.
    fn check_shown(cluster: &str, part: Part, found: &Errors) {
        let shown = model_error::of_clusters().unwrap();
        let shown = shown.iter().find(|e| e.cluster == cluster && e.part == part).unwrap();
        assert!((shown.median - found.median).abs() < 0.015, "{shown:?} {found:?}");
    }

    #[test]
    fn shown_errors_of_layers_are_those_of_the_shipped_cluster() {
        let Some((trace, file)) = published("moe_layer.csv") else { return };
        let samples = moe_layer::read(&file, Rows::All, &trace, SHAPE, &[0]).unwrap();
        let pairs: Vec<Pair> = moe_layer::predict(&samples, &nico()).into_iter().flat_map(|s| s.pairs).collect();
        check_shown("nico", Part::Layer, &Errors::new(&pairs).unwrap());
    }

    #[test]
    fn the_gain_of_placement_is_predicted() {
        let Some((trace, file)) = published("adaptive_every100.csv") else { return };
        let study = Study { gpus: 16, layer: 6, micro_batch: 8, every: 100, lag: 0 };
        let series = adaptive::read(&file, &trace, SHAPE, study).unwrap();
        let report = adaptive::Report::new(&series.samples, &series.predict(&nico())).unwrap();
        assert!((report.measured_gain - 1.3386).abs() < 1e-3);
        assert!((report.predicted_gain / report.measured_gain - 1.0).abs() < 0.05, "{report:?}");
        assert!(report.static_correlation.unwrap() >= 0.8);
    }

    #[test]
    fn iterations_and_the_order_of_systems_are_predicted() {
        let Some((trace, file)) = published("end_to_end.csv") else { return };
        let read = end_to_end::read(&file, &|name| prepare::cluster("test", name)).unwrap();
        assert_eq!(read.len(), 36);
        let report = end_to_end::predict(&read, &trace, &GateStatistics::default(), Some(5)).unwrap();
        let errors = report.errors.unwrap();
        assert!(errors.median <= 0.10 && errors.p90 <= 0.25, "{errors:?}");
        assert!(report.ordered_wrong.is_empty(), "{:?}", report.ordered_wrong);
        check_shown("inky", Part::Iteration, &errors);
    }
}
