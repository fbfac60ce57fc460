//! The measurements that a fit is held against.

use anyhow::Result;
use rayon::prelude::*;
use workloads::trace::RoutingTrace;

use super::constants::Point;
use crate::measurements::iterations::Configuration;
use crate::measurements::layers::MeasuredLayer;
use crate::measurements::series::Series;

/// Measurements of one cluster, of any of the three kinds.
pub struct Targets<'a> {
    /// The trace that all were taken on.
    pub trace: &'a RoutingTrace,
    /// Whole iterations: configurations with the iterations to simulate.
    pub end_to_end: Vec<(&'a Configuration, Vec<usize>)>,
    /// Single layers.
    pub layers: Vec<&'a MeasuredLayer<'a>>,
    /// A layer over time, whose static half is fitted; the online half is left to test.
    pub series: Option<&'a Series<'a>>,
}

impl<'a> Targets<'a> {
    /// Nothing yet.
    pub fn none(trace: &'a RoutingTrace) -> Self {
        Self { trace, end_to_end: Vec::new(), layers: Vec::new(), series: None }
    }

    pub fn len(&self) -> usize {
        self.end_to_end.len() + self.layers.len() + self.series.map_or(0, |series| series.samples.len())
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `ln(predicted / measured)` of every measurement.
    ///
    /// # Errors
    /// A trace that cannot stand for a job.
    pub fn residuals(&self, point: &Point) -> Result<Vec<f64>> {
        let mut residuals = self.end_to_end_residuals(point)?;
        let layers: Vec<f64> =
            self.layers.par_iter().map(|sample| (sample.predict(&point.cluster) / sample.measured).ln()).collect();
        residuals.extend(layers);
        if let Some(series) = self.series {
            let predicted = series.predict_static(&point.cluster);
            residuals.extend(series.samples.iter().zip(predicted).map(|(s, time)| (time / s.measured_static).ln()));
        }
        Ok(residuals)
    }

    /// A run that is predicted to end early counts as predicted too slow by half.
    fn end_to_end_residuals(&self, point: &Point) -> Result<Vec<f64>> {
        self.end_to_end
            .par_iter()
            .map(|(configuration, iterations)| {
                let prediction = configuration.predict(self.trace, Some(&point.cluster), &point.gate, iterations)?;
                let predicted = prediction.filter(|p| p.failure.is_none()).and_then(|p| p.median());
                Ok(predicted.zip(configuration.measured()).map_or(0.5, |(p, m)| (p / m).ln()))
            })
            .collect()
    }
}
