//! When a GPU did what: pairs of events on libtorch's stream, read when an iteration is over.
//!
//! The host runs ahead of the GPU, so its clock says when work was launched, not when it was done. An event costs the stream
//! about a microsecond, and the host never waits for it; the only wait is at the end of the iteration.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use workloads::Seconds;

use crate::cuda::{CudaError, Event, Gpu, Stream};

/// Pairs of events, each with what happened between them.
pub(super) struct Marks<T> {
    gpu: Gpu,
    stream: Stream,
    origin: RefCell<Option<Event>>,
    pairs: RefCell<Vec<(T, Event, Event)>>,
    /// Those of earlier iterations, to be used again: to make one takes the host longer than to record it.
    free: RefCell<Vec<Event>>,
    /// Events that the driver refused: their times are lost. The next tensor that is read reports what is wrong.
    lost: Cell<usize>,
}

impl<T> Marks<T> {
    /// Marks on libtorch's stream.
    pub(super) fn on(ordinal: usize) -> Result<Self, CudaError> {
        let gpu = Gpu::open(ordinal)?;
        let stream = Stream::default_of(gpu);
        Ok(Self {
            gpu,
            stream,
            origin: RefCell::default(),
            pairs: RefCell::default(),
            free: RefCell::default(),
            lost: Cell::new(0),
        })
    }

    /// Starts an iteration: times count from here.
    pub(super) fn start(&self) {
        self.pairs.borrow_mut().clear();
        *self.origin.borrow_mut() = self.here();
    }

    /// The place that the stream will reach after what it was given so far.
    pub(super) fn here(&self) -> Option<Event> {
        let event = self.free.borrow_mut().pop().map_or_else(|| Event::timed(self.gpu), Ok);
        let event = event.and_then(|event| event.record(&self.stream).map(|()| event));
        event.map_err(|_| self.lost.set(self.lost.get() + 1)).ok()
    }

    /// Notes that `what` happened from `start` until here.
    pub(super) fn note(&self, what: T, start: Option<Event>) {
        if let (Some(start), Some(end)) = (start, self.here()) {
            self.pairs.borrow_mut().push((what, start, end));
        }
    }

    /// Waits until the GPU is idle.
    pub(super) fn synchronize(&self) {
        // The next tensor that is read reports work that failed.
        let _ = self.gpu.synchronize();
    }

    /// What happened when, in the order of the program; the GPU must be idle.
    pub(super) fn read(&self) -> Vec<(T, Seconds, Seconds)> {
        let Some(origin) = self.origin.take() else { return Vec::new() };
        let since = |event: &Event| event.since(&origin).map(|time: Duration| Seconds(time.as_secs_f64()));
        let read = |(what, start, end): (T, Event, Event)| {
            let read = Some((what, since(&start).ok()?, since(&end).ok()?));
            self.free.borrow_mut().extend([start, end]);
            read
        };
        self.pairs.take().into_iter().filter_map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda;
    use tch::{Device, Kind, Tensor};

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn on_a_gpu_times_are_those_of_the_gpu() {
        let marks = cuda::load().and_then(|_| Marks::on(0)).unwrap();
        let matrix = Tensor::ones([4096, 4096], (Kind::Float, Device::Cuda(0)));
        drop(matrix.matmul(&matrix));
        marks.synchronize();
        marks.start();
        let begun = std::time::Instant::now();
        for name in ["first", "second"] {
            let start = marks.here();
            drop(matrix.matmul(&matrix));
            marks.note(name, start);
        }
        let asked = begun.elapsed().as_secs_f64();
        marks.synchronize();
        let read = marks.read();
        let [(first, a, b), (second, c, d)] = read[..] else { panic!("{read:?}") };
        assert_eq!((first, second), ("first", "second"));
        assert!(a < b && b <= c && c < d && d.0 > asked, "{read:?} after {asked}");
        assert!((d - c).0 < 2.0 * (b - a).0 + 1e-3, "{read:?}");
    }
}
