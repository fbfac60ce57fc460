//! Timelines in the Trace Event Format that Chrome and Perfetto read: a process per rank, a thread per stream, one
//! complete event per span.
//!
//! Timelines of several engines on the same ranks can stand in one file: every process says which engine it is from, and
//! those of one rank stand together. Times are microseconds, to the nanosecond.

use std::io::Write;

use anyhow::Result;
use serde::Serialize;
use systems::iteration::schedule::Work;
use systems::iteration::timeline::Span;
use systems::program::{Op, Stream};
use workloads::{EngineKind, Seconds};

/// What one engine says about an iteration.
pub struct Timeline<'a> {
    pub engine: EngineKind,
    /// In any order between ranks and streams.
    pub spans: &'a [Span],
}

/// Writes timelines of the same ranks as one JSON document.
///
/// # Errors
/// When it cannot be written.
pub fn write(timelines: &[Timeline], out: &mut impl Write) -> Result<()> {
    let mut events = Events { out, first: true };
    events.out.write_all(b"{\"displayTimeUnit\":\"ms\",\"traceEvents\":[")?;
    for (index, timeline) in timelines.iter().enumerate() {
        let process = |rank: usize| rank * timelines.len() + index;
        let ranks = timeline.spans.iter().map(|span| span.rank + 1).max().unwrap_or(0);
        for rank in 0..ranks {
            events.process(process(rank), &format!("rank {rank} ({})", timeline.engine))?;
        }
        for span in timeline.spans {
            events.push(&Event::of(span, process(span.rank)))?;
        }
    }
    events.out.write_all(b"\n]}\n")?;
    Ok(())
}

struct Events<'a, W> {
    out: &'a mut W,
    first: bool,
}

impl<W: Write> Events<'_, W> {
    fn push(&mut self, event: &impl Serialize) -> Result<()> {
        self.out.write_all(if self.first { b"\n" } else { b",\n" })?;
        self.first = false;
        Ok(serde_json::to_writer(&mut *self.out, event)?)
    }

    /// Names a rank's process and its streams, and puts it into its place.
    fn process(&mut self, pid: usize, name: &str) -> Result<()> {
        let meta = |tid, name, key: &str, value| serde_json::json!({"ph": "M", "pid": pid, "tid": tid, "name": name, "args": {key: value}});
        self.push(&meta(0, "process_name", "name", serde_json::Value::from(name)))?;
        self.push(&meta(0, "process_sort_index", "sort_index", pid.into()))?;
        self.push(&meta(thread(Stream::Compute), "thread_name", "name", "compute".into()))?;
        self.push(&meta(thread(Stream::Communication), "thread_name", "name", "communication".into()))
    }
}

fn thread(stream: Stream) -> usize {
    match stream {
        Stream::Compute => 1,
        Stream::Communication => 2,
    }
}

#[derive(Serialize)]
struct Event {
    ph: &'static str,
    pid: usize,
    tid: usize,
    name: &'static str,
    cat: &'static str,
    ts: f64,
    dur: f64,
    args: Details,
}

#[derive(Serialize)]
struct Details {
    #[serde(skip_serializing_if = "Option::is_none")]
    pass: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    micro_batch: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expert: Option<usize>,
}

impl Event {
    fn of(span: &Span, pid: usize) -> Self {
        let (start, end) = (nanoseconds(span.start), nanoseconds(span.end));
        Self {
            ph: "X",
            pid,
            tid: thread(span.activity.stream()),
            name: span.activity.name(),
            cat: span.activity.phase().name(),
            ts: start / 1e3,
            dur: (end - start) / 1e3,
            args: Details::of(span),
        }
    }
}

impl Details {
    fn of(span: &Span) -> Self {
        let (pass, micro_batch) = match span.work {
            Some(Work::Forward(m)) => (Some("forward"), Some(m)),
            Some(Work::Backward(m)) => (Some("backward"), Some(m)),
            None => (None, None),
        };
        let (step, expert) = match span.activity.op() {
            Some(Op::Dispatch { step } | Op::Experts { step } | Op::Combine { step }) => (Some(step), None),
            Some(Op::Broadcast { expert } | Op::Shadow { expert } | Op::ReduceGrad { expert }) => (None, Some(expert)),
            _ => (None, None),
        };
        Self { pass, micro_batch, layer: span.block, step, expert }
    }
}

/// Whole ones, so that spans that touch still do in the file.
fn nanoseconds(time: Seconds) -> f64 {
    (time.0 * 1e9).round()
}

#[cfg(test)]
mod tests {
    use super::*;
    use systems::iteration::timeline::Activity;

    fn span(rank: usize, activity: Activity, start: f64, end: f64) -> Span {
        let work = Some(Work::Backward(3));
        Span { rank, activity, block: Some(5), work, start: Seconds(start), end: Seconds(end) }
    }

    #[test]
    fn two_engines_stand_side_by_side() {
        let simulated = [span(1, Activity::Op(Op::Dispatch { step: 2 }), 0.5, 0.75)];
        let measured = [span(0, Activity::Block, 0.0, 1.0), span(1, Activity::Block, 0.0, 0.5)];
        let timelines = [(EngineKind::Simulated, &simulated[..]), (EngineKind::Measured, &measured[..])]
            .map(|(engine, spans)| Timeline { engine, spans });
        let mut text = Vec::new();
        write(&timelines, &mut text).unwrap();
        let document: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let events = document["traceEvents"].as_array().unwrap();
        let names: Vec<(u64, &str)> = events
            .iter()
            .filter(|event| event["name"] == "process_name")
            .map(|event| (event["pid"].as_u64().unwrap(), event["args"]["name"].as_str().unwrap()))
            .collect();
        assert_eq!(
            names,
            [(0, "rank 0 (simulated)"), (2, "rank 1 (simulated)"), (1, "rank 0 (measured)"), (3, "rank 1 (measured)")]
        );
        let complete: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
        assert_eq!(complete.len(), 3);
        let expected = serde_json::json!({
            "ph": "X", "pid": 2, "tid": 2, "name": "dispatch", "cat": "dispatch", "ts": 500000.0, "dur": 250000.0,
            "args": {"pass": "backward", "micro_batch": 3, "layer": 5, "step": 2}
        });
        assert_eq!(*complete[0], expected);
    }
}
