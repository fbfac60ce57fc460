//! Times one MoE layer on one rank, forward and backward, as a training step runs it, and holds its results against single
//! precision.
//!
//! All experts are on the rank, so exchanges are with itself. What is left out: the rest of a step, of which the trainer's
//! own reports tell.

use std::time::{Duration, Instant};

use serde_json::Value;
use systems::Plain;
use systems::plan::placement::Placement;
use systems::price::cost::CostModel;
use tch::{Device, Kind, Tensor};
use workloads::model::Moe;
use workloads::{Cluster, Gate, Seconds};

use crate::clock::timer::{Timer, synchronize};
use crate::comm::{Communicator, threads};
use crate::cuda::{self, Event, Gpu, Stream};
use crate::error::TrainError;
use crate::host::{to_host, to_scalar};
use crate::kernels;
use crate::layer::experts::Experts;
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

/// A layer and its times.
pub type Measured = (LayerShape, LayerTimes);

/// Every repeat, a line each.
pub fn csv(measured: &[Measured]) -> String {
    let mut text = "width,inner,experts,tokens,top_k,skew,repeat,forward_ms,forward_and_backward_ms\n".to_owned();
    for (shape, times) in measured {
        let LayerShape { tokens, width, inner, experts, top_k, skew } = shape;
        for (repeat, (forward, both)) in times.forward.iter().zip(&times.forward_and_backward).enumerate() {
            let (forward, both) = (forward.0 * 1e3, both.0 * 1e3);
            text += &format!("{width},{inner},{experts},{tokens},{top_k},{skew},{repeat},{forward},{both}\n");
        }
    }
    text
}

/// The columns of [`rows`].
pub const HEADER: [&str; 13] = [
    "layer",
    "tokens",
    "skew",
    "busiest",
    "forward ms",
    "both ms",
    "least",
    "most",
    "TFLOP/s",
    "of peak",
    "outputs",
    "gradients",
    "others, both ms",
];

/// A row per layer: medians of its times, its rate, its distance from single precision, and what other programs took.
pub fn rows(measured: &[Measured], peers: &[Value], peak: f64) -> Vec<Vec<String>> {
    let row = |(shape, times): &Measured| {
        let ([_, forward, _], [least, both, most]) = (spread(&times.forward), spread(&times.forward_and_backward));
        let rate = shape.flops() / (both * 1e-3);
        let [outputs, tokens, experts] = times.errors;
        vec![
            format!("{}x{}x{}", shape.width, shape.inner, shape.experts),
            shape.tokens.to_string(),
            shape.skew.to_string(),
            format!("{:.2}", times.busiest),
            format!("{forward:.3}"),
            format!("{both:.3}"),
            format!("{least:.3}"),
            format!("{most:.3}"),
            format!("{:.0}", rate / 1e12),
            format!("{:.0}%", rate / peak * 100.0),
            format!("{outputs:.1e}"),
            format!("{:.1e}", tokens.max(experts)),
            times_of_peers(peers, shape),
        ]
    };
    measured.iter().map(row).collect()
}

/// What the columns of [`rows`] say.
pub fn legend(peak: f64, device: Device) -> String {
    let clock = if device.is_cuda() { "by events on the GPU" } else { "by the host's clock" };
    let (size, peak) = (peak_size(device), peak / 1e12);
    format!(
        "times      medians {clock}, from the first kernel to the last\n\
         TFLOP/s    12 x tokens x top-k x width x inner / time: the experts' six products alone\n\
         peak       {peak:.1} TFLOP/s, a product of {size} x {size} matrices on this device\n\
         outputs    |x - exact| / |exact|, exact being the same layer in single precision; of gradients, the larger of the\n\
         {:11}tokens' and the experts'\n",
        ""
    )
}

/// Least, median and largest, in milliseconds.
fn spread(times: &[Seconds]) -> [f64; 3] {
    let mut sorted: Vec<f64> = times.iter().map(|time| time.0 * 1e3).collect();
    sorted.sort_by(f64::total_cmp);
    [sorted.first(), sorted.get(sorted.len() / 2), sorted.last()].map(|time| time.copied().unwrap_or(f64::NAN))
}

/// What other programs took for both passes of the layer in milliseconds, by name: of their lines, objects of H, D, E, T and
/// skew (width, inner width, experts, tokens), those that hold a number `fb_ms`.
fn times_of_peers(lines: &[Value], shape: &LayerShape) -> String {
    let number = |value: &Value, key: &str| value.get(key).and_then(Value::as_f64);
    let sizes = [("H", shape.width), ("D", shape.inner), ("E", shape.experts), ("T", shape.tokens)];
    let same = |line: &&Value| {
        sizes.iter().all(|&(key, size)| number(line, key) == Some(size as f64))
            && number(line, "skew") == Some(shape.skew)
    };
    let times = lines.iter().filter(same).filter_map(Value::as_object).flatten();
    let shown = times.filter_map(|(name, of)| Some(format!("{name} {:.2}", number(of, "fb_ms")?)));
    shown.collect::<Vec<_>>().join(", ")
}

/// Outputs, gradient of the tokens, gradients of the experts.
type Results = [Tensor; 3];

/// Times the layer.
///
/// # Errors
/// A GPU that cannot be used.
pub fn layer(shape: LayerShape, device: Device, warmup: usize, repeats: usize) -> Result<LayerTimes, TrainError> {
    if let Device::Cuda(ordinal) = device {
        cuda::load()?;
        kernels::load(ordinal)?;
    }
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

/// Rows and columns of the product that gives the peak.
pub fn peak_size(device: Device) -> i64 {
    if device.is_cuda() { 8192 } else { 1024 }
}

/// Floating-point operations a second of a square product in the kind that the trainer uses on the device: the median of ten.
///
/// # Errors
/// A GPU that cannot be used.
pub fn peak(device: Device) -> Result<f64, TrainError> {
    let size = peak_size(device);
    let draw = |name| initial(1, name, &[size, size], Initial::Normal(1.0), device).to_kind(kind_on(device));
    let (first, second) = (draw("first"), draw("second"));
    let mut times = Vec::new();
    for _ in 0..10 {
        times.push(timed(device, || first.matmul(&second))?.1.0);
    }
    times.sort_by(f64::total_cmp);
    Ok(2.0 * (size as f64).powi(3) / times[times.len() / 2])
}

struct LayerBench {
    shape: LayerShape,
    device: Device,
    layer: Layer,
    gates: Bucket,
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
        let all: Vec<usize> = (0..experts).collect();
        let moe = Moe::plain(tokens, width, inner, experts);
        Self {
            shape,
            device,
            layer: Layer {
                number: 0,
                gate: [0, 1],
                experts: Experts::new(1, 0, &all, moe, 1, kind, device),
                placement: Placement::identity(experts, 1),
            },
            gates: Bucket::new(&gate, kind, device),
            tokens: draw("tokens", &[tokens, width], 1.0).to_kind(kind),
            gradient: draw("gradient", &[tokens, width], 1.0).to_kind(kind),
            group: Box::new(threads::world(1, Duration::from_secs(10)).remove(0)),
            timer: Timer::new(0, None),
            costs: CostModel::new(&Cluster::named("bench", "inky").expect("the cluster is built in"), 1),
        }
    }

    /// One pass, or both: then with their results. `given`: the experts of choices.
    fn run(&self, given: Option<Vec<usize>>, backward: bool) -> Result<Option<Results>, TrainError> {
        // The host's spans of the last repeat.
        self.timer.start();
        let place = self.costs.group(0..1, 1);
        let site = MoeSite {
            timer: &self.timer,
            group: &*self.group,
            policy: &Plain,
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
        let [weight, bias] = [0, 1].map(|index| self.gates.leaf(index).detach().to_kind(Kind::Float));
        let scores = self.tokens.to_kind(Kind::Float).linear(&weight, Some(&bias));
        let (_, chosen) = scores.topk(self.shape.top_k as i64, -1, true, true);
        Ok(to_host::<i64>(&chosen)?.into_iter().map(|expert| expert as usize).collect())
    }

    /// Distances from the same layer, weights and choices in single precision.
    fn errors(&self, results: &Results, chosen: Vec<usize>) -> Result<[f64; 3], TrainError> {
        let exact = Self::new(self.shape, Kind::Float, self.device);
        exact.layer.experts.bucket.weights.shallow_clone().copy_(&self.layer.experts.bucket.weights);
        exact.gates.weights.shallow_clone().copy_(&self.gates.weights);
        exact.tokens.shallow_clone().copy_(&self.tokens);
        exact.gradient.shallow_clone().copy_(&self.gradient);
        let expected = exact.run(Some(chosen), true)?.expect("both passes have results");
        let mut errors = [0.0; 3];
        for ((error, found), expected) in errors.iter_mut().zip(results).zip(&expected) {
            *error = distance(found, expected)?;
        }
        Ok(errors)
    }
}

/// What something took on the device, from before its first kernel to after its last.
fn timed<T>(device: Device, work: impl FnOnce() -> T) -> Result<(T, Seconds), TrainError> {
    if let Device::Cuda(ordinal) = device {
        let gpu = Gpu::open(ordinal)?;
        let (stream, start, end) = (Stream::default_of(gpu), Event::timed(gpu)?, Event::timed(gpu)?);
        synchronize(device);
        start.record(&stream)?;
        let result = work();
        end.record(&stream)?;
        end.synchronize()?;
        return Ok((result, Seconds(end.since(&start)?.as_secs_f64())));
    }
    let start = Instant::now();
    let result = work();
    Ok((result, Seconds(start.elapsed().as_secs_f64())))
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
        let times = layer(shape, Device::Cpu, 1, 3).unwrap();
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
            let times = layer(shape, Device::Cuda(0), 1, 1).unwrap();
            assert!(times.errors.iter().all(|&error| error < 1e-2), "{:?}", times.errors);
        }
    }
}
