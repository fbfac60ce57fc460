//! The streams of ranks: runs the tasks of one pass through one layer, given how long each takes on each rank.
//!
//! Tasks of a stream run in order; a task also waits for the one it names; a collective starts when the last rank that
//! takes part has arrived. Durations may be priced or measured: a trainer that runs many ranks on one device passes what
//! it timed for the compute tasks and prices for the others, and gets the clocks of the described cluster.
//!
//! Where hosts are followed ([`Hosts`]), a task also waits to be issued, by a host that has waited for all before it that a
//! program makes hosts wait for: counts, without which no exchange has a size, a [`Op::Sync`], and its own decision. A host issues an
//! exchange or a transfer as soon as those before it and the task that it waits for are issued, otherwise the next compute task. Where a
//! cluster states no time to issue exchanges, each is issued with the task that it waits for, so that no host holds it up.
//!
//! Exchanges and transfers of weights share a rank's links: one after the other, in the order of the program. [`Links`] lives
//! from pass to pass, because a transfer may begin before the pass that needs it and end after the one that causes it. What kernels and
//! transfers take of each other while both run on a GPU ([`Beside`]) makes both longer.

use workloads::Seconds;

use crate::price::hosts::{Hosts, Issue};
use crate::price::ledger::{Ledger, Phase};
use crate::program::{Op, Stream, Task};

/// One pass through one layer, and how long its tasks take.
#[derive(Clone, Copy, Debug)]
pub struct TimedPass<'a> {
    /// In the order of their streams.
    pub tasks: &'a [Task],
    /// `[task][rank]`, flat.
    pub durations: &'a [Seconds],
    /// `[task][rank]`, flat: what tasks take hosts; nothing where hosts are not followed.
    pub issue: &'a [Issue],
    /// Steps that its exchanges are cut into.
    pub steps: usize,
}

/// By how much longer kernels and transfers of weights take while the other run on the same GPU, as a share of their time: what moves bytes
/// between GPUs runs on its processors, too, and reads and writes its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Beside {
    /// Kernels, beside any exchange or transfer.
    pub kernels: f64,
    /// Transfers, beside kernels. An exchange of rows takes what it takes alone: little runs beside one.
    pub transfers: f64,
}

/// When a task has a rank's links.
#[derive(Clone, Copy, Debug)]
struct Busy {
    start: Seconds,
    end: Seconds,
    /// A transfer: kernels make it longer.
    is_transfer: bool,
    /// Its place in the pass at hand.
    task: Option<usize>,
}

/// What a group's ranks have under way on their links between two passes.
#[derive(Clone, Debug, Default)]
pub struct Links {
    beside: Beside,
    /// `[rank]`: tasks that kernels may still run beside, in order.
    busy: Vec<Vec<Busy>>,
    /// `[rank]`: when the last task issued on its links is over.
    free: Vec<Seconds>,
    /// `[rank]`: when the pass before was over: no transfer for the next starts earlier, but for what `idle` says.
    before: Vec<Seconds>,
    /// Least of all ranks: for how long the pass before left the links idle once its rows were there. Shards of two layers' experts are held at a
    /// time, so those of the next may be restored meanwhile.
    idle: Seconds,
}

impl Links {
    /// Of ranks that have nothing under way and come to their first pass at these times.
    pub fn new(clock: &[Seconds]) -> Self {
        Self { free: vec![Seconds::ZERO; clock.len()], before: clock.to_vec(), ..Self::default() }
    }

    /// Where kernels and transfers take so much of each other.
    #[must_use]
    pub fn beside(self, beside: Beside) -> Self {
        Self { beside, ..self }
    }

    /// Kernels of `rank` begin then and take that time alone: when they are over. `moved` is told which transfers of the pass at hand end later
    /// for it, and when.
    pub fn kernels(
        &mut self,
        rank: usize,
        from: Seconds,
        alone: Seconds,
        mut moved: impl FnMut(usize, Seconds),
    ) -> Seconds {
        let Self { beside, busy, free, .. } = self;
        let Some(busy) = busy.get_mut(rank).filter(|busy| !busy.is_empty()) else { return from + alone };
        busy.retain(|of| of.end > from);
        let (mut now, mut left) = (from, alone);
        for index in 0..busy.len() {
            let Busy { start, end, is_transfer, .. } = busy[index];
            let before = (start - now).max(Seconds::ZERO);
            if left <= before {
                break;
            }
            (now, left) = (now + before, left - before);
            let slow = [1.0 + beside.kernels, 1.0 + if is_transfer { beside.transfers } else { 0.0 }];
            let together = (left * slow[0]).min((end - now).max(Seconds::ZERO) * slow[1]);
            (now, left) = (now + together, left - together / slow[0]);
            // What did not get through meanwhile does so later, as do transfers behind it.
            let mut until = end + (together - together / slow[1]);
            busy[index].end = until;
            for of in &mut busy[index + 1..] {
                if of.start >= until || !of.is_transfer {
                    break;
                }
                (of.end, of.start) = (of.end + (until - of.start), until);
                until = of.end;
            }
            for of in busy[index..].iter().filter(|of| of.is_transfer) {
                free[rank] = free[rank].max(of.end);
                of.task.into_iter().for_each(|task| moved(task, of.end));
            }
        }
        now + left.max(Seconds::ZERO)
    }

    /// Whether kernels and transfers take anything of each other.
    pub fn are_shared(&self) -> bool {
        self.beside != Beside::default()
    }

    /// A task has the links of its ranks from then to then: `[rank]`.
    fn occupy(&mut self, from: &[Seconds], to: &[Seconds], is_transfer: bool, task: Option<usize>) {
        if !self.are_shared() {
            return;
        }
        self.busy.resize(from.len(), Vec::new());
        for (busy, (&start, &end)) in self.busy.iter_mut().zip(from.iter().zip(to)) {
            if end > start {
                busy.push(Busy { start, end, is_transfer, task });
            }
        }
    }

    /// Asks for a transfer of that time behind all that was asked for before: when it is over on each rank.
    pub fn issue(&mut self, clock: &[Seconds], time: Seconds) -> Vec<Seconds> {
        self.free.resize(clock.len(), Seconds::ZERO);
        let from: Vec<Seconds> = self.free.iter().zip(clock).map(|(&free, &clock)| free.max(clock)).collect();
        self.free = from.iter().map(|&from| from + time).collect();
        // Its asker was told when it is over.
        let until = self.free.clone();
        self.occupy(&from, &until, false, None);
        until
    }

    /// Waits for what is still under way: moves the clocks to its end and books the time.
    pub fn drain(&self, clock: &mut [Seconds], ledger: &mut Ledger) {
        for (clock, &free) in clock.iter_mut().zip(&self.free) {
            if free > *clock {
                ledger.add(Phase::ShadowTransfer, free - *clock);
                *clock = free;
            }
        }
    }
}

/// The streams of a group's ranks; its memory is kept from pass to pass.
#[derive(Default)]
pub struct Streams {
    /// `[rank]`: when the pass starts.
    begin: Vec<Seconds>,
    /// `[rank]`: when its kernels are done.
    compute: Vec<Seconds>,
    /// `[rank]`: when the task at hand starts.
    start: Vec<Seconds>,
    /// `[rank]`: from when on it takes its time.
    from: Vec<Seconds>,
    /// `[task][rank]`, flat.
    finish: Vec<Seconds>,
}

impl Streams {
    /// Runs a pass from the ranks' clocks on and moves the clocks to the end. The time that
    /// passes on each rank goes to the ledger: to waiting until a task starts, then to the task's phase, and only once
    /// where both streams are busy. `seen` is told of every task, with `[rank]` its start and its end.
    pub fn run(
        &mut self,
        pass: &TimedPass,
        clock: &mut [Seconds],
        hosts: &mut Hosts,
        links: &mut Links,
        ledger: &mut Ledger,
        mut seen: impl FnMut(Op, &[Seconds], &[Seconds]),
    ) {
        let &TimedPass { tasks, durations, issue, steps } = pass;
        let ranks = clock.len();
        for times in [&mut self.begin, &mut self.compute, &mut self.start, &mut self.from] {
            times.clear();
            times.extend_from_slice(clock);
        }
        links.free.resize(ranks, Seconds::ZERO);
        links.before.resize(ranks, Seconds::ZERO);
        links.busy.iter_mut().flatten().for_each(|of| of.task = None);
        hosts.resize(ranks);
        self.finish.clear();
        self.finish.resize(tasks.len() * ranks, Seconds::ZERO);
        let ahead = std::mem::replace(&mut links.idle, Seconds::ZERO) / (1.0 + links.beside.transfers);
        let mut dispatched = false;
        for index in order(pass) {
            let (task, of_task) = (&tasks[index], index * ranks..(index + 1) * ranks);
            let on = task.op.stream();
            self.set_start(task, hosts, links);
            let issue = issue.get(of_task.clone()).filter(|issue| on == Stream::Compute || is_issued(issue));
            self.issue(issue, hosts);
            if on != Stream::Compute {
                meet(task.op, steps, &mut self.start);
                meet(task.op, steps, &mut self.from);
            }
            if on == Stream::Communication {
                if dispatched {
                    links.idle += least(self.start.iter().zip(&links.free).map(|(&start, &free)| start - free));
                }
                dispatched |= matches!(task.op, Op::Dispatch { .. });
            }
            let done = if task.op == Op::Unshard && task.after.is_none() { ahead } else { Seconds::ZERO };
            if done > Seconds::ZERO {
                self.slow_for(&durations[of_task.clone()], done, links.beside);
            }
            if on == Stream::Compute {
                for (rank, (&from, &duration)) in self.from.iter().zip(&durations[of_task.clone()]).enumerate() {
                    let finish = &mut self.finish;
                    self.compute[rank] =
                        links.kernels(rank, from, duration, |task, end| finish[task * ranks + rank] = end);
                }
            } else {
                for ((free, &from), &duration) in links.free.iter_mut().zip(&self.from).zip(&durations[of_task.clone()])
                {
                    *free = from + (duration - done).max(Seconds::ZERO);
                }
                let until = std::mem::take(&mut links.free);
                links.occupy(&self.from, &until, on == Stream::Copy, Some(index));
                links.free = until;
            }
            let free = if on == Stream::Compute { &mut self.compute } else { &mut links.free };
            if issue.is_some() {
                raise(free, hosts.clock());
            }
            if let (Op::Await, Some(other)) = (task.op, task.after) {
                // Time until the transfer is there is the transfer's.
                raise(free, &self.finish[other * ranks..(other + 1) * ranks]);
            }
            if !pass.issue.is_empty() && host_waits(task.op) {
                hosts.wait(free);
            }
            self.finish[of_task].copy_from_slice(free);
            seen(task.op, &self.start, free);
            if on != Stream::Copy {
                account(Phase::of(task.op), &self.start, free, clock, ledger);
            }
        }
        links.before.copy_from_slice(clock);
    }

    /// Kernels of the pass before took longer for what of a transfer was done meanwhile: those of this pass are later by that.
    fn slow_for(&mut self, durations: &[Seconds], done: Seconds, beside: Beside) {
        let slowed = (1.0 + beside.transfers) * beside.kernels / (1.0 + beside.kernels);
        for (compute, &duration) in self.compute.iter_mut().zip(durations) {
            *compute += duration.min(done) * slowed;
        }
    }

    /// Hosts issue the task at hand, if they are what issues it.
    fn issue(&mut self, issue: Option<&[Issue]>, hosts: &mut Hosts) {
        self.from.copy_from_slice(&self.start);
        for (rank, &issue) in issue.into_iter().flatten().enumerate() {
            [self.start[rank], self.from[rank]] = hosts.issue(rank, issue, self.start[rank]);
        }
    }

    /// When a task can start on each rank, for all that its own rank knows.
    fn set_start(&mut self, task: &Task, hosts: &Hosts, links: &Links) {
        let ranks = self.start.len();
        let free = if task.op.stream() == Stream::Compute { &self.compute } else { &links.free };
        self.start.copy_from_slice(free);
        match (task.op, task.after) {
            (Op::Await, _) => (),
            (_, Some(other)) => {
                raise(&mut self.start, &self.finish[other * ranks..(other + 1) * ranks]);
                raise(&mut self.start, &self.begin);
            }
            (op, None) if op.stream() == Stream::Copy => {
                raise(&mut self.start, &links.before);
                raise(&mut self.start, hosts.clock());
            }
            (_, None) => raise(&mut self.start, &self.begin),
        }
    }
}

/// Whether hosts take time to issue such an exchange.
fn is_issued(issue: &[Issue]) -> bool {
    issue.iter().any(|issue| issue.host > Seconds::ZERO)
}

/// The tasks of a pass in the order in which hosts issue them, as the trainer's do; in that of the program where hosts issue no exchange.
/// Both keep the order of each stream.
fn order(pass: &TimedPass) -> Vec<usize> {
    let &TimedPass { tasks, issue, .. } = pass;
    let exchanges = || (0..tasks.len()).filter(|&task| tasks[task].op.stream() != Stream::Compute);
    let ranks = issue.len() / tasks.len().max(1);
    if !exchanges().any(|task| is_issued(&issue[task * ranks..(task + 1) * ranks])) {
        return (0..tasks.len()).collect();
    }
    let (mut order, mut waiting) = (Vec::with_capacity(tasks.len()), exchanges().peekable());
    let mut issue_exchanges = |order: &mut Vec<usize>| {
        while let Some(next) = waiting.next_if(|&next| tasks[next].after.is_none_or(|other| order.contains(&other))) {
            order.push(next);
        }
    };
    issue_exchanges(&mut order);
    for task in (0..tasks.len()).filter(|&task| tasks[task].op.stream() == Stream::Compute) {
        order.push(task);
        issue_exchanges(&mut order);
    }
    order
}

/// Whether the host goes on once such a task is over: it needs the numbers of rows, waits for its device, or is busy itself.
fn host_waits(op: Op) -> bool {
    matches!(op, Op::Counts | Op::Sync | Op::Decide { .. })
}

/// Raises each time to the other, where that is later.
fn raise(times: &mut [Seconds], others: &[Seconds]) {
    times.iter_mut().zip(others).for_each(|(time, &other)| *time = time.max(other));
}

/// Books the time by which a task sticks out over all before it.
fn account(phase: Phase, start: &[Seconds], end: &[Seconds], clock: &mut [Seconds], ledger: &mut Ledger) {
    let (mut waited, mut spent) = (Seconds::ZERO, Seconds::ZERO);
    for ((&start, &end), clock) in start.iter().zip(end).zip(clock) {
        if end > *clock {
            let begun = start.max(*clock);
            waited += begun - *clock;
            spent += end - begun;
            *clock = end;
        }
    }
    ledger.add(Phase::Wait, waited);
    ledger.add(phase, spent);
}

/// Ranks of a collective start together; in a step of a cut exchange, with those that they exchange with.
fn meet(op: Op, steps: usize, start: &mut [Seconds]) {
    let step = match op {
        Op::Dispatch { step } | Op::Combine { step } if steps > 1 => step,
        _ => return start.fill(latest(start)),
    };
    let size = start.len() / steps;
    let groups: Vec<Seconds> = start.chunks_exact(size).map(latest).collect();
    for (group, start) in start.chunks_exact_mut(size).enumerate() {
        let (to, from) = (groups[(group + step) % steps], groups[(group + steps - step) % steps]);
        start.fill(groups[group].max(to).max(from));
    }
}

fn least(times: impl Iterator<Item = Seconds>) -> Seconds {
    times.reduce(Seconds::min).unwrap_or(Seconds::ZERO).max(Seconds::ZERO)
}

fn latest(times: &[Seconds]) -> Seconds {
    times.iter().copied().fold(Seconds::ZERO, Seconds::max)
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    use super::*;

    fn s(values: &[f64]) -> Vec<Seconds> {
        values.iter().copied().map(Seconds).collect()
    }

    /// Compute 0: 1 and 3 s; exchange 1 after it: 2 s, so from 3 to 5; compute 2 beside it: 1 s.
    #[test]
    fn collectives_wait_for_the_last_and_overlap_with_kernels() {
        let tasks = [
            Task { op: Op::Experts { step: 0 }, after: None },
            Task { op: Op::Combine { step: 0 }, after: Some(0) },
            Task { op: Op::Shadow { expert: 0 }, after: None },
        ];
        let durations = s(&[1.0, 3.0, 2.0, 2.0, 1.0, 1.0]);
        let mut clock = s(&[0.0, 0.0]);
        let mut seen = Vec::new();
        let mut ledger = Ledger::default();
        let pass = TimedPass { tasks: &tasks, durations: &durations, issue: &[], steps: 1 };
        Streams::default().run(
            &pass,
            &mut clock,
            &mut Hosts::default(),
            &mut Links::default(),
            &mut ledger,
            |op, start, end| seen.push((op, start.to_vec(), end.to_vec())),
        );
        assert_eq!(clock, s(&[5.0, 5.0]));
        // The exchange waits for rank 1's kernel; the second kernel does not wait for the exchange.
        assert_eq!(seen[1], (tasks[1].op, s(&[3.0, 3.0]), s(&[5.0, 5.0])));
        assert_eq!(seen[2], (tasks[2].op, s(&[1.0, 3.0]), s(&[2.0, 4.0])));
        assert_eq!(ledger.of(Phase::Experts), Seconds(4.0));
        assert_eq!(ledger.of(Phase::Wait), Seconds(2.0));
        assert_eq!(ledger.of(Phase::Combine), Seconds(4.0));
        assert_eq!(ledger.total(), Seconds(10.0));
    }

    /// Kernels take half as long again beside a transfer, and a transfer twice as long beside kernels.
    const SHARED: Beside = Beside { kernels: 0.5, transfers: 1.0 };

    /// A transfer of 4 s from 0 on, and one of 1 s behind it; kernels from 1 on.
    fn two_transfers(is_transfer: bool) -> Links {
        let mut links = Links::new(&s(&[0.0])).beside(SHARED);
        links.occupy(&s(&[0.0]), &s(&[4.0]), is_transfer, Some(0));
        links.occupy(&s(&[4.0]), &s(&[5.0]), is_transfer, Some(1));
        links.free = s(&[5.0]);
        links
    }

    #[test]
    fn kernels_and_transfers_slow_each_other() {
        let kernels = |links: &mut Links, alone: f64| {
            let mut moved = Vec::new();
            let end = links.kernels(0, Seconds(1.0), Seconds(alone), |task, end| moved.push((task, end)));
            (end, moved, links.free[0])
        };
        // 2 s take 3, in which 1.5 of the first transfer's remaining 3 s are done.
        let (end, moved, free) = kernels(&mut two_transfers(true), 2.0);
        assert_eq!((end, free), (Seconds(4.0), Seconds(6.5)));
        assert_eq!(moved, [(0, Seconds(5.5)), (1, Seconds(6.5))]);
        // The first transfer ends at 7 and the second at 9, when 16/3 s of 6 are done.
        let (end, _, free) = kernels(&mut two_transfers(true), 6.0);
        assert!((end - Seconds(9.0 + 2.0 / 3.0)).0.abs() < 1e-12 && free == Seconds(9.0), "{end:?} {free:?}");
        // Exchanges take what they take alone: 4 s beside them, in which 8/3 s of 6 are done.
        let (end, moved, free) = kernels(&mut two_transfers(false), 6.0);
        assert!((end - Seconds(5.0 + 10.0 / 3.0)).0.abs() < 1e-12 && free == Seconds(5.0), "{end:?} {free:?}");
        assert!(moved.is_empty());
        // Nothing takes longer where nothing is shared.
        let mut links = Links::new(&s(&[0.0]));
        links.occupy(&s(&[0.0]), &s(&[4.0]), true, None);
        assert_eq!(links.kernels(0, Seconds(1.0), Seconds(2.0), |_, _| unreachable!()), Seconds(3.0));
    }

    /// A transfer of 4 s beside a gate of 2 s, which takes 3; experts wait for the transfer, which ends at 5.5.
    #[test]
    fn what_waits_for_a_slowed_transfer_waits_longer() {
        let tasks = [
            Task { op: Op::CopyWeights, after: None },
            Task { op: Op::Gate, after: None },
            Task { op: Op::Await, after: Some(0) },
            Task { op: Op::Experts { step: 0 }, after: None },
        ];
        let (durations, mut clock) = (s(&[4.0, 2.0, 0.0, 1.0]), s(&[0.0]));
        let pass = TimedPass { tasks: &tasks, durations: &durations, issue: &[], steps: 1 };
        let (mut links, mut ledger) = (Links::new(&clock).beside(SHARED), Ledger::default());
        Streams::default().run(&pass, &mut clock, &mut Hosts::default(), &mut links, &mut ledger, |_, _, _| ());
        assert_eq!(clock, s(&[6.5]));
        assert_eq!(ledger.of(Phase::ShadowTransfer), Seconds(2.5));
        assert_eq!(ledger.total(), Seconds(6.5));
    }

    /// A program's tasks, and what each takes on each rank: the GPU, and the host.
    #[derive(Clone)]
    struct Drawn {
        tasks: Vec<Task>,
        durations: Vec<Seconds>,
        issue: Vec<Issue>,
    }

    const RANKS: usize = 2;

    /// Some tasks that wait for any earlier ones. Exchanges take hosts time in every second program.
    fn drawn(draw: &mut ChaCha8Rng) -> Drawn {
        let (mut of, number) = (Drawn { tasks: Vec::new(), durations: Vec::new(), issue: Vec::new() }, 9);
        let mut below = |most: usize| draw.next_u32() as usize % most;
        let exchanges = below(2) == 1;
        for index in 0..number {
            let step = 0;
            let ops = [
                Op::Gate,
                Op::Counts,
                Op::Sync,
                Op::Decide { steps: 1 },
                Op::Dispatch { step },
                Op::Experts { step },
                Op::Shadow { expert: 0 },
                Op::Combine { step },
            ];
            let (op, after) = (ops[below(ops.len())], below(index + 1));
            of.tasks.push(Task { op, after: (after < index).then_some(after) });
            let same = Seconds(below(40) as f64);
            for _ in 0..RANKS {
                let (on, own) = (op.stream(), Seconds(below(40) as f64));
                of.durations.push(if on == Stream::Compute { own } else { same });
                let launched = matches!(op, Op::Gate | Op::Experts { .. } | Op::Shadow { .. });
                let [host, lead] = [1 + below(40), below(20)].map(|time| Seconds(time as f64));
                of.issue.push(match on {
                    Stream::Compute if launched => Issue { host, lead },
                    // The first of several calls is a part of all.
                    Stream::Communication if exchanges => Issue { host, lead: lead.min(host) },
                    _ => Issue::default(),
                });
            }
        }
        of
    }

    /// When each rank is done, and its host.
    fn run(of: &Drawn, clock: &[f64], host: &[f64]) -> [Vec<Seconds>; 2] {
        let (mut clock, mut hosts) = (s(clock), Hosts::new(&s(host)));
        let pass = TimedPass { tasks: &of.tasks, durations: &of.durations, issue: &of.issue, steps: 1 };
        let (links, ledger) = (&mut Links::default(), &mut Ledger::default());
        Streams::default().run(&pass, &mut clock, &mut hosts, links, ledger, |_, _, _| ());
        [clock, hosts.clock().to_vec()]
    }

    /// Launch by launch, a thousand for each compute task that is issued: one begins once it is issued, the one before is over and the task's
    /// input is there, and is over no sooner than so far into what the task takes on an idle GPU from when its host begins with it.
    fn launch_by_launch(of: &Drawn, clock: &[f64], host: &[f64]) -> [Vec<f64>; 2] {
        const LAUNCHES: usize = 1000;
        let (mut gpu, mut links, mut host, mut done) = (clock.to_vec(), [0f64; RANKS], host.to_vec(), clock.to_vec());
        let mut finish: Vec<Option<[f64; RANKS]>> = vec![None; of.tasks.len()];
        while let Some(index) = next(of, &finish) {
            let task = &of.tasks[index];
            let before = task.after.and_then(|other| finish[other]);
            let input = |rank: usize| before.map_or(clock[rank], |before| before[rank].max(clock[rank]));
            let (mut end, mut begun, mut called) = ([0f64; RANKS], 0f64, [0f64; RANKS]);
            for rank in 0..RANKS {
                let at = index * RANKS + rank;
                let (run, Issue { host: issue, lead }) = (of.durations[at].0, of.issue[at]);
                end[rank] = match task.op {
                    Op::Gate | Op::Experts { .. } | Op::Shadow { .. } => {
                        let (first, alone) = (host[rank], run + lead.0);
                        for launch in 1..=LAUNCHES {
                            let share = launch as f64 / LAUNCHES as f64;
                            gpu[rank] = gpu[rank].max(host[rank]).max(input(rank)) + run / LAUNCHES as f64;
                            gpu[rank] = gpu[rank].max(first + alone * share);
                            host[rank] += issue.0 / LAUNCHES as f64;
                        }
                        gpu[rank].max(host[rank])
                    }
                    Op::Sync | Op::Decide { .. } => {
                        host[rank] = gpu[rank].max(host[rank]).max(input(rank)) + run;
                        host[rank]
                    }
                    _ => {
                        begun = begun.max(links[rank]).max(input(rank));
                        if issue.0 > 0.0 {
                            begun = begun.max(host[rank] + lead.0);
                            host[rank] += issue.0;
                            called[rank] = host[rank];
                        }
                        run
                    }
                };
            }
            for rank in 0..RANKS {
                match task.op.stream() {
                    Stream::Compute => gpu[rank] = end[rank],
                    _ => {
                        end[rank] = (begun + end[rank]).max(called[rank]);
                        links[rank] = end[rank];
                    }
                }
                if task.op == Op::Counts {
                    host[rank] = host[rank].max(end[rank]);
                }
                done[rank] = done[rank].max(end[rank]);
            }
            finish[index] = Some(end);
        }
        [done, host]
    }

    /// What a host turns to: the first exchange that is left, if what it waits for has been issued, otherwise the first compute task; just
    /// the first of both where exchanges take it no time.
    fn next(of: &Drawn, finish: &[Option<[f64; RANKS]>]) -> Option<usize> {
        let left = |compute: bool| {
            let is_on = |&task: &usize| (of.tasks[task].op.stream() == Stream::Compute) == compute;
            (0..finish.len()).filter(|&task| finish[task].is_none()).find(is_on)
        };
        let exchanges = |task: usize| of.tasks[task].op.stream() == Stream::Communication;
        let follows = (0..finish.len()).any(|task| exchanges(task) && of.issue[task * RANKS].host.0 > 0.0);
        let ready = |&task: &usize| of.tasks[task].after.is_none_or(|other| finish[other].is_some());
        match (left(false), left(true)) {
            (exchange, compute) if follows => exchange.filter(ready).or(compute),
            (Some(exchange), Some(compute)) => Some(exchange.min(compute)),
            (exchange, compute) => exchange.or(compute),
        }
    }

    #[test]
    fn hosts_issue_launch_by_launch() {
        let mut draw = ChaCha8Rng::seed_from_u64(13);
        let mut starved = 0;
        for _ in 0..300 {
            let of = drawn(&mut draw);
            // Hosts have run ahead by different times.
            let (clock, host) = ([50.0, 60.0], [(draw.next_u32() % 50) as f64, 60.0]);
            let (found, plain) = (run(&of, &clock, &host), launch_by_launch(&of, &clock, &host));
            for (found, plain) in found.into_iter().flatten().zip(plain.into_iter().flatten()) {
                assert!((found.0 - plain).abs() < 1.0, "{} for {plain}: {:?}", found.0, of.tasks);
            }
            let at_once = Drawn { issue: vec![Issue::default(); of.issue.len()], ..of.clone() };
            starved += usize::from(run(&of, &clock, &host)[0] != run(&at_once, &clock, &host)[0]);
        }
        assert!((50..300).contains(&starved), "hosts decide in {starved} of 300 programs");
    }

    /// A wait that costs nothing, anywhere: no rank is done sooner.
    #[test]
    fn waits_of_hosts_never_help() {
        let mut draw = ChaCha8Rng::seed_from_u64(14);
        let mut later = 0;
        for _ in 0..1000 {
            let of = drawn(&mut draw);
            let (clock, host) = ([50.0, 60.0], [10.0, 20.0]);
            let mut waiting = of.clone();
            let at = draw.next_u32() as usize % (of.tasks.len() + 1);
            for task in &mut waiting.tasks {
                task.after = task.after.map(|other| if other >= at { other + 1 } else { other });
            }
            let after = (at > 0).then(|| draw.next_u32() as usize % at);
            waiting.tasks.insert(at, Task { op: Op::Sync, after });
            waiting.durations.splice(at * RANKS..at * RANKS, [Seconds::ZERO; RANKS]);
            waiting.issue.splice(at * RANKS..at * RANKS, [Issue::default(); RANKS]);
            let ([before, _], [after, _]) = (run(&of, &clock, &host), run(&waiting, &clock, &host));
            assert!(after.iter().zip(&before).all(|(after, before)| after.0 >= before.0 - 1e-9), "{:?}", waiting.tasks);
            later += usize::from(after != before);
        }
        assert!(later > 100, "{later} of 1000 waits show");
    }

    /// Two schedule groups of one rank: step 0 is a rank with itself, step 1 brings both together.
    #[test]
    fn steps_wait_for_their_own_partners_only() {
        let exchange = |step| Task { op: Op::Dispatch { step }, after: None };
        let mut clock = s(&[0.0, 4.0]);
        let mut run = |step| {
            let pass = TimedPass { tasks: &[exchange(step)], durations: &s(&[1.0, 1.0]), issue: &[], steps: 2 };
            Streams::default().run(
                &pass,
                &mut clock,
                &mut Hosts::default(),
                &mut Links::default(),
                &mut Ledger::default(),
                |_, _, _| (),
            );
            clock.clone()
        };
        assert_eq!(run(0), s(&[1.0, 5.0]));
        assert_eq!(run(1), s(&[6.0, 6.0]));
    }

    /// Links stand idle for 4 s while experts run: of 6 s that the next layer's experts take to be restored, so many are over when it begins, and the
    /// rest goes on from there.
    #[test]
    fn experts_are_restored_while_those_before_run() {
        let task = |op, after| Task { op, after };
        let (dispatch, experts, combine) = (Op::Dispatch { step: 0 }, Op::Experts { step: 0 }, Op::Combine { step: 0 });
        let layer = [task(dispatch, None), task(experts, Some(0)), task(combine, Some(1))];
        let ahead = [task(Op::Unshard, None), task(Op::Await, Some(0)), task(experts, None)];
        let mut links = Links::default();
        let mut run = |tasks: &[Task], durations: &[f64], start: f64| {
            let (mut clock, durations) = (s(&[start]), s(durations));
            let pass = TimedPass { tasks, durations: &durations, issue: &[], steps: 1 };
            Streams::default().run(
                &pass,
                &mut clock,
                &mut Hosts::default(),
                &mut links,
                &mut Ledger::default(),
                |_, _, _| (),
            );
            clock[0].0
        };
        assert_eq!(run(&layer, &[1.0, 4.0, 1.0], 0.0), 6.0);
        assert_eq!(run(&ahead, &[6.0, 0.0, 1.0], 6.0), 9.0);
        // What was idle is used once.
        assert_eq!(run(&ahead, &[6.0, 0.0, 1.0], 9.0), 16.0);
    }

    /// A transfer of 3 s for a pass that starts at 10 s, after one that ended at 8 s: one second of it shows. One of 4 s that
    /// nothing waits for shows where the links are needed next, or at the end.
    #[test]
    fn transfers_run_ahead_of_a_pass_and_end_after_it() {
        let mut links = Links::default();
        let mut ledger = Ledger::default();
        let mut run = |tasks: &[Task], durations: &[f64], start: f64, links: &mut Links| {
            let (mut clock, mut ends) = (s(&[start]), Vec::new());
            let durations = s(durations);
            let pass = TimedPass { tasks, durations: &durations, issue: &[], steps: 1 };
            Streams::default()
                .run(&pass, &mut clock, &mut Hosts::default(), links, &mut ledger, |_, _, end| ends.push(end[0].0));
            (clock[0].0, ends)
        };
        let task = |op, after| Task { op, after };
        let experts = Op::Experts { step: 0 };
        assert_eq!(run(&[task(experts, None)], &[8.0], 0.0, &mut links), (8.0, vec![8.0]));
        let ahead =
            [task(Op::Unshard, None), task(Op::Await, Some(0)), task(experts, None), task(Op::Reshard, Some(2))];
        assert_eq!(run(&ahead, &[3.0, 0.0, 2.0, 4.0], 10.0, &mut links), (13.0, vec![11.0, 11.0, 13.0, 17.0]));
        let exchange = [task(Op::Dispatch { step: 0 }, None)];
        assert_eq!(run(&exchange, &[1.0], 14.0, &mut links.clone()), (18.0, vec![18.0]));
        let mut clock = s(&[15.0]);
        links.drain(&mut clock, &mut ledger);
        assert_eq!(clock, s(&[17.0]));
        // One second before the experts, two at the end.
        assert_eq!(ledger.of(Phase::ShadowTransfer), Seconds(3.0));
    }
}
