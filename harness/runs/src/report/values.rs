//! What tables of a paper hold of a system on a case.

use clap::ValueEnum;

use crate::figures;
use crate::report::amount;
use crate::stored::StoredRun;
use crate::summary::{ModelError, SummaryRow};

/// A value of a case under a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Value {
    /// Over the baseline, by totals, with its spread
    Speedup,
    /// Speedup by medians
    Medians,
    /// Mean time of an iteration
    Iteration,
    /// Tokens a second, of all GPUs together
    Tokens,
    /// Model FLOP/s over the GPUs' peak: active experts alone, nothing recomputed
    Mfu,
    /// Largest peak of any rank
    Memory,
    /// What the same plan takes under a balanced gate, over its time
    Ideal,
    /// Part of the time that online decisions and migrations took
    Online,
    /// Slots of a rank for copies of experts
    Slots,
    /// What balancing sends in an iteration
    Moved,
    /// What deciding about experts takes of an iteration
    Planning,
    /// GPU hours of 1000 iterations
    GpuHours,
    /// Cost of 1000 iterations, where the cluster has prices
    Cost,
    /// Of the last tenth of the iterations, where a model was trained
    Loss,
    /// What the simulator takes for the same iterations of an emulated run, and how far that is off
    Simulated,
    /// Speedup that was published, by medians
    Published,
    /// How far the simulated time is from measurements
    Error,
    /// Degrees of parallelism
    Plan,
}

/// What the summary of a run for a paper holds.
pub const SUMMARY: &[Value] = &[
    Value::Iteration,
    Value::Speedup,
    Value::Medians,
    Value::Ideal,
    Value::Online,
    Value::Slots,
    Value::Moved,
    Value::Planning,
    Value::Memory,
    Value::Loss,
    Value::Published,
    Value::Error,
];

/// A value as it is shown, and as a number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cell {
    pub text: String,
    pub number: Option<f64>,
    pub interval: Option<[f64; 2]>,
}

impl Value {
    /// The word that asks for it.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The name of its column.
    pub(super) fn heading(self) -> &'static str {
        match self {
            Self::Speedup => "Speedup",
            Self::Medians => "by medians",
            Self::Iteration => "Iteration (ms)",
            Self::Tokens => "Tokens/s",
            Self::Mfu => "MFU (%)",
            Self::Memory => "Memory (GB)",
            Self::Ideal => "Of ideal (%)",
            Self::Online => "Online (%)",
            Self::Slots => "Extra slots",
            Self::Moved => "Moved (GB)",
            Self::Planning => "Planning (ms)",
            Self::GpuHours => "GPU hours",
            Self::Cost => "Cost",
            Self::Loss => "Loss",
            Self::Simulated => "Simulated (ms)",
            Self::Published => "Published",
            Self::Error => "Model error",
            Self::Plan => "Plan",
        }
    }

    /// What it is, for a caption; `over`: the baseline.
    pub(super) fn noun(self, over: &str) -> String {
        let text = match self {
            Self::Speedup => return format!("speedup over {over}"),
            Self::Medians => return format!("speedup over {over} by medians"),
            Self::Published => return format!("published speedup over {over} by medians"),
            Self::Iteration => "mean time of an iteration (ms)",
            Self::Tokens => "tokens per second of all GPUs",
            Self::Mfu => "model FLOP/s over the GPUs' peak (MFU, %)",
            Self::Memory => "peak memory of the fullest rank (GB)",
            Self::Ideal => "share of ideal (%)",
            Self::Online => "online share (%)",
            Self::Slots => "redundant slots of a rank",
            Self::Moved => "what balancing moves in an iteration (GB)",
            Self::Planning => "planning in an iteration (ms)",
            Self::GpuHours => "GPU hours of 1000 iterations",
            Self::Cost => "cost of 1000 iterations",
            Self::Loss => "loss",
            Self::Simulated => "median of the simulator's times of the same iterations (ms)",
            Self::Error => "model error",
            Self::Plan => "plan",
        };
        text.to_owned()
    }

    /// What its name does not say, for a caption.
    pub(super) fn note(self) -> Option<&'static str> {
        match self {
            Self::Mfu => Some("MFU: arithmetic of active experts alone, nothing recomputed"),
            Self::Ideal => Some("of ideal: time of the same plan under a balanced gate over its time"),
            Self::Online => Some("online: part of the time that decisions and migrations between iterations took"),
            Self::Moved => Some("moved: weights and gradients of copies and experts that change rank, of all ranks"),
            Self::Loss => Some("loss: mean of the last tenth of the iterations"),
            Self::Error => {
                Some("model error: of this run's time where that was measured, else the median of its cluster (±)")
            }
            Self::Plan => {
                Some("plan: degrees of pipeline, data, tensor, expert and expert-data parallelism, micro-batch")
            }
            _ => None,
        }
    }

    /// Whether it is a ratio over the baseline, whose own tells nothing.
    pub(super) fn is_ratio(self) -> bool {
        matches!(self, Self::Speedup | Self::Medians | Self::Published)
    }

    /// Whether the run has it anywhere.
    pub(super) fn is_there(self, run: &StoredRun) -> bool {
        let told = |row: &&SummaryRow| !self.is_ratio() || row.key.system != run.summary.baseline;
        let ended = run.summary.rows.iter().filter(|row| row.failure.is_none()).filter(told);
        ended.into_iter().any(|row| !self.of(run, row).text.is_empty())
    }

    /// Of a row of the run's summary; how the run failed in place of what it did not come to.
    pub fn of(self, run: &StoredRun, row: &SummaryRow) -> Cell {
        if row.failure.is_some() && !matches!(self, Self::Published | Self::Plan) {
            return Cell { text: row.status().name().to_uppercase(), ..Cell::default() };
        }
        let percent = |share: Option<f64>, digits: usize| {
            Cell::new(share.map(|share| share * 100.0), |x| format!("{x:.digits$}"))
        };
        let any = |value: Option<f64>| Cell::new(value.filter(|value| *value > 0.0), amount);
        let ratio = |value: Option<f64>| Cell::new(value, |value| format!("{value:.2}"));
        match self {
            Self::Speedup => speedup(run, row),
            Self::Medians => ratio(row.speedup.as_ref().map(|speedup| speedup.by_medians)),
            Self::Iteration => Cell::new(row.step.map(|step| step.mean * 1e3), amount),
            Self::Tokens => Cell::new(run.tokens_per_second(row), |tokens| format!("{tokens:.0}")),
            Self::Mfu => percent(run.mfu(row), 1),
            Self::Memory => Cell::new(row.peak_bytes.map(|bytes| bytes / 1e9), |memory| format!("{memory:.1}")),
            Self::Ideal => percent(row.share_of_ideal, 0),
            Self::Online => percent(Some(row.online_share).filter(|share| *share > 0.0), 2),
            Self::Slots => any(row.balancing(|of| of.redundant_slots as f64)),
            Self::Moved => any(row.balancing(|of| of.moved.0 / 1e9)),
            Self::Planning => any(row.balancing(|of| of.planning.0 * 1e3)),
            Self::GpuHours => Cell::new(row.gpu_hours(), amount),
            Self::Cost => Cell::new(row.cost(), amount),
            Self::Loss => Cell::new(row.loss, |loss| format!("{loss:.3}")),
            Self::Simulated => simulated(row),
            Self::Published => published(row),
            Self::Error => error(row),
            Self::Plan => Cell::words(row.key.plan.map_or_else(String::new, |plan| plan.to_string())),
        }
    }
}

impl Cell {
    fn new(number: Option<f64>, text: impl Fn(f64) -> String) -> Self {
        Self { text: number.map_or_else(String::new, text), number, interval: None }
    }

    fn words(text: String) -> Self {
        Self { text, ..Self::default() }
    }
}

/// With its spread, and the mark of extrapolations that figures have; the baseline's is 1 and has none.
fn speedup(run: &StoredRun, row: &SummaryRow) -> Cell {
    let Some(speedup) = &row.speedup else { return Cell::default() };
    let interval = speedup.spread.filter(|_| row.key.system != run.summary.baseline);
    let spread = interval.map_or_else(String::new, |[low, high]| format!(" [{low:.2}, {high:.2}]"));
    let mark = if row.extrapolated.is_some() { "*" } else { "" };
    Cell { text: format!("{:.2}{mark}{spread}", speedup.by_totals), number: Some(speedup.by_totals), interval }
}

fn simulated(row: &SummaryRow) -> Cell {
    let off =
        |time: f64| row.step.map_or_else(String::new, |step| format!(" ({:+.0}%)", (time / step.median - 1.0) * 100.0));
    Cell::new(row.predicted.map(|time| time * 1e3), |time| format!("{}{}", amount(time), off(time / 1e3)))
}

fn published(row: &SummaryRow) -> Cell {
    let mark = if row.published.speedup_of_other_plan { OTHER_PLAN } else { "" };
    Cell::new(row.published.speedup_by_medians, |speedup| format!("{speedup:.2}{mark}"))
}

/// Behind what was published of another plan than the one that ran.
const OTHER_PLAN: &str = "‡";

/// What names and marks do not say of these values, for a caption.
pub(super) fn notes(run: &StoredRun, values: &[Value]) -> String {
    let rows = &run.summary.rows;
    let other = values.contains(&Value::Published) && rows.iter().any(|row| row.published.speedup_of_other_plan);
    let other = other.then(|| format!("{OTHER_PLAN}: published of another plan"));
    let notes = values.iter().filter_map(|value| value.note()).map(str::to_owned).chain(other);
    notes.map(|note| format!("; {note}")).collect()
}

fn error(row: &SummaryRow) -> Cell {
    let error = row.model_error.as_ref().filter(|_| !row.key.engine.trains());
    match (row.extrapolated, error) {
        (Some(_), _) => Cell::words("*".to_owned()),
        (None, Some(error)) => Cell::new(Some(error.value()), |_| ModelError::label(error)),
        (None, None) => Cell::default(),
    }
}

/// The system that speedups are over, by the name that figures have for it.
pub(super) fn baseline(run: &StoredRun) -> String {
    figures::title(&run.summary.baseline)
}
