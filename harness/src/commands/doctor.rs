//! `moebench doctor`: what this machine has, what it lacks, and what cannot be done without it.

use std::fs;

use crate::failure::{Failure, OrFail};
use crate::output;

/// One thing that is looked for.
struct Finding {
    what: &'static str,
    /// What was found, or why not.
    found: Result<String, String>,
    /// What works with it.
    serves: &'static str,
}

/// Prints what is found. Nothing that is missing is an error: the simulator needs none of it.
///
/// # Errors
/// What cannot be written.
pub fn run() -> Result<(), Failure> {
    for Finding { what, found, serves } in machine().into_iter().chain(training::findings()) {
        let line = match found {
            Ok(found) => format!("ok  {what:<18} {}", found.replace('\n', &format!("\n{:23}", ""))),
            Err(lack) => format!("--  {what:<18} {lack}\n{:23}without it: no {serves}", ""),
        };
        output::print(line).or_run()?;
    }
    Ok(())
}

fn machine() -> Vec<Finding> {
    let cores = std::thread::available_parallelism().map(|cores| cores.to_string()).map_err(|error| error.to_string());
    let memory = fs::read_to_string("/proc/meminfo").map_err(|error| error.to_string()).and_then(|text| memory(&text));
    vec![
        Finding { what: "moebench", found: Ok(env!("CARGO_PKG_VERSION").to_owned()), serves: "simulated suites" },
        Finding { what: "cores", found: cores, serves: "cases side by side" },
        Finding { what: "memory", found: memory, serves: "large suites" },
    ]
}

/// From `/proc/meminfo`, in kB there.
fn memory(text: &str) -> Result<String, String> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").parse::<f64>().ok().map(|kilobytes| kilobytes * 1024.0 / 1e9)
    };
    match (field("MemTotal:"), field("MemAvailable:")) {
        (Some(total), Some(available)) => Ok(format!("{total:.1} GB, {available:.1} GB of it free")),
        _ => Err("not stated by this system".to_owned()),
    }
}

#[cfg(not(feature = "train"))]
mod training {
    use super::Finding;

    pub(super) fn findings() -> Vec<Finding> {
        let found =
            Err("built without the feature `train`: scripts/libtorch, then cargo build --features train".to_owned());
        vec![Finding { what: "trainer", found, serves: "training on real tensors" }]
    }
}

#[cfg(feature = "train")]
mod training {
    use super::Finding;
    use trainer::comm::launch::{Flags, Launch};
    use trainer::comm::nccl;
    use trainer::cuda;

    const GPUS: &str = "training on GPUs";
    const RANKS: &str = "training on several GPUs";

    pub(super) fn findings() -> Vec<Finding> {
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
        let path = cuda::libtorch_path()
            .map_or_else(|| "linked into the program".to_owned(), |path| path.display().to_string());
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
}

#[cfg(test)]
mod tests {
    use super::memory;

    #[test]
    fn memory_is_read_in_gigabytes() {
        let text = "MemTotal:       24000000 kB\nMemFree:  1 kB\nMemAvailable:   12000000 kB\n";
        assert_eq!(memory(text), Ok("24.6 GB, 12.3 GB of it free".to_owned()));
        assert!(memory("").is_err());
    }
}
