//! Ranks as processes, one each, started by torchrun, srun, mpirun or by hand: how they keep together over a whole command.
//!
//! Rank 0 alone opens the store, writes records and prints. The others wait in the *control group*, a group over TCP that
//! lasts as long as the command, for the next case that rank 0 calls, run it silently, and exit with rank 0's status. Every
//! run has a world of its own: a rank that fails in one leaves nobody behind in a collective of it, and the next run starts
//! afresh. Only communicators of NCCL that all ranks have left in order go on to it. A process that dies is dead for the whole
//! command: the control group notices at once, so every later run ends before it begins.
//!
//! When rank 0 itself is killed, the iterations of the run under way are lost, unless there is a checkpoint.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tch::{Device, Tensor};

use crate::comm::launch::Launch;
use crate::comm::nccl::{Kept, Nccl};
use crate::comm::{CommError, Communicator, Exchange, meet, preflight};
use crate::cuda::Gpu;
use crate::error::TrainError;
use crate::host::to_host;

/// How long the others wait for the next call of rank 0, which may draw figures first. Its death is noticed at once all the
/// same.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// This process among all.
pub struct Processes {
    launch: Launch,
    device: Device,
    timeout: Duration,
    control: Mutex<Exchange>,
    /// The same ranks, for the calls of rank 0.
    calls: Mutex<Exchange>,
    kept: Kept,
    finished: AtomicBool,
}

/// What rank 0 asks of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// To run a case: its seed, and its number in the suite from 0.
    Case { seed: u64, index: usize },
    /// To exit with this status.
    Exit(u8),
}

impl Call {
    const CASE: i64 = 0;
    const EXIT: i64 = 1;

    fn encode(self) -> Tensor {
        let numbers = match self {
            Self::Case { seed, index } => [Self::CASE, seed as i64, index as i64],
            Self::Exit(status) => [Self::EXIT, i64::from(status), 0],
        };
        Tensor::from_slice(&numbers)
    }

    fn decode(tensor: &Tensor) -> Result<Self, TrainError> {
        match to_host(tensor)?[..] {
            [Self::CASE, seed, index] => Ok(Self::Case { seed: seed as u64, index: index as usize }),
            [Self::EXIT, status, _] => Ok(Self::Exit(status as u8)),
            _ => Err(TrainError::Tensor {
                shape: tensor.size(),
                found: tensor.kind(),
                expected: "a call of rank 0".to_owned(),
            }),
        }
    }
}

impl Processes {
    /// Finds the other processes, and checks that each reaches all and that all were asked for the same run, of which
    /// `asked` is a hash.
    ///
    /// # Errors
    /// The process that did not come, is not reached, or was asked for another run.
    pub fn rendezvous(launch: Launch, device: Device, timeout: Duration, asked: &str) -> Result<Self, TrainError> {
        let control = launch.connect(timeout)?;
        preflight(&control, Device::Cpu)?;
        let all = control.all_gather(&Tensor::from_slice(asked.as_bytes()))?.wait()?;
        let (rank, own) = (launch.rank, all.get(launch.rank as i64));
        if let Some(other) = (0..launch.size).find(|&other| !all.get(other as i64).equal(&own)) {
            let error = TrainError::OtherRun { rank, other };
            control.fail(&error.to_string());
            return Err(error);
        }
        let everyone = [(0..launch.size).collect()];
        let calls = control.part("calls of rank 0", &everyone)?.with_timeout(PATIENCE);
        let (control, calls, finished) = (Mutex::new(control), Mutex::new(calls), AtomicBool::new(false));
        Ok(Self { launch, device, timeout, control, calls, kept: Kept::default(), finished })
    }

    pub fn rank(&self) -> usize {
        self.launch.rank
    }

    pub fn device(&self) -> Device {
        self.device
    }

    /// Rank 0 calls a case. A dead process is noticed when the world of the case is made.
    pub fn call(&self, seed: u64, index: usize) {
        let _ = self.broadcast(Call::Case { seed, index });
    }

    /// Rank 0 tells the others, once, to exit with this status. A dead process need not hear it.
    pub fn finish(&self, status: u8) {
        if self.rank() == 0 && !self.finished.swap(true, Ordering::SeqCst) {
            let _ = self.broadcast(Call::Exit(status));
        }
    }

    fn broadcast(&self, call: Call) -> Result<(), CommError> {
        locked(&self.calls).broadcast(&call.encode(), 0)?.wait().map(drop)
    }

    /// A rank other than 0 waits for the next call.
    ///
    /// # Errors
    /// A process that died.
    pub fn next(&self) -> Result<Call, TrainError> {
        // What other ranks than the root pass states the shape alone.
        let call = locked(&self.calls).broadcast(&Call::Exit(0).encode(), 0)?.wait()?;
        Call::decode(&call)
    }

    /// Makes the world of one run.
    ///
    /// # Errors
    /// A process that died or does not come; a rank that is not reached.
    pub fn world(&self) -> Result<Box<dyn Communicator>, TrainError> {
        self.new_world().inspect_err(|_| self.kept.give_up())
    }

    fn new_world(&self) -> Result<Box<dyn Communicator>, TrainError> {
        // A process that died since the last run is noticed here at once; a rendezvous would take the whole timeout.
        locked(&self.control).barrier()?;
        let control = self.launch.connect(self.timeout)?;
        let world: Box<dyn Communicator> = match self.device {
            Device::Cuda(ordinal) => Box::new(Nccl::world(control, Gpu::open(ordinal)?, &self.kept)?),
            _ => Box::new(control),
        };
        // Training exchanges rows in groups of its own: over NCCL, those alone connect all pairs.
        let check = if self.device.is_cuda() { meet } else { preflight };
        check(&*world, self.device).inspect_err(|error| world.fail(&error.to_string()))?;
        Ok(world)
    }
}

fn locked(group: &Mutex<Exchange>) -> MutexGuard<'_, Exchange> {
    group.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_survive_their_encoding_and_nothing_else_is_a_call() {
        for call in [Call::Case { seed: u64::MAX, index: 7 }, Call::Exit(3)] {
            assert_eq!(Call::decode(&call.encode()).unwrap(), call);
        }
        assert!(Call::decode(&Tensor::from_slice(&[9i64, 0, 0])).is_err());
        assert!(Call::decode(&Tensor::from_slice(&[1i32, 0, 0])).is_err());
    }
}
