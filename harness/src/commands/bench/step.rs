//! `moebench bench step`: models x micro-batches of one training step.

use std::fmt::Write;

use anyhow::{Context, Result};
use systems::price::ledger::Phase;
use tch::{Device, Kind};
use trainer::bench;
use trainer::bench::step::{StepShape, StepTimes};

use super::StepArgs;
use super::others::{Other, Others};
use super::show::{self, Bars, Spread};
use crate::commands::check_extent;
use crate::failure::{Failure, OrFail};
use crate::output;
use runs::engines::train::device;
use runs::summary::statistics::median;
use runs::{prepare, report, store};

/// A step that was timed.
struct Measured {
    shape: StepShape,
    experts: usize,
    times: StepTimes,
    step: Spread,
    /// Distance of the last loss that was also computed in single precision, as a share of it.
    loss: Option<f64>,
    others: Vec<Other>,
}

/// # Errors
/// Bad input, a device that cannot be used, files that cannot be written.
pub(super) fn run(args: &StepArgs) -> Result<(), Failure> {
    let shapes = shapes(args).or_input()?;
    let others = Others::read(&args.bench.compare).or_input()?;
    let device = device(&args.bench.device, None).or_input()?;
    let peak = bench::peak(device).or_run()?;
    let measured: Result<Vec<Measured>> =
        shapes.into_iter().map(|shape| measure(args, shape, device, &others)).collect();
    write(args, &measured.or_run()?, device, peak).or_run()
}

fn shapes(args: &StepArgs) -> Result<Vec<StepShape>> {
    for (flag, value) in [("--repeats", args.bench.repeats), ("--global-batch-size", args.global_batch_size)] {
        check_extent(flag, value)?;
    }
    let system = prepare::system("--system", &args.system)?;
    let micro_batches = match &args.micro_batch_size[..] {
        [] => vec![args.global_batch_size],
        given => given.to_vec(),
    };
    let mut shapes = Vec::new();
    for name in &args.model {
        let model = prepare::model("--model", name)?;
        for &micro_batch in &micro_batches {
            check_extent("--micro-batch-size", micro_batch)?;
            let global_batch = args.global_batch_size;
            shapes.push(StepShape { model: model.clone(), system, global_batch, micro_batch });
        }
    }
    Ok(shapes)
}

fn measure(args: &StepArgs, shape: StepShape, device: Device, others: &Others) -> Result<Measured> {
    let times = shape.run(device, None, args.bench.warmup, args.bench.repeats)?;
    let exact = match args.exact {
        0 => None,
        iterations => Some(shape.run(device, Some(Kind::Float), 0, iterations)?),
    };
    let last = exact.and_then(|exact| exact.losses.last().map(|&loss| (exact.losses.len() - 1, loss)));
    let loss = last.and_then(|(at, exact)| Some((times.losses.get(at)? - exact).abs() / exact));
    let step = Spread::of(&times.steps).context("no repeats")?;
    let experts = shape.model.moe_layers().map(|moe| moe.experts).max().unwrap_or(1);
    let keys = [("world", 1.0), ("experts", experts as f64), ("micro_batch", shape.micro_batch as f64)];
    Ok(Measured { experts, times, step, loss, others: others.of_step(&keys), shape })
}

fn write(args: &StepArgs, measured: &[Measured], device: Device, peak: f64) -> Result<()> {
    let out = &args.bench.out;
    let text = format!("{}\n\n{}\n\n{}", table(measured, peak), phases(measured), legend(args, device, peak));
    output::print(&text)?;
    store::write_text(&out.join("step.txt"), &(text + "\n"))?;
    store::write_text(&out.join("step.csv"), &csv(measured))?;
    let bars: Vec<Bars> = measured.iter().map(bars).collect();
    let caption = format!("Training steps: medians of {} with their middle 95%.", args.bench.repeats);
    store::write_figure(&out.join("step"), &show::figure(&bars, "experts, micro-batch", "milliseconds")?, &caption)?;
    output::print(format!("\nresults   {}", out.display()))
}

fn bars(of: &Measured) -> Bars {
    let label = format!("{}, {}", of.experts, of.shape.micro_batch);
    Bars { panel: String::new(), label, own: of.step, others: of.others.clone() }
}

const HEADER: [&str; 10] = [
    "model",
    "experts",
    "micro-batch",
    "step ms",
    "middle 95%",
    "first s",
    "TFLOP/s",
    "of peak",
    "loss",
    "others, ms (ours / theirs)",
];

fn table(measured: &[Measured], peak: f64) -> comfy_table::Table {
    let mut table = report::table(&HEADER, &[1, 2, 3, 4, 5, 6, 7, 8]);
    for of in measured {
        let rate = of.shape.flops() / (of.step.median * 1e-3);
        table.add_row([
            of.shape.model.name.clone(),
            of.experts.to_string(),
            of.shape.micro_batch.to_string(),
            format!("{:.2}", of.step.median),
            of.step.interval(),
            format!("{:.1}", of.times.first.0),
            format!("{:.3}", rate / 1e12),
            format!("{:.0}%", rate / peak * 100.0),
            of.loss.map_or("-".into(), |loss| format!("{loss:.1e}")),
            show::beside(of.step.median, &of.others),
        ]);
    }
    table
}

/// Where steps go: medians, in milliseconds.
fn phases(measured: &[Measured]) -> comfy_table::Table {
    let of = |of: &Measured, phase| {
        let times: Vec<f64> = of.times.ledgers.iter().map(|ledger| ledger.of(phase).0 * 1e3).collect();
        median(&times).unwrap_or(0.0)
    };
    let shown: Vec<Phase> =
        Phase::ALL.into_iter().filter(|&phase| measured.iter().any(|m| of(m, phase) >= 0.005)).collect();
    let names: Vec<String> = shown.iter().map(|phase| format!("{phase:?} ms")).collect();
    let header: Vec<&str> = ["experts", "micro-batch"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let right: Vec<usize> = (0..header.len()).collect();
    let mut table = report::table(&header, &right);
    for m in measured {
        let first = [m.experts.to_string(), m.shape.micro_batch.to_string()];
        table.add_row(first.into_iter().chain(shown.iter().map(|&phase| format!("{:.2}", of(m, phase)))));
    }
    table
}

fn legend(args: &StepArgs, device: Device, peak: f64) -> String {
    format!(
        "step       {} samples of evenly drawn tokens under {}: forward, backward, optimizer\n\
         first      until the first iteration is over: values are drawn, kernels compiled\n\
         TFLOP/s    3 x (2 x active parameters in products + attention's scores) a token / time; nothing recomputed counts\n\
         peak       {}\n\
         loss       |x - exact| / |exact| of iteration {}, exact being the same in single precision",
        args.global_batch_size,
        args.system,
        show::peak_note(device, peak),
        args.exact
    )
}

/// Every repeat, a line each.
fn csv(measured: &[Measured]) -> String {
    let mut text = "model,experts,global_batch,micro_batch,repeat,step_ms\n".to_owned();
    for of in measured {
        let (name, StepShape { global_batch, micro_batch, .. }) = (&of.shape.model.name, &of.shape);
        for (repeat, step) in of.times.steps.iter().enumerate() {
            let line = format!("{name},{},{global_batch},{micro_batch},{repeat},{:.4}", of.experts, step.0 * 1e3);
            let _ = writeln!(text, "{line}");
        }
    }
    text
}
