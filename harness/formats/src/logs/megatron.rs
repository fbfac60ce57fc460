//! Megatron-LM: ` [DATE TIME] iteration N/ M | label: value | ...`, on the last rank (`megatron/training/training.py`,
//! `training_log`). Times are milliseconds, memory is 2^20 bytes.

use systems::iteration::Peak;
use workloads::{Bytes, Seconds};

use super::{Found, LoggedStep, Pace, Program, labelled};

/// What a line says; several iterations' lines may have run into one.
pub(super) fn read(line: &str) -> Vec<Found> {
    let starts: Vec<usize> = line
        .match_indices("iteration ")
        .filter(|(at, _)| iteration(&line[*at..]).is_some())
        .map(|(at, _)| at)
        .collect();
    let ends = starts.iter().skip(1).copied().chain([line.len()]);
    let mut found: Vec<Found> = starts.iter().zip(ends).filter_map(|(&start, end)| step(&line[start..end])).collect();
    found.extend(memory(line));
    found.extend(world(line));
    found
}

/// `iteration N/ M |`: the number, and what is behind.
fn iteration(text: &str) -> Option<(u64, &str)> {
    let (number, rest) = text.strip_prefix("iteration ")?.split_once('/')?;
    let (of, rest) = rest.split_once('|')?;
    let whole = |text: &str| text.trim().parse::<u64>().ok();
    whole(of)?;
    whole(number).filter(|&number| number > 0).map(|number| (number, rest))
}

/// A line without a time is none of training: lines of evaluation begin alike.
fn step(text: &str) -> Option<Found> {
    let (iteration, rest) = iteration(text)?;
    let pieces = || rest.split('|').map(str::trim);
    if !pieces().any(|piece| piece.contains("elapsed time per iteration")) {
        return None;
    }
    let value = |label: &str| pieces().find_map(|piece| labelled(piece, label));
    let milliseconds = value("elapsed time per iteration (ms)");
    let seconds = milliseconds.map(|time| time / 1e3).or_else(|| value("elapsed time per iteration (s)"));
    let Some(time) = seconds.filter(|time| time.is_finite() && *time > 0.0) else { return Some(Found::Broken) };
    Some(Found::Step(
        Program::MegatronLm,
        LoggedStep {
            iteration,
            covers: 0,
            pace: Pace::Step(Seconds(time)),
            loss: value("lm loss"),
            global_batch: value("global batch size").map(|batch| batch as usize),
            memory: None,
        },
    ))
}

/// `[Rank r] (after N iterations) memory (MB) | allocated: a | max allocated: b | reserved: c | max reserved: d`
fn memory(line: &str) -> Option<Found> {
    let (_, rest) = line.split_once("[Rank ")?;
    let (rank, rest) = rest.split_once(']')?;
    let (_, rest) = rest.split_once("memory (MB)")?;
    let of = |label: &str| rest.split('|').find_map(|piece| labelled(piece.trim(), label));
    let megabytes = of("max reserved").or_else(|| of("max allocated"))?;
    Some(Found::Memory(Peak { rank: rank.trim().parse().ok()?, bytes: Bytes(megabytes * (1_u64 << 20) as f64) }))
}

/// `using world size: 16, data-parallel size: 4, ...`
fn world(line: &str) -> Option<Found> {
    let (_, rest) = line.split_once("using world size:")?;
    Some(Found::World(rest.split(',').next()?.trim().parse().ok()?))
}
