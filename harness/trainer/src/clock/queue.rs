//! Other work in front of a segment on a GPU: matrix products, as in training. Behind them, all of the segment is issued before it begins, as where
//! a host runs ahead; and a GPU that computes most of the time lowers its clock to keep within its power. (One H100 took 429 us for a grouped
//! product for 20 ms, then 455, 475 after 50 ms and 511 after a second; 456 to 475 where 3 ms of products and pauses of 0.5 ms followed each other.)

use std::time::{Duration, Instant};

use systems::iteration::timeline::Activity;
use tch::{Device, Kind, Tensor, no_grad};
use workloads::Seconds;

use crate::clock::timer::{Part, synchronize};
use crate::cuda::{Event, Gpu, Stream};

/// Rows and columns of a product, a piece of other work: some tenths of a millisecond on a GPU of today.
const SIZE: i64 = 4096;
/// Of other work, as a multiple of what the host took to issue the segment before.
const MARGIN: f64 = 2.0;
/// At least so much, as long as it is not known what the host takes, and where the GPU's clock is to be that of training.
pub(super) const LEAST: Seconds = Seconds(3e-3);
/// At least so much of it otherwise.
pub(super) const SOME: Seconds = Seconds(3e-4);
/// Pieces at most: a driver queues about a thousand launches, those of the segment among them.
const MOST: f64 = 256.0;

/// Other work, and how much of it the segments of an iteration need.
#[derive(Default)]
pub(super) struct Queue {
    work: Option<Work>,
    /// In the order of an iteration.
    known: Vec<Known>,
    /// The segment at hand, and how far the iteration has come.
    at: usize,
    next: usize,
}

/// What a segment is: its activity, and the part of the iteration that it belongs to.
pub(super) type Segment = (Activity, Part);

/// What is known of a segment from iterations before.
struct Known {
    of: Segment,
    /// What the host took to issue it.
    issued: Option<Seconds>,
    /// What the GPU took for it, all issued before.
    took: Option<Seconds>,
}

/// Work that can be put in front of anything.
pub(crate) struct Work {
    gpu: Gpu,
    stream: Stream,
    factor: Tensor,
    product: Tensor,
    /// What one piece takes.
    each: Seconds,
}

impl Queue {
    /// An iteration starts.
    pub(super) fn start(&mut self) {
        self.next = 0;
    }

    /// A segment starts: the next of the iteration before that was the same.
    pub(super) fn begin(&mut self, of: Segment) {
        let from = self.next.min(self.known.len());
        let found = self.known[from..].iter().position(|known| known.of == of);
        if found.is_none() {
            self.known.insert(from, Known { of, issued: None, took: None });
        }
        self.at = from + found.unwrap_or(0);
        self.next = self.at + 1;
    }

    /// Gives an idle GPU work for longer than the host will take to issue the segment that starts, and for `least`: the place behind it. None
    /// where the GPU has no memory or events for that.
    pub(super) fn fill(&mut self, ordinal: usize, least: Seconds) -> Option<Event> {
        if self.work.is_none() {
            self.work = Work::on(ordinal);
        }
        let work = self.work.as_ref()?;
        let issued = self.known.get(self.at).and_then(|known| known.issued);
        work.fill(issued.map_or(LEAST, |issued| least.max(issued * MARGIN)));
        self.here()
    }

    /// The place that libtorch's stream will reach after what it was given so far.
    pub(super) fn here(&self) -> Option<Event> {
        let work = self.work.as_ref()?;
        let event = Event::timed(work.gpu).ok()?;
        event.record(&work.stream).ok()?;
        Some(event)
    }

    /// The segment has ended, which took the host so long to issue.
    pub(super) fn issued(&mut self, issued: Seconds) {
        if let Some(known) = self.known.get_mut(self.at) {
            known.issued = Some(issued);
        }
    }

    /// What the GPU took for the segment, or, where it had to wait for the host, what it took when it last had not.
    pub(super) fn took(&mut self, time: Seconds, had_to_wait: bool) -> Seconds {
        match self.known.get_mut(self.at) {
            Some(known) if had_to_wait => known.took.unwrap_or(time),
            Some(known) => *known.took.insert(time),
            None => time,
        }
    }
}

impl Work {
    /// None where the GPU has no memory for it.
    pub(crate) fn on(ordinal: usize) -> Option<Self> {
        let device = Device::Cuda(ordinal);
        let gpu = Gpu::open(ordinal).ok()?;
        let factor = Tensor::f_randn([SIZE, SIZE], (Kind::BFloat16, device)).ok()?;
        let product = factor.f_matmul(&factor).ok()?;
        let mut work = Self { gpu, stream: Stream::default_of(gpu), factor, product, each: Seconds::ZERO };
        work.piece();
        synchronize(device);
        let (pieces, begun) = (8, Instant::now());
        (0..pieces).for_each(|_| work.piece());
        synchronize(device);
        work.each = Seconds(begun.elapsed().max(Duration::from_micros(1)).as_secs_f64() / f64::from(pieces));
        Some(work)
    }

    /// Gives the GPU so much of it.
    pub(crate) fn fill(&self, wanted: Seconds) {
        let pieces = (wanted / self.each).ceil().clamp(1.0, MOST) as usize;
        (0..pieces).for_each(|_| self.piece());
    }

    fn piece(&self) {
        let _ = no_grad(|| self.factor.f_matmul_out(&self.product, &self.factor));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_that_waited_for_its_host_keeps_the_time_before() {
        let (block, edge) = ((Activity::Block, (None, Some(0))), (Activity::Edge, (None, None)));
        let mut queue = Queue::default();
        let mut iteration = |segments: &[(Segment, f64, bool)]| -> Vec<f64> {
            queue.start();
            let took = |&(of, time, had_to_wait)| {
                queue.begin(of);
                queue.took(Seconds(time), had_to_wait).0
            };
            segments.iter().map(took).collect()
        };
        assert_eq!(iteration(&[(block, 1.0, false), (block, 2.0, false)]), [1.0, 2.0]);
        // One that is new comes first, of which nothing is known.
        assert_eq!(iteration(&[(edge, 9.0, true), (block, 9.0, true), (block, 9.0, true)]), [9.0, 1.0, 2.0]);
        assert_eq!(iteration(&[(edge, 3.0, false), (block, 4.0, false)]), [3.0, 4.0]);
        assert_eq!(iteration(&[(edge, 9.0, true), (block, 9.0, true), (block, 9.0, true)]), [3.0, 4.0, 2.0]);
    }
}
