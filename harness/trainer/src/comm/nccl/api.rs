//! NCCL's functions.
//!
//! NCCL is opened by this module and not by cudarc, which does not search for `libnccl.so.2`, the one name that installed
//! PyTorchs have; types are cudarc's.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use cudarc::nccl::sys::{cudaStream_t, ncclComm_t, ncclDataType_t, ncclUniqueId};
use libloading::Library;
use tch::Kind;

use crate::cuda;

pub(super) const SUM: c_int = 0;
/// What NCCL's calls return on success, the second while they continue in the background.
pub(super) const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;

/// The version of NCCL, as `2.28.9`.
///
/// # Errors
/// NCCL is not found.
pub fn version() -> Result<String, String> {
    let api = api()?;
    let mut version = 0;
    // SAFETY: writes one number.
    api.check(unsafe { (api.ncclGetVersion)(&raw mut version) })?;
    Ok(format!("{}.{}.{}", version / 10_000, version % 10_000 / 100, version % 100))
}

/// NCCL, opened once.
pub(super) fn api() -> Result<&'static Api, String> {
    static API: OnceLock<Result<Api, String>> = OnceLock::new();
    API.get_or_init(Api::open).as_ref().map_err(Clone::clone)
}

macro_rules! functions {
    ($($name:ident($($argument:ty),*) -> $result:ty;)*) => {
        /// NCCL's functions, as its header states them; enumerations as the numbers that they are.
        #[allow(non_snake_case, reason = "NCCL's names")]
        pub(super) struct Api {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl Api {
            fn of(library: &Library) -> Result<Self, libloading::Error> {
                Ok(Self {
                    // SAFETY: the functions have these arguments in every 2.x.
                    $($name: *unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) }?,)*
                })
            }
        }
    };
}

functions! {
    ncclGetVersion(*mut c_int) -> c_int;
    ncclGetErrorString(c_int) -> *const c_char;
    ncclGetUniqueId(*mut ncclUniqueId) -> c_int;
    ncclCommInitRank(*mut ncclComm_t, c_int, ncclUniqueId, c_int) -> c_int;
    ncclCommAbort(ncclComm_t) -> c_int;
    ncclCommGetAsyncError(ncclComm_t, *mut c_int) -> c_int;
    ncclGroupStart() -> c_int;
    ncclGroupEnd() -> c_int;
    ncclSend(*const c_void, usize, c_int, c_int, ncclComm_t, cudaStream_t) -> c_int;
    ncclRecv(*mut c_void, usize, c_int, c_int, ncclComm_t, cudaStream_t) -> c_int;
    ncclAllReduce(*const c_void, *mut c_void, usize, c_int, c_int, ncclComm_t, cudaStream_t) -> c_int;
    ncclAllGather(*const c_void, *mut c_void, usize, c_int, ncclComm_t, cudaStream_t) -> c_int;
    ncclReduceScatter(*const c_void, *mut c_void, usize, c_int, c_int, ncclComm_t, cudaStream_t) -> c_int;
    ncclBroadcast(*const c_void, *mut c_void, usize, c_int, c_int, ncclComm_t, cudaStream_t) -> c_int;
    ncclReduce(*const c_void, *mut c_void, usize, c_int, c_int, c_int, ncclComm_t, cudaStream_t) -> c_int;
}

impl Api {
    /// Opens NCCL: once libtorch's GPU half is loaded, its own NCCL has that name or is part of it.
    fn open() -> Result<Self, String> {
        let mut reasons = Vec::new();
        for name in ["libnccl.so.2", "libnccl.so", "libtorch_cuda.so"] {
            // SAFETY: what runs when it is opened is NCCL's own set-up.
            let opened = unsafe { Library::new(name) };
            match opened.and_then(|library| Ok((Self::of(&library)?, library))) {
                Ok((api, library)) => {
                    // In use until the end.
                    std::mem::forget(library);
                    return Ok(api);
                }
                Err(error) => reasons.push(cuda::loader_message(&error)),
            }
        }
        Err(format!("NCCL is not found: {}", reasons.join("; ")))
    }

    pub(super) fn check(&self, status: c_int) -> Result<(), String> {
        if status == SUCCESS || status == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: returns a text that lasts, for any number.
        let text = unsafe { CStr::from_ptr((self.ncclGetErrorString)(status)) };
        Err(format!("NCCL: {}", text.to_string_lossy()))
    }
}

/// A communicator and a stream for calls.
pub(super) struct Call {
    pub(super) api: &'static Api,
    pub(super) raw: ncclComm_t,
    pub(super) stream: cudaStream_t,
}

impl Call {
    pub(super) fn check(&self, status: c_int) -> Result<(), String> {
        self.api.check(status)
    }

    /// Several sends and receives at once.
    pub(super) fn group(&self, calls: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
        // SAFETY: opens a group, which is closed below.
        self.check(unsafe { (self.api.ncclGroupStart)() })?;
        let called = calls();
        // SAFETY: closes the group opened above.
        let closed = self.check(unsafe { (self.api.ncclGroupEnd)() });
        called.and(closed)
    }

    pub(super) fn send(
        &self,
        from: *const c_void,
        elements: usize,
        kind: ncclDataType_t,
        to: usize,
    ) -> Result<(), String> {
        let (kind, to) = (kind as c_int, to as c_int);
        // SAFETY: callers pass `elements` on this GPU, which are kept until the operation is over.
        self.check(unsafe { (self.api.ncclSend)(from, elements, kind, to, self.raw, self.stream) })
    }

    pub(super) fn receive(
        &self,
        to: *mut c_void,
        elements: usize,
        kind: ncclDataType_t,
        from: usize,
    ) -> Result<(), String> {
        let (kind, from) = (kind as c_int, from as c_int);
        // SAFETY: callers pass room for `elements` on this GPU, which is kept until the operation is over.
        self.check(unsafe { (self.api.ncclRecv)(to, elements, kind, from, self.raw, self.stream) })
    }
}

pub(super) fn data_type(kind: Kind) -> Option<ncclDataType_t> {
    Some(match kind {
        Kind::Float => ncclDataType_t::ncclFloat32,
        Kind::BFloat16 => ncclDataType_t::ncclBfloat16,
        Kind::Half => ncclDataType_t::ncclFloat16,
        Kind::Double => ncclDataType_t::ncclFloat64,
        Kind::Int64 => ncclDataType_t::ncclInt64,
        Kind::Int => ncclDataType_t::ncclInt32,
        Kind::Uint8 => ncclDataType_t::ncclUint8,
        Kind::Int8 => ncclDataType_t::ncclInt8,
        _ => return None,
    })
}
