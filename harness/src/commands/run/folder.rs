//! Where the results of a run go when nobody says: by the suite's name, and a short hash of what was asked for otherwise than the
//! suite has it, so that another seed or filter finds a folder of its own. `results/latest` leads to the last one.

use std::io;
use std::path::{Path, PathBuf};

use runs::provenance::sha256;

use crate::failure::Failure;
use crate::output;

const RESULTS: &str = "results";

/// `results/NAME`, or `results/NAME-HASH` where anything was asked for otherwise.
pub(crate) fn default(name: &str, otherwise: &str) -> PathBuf {
    let hash = sha256(otherwise.as_bytes());
    let name = if otherwise.is_empty() { name.to_owned() } else { format!("{name}-{}", &hash[..8]) };
    Path::new(RESULTS).join(name)
}

/// Lets `results/latest` lead to the folder of a run that took place, also of one that failed: its rows say why. A link that
/// cannot be made is no error.
pub(crate) fn link_latest(folder: &Path, ended: &Result<(), Failure>) {
    let took_place = folder.exists() && !matches!(ended, Err(Failure::Input(_)));
    if took_place && let Err(error) = link(folder) {
        output::say(format_args!("{RESULTS}/latest: {error}"));
    }
}

/// By a new link and a rename, so that it leads somewhere at every moment. What is no link is left as it is.
#[cfg(unix)]
fn link(folder: &Path) -> io::Result<()> {
    let latest = Path::new(RESULTS).join("latest");
    if std::fs::symlink_metadata(&latest).is_ok_and(|found| !found.is_symlink()) {
        return Ok(());
    }
    let new = Path::new(RESULTS).join(format!("latest.{}", std::process::id()));
    std::os::unix::fs::symlink(folder.file_name().unwrap_or_default(), &new)?;
    std::fs::rename(new, latest)
}

#[cfg(not(unix))]
fn link(_: &Path) -> io::Result<()> {
    Ok(())
}
