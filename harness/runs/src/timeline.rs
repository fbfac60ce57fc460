//! Timelines in the Trace Event Format that Chrome and Perfetto read: a process per rank, a thread per stream, one
//! complete event per span.
//!
//! Timelines of several engines on the same ranks can stand in one file: every process says which engine it is from, and
//! those of one rank stand together. Times are microseconds, to the nanosecond.

use std::io::Write;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;
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

/// Two documents of [`write`] as one: each process of the first stands before the one of that number of the second.
///
/// # Errors
/// A text that is no such document.
pub fn beside(documents: [&str; 2]) -> Result<String> {
    let mut all = Vec::new();
    for (index, text) in documents.into_iter().enumerate() {
        let mut document: Value = serde_json::from_str(text)?;
        let events = document.get_mut("traceEvents").and_then(Value::as_array_mut);
        for mut event in std::mem::take(events.context("no `traceEvents`")?) {
            let number = event.get("pid").and_then(Value::as_u64).context("an event without a `pid`")?;
            let number = Value::from(number * 2 + index as u64);
            if let Some(place) = event.get_mut("args").and_then(|args| args.get_mut("sort_index")) {
                *place = number.clone();
            }
            event["pid"] = number;
            all.push(event.to_string());
        }
    }
    Ok(format!("{{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n{}\n]}}\n", all.join(",\n")))
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
        self.push(&meta(0, "process_name", "name", Value::from(name)))?;
        self.push(&meta(0, "process_sort_index", "sort_index", pid.into()))?;
        self.push(&meta(thread(Stream::Compute), "thread_name", "name", "compute".into()))?;
        self.push(&meta(thread(Stream::Communication), "thread_name", "name", "communication".into()))?;
        self.push(&meta(thread(Stream::Copy), "thread_name", "name", "copies".into()))
    }
}

fn thread(stream: Stream) -> usize {
    match stream {
        Stream::Compute => 1,
        Stream::Communication => 2,
        Stream::Copy => 3,
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
    use systems::iteration::timeline::Activity;

    use super::*;

    #[test]
    fn two_timelines_stand_rank_by_rank_in_one() {
        let of = |engine, end: f64| {
            let span = |rank| Span {
                rank,
                activity: Activity::Block,
                block: Some(1),
                work: None,
                start: Seconds::ZERO,
                end: Seconds(end),
            };
            let mut out = Vec::new();
            write(&[Timeline { engine, spans: &[span(0), span(1)] }], &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let (measured, simulated) = (of(EngineKind::Measured, 2e-3), of(EngineKind::Simulated, 1e-3));
        let both: Value = serde_json::from_str(&beside([&measured, &simulated]).unwrap()).unwrap();
        let events = both["traceEvents"].as_array().unwrap();
        let named = |name: &str| {
            events
                .iter()
                .filter(move |event| event["name"] == name)
                .map(|event| (event["pid"].as_u64().unwrap(), event["args"].clone()))
                .collect::<Vec<_>>()
        };
        let names: Vec<_> = named("process_name")
            .into_iter()
            .map(|(pid, args)| (pid, args["name"].as_str().unwrap().to_owned()))
            .collect();
        let expected =
            [(0, "rank 0 (measured)"), (2, "rank 1 (measured)"), (1, "rank 0 (simulated)"), (3, "rank 1 (simulated)")];
        assert_eq!(names, expected.map(|(pid, name)| (pid, name.to_owned())));
        assert!(named("process_sort_index").iter().all(|(pid, args)| args["sort_index"].as_u64() == Some(*pid)));
        let spans: Vec<_> = events
            .iter()
            .filter(|event| event["ph"] == "X")
            .map(|event| (event["pid"].as_u64(), event["dur"].as_f64()))
            .collect();
        assert_eq!(spans, [(Some(0), Some(2e3)), (Some(2), Some(2e3)), (Some(1), Some(1e3)), (Some(3), Some(1e3))]);
        assert!(beside(["{}", &measured]).is_err() && beside([&measured, "{\"traceEvents\":[1]}"]).is_err());
    }
}
