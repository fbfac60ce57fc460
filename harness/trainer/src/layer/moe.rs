//! The MoE layer: forward and backward pass of one micro-batch.
//!
//! Gate, counts and decision are the first tasks of a layer program, but the program follows from the counts: these tasks
//! have run when the rest is executed.

use std::cell::Cell;

use systems::plan::placement::Placement;
use systems::price::cost::CostModel;
use systems::price::network::Group;
use systems::price::{LayerPrice, Setting};
use systems::program::{LayerProgram, Layout, Op, Task};
use systems::{Policy, RoutingCounts};
use tch::{Device, Tensor};
use workloads::Gate;

use crate::clock::pass::PassTimer;
use crate::clock::timer::Timer;
use crate::comm::{CommError, Communicator, Pending};
use crate::error::TrainError;
use crate::host::to_host;
use crate::layer::choices::{Admission, Choices, GpuChoices};
use crate::layer::copies::Transfers;
use crate::layer::execute::execute;
use crate::layer::experts::Experts;
use crate::layer::gate::{self, Choice, Gates, Given, LayerGate, Scored};
use crate::layer::pass::{Backward, Forward, Local, Pass, Shadow, SlotsSaved};
use crate::layer::routing::Routing;
use crate::layer::splits::Splits;
use crate::layer::together::Begun;
use crate::model::parameters::stream;

/// A rank's part of one MoE layer.
pub struct Layer {
    /// Its number among the model's MoE layers.
    pub number: usize,
    pub gate: LayerGate,
    pub experts: Experts,
    /// Of all experts of the group.
    pub placement: Placement,
    /// Whether the experts of the last program ran on all rows at once, as they lie.
    ran_at_once: Cell<bool>,
    /// Whether the rows of the last program lay expert after expert.
    followed: Cell<bool>,
}

/// Where a layer runs one micro-batch.
pub struct MoeSite<'a> {
    /// The expert-parallel group; that of joined replicas, where the policy joins them.
    pub group: &'a dyn Communicator,
    /// Ranks of a replica, one after the other in the group.
    pub ep: usize,
    /// The same ranks: what goes from shards to slots and back.
    pub shards: &'a dyn Communicator,
    /// The layer of the pass after this one, if that restores experts from shards: they are restored ahead of it.
    pub next: Option<&'a Layer>,
    pub timer: &'a Timer,
    pub policy: &'a dyn Policy,
    pub gate: &'a Gate,
    pub top_k: usize,
    /// Factor of the balance loss in the whole loss, for one micro-batch of one rank.
    pub balance: f64,
    /// Where the ranks of the group are.
    pub place: &'a Group,
    /// Prices of exchanges under a virtual clock.
    pub costs: &'a CostModel,
    /// Parameters of all gates.
    pub gates: &'a Gates,
    /// Seed and name of the gate's stream of random numbers.
    pub random: (u64, String),
    /// Where a trace drives the gate.
    pub replay: Option<&'a Given>,
    /// Equal parts of the tokens whose choices are recorded, each apart.
    pub recorded_parts: Option<usize>,
}

/// What a layer did in a forward pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerStats {
    /// `[expert]`: choices of this rank, before any limit.
    pub chosen: Vec<u32>,
    /// `[part * experts]`: the same of every recorded part.
    pub of_parts: Vec<u32>,
    /// `[expert]`: entries of this rank.
    pub entries: Vec<u32>,
    /// Copies of experts made for this micro-batch, shadowed experts among them.
    pub copied: usize,
    /// The balance loss; 0 if the gate has none.
    pub balance: f64,
}

/// Saved for backward.
pub struct Saved {
    program: LayerProgram,
    splits: Splits,
    transfers: Transfers,
    routing: Routing,
    /// `[rows, width]`: the experts' outputs, in the order of this rank's rows.
    outputs: Tensor,
    experts: SlotsSaved,
    shadows: Vec<Shadow>,
    /// Whether what the forward pass restored from shards or brought to copies is in its slots still.
    filled: bool,
    /// Weights of copies for the backward pass, where they are on their way already.
    ahead: Option<Vec<Pending>>,
    /// Under a virtual clock.
    price: Option<LayerPrice>,
}

impl Saved {
    /// Whether weights go to copies for the backward pass and wait for none of its tasks.
    pub fn copies_ahead(&self) -> bool {
        self.program.backward.contains(&Task { op: Op::CopyWeights, after: None })
    }

    /// Of a forward pass that was run again for the backward pass that follows.
    #[must_use]
    pub fn recomputed(mut self) -> Self {
        self.filled = self.program.fills_slots();
        if let Some(price) = &mut self.price {
            price.after_recomputation(&self.program);
        }
        self
    }
}

/// Where the tokens of a micro-batch go.
struct Routed {
    choices: Choices,
    /// Entries of all ranks of the group.
    counts: RoutingCounts,
    stats: LayerStats,
    begun: Option<Begun>,
}

impl Layer {
    pub fn new(number: usize, gate: LayerGate, experts: Experts, placement: Placement) -> Self {
        Self { number, gate, experts, placement, ran_at_once: Cell::new(true), followed: Cell::new(true) }
    }

    /// Starts to restore its experts in their slots, if they are in shards and it is not under way.
    ///
    /// # Errors
    /// A peer that died.
    pub fn restore(&self, group: &dyn Communicator) -> Result<(), CommError> {
        let shards = self.experts.shards.as_ref();
        shards.map_or(Ok(()), |shards| shards.restore(&self.experts.bucket, &self.placement, group))
    }

    /// Starts to bring weights to the copies of a backward pass that comes, whose program copies them ahead of it.
    ///
    /// # Errors
    /// A peer that died.
    pub fn copy_ahead(&self, site: &MoeSite, saved: &mut Saved) -> Result<(), CommError> {
        saved.ahead = Some(vec![saved.transfers.weights(&self.experts, site.group)?]);
        Ok(())
    }

    /// Runs the layer on this rank's `tokens` `[tokens, width]`; returns as many outputs.
    ///
    /// # Errors
    /// A peer that died, a program that cannot be executed.
    pub fn forward(&self, site: &MoeSite, tokens: &Tensor) -> Result<(Tensor, Saved, LayerStats), TrainError> {
        let timer = PassTimer::start(site.timer);
        let Routed { choices, counts, mut stats, begun } = self.route(site, &timer, tokens)?;
        let program =
            timer.compute(Op::Decide { steps: 0 }, || site.policy.program(self.number, &counts, &self.placement));
        let behind = |task: &Task| task.op == Op::Unshard && task.after.is_some();
        if self.experts.shards.is_some() && program.forward.iter().chain(&program.backward).any(behind) {
            let what = "experts restored from shards behind a task of the pass: they are restored ahead of it";
            return Err(TrainError::Program(what.to_owned()));
        }
        let as_they_lie = program.steps == 1 && program.layout == Layout::Ragged && program.shadowed.is_empty();
        self.ran_at_once.set(as_they_lie);
        let splits = Splits::new(&program, &counts, &self.placement, site.place.nodes(), site.group.rank());
        let transfers = Transfers::new(&program, &self.placement, self.experts.size(), site.group.rank());
        self.followed.set(splits.follow_experts(&stats.entries));
        let mut routing = Routing::new(choices, &splits, &stats.entries, program.layout)?;

        let kernel = Forward::new(&splits, self.placement.slots_per_rank(), begun);
        let local = self.local(site, &splits, &transfers);
        let pass = Pass::new(local, kernel, tokens.narrow(0, 0, 0), Shadow::none(&splits));
        let mut pass = pass.permuting(|| routing.permute(tokens));
        if !program.permutes() {
            pass.compute(Op::Permute)?;
        }
        execute(&program.forward, &mut pass, &timer)?;
        let (outputs, Forward { saved, .. }, shadows) = pass.finish()?;
        let result = routing.unpermute(&outputs);

        let times = timer.stop();
        let price = self.price(site, &program, &counts, tokens.size()[0] as usize);
        if let Some(price) = &price {
            times.replay(site.timer, site.group, (&program.forward, program.steps), &price.forward)?;
        }
        stats.copied = program.shadowed.len() + program.copies.len();
        let (filled, ahead) = (false, None);
        let experts = saved;
        let saved = Saved { program, splits, transfers, routing, outputs, experts, shadows, filled, ahead, price };
        Ok((result, saved, stats))
    }

    /// The gradient of the tokens from that of the outputs. Adds to the gradients of the experts and the gate.
    ///
    /// # Errors
    /// As for [`Self::forward`].
    pub fn backward(&self, site: &MoeSite, saved: Saved, gradient: &Tensor) -> Result<Tensor, TrainError> {
        let timer = PassTimer::start(site.timer);
        let Saved { program, splits, transfers, routing, outputs, experts, shadows, filled, ahead, price } = saved;
        if self.experts.is_returning() {
            timer.wait(Op::ReturnGrad, || self.experts.settle(site.group))?;
        }
        let [of_rows, of_weights] = routing.unpermute_backward(gradient, &outputs);

        let local = Local { filled, ..self.local(site, &splits, &transfers) };
        let kernel = Backward { saved: experts, in_parts: splits.parts > 1 };
        let mut pass = Pass::new(local, kernel, of_rows, shadows).with_copies(ahead);
        execute(&program.backward, &mut pass, &timer)?;
        let (of_rows, _, _) = pass.finish()?;
        let of_tokens = routing.permute_backward(site.gates, &of_rows, &of_weights, site.balance);

        let times = timer.stop();
        if let Some(price) = &price {
            times.replay(site.timer, site.group, (&program.backward, program.steps), &price.backward)?;
        }
        Ok(of_tokens)
    }

    /// Chooses the experts of every token, exchanges counts, and drops or moves choices as the gate's capacity and the
    /// system's restriction ask.
    fn route(&self, site: &MoeSite, timer: &PassTimer, tokens: &Tensor) -> Result<Routed, TrainError> {
        let (me, experts) = (site.group.rank(), self.experts.moe().experts);
        let choice = site.replay.map_or(Choice::Learned, Choice::Replayed);
        let mut choices = self.choose(site, tokens, choice, None)?;
        let asked = timer.wait(Op::Counts, || self.ask_for_counts(site, &choices, tokens.device()))?;
        if let (Choices::Gpu(choices), true) = (&mut choices, self.followed.get()) {
            choices.lay_out();
        }
        let begun = self.begin(site, timer, &choices);
        let mut counts = timer.wait_for_counts(|| self.counts(&mut choices, asked))?;
        let begun = begun.map(|begun| begun.of_first(counts.row(me).iter().map(|&entries| entries as usize).sum()));
        let chosen = choices.chosen(experts);
        let of_parts = match site.recorded_parts {
            None => Vec::new(),
            Some(1) => chosen.clone(),
            Some(parts) => choices.of_parts(experts, parts)?,
        };
        let balance = choices.balance_loss()?;
        if let Gate::Switch { .. } = site.gate
            && let Some(capacity) = site.gate.capacity(tokens.size()[0] as usize, site.top_k, experts)
        {
            gate::limit_at_owner(&mut counts, capacity, site.ep);
            choices.limit(counts.row(me));
        }
        let before = counts.row(me).to_vec();
        site.policy.restrict(&mut counts, site.place.nodes());
        if counts.row(me) != before {
            choices = self.redirect(site, tokens, &choices, counts.row(me))?;
        }
        let stats = LayerStats { chosen, of_parts, entries: counts.row(me).to_vec(), copied: 0, balance };
        Ok(Routed { choices, counts, stats, begun })
    }

    /// Scores the tokens and chooses. What becomes entries is what the gate's own limit leaves, or what was `kept` `[tokens * k]` before.
    fn choose(
        &self,
        site: &MoeSite,
        tokens: &Tensor,
        choice: Choice,
        kept: Option<Vec<Option<usize>>>,
    ) -> Result<Choices, TrainError> {
        let mut rng = stream(site.random.0, &site.random.1);
        let admission = Admission { by: site.gate, rng: &rng, kept: kept.as_deref() };
        if let Some(choices) = GpuChoices::new(site.gates, &self.gate, tokens, site.top_k, choice, &admission) {
            return Ok(Choices::Gpu(choices));
        }
        let scored = Scored::new(site.gates, &self.gate, tokens, site.top_k, choice, (site.gate, &mut rng))?;
        let choices = match kept {
            Some(kept) => kept,
            None => scored.admit(site.gate, self.experts.moe().experts, &mut rng)?,
        };
        Ok(Choices::Host { scored, choices })
    }

    /// Where no row leaves its GPU, the experts begin before the host knows the counts and what the program makes of them: in
    /// most programs they run on all rows at once. So the GPU has work while the host waits and decides. A program that pads
    /// rows, takes them in steps or shadows experts drops what was begun; where the layer's last program did, nothing is begun. Nor is
    /// it where counts decide what is dropped.
    fn begin(&self, site: &MoeSite, timer: &PassTimer, choices: &Choices) -> Option<Begun> {
        // Shards and parts are restored by the program.
        let limited_at_owner = matches!(site.gate, Gate::Switch { .. });
        if limited_at_owner || !self.ran_at_once.get() || !self.experts.stand_in_slots() {
            return None;
        }
        let Choices::Gpu(choices) = choices else { return None };
        let (kernels, [rows, ends]) = (self.experts.kernels()?, choices.by_expert()?);
        let in_place = |expert| self.placement.slot_on(0, expert) == Some(expert);
        let serves = site.group.size() == 1 && ends.numel() > 1 && (0..ends.numel()).all(in_place);
        serves.then(|| timer.compute(Op::Experts { step: 0 }, || self.experts.begin(kernels, rows, ends)))
    }

    /// Asks for the entries of all ranks of the group, unless this rank knows them alone.
    fn ask_for_counts(&self, site: &MoeSite, choices: &Choices, device: Device) -> Result<Option<Pending>, TrainError> {
        if let (1, Choices::Gpu(_)) = (site.group.size(), choices) {
            return Ok(None);
        }
        Ok(Some(site.group.all_gather(&choices.counts(self.experts.moe().experts, device))?))
    }

    /// The entries of all ranks of the group, which were `asked` for.
    fn counts(&self, choices: &mut Choices, asked: Option<Pending>) -> Result<RoutingCounts, TrainError> {
        let all = match (asked, choices) {
            (Some(asked), _) => to_host::<i64>(&asked.wait()?)?.into_iter().map(|count| count as u32).collect(),
            (None, Choices::Gpu(choices)) => choices.wait_for_counts(),
            (None, Choices::Host { .. }) => unreachable!("a rank asks for what its GPU does not count"),
        };
        Ok(RoutingCounts::new(self.experts.moe().experts, all))
    }

    /// Moves choices so that every expert has `wanted[expert]`, and scores them again.
    fn redirect(
        &self,
        site: &MoeSite,
        tokens: &Tensor,
        choices: &Choices,
        wanted: &[u32],
    ) -> Result<Choices, TrainError> {
        let (before, mut moved) = (choices.experts()?, choices.entries()?);
        gate::redirect(&mut moved, site.top_k, wanted);
        let experts: Vec<usize> = moved.iter().zip(before).map(|(new, old)| new.unwrap_or(old)).collect();
        let given = Given::new(experts, site.top_k, tokens.device());
        let choice = if site.replay.is_some() { Choice::Replayed(&given) } else { Choice::Moved(&given) };
        self.choose(site, tokens, choice, Some(moved))
    }

    fn local<'a>(&'a self, site: &'a MoeSite, splits: &'a Splits, transfers: &'a Transfers) -> Local<'a> {
        let (&MoeSite { group, shards, next, .. }, Self { experts, placement, .. }) = (site, self);
        Local { group, shards, experts, placement, next, splits, transfers, filled: false }
    }

    /// The prices of the program's tasks, under a virtual clock.
    fn price(
        &self,
        site: &MoeSite,
        program: &LayerProgram,
        counts: &RoutingCounts,
        tokens: usize,
    ) -> Option<LayerPrice> {
        let setting = Setting { moe: self.experts.moe(), tokens, place: site.place, costs: site.costs };
        site.timer.is_virtual().then(|| setting.price(program, counts, &self.placement))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::comm::threads;
    use crate::layer::shards::{Room, Shards};
    use crate::model::parameters::{Bucket, Initial, initial};
    use systems::program::Weights;
    use systems::program::split::Split;
    use systems::{Plain, Storage};
    use tch::Kind;
    use workloads::Cluster;
    use workloads::model::Moe;

    /// A layer of one rank whose gate is far from any tie.
    struct Small {
        moe: Moe,
        tokens: Tensor,
        gates: Gates,
        layer: Layer,
        weight: Tensor,
    }

    impl Small {
        fn new() -> Self {
            Self::of(6, Moe::plain(6, 4, 5, 4), Kind::Float, Device::Cpu)
        }

        fn of(tokens: i64, moe: Moe, kind: Kind, device: Device) -> Self {
            let draw = |name: &str, shape: &[i64], scale| initial(11, name, shape, Initial::Normal(scale), device);
            let width = moe.width as i64;
            let gate = [draw("gate", &[4, width], 60.0), draw("gate bias", &[4], 20.0)];
            let experts = Experts::new(11, 0, &[0, 1, 2, 3].map(Some), moe, 1, kind, device);
            // Far from the initial values, whose outputs are too small to difference.
            let _ = experts.bucket.weights.shallow_clone().g_mul_scalar_(20.0);
            Self {
                moe,
                tokens: draw("tokens", &[tokens, width], 50.0).to_kind(kind),
                gates: Gates::of_scores(Bucket::new(&gate, kind, device)),
                layer: Layer::new(0, LayerGate::plain(0, 1), experts, Placement::identity(4, 1)),
                weight: draw("weight", &[tokens, width], 50.0).to_kind(kind),
            }
        }

        /// The weighted sum of results and the balance loss, and, if asked for, gradients of tokens, gates and experts.
        fn run(&self, gate: &Gate, backward: bool) -> (f64, Option<Tensor>) {
            self.at_site(gate, &Plain, |site| {
                let (result, saved, stats) = self.layer.forward(site, &self.tokens).unwrap();
                let value = f64::try_from((result * &self.weight).sum(Kind::Double)).unwrap() + 0.5 * stats.balance;
                let gradient = backward.then(|| self.layer.backward(site, saved, &self.weight).unwrap());
                (value, gradient)
            })
        }

        fn at_site<T>(&self, gate: &Gate, policy: &dyn Policy, run: impl FnOnce(&MoeSite) -> T) -> T {
            let _guard = tch::no_grad_guard();
            let cluster = Cluster::named("test", "inky").unwrap();
            let costs = CostModel::new(&cluster, 1);
            let place = costs.group(0..1, 1);
            let world = threads::world(1, Duration::from_secs(10)).remove(0);
            let timer = Timer::new(0, None);
            run(&MoeSite {
                timer: &timer,
                group: &world,
                ep: 1,
                shards: &world,
                next: None,
                policy,
                gate,
                top_k: 2,
                balance: 0.5,
                place: &place,
                costs: &costs,
                gates: &self.gates,
                random: (1, "test".to_owned()),
                replay: None,
                recorded_parts: None,
            })
        }

        /// Gradients against differences in every coordinate.
        fn check(&self, gate: &Gate) {
            let of_tokens = self.run(gate, true).1.unwrap();
            let pairs = [
                (&self.tokens, of_tokens),
                (&self.gates.scores.weights, self.gates.scores.gradients().copy()),
                (&self.layer.experts.bucket.weights, self.layer.experts.bucket.gradients().copy()),
            ];
            let _guard = tch::no_grad_guard();
            let step = 1e-2;
            for (at, found) in pairs {
                let largest = f64::try_from(found.abs().max()).unwrap();
                for index in 0..at.numel() as i64 {
                    let moved = |by: f64| {
                        let _ = at.view([-1]).narrow(0, index, 1).g_add_scalar_(by);
                        self.run(gate, false).0
                    };
                    let (up, down) = (moved(step), moved(-2.0 * step));
                    moved(step);
                    let expected = (up - down) / (2.0 * step);
                    let found = f64::try_from(found.view([-1]).get(index)).unwrap();
                    assert!((found - expected).abs() < 5e-3 * largest, "{gate} {index}: {found} {expected}");
                }
            }
        }
    }

    struct InShards;

    impl Policy for InShards {
        fn storage(&self) -> Storage {
            Storage::Shards
        }

        fn program(&self, _layer: usize, _counts: &RoutingCounts, _placement: &Placement) -> LayerProgram {
            LayerProgram::split(Split::Even, Vec::new(), Weights::Sharded, 0)
        }
    }

    /// Three layers in memory for two: a layer's experts begin to be restored in the pass before, and all compute what experts that stand
    /// in slots of their own do.
    #[test]
    fn experts_in_shards_are_restored_ahead_and_do_what_standing_ones_do() {
        let small = Small::new();
        let (moe, device) = (small.moe, Device::Cpu);
        let room = Room::new(4 * moe.expert_parameters() as i64, Kind::Float, device);
        let layer = |number, experts| Layer::new(number, LayerGate::plain(0, 1), experts, Placement::identity(4, 1));
        let numbers = [0, 1, 2];
        let standing = numbers.map(|number| {
            layer(number, Experts::new(11, number, &[0, 1, 2, 3].map(Some), moe, 1, Kind::Float, device))
        });
        let sharded =
            numbers.map(|n| layer(n, Experts::sharded(11, n, room.slots(n, 4, &moe), (0, 1), moe, 1, Kind::Float)));
        let run = |layers: &[Layer; 3], policy: &dyn Policy| {
            small.at_site(&Gate::NoDrop, policy, |site| {
                let restoring = |layer: &Layer| layer.experts.shards.as_ref().is_some_and(Shards::is_restoring);
                let at = |next| MoeSite { next, random: site.random.clone(), replay: None, ..*site };
                let (mut found, mut saved) = (vec![small.tokens.shallow_clone()], Vec::new());
                for (number, layer) in layers.iter().enumerate() {
                    let next = layers.get(number + 1);
                    let (output, kept, _) = layer.forward(&at(next), found.last().unwrap()).unwrap();
                    assert_eq!(next.is_some_and(restoring), next.is_some_and(|next| next.experts.shards.is_some()));
                    assert!(!restoring(layer));
                    found.push(output);
                    saved.push(kept);
                }
                for (number, layer) in layers.iter().enumerate().rev() {
                    let next = number.checked_sub(1).map(|number| &layers[number]);
                    found.push(layer.backward(&at(next), saved.pop().unwrap(), &small.weight).unwrap());
                    assert_eq!(next.is_some_and(restoring), next.is_some_and(|next| next.experts.shards.is_some()));
                }
                layers.iter().filter_map(|layer| layer.experts.shards.as_ref()).for_each(|of| of.settle().unwrap());
                found.extend(layers.iter().map(|layer| layer.experts.state().gradients().copy()));
                found
            })
        };
        for (found, expected) in run(&sharded, &InShards).iter().zip(run(&standing, &Plain)) {
            let largest = f64::try_from(expected.abs().max()).unwrap();
            let apart = f64::try_from((found - expected).abs().max()).unwrap();
            assert!(apart <= 1e-6 * largest && largest > 0.0, "{apart} {largest}");
        }
    }

    /// Plain expert parallelism with its tasks changed.
    struct Changed(fn(&mut Vec<Task>));

    impl Policy for Changed {
        fn program(&self, _layer: usize, _counts: &RoutingCounts, _placement: &Placement) -> LayerProgram {
            let mut program = LayerProgram::grouped();
            self.0(&mut program.forward);
            program
        }
    }

    /// A program without a task for it has its rows put into order before its tasks; one that sends them before that task is refused.
    #[test]
    fn rows_are_put_into_order_before_they_are_sent() {
        let small = Small::new();
        let run = |change: fn(&mut Vec<Task>)| {
            small.at_site(&Gate::NoDrop, &Changed(change), |site| {
                small.layer.forward(site, &small.tokens).map(|of| of.0)
            })
        };
        let without = |tasks: &mut Vec<Task>| {
            let at = tasks.iter().position(|task| task.op == Op::Permute).unwrap();
            tasks.remove(at);
            for task in tasks {
                task.after = task.after.map(|other| if other >= at { other - 1 } else { other });
            }
        };
        assert!(run(|_| ()).unwrap().equal(&run(without).unwrap()));
        let late = |tasks: &mut Vec<Task>| {
            tasks
                .iter_mut()
                .filter(|task| matches!(task.op, Op::Dispatch { .. }))
                .for_each(|task| task.after = Some(0));
        };
        let error = run(late).map(drop).unwrap_err().to_string();
        assert!(error.contains("rows that are needed before they are in order"), "{error}");
    }

    #[test]
    fn a_layers_gradients_agree_with_finite_differences() {
        let small = Small::new();
        assert_eq!(small.moe.experts, 4);
        small.check(&Gate::NoDrop);
        Small::new().check(&Gate::Capacity { factor: 4.0 });
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn experts_that_begin_before_counts_are_known_end_with_the_same_bits() {
        crate::kernels::tests::gpu();
        let small = Small::of(300, Moe::plain(1, 64, 64, 4), Kind::BFloat16, Device::Cuda(0));
        for gate in [Gate::NoDrop, Gate::Capacity { factor: 0.9 }] {
            let run = |begins: bool| {
                small.layer.ran_at_once.set(begins);
                small.layer.followed.set(begins);
                small.at_site(&gate, &Plain, |site| {
                    let (result, saved, stats) = small.layer.forward(site, &small.tokens).unwrap();
                    (result, small.layer.backward(site, saved, &small.weight).unwrap(), stats)
                })
            };
            let (early, late) = (run(true), run(false));
            assert!(early.0.equal(&late.0) && early.1.equal(&late.1) && early.2 == late.2, "{gate}");
            let [chosen, entries]: [u32; 2] = [&late.2.chosen, &late.2.entries].map(|of| of.iter().sum());
            assert_eq!(chosen, 600);
            assert_eq!(entries < chosen, gate != Gate::NoDrop);
        }
    }
}
