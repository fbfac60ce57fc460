//! How far a run is, on standard error: a bar where that is a terminal, a line now and then where it is not.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output;

/// Between two lines, where there is no terminal.
const EVERY: Duration = Duration::from_secs(10);

/// Does `work`, which counts up to `length` iterations, and says how far it is.
pub(crate) fn shown<T>(length: u64, work: impl FnOnce(&ProgressBar) -> T) -> T {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr_with_hz(4));
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} iterations  {elapsed}, about {eta} left") {
        bar.set_style(style);
    }
    if !bar.is_hidden() {
        let done = work(&bar);
        bar.finish_and_clear();
        return done;
    }
    let (ended, end) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let (started, position) = (Instant::now(), || bar.position());
        scope.spawn(move || {
            while end.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                output::say(format_args!("{}", line(position(), length, started.elapsed())));
            }
        });
        let done = work(&bar);
        drop(ended);
        done
    })
}

fn line(position: u64, length: u64, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    let left = match position {
        0 => String::new(),
        _ => format!(", about {:.0} s left", seconds * (length.saturating_sub(position)) as f64 / position as f64),
    };
    format!("{position} of {length} iterations, {seconds:.0} s{left}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_left() {
        let of = |position| line(position, 90, Duration::from_secs(20));
        assert_eq!(of(0), "0 of 90 iterations, 20 s");
        assert_eq!(of(30), "30 of 90 iterations, 20 s, about 40 s left");
        assert_eq!(of(90), "90 of 90 iterations, 20 s, about 0 s left");
    }

    #[test]
    fn what_was_done_is_returned() {
        let done = shown(3, |bar| {
            (0..3).for_each(|_| bar.inc(1));
            bar.position()
        });
        assert_eq!(done, 3);
    }
}
