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
