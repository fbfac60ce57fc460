//! `moebench calibrate measure`: a cluster's compute constants, measured on this machine.

use std::path::PathBuf;

use clap::Args;

#[cfg(not(feature = "train"))]
use crate::failure::Failure;

/// `moebench calibrate measure`.
#[derive(Args)]
pub struct MeasureArgs {
    /// Cluster, by name or path, whose network and memory are kept
    #[arg(long, value_name = "BASE")]
    pub cluster: String,
    /// Model, by name or path, whose shapes are measured; with --operations, several separated by commas
    #[arg(long, value_delimiter = ',', required = true, value_name = "MODEL")]
    pub model: Vec<String>,
    /// Measure every operation of a step as a line over its units (alone or, of GPUs in several processes, in iterations; behind other work; and until the host has issued it), kernels over sizes and, in processes that a launcher started
    /// and that measure at the same time, collectives and what they take hosts, instead of fitting the constants of the cost model's formulas; figures and samples lie beside the TOML
    #[arg(long)]
    pub operations: bool,
    /// Gate: `no-drop` or `capacity FACTOR`
    #[arg(long, default_value = "no-drop")]
    pub gate: workloads::Gate,
    /// Samples per rank and micro-batch; twice as many are measured, too, and with --operations half as many
    #[arg(long, default_value_t = 1)]
    pub micro_batch_size: usize,
    /// Ranks that take turns on the device, as in an emulated run; of several processes, each is one rank
    #[arg(long, default_value_t = 8)]
    pub ranks: usize,
    /// What computes: `cpu` (one core) or `cuda` (the first GPU)
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// The TOML to write; its name is the cluster's
    #[arg(long, value_name = "FILE.toml")]
    pub out: PathBuf,
}

/// Says how to build a program that can measure.
///
/// # Errors
/// Always.
#[cfg(not(feature = "train"))]
pub fn run(_args: &MeasureArgs) -> Result<(), Failure> {
    Err(Failure::Input(anyhow::anyhow!(
        "calibrate measure: this program was built without libtorch: run scripts/libtorch, then build with \
         `cargo build --features train`"
    )))
}

#[cfg(feature = "train")]
pub use with_torch::run;

#[cfg(feature = "train")]
mod with_torch {
    use std::io::Write;

    use anyhow::{Context, Result, anyhow};
    use tch::Device;
    use workloads::cluster::Constant;
    use workloads::{Cluster, Seconds};

    use super::MeasureArgs;
    use crate::commands::check_extent;
    use crate::failure::{Failure, OrFail};
    use crate::output;
    use runs::engines::train as training;
    use runs::{prepare, report, store};
    use studies::calibrate::constants::Fitted;
    use studies::calibrate::device::Measurement;
    use studies::calibrate::machine::{Request, WAIT};
    use studies::calibrate::segments::{self, MeasuredRun, SegmentTimes};
    use studies::calibrate::write;
    use studies::tables::constants_table;
    use trainer::bench::curves;
    use trainer::comm::launch::{Flags, Launch};

    /// Measures, fits, writes and shows.
    ///
    /// # Errors
    /// Bad input, a model that cannot be trained, or a file that cannot be written.
    pub fn run(args: &MeasureArgs) -> Result<(), Failure> {
        if args.operations {
            return run_operations(args);
        }
        let [model] = &args.model[..] else {
            return Err(Failure::Input(anyhow!(
                "--model: {} models: expected one without --operations",
                args.model.len()
            )));
        };
        let text = prepare::cluster_text("--cluster", &args.cluster).or_input()?;
        let of_file = Cluster::parse(&args.cluster, &text).or_input()?;
        let mut base = of_file.clone();
        // Operations that were measured would be taken for the formulas whose constants are fitted, and peaks are those of the base's GPU.
        base.gpu.measured.clear();
        for constant in [&mut base.gpu.gemm_rate, &mut base.gpu.memory_bandwidth, &mut base.gpu.scatter_bandwidth] {
            constant.peak = None;
        }
        let model = prepare::model("--model", model).or_input()?;
        let device = training::device(&args.device, None).or_input()?;
        check_extent("--micro-batch-size", args.micro_batch_size).or_input()?;
        check_extent("--ranks", args.ranks).or_input()?;
        let (micro_batch, ranks, gate, cluster) = (args.micro_batch_size, args.ranks, args.gate, &base);
        let measurement = Measurement { model: &model, cluster, gate, micro_batch, ranks, processes: None, device };
        measurement.check(Some(training::memory(device).or_input()?)).or_input()?;
        let runs = measurement.runs().or_run()?;
        let (_, fitted) = segments::fit(&base, &runs).or_run()?;
        let wait = curves::wait(device).map_err(anyhow::Error::from).or_run()?;
        let cluster = measured(&base, &fitted, args, device, wait);
        let text = write::updated(&text, &of_file, &cluster).or_run()?;
        store::write_text(&args.out, &text).or_run()?;
        show(args, &cluster, &fitted, &runs).or_run()
    }

    /// Operations, kernels and collectives.
    fn run_operations(args: &MeasureArgs) -> Result<(), Failure> {
        check_extent("--micro-batch-size", args.micro_batch_size).or_input()?;
        check_extent("--ranks", args.ranks).or_input()?;
        let text = prepare::cluster_text("--cluster", &args.cluster).or_input()?;
        let base = Cluster::parse(&args.cluster, &text).or_input()?;
        let models: Result<_> = args.model.iter().map(|name| prepare::model("--model", name)).collect();
        let launch = Launch::from(&Flags::default(), &|variable| std::env::var(variable).ok()).or_input()?;
        let device = training::device(&args.device, launch.as_ref()).or_input()?;
        let (models, name, out) = (models.or_input()?, training::device_name(device), args.out.clone());
        let (gate, micro_batch, ranks) = (args.gate, args.micro_batch_size, args.ranks);
        let request = Request { text, base, models, gate, micro_batch, ranks, launch, device, name, out };
        request.check().or_input()?;
        request.run().or_run()?.map_or(Ok(()), |shown| output::print(shown).or_run())
    }

    /// The base with what was measured, under the name of the file.
    fn measured(base: &Cluster, fitted: &[Fitted], args: &MeasureArgs, device: Device, wait: Seconds) -> Cluster {
        let mut cluster = base.clone();
        let device_name = training::device_name(device);
        let source = format!(
            "measured on {device_name}: compute segments of {} at micro-batch {} and {}, {} ranks in turn",
            args.model[0],
            args.micro_batch_size,
            2 * args.micro_batch_size,
            args.ranks
        );
        write::apply(&mut cluster, fitted, &source);
        for (path, constant) in cluster.constants_mut() {
            if fitted.iter().any(|of| of.name == path && !of.uncertainty.is_finite()) {
                constant.source.push_str("; not determined: too small beside the rest of its segments to be told");
            }
        }
        cluster.host.synchronisation = Constant {
            value: write::rounded(wait.0),
            uncertainty: None,
            peak: None,
            source: format!("measured on {device_name}: {WAIT}"),
        };
        cluster.name = args.out.file_stem().map_or(base.name.clone(), |name| name.to_string_lossy().into_owned());
        cluster.description = format!("Compute of {device_name}; network and memory of {}", base.name);
        cluster.gpu.name = device_name;
        cluster
    }

    fn show(args: &MeasureArgs, cluster: &Cluster, fitted: &[Fitted], runs: &[MeasuredRun]) -> Result<()> {
        let mut out = output::stdout();
        writeln!(out, "{}\n", constants_table(fitted)).context("standard output")?;
        writeln!(out, "{}", lines_table(&segments::lines(cluster, runs, |run| Some(&run.measured))))?;
        writeln!(out, "cluster   {}", args.out.display())?;
        Ok(())
    }

    fn lines_table(lines: &[SegmentTimes]) -> comfy_table::Table {
        let mut table = report::table(&["run", "segment", "predicted ms", "measured ms", "error"], &[2, 3, 4]);
        for line in lines {
            table.add_row([
                line.run.clone(),
                line.segment.clone(),
                format!("{:.3}", line.predicted.0 * 1e3),
                format!("{:.3}", line.measured.0 * 1e3),
                format!("{:+.1}%", (line.predicted.0 / line.measured.0 - 1.0) * 100.0),
            ]);
        }
        table
    }
}
