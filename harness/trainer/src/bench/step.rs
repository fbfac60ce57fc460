//! A training step on one rank: forward and backward passes of all micro-batches, and the optimizer.
//!
//! Tokens are drawn evenly, so that losses say nothing but that both precisions compute the same; routing is that of a fresh
//! gate.

use std::time::{Duration, Instant};

use systems::System;
use systems::plan::job::Job;
use systems::plan::search;
use systems::price::cost::CostModel;
use systems::price::ledger::Ledger;
use tch::{Device, Kind};
use workloads::{Cluster, Gate, Model, Seconds, Training};

use crate::bench::begin;
use crate::data::Uniform;
use crate::error::TrainError;
use crate::rank::report::Report;
use crate::setup::{self, Setup, SetupError, kind_on};
use crate::world::{self, Threads};

/// A model, and what one rank trains it on.
#[derive(Clone)]
pub struct StepShape {
    pub model: Model,
    pub system: &'static dyn System,
    /// Samples of an iteration.
    pub global_batch: usize,
    /// Samples of a micro-batch.
    pub micro_batch: usize,
}

/// What steps took.
#[derive(Clone, Debug, Default)]
pub struct StepTimes {
    /// Of every repeat.
    pub steps: Vec<Seconds>,
    /// Of every repeat: where the time went.
    pub ledgers: Vec<Ledger>,
    /// From the start to the end of the first iteration: values are drawn, kernels compiled.
    pub first: Seconds,
    /// Losses of a token, from the first iteration on.
    pub losses: Vec<f64>,
}

/// Why a step cannot be timed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error("{samples} samples in micro-batches of {micro_batch}: expected a multiple")]
    MicroBatch { samples: usize, micro_batch: usize },
    #[error(transparent)]
    Train(#[from] TrainError),
}

impl StepShape {
    /// Floating-point operations of a step: those of active parameters and of attention's scores.
    pub fn flops(&self) -> f64 {
        self.model.training_flops().0 * self.global_batch as f64
    }

    /// Trains for `warmup + repeats` iterations in the kind of the device; `kind` instead of it where one is given.
    ///
    /// # Errors
    /// A model that cannot be trained, a micro-batch that does not divide the samples, a
    /// device that cannot be used.
    pub fn run(
        &self,
        device: Device,
        kind: Option<Kind>,
        warmup: usize,
        repeats: usize,
    ) -> Result<StepTimes, StepError> {
        let Self { model, system, global_batch, micro_batch } = self;
        if !global_batch.is_multiple_of(*micro_batch) {
            return Err(StepError::MicroBatch { samples: *global_batch, micro_batch: *micro_batch });
        }
        begin(device)?;
        let cluster = Cluster::named("bench", "inky").expect("the cluster is built in");
        let costs = CostModel::new(&cluster, 1);
        let job = Job::new(model.clone(), cluster, 1, Gate::NoDrop, *global_batch).with_micro_batch(*micro_batch);
        let pool = search::pools(&job).into_iter().next();
        let plan = pool.expect("one rank is a plan whatever the model").plan(0);
        let gpt = setup::gpt(&job, &plan)?;
        let samples = Uniform { vocabulary: gpt.vocabulary, sequence: gpt.seq_len, seed: 1 };
        let setup = Setup {
            job: &job,
            plan,
            system: *system,
            costs: &costs,
            training: Training::default(),
            samples: &samples,
            seed: 1,
            iterations: warmup + repeats,
            replay: None,
            record: None,
            record_spans: false,
            checkpoint: None,
            kind: kind.unwrap_or_else(|| kind_on(device)),
            gpt,
        };
        Ok(times(&setup, device, warmup)?)
    }
}

fn times(setup: &Setup, device: Device, warmup: usize) -> Result<StepTimes, TrainError> {
    let begun = Instant::now();
    let mut times = StepTimes::default();
    let mut sink = |iteration: usize, reports: Vec<Report>| {
        if iteration == 0 {
            times.first = Seconds(begun.elapsed().as_secs_f64());
        }
        let done = world::iteration(setup, &reports);
        times.losses.extend(done.loss);
        if iteration >= warmup {
            times.steps.push(done.timing.step);
            times.ledgers.extend(done.timing.phases);
        }
    };
    let threads = Threads { device, virtual_clock: None, timeout: Duration::from_secs(60) };
    world::run(setup, threads, &mut sink, |_| ())?;
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micro(micro_batch: usize) -> StepShape {
        let model = Model::named("test", "gpt-micro").unwrap();
        StepShape { model, system: systems::zoo::ALL[0], global_batch: 2, micro_batch }
    }

    #[test]
    fn a_step_is_timed_and_trains_the_same_in_any_micro_batch() {
        let [whole, halves] = [2, 1].map(|micro_batch| micro(micro_batch).run(Device::Cpu, None, 1, 2).unwrap());
        assert_eq!((whole.steps.len(), whole.ledgers.len(), whole.losses.len()), (2, 2, 3));
        assert!(whole.steps.iter().all(|step| step.0 > 0.0) && whole.first.0 > 0.0);
        for (one, other) in whole.losses.iter().zip(&halves.losses) {
            assert!((one - other).abs() < 1e-4 * one, "{whole:?} {halves:?}");
        }
    }

    /// Whose experts are in shards, of one rank here.
    #[test]
    fn a_step_of_a_system_with_shards_trains_the_same() {
        let shape = StepShape { system: &systems::zoo::laer::Laer, ..micro(1) };
        let [plain, shards] = [micro(1), shape].map(|shape| shape.run(Device::Cpu, None, 0, 3).unwrap().losses);
        assert!(plain.iter().zip(&shards).all(|(plain, shards)| (plain - shards).abs() < 1e-6), "{plain:?} {shards:?}");
    }

    #[test]
    fn a_micro_batch_divides_the_samples() {
        let shape = StepShape { global_batch: 3, ..micro(2) };
        let error = shape.run(Device::Cpu, None, 0, 1).unwrap_err().to_string();
        assert_eq!(error, "3 samples in micro-batches of 2: expected a multiple");
    }
}
