//! Other work in front of a segment on a GPU: matrix products, as in training. Behind them, all of the segment is issued before it begins, as where
//! a host runs ahead; and a GPU that computes most of the time lowers its clock to keep within its power. (One H100 took 429 us for a grouped
//! product for 20 ms, then 455, 475 after 50 ms and 511 after a second; 456 to 475 where 3 ms of products and pauses of 0.5 ms followed each other.)

use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor, no_grad};
use workloads::Seconds;

use crate::clock::timer::synchronize;
use crate::cuda::{Event, Gpu, Stream};

/// Rows and columns of a product, a piece of other work: some tenths of a millisecond on a GPU of today.
const SIZE: i64 = 4096;
/// Of other work, as a multiple of what the host took to issue the segment before, and at least.
const MARGIN: f64 = 2.0;
const LEAST: Seconds = Seconds(3e-3);
/// Pieces at most: a driver queues about a thousand launches, those of the segment among them.
const MOST: f64 = 256.0;

/// Other work, and how much of it the segments of an iteration need.
#[derive(Default)]
pub(super) struct Queue {
    work: Option<Work>,
    /// What the host took to issue each segment of the last iteration that had none in front, in order.
    issued: Vec<Seconds>,
    /// The segment that is next.
    next: usize,
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

    /// Gives an idle GPU work for longer than the host will take to issue the segment that is next: the place behind it. None where the GPU
    /// has no memory or events for that.
    pub(super) fn fill(&mut self, ordinal: usize) -> Option<Event> {
        if self.work.is_none() {
            self.work = Work::on(ordinal);
        }
        let work = self.work.as_ref()?;
        let wanted = self.issued.get(self.next).map_or(LEAST, |&time| LEAST.max(time * MARGIN));
        work.fill(wanted);
        self.here()
    }

    /// The place that libtorch's stream will reach after what it was given so far.
    pub(super) fn here(&self) -> Option<Event> {
        let work = self.work.as_ref()?;
        let event = Event::timed(work.gpu).ok()?;
        event.record(&work.stream).ok()?;
        Some(event)
    }

    /// A segment has ended, which took the host so long to issue; `None` where that says little, because other work was in front.
    pub(super) fn next(&mut self, issued: Option<Seconds>) {
        if let Some(issued) = issued {
            self.issued.resize(self.issued.len().max(self.next + 1), Seconds::ZERO);
            self.issued[self.next] = issued;
        }
        self.next += 1;
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
