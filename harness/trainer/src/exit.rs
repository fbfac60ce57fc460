//! The end of a process.

use std::ffi::c_int;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether threads that use libraries may still run when the process has done its work.
static AT_ONCE: AtomicBool = AtomicBool::new(false);

/// From now on this process ends at once: it has communicators, whose threads may still be ending them.
pub(crate) fn at_once() {
    AT_ONCE.store(true, Ordering::SeqCst);
}

/// Ends a process that has done its work, or in which something has failed.
pub fn end(status: u8) -> ExitCode {
    if status != 0 || AT_ONCE.load(Ordering::SeqCst) {
        leave(status);
    }
    ExitCode::SUCCESS
}

/// Ends a process at once: what libraries run when one ends in order takes from under other threads what they use (processes of four GPUs and of
/// eight were seen to end by a segmentation fault, all their work done).
pub(crate) fn leave(status: u8) -> ! {
    unsafe extern "C" {
        fn _exit(status: c_int) -> !;
    }
    let _ = io::stdout().flush();
    // SAFETY: POSIX; nothing is run.
    unsafe { _exit(c_int::from(status)) }
}
