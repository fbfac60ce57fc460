//! Times the trainer's own compute segments on a device, to calibrate a cluster with.
//!
//! Small models of the given one's shape are trained by several ranks under a virtual clock: in the code, on the shapes
//! and with the cold caches of a real run. The step size is 0 and every iteration reads the same data, so the gate chooses
//! the same and segments of different iterations are samples of one time. Their mean counts: an iteration is a sum of
//! segments, and times are skewed. Of what hosts decide, the median: on four H100s the mean of the same calls forward was twice as long in two
//! of three runs as in the third.
//!
//! Operations of ranks that have a GPU each are timed in iterations by a wall clock, too, of plain expert parallelism, whose hosts wait around every
//! exchange and issue what follows with little before it. Where they waited for an idle GPU before each operation, they took three times as long for
//! what followed, on an H100.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use systems::{CostModel, Job, Plan, System, zoo::expert_only, zoo::fastermoe, zoo::smartmoe};
use tch::Device;
use workloads::gate::Gate;
use workloads::trace::BatchCounts;
use workloads::{Cluster, Model, Seconds, Training};

use runs::summary::errors::mean;
use runs::summary::statistics::median;

use super::segments::{Ahead, MeasuredRun, Segment, SegmentPlace, Times, segments, without_permute};
use trainer::clock::timer::{ALONE, Measure, Measures};
use trainer::cuda;
use trainer::data::{Entropy, Language, Samples};
use trainer::processes::Processes;
use trainer::rank::report::Report;
use trainer::record;
use trainer::setup::{self, Recording, Setup, kind_on};
use trainer::world::{self, Threads};

/// Iterations before the measured ones: allocations settle, experts find their places.
const WARMUP: usize = 3;
/// Measured iterations; of each kind of measurement, where there are several.
const REPEATS: usize = 7;
const REPEATS_OF_EACH: usize = 4;

/// Blocks of one shape at most whose operations are measured where a host issues them. The first of a pass comes after other code: on eight H200s
/// hosts took a third longer for it than for the next, which are most of a model.
pub const BLOCKS: usize = 4;
/// The share of a device's memory that their weights, gradients and optimizer state may take.
const SHARE: f64 = 0.5;

/// What is measured where.
#[derive(Clone, Copy)]
pub struct Measurement<'a> {
    /// Its block shapes, edges and experts are measured.
    pub model: &'a Model,
    /// What policies and exchanges are told.
    pub cluster: &'a Cluster,
    /// How entries are admitted.
    pub gate: Gate,
    /// Samples per rank and micro-batch; twice as many are measured, too.
    pub micro_batch: usize,
    /// Ranks that take turns on the device, or have one each.
    pub ranks: usize,
    /// These, where they have one each.
    pub processes: Option<&'a Processes>,
    /// The device.
    pub device: Device,
}

/// One run to measure.
struct Variant {
    job: Job,
    plan: Plan,
    system: &'static dyn System,
}

impl Variant {
    /// The same with the next larger number of experts on each rank: replicas of as many ranks fewer share them out.
    fn with_more_experts(&self) -> Option<Self> {
        let (job, plan) = (&self.job, self.plan);
        let divides = |ep: &usize| plan.ep.is_multiple_of(*ep);
        let ep = (1..plan.ep).rev().find(divides)?;
        let plan = Plan { ep, expert_dp: plan.expert_dp * plan.ep / ep, ..plan };
        Some(Self { job: job.clone(), plan, system: self.system })
    }
}

impl Measurement<'_> {
    /// Whether the model can be measured, on a device with that many bytes of memory, if that is known.
    ///
    /// # Errors
    /// A model that cannot be trained, or that does not fit.
    pub fn check(&self, available: Option<f64>) -> Result<()> {
        for variant in self.variants()? {
            let Variant { job, plan, system } = &variant;
            setup::gpt(job, plan)?;
            if let Some(available) = available {
                setup::fits(job, *system, plan, kind_on(self.device), self.ranks, available)?;
            }
        }
        Ok(())
    }

    /// Trains every variant.
    ///
    /// # Errors
    /// A model that cannot be trained.
    pub fn runs(&self) -> Result<Vec<MeasuredRun>> {
        let all = self.variants()?.into_iter().filter_map(|variant| self.measure(variant, &[Some(ALONE)]).transpose());
        all.collect()
    }

    /// Whether the model's own blocks can be trained.
    ///
    /// # Errors
    /// A model that cannot.
    pub fn check_operations(&self) -> Result<()> {
        let Variant { job, plan, .. } =
            self.variant_of(some_of_each(self.model, 1), self.micro_batch, &expert_only::ExpertOnly);
        setup::gpt(&job, &plan)?;
        Ok(())
    }

    /// Trains some of the model's own blocks of each kind, with one micro-batch and with a half and twice as many samples, so that what each
    /// operation takes can be told as a line over its units; and with more experts on each rank, if there may be, so that what a call takes is told
    /// from what an expert does. Of several processes, the first alone knows what was measured.
    ///
    /// # Errors
    /// A model that cannot be trained; a process that died.
    pub fn runs_of_operations(&self) -> Result<Vec<MeasuredRun>> {
        let model = some_of_each(self.model, self.blocks());
        let sizes = [self.micro_batch.div_ceil(2), self.micro_batch, 2 * self.micro_batch];
        let of_size = |micro_batch| self.variant_of(model.clone(), micro_batch, &expert_only::ExpertOnly);
        let mut variants = Vec::from(sizes.map(of_size));
        variants.extend(of_size(self.micro_batch).with_more_experts().filter(|more| self.fits(more)));
        let exchanges = |variant: &Variant| variant.plan.ep > 1;
        let some_exchange = variants.iter().any(exchanges);
        let measure = |variant: Variant| {
            let clocks: &[Clock] = match (self.processes.is_none() && self.ranks > 1, self.device.is_cuda()) {
                (true, _) => &[Some(IN_TURN)],
                (false, true) if exchanges(&variant) => &[None, Some(OF_HOSTS)],
                // Without an exchange, a host has nothing to wait for.
                (false, true) if some_exchange => &[Some(OF_HOSTS)],
                (false, _) => &[Some(EACH)],
            };
            self.measure(variant, clocks).transpose()
        };
        variants.into_iter().filter_map(measure).collect()
    }

    /// How many blocks of one shape are measured: as many as fit with more experts, too, the same on every rank.
    fn blocks(&self) -> usize {
        if !self.device.is_cuda() {
            return 1;
        }
        let fit = |&number: &usize| {
            let model = some_of_each(self.model, number);
            let variant = self.variant_of(model, self.micro_batch, &expert_only::ExpertOnly);
            self.fits(&variant) && variant.with_more_experts().is_none_or(|more| self.fits(&more))
        };
        (2..=BLOCKS).rev().find(fit).unwrap_or(1)
    }

    /// Whether its weights, gradients and optimizer state leave room on a GPU; a CPU's memory is not asked.
    fn fits(&self, Variant { job, plan, system }: &Variant) -> bool {
        let Device::Cuda(ordinal) = self.device else { return true };
        let Ok(memory) = cuda::Gpu::open(ordinal).and_then(|gpu| gpu.memory()) else { return false };
        let on_device = if self.processes.is_some() { 1 } else { self.ranks };
        setup::fits(job, *system, plan, kind_on(self.device), on_device, SHARE * memory.total as f64).is_ok()
    }

    /// The model's width with two micro-batches, another width, and a system that decides.
    fn variants(&self) -> Result<Vec<Variant>> {
        let block = self.model.blocks.first().context("the model has no blocks")?;
        let hidden = block.hidden;
        let other = if hidden.is_multiple_of(2 * block.attention.heads) { hidden / 2 } else { 2 * hidden };
        let variants: [(usize, usize, &'static dyn System); 4] = [
            (hidden, self.micro_batch, &smartmoe::SMARTMOE),
            (hidden, 2 * self.micro_batch, &smartmoe::SMARTMOE),
            (other, self.micro_batch, &smartmoe::SMARTMOE),
            (hidden, self.micro_batch, &fastermoe::FASTERMOE),
        ];
        variants.into_iter().map(|(hidden, micro_batch, system)| self.variant(hidden, micro_batch, system)).collect()
    }

    fn variant(&self, hidden: usize, micro_batch: usize, system: &'static dyn System) -> Result<Variant> {
        Ok(self.variant_of(shallow(self.model, hidden)?, micro_batch, system))
    }

    fn variant_of(&self, model: Model, micro_batch: usize, system: &'static dyn System) -> Variant {
        let (ranks, experts) = (self.ranks, model.moe_layers().next().map_or(1, |moe| moe.experts));
        let divides = |ep: &usize| ranks.is_multiple_of(*ep) && experts.is_multiple_of(*ep);
        let ep = (1..=ranks).rev().find(divides).unwrap_or(1);
        let plan = Plan { dp: ranks, ep, expert_dp: ranks / ep, micro_batch, placement_every: 1, ..Plan::default() };
        let job =
            Job::new(model, self.cluster.clone(), ranks, self.gate, ranks * micro_batch).with_micro_batch(micro_batch);
        Variant { job, plan, system }
    }

    /// By runs of one clock after the other.
    fn measure(&self, variant: Variant, clocks: &[Clock]) -> Result<Option<MeasuredRun>> {
        let Variant { job, plan, system } = variant;
        let width = job.model.blocks[0].hidden;
        let name = format!("hidden {width}, ep {}, micro-batch {}, {}", plan.ep, plan.micro_batch, system.name());
        let mut measured = None;
        for &clock in clocks {
            let run = self.run(&job, plan, system, clock).with_context(|| name.clone())?;
            let Some((batch, times)) = run else { continue };
            measured.get_or_insert((batch, Vec::new())).1.extend(times);
        }
        let Some((batch, times)) = measured else { return Ok(None) };
        let (measured, ahead) = typical(&times);
        Ok(Some(MeasuredRun { name, job, plan, system, batch, warmup: WARMUP, measured, ahead }))
    }

    /// The choices of an iteration, and the segments of all measured ones; none in a process that is not the first.
    fn run(&self, job: &Job, plan: Plan, system: &'static dyn System, clock: Clock) -> Result<Option<Measured>> {
        let gpt = setup::gpt(job, &plan)?;
        let samples = Repeated::new(job.global_batch, gpt.vocabulary, gpt.seq_len);
        let costs = CostModel::new(&job.cluster, job.gpus);
        let setup = Setup {
            job,
            plan,
            system,
            costs: &costs,
            training: Training { learning_rate: 0.0, ..Training::default() },
            samples: &samples,
            seed: 1,
            iterations: WARMUP + clock.filter(|of| of.len() > 1).map_or(REPEATS, |of| REPEATS_OF_EACH * of.len()),
            replay: None,
            record: Some(Recording::ALL),
            record_spans: true,
            checkpoint: None,
            kind: kind_on(self.device),
            gpt,
        };
        let (mut batch, mut times) = (None, Vec::new());
        let mut sink = |iteration: usize, reports: Vec<Report>| {
            if iteration >= WARMUP {
                let spans: Vec<_> = reports.iter().flat_map(|report| report.spans.iter().copied()).collect();
                let of_iteration = segments(&spans);
                let times_of = if clock == Some(ALONE) { without_permute(of_iteration) } else { of_iteration };
                times.push((clock.map(|of| of[iteration % of.len()]), times_of));
                batch = Some(record::batch(&setup, &reports));
            }
        };
        match self.processes {
            Some(processes) => world::run_process(&setup, processes, clock, &mut sink, |_| ())?,
            None => {
                let (device, timeout) = (self.device, Duration::from_secs(600));
                let threads = Threads { device, virtual_clock: clock, timeout };
                world::run(&setup, threads, &mut sink, |_| ()).map(drop)?;
            }
        }
        Ok(batch.map(|batch| (batch, times)))
    }
}

/// What a virtual clock measures, one after the other; or a wall clock, where hosts run ahead and wait as the program says.
type Clock = Option<Measures>;

/// The choices of an iteration, and the segments of every measured one with what was measured of them.
type Measured = (BatchCounts, Vec<(Option<Measure>, Times)>);

/// What is measured of operations, the last behind other work: of ranks that have a GPU each, beside what they take by a wall clock; of a rank alone or
/// on a CPU; and of ranks that take turns on a device, as emulation takes them.
const OF_HOSTS: Measures = &[Measure::Issue, Measure::Queued];
const EACH: Measures = &[Measure::Alone, Measure::Issue, Measure::Queued];
const IN_TURN: Measures = &[Measure::Alone, Measure::Issue, Measure::Ahead];

/// Of every segment, what it takes, and, if hosts were looked at, what it takes behind other work and until it is issued.
fn typical(times: &[(Option<Measure>, Times)]) -> (Times, Option<Ahead>) {
    let of = |wanted: &[Option<Measure>]| {
        let of = times.iter().filter(|(of, _)| wanted.contains(of)).map(|(_, times)| times);
        let is_of_host = wanted.iter().any(|of| matches!(of, None | Some(Measure::Issue)));
        each(of, if is_of_host { median } else { mean })
    };
    // Data is read by the host alone.
    let ahead = |wanted| {
        let mut times = of(wanted);
        times.retain(|place, _| place.segment != Segment::Host);
        times
    };
    let by_wall_clock = times.iter().any(|(of, _)| of.is_none());
    let measured = of(if by_wall_clock { &[None] } else { &[Some(Measure::Alone)] });
    let issued = ahead(&[Some(Measure::Issue)]);
    let queued = ahead(&[Some(Measure::Queued), Some(Measure::Ahead)]);
    (measured, (!issued.is_empty()).then_some(Ahead { queued, issued }))
}

/// Of every segment, one time for those of all iterations.
fn each<'a>(iterations: impl Iterator<Item = &'a Times>, of: fn(&[f64]) -> Option<f64>) -> Times {
    let mut all: BTreeMap<SegmentPlace, Vec<f64>> = BTreeMap::new();
    for (&place, &time) in iterations.flatten() {
        all.entry(place).or_default().push(time.0);
    }
    all.into_iter().filter_map(|(place, times)| Some((place, Seconds(of(&times)?)))).collect()
}

/// The model with so many blocks at most of each shape that it has.
fn some_of_each(model: &Model, number: usize) -> Model {
    let mut some = model.clone();
    let mut seen = Vec::new();
    some.blocks.retain(|block| {
        let is_wanted = seen.iter().filter(|&other| other == block).count() < number;
        seen.push(*block);
        is_wanted
    });
    some
}

/// A model of the same kinds of blocks, two of each, with another width.
fn shallow(model: &Model, hidden: usize) -> Result<Model> {
    let moe_block = *model.moe_blocks().first().context("the model has no MoE layer")?;
    let block = &model.blocks[moe_block];
    let moe = block.moe().context("the model has no MoE layer")?;
    let vocabulary = model.vocabulary.with_context(|| {
        format!("model {}: not a language model: only models with a table [gpt] can be trained", model.name)
    })?;
    let text = format!(
        "name = \"{} (measured)\"\nsource = \"{}\"\n[gpt]\nlayers = {}\nhidden = {hidden}\nheads = {}\nseq_len = {}\n\
         vocabulary = {vocabulary}\nexpert_ratio = {}\nexperts = {}\nmoe_every = {}\ntop_k = {}\n",
        model.name,
        model.name,
        2 * (moe_block + 1),
        block.attention.heads,
        block.tokens,
        (moe.expert.inner / moe.width).max(1),
        moe.experts,
        moe_block + 1,
        model.top_k
    );
    Ok(Model::parse("calibrate measure", &text)?)
}

/// The same samples in every iteration, as quick to read as those of a file: of the synthetic language, or, where its vocabulary is too large,
/// any tokens.
struct Repeated {
    samples: Vec<Vec<i64>>,
    vocabulary: usize,
}

impl Repeated {
    fn new(number: usize, vocabulary: usize, sequence: usize) -> Self {
        let language = Language::new(vocabulary, sequence, 1).ok();
        let any = |index: usize, position: usize| (index * 7919 + position * position * 31 + position) % vocabulary;
        let sample = |index| match &language {
            Some(language) => language.sample(0, index),
            None => (0..=sequence).map(|position| any(index, position) as i64).collect(),
        };
        Self { samples: (0..number).map(sample).collect(), vocabulary }
    }
}

impl Samples for Repeated {
    fn sample(&self, _iteration: usize, index: usize) -> Vec<i64> {
        self.samples[index % self.samples.len()].clone()
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn entropy(&self) -> Option<Entropy> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the order and number of iterations, each kind of measurement is what its name says.
    #[test]
    fn every_kind_of_time_is_told_apart() {
        let place = |segment| SegmentPlace { segment, backward: false, block: Some(0), rank: 0 };
        let of = |measure, block: f64| {
            let times = [(Segment::Block, block), (Segment::Host, 9.0)].map(|(of, time)| (place(of), Seconds(time)));
            (measure, Times::from(times))
        };
        let of_block = |times: &Times| times.get(&place(Segment::Block)).map(|time| time.0);
        let [issue, queued] = [Measure::Issue, Measure::Queued].map(Some);
        // Medians of what hosts decide, means of the rest.
        let [of_hosts, of_device] = [10.0, 20.0];
        let ahead = Some(Measure::Ahead);
        for (alone, behind, expected) in [
            (None, queued, of_hosts),
            (Some(Measure::Alone), queued, of_device),
            (Some(Measure::Alone), ahead, of_device),
        ] {
            let mut times = vec![of(issue, 1.0), of(behind, 4.0), of(issue, 2.0), of(behind, 6.0), of(issue, 30.0)];
            times.extend([of(alone, 10.0), of(alone, 10.0), of(alone, 40.0)]);
            for _ in 0..times.len() {
                times.rotate_left(1);
                let (measured, ahead) = typical(&times);
                let Ahead { queued, issued } = ahead.unwrap();
                assert_eq!([&measured, &queued, &issued].map(of_block), [expected, 5.0, 2.0].map(Some), "{alone:?}");
                assert!(measured.contains_key(&place(Segment::Host)) && !issued.contains_key(&place(Segment::Host)));
            }
        }
        let (alone, ahead) = typical(&[of(Some(Measure::Alone), 1.0), of(Some(Measure::Alone), 3.0)]);
        assert!(of_block(&alone) == Some(2.0) && ahead.is_none());
        assert!(typical(&[of(issue, 1.0), of(queued, 4.0)]).0.is_empty(), "nothing that hosts wait around");
    }

    #[test]
    fn some_blocks_of_each_shape_are_measured() {
        let model = Model::named("test", "deepseek-v3").unwrap();
        let [one, three] = [1, 3].map(|number| some_of_each(&model, number).blocks);
        let are_dense =
            |blocks: &[workloads::model::Block]| blocks.iter().map(|block| block.moe().is_none()).collect::<Vec<_>>();
        assert_eq!(are_dense(&one), [true, false]);
        assert_eq!(are_dense(&three), [true, true, true, false, false, false]);
        assert_eq!(some_of_each(&model, 1000).blocks, model.blocks);
    }
}
