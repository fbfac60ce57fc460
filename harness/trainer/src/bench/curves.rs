//! Kernels alone, over sizes: what a device reaches in matrix products, attention, passes over memory and copies, and what a launch
//! and a wait for the device cost its host.

use tch::{Device, Kind, Tensor};
use workloads::Seconds;

use crate::bench::{begin, timed};
use crate::clock::timer::synchronize;
use crate::error::TrainError;
use crate::setup::kind_on;

/// Repeats that count, after two that do not.
const REPEATS: usize = 9;

/// What the points of a curve are measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// Floating-point operations a second.
    Flops,
    /// Bytes a second, read and written.
    Bytes,
    /// Seconds for each.
    Time,
}

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Product,
    /// A product for each of several experts at once.
    Grouped {
        experts: usize,
    },
    Attention,
    /// Of two tensors.
    Sum,
    /// Rows into another order.
    Rows,
    Copy,
    /// A kernel that does next to nothing.
    Launch,
    /// The host for the device.
    Wait,
}

/// Times of one kind of work over a size.
#[derive(Clone, Debug)]
pub struct Curve {
    pub work: Work,
    /// What runs, with its shape.
    pub name: String,
    /// What the size counts.
    pub size: &'static str,
    pub rate: Rate,
    pub points: Vec<Point>,
}

#[derive(Clone, Debug)]
pub struct Point {
    pub size: f64,
    /// Operations, bytes, or how many were launched.
    pub amount: f64,
    /// Every repeat.
    pub times: Vec<Seconds>,
}

impl Curve {
    /// The median at its last point, for each of what was launched.
    pub fn each(&self) -> Seconds {
        Seconds(self.points.last().map_or(f64::NAN, |point| point.median() / point.amount))
    }
}

impl Point {
    /// The median of its times.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The time below which that share of the repeats is.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted: Vec<f64> = self.times.iter().map(|time| time.0).collect();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        sorted.get((share * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
    }
}

/// The shapes whose products and attention are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shapes {
    /// Width of a token.
    pub width: usize,
    /// Width inside an expert.
    pub inner: usize,
    /// Experts of a rank.
    pub experts: usize,
    pub heads: usize,
    /// Width of a head's keys.
    pub head: usize,
    /// Tokens of a sample.
    pub tokens: usize,
}

/// Times everything on the device.
///
/// # Errors
/// A GPU that cannot be used.
pub fn run(device: Device, shapes: &[Shapes]) -> Result<Vec<Curve>, TrainError> {
    begin(device)?;
    let _guard = tch::no_grad_guard();
    let bench = Bench { device, kind: kind_on(device) };
    let mut curves = Vec::new();
    let attention = |of: &Shapes| (of.heads, of.head, of.tokens);
    for (at, shape) in shapes.iter().enumerate() {
        curves.push(bench.products(shape)?);
        curves.push(bench.grouped(shape)?);
        if shapes[..at].iter().all(|before| attention(before) != attention(shape)) {
            curves.push(bench.attention(shape)?);
        }
    }
    curves.push(bench.elementwise()?);
    curves.push(bench.gathered(shapes.first().map_or(1024, |shape| shape.width))?);
    curves.extend(bench.copies()?);
    curves.push(bench.launches()?);
    curves.push(bench.waits()?);
    Ok(curves)
}

/// What a wait of the host costs: from the end of a kernel that it waits for to the beginning of the next.
///
/// # Errors
/// A GPU that cannot be used.
pub fn wait(device: Device) -> Result<Seconds, TrainError> {
    begin(device)?;
    let _guard = tch::no_grad_guard();
    let waits = Bench { device, kind: kind_on(device) }.waits()?;
    Ok(waits.each())
}

struct Bench {
    device: Device,
    kind: Kind,
}

impl Bench {
    /// Powers of two, up to the larger on a GPU and to the smaller on a CPU.
    fn sizes(&self, first: u32, on_cpu: u32, on_gpu: u32) -> impl Iterator<Item = usize> + use<> {
        (first..=if self.device.is_cuda() { on_gpu } else { on_cpu }).map(|power| 1 << power)
    }

    fn random(&self, shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, self.device)).to_kind(self.kind)
    }

    fn point<T>(&self, size: f64, amount: f64, mut work: impl FnMut() -> T) -> Result<Point, TrainError> {
        let mut times = Vec::with_capacity(REPEATS);
        for repeat in 0..REPEATS + 2 {
            let (done, time) = timed(self.device, &mut work)?;
            drop(done);
            times.extend((repeat >= 2).then_some(time));
        }
        Ok(Point { size, amount, times })
    }

    /// `[rows, width] x [width, inner]`.
    fn products(&self, shape: &Shapes) -> Result<Curve, TrainError> {
        let &Shapes { width, inner, .. } = shape;
        let weights = self.random(&[width as i64, inner as i64]);
        let points = self.sizes(7, 9, 15).map(|rows| {
            let input = self.random(&[rows as i64, width as i64]);
            self.point(rows as f64, 2.0 * (rows * width * inner) as f64, || input.matmul(&weights))
        });
        let name = format!("product, {width} x {inner}");
        Ok(Curve {
            work: Work::Product,
            name,
            size: "rows",
            rate: Rate::Flops,
            points: points.collect::<Result<_, _>>()?,
        })
    }

    /// As many rows for each of several experts, in one grouped product on a GPU.
    fn grouped(&self, shape: &Shapes) -> Result<Curve, TrainError> {
        let &Shapes { width, inner, experts, .. } = shape;
        let weights = self.random(&[experts as i64, width as i64, inner as i64]);
        let points = self.sizes(4, 6, 12).map(|rows| {
            let input = self.random(&[(experts * rows) as i64, width as i64]);
            let ends: Vec<i32> = (1..=experts).map(|expert| (expert * rows) as i32).collect();
            let ends = Tensor::from_slice(&ends).to_device(self.device);
            let work = || match self.device.is_cuda() {
                true => input.internal_grouped_mm(&weights, Some(&ends), None, None),
                false => input.view([experts as i64, rows as i64, width as i64]).bmm(&weights),
            };
            self.point(rows as f64, 2.0 * (experts * rows * width * inner) as f64, work)
        });
        let name = format!("grouped product, {experts} x {width} x {inner}");
        Ok(Curve {
            work: Work::Grouped { experts },
            name,
            size: "rows of an expert",
            rate: Rate::Flops,
            points: points.collect::<Result<_, _>>()?,
        })
    }

    /// Causal attention, forward; its operations are counted as if it were not causal, as the cost model counts them.
    fn attention(&self, shape: &Shapes) -> Result<Curve, TrainError> {
        let &Shapes { heads, head, tokens, .. } = shape;
        let points = self.sizes(0, 1, 4).map(|samples| {
            let draw = || self.random(&[samples as i64, heads as i64, tokens as i64, head as i64]);
            let (q, k, v) = (draw(), draw(), draw());
            let work = || Tensor::scaled_dot_product_attention::<Tensor>(&q, &k, &v, None, 0.0, true, None, false);
            self.point(samples as f64, 4.0 * (samples * heads * tokens * tokens * head) as f64, work)
        });
        let name = format!("attention, {heads} heads of {head}, {tokens} tokens");
        Ok(Curve {
            work: Work::Attention,
            name,
            size: "samples",
            rate: Rate::Flops,
            points: points.collect::<Result<_, _>>()?,
        })
    }

    /// A sum of two tensors: two numbers read and one written.
    fn elementwise(&self) -> Result<Curve, TrainError> {
        let bytes = self.kind.elt_size_in_bytes();
        let points = self.sizes(18, 20, 28).map(|numbers| {
            let (a, b) = (self.random(&[numbers as i64]), self.random(&[numbers as i64]));
            let out = a.empty_like();
            self.point((numbers * bytes) as f64, (3 * numbers * bytes) as f64, || a.f_add_out(&out, &b))
        });
        let (name, size) = ("sum of two tensors".to_owned(), "bytes of a tensor");
        Ok(Curve { work: Work::Sum, name, size, rate: Rate::Bytes, points: points.collect::<Result<_, _>>()? })
    }

    /// Rows in another order: each read and written once.
    fn gathered(&self, width: usize) -> Result<Curve, TrainError> {
        let row = width * self.kind.elt_size_in_bytes();
        let points = self.sizes(10, 11, 16).map(|rows| {
            let input = self.random(&[rows as i64, width as i64]);
            let order = Tensor::randperm(rows as i64, (Kind::Int64, self.device));
            self.point((rows * row) as f64, (2 * rows * row) as f64, || input.index_select(0, &order))
        });
        let (name, size) = (format!("rows of {width} in another order"), "bytes of the rows");
        Ok(Curve { work: Work::Rows, name, size, rate: Rate::Bytes, points: points.collect::<Result<_, _>>()? })
    }

    /// On the device; from the host and to it, its memory being pageable.
    fn copies(&self) -> Result<Vec<Curve>, TrainError> {
        let ways = [
            ("copy on the device", self.device, self.device, 2),
            ("copy to the device", Device::Cpu, self.device, 1),
            ("copy from the device", self.device, Device::Cpu, 1),
        ];
        let ways = ways.into_iter().take(if self.device.is_cuda() { 3 } else { 1 });
        let curve = |(name, from, to, times): (&str, Device, Device, usize)| {
            let points = self.sizes(16, 20, if from == to { 29 } else { 26 }).map(|bytes| {
                let source = Tensor::randint(255, [bytes as i64], (Kind::Uint8, from));
                let mut target = Tensor::zeros([bytes as i64], (Kind::Uint8, to));
                self.point(bytes as f64, (times * bytes) as f64, || target.copy_(&source))
            });
            let points = points.collect::<Result<_, _>>()?;
            Ok(Curve { work: Work::Copy, name: name.to_owned(), size: "bytes", rate: Rate::Bytes, points })
        };
        ways.map(curve).collect()
    }

    /// Kernels that do next to nothing, one after another: what each takes.
    fn launches(&self) -> Result<Curve, TrainError> {
        let mut small = self.random(&[64]);
        let points = [1000usize].map(|number| {
            let mut work = || (0..number).for_each(|_| drop(small.g_add_scalar_(1.0)));
            self.point(number as f64, number as f64, &mut work)
        });
        let points = points.into_iter().collect::<Result<_, _>>()?;
        Ok(Curve { work: Work::Launch, name: "small kernel".to_owned(), size: "kernels", rate: Rate::Time, points })
    }

    /// The host waits for each of many kernels before it launches the next: how much longer that takes than the kernels alone, each time.
    fn waits(&self) -> Result<Curve, TrainError> {
        let (number, numbers) = (100usize, self.sizes(10, 10, 26).last().unwrap_or(1));
        let input = self.random(&[numbers as i64]);
        let out = input.empty_like();
        let kernels = |waiting: &dyn Fn()| {
            for _ in 0..number {
                drop(input.f_add_out(&out, &input));
                waiting();
            }
        };
        let alone = self.point(number as f64, number as f64, || kernels(&|| ()))?;
        let mut point = self.point(number as f64, number as f64, || kernels(&|| synchronize(self.device)))?;
        let least = Seconds(1e-9 * number as f64);
        point.times.iter_mut().for_each(|time| *time = (*time - Seconds(alone.median())).max(least));
        let (name, size) = ("host waits for a kernel".to_owned(), "kernels");
        Ok(Curve { work: Work::Wait, name, size, rate: Rate::Time, points: vec![point] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_have_times_at_every_size() {
        let shapes = Shapes { width: 16, inner: 32, experts: 2, heads: 2, head: 8, tokens: 16 };
        let curves = run(Device::Cpu, &[shapes]).unwrap();
        assert_eq!(curves.len(), 8);
        for curve in &curves {
            assert!(!curve.points.is_empty(), "{}", curve.name);
            for point in &curve.points {
                assert!(point.times.len() == REPEATS && point.median() > 0.0 && point.amount > 0.0, "{curve:?}");
                assert!(point.quantile(0.0) <= point.median() && point.median() <= point.quantile(1.0));
            }
        }
    }
}
