//! `moebench calibrate measure`: a cluster's compute constants, measured on this machine.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

#[cfg(not(feature = "train"))]
use crate::cli::Failure;

/// `moebench calibrate measure`.
#[derive(Args)]
pub struct MeasureArgs {
    /// Cluster, by name or path, whose network and memory are kept
    #[arg(long, value_name = "BASE")]
    pub cluster: String,
    /// Model, by name or path, whose shapes are measured
    #[arg(long)]
    pub model: String,
    /// Samples per rank and micro-batch; twice as many are measured, too
    #[arg(long, default_value_t = 1)]
    pub micro_batch_size: usize,
    /// Ranks that take turns on the device, as in an emulated run
    #[arg(long, default_value_t = 8)]
    pub ranks: usize,
    /// What computes
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: DeviceKind,
    /// The TOML to write; its name is the cluster's
    #[arg(long, value_name = "FILE.toml")]
    pub out: PathBuf,
}

/// Kinds of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceKind {
    /// One core of the processor.
    Cpu,
    /// The first GPU.
    Cuda,
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

    use anyhow::{Context, Result, ensure};
    use tch::Device;
    use workloads::Cluster;
    use workloads::cluster::Constant;

    use super::{DeviceKind, MeasureArgs};
    use crate::calibrate::constants::Fitted;
    use crate::calibrate::measure::{self, Line, Sample};
    use crate::calibrate::write;
    use crate::cli::{Failure, OrFail};
    use crate::train::measure::{Measurement, synchronisation};
    use crate::validate::tables::constants_table;
    use crate::{prepare, report, store};

    /// Measures, fits, writes and shows.
    ///
    /// # Errors
    /// Bad input, a model that cannot be trained, or a file that cannot be written.
    pub fn run(args: &MeasureArgs) -> Result<(), Failure> {
        let base = prepare::cluster("--cluster", &args.cluster).or_input()?;
        let model = prepare::model("--model", &args.model).or_input()?;
        let device = device(args).or_input()?;
        let (micro_batch, ranks) = (args.micro_batch_size, args.ranks);
        let measurement = Measurement { model: &model, cluster: &base, micro_batch, ranks, device };
        measurement.check(available_memory(device)).or_input()?;
        let samples = measurement.samples().or_run()?;
        let (_, fitted) = measure::fit(&base, &samples).or_run()?;
        let cluster = measured(&base, &fitted, args, device);
        let text = write::toml(&cluster);
        store::write_atomically(&args.out, |file| Ok(file.write_all(text.as_bytes())?)).or_run()?;
        show(args, &cluster, &fitted, &samples).or_run()
    }

    /// Bytes that can be had, where that is easily known.
    fn available_memory(device: Device) -> Option<f64> {
        let info = std::fs::read_to_string("/proc/meminfo").ok().filter(|_| !device.is_cuda())?;
        let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok().map(|kilobytes| kilobytes * 1024.0)
    }

    fn device(args: &MeasureArgs) -> Result<Device> {
        ensure!(args.micro_batch_size > 0, "--micro-batch-size 0: expected at least 1");
        ensure!(args.ranks > 0, "--ranks 0: expected at least 1");
        match args.device {
            DeviceKind::Cpu => Ok(Device::Cpu),
            DeviceKind::Cuda => {
                ensure!(tch::Cuda::is_available(), "--device cuda: libtorch sees no GPU");
                Ok(Device::Cuda(0))
            }
        }
    }

    /// The base with what was measured, under the name of the file.
    fn measured(base: &Cluster, fitted: &[Fitted], args: &MeasureArgs, device: Device) -> Cluster {
        let mut cluster = base.clone();
        let device_name = device_name(device);
        let source = format!(
            "measured on {device_name}: compute segments of {} at micro-batch {} and {}, {} ranks in turn",
            args.model,
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
            value: write::rounded(synchronisation(device).0),
            uncertainty: None,
            peak: None,
            source: format!("measured on {device_name}: median wait for an idle device"),
        };
        cluster.name = args.out.file_stem().map_or(base.name.clone(), |name| name.to_string_lossy().into_owned());
        cluster.description = format!("Compute of {device_name}; network and memory of {}", base.name);
        cluster.gpu.name = device_name;
        cluster
    }

    fn device_name(device: Device) -> String {
        if device.is_cuda() {
            return "GPU 0".to_owned();
        }
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let model = model.map_or("a CPU of unknown model", |(_, model)| model.trim());
        format!("{model}, one core")
    }

    fn show(args: &MeasureArgs, cluster: &Cluster, fitted: &[Fitted], samples: &[Sample]) -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}\n", constants_table(fitted)).context("standard output")?;
        writeln!(out, "{}", lines_table(&measure::lines(cluster, samples)))?;
        writeln!(out, "cluster   {}", args.out.display())?;
        Ok(())
    }

    fn lines_table(lines: &[Line]) -> comfy_table::Table {
        let mut table = report::table(&["run", "segment", "predicted ms", "measured ms", "error"], &[2, 3, 4]);
        for line in lines {
            table.add_row([
                line.sample.clone(),
                line.segment.clone(),
                format!("{:.3}", line.predicted.0 * 1e3),
                format!("{:.3}", line.measured.0 * 1e3),
                format!("{:+.1}%", (line.predicted.0 / line.measured.0 - 1.0) * 100.0),
            ]);
        }
        table
    }
}
