//! The exchange between processes, with threads standing for them, and one real process that is killed.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

use super::{CommError, CommFailure, Communicator, Exchange, RendezvousError, preflight, selfcheck, tcp};

const PATIENCE: Duration = Duration::from_secs(20);

/// A port of this test alone: below those that the system gives to connections, another one in every process and call.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let port = 10_000 + (std::process::id() % 1000) as u16 * 20 + NEXT.fetch_add(1, Ordering::SeqCst) % 20;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn join(rank: usize, size: usize, port: u16, timeout: Duration) -> Result<Exchange, RendezvousError> {
    tcp::world(rank, size, ("127.0.0.1", port), timeout)
}

/// What each of `size` ranks returns, each in a thread with sockets of its own.
fn ranks<T: Send>(size: usize, rank: impl Fn(Exchange) -> T + Sync) -> Vec<T> {
    let port = free_port();
    thread::scope(|scope| {
        let rank = &rank;
        let start = |number| scope.spawn(move || rank(join(number, size, port, PATIENCE).unwrap()));
        let threads: Vec<_> = (0..size).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn every_collective_passes_the_self_check_between_sockets() {
    for size in [1, 2, 5] {
        for result in ranks(size, |comm| {
            preflight(&comm, Device::Cpu)?;
            selfcheck(&comm, Device::Cpu)
        }) {
            result.unwrap();
        }
    }
}

#[test]
#[ignore = "needs a machine whose host name has an address"]
fn a_machine_is_found_by_its_name_too() {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned();
    let port = free_port();
    thread::scope(|scope| {
        let start = |rank| {
            scope.spawn({
                let host = &host;
                move || tcp::world(rank, 3, (host, port), PATIENCE).unwrap().barrier()
            })
        };
        let threads: Vec<_> = (0..3).map(start).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
    });
}

#[test]
fn large_tensors_pass_both_ways_at_once() {
    let length = 3_000_000;
    ranks(2, |comm| {
        let own = Tensor::full([length], comm.rank() as i64 + 1, (Kind::Int64, Device::Cpu));
        let first = comm.all_reduce(&own).unwrap();
        let second = comm.all_reduce(&own).unwrap();
        for pending in [second, first] {
            assert_eq!(i64::try_from(pending.wait().unwrap().sum(Kind::Int64)).unwrap(), 3 * length);
        }
    });
}

#[test]
fn last_words_reach_all_and_keep_the_first_cause() {
    let errors = ranks(3, |comm| -> Result<(), CommError> {
        comm.barrier()?;
        match comm.rank() {
            // Fails because of rank 1, and says so.
            0 => {
                let error = comm.barrier().unwrap_err();
                comm.fail(&error.to_string());
                Err(error)
            }
            1 => {
                comm.fail("no memory");
                Ok(())
            }
            _ => {
                thread::sleep(Duration::from_millis(100));
                comm.all_reduce(&Tensor::from_slice(&[1.0f32]))?.wait().map(drop)
            }
        }
    });
    for rank in [0, 2] {
        let error = errors[rank].clone().unwrap_err();
        assert_eq!(error.reason, CommFailure::Died { rank: 1, how: "no memory".to_owned() }, "{error}");
    }
}

#[test]
fn a_goodbye_is_no_death_unless_someone_waits() {
    let results = ranks(3, |comm| {
        comm.barrier()?;
        if comm.rank() == 2 {
            return Ok(());
        }
        let pair = comm.send(&Tensor::from_slice(&[1i64]), 1 - comm.rank())?;
        thread::sleep(Duration::from_millis(100));
        drop(comm.receive(&[1], Kind::Int64, 1 - comm.rank())?.wait()?);
        drop(pair.wait()?);
        comm.barrier()
    });
    for (rank, result) in results.into_iter().enumerate().take(2) {
        let error: CommError = result.unwrap_err();
        assert_eq!((error.rank, error.collective), (rank, "barrier"));
        assert!(matches!(error.reason, CommFailure::Died { rank: 2, .. }), "{error}");
    }
}

#[test]
fn who_does_not_come_is_named_to_all() {
    let port = free_port();
    let short = Duration::from_millis(700);
    let errors: Vec<String> = thread::scope(|scope| {
        let start = |rank| scope.spawn(move || join(rank, 4, port, short).map(drop).unwrap_err().to_string());
        let threads: Vec<_> = [0, 2].map(start).into();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for error in errors {
        assert!(error.contains("of 4 ranks, 1, 3 did not come to 127.0.0.1"), "{error}");
    }
    let error = join(1, 2, port, Duration::from_millis(200)).map(drop).unwrap_err();
    assert!(error.to_string().contains("rank 0 was not reached"), "{error}");
}

#[test]
fn contradictions_are_refused_and_strangers_ignored() {
    let check = |members: [(usize, usize); 3], found: &str| {
        let port = free_port();
        let errors: Vec<String> = thread::scope(|scope| {
            let host = scope.spawn(move || join(0, members[0].1, port, PATIENCE).map(drop).unwrap_err().to_string());
            let mut stranger = loop {
                if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) {
                    break stream;
                }
                thread::sleep(Duration::from_millis(5));
            };
            stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            let start = |(rank, size)| {
                scope.spawn(move || join(rank, size, port, Duration::from_secs(1)).map(drop).unwrap_err().to_string())
            };
            let guests: Vec<_> = members[1..].iter().copied().map(start).collect();
            for guest in guests {
                guest.join().unwrap();
            }
            vec![host.join().unwrap()]
        });
        assert!(errors[0].contains(found), "{errors:?}");
    };
    check([(0, 4), (1, 4), (1, 4)], "two processes came as rank 1");
    check([(0, 4), (1, 4), (2, 3)], "rank 2 expects a world of 3, rank 0 one of 4");
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let error = join(0, 2, taken.local_addr().unwrap().port(), PATIENCE).map(drop).unwrap_err();
    assert!(error.to_string().contains("rank 0 cannot listen at 127.0.0.1:"), "{error}");
}

#[test]
fn a_host_without_an_address_is_said_at_once() {
    let unknown = "no-such-host.invalid";
    let started = Instant::now();
    let error = tcp::world(0, 2, (unknown, free_port()), PATIENCE).map(drop).unwrap_err().to_string();
    assert!(started.elapsed() < PATIENCE, "said after the timeout alone");
    assert!(error.starts_with("rank 0: `no-such-host.invalid`, the host of rank 0, is not known here"), "{error}");
    assert!(error.contains("MASTER_ADDR") && error.contains("--backend threads"), "{error}");
    // The others may be asked before their name service knows rank 0.
    let error = tcp::world(1, 2, (unknown, 1), Duration::from_millis(50)).map(drop).unwrap_err().to_string();
    assert!(error.starts_with("rank 1: `no-such-host.invalid`"), "{error}");
}

/// Another program has the port: one that says nothing, one that hangs up, one that speaks another language.
#[test]
fn a_port_that_another_program_has_is_said_by_every_rank() {
    let check = |answer: fn(TcpStream), expected: &str| {
        let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = join(0, 2, port, PATIENCE).map(drop).unwrap_err().to_string();
        assert_eq!(error.matches("Address already in use").count(), 1, "{error}");
        assert!(error.contains("MASTER_PORT") && error.contains("--backend threads"), "{error}");
        thread::spawn(move || answer(taken.accept().unwrap().0));
        let error = join(1, 2, port, Duration::from_millis(200)).map(drop).unwrap_err().to_string();
        let start = format!("rank 1: what listens at 127.0.0.1:{port} does not answer as rank 0 does");
        assert!(error.starts_with(&start) && error.contains(expected), "{error}");
    };
    check(|_stream| thread::sleep(Duration::from_secs(4)), "it sends nothing");
    check(drop, "(");
    check(|mut stream| stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap(), "an answer of unknown kind");
}

const CHILD_PORT: &str = "MOEBENCH_TEST_CHILD_PORT";
const CHILD: &str = "comm::tcp_tests::child_that_waits_to_be_killed";

/// Not a test of its own: what the child process of the next one runs, when that has set its port.
#[test]
fn child_that_waits_to_be_killed() {
    let Some(port) = std::env::var(CHILD_PORT).ok().and_then(|port| port.parse().ok()) else { return };
    let comm = join(1, 2, port, PATIENCE).unwrap();
    comm.barrier().unwrap();
    println!("\nready");
    thread::sleep(PATIENCE);
}

#[test]
fn a_killed_process_is_noticed_at_once() {
    let port = free_port();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", CHILD, "--nocapture"])
        .env(CHILD_PORT, port.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let comm = join(0, 2, port, PATIENCE).unwrap();
    comm.barrier().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "ready"));
    let pending = comm.all_reduce(&Tensor::from_slice(&[1.0f32])).unwrap();
    child.kill().unwrap();
    let killed = Instant::now();
    let error = pending.wait().unwrap_err();
    assert!(killed.elapsed() < PATIENCE, "noticed by the timeout alone");
    assert!(error.to_string().contains("rank 0: all-reduce of the world: rank 1 died: its connection"), "{error}");
    child.wait().unwrap();
}
