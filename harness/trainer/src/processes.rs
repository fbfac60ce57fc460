//! Ranks as processes, one each, started by torchrun, srun, mpirun or by hand: how they keep together over a whole command.
//!
//! Rank 0 alone opens the store, writes records and prints. The others wait in the *lobby*, a group over TCP that lasts as
//! long as the command, for the next case that rank 0 calls, run it silently, and exit with rank 0's status. Every run has
//! a world of its own: a rank that fails in one leaves nobody behind in a collective of it, and all meet again for the
//! next. A process that is gone is gone for all of the command: the lobby knows at once, so every later run ends before
//! it begins.
//!
//! When rank 0 itself is killed, the iterations of the case under way are lost, unless there is a checkpoint.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use tch::{Device, Tensor};

use crate::TrainError;
use crate::comm::launch::Launch;
use crate::comm::nccl::Nccl;
use crate::comm::{CommError, Communicator, Exchange, preflight};
use crate::cuda::Gpu;

/// How long the others wait for what rank 0 says next: it may draw figures first. Its death is known at once all the same.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// This process among all.
pub struct Processes {
    launch: Launch,
    device: Device,
    timeout: Duration,
    lobby: Mutex<Exchange>,
    /// The same ranks, for what rank 0 says.
    calls: Mutex<Exchange>,
    dismissed: AtomicBool,
}

/// What rank 0 says to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// To run a case.
    Case {
        /// Its seed.
        seed: u64,
        /// Its number in the suite, from 0.
        index: usize,
    },
    /// To exit with this status.
    End(u8),
}

impl Call {
    const CASE: i64 = 0;
    const END: i64 = 1;

    fn encode(self) -> Tensor {
        let numbers = match self {
            Self::Case { seed, index } => [Self::CASE, seed as i64, index as i64],
            Self::End(status) => [Self::END, i64::from(status), 0],
        };
        Tensor::from_slice(&numbers)
    }

    fn decode(tensor: &Tensor) -> Self {
        match Vec::<i64>::try_from(tensor).unwrap_or_default()[..] {
            [Self::CASE, seed, index] => Self::Case { seed: seed as u64, index: index as usize },
            [Self::END, status, _] => Self::End(status as u8),
            _ => Self::End(1),
        }
    }
}

impl Processes {
    /// Meets the other processes, and checks that each reaches all and that all were asked for the same: `asked` is a
    /// hash of that.
    ///
    /// # Errors
    /// Who did not come, is not reached, or was asked for something else.
    pub fn meet(launch: Launch, device: Device, timeout: Duration, asked: &str) -> Result<Self> {
        let lobby = launch.connect(timeout)?;
        preflight(&lobby, Device::Cpu)?;
        let all = lobby.all_gather(&Tensor::from_slice(asked.as_bytes()))?.wait()?;
        let own = all.get(launch.rank as i64);
        let other = (0..launch.size).find(|&rank| !all.get(rank as i64).equal(&own));
        if let Some(other) = other {
            let why = format!("rank {other} was asked for another run than rank {}", launch.rank);
            lobby.fail(&why);
            bail!("{why}: expected the same arguments, files and program in every process");
        }
        let calls = Mutex::new(lobby.part("calls of rank 0", &[(0..launch.size).collect()])?.with_timeout(PATIENCE));
        let (lobby, dismissed) = (Mutex::new(lobby), AtomicBool::new(false));
        Ok(Self { launch, device, timeout, lobby, calls, dismissed })
    }

    /// This process.
    pub fn rank(&self) -> usize {
        self.launch.rank
    }

    /// Where its tensors are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Rank 0 calls a case. Who is gone is found when the case's world is made.
    pub fn call(&self, seed: u64, index: usize) {
        let _ = self.tell(Call::Case { seed, index });
    }

    /// Rank 0 tells the others, once, to exit with this status. Who is gone need not be told.
    pub fn dismiss(&self, status: u8) {
        if self.rank() == 0 && !self.dismissed.swap(true, Ordering::SeqCst) {
            let _ = self.tell(Call::End(status));
        }
    }

    fn tell(&self, call: Call) -> Result<(), CommError> {
        locked(&self.calls).broadcast(&call.encode(), 0)?.wait().map(drop)
    }

    /// The other ranks wait for the next call, however long rank 0 is about it.
    ///
    /// # Errors
    /// That a process is gone.
    pub fn next(&self) -> Result<Call, CommError> {
        let call = locked(&self.calls).broadcast(&Call::End(1).encode(), 0)?.wait()?;
        Ok(Call::decode(&call))
    }

    /// A world for one run.
    ///
    /// # Errors
    /// That a process is gone or does not come; that a rank is not reached.
    pub fn world(&self) -> Result<Box<dyn Communicator>, TrainError> {
        // Here a process that died since the last run is known at once; to meet would take the whole timeout.
        locked(&self.lobby).barrier()?;
        let control = self.launch.connect(self.timeout)?;
        let world: Box<dyn Communicator> = match self.device {
            Device::Cuda(ordinal) => Box::new(Nccl::world(control, Gpu::open(ordinal)?)?),
            _ => Box::new(control),
        };
        preflight(&*world, self.device)?;
        Ok(world)
    }
}

fn locked(group: &Mutex<Exchange>) -> MutexGuard<'_, Exchange> {
    group.lock().unwrap_or_else(PoisonError::into_inner)
}
