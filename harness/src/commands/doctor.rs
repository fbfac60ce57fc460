//! `moebench doctor`: what this machine has, what it lacks, and what cannot be done without it.

use crate::failure::{Failure, OrFail};
use crate::output;
use runs::engines::train;
use runs::machine::{Finding, Memory};

/// Prints what is found. Nothing that is missing is an error: the simulator needs none of it.
///
/// # Errors
/// What cannot be written.
pub fn run() -> Result<(), Failure> {
    for Finding { what, found, serves } in host().into_iter().chain(train::findings()) {
        let line = match found {
            Ok(found) => format!("ok  {what:<18} {}", found.replace('\n', &format!("\n{:23}", ""))),
            Err(lack) => format!("--  {what:<18} {lack}\n{:23}without it: no {serves}", ""),
        };
        output::print(line).or_run()?;
    }
    Ok(())
}

fn host() -> Vec<Finding> {
    let cores = std::thread::available_parallelism().map(|cores| cores.to_string()).map_err(|error| error.to_string());
    let gigabytes =
        |memory: Memory| format!("{:.1} GB, {:.1} GB of it free", memory.total / 1e9, memory.available / 1e9);
    let memory = Memory::of_host().map(gigabytes).ok_or_else(|| "not stated by this system".to_owned());
    vec![
        Finding { what: "moebench", found: Ok(env!("CARGO_PKG_VERSION").to_owned()), serves: "simulated suites" },
        Finding { what: "cores", found: cores, serves: "cases side by side" },
        Finding { what: "memory", found: memory, serves: "large suites" },
    ]
}
