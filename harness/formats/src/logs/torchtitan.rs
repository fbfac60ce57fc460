//! torchtitan: `[titan] DATE TIME - root - INFO - step: N  loss: x  grad_norm: x  memory: xGiB(y%)  tps: 1,234  ...`
//! (`torchtitan/components/metrics.py`). `tps` are tokens per second and GPU, memory is the most that was reserved.

use workloads::Bytes;

use super::{Found, LoggedStep, Pace, Program, labelled, number};

/// What a line says; several ranks' lines may have run into one.
pub(super) fn read(line: &str) -> Vec<Found> {
    // Behind `validate` it is the step of an evaluation.
    let begins = |at: usize| {
        let before = line[..at].trim_end();
        !before.ends_with("validate") && !before.ends_with(|c: char| c == '_' || c.is_alphanumeric())
    };
    let starts: Vec<usize> = line.match_indices("step:").map(|(at, _)| at).filter(|&at| begins(at)).collect();
    let ends = starts.iter().skip(1).copied().chain([line.len()]);
    starts.iter().zip(ends).filter_map(|(&start, end)| step(&line[start..end])).collect()
}

/// A line that says neither loss nor pace is one of something else.
fn step(text: &str) -> Option<Found> {
    let iteration = labelled(text, "step").filter(|&step| step >= 1.0 && step.fract() == 0.0);
    let pace = labelled(text, "tps").filter(|&tps| tps.is_finite() && tps > 0.0);
    if !text.contains("loss:") || !text.contains("tps:") {
        return None;
    }
    let Some((iteration, pace)) = iteration.zip(pace) else { return Some(Found::Broken) };
    Some(Found::Step(
        Program::Torchtitan,
        LoggedStep {
            iteration: iteration as u64,
            covers: 0,
            pace: Pace::TokensPerSecondAndGpu(pace),
            loss: labelled(text, "loss"),
            global_batch: None,
            memory: memory(text),
        },
    ))
}

/// `memory: 41.72GiB(52.71%)`
fn memory(text: &str) -> Option<Bytes> {
    let (_, rest) = text.split_once("memory:")?;
    let (gigabytes, _) = rest.split_once("GiB")?;
    Some(Bytes(number(gigabytes)? * (1_u64 << 30) as f64))
}
