//! The hosts of a group's ranks: each issues its rank's operations in order and runs ahead of its GPU until it waits for it.
//!
//! An operation is many launches. The GPU begins with the first as soon as it is issued, its stream has got there and its inputs are
//! there, and ends no sooner than the host has issued the last. So an operation that takes the host longer to issue than the GPU to run
//! takes the host's time, unless the host had run ahead; and one that the host begins to issue on an idle GPU takes what it takes alone:
//! launches reach the GPU late, one after the other, which queued ones do not show. An exchange between ranks begins once its first call
//! is issued on all of them. Where a cluster states no time to issue anything, hosts are not followed.

use workloads::Seconds;

/// What an operation takes its host.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Issue {
    /// To issue it.
    pub host: Seconds,
    /// From when the host begins to issue it on an idle GPU until it is over: how much longer than behind other work.
    pub lead: Seconds,
}

/// Until when each rank's host is busy with what it has issued, or has waited for: `[rank]`.
#[derive(Clone, Debug, Default)]
pub struct Hosts(Vec<Seconds>);

impl Hosts {
    /// Hosts that have nothing to do until these times.
    pub fn new(clock: &[Seconds]) -> Self {
        Self(clock.to_vec())
    }

    /// `[rank]`.
    pub fn clock(&self) -> &[Seconds] {
        &self.0
    }

    /// As many ranks as that; the hosts of new ones have had nothing to do.
    pub fn resize(&mut self, ranks: usize) {
        self.0.resize(ranks, Seconds::ZERO);
    }

    /// The host of `rank` issues an operation that would begin at `start` for all that its stream and its inputs say: when it begins, and
    /// from when on it takes its time behind other work. It is over no sooner than the host has issued it.
    #[inline]
    pub fn issue(&mut self, rank: usize, issue: Issue, start: Seconds) -> [Seconds; 2] {
        let host = self.0[rank];
        self.0[rank] += issue.host;
        [start.max(host), start.max(host + issue.lead)]
    }

    /// Every host waits until then: `[rank]`.
    pub fn wait(&mut self, until: &[Seconds]) {
        self.0.iter_mut().zip(until).for_each(|(host, &until)| *host = host.max(until));
    }
}
