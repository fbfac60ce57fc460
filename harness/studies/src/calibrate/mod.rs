//! From measurements to a cluster's constants: the least squares of relative errors, with bounds.
//!
//! The residuals are `ln(predicted / measured)`, predictions being those of the simulator itself, so every constant has one
//! meaning in fit and use. Residuals beyond [`SOFT`] count linearly (soft L1), so that no single configuration decides.
//! [`constants`] says which constants can be fitted and within which bounds, [`levenberg`] finds them and how far they are
//! determined, [`targets`] holds the measurements, [`write`] puts the result into a cluster's TOML. [`segments`] fits to the
//! compute segments of a device, which [`device`] measures; [`operations`] makes lines of them, one for each operation and shape, and
//! [`collectives`] those of a network.

#[cfg(feature = "train")]
pub mod calls;
pub mod collectives;
pub mod constants;
#[cfg(feature = "train")]
pub mod device;
pub mod levenberg;
pub mod line;
#[cfg(feature = "train")]
pub mod machine;
pub mod operations;
pub mod segments;
pub mod targets;
#[cfg(feature = "train")]
pub mod together;
pub mod write;

use anyhow::{Result, bail};
use workloads::Cluster;
use workloads::gate::GateStatistics;
use workloads::trace::RoutingTrace;

use crate::measurements::layers::MeasuredLayer;
use constants::{Fitted, LAYER_CONSTANTS, NETWORK_LAYER_CONSTANTS, Point};
use targets::Targets;

/// Relative errors well below this count as squares, well above as absolute values.
pub const SOFT: f64 = 0.1;

/// Fits `names` to the targets, starting from `start`; all other constants stay.
///
/// # Errors
/// Fewer measurements than constants, a prediction that fails, or a constant that the measurements do not touch.
pub fn fit(start: &Point, names: &[String], targets: &Targets) -> Result<(Point, Vec<Fitted>)> {
    fit_residuals(start, names, targets.len(), &|point| targets.residuals(point))
}

/// Fits `names` so that `residuals`, `count` of them, are least; all other constants stay at `start`.
///
/// # Errors
/// As for [`fit`].
pub fn fit_residuals(
    start: &Point,
    names: &[String],
    count: usize,
    residuals: &dyn Fn(&Point) -> Result<Vec<f64>>,
) -> Result<(Point, Vec<Fitted>)> {
    if count < names.len() {
        bail!("{} constants cannot be fitted to {count} measurements", names.len());
    }
    let space = constants::Space::new(start, names)?;
    let residuals = |x: &[f64]| -> Result<Vec<f64>> {
        let point = space.point(start, x)?;
        Ok(residuals(&point)?.into_iter().map(soft).collect())
    };
    let solution = levenberg::minimise(&residuals, space.start())?;
    let point = space.point(start, &solution.x)?;
    Ok((point, space.fitted(&solution)))
}

/// Fits the constants that single layers determine.
///
/// # Errors
/// As for [`fit`].
pub fn fit_layers(cluster: &Cluster, trace: &RoutingTrace, layers: &[MeasuredLayer]) -> Result<(Cluster, Vec<Fitted>)> {
    let targets = Targets { layers: layers.iter().collect(), ..Targets::none(trace) };
    let start = Point { cluster: cluster.clone(), gate: GateStatistics::default() };
    let (point, fitted) = fit(&start, &layer_constants(cluster, layers), &targets)?;
    Ok((point.cluster, fitted))
}

/// The constants that these layers determine: those of the network where any of them spans nodes.
pub fn layer_constants(cluster: &Cluster, layers: &[MeasuredLayer]) -> Vec<String> {
    let across = layers.iter().any(|layer| layer.ranks() > cluster.gpus_per_node);
    let network = NETWORK_LAYER_CONSTANTS.iter().filter(|_| across);
    LAYER_CONSTANTS.iter().chain(network).map(|&name| name.to_owned()).collect()
}

/// `sign(r) s sqrt(2 (sqrt(1 + (r/s)^2) - 1))`: its square is the soft L1 loss of `r`.
fn soft(r: f64) -> f64 {
    r.signum() * SOFT * (2.0 * ((1.0 + (r / SOFT).powi(2)).sqrt() - 1.0)).sqrt()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use workloads::trace::SynthSpec;

    use super::*;
    use crate::measurements::iterations::{self, Configuration};
    use crate::measurements::layer::LayerShape;
    use crate::measurements::layers::{self, Hundreds};

    #[test]
    fn soft_is_a_square_first_and_a_line_later() {
        assert!((soft(1e-4) - 1e-4).abs() < 1e-9);
        assert!((soft(-10.0).powi(2) / 2.0 / 0.1 - 10.0).abs() < 0.11);
    }

    fn trace() -> RoutingTrace {
        let spec = SynthSpec { layers: 3, experts: 16, ranks: 8, samples: 12, ..SynthSpec::default() };
        spec.generate().unwrap()
    }

    fn inky() -> Point {
        Point { cluster: Cluster::named("test", "inky").unwrap(), gate: GateStatistics::default() }
    }

    /// A CSV in the system's folder for temporary files.
    fn file(name: &str, header: &str, rows: impl Iterator<Item = String>) -> PathBuf {
        let path = std::env::temp_dir().join(format!("moebench-{}-{name}.csv", std::process::id()));
        let text: Vec<String> = std::iter::once(header.to_owned()).chain(rows).collect();
        std::fs::write(&path, text.join("\n")).unwrap();
        path
    }

    /// Measures `targets` on a cluster whose constants are `truth`, and finds them again.
    fn recovers(truth: &[(&str, f64)], targets: impl Fn(&Point) -> Targets<'static>) {
        let names: Vec<String> = truth.iter().map(|(name, _)| (*name).to_owned()).collect();
        let mut there = inky();
        for (name, constant) in there.cluster.constants_mut() {
            if let Some((_, value)) = truth.iter().find(|(known, _)| *known == name) {
                constant.value = *value;
            }
        }
        let targets = targets(&there);
        let (_, fitted) = fit(&inky(), &names, &targets).unwrap();
        for (fitted, (name, value)) in fitted.iter().zip(truth) {
            assert!((fitted.value / value - 1.0).abs() < 0.02, "{name}: {} instead of {value}", fitted.value);
            assert!(fitted.uncertainty < 0.05 * value && !fitted.at_bound, "{fitted:?}");
        }
    }

    #[test]
    fn layers_give_their_constants_back() {
        let truth = [
            ("gpu.gemm_rate", 9e13),
            ("gpu.expert_start", 120e-6),
            ("gpu.scatter_bandwidth", 3e11),
            ("network.intra_bandwidth", 1e11),
            ("host.synchronisation", 300e-6),
        ];
        let trace: &'static RoutingTrace = Box::leak(Box::new(trace()));
        let labels = trace.iterations().iter();
        let rows = labels.flat_map(|label| [4, 8].into_iter().map(move |m| format!("8,{m},{label},{},1", label % 3)));
        let path = file("layers", "gpus,micro_batch,iteration,layer,measured_ms", rows);
        recovers(&truth, |there| {
            let mut layers = layers::read(&path, Hundreds::All, trace, LayerShape::default(), &[0]).unwrap();
            for layer in &mut layers {
                layer.measured = layer.predict(&there.cluster);
            }
            let layers: &'static [MeasuredLayer] = Box::leak(layers.into_boxed_slice());
            Targets { layers: layers.iter().collect(), ..Targets::none(trace) }
        });
        std::fs::remove_file(path).unwrap();
    }

    const CONFIGURATIONS: [&str; 5] = [
        "inky,16,fastmoe,no-drop,,2,1024,16,512,64,2,1,1,16,16,1,0",
        "inky,16,smartmoe,no-drop,,2,1024,16,512,64,2,1,2,8,8,1,0",
        "inky,16,smartmoe,no-drop,,2,1024,16,512,64,2,1,2,8,2,4,0",
        "inky,16,fastmoe,capacity,1.2,2,1024,16,512,64,4,1,1,16,16,1,0",
        "inky,16,unheard-of,no-drop,,2,1024,16,512,64,2,1,1,16,16,1,0",
    ];

    #[test]
    fn iterations_give_their_constants_back() {
        let truth = [("gpu.gemm_rate", 9e13), ("network.inter_bandwidth", 12e9), ("network.call_start", 60e-6)];
        let trace: &'static RoutingTrace = Box::leak(Box::new(trace()));
        let header = "cluster,gpus,system,gate,capacity_factor,layers,hidden,experts,seq_len,global_batch,micro_batch,\
                      tp,pp,dp,ep,expert_dp,dynamic_every,iteration,elapsed_ms";
        let rows = CONFIGURATIONS.iter().flat_map(|row| (11..14).map(move |t| format!("{row},{t},1")));
        let path = file("iterations", header, rows);
        recovers(&truth, |there| {
            let read = iterations::read(&path, &|_| Ok(inky().cluster)).unwrap();
            assert_eq!(read[4].missing(), Some("no such system: unheard-of"));
            let mut known: Vec<Configuration> = read.into_iter().filter(|c| c.missing().is_none()).collect();
            for configuration in &mut known {
                let iterations = configuration.iterations(None);
                let prediction = configuration.predict(trace, Some(&there.cluster), &there.gate, &iterations).unwrap();
                configuration.times = prediction.unwrap().times.into_iter().map(|(t, s)| (t, Some(s))).collect();
            }
            let known: &'static [Configuration] = Box::leak(known.into_boxed_slice());
            let end_to_end = known.iter().map(|c| (c, c.iterations(Some(2)))).collect();
            Targets { end_to_end, ..Targets::none(trace) }
        });
        std::fs::remove_file(path).unwrap();
    }
}
