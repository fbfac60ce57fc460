//! One MoE layer on one rank: the gate, and the system's layer program on real rows.
//!
//! The forward pass scores and chooses, exchanges counts, asks the policy for the program, lays the rows out and executes the
//! program's tasks; the backward pass executes the program's other half on gradients. Gate, counts and decision are the
//! first tasks of a program, but a program follows from the counts: they have run when the rest is executed.

pub mod execute;
pub mod experts;
pub mod gate;
pub mod migrate;
pub mod passes;
pub mod relay;
pub mod rows;
pub mod shipping;

use systems::iteration::timeline::Activity;
use systems::plan::placement::Placement;
use systems::price::cost::CostModel;
use systems::price::ledger::Ledger;
use systems::price::streams::{Streams, TimedPass};
use systems::price::{GroupPlace, LayerPrice, Setting};
use systems::program::{Exchange, LayerProgram, Op, Stream, Task};
use systems::{Policy, RoutingCounts};
use tch::{Device, Tensor};
use workloads::{Gate, Seconds};

use crate::TrainError;
use crate::clock::Timer;
use crate::comm::{CommError, Communicator};
use crate::layer::experts::Experts;
use crate::layer::gate::{Choice, Scored};
use crate::layer::passes::{Backward, Forward, ShadowsKept, SlotsKept};
use crate::layer::relay::Relay;
use crate::layer::rows::RowMap;
use crate::layer::shipping::Shipping;
use crate::model::parameters::{Bucket, stream};

/// A rank's part of one MoE layer.
pub struct Layer {
    /// Its number among the model's MoE layers.
    pub number: usize,
    /// The gate's parameters in their bucket: weight and bias.
    pub gate: [usize; 2],
    /// The local experts.
    pub experts: Experts,
    /// Where all experts of the group are.
    pub placement: Placement,
}

/// What a layer needs of its surroundings.
pub struct Site<'a> {
    /// The expert-parallel group.
    pub group: &'a dyn Communicator,
    /// The system's online half.
    pub policy: &'a dyn Policy,
    /// Which choices become entries.
    pub gate: &'a Gate,
    /// Choices per token.
    pub top_k: usize,
    /// Factor of the auxiliary loss in the whole loss, for one micro-batch of one rank.
    pub balance: f64,
    /// Where the group's ranks are.
    pub place: &'a GroupPlace,
    /// Prices of exchanges under a virtual clock.
    pub costs: &'a CostModel,
    /// Parameters of the gates.
    pub gates: &'a Bucket,
    /// Streams of random numbers of the gate begin with this.
    pub draw: (u64, String),
    /// The experts of every choice, where a trace drives the gate.
    pub replay: Option<Vec<usize>>,
}

/// What happened in a layer's forward pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Happened {
    /// `[expert]`: choices of this rank, before any limit.
    pub chosen: Vec<u32>,
    /// `[expert]`: its entries.
    pub entries: Vec<u32>,
    /// Experts that the program shadows.
    pub shadowed: usize,
    /// The auxiliary loss, if the gate has one.
    pub balance: f64,
}

/// What the backward pass needs of the forward pass.
pub struct Kept {
    scored: Scored,
    program: LayerProgram,
    shipping: Shipping,
    relay: Option<Relay>,
    price: Option<LayerPrice>,
    rows: RowMap,
    /// `[rows, width]`: results, in the order of rows.
    outputs: Tensor,
    /// `[step][slot]`.
    experts: SlotsKept,
    /// By shadow, in the program's order.
    shadows: ShadowsKept,
}

impl Layer {
    /// Runs the layer on `tokens` `[tokens, width]`.
    ///
    /// # Errors
    /// A rank that died, a program that cannot be executed.
    pub fn forward(&self, site: &Site, timer: &Timer, tokens: &Tensor) -> Result<(Tensor, Kept, Happened), TrainError> {
        let (number, moe) = (tokens.size()[0] as usize, self.experts.moe());
        let ((mut scored, mut choices), mut gate_time) =
            timer.measure(Activity::Op(Op::Gate), || self.choose(site, tokens, site.replay.clone()));
        let own = gate::count(&choices, moe.experts);
        let chosen: Vec<Option<usize>> = scored.experts.iter().copied().map(Some).collect();
        let mut happened = Happened { chosen: gate::count(&chosen, moe.experts), ..Happened::default() };
        if let Some(loss) = &scored.balance {
            happened.balance = f64::try_from(loss).unwrap_or(f64::NAN);
        }
        let mut counts = timer.wait(Activity::Op(Op::Counts), || gather(site.group, &own, tokens.device()))?;
        let me = site.group.rank();
        if let (Gate::Switch { .. }, Some(most)) = (site.gate, site.gate.capacity(number, site.top_k, moe.experts)) {
            gate::limit_at_owner(&mut counts, most);
            gate::limit(&mut choices, counts.row(me));
        }
        let before = counts.row(me).to_vec();
        site.policy.restrict(&mut counts, &site.place.nodes);
        if counts.row(me) != before {
            gate::meet(&mut choices, counts.row(me));
            let experts = choices.iter().zip(&scored.experts).map(|(new, old)| new.unwrap_or(*old)).collect();
            let (again, time) = timer.measure(Activity::Op(Op::Gate), || self.choose(site, tokens, Some(experts)).0);
            scored = again;
            gate_time += time;
        }
        happened.entries = counts.row(me).to_vec();

        let (program, decision_time) = timer.measure(Activity::Op(Op::Decide { steps: 0 }), || {
            site.policy.program(self.number, &counts, &self.placement)
        });
        happened.shadowed = program.shadowed.len();
        let setting = Setting { moe, tokens: number, place: site.place, costs: site.costs };
        let price = timer.is_virtual().then(|| setting.price(&program, &counts, &self.placement));
        let ((shipping, relay, map, rows), layout_time) = timer.measure(Activity::Op(Op::Gate), || {
            let shipping = Shipping::new(&program, &counts, &self.placement, me);
            let nodes = &site.place.nodes;
            let relayed = program.exchange == Exchange::Hierarchical && nodes.first() != nodes.last();
            let relay = relayed.then(|| Relay::new(&program, &counts, &self.placement, nodes, me));
            let map = RowMap::new(&shipping, &choices, &scored, program.layout, tokens.device());
            let rows = map.lay_out(tokens);
            (shipping, relay, map, rows)
        });
        let mut work = Forward::new(self, site.group, &shipping, relay.as_ref(), rows);
        let mut durations = execute::run(&program.forward, &mut work, timer)?;
        let (result, combine_time) = timer.measure(Activity::Op(Op::Gate), || -> Result<_, TrainError> {
            let (outputs, kept_experts, shadows) = work.finish()?;
            Ok((map.gather(&outputs, &scored.weights), outputs, kept_experts, shadows))
        });
        let (result, outputs, kept_experts, shadows) = result?;
        if let Some(price) = &price {
            charge(&program.forward, &mut durations, Op::Gate, gate_time + layout_time + combine_time);
            if let Some(task) = program.forward.iter().position(|task| matches!(task.op, Op::Decide { .. })) {
                durations[task] = decision_time;
            }
            settle(&program.forward, &durations, &price.forward, program.steps, site.group, timer)?;
        }
        let kept = Kept { scored, program, shipping, relay, price, rows: map, outputs, experts: kept_experts, shadows };
        Ok((result, kept, happened))
    }

    fn choose(&self, site: &Site, tokens: &Tensor, given: Option<Vec<usize>>) -> (Scored, Vec<Option<usize>>) {
        let mut rng = stream(site.draw.0, &site.draw.1);
        let choice = match given {
            Some(experts) => Choice::Given(experts),
            None => Choice::Learned(site.gate, &mut rng),
        };
        let scored = Scored::new(site.gates, self.gate, tokens, site.top_k, choice);
        let weights = || {
            let flat = scored.weights.reshape([-1]).to_device(Device::Cpu);
            Vec::try_from(flat).unwrap_or_default()
        };
        let number = self.experts.moe().experts;
        let choices = gate::admit(site.gate, &scored.experts, site.top_k, number, &weights, &mut rng);
        (scored, choices)
    }

    /// The gradient of the layer's input from that of its result; gradients of experts and gate are added to their own.
    ///
    /// # Errors
    /// As for [`Self::forward`].
    pub fn backward(&self, site: &Site, timer: &Timer, kept: Kept, gradient: &Tensor) -> Result<Tensor, TrainError> {
        let Kept { scored, program, shipping, relay, price, rows: map, outputs, experts, shadows } = kept;
        let ((rows, weights), layout_time) = timer.measure(Activity::Op(Op::Gate), || {
            (map.spread(gradient, &scored.weights), map.weight_gradient(gradient, &outputs))
        });
        let mut work = Backward::new(self, site.group, &shipping, relay.as_ref(), rows, (experts, shadows));
        let mut durations = execute::run(&program.backward, &mut work, timer)?;
        let (of_tokens, gate_time) = timer.measure(Activity::Op(Op::Gate), || -> Result<_, TrainError> {
            let through_experts = map.collect(&work.finish()?);
            let through_gate = scored.backward(site.gates, &weights, site.balance);
            Ok(through_experts + through_gate)
        });
        let of_tokens = of_tokens?;
        if let Some(price) = &price {
            charge(&program.backward, &mut durations, Op::Gate, layout_time + gate_time);
            settle(&program.backward, &durations, &price.backward, program.steps, site.group, timer)?;
        }
        Ok(of_tokens)
    }
}

/// Adds time to the first task of that op.
fn charge(tasks: &[Task], durations: &mut [Seconds], op: Op, time: Seconds) {
    if let Some(task) = tasks.iter().position(|task| task.op == op) {
        durations[task] += time;
    }
}

/// Moves a virtual clock over a pass: the streams of all ranks of the group are run with measured times for kernels and
/// prices for exchanges.
fn settle(
    tasks: &[Task],
    measured: &[Seconds],
    prices: &[Seconds],
    steps: usize,
    group: &dyn Communicator,
    timer: &Timer,
) -> Result<(), CommError> {
    let own: Vec<f64> = measured.iter().map(|time| time.0).collect();
    let all = timer.exchange(group, &own)?;
    let ranks = group.size();
    let mut durations = prices.to_vec();
    for (index, task) in tasks.iter().enumerate() {
        // The host's wait for the device is priced: nothing can measure it where the device is shared.
        if task.op.stream() == Stream::Compute && task.op != Op::Sync {
            for (rank, row) in all.iter().enumerate() {
                durations[index * ranks + rank] = Seconds(row[1 + index]);
            }
        }
    }
    let mut clocks: Vec<Seconds> = all.iter().map(|row| Seconds(row[0])).collect();
    let mut ledger = Ledger::default();
    let (me, mut ops) = (group.rank(), Vec::new());
    let seen = |op, start: &[Seconds], end: &[Seconds]| ops.push((op, start[me], end[me]));
    Streams::default().run(&TimedPass { tasks, durations: &durations, steps }, &mut clocks, &mut ledger, seen);
    timer.adopt(ops, clocks[me]);
    Ok(())
}

/// Every rank's counts.
fn gather(group: &dyn Communicator, own: &[u32], device: Device) -> Result<RoutingCounts, CommError> {
    let row: Vec<i64> = own.iter().map(|&count| i64::from(count)).collect();
    let all = group.all_gather(&Tensor::from_slice(&row).to_device(device))?.wait()?;
    let all: Vec<i64> = Vec::try_from(all.reshape([-1]).to_device(Device::Cpu)).unwrap_or_default();
    Ok(RoutingCounts::new(own.len(), all.into_iter().map(|count| count as u32).collect()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::comm::threads;
    use crate::model::parameters::{Initial, initial};
    use systems::Plain;
    use tch::Kind;
    use workloads::Cluster;
    use workloads::model::Moe;

    /// A layer of one rank, whose gate is far from any tie.
    struct Small {
        moe: Moe,
        tokens: Tensor,
        gates: Bucket,
        layer: Layer,
        weight: Tensor,
    }

    impl Small {
        fn new() -> Self {
            let moe = Moe { tokens: 6, width: 4, inner: 5, experts: 4 };
            let draw = |name: &str, shape: &[i64], scale| initial(11, name, shape, Initial::Normal(scale));
            let gate = [draw("gate", &[4, 4], 60.0), draw("gate bias", &[4], 20.0)];
            let experts = Experts::new(11, 0, &[0, 1, 2, 3], moe, 1, Kind::Float, Device::Cpu);
            // Far from the initial values, whose outputs are too small to difference.
            let _ = experts.bucket.weights.shallow_clone().g_mul_scalar_(20.0);
            Self {
                moe,
                tokens: draw("tokens", &[6, 4], 50.0),
                gates: Bucket::new(&gate, Kind::Float, Device::Cpu),
                layer: Layer { number: 0, gate: [0, 1], experts, placement: Placement::identity(4, 1) },
                weight: draw("weight", &[6, 4], 50.0),
            }
        }

        /// The weighted sum of results and the balance loss, and, if asked for, gradients of tokens, gates and experts.
        fn run(&self, gate: &Gate, backward: bool) -> (f64, Option<Tensor>) {
            let _guard = tch::no_grad_guard();
            let cluster = Cluster::named("test", "inky").unwrap();
            let costs = CostModel::new(&cluster);
            let place = GroupPlace { group: costs.group(0..1, 1), nodes: vec![0] };
            let world = threads::world(1, Duration::from_secs(10)).remove(0);
            let site = Site {
                group: &world,
                policy: &Plain,
                gate,
                top_k: 2,
                balance: 0.5,
                place: &place,
                costs: &costs,
                gates: &self.gates,
                draw: (1, "test".to_owned()),
                replay: None,
            };
            let timer = Timer::new(0, None);
            let (result, kept, happened) = self.layer.forward(&site, &timer, &self.tokens).unwrap();
            let value = f64::try_from((result * &self.weight).sum(Kind::Double)).unwrap() + 0.5 * happened.balance;
            let gradient = backward.then(|| self.layer.backward(&site, &timer, kept, &self.weight).unwrap());
            (value, gradient)
        }

        /// Gradients against differences in every coordinate.
        fn check(&self, gate: &Gate) {
            let of_tokens = self.run(gate, true).1.unwrap();
            let pairs = [
                (&self.tokens, of_tokens),
                (&self.gates.weights, self.gates.gradients.copy()),
                (&self.layer.experts.bucket.weights, self.layer.experts.bucket.gradients.copy()),
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

    #[test]
    fn a_layers_gradients_agree_with_finite_differences() {
        let small = Small::new();
        assert_eq!(small.moe.experts, 4);
        small.check(&Gate::NoDrop);
        Small::new().check(&Gate::Capacity { factor: 4.0 });
    }
}
