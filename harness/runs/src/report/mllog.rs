//! Runs as lines of MLPerf's training logs (`:::MLLOG` and JSON), for tools that read those. They are no submission: nothing is evaluated,
//! so no target is reached. A stored run has no wall clock: `time_ms` counts the time of its iterations from 0.

use serde_json::{Value, json};

use crate::records::Row;
use crate::stored::StoredRun;

/// One log.
pub struct Log {
    /// `CASE.SYSTEM.seedN`.
    pub name: String,
    pub text: String,
}

/// A log for every case, system and seed that has an iteration or a failure; none where rows are lines of a log, which do not add up to
/// the run's time and samples.
pub fn logs(run: &StoredRun) -> Vec<Log> {
    if run.facts.drawn.of_lines {
        return Vec::new();
    }
    let same = |a: &Row, b: &Row| (&a.key.case, &a.key.system, a.key.seed) == (&b.key.case, &b.key.system, b.key.seed);
    run.rows.chunk_by(same).map(|rows| log(run, rows)).collect()
}

fn log(run: &StoredRun, rows: &[Row]) -> Log {
    let key = &rows[0].key;
    let batch = run.details_of(&key.case, &key.system).map(|details| details.global_batch);
    let mut lines = Lines::default();
    lines.settings(run, rows, batch);
    lines.push("INTERVAL_START", "init_start", Value::Null, json!({}));
    lines.push("INTERVAL_END", "init_stop", Value::Null, json!({}));
    lines.push("INTERVAL_START", "run_start", Value::Null, json!({}));
    for row in rows {
        let Ok(sample) = &row.sample else { continue };
        let samples = batch.map(|batch| batch * row.iteration as usize);
        lines.push("INTERVAL_START", "block_start", Value::Null, json!({ "step_num": row.iteration }));
        lines.seconds += sample.step.0;
        let at = json!({ "step_num": row.iteration, "samples_count": samples });
        if let Some(batch) = batch {
            lines.push(
                "POINT_IN_TIME",
                "tracked_stats",
                json!({ "throughput": batch as f64 / sample.step.0 }),
                at.clone(),
            );
        }
        if let Some(loss) = sample.loss {
            lines.push("POINT_IN_TIME", "train_loss", json!(loss), at.clone());
        }
        lines.push("INTERVAL_END", "block_stop", Value::Null, at);
    }
    let failure = rows.iter().find_map(|row| row.sample.as_ref().err());
    let status = if failure.is_some() { "aborted" } else { "success" };
    let reason = failure.map(ToString::to_string);
    lines.push("INTERVAL_END", "run_stop", Value::Null, json!({ "status": status, "reason": reason }));
    Log { name: format!("{}.{}.seed{}", key.case, key.system, key.seed), text: lines.text }
}

#[derive(Default)]
struct Lines {
    text: String,
    /// Since the beginning.
    seconds: f64,
}

impl Lines {
    fn settings(&mut self, run: &StoredRun, rows: &[Row], batch: Option<usize>) {
        let key = &rows[0].key;
        let trained = rows.iter().filter(|row| row.sample.is_ok()).count();
        let mut point = |name: &str, value: Value| self.push("POINT_IN_TIME", name, value, json!({}));
        point("submission_benchmark", json!(key.model));
        point("submission_org", json!("none"));
        point("submission_division", json!("open"));
        point("submission_platform", json!(format!("{} GPUs of {} ({})", key.gpus, key.cluster, key.engine)));
        point("config_filename", json!(key.case));
        point("seed", json!(key.seed));
        if let Some(batch) = batch {
            point("global_batch_size", json!(batch));
            point("train_samples", json!(batch * trained));
        }
        if let Some(plan) = &key.plan {
            point("micro_batch_size", json!(plan.micro_batch));
            point("tensor_parallelism", json!(plan.tp));
            point("pipeline_parallelism", json!(plan.pp));
            point("expert_parallelism", json!(plan.ep));
            let per_pass = plan.dp * plan.micro_batch;
            if let Some(batch) = batch {
                point("gradient_accumulation_steps", json!(batch / per_pass.max(1)));
            }
        }
        point("max_steps", json!(run.provenance.inputs.iterations));
    }

    fn push(&mut self, event: &str, key: &str, value: Value, metadata: Value) {
        let line = json!({
            "namespace": "moebench",
            "time_ms": (self.seconds * 1e3).round() as u64,
            "event_type": event,
            "key": key,
            "value": value,
            "metadata": metadata,
        });
        self.text += &format!(":::MLLOG {line}\n");
    }
}
