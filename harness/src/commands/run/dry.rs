//! `moebench run --dry-run`: the cases, the plans that would run, and about how long it would take.

use std::time::{Duration, Instant};

use anyhow::Result;
use rayon::prelude::*;
use systems::Plan;
use workloads::{EngineKind, Suite};

use crate::failure::{Failure, OrFail};
use crate::output;
use runs::engines::simulate::Simulator;
use runs::engines::{Engine, Extent};
use runs::prepare::{self, PreparedCase, PreparedRun};
use runs::report;
use runs::traces::CaseTraces;

/// Iterations of each run that an estimate of the time is made from.
const TRIED: usize = 2;

/// What is shown of a case: a row per system, and what it would take on one core; nothing of the latter where it is trained.
struct Tried {
    rows: Vec<[String; 4]>,
    time: Option<Duration>,
}

/// Shows the plans that would run by `engine`, and about how long they would take on so many threads.
pub(super) fn show(
    file: &str,
    suite: &Suite,
    traces: &CaseTraces,
    engine: EngineKind,
    threads: Option<usize>,
) -> Result<(), Failure> {
    let cases = prepare::cases(file, suite, |case| traces.of(case)).or_input()?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build().or_run()?;
    let tried = |case: &PreparedCase| tried(case, suite.iterations, engine);
    let tried: Vec<Tried> = pool.install(|| cases.par_iter().map(tried).collect::<Result<_>>()).or_run()?;
    let mut table = report::table(&["case", "seed", "system", "plan"], &[]);
    for row in tried.iter().flat_map(|case| &case.rows) {
        table.add_row(row);
    }
    output::print(table).or_run()?;
    report::differences(&suite.cases).iter().try_for_each(output::print).or_run()?;
    let times: Option<Vec<Duration>> = tried.iter().map(|case| case.time).collect();
    let time = times.map_or_else(
        || format!("{} runs take what they take", engine.name()),
        |times| {
            let threads = pool.current_num_threads();
            format!("about {} on {threads} threads, by {TRIED} iterations of each run", shown(whole(&times, threads)))
        },
    );
    let [cases, systems, seeds] = [suite.cases.len(), suite.systems.len(), suite.seeds.len()];
    let line = format!(
        "\n{} runs of {} iterations (cases {cases}, systems {systems}, seeds {seeds}); {time}",
        cases * systems * seeds,
        suite.iterations
    );
    output::print(line).or_run()
}

fn tried(case: &PreparedCase, iterations: usize, engine: EngineKind) -> Result<Tried> {
    let started = Instant::now();
    let row = |run: &PreparedRun| {
        let plan = match run.plan() {
            Ok(chosen) if chosen.expected.is_none() => format!("{} (given)", chosen.plan),
            Ok(chosen) => chosen.plan.to_string(),
            Err(error) => error.to_string(),
        };
        [case.case.id(), case.seed.to_string(), run.system.name().to_owned(), plan]
    };
    let rows = case.runs.iter().map(row).collect();
    let planned = started.elapsed();
    if engine != EngineKind::Simulated {
        return Ok(Tried { rows, time: None });
    }
    let with_plan = |run| Some((run, PreparedRun::plan(run).ok()?.plan));
    let runs: Vec<(&PreparedRun, Plan)> = case.runs.iter().filter_map(with_plan).collect();
    let started = Instant::now();
    Simulator.run_side_by_side(&runs, Extent { iterations: TRIED.min(iterations), timelines: false }, &|| ())?;
    let iteration = started.elapsed() / TRIED.min(iterations) as u32;
    Ok(Tried { rows, time: Some(planned + iteration.saturating_mul(iterations as u32)) })
}

/// What cases side by side take: all of them shared by the threads, and no less than the longest.
fn whole(times: &[Duration], threads: usize) -> Duration {
    let shared = times.iter().sum::<Duration>() / threads.max(1) as u32;
    times.iter().copied().max().unwrap_or_default().max(shared)
}

fn shown(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds < 60.0 => format!("{:.0} s", seconds.ceil()),
        seconds if seconds < 3600.0 => format!("{:.0} min", (seconds / 60.0).ceil()),
        seconds => format!("{:.1} h", seconds / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_share_threads_and_the_longest_is_waited_for() {
        let of = |seconds: &[u64], threads| {
            whole(&seconds.iter().map(|&s| Duration::from_secs(s)).collect::<Vec<_>>(), threads).as_secs_f64()
        };
        assert_eq!((of(&[2, 4, 6], 1), of(&[2, 4, 6], 2), of(&[2, 4, 6], 8), of(&[], 2)), (12.0, 6.0, 6.0, 0.0));
        assert_eq!([0, 59, 61, 7200].map(|s| shown(Duration::from_secs(s))), ["0 s", "59 s", "2 min", "2.0 h"]);
    }
}
