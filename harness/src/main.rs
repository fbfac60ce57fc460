//! `moebench`: see [`harness::cli`] for its commands.

use std::process::ExitCode;

fn main() -> ExitCode {
    harness::cli::main()
}
