//! The training engine: real ranks run a system's plan, policy and programs on a real model. Under the wall clock its numbers
//! are measured; under a virtual clock, with ranks that share a device, they are emulated, and the simulator follows.
//!
//! Ranks are threads, or processes that a launcher started. Of these, rank 0 calls every run before it takes part in it.

mod machine;
mod options;
mod replay;

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use systems::iteration::moved::Message;
use systems::iteration::run::Iteration;
use systems::iteration::timeline::Span;
use systems::{CostModel, Plan};
use trainer::clock::timer::AHEAD;
use trainer::comm::launch::Launch;
use trainer::comm::{CommError, CommFailure, noted};
use trainer::processes::{Call, Processes};
use trainer::rank::report::Report;
use trainer::setup::{self, Setup};
use trainer::world::{self, Threads};
use trainer::{TrainError, checkpoint, record};
use workloads::gate::RouterBias;
use workloads::trace::{Choices, RoutingTrace};
use workloads::{EngineKind, Suite};

use crate::engines::args::TrainingArgs;
use crate::engines::{Engine, Extent, Follower, Session};
use crate::prepare::{PreparedCase, PreparedRun};
use crate::provenance::sha256;
use crate::records::{Outcome, RunFailure, Status};
use crate::{say, store, traces};

use machine::libraries;
pub use machine::{device_name, findings, memory};
use options::Options;
pub use options::device;
pub use replay::Replay;

/// Opens the engine in this process, which a launcher may have started beside others.
///
/// # Errors
/// Options that make no sense.
pub fn open(kind: EngineKind, args: &TrainingArgs, suite: &Suite) -> Result<Session> {
    let launch = options::launch(args)?;
    let options = Options::new(kind, args, launch.as_ref(), suite)?;
    let follows = launch.as_ref().is_some_and(|launch| launch.rank > 0);
    let trainer = Box::new(Trainer { options, launch, processes: OnceLock::new() });
    Ok(if follows { Session::Follower(trainer) } else { Session::Leader(trainer) })
}

struct Trainer {
    options: Options,
    /// Who this process is, where each process is a rank.
    launch: Option<Launch>,
    /// All of them, once they have met.
    processes: OnceLock<Processes>,
}

impl Engine for Trainer {
    fn kind(&self) -> EngineKind {
        self.options.kind
    }

    /// Models, plans, memory, data, checkpoints.
    fn check(&self, run: &PreparedRun, extent: Extent) -> Result<()> {
        if let Some(launch) = &self.launch {
            let (gpus, id, Launch { size, launcher, size_variable, .. }) = (run.job.gpus, &run.case_id, launch);
            ensure!(
                gpus == *size,
                "{id}: {gpus} ranks, and {size_variable}={size} processes by {launcher}: expected one process per rank; or run all ranks in this process with --backend threads"
            );
        }
        self.check_run(run, extent).with_context(|| format!("{} {}", run.case_id, run.system.name()))
    }

    fn hash(&self) -> String {
        sha256(self.options.describe().as_bytes())
    }

    fn run(&self, run: &PreparedRun, plan: Plan, extent: Extent, tick: &(dyn Fn() + Sync)) -> Result<Outcome> {
        if let Some(processes) = self.processes.get() {
            processes.call(run.seed, run.number);
        }
        self.say_start(run, plan, extent)?;
        self.train(run, plan, extent, tick)
    }

    fn begin(&self, asked: &str) -> Result<()> {
        if let Some(launch) = self.launch.clone() {
            let processes = Processes::rendezvous(launch, self.options.device, self.options.timeout, asked)?;
            ensure!(self.processes.set(processes).is_ok(), "processes that have met already");
        }
        Ok(())
    }

    fn end(&self, status: u8) {
        if let Some(processes) = self.processes.get() {
            processes.finish(status);
        }
    }

    fn place(&self) -> Option<String> {
        let measured = self.options.kind == EngineKind::Measured;
        measured.then(|| device_name(self.options.device))
    }

    fn libraries(&self) -> BTreeMap<String, String> {
        libraries(self.options.device, self.launch.is_some())
    }

    fn entropy(&self, run: &PreparedRun) -> Option<[f64; 2]> {
        let model = &run.job.model;
        let samples = self.options.samples(model.vocabulary?, model.blocks.first()?.tokens, run.seed).ok()?;
        samples.entropy().map(|entropy| [entropy.floor, entropy.unigram])
    }
}

impl Follower for Trainer {
    fn serve(&self, cases: &[PreparedCase], extent: Extent) -> Result<u8> {
        let processes = self.processes.get().context("processes that have not met")?;
        let mut last = None;
        loop {
            let number = match processes.next() {
                Ok(Call::Case { index, .. }) => index,
                Ok(Call::Exit(status)) => return Ok(status),
                // What this rank was doing when a process went says more than that it is gone.
                Err(error) => bail!(last.unwrap_or_else(|| error.to_string())),
            };
            let called = cases.iter().flat_map(|case| &case.runs).find(|run| run.number == number);
            let planned = called.and_then(|run| Some((run, run.plan().ok()?)));
            let Some((run, chosen)) = planned else {
                bail!("rank 0 calls run {number}, which this process was not asked for")
            };
            let outcome = self.train(run, chosen.plan, extent, &|| ())?;
            last = outcome.failure.map(|failure| failure.to_string());
        }
    }
}

impl Trainer {
    fn check_run(&self, run: &PreparedRun, extent: Extent) -> Result<()> {
        ensure!(run.case.layer.is_none(), "one layer alone is simulated only");
        setup::vocabulary(&run.job)?;
        // Without a plan, the run is a row that says why.
        let Ok(chosen) = run.plan() else { return Ok(()) };
        let available = memory(self.options.device)?;
        setup::gpt(&run.job, &chosen.plan)?;
        let (samples, parts) = (chosen.plan.micro_batch, self.options.recording.parts);
        ensure!(
            samples.is_multiple_of(parts),
            "--record-parts {parts} of micro-batches of {samples} samples: expected a divisor"
        );
        let tokens = run.job.model.moe_layers().map(|moe| chosen.plan.tokens(moe));
        if let Some(tokens) = tokens.into_iter().find(|tokens| !tokens.is_multiple_of(parts)) {
            bail!("--record-parts {parts} of a rank's {tokens} tokens of a micro-batch: expected a divisor");
        }
        let policy = run.system.policy(&run.job, &chosen.plan);
        chosen.plan.keeps_copies_equal(policy.as_ref())?;
        let together = if self.options.processes.is_some() { 1 } else { run.job.gpus };
        setup::fits(&run.job, run.system, &chosen.plan, setup::kind_on(self.options.device), together, available)?;
        let costs = CostModel::new(&run.job.cluster, run.job.gpus);
        self.with_setup(run, chosen.plan, extent, &costs, |setup| {
            checkpoint::refuse_others(setup, &self.options.run_ids)?;
            Ok(checkpoint::check_recorded(setup, checkpoint::found(setup)?)?)
        })
    }

    /// Says where a run that keeps checkpoints begins.
    fn say_start(&self, run: &PreparedRun, plan: Plan, extent: Extent) -> Result<()> {
        if self.options.checkpoint.is_none() {
            return Ok(());
        }
        let costs = CostModel::new(&run.job.cluster, run.job.gpus);
        self.with_setup(run, plan, extent, &costs, |setup| {
            let Some((folder, _)) = &setup.checkpoint else { return Ok(()) };
            let (id, folder) = (run.id(), folder.display());
            match checkpoint::found(setup)? {
                0 => say(format_args!("{id}: begins at iteration 1, as there is no checkpoint in {folder}")),
                done => say(format_args!("{id}: goes on after iteration {done}, from the checkpoint in {folder}")),
            }
            Ok(())
        })
    }

    /// Describes the run to `then`.
    fn with_setup<T>(
        &self,
        run: &PreparedRun,
        plan: Plan,
        extent: Extent,
        costs: &CostModel,
        then: impl FnOnce(&Setup) -> Result<T>,
    ) -> Result<T> {
        let gpt = setup::gpt(&run.job, &plan)?;
        let samples = self.options.samples(gpt.vocabulary, gpt.seq_len, run.seed)?;
        then(&Setup {
            job: &run.job,
            plan,
            system: run.system,
            costs,
            training: self.options.training,
            samples: &*samples,
            seed: run.seed,
            iterations: extent.iterations,
            replay: self.options.replay.then_some(&*run.routing),
            record: (self.options.record_trace.is_some() || self.options.virtual_clock())
                .then_some(self.options.recording),
            record_spans: extent.timelines,
            checkpoint: self.options.checkpoint.as_ref().map(|(path, every)| (path.join(run.id()), *every)),
            kind: setup::kind_on(self.options.device),
            gpt,
        })
    }

    fn train(&self, run: &PreparedRun, plan: Plan, extent: Extent, tick: &(dyn Fn() + Sync)) -> Result<Outcome> {
        let costs = CostModel::new(&run.job.cluster, run.job.gpus);
        let trace_path = self.options.trace_path(run);
        trace_path.iter().try_for_each(|path| store::check_writable(path))?;
        self.with_setup(run, plan, extent, &costs, |setup| {
            let (collected, ended) = self.collect(setup, tick);
            // Of a run without an iteration there is no trace; in a process that is not rank 0, all are.
            if let (Some(path), false) = (trace_path, collected.iterations.is_empty()) {
                let recorded = recorded(&run.case_id, setup, &collected.reports);
                // What was measured is not lost with it.
                if let Err(error) = recorded.and_then(|trace| traces::parquet::write(&trace, &path)) {
                    say(format_args!("error: {}: no trace of this run: {error:#}", run.id()));
                }
            }
            let timelines = [(self.kind(), collected.spans), (EngineKind::Simulated, collected.simulated)];
            let mut messages = collected.messages;
            noted::agree(&mut messages);
            Ok(Outcome {
                messages: messages.concat(),
                iterations: collected.iterations,
                balanced: None,
                failure: ended.err().map(|error| RunFailure { status: status(&error), reason: error.to_string() }),
                timelines: timelines.into_iter().filter(|(_, spans)| extent.timelines && !spans.is_empty()).collect(),
                ..Outcome::default()
            })
        })
    }

    /// Trains to the end, and says how it came.
    fn collect(&self, setup: &Setup, tick: &(dyn Fn() + Sync)) -> (Collected, Result<(), TrainError>) {
        let virtual_clock = self.options.virtual_clock();
        let measures = virtual_clock.then_some(AHEAD);
        let threads = Threads { device: self.options.device, virtual_clock: measures, timeout: self.options.timeout };
        let collected = Mutex::new(Collected::default());
        // The simulator follows an emulated run: same cluster, same routing.
        let costs = setup.costs.as_emulated();
        let mut replay = virtual_clock.then(|| Replay::new(setup, &costs));
        let mut sink = |iteration: usize, reports: Vec<Report>| {
            tick();
            let mut collected = collected.lock().unwrap_or_else(PoisonError::into_inner);
            collected.add(setup, iteration, reports, replay.as_mut());
        };
        let ended = match self.processes.get() {
            Some(processes) => world::run_process(setup, processes, None, &mut sink, |_| ()),
            None => world::run(setup, threads, &mut sink, |_| ()).map(drop),
        };
        (collected.into_inner().unwrap_or_else(PoisonError::into_inner), ended)
    }
}

/// What is kept of the reports of all ranks.
#[derive(Default)]
struct Collected {
    iterations: Vec<Iteration>,
    /// Of the last iteration.
    spans: Vec<Span>,
    /// `[rank][span]`: what these moved.
    messages: Vec<Vec<Vec<Message>>>,
    /// The simulator's, of the same.
    simulated: Vec<Span>,
    /// Of the iterations whose choices are recorded, by their numbers from 0.
    reports: Vec<(usize, Vec<Report>)>,
}

impl Collected {
    fn add(&mut self, setup: &Setup, number: usize, mut reports: Vec<Report>, replay: Option<&mut Replay>) {
        let mut iteration = world::iteration(setup, &reports);
        if let Some(replay) = replay {
            let (simulated, spans) = replay.step(&reports);
            iteration.predicted = Some(simulated.timing.step);
            self.simulated = spans;
        }
        self.iterations.push(iteration);
        self.spans = reports.iter_mut().flat_map(|report| std::mem::take(&mut report.spans)).collect();
        self.messages = reports.iter_mut().map(|report| std::mem::take(&mut report.messages)).collect();
        if setup.recorded_parts(number).is_some() {
            self.reports.push((number, reports));
        }
    }
}

/// How a run ended. Of what a rank says last, others have the text alone.
pub fn status(error: &TrainError) -> Status {
    match error {
        TrainError::Comm(CommError { reason: CommFailure::Late { .. }, .. }) => Status::Timeout,
        TrainError::Comm(CommError { reason: CommFailure::Died { how, .. }, .. }) => status_of_last_words(how),
        TrainError::Comm(_) | TrainError::Rendezvous(_) | TrainError::Check(_) => Status::CommError,
        TrainError::Diverged { .. } => Status::Diverged,
        TrainError::Panic { message, .. } => status_of_last_words(message),
        _ => Status::Crash,
    }
}

fn status_of_last_words(words: &str) -> Status {
    match words {
        words if words.contains("out of memory") => Status::Oom,
        words if words.contains("did not arrive within") => Status::Timeout,
        _ => Status::Crash,
    }
}

/// What the gates chose, with a word on what they were trained on.
fn recorded(name: &str, setup: &Setup, reports: &[(usize, Vec<Report>)]) -> Result<RoutingTrace> {
    let router = &setup.job.model.router;
    let is_balanced =
        setup.job.gate.is_balanced() || router.auxiliary_loss > 0.0 || router.bias == RouterBias::Selection;
    let choices = if is_balanced { Choices::Balanced } else { Choices::Recorded };
    let trace = record::trace(name, setup, reports)?.chosen_by(choices);
    let random = setup.samples.entropy().is_some();
    let note = "recorded on random token ids, which overstates the skew of real text".to_owned();
    Ok(if random { trace.with_notes(vec![note]) } else { trace })
}
