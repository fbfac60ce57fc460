//! Logs of other training programs, read as measurements: what Megatron-LM ([`megatron`]) and torchtitan ([`torchtitan`]) print of
//! their iterations.
//!
//! Both print a line for every so many iterations, whose time is the mean since the line before: such a line is one [`LoggedStep`].
//! Ranks' prefixes and colours are taken off; lines of other programs, of evaluation and of warnings are passed by, also where
//! they stand in the same line. Where several ranks print an iteration, the slowest counts, and any loss that is no number. A run begins
//! again with the next file, with the line in which Megatron-LM states its world, with an iteration before the last, and with the last one
//! at another time where Megatron-LM prints it, which only one rank does. The later iterations count, and the first line after a
//! restart, which holds the start-up, does not.

mod megatron;
mod torchtitan;

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use systems::iteration::run::Iteration;
use systems::iteration::{Peak, Timing};
use workloads::{Bytes, Seconds};

/// Who wrote a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    MegatronLm,
    Torchtitan,
}

impl Program {
    pub fn name(self) -> &'static str {
        match self {
            Self::MegatronLm => "Megatron-LM",
            Self::Torchtitan => "torchtitan",
        }
    }
}

/// How fast a program says that it was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    Step(Seconds),
    TokensPerSecondAndGpu(f64),
}

impl Pace {
    fn is_slower_than(self, other: Self) -> bool {
        match (self, other) {
            (Self::Step(one), Self::Step(other)) => one > other,
            (Self::TokensPerSecondAndGpu(one), Self::TokensPerSecondAndGpu(other)) => one < other,
            _ => false,
        }
    }
}

/// One line: the mean of some iterations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoggedStep {
    /// The last of them, counted from 1.
    pub iteration: u64,
    /// How many they are.
    pub covers: u64,
    pub pace: Pace,
    /// Nats per token; it may be no number.
    pub loss: Option<f64>,
    /// Samples, where the line says so.
    pub global_batch: Option<usize>,
    /// Most memory of the rank so far, where the line says so.
    pub memory: Option<Bytes>,
}

impl LoggedStep {
    /// The same iteration as two ranks print it: the slower one's, a loss that is no number of either, and the most memory.
    fn with(self, other: Self) -> Self {
        let slower = if other.pace.is_slower_than(self.pace) { other } else { self };
        let mut losses = [self.loss, other.loss].into_iter().flatten();
        let loss = losses.find(|loss| !loss.is_finite()).or(slower.loss);
        let memory = self.memory.into_iter().chain(other.memory).reduce(Bytes::max);
        Self { loss, memory, ..slower }
    }
}

/// What was read.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingLog {
    pub program: Program,
    pub steps: Vec<LoggedStep>,
    /// Ranks that the program says it ran on.
    pub world: Option<usize>,
    /// The fullest rank of those that reported their memory.
    pub peak: Option<Peak>,
    /// What of the log is not among the steps, a phrase each.
    pub left_out: Vec<String>,
}

/// What a stretch of text is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Found {
    Step(Program, LoggedStep),
    Memory(Peak),
    World(usize),
    /// A line of an iteration that others have written into.
    Broken,
}

/// Lines of one rank, before they are one series.
#[derive(Default)]
struct Source {
    steps: Vec<LoggedStep>,
    /// Whether the next line is the first after a restart.
    begins: bool,
    restarts: usize,
    /// Iterations that were done again.
    again: usize,
}

/// What the lines up to one say.
#[derive(Default)]
struct LogLines {
    programs: BTreeMap<Program, BTreeMap<String, Source>>,
    world: Option<usize>,
    peak: Option<Peak>,
    broken: usize,
}

impl LogLines {
    /// The program begins, for the first time or again.
    fn begin(&mut self) {
        self.programs.values_mut().flat_map(BTreeMap::values_mut).for_each(|source| source.begins = true);
    }

    fn add(&mut self, line: &str) {
        for found in megatron::read(line).into_iter().chain(torchtitan::read(line)) {
            match found {
                Found::Step(program, step) => {
                    let sources = self.programs.entry(program).or_default();
                    sources.entry(rank_of(line).to_owned()).or_default().add(program, step);
                }
                Found::Memory(of) => self.peak = Some(self.peak.filter(|most| most.bytes >= of.bytes).unwrap_or(of)),
                Found::World(ranks) => {
                    self.world = Some(ranks);
                    self.begin();
                }
                Found::Broken => self.broken += 1,
            }
        }
    }
}

impl TrainingLog {
    /// Reads the bytes of a log's files, which follow each other; `name` is what errors call them.
    ///
    /// # Errors
    /// No line of either program, or lines of both.
    pub fn read(name: &str, files: &[&[u8]]) -> Result<Self> {
        let mut reading = LogLines::default();
        for bytes in files {
            reading.begin();
            let text = without_colours(&String::from_utf8_lossy(bytes));
            text.split(['\n', '\r']).for_each(|line| reading.add(line));
        }
        let LogLines { mut programs, world, peak, broken } = reading;
        ensure!(
            programs.len() == 1,
            "{name}: {}: expected lines such as Megatron-LM's `iteration 10/ 500 | ... elapsed time per iteration (ms): 812.3 |` \
             or torchtitan's `step: 10  loss: 8.1  ... tps: 7,012`",
            if programs.is_empty() { "no line of an iteration" } else { "lines of Megatron-LM and of torchtitan" }
        );
        let (program, sources) = programs.pop_first().expect("there is one");
        let left_out = left_out(&sources, broken);
        let peak = peak.or_else(|| fullest(&sources));
        Ok(Self { program, steps: slowest(sources), world, peak, left_out })
    }

    /// Keeps the steps of that global batch; of a step that does not say, it is taken on trust.
    ///
    /// # Errors
    /// None has it.
    pub fn keep_batch(&mut self, name: &str, samples: usize) -> Result<()> {
        let others = |step: &&LoggedStep| step.global_batch.is_some_and(|batch| batch != samples);
        let other: Vec<usize> = self.steps.iter().filter(others).filter_map(|step| step.global_batch).collect();
        self.steps.retain(|step| step.global_batch.is_none_or(|batch| batch == samples));
        let found = other.first().copied().unwrap_or_default();
        ensure!(!self.steps.is_empty(), "{name}: global batch size: {found}: expected that of the case, {samples}");
        if !other.is_empty() {
            self.left_out.push(format!("{} lines of another global batch than {samples}", other.len()));
        }
        Ok(())
    }

    /// How many of the first steps hold any of the first iterations.
    pub fn warmup(&self, iterations: u64) -> usize {
        let before = |step: &LoggedStep| step.iteration - step.covers;
        let first = self.steps.first().map_or(0, before);
        self.steps.iter().take_while(|step| before(step) < first.saturating_add(iterations)).count()
    }

    /// Every step as an iteration that was measured, up to the first whose loss is no number. `tokens`: of a global batch.
    pub fn iterations(&self, gpus: usize, tokens: f64) -> Vec<Iteration> {
        let of = |step: &LoggedStep| {
            let time = match step.pace {
                Pace::Step(time) => time,
                Pace::TokensPerSecondAndGpu(pace) => Seconds(tokens / (pace * gpus as f64)),
            };
            let timing = Timing { step: time, peak: self.peak.unwrap_or_default(), ..Timing::default() };
            Iteration { timing, loss: step.loss, ..Iteration::default() }
        };
        let good = |step: &&LoggedStep| step.loss.is_none_or(f64::is_finite);
        self.steps.iter().take_while(good).map(of).collect()
    }

    /// The first iteration whose loss is no number.
    pub fn diverged(&self) -> Option<u64> {
        self.steps.iter().find(|step| step.loss.is_some_and(|loss| !loss.is_finite())).map(|step| step.iteration)
    }

    /// Iterations that most lines are the mean of.
    pub fn interval(&self) -> u64 {
        let mut covers: Vec<u64> = self.steps.iter().map(|step| step.covers).collect();
        covers.sort_unstable();
        covers.get(covers.len() / 2).copied().unwrap_or(1)
    }
}

impl Source {
    fn add(&mut self, program: Program, mut step: LoggedStep) {
        let begins = std::mem::take(&mut self.begins);
        // Ranks without prefixes look like one that prints an iteration several times; Megatron-LM prints on one rank.
        let may_be_of_two = |last: &LoggedStep| program != Program::MegatronLm || step.pace == last.pace;
        match self.steps.last_mut() {
            Some(last) if !begins && step.iteration > last.iteration => step.covers = step.iteration - last.iteration,
            Some(last) if !begins && step.iteration == last.iteration && may_be_of_two(last) => {
                *last = last.with(LoggedStep { covers: last.covers, ..step });
                return;
            }
            Some(_) => {
                self.restarts += 1;
                let kept = self.steps.iter().take_while(|earlier| earlier.iteration < step.iteration).count();
                self.again += self.steps.drain(kept..).count();
                // Its time is that of a start-up: it only says where the next line's iterations begin.
                step.covers = 0;
            }
            None => step.covers = 0,
        }
        self.steps.push(step);
    }

    /// The steps that are measurements. The first line of all may be one: it then covers what the others do, or all before it.
    fn measured(self) -> impl Iterator<Item = LoggedStep> {
        let usual = self.steps.iter().map(|step| step.covers).filter(|&covers| covers > 0).min();
        self.steps.into_iter().enumerate().filter_map(move |(index, mut step)| {
            if index == 0 && step.covers == 0 {
                step.covers = usual.unwrap_or(step.iteration).min(step.iteration).max(1);
            }
            (step.covers > 0).then_some(step)
        })
    }
}

/// Of all ranks that print a step, the slowest.
fn slowest(sources: BTreeMap<String, Source>) -> Vec<LoggedStep> {
    let mut steps = BTreeMap::<u64, LoggedStep>::new();
    for step in sources.into_values().flat_map(Source::measured) {
        steps.entry(step.iteration).and_modify(|kept| *kept = kept.with(step)).or_insert(step);
    }
    steps.into_values().collect()
}

/// The most memory that any rank's lines say; ranks without a number are taken to be rank 0.
fn fullest(sources: &BTreeMap<String, Source>) -> Option<Peak> {
    let peaks = sources.iter().flat_map(|(rank, source)| {
        let rank = rank.parse().unwrap_or(0);
        source.steps.iter().filter_map(move |step| Some(Peak { rank, bytes: step.memory? }))
    });
    peaks.reduce(|most, peak| if peak.bytes > most.bytes { peak } else { most })
}

fn left_out(sources: &BTreeMap<String, Source>, broken: usize) -> Vec<String> {
    let most = |of: fn(&Source) -> usize| sources.values().map(of).max().unwrap_or(0);
    let (restarts, again) = (most(|source| source.restarts), most(|source| source.again));
    let mut said = Vec::new();
    if restarts > 0 {
        said.push(format!("the first line after each of {restarts} restarts, and {again} that were done again"));
    }
    if broken > 0 {
        said.push(format!("{broken} lines that others had written into"));
    }
    said
}

/// The rank that a launcher's prefix names, `[rank3]:`, `[default3]:`, `3:` or `0/3:` (job and rank); nothing of a line without one.
fn rank_of(line: &str) -> &str {
    let line = line.trim_start();
    let bracketed = line.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let word = match bracketed {
        Some((word, rest)) if rest.starts_with(':') => word.trim_start_matches(|c: char| c.is_ascii_alphabetic()),
        _ => line.split_once(':').map_or("", |(word, _)| word.rsplit('/').next().unwrap_or(word)).trim(),
    };
    if !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit()) { word } else { "" }
}

/// The text without terminals' escape sequences, `ESC [ ... letter`.
fn without_colours(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let mut clean = parts.next().unwrap_or("").to_owned();
    for part in parts {
        let end = part.find(|c: char| c.is_ascii_alphabetic()).map_or(part.len(), |at| at + 1);
        clean.push_str(&part[end..]);
    }
    clean
}

/// The number that a text is, with commas between thousands; nothing where more is there than a number.
fn number(text: &str) -> Option<f64> {
    text.trim().replace(',', "").parse().ok()
}

/// The number behind `label:` and blanks, up to the next blank or the end.
fn labelled(text: &str, label: &str) -> Option<f64> {
    let at = text.find(&format!("{label}:"))?;
    number(text[at + label.len() + 1..].split_whitespace().next()?)
}

#[cfg(test)]
mod tests;
