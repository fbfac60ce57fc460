//! Which rank this process is, of how many, and where rank 0 is: from flags, or from the variables that torchrun, mpirun or
//! srun set, in that order (flags > RANK/LOCAL_RANK/WORLD_SIZE > OMPI_COMM_WORLD_* > PMI/PMIx > SLURM_*).
//!
//! All variables are read from the first launcher whose rank variable is set: a launcher inside another (torchrun started
//! by srun) leaves the outer one's variables in place, which count other processes.
//!
//! Slurm sets a rank and a number of tasks also where there is one process: in a batch script, and in an interactive shell. Only
//! a step of several tasks, which `srun` makes, is several processes.

use std::time::Duration;

use crate::comm::{Exchange, RendezvousError, tcp};

/// The port where rank 0 listens when nothing names one; torchrun's default.
pub const DEFAULT_PORT: u16 = 29500;

/// The command line's flags, which have precedence over variables.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flags {
    pub rank: Option<usize>,
    pub world_size: Option<usize>,
    pub local_rank: Option<usize>,
    pub master_address: Option<String>,
    pub master_port: Option<u16>,
}

/// One process among those of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    pub rank: usize,
    pub size: usize,
    /// Processes on this machine before this one, if the launcher says so.
    pub local_rank: Option<usize>,
    /// Where rank 0 listens.
    pub master_address: String,
    pub master_port: u16,
    pub launcher: &'static str,
    /// The flag or variable that `size` comes from.
    pub size_variable: &'static str,
}

/// Why flags and variables do not say which rank this process is.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LaunchError {
    #[error("{variable}={value}: expected {expected}")]
    Value { variable: &'static str, value: String, expected: String },
    /// Of two variables that belong together, one is missing.
    #[error(
        "{present} is set ({launcher}) but {absent} is not: set {absent}; or run all ranks in this process with --backend threads"
    )]
    Incomplete { launcher: &'static str, present: String, absent: &'static str },
    /// The address of rank 0 is unknown.
    #[error(
        "{size} ranks ({launcher}) on several machines: set MASTER_ADDR or --master-addr to the machine of rank 0; or run all ranks in this process with --backend threads"
    )]
    NoMaster { launcher: &'static str, size: usize },
    /// This machine has too few GPUs.
    #[error(
        "rank {rank}: local rank {local} needs a GPU of its own, and this machine shows {devices}: start at most as many ranks on a machine as it has GPUs"
    )]
    NoDevice { rank: usize, local: String, devices: usize },
}

/// The variables of one launcher.
struct Launcher {
    name: &'static str,
    rank: &'static str,
    /// The first that is set counts.
    sizes: &'static [&'static str],
    local_rank: &'static str,
    local_size: &'static str,
}

const SRUN: &str = "srun";

/// In the order in which they are asked.
const LAUNCHERS: [Launcher; 4] = [
    Launcher {
        name: "torchrun",
        rank: "RANK",
        sizes: &["WORLD_SIZE"],
        local_rank: "LOCAL_RANK",
        local_size: "LOCAL_WORLD_SIZE",
    },
    Launcher {
        name: "mpirun of Open MPI",
        rank: "OMPI_COMM_WORLD_RANK",
        sizes: &["OMPI_COMM_WORLD_SIZE"],
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
    },
    Launcher {
        name: "mpirun of MPICH or Intel MPI",
        rank: "PMI_RANK",
        sizes: &["PMI_SIZE"],
        local_rank: "MPI_LOCALRANKID",
        local_size: "MPI_LOCALNRANKS",
    },
    // Slurm states tasks per node as a list of nodes, so there is no local size here.
    Launcher {
        name: SRUN,
        rank: "SLURM_PROCID",
        sizes: &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"],
        local_rank: "SLURM_LOCALID",
        local_size: "",
    },
];

impl Launch {
    /// From flags and environment. None if neither names a rank: then this process runs alone.
    ///
    /// # Errors
    /// A variable or flag that is missing, is no number, or contradicts another.
    pub fn from(flags: &Flags, environment: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>, LaunchError> {
        let read = Reader { environment };
        let Some(claim) = Claim::read(flags, &read)? else {
            return Ok(None);
        };
        let Claim { launcher, rank, size: (size, size_variable), local_rank, local_size } = claim;
        check_below("the rank", rank.0, rank.1, size)?;
        if let Some((local, name)) = local_rank {
            let bound = local_size.unwrap_or(size).min(size);
            check_below("the local rank", local, name, bound)?;
            if local > rank.0 {
                return Err(value_error(name, local, format!("at most the rank, {}", rank.0)));
            }
        }
        let master_port = match (flags.master_port, read.number("MASTER_PORT")?) {
            (Some(port), _) => port,
            (None, Some(port)) => check_port(port, &read)?,
            (None, None) => DEFAULT_PORT,
        };
        let master_address = match flags.master_address.clone().or_else(|| read.text("MASTER_ADDR")) {
            // IPv6 addresses stand in brackets where a port follows.
            Some(address) => address.trim().trim_start_matches('[').trim_end_matches(']').to_owned(),
            None => default_master(launcher, size, local_size, &read)?,
        };
        let local_rank = local_rank.map(|(local, _)| local);
        Ok(Some(Self { rank: rank.0, size, local_rank, master_address, master_port, launcher, size_variable }))
    }

    /// Joins the other processes.
    ///
    /// # Errors
    /// Ranks that did not come before the timeout or contradict each other.
    pub fn connect(&self, timeout: Duration) -> Result<Exchange, RendezvousError> {
        tcp::world(self.rank, self.size, (&self.master_address, self.master_port), timeout)
    }

    /// The GPU of this process, among the `devices` that it sees. A launcher that assigns GPUs shows each process one.
    ///
    /// # Errors
    /// Fewer GPUs than processes on this machine.
    pub fn device(&self, devices: usize) -> Result<usize, LaunchError> {
        match self.local_rank {
            Some(_) if devices == 1 => Ok(0),
            Some(local) if local < devices => Ok(local),
            None if self.size == 1 && devices > 0 => Ok(0),
            local => Err(LaunchError::NoDevice {
                rank: self.rank,
                local: local.map_or_else(|| "unknown (--local-rank states it)".to_owned(), |local| local.to_string()),
                devices,
            }),
        }
    }
}

/// What one launcher or the flags say about ranks; numbers with the name of their variable.
struct Claim {
    launcher: &'static str,
    rank: (usize, &'static str),
    size: (usize, &'static str),
    local_rank: Option<(usize, &'static str)>,
    /// Processes on this machine.
    local_size: Option<usize>,
}

impl Claim {
    fn read(flags: &Flags, read: &Reader<'_>) -> Result<Option<Self>, LaunchError> {
        let local_flag = flags.local_rank.map(|rank| (rank, "--local-rank"));
        let incomplete = |launcher, present: String, absent| LaunchError::Incomplete { launcher, present, absent };
        match (flags.rank, flags.world_size) {
            (Some(rank), Some(size)) => {
                let (launcher, rank, size) = ("flags", (rank, "--rank"), (size, "--world-size"));
                return Ok(Some(Self { launcher, rank, size, local_rank: local_flag, local_size: None }));
            }
            (Some(rank), None) => return Err(incomplete("flags", format!("--rank {rank}"), "--world-size")),
            (None, Some(size)) => return Err(incomplete("flags", format!("--world-size {size}"), "--rank")),
            (None, None) => {}
        }
        for launcher in &LAUNCHERS {
            let Some(rank) = read.number(launcher.rank)? else {
                continue;
            };
            // Batch scripts state no number of tasks unless they were asked for one.
            if launcher.name == SRUN && !in_step(read) {
                continue;
            }
            let Some(size) = read.first(launcher.sizes)? else {
                return Err(incomplete(launcher.name, format!("{}={rank}", launcher.rank), launcher.sizes[0]));
            };
            if launcher.name == SRUN && size.0 == 1 {
                return Ok(None);
            }
            let local = read.first(&[launcher.local_rank, "LOCAL_RANK"])?;
            return Ok(Some(Self {
                launcher: launcher.name,
                rank: (rank, launcher.rank),
                size,
                local_rank: local_flag.or(local),
                local_size: read.number(launcher.local_size)?,
            }));
        }
        // PMIx passes the rank by variable and the size by a call.
        if let Some(rank) = read.text("PMIX_RANK") {
            return Err(incomplete(
                "PMIx",
                format!("PMIX_RANK={rank}"),
                "--rank and --world-size, or RANK and WORLD_SIZE",
            ));
        }
        Ok(None)
    }
}

/// Whether Slurm started this process as a task of a step. Ids near the largest are those of batch scripts and interactive
/// shells, written as such or as negative numbers.
fn in_step(read: &Reader<'_>) -> bool {
    const SPECIAL: u32 = 0xffff_fff0;
    match read.text("SLURM_STEP_ID") {
        Some(id) => id.trim().parse().is_ok_and(|id: u32| id < SPECIAL),
        None => read.text("SLURM_STEP_NUM_TASKS").is_some() || read.text("SLURM_STEP_NODELIST").is_some(),
    }
}

/// Variables as text and as numbers; an empty one counts as unset.
struct Reader<'a> {
    environment: &'a dyn Fn(&str) -> Option<String>,
}

impl Reader<'_> {
    fn text(&self, variable: &str) -> Option<String> {
        (self.environment)(variable).filter(|value| !value.trim().is_empty())
    }

    /// The first of some variables that is set, and which one that is.
    fn first(&self, variables: &[&'static str]) -> Result<Option<(usize, &'static str)>, LaunchError> {
        for &variable in variables {
            if let Some(number) = self.number(variable)? {
                return Ok(Some((number, variable)));
            }
        }
        Ok(None)
    }

    fn number(&self, variable: &'static str) -> Result<Option<usize>, LaunchError> {
        let Some(value) = self.text(variable) else {
            return Ok(None);
        };
        match value.trim().parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(value_error(variable, value, "a whole number of at least 0".to_owned())),
        }
    }
}

/// The port of MASTER_PORT, or the one after it if torchrun's own store listens at MASTER_PORT.
fn check_port(port: usize, read: &Reader<'_>) -> Result<u16, LaunchError> {
    let own = read.text("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    match u16::try_from(port) {
        Ok(u16::MAX) if own => Ok(u16::MAX - 1),
        Ok(port) if port > 0 => Ok(port + u16::from(own)),
        _ => Err(value_error("MASTER_PORT", port, "a port, 1 to 65535".to_owned())),
    }
}

/// The default address of rank 0: the first node of a Slurm step, or this machine if all ranks are on it.
fn default_master(
    launcher: &'static str,
    size: usize,
    local_size: Option<usize>,
    read: &Reader<'_>,
) -> Result<String, LaunchError> {
    if launcher == SRUN {
        let list = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"];
        let first = list.iter().find_map(|variable| read.text(variable)).map(|nodes| first_node(&nodes));
        // The node that srun was called on is a guess: it may be a login node.
        return first.or_else(|| read.text("SLURM_LAUNCH_NODE_IPADDR")).ok_or(LaunchError::NoMaster { launcher, size });
    }
    if local_size.is_none_or(|local| local == size) {
        Ok("127.0.0.1".to_owned())
    } else {
        Err(LaunchError::NoMaster { launcher, size })
    }
}

/// The first name of a Slurm list: `gpu[003-005,9],login` begins with `gpu003`.
fn first_node(list: &str) -> String {
    let name = &list[..list.find([',', '[']).unwrap_or(list.len())];
    let Some(bracket) = list[name.len()..].strip_prefix('[') else {
        return name.to_owned();
    };
    let number = &bracket[..bracket.find(['-', ',', ']']).unwrap_or(bracket.len())];
    let rest = bracket.find(']').map_or("", |end| &bracket[end + 1..]);
    let tail = &rest[..rest.find(',').unwrap_or(rest.len())];
    format!("{name}{number}{tail}")
}

fn check_below(what: &str, number: usize, variable: &'static str, bound: usize) -> Result<(), LaunchError> {
    if number < bound {
        return Ok(());
    }
    Err(value_error(variable, number, format!("{what}, a number below {bound}")))
}

fn value_error(variable: &'static str, value: impl ToString, expected: String) -> LaunchError {
    LaunchError::Value { variable, value: value.to_string(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(flags: &Flags, variables: &[(&str, &str)]) -> Result<Option<Launch>, LaunchError> {
        Launch::from(flags, &|wanted| {
            variables.iter().find(|(name, _)| *name == wanted).map(|(_, value)| (*value).to_owned())
        })
    }

    fn of(variables: &[(&str, &str)]) -> Launch {
        launch(&Flags::default(), variables).unwrap().unwrap()
    }

    const SLURM: [(&str, &str); 6] = [
        ("SLURM_PROCID", "5"),
        ("SLURM_STEP_NUM_TASKS", "16"),
        ("SLURM_LOCALID", "1"),
        ("SLURM_STEP_NODELIST", "gpu[007-010,12]"),
        ("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.1"),
        ("SLURM_STEP_ID", "0"),
    ];

    #[test]
    fn nothing_set_means_alone() {
        assert_eq!(launch(&Flags::default(), &[]), Ok(None));
        assert_eq!(launch(&Flags::default(), &[("RANK", ""), ("SLURM_NTASKS", "8")]), Ok(None));
    }

    #[test]
    fn torchrun_goes_before_mpirun_before_srun_and_flags_before_all() {
        let torchrun = [
            ("RANK", "3"),
            ("LOCAL_RANK", "1"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("MASTER_ADDR", "head"),
            ("MASTER_PORT", "1234"),
        ];
        let mpirun = [
            ("OMPI_COMM_WORLD_RANK", "2"),
            ("OMPI_COMM_WORLD_SIZE", "6"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "2"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "6"),
        ];
        let pmi = [("PMI_RANK", "1"), ("PMI_SIZE", "3"), ("MPI_LOCALRANKID", "1")];
        let all = [&torchrun[..], &mpirun, &pmi, &SLURM].concat();
        let expected = Launch {
            rank: 3,
            size: 4,
            local_rank: Some(1),
            master_address: "head".to_owned(),
            master_port: 1234,
            launcher: "torchrun",
            size_variable: "WORLD_SIZE",
        };
        assert_eq!(of(&all), expected);
        let found = of(&[&mpirun[..], &pmi, &SLURM].concat());
        assert_eq!((found.rank, found.size, found.launcher), (2, 6, "mpirun of Open MPI"));
        assert_eq!((found.master_address.as_str(), found.master_port), ("127.0.0.1", DEFAULT_PORT));
        let found = of(&[&pmi[..], &SLURM].concat());
        assert_eq!((found.rank, found.size, found.local_rank), (1, 3, Some(1)));
        assert_eq!(of(&[("PMI_RANK", "1"), ("PMI_SIZE", "3"), ("LOCAL_RANK", "1")]).local_rank, Some(1));
        let flags = Flags { rank: Some(0), world_size: Some(2), master_port: Some(77), ..Flags::default() };
        let found = launch(&flags, &all).unwrap().unwrap();
        assert_eq!((found.rank, found.size, found.local_rank, found.launcher), (0, 2, None, "flags"));
        assert_eq!((found.master_address.as_str(), found.master_port), ("head", 77));
    }

    #[test]
    fn srun_finds_rank_0_on_its_first_node() {
        let found = of(&SLURM);
        assert_eq!((found.rank, found.size, found.local_rank), (5, 16, Some(1)));
        assert_eq!(found.master_address, "gpu007");
        assert_eq!(of(&[SLURM[0], SLURM[1], SLURM[4]]).master_address, "10.0.0.1");
        let first = |list: &str| first_node(list);
        assert_eq!(first("a1,b[2-3]"), "a1");
        assert_eq!(first("n[3,5]-ib,n9"), "n3-ib");
        assert_eq!(first("single"), "single");
    }

    /// What a batch script, a shell by `srun --pty` and one by `salloc` find in their environment.
    #[test]
    fn one_task_or_no_step_of_slurm_is_alone() {
        let alone = |variables: &[(&str, &str)]| assert_eq!(launch(&Flags::default(), variables), Ok(None));
        let first = [("SLURM_PROCID", "0"), ("SLURM_LOCALID", "0"), ("SLURM_JOB_NODELIST", "gpu[1-2]")];
        let with = |more: &[(&'static str, &'static str)]| [&first[..], more].concat();
        alone(&with(&[("SLURM_NTASKS", "1")]));
        alone(&with(&[("SLURM_JOB_ID", "17"), ("SLURM_NNODES", "1")]));
        alone(&with(&[("SLURM_NTASKS", "8"), ("SLURM_JOB_ID", "17")]));
        alone(&with(&[("SLURM_NTASKS", "8"), ("SLURM_STEP_ID", "3"), ("SLURM_STEP_NUM_TASKS", "1")]));
        for special in ["4294967291", "4294967290", "-5", "-6"] {
            alone(&with(&[("SLURM_NTASKS", "8"), ("SLURM_STEP_ID", special), ("SLURM_STEP_NUM_TASKS", "8")]));
        }
        // Another launcher's processes in a batch script.
        let mpi = with(&[("SLURM_NTASKS", "8"), ("SLURM_JOB_ID", "17"), ("PMIX_RANK", "0")]);
        let error = launch(&Flags::default(), &mpi).unwrap_err().to_string();
        assert!(error.contains("PMIX_RANK=0 is set (PMIx)"), "{error}");
        let found = of(&with(&[("SLURM_NPROCS", "8"), ("SLURM_STEP_ID", "3")]));
        assert_eq!((found.rank, found.size, found.size_variable), (0, 8, "SLURM_NPROCS"));
        // The step is what was started, not the job.
        let found = of(&with(&[("SLURM_NTASKS", "8"), ("SLURM_STEP_ID", "3"), ("SLURM_STEP_NUM_TASKS", "4")]));
        assert_eq!((found.size, found.size_variable), (4, "SLURM_STEP_NUM_TASKS"));
    }

    #[test]
    fn an_address_may_stand_in_brackets() {
        let ranks = [("RANK", "0"), ("WORLD_SIZE", "2")];
        assert_eq!(of(&[&ranks[..], &[("MASTER_ADDR", "[::1]")]].concat()).master_address, "::1");
        let flags = Flags { master_address: Some("[fe80::2]".to_owned()), ..Flags::default() };
        assert_eq!(launch(&flags, &ranks).unwrap().unwrap().master_address, "fe80::2");
    }

    #[test]
    fn torchruns_own_store_keeps_its_port() {
        let ranks = [("RANK", "0"), ("WORLD_SIZE", "2"), ("TORCHELASTIC_USE_AGENT_STORE", "True")];
        assert_eq!(of(&[&ranks[..], &[("MASTER_PORT", "29500")]].concat()).master_port, 29501);
        assert_eq!(of(&[&ranks[..], &[("MASTER_PORT", "65535")]].concat()).master_port, 65534);
    }

    #[test]
    fn errors_name_variable_value_and_what_is_allowed() {
        let check = |variables: &[(&str, &str)], expected: &str| {
            let error = launch(&Flags::default(), variables).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(&[("RANK", "two"), ("WORLD_SIZE", "4")], "RANK=two: expected a whole number of at least 0");
        check(&[("RANK", "4"), ("WORLD_SIZE", "4")], "RANK=4: expected the rank, a number below 4");
        check(&[("RANK", "1")], "RANK=1 is set (torchrun) but WORLD_SIZE is not");
        check(&[("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "0")], "SLURM_PROCID=0");
        check(
            &[("SLURM_PROCID", "0"), ("SLURM_STEP_ID", "3")],
            "set SLURM_STEP_NUM_TASKS; or run all ranks in this process with --backend threads",
        );
        check(&[("RANK", "1"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "2")], "LOCAL_RANK=2: expected at most the rank, 1");
        let local = [("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "2"), ("LOCAL_WORLD_SIZE", "2")];
        check(&local, "LOCAL_RANK=2: expected the local rank, a number below 2");
        check(&[("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_PORT", "70000")], "MASTER_PORT=70000: expected a port");
        check(&[("PMIX_RANK", "1")], "PMIX_RANK=1 is set (PMIx) but --rank and --world-size");
        let step = [("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2")];
        check(&step, "2 ranks (srun) on several machines: set MASTER_ADDR");
        let apart = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_LOCAL_SIZE", "2")];
        check(&apart, "4 ranks (mpirun of Open MPI) on several machines");
        let flags = Flags { rank: Some(1), ..Flags::default() };
        let error = launch(&flags, &[]).unwrap_err().to_string();
        assert!(error.contains("--rank 1 is set (flags) but --world-size is not"), "{error}");
    }

    #[test]
    fn each_process_takes_its_own_gpu() {
        let rank = |size, local_rank| Launch { size, local_rank, ..of(&[("RANK", "0"), ("WORLD_SIZE", "1")]) };
        assert_eq!(rank(16, Some(3)).device(8), Ok(3));
        assert_eq!(rank(16, Some(0)).device(1), Ok(0));
        assert_eq!(rank(16, Some(3)).device(1), Ok(0), "the launcher shows each process its own");
        assert_eq!(rank(1, None).device(4), Ok(0));
        assert!(rank(16, Some(3)).device(2).is_err());
        assert!(rank(16, None).device(8).unwrap_err().to_string().contains("--local-rank states it"));
        assert!(rank(1, Some(0)).device(0).is_err());
    }
}
