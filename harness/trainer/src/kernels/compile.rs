//! Compiles the kernels' sources by NVRTC and loads them by the driver.
//!
//! NVRTC comes with every PyTorch with CUDA and is opened here, by the path beside libtorch's own libraries: cudarc looks for it
//! in the system's folders alone.

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Mutex, OnceLock};
use std::thread;

use cudarc::driver::sys;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::{Function, Kernels, product};
use crate::cuda::{self, CudaError, Gpu};

const COMMON: &str = include_str!("common.cuh");

/// A source file, and its kernels.
struct Source {
    name: &'static str,
    /// Whether it is for the instructions of Hopper GPUs alone.
    hopper: bool,
    text: &'static str,
    kernels: &'static [&'static str],
}

const SOURCES: [Source; 8] = [
    Source {
        hopper: false,
        name: "rows.cu",
        text: include_str!("rows.cu"),
        kernels: &["gather", "combine", "spread", "collect"],
    },
    Source {
        name: "experts.cu",
        hopper: false,
        text: include_str!("experts.cu"),
        kernels: &["activate", "activate_gated", "add_bias", "deactivate", "deactivate_gated", "column_sums", "finish"],
    },
    Source {
        name: "gate.cu",
        hopper: false,
        text: include_str!("gate.cu"),
        kernels: &["choose", "route", "route_backward", "count", "scan", "place", "piece_rows", "weight_gradient"],
    },
    Source {
        hopper: false,
        name: "optimizer.cu",
        text: include_str!("optimizer.cu"),
        kernels: &["adam", "squares", "accumulate"],
    },
    Source {
        name: "norm.cu",
        hopper: false,
        text: include_str!("norm.cu"),
        kernels: &["add_norm", "norm_backward", "bias_gradient", "finish_columns"],
    },
    Source { hopper: false, name: "head.cu", text: include_str!("head.cu"), kernels: &["entropy", "entropy_backward"] },
    Source { hopper: false, name: "draw.cu", text: include_str!("draw.cu"), kernels: &["uniform", "normal"] },
    Source { hopper: true, name: "product.cu", text: include_str!("product.cu"), kernels: &["weight_product"] },
];

impl Kernels {
    /// Compiles all sources, side by side.
    pub(super) fn new(ordinal: usize) -> Result<Self, CudaError> {
        let api = api().as_ref().map_err(Clone::clone)?;
        let gpu = Gpu::open(ordinal)?;
        let [major, minor] = gpu.compute_capability()?;
        let hopper = (major, minor) == (9, 0);
        let target = format!("sm_{major}{minor}{}", if hopper { "a" } else { "" });
        let sources: Vec<&Source> = SOURCES.iter().filter(|source| hopper || !source.hopper).collect();
        let images = thread::scope(|scope| {
            let compile = |source| api.compile(source, &target);
            let started: Vec<_> = sources.iter().map(|source| scope.spawn(move || compile(source))).collect();
            let join = |started: thread::ScopedJoinHandle<'_, Result<Vec<u8>, CudaError>>| {
                started.join().expect("the compiler's thread returns what goes wrong")
            };
            started.into_iter().map(join).collect::<Result<Vec<_>, _>>()
        })?;
        gpu.enter()?;
        let mut functions = HashMap::new();
        for (source, image) in sources.iter().zip(&images) {
            load(source, image, &mut functions)?;
        }
        Ok(Self { gpu, functions, multiprocessors: gpu.multiprocessors()?, buffers: Mutex::default() })
    }
}

/// Loads a compiled source into the current context, where it stays until the process ends.
fn load(source: &Source, image: &[u8], functions: &mut HashMap<&'static str, Function>) -> Result<(), CudaError> {
    let driver = |call, status: sys::CUresult| {
        status.result().map_err(|error| CudaError::Driver { call, reason: error.to_string() })
    };
    let mut module = ptr::null_mut();
    // SAFETY: the image is a whole cubin, as the compiler wrote it.
    driver("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&raw mut module, image.as_ptr().cast()) })?;
    for name in source.kernels {
        let symbol = c_string(name);
        let mut function = ptr::null_mut();
        // SAFETY: the module is loaded; the name ends with a null byte.
        let status = unsafe { sys::cuModuleGetFunction(&raw mut function, module, symbol.as_ptr()) };
        driver("cuModuleGetFunction", status)?;
        allow_shared(driver, function, name)?;
        functions.insert(name, Function(function));
    }
    Ok(())
}

/// More dynamic shared memory than a kernel gets unasked.
fn allow_shared(
    driver: impl Fn(&'static str, sys::CUresult) -> Result<(), CudaError>,
    function: sys::CUfunction,
    name: &str,
) -> Result<(), CudaError> {
    if name != "weight_product" {
        return Ok(());
    }
    let what = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: the function is loaded.
    driver("cuFuncSetAttribute", unsafe { sys::cuFuncSetAttribute(function, what, product::SHARED as c_int) })
}

fn c_string(text: &str) -> CString {
    CString::new(text).expect("names, options and sources of this module hold no null byte")
}

type Program = *mut c_void;

/// NVRTC's calls, as far as they are needed.
struct Api {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    image: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
}

fn api() -> &'static Result<Api, CudaError> {
    static API: OnceLock<Result<Api, CudaError>> = OnceLock::new();
    API.get_or_init(Api::open)
}

impl Api {
    fn open() -> Result<Self, CudaError> {
        let (compiler, builtins) = find()?;
        let open = |path: &Path| {
            // SAFETY: what runs when it is opened is the compiler's own set-up.
            unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }
                .map_err(|error| CudaError::NotLoaded { path: path.to_owned(), reason: cuda::loader_message(&error) })
        };
        // The compiler asks the loader for its built-in functions by their name alone, which is known from here on.
        std::mem::forget(open(&builtins)?);
        let library = open(&compiler)?;
        let missing =
            |error: libloading::Error| CudaError::NotLoaded { path: compiler.clone(), reason: error.to_string() };
        // SAFETY: the calls have these forms in every release.
        let api = unsafe {
            Self {
                create: *library.get(b"nvrtcCreateProgram\0").map_err(missing)?,
                compile: *library.get(b"nvrtcCompileProgram\0").map_err(missing)?,
                log_size: *library.get(b"nvrtcGetProgramLogSize\0").map_err(missing)?,
                log: *library.get(b"nvrtcGetProgramLog\0").map_err(missing)?,
                size: *library.get(b"nvrtcGetCUBINSize\0").map_err(missing)?,
                image: *library.get(b"nvrtcGetCUBIN\0").map_err(missing)?,
                destroy: *library.get(b"nvrtcDestroyProgram\0").map_err(missing)?,
            }
        };
        std::mem::forget(library);
        Ok(api)
    }

    /// The machine code of a source.
    fn compile(&self, source: &Source, target: &str) -> Result<Vec<u8>, CudaError> {
        let (name, text) = (c_string(source.name), c_string(&format!("{COMMON}\n#line 1\n{}", source.text)));
        let mut program = ptr::null_mut();
        // SAFETY: both strings outlive the call, which copies them.
        let status =
            unsafe { (self.create)(&raw mut program, text.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null()) };
        self.check(source, status, String::new)?;
        let options =
            [format!("--gpu-architecture={target}"), "--std=c++17".to_owned()].map(|option| c_string(&option));
        let pointers = options.each_ref().map(|option| option.as_ptr());
        // SAFETY: the program exists until it is destroyed below.
        let status = unsafe { (self.compile)(program, pointers.len() as c_int, pointers.as_ptr()) };
        let compiled = self.check(source, status, || {
            let log = self.read(program, self.log_size, self.log);
            String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned()
        });
        let image = compiled.map(|()| self.read(program, self.size, self.image));
        // SAFETY: made above, not used again.
        unsafe { (self.destroy)(&raw mut program) };
        image
    }

    fn check(&self, source: &Source, status: c_int, log: impl FnOnce() -> String) -> Result<(), CudaError> {
        if status == 0 { Ok(()) } else { Err(CudaError::NotCompiled { file: source.name, status, log: log() }) }
    }

    fn read(
        &self,
        program: Program,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Vec<u8> {
        let mut length = 0;
        // SAFETY: the program exists; the second call writes as many bytes as the first says.
        unsafe {
            size(program, &raw mut length);
            let mut bytes = vec![0u8; length];
            get(program, bytes.as_mut_ptr().cast());
            bytes
        }
    }
}

/// The compiler and its built-in functions, beside the CUDA libraries of libtorch or of the system.
fn find() -> Result<(PathBuf, PathBuf), CudaError> {
    let mut searched = Vec::new();
    for folder in folders() {
        let named = |start: &str| {
            let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
            let fits = |path: &PathBuf| {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                name.starts_with(start) && !name.contains(".alt.")
            };
            let mut found: Vec<PathBuf> = entries.filter(fits).collect();
            found.sort();
            found.pop()
        };
        if let (Some(compiler), Some(builtins)) = (named("libnvrtc.so."), named("libnvrtc-builtins.so.")) {
            return Ok((compiler, builtins));
        }
        searched.push(folder);
    }
    Err(CudaError::NoCompiler { searched })
}

/// Where NVRTC may be, the likeliest first.
fn folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Ok(library) = cuda::load()
        && let Some(lib) = library.parent()
    {
        folders.push(lib.to_owned());
        // `site-packages/torch/lib`: CUDA's libraries are packages beside it.
        if let Some(packages) = lib.ancestors().nth(2) {
            folders.push(packages.join("nvidia/cu13/lib"));
            folders.push(packages.join("nvidia/cuda_nvrtc/lib"));
        }
    }
    folders.extend(std::env::var_os("LD_LIBRARY_PATH").iter().flat_map(std::env::split_paths));
    folders.push(PathBuf::from("/usr/local/cuda/lib64"));
    folders
}
