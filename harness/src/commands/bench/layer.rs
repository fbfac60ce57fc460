//! `moebench bench layer`: shapes x skews of one MoE layer.

use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use tch::Device;
use trainer::bench;
use trainer::bench::layer::{self, LayerShape, LayerTimes};

use super::LayerArgs;
use super::others::{Other, Others};
use super::show::{self, Bars, Spread};
use crate::commands::check_extent;
use crate::failure::{Failure, OrFail};
use crate::output;
use runs::engines::train::device;
use runs::{report, store};

const ON_CPU: &[&str] = &["64x256x8x512"];
const ON_GPU: &[&str] = &["2560x10240x16x8192", "1536x3072x16x8192", "1536x3072x64x8192", "2048x4096x32x16384"];

/// A layer that was timed.
struct Measured {
    shape: LayerShape,
    times: LayerTimes,
    forward: Spread,
    both: Spread,
    others: Vec<Other>,
}

/// # Errors
/// Bad input, a device that cannot be used, files that cannot be written.
pub(super) fn run(args: &LayerArgs) -> Result<(), Failure> {
    let shapes = shapes(args).or_input()?;
    let others = Others::read(&args.bench.compare).or_input()?;
    let device = device(&args.bench.device, None).or_input()?;
    let peak = bench::peak(device).or_run()?;
    let measured: Result<Vec<Measured>> =
        shapes.into_iter().map(|shape| measure(args, shape, device, &others)).collect();
    write(args, &measured.or_run()?, device, peak).or_run()
}

fn shapes(args: &LayerArgs) -> Result<Vec<LayerShape>> {
    check_extent("--repeats", args.bench.repeats)?;
    let default = if args.bench.device == "cpu" { ON_CPU } else { ON_GPU };
    let texts: Vec<&str> = match &args.shapes[..] {
        [] => default.to_vec(),
        given => given.iter().map(String::as_str).collect(),
    };
    let mut shapes = Vec::new();
    for &skew in &args.skews {
        ensure!(skew.is_finite() && skew >= 0.0, "--skews {skew}: expected finite numbers of at least 0");
        for text in &texts {
            let shape = LayerShape::parse(text, args.top_k, skew);
            shapes.push(shape.with_context(|| {
                format!(
                    "--shapes {text}: expected WIDTHxINNERxEXPERTSxTOKENS, with at least --top-k {} experts",
                    args.top_k
                )
            })?);
        }
    }
    Ok(shapes)
}

fn measure(args: &LayerArgs, shape: LayerShape, device: Device, others: &Others) -> Result<Measured> {
    let times = layer::run(shape, device, args.bench.warmup, args.bench.repeats)?;
    let spread = |times| Spread::of(times).context("no repeats");
    let (forward, both) = (spread(&times.forward)?, spread(&times.forward_and_backward)?);
    let sizes = [("H", shape.width), ("D", shape.inner), ("E", shape.experts), ("T", shape.tokens)];
    let mut keys: Vec<(&str, f64)> = sizes.iter().map(|&(key, size)| (key, size as f64)).collect();
    keys.push(("skew", shape.skew));
    Ok(Measured { shape, times, forward, both, others: others.of_layer(&keys) })
}

fn write(args: &LayerArgs, measured: &[Measured], device: Device, peak: f64) -> Result<()> {
    let out = &args.bench.out;
    let text = format!("{}\n\n{}", table(measured, peak), legend(device, peak));
    output::print(&text)?;
    store::write_text(&out.join("layer.txt"), &(text + "\n"))?;
    store::write_text(&out.join("layer.csv"), &csv(measured))?;
    let bars: Vec<Bars> = measured.iter().map(bars).collect();
    let caption = format!(
        "MoE layers alone: medians of {} repeats with their middle 95%, forward and backward. Other programs that take over {HIDES:.0} times ours \
         stand in the table alone.",
        args.bench.repeats
    );
    let label = "MoE layer: width x inner width x experts, tokens";
    store::write_figure(&out.join("layer"), &show::figure(&bars, label, "milliseconds")?, &caption)?;
    output::print(format!("\nresults   {}", out.display()))
}

/// A bar that is this many times ours would hide all the others.
const HIDES: f64 = 4.0;

fn bars(of: &Measured) -> Bars {
    let others = of.others.iter().filter(|(_, ms)| *ms < HIDES * of.both.median).cloned().collect();
    let (panel, label) = (format!("skew {}", of.shape.skew), format!("{}, {}", name(&of.shape), of.shape.tokens));
    Bars { panel, label, own: of.both, others }
}

fn name(shape: &LayerShape) -> String {
    format!("{}x{}x{}", shape.width, shape.inner, shape.experts)
}

const HEADER: [&str; 12] = [
    "layer",
    "tokens",
    "skew",
    "busiest",
    "forward ms",
    "both ms",
    "middle 95%",
    "TFLOP/s",
    "of peak",
    "outputs",
    "gradients",
    "others, both ms (ours / theirs)",
];

fn table(measured: &[Measured], peak: f64) -> comfy_table::Table {
    let mut table = report::table(&HEADER, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    for of in measured {
        let rate = of.shape.flops() / (of.both.median * 1e-3);
        let [outputs, tokens, experts] = of.times.errors;
        table.add_row([
            name(&of.shape),
            of.shape.tokens.to_string(),
            of.shape.skew.to_string(),
            format!("{:.2}", of.times.busiest),
            format!("{:.3}", of.forward.median),
            format!("{:.3}", of.both.median),
            of.both.interval(),
            format!("{:.3}", rate / 1e12),
            format!("{:.0}%", rate / peak * 100.0),
            format!("{outputs:.1e}"),
            format!("{:.1e}", tokens.max(experts)),
            show::beside(of.both.median, &of.others),
        ]);
    }
    table
}

fn legend(device: Device, peak: f64) -> String {
    let clock = if device.is_cuda() { "by events on the GPU" } else { "by the host's clock" };
    format!(
        "times      medians {clock}, from the first kernel to the last\n\
         busiest    entries of the busiest expert over the mean\n\
         TFLOP/s    12 x tokens x top-k x width x inner / time: the experts' six products alone\n\
         peak       {}\n\
         outputs    |x - exact| / |exact|, exact being the same layer in single precision; of gradients, the larger of the\n\
         {:11}tokens' and the experts'",
        show::peak_note(device, peak),
        ""
    )
}

/// Every repeat, a line each.
fn csv(measured: &[Measured]) -> String {
    let mut text = "width,inner,experts,tokens,top_k,skew,repeat,forward_ms,forward_and_backward_ms\n".to_owned();
    for Measured { shape, times, .. } in measured {
        let LayerShape { tokens, width, inner, experts, top_k, skew } = shape;
        for (repeat, (forward, both)) in times.forward.iter().zip(&times.forward_and_backward).enumerate() {
            let (forward, both) = (forward.0 * 1e3, both.0 * 1e3);
            let line = format!("{width},{inner},{experts},{tokens},{top_k},{skew},{repeat},{forward:.4},{both:.4}");
            let _ = writeln!(text, "{line}");
        }
    }
    text
}
