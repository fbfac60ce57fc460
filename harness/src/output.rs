//! Standard output, whose reader may leave early: `moebench list | head` is no error. What the command writes to files is
//! written all the same.

use std::fmt::Display;
use std::io::{self, ErrorKind, StdoutLock, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
pub use runs::say;

/// Characters of a line of wide tables.
pub const WIDTH: u16 = 100;

/// Refuses a file to write that is there already, unless it may be replaced.
///
/// # Errors
/// The file, and what would replace it.
pub fn refuse_to_replace(path: &Path, overwrite: bool) -> Result<()> {
    ensure!(overwrite || !path.exists(), "{}: is there already: --overwrite replaces it", path.display());
    Ok(())
}

/// Locked standard output that a reader may stop reading.
pub struct Output(StdoutLock<'static>);

pub fn stdout() -> Output {
    Output(io::stdout().lock())
}

/// Prints a text and ends the line.
///
/// # Errors
/// What cannot be written, for any reason but a reader that has left.
pub fn print(text: impl Display) -> Result<()> {
    writeln!(stdout(), "{text}").context("standard output")
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        unless_left(self.0.write(bytes), bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        unless_left(self.0.flush(), ())
    }
}

/// What was written for a reader that has left counts as written.
fn unless_left<T>(result: io::Result<T>, done: T) -> io::Result<T> {
    match result {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(done),
        other => other,
    }
}
