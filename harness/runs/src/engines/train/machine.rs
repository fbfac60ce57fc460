//! What a machine has of what training needs.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use tch::Device;
use trainer::comm::launch::{Flags, Launch};
use trainer::comm::nccl;
use trainer::cuda;

use crate::machine::{Finding, Memory};

/// Bytes that ranks on a device can have together.
///
/// # Errors
/// What the GPU's driver says.
pub fn memory(device: Device) -> Result<f64> {
    if let Device::Cuda(ordinal) = device {
        let memory = cuda::Gpu::open(ordinal)?.memory().context("the GPU's memory")?;
        return Ok((memory.total - memory.used) as f64);
    }
    // Where the system does not tell, nothing is refused.
    Ok(Memory::of_host().map_or(f64::INFINITY, |memory| memory.available))
}

/// What a rank runs on.
pub fn device_name(device: Device) -> String {
    if device.is_cuda() {
        return cuda::device_names().into_iter().next().unwrap_or_else(|| "a GPU of unknown model".to_owned());
    }
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("a CPU of unknown model", |(_, model)| model.trim());
    format!("{model}, one core")
}

/// Versions of what trains on a device, by name; those that do not tell are left out.
pub(super) fn libraries(device: Device, by_processes: bool) -> BTreeMap<String, String> {
    let mut versions = vec![("libtorch", Ok(cuda::libtorch_version()))];
    if device.is_cuda() {
        versions.push(("CUDA driver", driver()));
        if by_processes {
            versions.push(("NCCL", nccl::version()));
        }
    }
    versions.into_iter().filter_map(|(name, version)| Some((name.to_owned(), version.ok()?))).collect()
}

const GPUS: &str = "training on GPUs";
const RANKS: &str = "training on several GPUs";

/// What `moebench doctor` says of libtorch, GPUs and launchers.
pub fn findings() -> Vec<Finding> {
    vec![
        Finding { what: "libtorch", found: libtorch(), serves: "training on real tensors" },
        Finding { what: "ranks", found: launch(), serves: "training by several processes" },
        Finding { what: "CUDA driver", found: driver(), serves: GPUS },
        Finding { what: "GPUs", found: gpus(), serves: GPUS },
        Finding { what: "libtorch for GPUs", found: library(), serves: GPUS },
        Finding { what: "NCCL", found: nccl::version(), serves: RANKS },
    ]
}

fn libtorch() -> Result<String, String> {
    let path =
        cuda::libtorch_path().map_or_else(|| "linked into the program".to_owned(), |path| path.display().to_string());
    Ok(format!("{}, {path}, {} threads", cuda::libtorch_version(), tch::get_num_threads()))
}

/// What the launcher's variables say.
fn launch() -> Result<String, String> {
    let launch = Launch::from(&Flags::default(), &|variable| std::env::var(variable).ok());
    Ok(match launch.map_err(|error| error.to_string())? {
        None => "no launcher: one process, ranks as its threads".to_owned(),
        Some(Launch { rank, size, master_address, master_port, launcher, .. }) => {
            format!("rank {rank} of {size} by {launcher}, rank 0 at {master_address}:{master_port}")
        }
    })
}

fn driver() -> Result<String, String> {
    let cuda = cuda::driver_version().ok_or_else(|| cuda::CudaError::NoDriver.to_string())?;
    Ok(cuda::kernel_driver_version().map_or(format!("CUDA {cuda}"), |release| format!("{release}, CUDA {cuda}")))
}

fn gpus() -> Result<String, String> {
    let names = cuda::device_names();
    let memory = |ordinal: usize| cuda::Gpu::open(ordinal).and_then(|gpu| gpu.memory());
    let describe = |(ordinal, name): (usize, &String)| match memory(ordinal) {
        Ok(memory) => {
            format!("{name}, {:.1} of {:.1} GB used", memory.used as f64 / 1e9, memory.total as f64 / 1e9)
        }
        Err(error) => format!("{name}: {error}"),
    };
    let lines: Vec<String> = names.iter().enumerate().map(describe).collect();
    if lines.is_empty() { Err("none".to_owned()) } else { Ok(lines.join("\n")) }
}

fn library() -> Result<String, String> {
    match cuda::driver_version() {
        // Without a driver it would not work; that it lies there is worth knowing.
        None => cuda::find().map(|path| format!("{}, not tried without a driver", path.display())),
        Some(_) => cuda::load().map(|path| path.display().to_string()),
    }
    .map_err(|error| error.to_string())
}
