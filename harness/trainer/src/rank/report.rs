//! What a rank reports of an iteration.

use serde::{Deserialize, Serialize};
use systems::iteration::moved::Message;
use systems::iteration::timeline::Span;
use systems::price::ledger::Ledger;
use tch::Tensor;
use workloads::{Bytes, Seconds};

use crate::error::TrainError;
use crate::host::{to_host, to_scalar};
use crate::layer::moe::{Layer, LayerStats};
use crate::rank::Rank;
use crate::rank::pipeline::Ran;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Time of the iteration.
    pub step: Seconds,
    /// Where that time went.
    pub ledger: Ledger,
    /// The sum of the cross-entropies of its tokens; on the last stage, once per tensor-parallel group.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Mean of the balance loss over layers and micro-batches.
    #[serde(deserialize_with = "number")]
    pub balance: f64,
    /// Entries that it sent to experts.
    pub entries: u64,
    /// Choices that became no entry.
    pub dropped: u64,
    /// Copies made for one micro-batch, over its layers and micro-batches; on the first rank of each group.
    pub copied: u64,
    /// Memory in use on its GPU at the end, if it does not share the GPU. libtorch returns nothing while it trains, so this
    /// is also the peak.
    pub memory: Bytes,
    /// Time of online decisions, and of gathering the loads for them.
    pub decision: Seconds,
    /// Time of migrations.
    pub migration: Seconds,
    /// Experts that changed rank; on the first rank of a stage.
    pub moved: u64,
    /// `[layer of the stage][micro-batch][part * experts]`: the choices of each part before any limit, if they are recorded.
    pub chosen: Vec<Vec<Vec<u32>>>,
    /// Its spans, if they are recorded.
    pub spans: Vec<Span>,
    /// `[span]`: what it moved. Of an all-to-all it knows its own part alone, until [`agree`](crate::comm::noted::agree).
    pub messages: Vec<Vec<Message>>,
}

/// A number that may be NaN, for which JSON has null: a training that diverges.
fn number<'de, D: serde::Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

impl Rank<'_> {
    /// Completes the report by times and by what the micro-batches did; keeps its own loads until they are gathered.
    ///
    /// # Errors
    /// A peer that died.
    pub(super) fn complete(&mut self, ran: &Ran, report: &mut Report) -> Result<(), TrainError> {
        let stats = &ran.stats;
        // What follows is bookkeeping and not part of the iteration.
        self.timer.synchronize();
        report.step = self.timer.now();
        let (spans, ledger) = self.timer.finish(report.step);
        report.ledger = ledger;
        if self.setup.record_spans {
            (report.spans, report.messages) = spans.into_iter().unzip();
        }
        for loss in &ran.losses {
            report.loss += f64::from(to_scalar::<f32>(loss)?);
        }
        let all = stats.iter().flatten();
        report.balance = all.clone().map(|of| of.balance).sum::<f64>() / all.clone().count().max(1) as f64;
        let sum = |counts: &[u32]| counts.iter().map(|&count| u64::from(count)).sum::<u64>();
        for of in all {
            report.entries += sum(&of.entries);
            report.dropped += sum(&of.chosen) - sum(&of.entries);
            if self.position.is_multiple_of(self.plan.ep) {
                report.copied += of.copied as u64;
            }
        }
        if self.setup.recorded_parts(self.iteration).is_some() {
            let of_layer = |layer: usize| stats.iter().map(|layers| layers[layer].of_parts.clone()).collect();
            report.chosen = (0..self.stage.layers().count()).map(of_layer).collect();
        }
        self.own_loads.push(self.sum_by_expert(stats, |of| &of.entries));
        Ok(())
    }

    /// `[layer of the stage][expert]`: the sum of its counts over the micro-batches of the iteration.
    pub(super) fn sum_by_expert(
        &self,
        stats: &[Vec<LayerStats>],
        counts: impl Fn(&LayerStats) -> &[u32],
    ) -> Vec<Vec<i64>> {
        let of_layer = |(index, layer): (usize, &Layer)| {
            let mut own = vec![0i64; layer.experts.moe().experts];
            for of in stats.iter().map(|layers| &layers[index]) {
                own.iter_mut().zip(counts(of)).for_each(|(sum, &count)| *sum += i64::from(count));
            }
            own
        };
        self.stage.layers().enumerate().map(of_layer).collect()
    }

    /// Its own loads that are not gathered yet, summed over the ranks of the stage.
    ///
    /// # Errors
    /// A peer that died.
    pub(super) fn sum_loads(&self) -> Result<Vec<i64>, TrainError> {
        let own: Vec<i64> = self.own_loads.iter().flatten().flatten().copied().collect();
        if own.is_empty() {
            return Ok(own);
        }
        to_host(&self.groups.stage().all_reduce(&Tensor::from_slice(&own).to_device(self.device))?.wait()?)
    }

    /// Adds those sums to the history; 0 for layers of other stages.
    pub(super) fn remember_loads(&mut self, sums: Vec<i64>) {
        let mut sums = sums.into_iter().map(|load| load as u64);
        for _ in std::mem::take(&mut self.own_loads) {
            let moe = self.setup.job.model.moe_layers();
            let mut loads: Vec<Vec<u64>> = moe.map(|moe| vec![0; moe.experts]).collect();
            for layer in self.stage.layers() {
                loads[layer.number].iter_mut().zip(&mut sums).for_each(|(load, sum)| *load = sum);
            }
            self.online.remember(loads);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_its_encoding() {
        let report = Report { loss: 0.1 + 0.2, step: Seconds(1.0 / 3.0), moved: 2, ..Report::default() };
        let parse = |report: &Report| serde_json::from_slice::<Report>(&serde_json::to_vec(report).unwrap()).unwrap();
        assert_eq!(parse(&report), report);
        assert!(parse(&Report { loss: f64::INFINITY, ..report }).loss.is_nan(), "a training that diverges");
    }
}
