//! Files that are complete or absent.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Lets `write` fill a temporary file in the folder of `path`, flushes it to disk and renames it to `path`. Creates the
/// folder if it is missing. The temporary file is removed when anything fails.
pub(crate) fn write_atomically(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = Path::new(&temporary);
    let written =
        write(temporary).and_then(|()| File::open(temporary)?.sync_all()).and_then(|()| fs::rename(temporary, path));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = std::env::temp_dir().join(format!("moebench-files-{}", std::process::id()));
        let path = folder.join("inner/file");
        write_atomically(&path, |temporary| fs::write(temporary, "old")).unwrap();
        let failed = write_atomically(&path, |temporary| {
            fs::write(temporary, "half")?;
            Err(io::Error::other("the disk is full"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "the disk is full");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        fs::remove_dir_all(folder).unwrap();
    }
}
