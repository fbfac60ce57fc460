//! Timelines as Chakra execution traces, a file a rank, for simulators such as ASTRA-sim: of what was simulated, emulated or measured.
//!
//! A span that computes is a `COMP` node that takes as long. A span that communicates is a `COMM_COLL` node for each of its collectives,
//! with kind, bytes and group; a send between stages is a `COMM_SEND` and, on the other rank, a `COMM_RECV` of the same tag. A node
//! depends on the node before it on its stream, and on the last one of each other stream that had ended when it began: the order in which
//! the rank was seen to do things, which is that of the layer programs or stricter.
//!
//! `comm_size` is what a rank puts in, as Chakra's converters count inputs: of an all-gather a rank's part, which ASTRA-sim multiplies
//! by the group's size. The format has no all-to-all whose ranks send unequal amounts: `comm_size` is what the rank sends to others that
//! sends most, the same on all ranks, and `moebench_sent_bytes` is what this rank sends. Experts of online systems stand as in the
//! iteration that is shown. Simulated sizes are the cost model's; of ranks that really ran, their communicators say what they moved, in
//! the numbers that they compute with (single precision on a CPU), and each rank's times are from its own start of the iteration.
//!
//! Left out: a span of communication in which nothing moves for the rank, where it only waits; the simulated sharded state of systems
//! that queue it among their exchanges ([`systems::Overlap::queued`]), whose spans are what of it a rank waited for; of real ranks what
//! has no span, the sum of squares that clips gradients; and under a virtual clock what has no price of its own, the losses of a
//! vocabulary's parts and the weights that slots get of sharded optimizers, and experts' weights and gradients beside exchanges, which
//! begin ahead of the pass that they are priced in. What real ranks moved stands where they waited for it.

pub mod proto;

use std::collections::BTreeMap;

use systems::iteration::moved::{Collective, Communication, Message};
use systems::iteration::schedule::Work;
use systems::iteration::timeline::Span;
use systems::program::Stream;
use workloads::EngineKind;

use crate::chakra::proto::{Node, NodeType, Value};

/// Version of the schema, as ASTRA-sim's own examples state it.
const VERSION: &str = "0.0.4";

/// Files of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Traces {
    /// `[rank]`: a file's bytes.
    pub ranks: Vec<Vec<u8>>,
    /// What groups' names mean: `{"1": [0, 1], ...}`, as `--comm-group-configuration` takes it.
    pub groups: String,
}

/// The traces of all ranks of an iteration; `messages`: `[span]`, what it moves.
pub fn traces(engine: EngineKind, spans: &[Span], messages: &[Vec<Message>]) -> Traces {
    let mut groups = Groups::default();
    let mut ordered: Vec<(&Span, &Vec<Message>)> = spans.iter().zip(messages).collect();
    ordered.sort_by(|(a, _), (b, _)| {
        (a.rank, a.start.0, a.end.0).partial_cmp(&(b.rank, b.start.0, b.end.0)).expect("times are numbers")
    });
    let world = ordered.last().map_or(0, |(span, _)| span.rank + 1);
    let mut ranks: Vec<Rank> = (0..world).map(|_| Rank::default()).collect();
    let mut sends = Vec::new();
    for (span, messages) in ordered {
        ranks[span.rank].add(span, messages, &mut groups, &mut sends);
    }
    for send in &sends {
        if let Some(rank) = ranks.get_mut(send.to) {
            rank.receive(send, engine == EngineKind::Measured);
        }
    }
    let sizes = match engine {
        EngineKind::Simulated => "of the iteration's own routing and placement",
        EngineKind::Measured | EngineKind::Emulated => "as the ranks sent them",
    };
    let metadata = [
        ("schema", Value::Text(format!("chakra {VERSION}"))),
        ("written_by", Value::Text(format!("moebench {}", env!("CARGO_PKG_VERSION")))),
        ("sizes", Value::Text(sizes.to_owned())),
    ];
    Traces {
        ranks: ranks.into_iter().map(|rank| proto::file(VERSION, &metadata, &rank.nodes)).collect(),
        groups: groups.to_json(),
    }
}

/// A send, and what the receiver needs to know of it.
struct Send {
    from: usize,
    to: usize,
    bytes: i64,
    tag: i32,
    work: Option<Work>,
    end_microseconds: u64,
}

/// A rank's nodes, and what of its spans they are.
#[derive(Default)]
struct Rank {
    nodes: Vec<Node>,
    /// `[stream]`: nodes that it had, by their ends.
    ended: [Vec<(u64, u64)>; 3],
    /// By node, the pass that it is part of.
    works: Vec<Option<Work>>,
}

impl Rank {
    /// The node before it on its stream, and the last ones of the others that had ended.
    fn depends(&self, stream: Stream, start: u64) -> Vec<u64> {
        let mut all: Vec<u64> = (0..self.ended.len())
            .filter_map(|other| {
                let nodes = &self.ended[other];
                match other == stream as usize {
                    true => nodes.last(),
                    false => nodes.iter().rev().find(|(_, end)| *end <= start),
                }
            })
            .map(|(id, _)| *id)
            .collect();
        all.sort_unstable();
        all
    }

    fn push(&mut self, span: &Span, kind: NodeType, [start, end]: [u64; 2], attributes: Vec<(&'static str, Value)>) {
        let id = self.nodes.len() as u64;
        let stream = span.activity.stream();
        let depends = self.depends(stream, start);
        self.nodes.push(Node {
            id,
            name: name(span),
            kind,
            depends,
            start_microseconds: start,
            microseconds: end - start,
            attributes,
        });
        self.works.push(span.work);
        self.ended[stream as usize].push((id, end));
    }

    /// A node where the span computes, otherwise one for each of its messages, which share its time by their bytes.
    fn add(&mut self, span: &Span, messages: &[Message], groups: &mut Groups, sends: &mut Vec<Send>) {
        let [start, end] = ends(span);
        if span.activity.stream() == Stream::Compute {
            return self.push(span, NodeType::Compute, [start, end], vec![("is_cpu_op", Value::Bool(false))]);
        }
        let bytes = |message: &Message| match message {
            Message::Collective(of) if of.ranks.len() < 2 => 0.0,
            Message::Collective(of) => of.bytes.0,
            Message::Send(of) => of.bytes.0,
        };
        let messages: Vec<&Message> = messages.iter().filter(|message| bytes(message) >= 1.0).collect();
        let all: f64 = messages.iter().map(|message| bytes(message)).sum();
        let (mut done, mut begun) = (0.0, start);
        for message in messages {
            done += bytes(message);
            let until = start + ((end - start) as f64 * (done / all)).round() as u64;
            match message {
                Message::Collective(of) => {
                    self.push(span, NodeType::Collective, [begun, until], of_collective(of, groups));
                }
                Message::Send(of) => {
                    let (from, tag, bytes) = (span.rank, sends.len() as i32, of.bytes.0.round() as i64);
                    let send = Send { from, to: of.to, bytes, tag, work: span.work, end_microseconds: until };
                    self.push(span, NodeType::Send, [begun, until], send.attributes());
                    sends.push(send);
                }
            }
            begun = until;
        }
    }

    /// What is received comes before the first node of the same micro-batch and direction that began once it was there. Where each rank
    /// has a clock `of_its_own`, that is the first node: no rank that is measured has virtual stages.
    fn receive(&mut self, send: &Send, of_its_own: bool) {
        let first = self.nodes.iter().zip(&self.works).position(|(node, work)| {
            let there = of_its_own || node.start_microseconds >= send.end_microseconds;
            *work == send.work && there && node.kind != NodeType::Receive
        });
        let (id, mut start) = (self.nodes.len() as u64, send.end_microseconds);
        if let Some(first) = first {
            self.nodes[first].depends.push(id);
            start = start.min(self.nodes[first].start_microseconds);
        }
        self.nodes.push(Node {
            id,
            name: "receive".to_owned(),
            kind: NodeType::Receive,
            depends: Vec::new(),
            start_microseconds: start,
            microseconds: 0,
            attributes: send.attributes(),
        });
        self.works.push(None);
    }
}

impl Send {
    fn attributes(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("is_cpu_op", Value::Bool(false)),
            ("comm_src", Value::Int32(self.from as i32)),
            ("comm_dst", Value::Int32(self.to as i32)),
            ("comm_size", Value::Int64(self.bytes)),
            ("comm_tag", Value::Int32(self.tag)),
        ]
    }
}

/// Groups of ranks, by their numbers from 1.
#[derive(Default)]
struct Groups(BTreeMap<Vec<usize>, usize>);

impl Groups {
    fn name(&mut self, ranks: &[usize]) -> String {
        let next = self.0.len() + 1;
        self.0.entry(ranks.to_vec()).or_insert(next).to_string()
    }

    fn to_json(&self) -> String {
        let mut all: Vec<(&usize, &Vec<usize>)> = self.0.iter().map(|(ranks, number)| (number, ranks)).collect();
        all.sort();
        let lines: Vec<String> = all.iter().map(|(number, ranks)| format!("  \"{number}\": {ranks:?}")).collect();
        format!("{{\n{}\n}}\n", lines.join(",\n"))
    }
}

/// Whole microseconds, rounded so that what touches still does.
fn ends(span: &Span) -> [u64; 2] {
    [span.start, span.end].map(|time| (time.0 * 1e6).round() as u64)
}

fn name(span: &Span) -> String {
    let block = span.block.map_or(String::new(), |block| format!(", block {block}"));
    let work = match span.work {
        Some(Work::Forward(m)) => format!(", forward {m}"),
        Some(Work::Backward(m)) => format!(", backward {m}"),
        None => String::new(),
    };
    format!("{}{block}{work}", span.activity.name())
}

fn of_collective(of: &Communication, groups: &mut Groups) -> Vec<(&'static str, Value)> {
    let mut attributes = vec![
        ("is_cpu_op", Value::Bool(false)),
        ("comm_type", Value::Int64(comm_type(of.collective))),
        ("comm_size", Value::Int64(comm_size(of))),
        ("pg_name", Value::Text(groups.name(&of.ranks))),
    ];
    if of.collective == Collective::AllToAll {
        attributes.push(("moebench_sent_bytes", Value::Int64(of.own.0.round() as i64)));
    }
    attributes
}

/// Bytes that a rank puts in.
fn comm_size(of: &Communication) -> i64 {
    let parts = match of.collective {
        Collective::AllGather => of.ranks.len() as f64,
        _ => 1.0,
    };
    (of.bytes.0 / parts).round() as i64
}

/// `CollectiveCommType`.
fn comm_type(collective: Collective) -> i64 {
    match collective {
        Collective::AllReduce => 0,
        Collective::Reduce => 1,
        Collective::AllGather => 2,
        Collective::Broadcast => 5,
        Collective::AllToAll => 6,
        Collective::ReduceScatter => 7,
    }
}
