//! One MoE layer on one rank, forward and backward, as a training step runs it, and its distance from single precision. All
//! experts are on the rank, so exchanges are with itself.

use std::time::Duration;

use systems::Plain;
use systems::plan::placement::Placement;
use systems::price::cost::CostModel;
use tch::{Device, Kind, Tensor};
use workloads::model::Moe;
use workloads::{Cluster, Gate, Seconds};

use crate::bench::{begin, timed};
use crate::clock::timer::Timer;
use crate::comm::{Communicator, threads};
use crate::error::TrainError;
use crate::host::{to_host, to_scalar};
use crate::layer::experts::Experts;
use crate::layer::gate::{Gates, Given, LayerGate};
use crate::layer::moe::{Layer, MoeSite};
use crate::model::parameters::{Bucket, DEVIATION, Initial, initial};
use crate::setup::kind_on;

/// A layer, and what it is given.
#[derive(Clone, Copy, Debug)]
pub struct LayerShape {
    pub tokens: usize,
    pub width: usize,
    pub inner: usize,
    pub experts: usize,
    pub top_k: usize,
    /// Standard deviation of the experts' biases in the gate, where that of a token's scores is 1.
    pub skew: f64,
}

impl LayerShape {
    /// Of `WIDTHxINNERxEXPERTSxTOKENS`; none if that is not what it says, or there are fewer than `top_k` experts.
    pub fn parse(text: &str, top_k: usize, skew: f64) -> Option<Self> {
        let numbers: Vec<usize> = text.split('x').map(str::parse).collect::<Result<_, _>>().ok()?;
        let [width, inner, experts, tokens] = <[usize; 4]>::try_from(numbers).ok()?;
        let fits = [width, inner, experts, tokens, top_k].iter().all(|&number| number > 0) && top_k <= experts;
        fits.then_some(Self { tokens, width, inner, experts, top_k, skew })
    }

    /// Floating-point operations of the experts' products, forward and backward.
    pub fn flops(&self) -> f64 {
        // Three products of each size: output, gradient of the input, gradient of the matrix.
        3.0 * 2.0 * 2.0 * (self.tokens * self.top_k * self.width * self.inner) as f64
    }
}

/// What a layer took and how exact it was.
#[derive(Clone, Debug)]
pub struct LayerTimes {
    /// Of every repeat.
    pub forward: Vec<Seconds>,
    pub forward_and_backward: Vec<Seconds>,
    /// Distance from single precision as a share of it: outputs, gradient of the tokens, gradients of the experts.
    pub errors: [f64; 3],
    /// Entries of the busiest expert over the mean.
    pub busiest: f64,
}

/// Outputs, gradient of the tokens, gradients of the experts.
type Results = [Tensor; 3];

/// Times the layer.
///
/// # Errors
/// A GPU that cannot be used.
pub fn run(shape: LayerShape, device: Device, warmup: usize, repeats: usize) -> Result<LayerTimes, TrainError> {
    begin(device)?;
    let _guard = tch::no_grad_guard();
    let bench = LayerBench::new(shape, kind_on(device), device);
    let mut results = None;
    let mut times =
        LayerTimes { forward: Vec::new(), forward_and_backward: Vec::new(), errors: [0.0; 3], busiest: 0.0 };
    for repeat in 0..warmup + repeats {
        let (_, forward) = timed(device, || bench.run(None, false))?;
        let (of_both, both) = timed(device, || bench.run(None, true))?;
        results = of_both?;
        if repeat >= warmup {
            times.forward.push(forward);
            times.forward_and_backward.push(both);
        }
    }
    let chosen = bench.chosen()?;
    times.busiest = busiest(&chosen, shape.experts);
    if let Some(results) = results {
        times.errors = bench.errors(&results, chosen)?;
    }
    Ok(times)
}

struct LayerBench {
    shape: LayerShape,
    device: Device,
    layer: Layer,
    gates: Gates,
    tokens: Tensor,
    gradient: Tensor,
    group: Box<dyn Communicator>,
    timer: Timer,
    costs: CostModel,
}

impl LayerBench {
    fn new(shape: LayerShape, kind: Kind, device: Device) -> Self {
        let LayerShape { tokens, width, inner, experts, .. } = shape;
        let draw = |name: &str, shape: &[usize], deviation: f64| {
            let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
            initial(1, name, &shape, Initial::Normal(deviation / DEVIATION), device)
        };
        let gate =
            [draw("gate", &[experts, width], 1.0 / (width as f64).sqrt()), draw("gate bias", &[experts], shape.skew)];
        let all: Vec<Option<usize>> = (0..experts).map(Some).collect();
        let moe = Moe::plain(tokens, width, inner, experts);
        Self {
            shape,
            device,
            layer: Layer::new(
                0,
                LayerGate::plain(0, 1),
                Experts::new(1, 0, &all, moe, 1, kind, device),
                Placement::identity(experts, 1),
            ),
            gates: Gates::of_scores(Bucket::new(&gate, kind, device)),
            tokens: draw("tokens", &[tokens, width], 1.0).to_kind(kind),
            gradient: draw("gradient", &[tokens, width], 1.0).to_kind(kind),
            group: Box::new(threads::world(1, Duration::from_secs(10)).remove(0)),
            timer: Timer::new(0, None),
            costs: CostModel::new(&Cluster::named("bench", "inky").expect("the cluster is built in"), 1),
        }
    }

    /// One pass, or both: then with their results. `given`: the experts of choices.
    fn run(&self, given: Option<&Given>, backward: bool) -> Result<Option<Results>, TrainError> {
        // The host's spans of the last repeat.
        self.timer.start();
        let place = self.costs.group(0..1, 1);
        let site = MoeSite {
            timer: &self.timer,
            group: &*self.group,
            ep: 1,
            shards: &*self.group,
            next: None,
            policy: &Plain,
            recorded_parts: None,
            gate: &Gate::NoDrop,
            top_k: self.shape.top_k,
            balance: 0.0,
            place: &place,
            costs: &self.costs,
            gates: &self.gates,
            random: (1, "bench".to_owned()),
            replay: given,
        };
        let bucket = &self.layer.experts.bucket;
        bucket.clear();
        let (outputs, saved, _) = self.layer.forward(&site, &self.tokens)?;
        if !backward {
            return Ok(None);
        }
        let of_tokens = self.layer.backward(&site, saved, &self.gradient)?;
        Ok(Some([outputs, of_tokens, bucket.gradients().shallow_clone()]))
    }

    /// `[tokens * k]`: the experts that have the best scores.
    fn chosen(&self) -> Result<Vec<usize>, TrainError> {
        let [weight, bias] = [0, 1].map(|index| self.gates.scores.leaf(index).detach().to_kind(Kind::Float));
        let scores = self.tokens.to_kind(Kind::Float).linear(&weight, Some(&bias));
        let (_, chosen) = scores.topk(self.shape.top_k as i64, -1, true, true);
        Ok(to_host::<i64>(&chosen)?.into_iter().map(|expert| expert as usize).collect())
    }

    /// Distances from the same layer, weights and choices in single precision.
    fn errors(&self, results: &Results, chosen: Vec<usize>) -> Result<[f64; 3], TrainError> {
        let exact = Self::new(self.shape, Kind::Float, self.device);
        exact.layer.experts.bucket.weights.shallow_clone().copy_(&self.layer.experts.bucket.weights);
        exact.gates.scores.weights.shallow_clone().copy_(&self.gates.scores.weights);
        exact.tokens.shallow_clone().copy_(&self.tokens);
        exact.gradient.shallow_clone().copy_(&self.gradient);
        let expected = exact
            .run(Some(&Given::new(chosen, exact.shape.top_k, exact.tokens.device())), true)?
            .expect("both passes have results");
        let mut errors = [0.0; 3];
        for ((error, found), expected) in errors.iter_mut().zip(results).zip(&expected) {
            *error = distance(found, expected)?;
        }
        Ok(errors)
    }
}

fn busiest(chosen: &[usize], experts: usize) -> f64 {
    let counts = crate::layer::gate::count(chosen.iter().copied(), experts);
    let most = counts.iter().copied().max().unwrap_or(0);
    f64::from(most) * experts as f64 / chosen.len().max(1) as f64
}

/// `|found - expected| / |expected|`.
fn distance(found: &Tensor, expected: &Tensor) -> Result<f64, TrainError> {
    let norm = |tensor: &Tensor| to_scalar::<f64>(&tensor.square().sum(Kind::Double)).map(f64::sqrt);
    Ok(norm(&(found.to_kind(Kind::Float) - expected))? / norm(expected)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_timed_and_exact_in_single_precision() {
        let shape = LayerShape { tokens: 32, width: 16, inner: 24, experts: 4, top_k: 2, skew: 1.5 };
        let times = run(shape, Device::Cpu, 1, 3).unwrap();
        assert_eq!((times.forward.len(), times.forward_and_backward.len()), (3, 3));
        assert!(times.forward.iter().all(|time| time.0 > 0.0) && times.busiest >= 1.0);
        assert!(times.errors.iter().all(|&error| error < 1e-5), "{:?}", times.errors);
        assert_eq!(shape.flops(), 12.0 * 64.0 * 16.0 * 24.0);
    }

    #[test]
    fn shapes_are_read() {
        let shape = LayerShape::parse("16x24x4x32", 2, 1.5).unwrap();
        assert_eq!([shape.width, shape.inner, shape.experts, shape.tokens], [16, 24, 4, 32]);
        for text in ["16x24x4", "16x24x4x32x1", "16x0x4x32", "16x24x1x32", "axbxcxd", ""] {
            assert!(LayerShape::parse(text, 2, 0.0).is_none(), "{text}");
        }
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn on_a_gpu_a_layer_is_as_exact_as_half_precision_is() {
        for skew in [0.0, 2.0] {
            let shape = LayerShape { tokens: 1000, width: 256, inner: 512, experts: 8, top_k: 2, skew };
            let times = run(shape, Device::Cuda(0), 1, 1).unwrap();
            assert!(times.errors.iter().all(|&error| error < 1e-2), "{:?}", times.errors);
        }
    }
}
