//! Finds and opens the GPU half of libtorch.

use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::device::driver_version;
use super::{CudaError, LIBRARY};

/// Opens the GPU half of libtorch, once; later calls return the same result. Must be called before anything asks libtorch for a
/// GPU: libtorch remembers that there was none.
///
/// # Errors
/// What is missing, where it was searched, and what to do.
pub fn load() -> Result<&'static Path, CudaError> {
    static LOADED: OnceLock<Result<PathBuf, CudaError>> = OnceLock::new();
    LOADED.get_or_init(load_once).as_deref().map_err(Clone::clone)
}

fn load_once() -> Result<PathBuf, CudaError> {
    let driver = driver_version().ok_or(CudaError::NoDriver)?;
    let path = find()?;
    // SAFETY: what runs when it is opened is libtorch's own set-up.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
    let library =
        library.map_err(|error| CudaError::NotLoaded { path: path.clone(), reason: loader_message(&error) })?;
    // Its kernels are in use until the end.
    std::mem::forget(library);
    if tch::Cuda::is_available() { Ok(path) } else { Err(CudaError::NoGpu { path, driver }) }
}

/// The loader's own message; the error names only the call that failed.
pub(crate) fn loader_message(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// Finds the GPU half of libtorch.
///
/// # Errors
/// It is nowhere, or has another version.
pub fn find() -> Result<PathBuf, CudaError> {
    let wanted = libtorch_version();
    let mut searched = Vec::new();
    let mut other_version = None;
    for folder in folders() {
        let path = folder.join(LIBRARY);
        if path.exists() {
            match version_beside(&folder) {
                Some(found) if release(&found) != wanted => {
                    let wanted = wanted.clone();
                    other_version.get_or_insert(CudaError::Version { path, found, wanted });
                }
                _ => return Ok(path),
            }
        }
        searched.push(folder);
    }
    Err(other_version.unwrap_or(CudaError::NoLibrary { searched, wanted }))
}

pub fn libtorch_version() -> String {
    // SAFETY: libtorch exports this function, without arguments: a byte each for major, minor and patch, from the top.
    let number =
        unsafe { Library::this().get::<unsafe extern "C" fn() -> u64>(b"aoti_torch_abi_version\0").map(|ask| ask()) };
    number.map_or_else(
        |_| "unknown".to_owned(),
        |number| {
            let [major, minor, patch, ..] = number.to_be_bytes();
            format!("{major}.{minor}.{patch}")
        },
    )
}

/// The CPU half of libtorch that this process has loaded.
pub fn libtorch_path() -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let path =
        maps.lines().filter_map(|line| line.split_once('/')).find(|(_, path)| path.ends_with("/libtorch_cpu.so"))?.1;
    Some(Path::new("/").join(path))
}

/// Folders to search, the likeliest first.
fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        libtorch_path().and_then(|path| path.parent().map(Path::to_owned)).into_iter().collect();
    folders.extend(std::env::var_os("LD_LIBRARY_PATH").iter().flat_map(std::env::split_paths));
    folders.extend(std::env::var_os("LIBTORCH").map(|root| Path::new(&root).join("lib")));
    folders.extend(installed_pytorch());
    let mut seen = std::collections::HashSet::new();
    folders.retain(|folder| folder != OsStr::new("") && seen.insert(folder.clone()));
    folders
}

/// The lib folder of the PyTorch that python3 would import.
fn installed_pytorch() -> Option<PathBuf> {
    let ask = "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])";
    let output = Command::new("python3").args(["-c", ask]).output().ok().filter(|output| output.status.success())?;
    Some(Path::new(String::from_utf8_lossy(&output.stdout).trim()).join("lib"))
}

/// The version of the libtorch in a lib folder: from `version.py` of an installed PyTorch, `build-version` of an archive.
fn version_beside(folder: &Path) -> Option<String> {
    let root = folder.parent()?;
    let archive = fs::read_to_string(root.join("build-version")).ok().map(|text| text.trim().to_owned());
    archive.or_else(|| {
        let text = fs::read_to_string(root.join("version.py")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
        Some(line.trim_matches(['\'', '"']).to_owned())
    })
}

/// A version without its suffix for the CUDA version.
fn release(version: &str) -> &str {
    version.split('+').next().unwrap_or(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libtorch_in_use_is_known() {
        // Any call that makes the program need libtorch.
        assert_eq!(tch::Tensor::from_slice(&[1i64]).size(), [1]);
        let path = libtorch_path().unwrap();
        assert!(path.is_file(), "{}", path.display());
        let version = libtorch_version();
        assert!(version.starts_with("2.11."), "{version}");
    }

    #[test]
    fn versions_are_read_beside_the_library() {
        let root = std::env::temp_dir().join(format!("moebench-cuda-{}", std::process::id()));
        let lib = root.join("lib");
        fs::create_dir_all(&lib).unwrap();
        assert_eq!(version_beside(&lib), None);
        fs::write(root.join("version.py"), "from typing import Optional\n__version__ = '2.9.1+cu130'\ndebug = False\n")
            .unwrap();
        let version = version_beside(&lib).unwrap();
        assert_eq!((version.as_str(), release(&version)), ("2.9.1+cu130", "2.9.1"));
        fs::write(root.join("build-version"), "2.11.0+cpu\n").unwrap();
        assert_eq!(version_beside(&lib).as_deref().map(release), Some("2.11.0"));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn an_error_names_a_missing_driver_and_nothing_else_does() {
        assert_eq!(load() == Err(CudaError::NoDriver), driver_version().is_none());
    }
}
