//! The exchange between threads: every collective against plain references, and every way to fail.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

use super::threads::{self, Failure};
use super::{CommError, CommFailure, Communicator, Exchange, selfcheck};

const PATIENCE: Duration = Duration::from_secs(20);

/// What each rank returns, when all must succeed.
fn all<T: Send>(size: usize, rank: impl Fn(&Exchange) -> Result<T, CommError> + Sync) -> Vec<T> {
    threads::run(size, PATIENCE, rank).into_iter().map(Result::unwrap).collect()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.reshape([-1])).unwrap()
}

/// A number that sums round differently in another order.
fn value(rank: usize, place: usize) -> f32 {
    (rank as f32 * 7.31 + place as f32 * 0.17).sin() * 10f32.powi(rank as i32 % 5 - 2)
}

fn values(rank: usize, places: usize) -> Tensor {
    Tensor::from_slice(&(0..places).map(|place| value(rank, place)).collect::<Vec<_>>())
}

#[test]
fn every_collective_passes_the_self_check_at_any_size() {
    for size in [1, 2, 5, 8] {
        for result in threads::run(size, PATIENCE, |comm| selfcheck(comm, Device::Cpu)) {
            result.unwrap();
        }
    }
}

#[test]
fn collectives_take_no_turn_while_they_wait() {
    let turns = Arc::new(Mutex::new(()));
    for result in threads::run_in_turns(5, PATIENCE, Some(turns), |comm| selfcheck(comm, Device::Cpu)) {
        result.unwrap();
    }
}

#[test]
fn sums_have_the_same_bits_everywhere_those_of_adding_in_rank_order() {
    for size in [1, 2, 5, 8] {
        let expected: Vec<f32> =
            (0..1000).map(|place| (1..size).fold(value(0, place), |sum, rank| sum + value(rank, place))).collect();
        let sums = all(size, |comm| Ok(floats(&comm.all_reduce(&values(comm.rank(), 1000))?.wait()?)));
        for sum in sums {
            assert_eq!(sum, expected, "of {size}");
        }
        let root = size - 1;
        let sums = all(size, |comm| Ok(floats(&comm.reduce(&values(comm.rank(), 1000), root)?.wait()?)));
        assert_eq!(sums[root], expected);
        assert!(sums.iter().enumerate().all(|(rank, own)| rank == root || *own == floats(&values(rank, 1000))));
    }
}

#[test]
fn rows_reach_whom_they_are_for_uneven_empty_and_of_any_shape() {
    let count = |from: usize, to: usize| if to == 3 { 0 } else { (from * 5 + to) % 4 * usize::from(from != 1) };
    let row = |from: usize, to: usize, row: usize| (from * 100 + to * 10 + row) as i64;
    for size in [1, 2, 5, 8] {
        let got = all(size, |comm| {
            let me = comm.rank();
            let rows: Vec<i64> = (0..size).flat_map(|to| (0..count(me, to)).map(move |n| row(me, to, n))).collect();
            let sent: Vec<usize> = (0..size).map(|to| count(me, to)).collect();
            let received: Vec<usize> = (0..size).map(|from| count(from, me)).collect();
            let flat = comm.all_to_all(&Tensor::from_slice(&rows), &sent, &received)?;
            let wide = Tensor::from_slice(&rows).reshape([-1, 1, 1]).expand([-1, 2, 3], false);
            let wide = comm.all_to_all(&wide, &sent, &received)?.wait()?;
            let flat: Vec<i64> = Vec::try_from(flat.wait()?).unwrap();
            assert_eq!(wide.size(), [flat.len() as i64, 2, 3]);
            let last: Vec<i64> = Vec::try_from(wide.select(1, 1).select(1, 2).contiguous()).unwrap();
            assert_eq!(last, flat);
            Ok(flat)
        });
        for (me, got) in got.iter().enumerate() {
            let expected: Vec<i64> =
                (0..size).flat_map(|from| (0..count(from, me)).map(move |n| row(from, me, n))).collect();
            assert_eq!(*got, expected);
        }
    }
}

#[test]
fn what_is_sent_may_change_at_once_and_what_arrives_is_ones_own() {
    all(3, |comm| {
        let mut own = Tensor::full([4], comm.rank() as i64 + 1, (Kind::Int64, Device::Cpu));
        let sum = comm.all_reduce(&own)?;
        let gathered = comm.all_gather(&own)?;
        let shared = comm.broadcast(&own, 2)?;
        let rows = comm.all_to_all(&own, &[1, 1, 2], &(0..3).map(|_| 1 + comm.rank() / 2).collect::<Vec<_>>())?;
        let next = comm.send(&own, (comm.rank() + 1) % 3)?;
        own += 100;
        comm.barrier()?;
        let mut shared = shared.wait()?;
        if comm.rank() != 2 {
            assert_eq!(shared, Tensor::from_slice(&[3i64; 4]));
            shared += 1000;
        }
        assert_eq!(sum.wait()?, Tensor::from_slice(&[6i64; 4]));
        assert_eq!(i64::try_from(gathered.wait()?.sum(Kind::Int64)).unwrap(), 24);
        let rows: Vec<i64> = Vec::try_from(rows.wait()?).unwrap();
        assert!(rows.iter().all(|row| (1..=3).contains(row)), "{rows:?}");
        let before = (comm.rank() + 2) % 3;
        let received = comm.receive(&[4], Kind::Int64, before)?.wait()?;
        assert_eq!(received, Tensor::full([4], before as i64 + 1, (Kind::Int64, Device::Cpu)));
        drop(next.wait()?);
        comm.barrier()
    });
}

#[test]
fn what_tracks_gradients_can_be_sent() {
    all(2, |comm| {
        let own = Tensor::ones([2, 2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let sum = comm.all_reduce(&(&own * 2))?.wait()?;
        assert!(!sum.requires_grad());
        assert!(!comm.all_to_all(&own, &[1, 1], &[1, 1])?.wait()?.requires_grad());
        Ok(())
    });
}

#[test]
fn pending_operations_are_waited_for_in_any_order() {
    all(5, |comm| {
        let mut pending: Vec<_> =
            (0..10).map(|n| comm.all_reduce(&Tensor::from_slice(&[n as f32]))).collect::<Result<_, _>>()?;
        let even = comm.split("even", &[vec![0, 2, 4], vec![3, 1]])?;
        let inner = even.all_gather(&Tensor::from_slice(&[comm.rank() as i64]))?;
        // Each rank in another order.
        while !pending.is_empty() {
            let index = (comm.rank() * 3 + 1) % pending.len();
            let sum = floats(&pending.remove(index).wait()?)[0];
            assert_eq!(sum % 5.0, 0.0);
        }
        let ranks: Vec<i64> = Vec::try_from(inner.wait()?.reshape([-1])).unwrap();
        assert_eq!(ranks, if comm.rank() % 2 == 0 { vec![0, 2, 4] } else { vec![3, 1] });
        Ok(())
    });
}

#[test]
fn splits_of_splits_keep_the_order_given() {
    let seen = all(8, |comm| {
        let stage = comm.split("stage", &[vec![0, 1, 2, 3], vec![4, 5, 6, 7]])?;
        let across = stage.split("expert_dp", &[vec![2, 0], vec![1, 3]])?;
        let members: Vec<i64> =
            Vec::try_from(across.all_gather(&Tensor::from_slice(&[comm.rank() as i64]))?.wait()?.reshape([-1]))
                .unwrap();
        assert_eq!(members[across.rank()], comm.rank() as i64);
        Ok(members)
    });
    assert_eq!(seen[2], [2, 0]);
    assert_eq!(seen[0], [2, 0]);
    assert_eq!(seen[7], [5, 7]);
}

#[test]
fn groups_that_are_no_partition_are_refused() {
    for (groups, found) in [
        (vec![vec![0], vec![1, 0]], "member 0 is duplicated"),
        (vec![vec![0]], "in none of them: member 1"),
        (vec![vec![0, 1, 2]], "there is no member 2"),
    ] {
        for result in threads::run(2, PATIENCE, |comm| comm.split("bad", &groups).map(drop)) {
            let Err(Failure::Error(error)) = result else { panic!("accepted") };
            assert!(error.to_string().contains(found), "{error}");
        }
    }
    let results = threads::run(2, PATIENCE, |comm| {
        let groups = if comm.rank() == 0 { vec![vec![0], vec![1]] } else { vec![vec![0, 1]] };
        comm.split("unlike", &groups).map(drop)
    });
    assert!(results.iter().all(Result::is_err));
}

/// Every rank but `dead` waits for all; the dead one ends by `end`. Returns what the others got, and how soon.
fn survivors(
    dead: usize,
    end: impl Fn() -> Result<(), CommError> + Sync,
) -> (Vec<Result<(), Failure<CommError>>>, Duration) {
    let started = Instant::now();
    let mut results = threads::run(4, PATIENCE, |comm| {
        comm.barrier()?;
        if comm.rank() == dead {
            std::thread::sleep(Duration::from_millis(50));
            return end();
        }
        comm.all_reduce(&Tensor::from_slice(&[1.0f32]))?.wait().map(drop)
    });
    drop(results.remove(dead));
    (results, started.elapsed())
}

#[test]
fn a_panic_ends_the_others_at_once_with_its_message() {
    let (results, after) = survivors(2, || panic!("the {} panic", "test's"));
    assert!(after < PATIENCE, "ended by the timeout alone");
    for (rank, result) in [0, 1, 3].into_iter().zip(results) {
        let Err(Failure::Error(error)) = result else { panic!("{result:?}") };
        let CommFailure::Died { rank: 2, how } = &error.reason else { panic!("{error}") };
        assert!(how.starts_with("panicked: the test's panic (") && how.contains("tests.rs:"), "{how}");
        let found = (error.rank, error.collective, error.group.as_str());
        assert_eq!(found, (rank, "all-reduce", "the world"));
    }
}

#[test]
fn an_error_ends_the_others_at_once_and_an_early_end_too() {
    let group = "a test".to_owned();
    let reason = CommFailure::Library("no memory".to_owned());
    let error = CommError { rank: 1, collective: "all-reduce", group, reason };
    let (results, after) = survivors(1, || Err(error.clone()));
    assert!(after < PATIENCE, "ended by the timeout alone");
    for result in results {
        let Err(Failure::Error(found)) = result else { panic!("{result:?}") };
        assert_eq!(found.reason, CommFailure::Died { rank: 1, how: error.to_string() });
    }
    let (results, after) = survivors(1, || Ok(()));
    assert!(after < PATIENCE, "ended by the timeout alone");
    for result in results {
        let Err(Failure::Error(found)) = result else { panic!("{result:?}") };
        let CommFailure::Died { rank, how } = found.reason else { panic!("{found}") };
        assert!(rank == 1 && how.contains("ended"), "{rank} {how}");
    }
}

#[test]
fn a_member_dropped_by_a_panic_counts_as_dead() {
    let mut world = threads::world(2, PATIENCE);
    let (second, first) = (world.pop().unwrap(), world.pop().unwrap());
    let thread = std::thread::spawn(move || {
        let _member = second;
        panic!("on purpose");
    });
    let error = first.barrier().unwrap_err();
    assert!(matches!(error.reason, CommFailure::Died { rank: 1, .. }), "{error}");
    assert!(thread.join().is_err());
}

#[test]
fn late_ranks_are_named() {
    let results = threads::run(4, Duration::from_millis(200), |comm| {
        if comm.rank() % 2 == 1 {
            std::thread::sleep(Duration::from_millis(600));
            return Ok(());
        }
        comm.all_gather(&Tensor::from_slice(&[1i64]))?.wait().map(drop)
    });
    let Err(Failure::Error(error)) = &results[0] else { panic!("{results:?}") };
    let waited = Duration::from_millis(200);
    // The second to time out may hear of the first instead.
    let late = CommFailure::Late { ranks: vec![1, 3], waited };
    let died = |how: &str| how.contains("ranks 1, 3 did not arrive within 200ms");
    match &error.reason {
        CommFailure::Died { rank: 2, how } => assert!(died(how), "{how}"),
        reason => assert_eq!(*reason, late),
    }
}

#[test]
fn disagreement_is_an_error_on_every_rank_and_no_hang() {
    let check = |found: &str, rank: &(dyn Fn(&Exchange) -> Result<(), CommError> + Sync)| {
        let started = Instant::now();
        let results = threads::run(2, PATIENCE, rank);
        assert!(started.elapsed() < PATIENCE, "{found}: ended by the timeout alone");
        let errors: Vec<String> = results
            .iter()
            .filter_map(|result| match result {
                Err(Failure::Error(error)) => Some(error.to_string()),
                _ => None,
            })
            .collect();
        assert!(errors.iter().any(|error| error.contains(found)), "{found}: {errors:?}");
    };
    check("sent [3] Float: expected [2] Float", &|comm| comm.all_reduce(&values(0, 2 + comm.rank()))?.wait().map(drop));
    check("expected [2] Double", &|comm| {
        let kind = if comm.rank() == 0 { Kind::Double } else { Kind::Float };
        comm.all_gather(&values(0, 2).to_kind(kind))?.wait().map(drop)
    });
    check("rank 1 is in barrier", &|comm| match comm.rank() {
        0 => comm.all_reduce(&values(0, 2))?.wait().map(drop),
        _ => comm.barrier(),
    });
    check("sent [1]", &|comm| {
        let (sent, received) = if comm.rank() == 0 { ([1, 1], [1, 2]) } else { ([1, 1], [1, 1]) };
        comm.all_to_all(&values(0, 2), &sent, &received)?.wait().map(drop)
    });
    check("rank 1 sent nothing and is at a later operation", &|comm| {
        let (sent, received) = if comm.rank() == 0 { ([2, 0], [2, 2]) } else { ([0, 2], [0, 2]) };
        drop(comm.all_to_all(&values(0, 2), &sent, &received)?.wait()?);
        comm.barrier()
    });
    check("counts [1, 2] of rows to send, of a tensor [2]", &|comm| {
        comm.all_to_all(&values(0, 2), &[1, 2], &[1, 2])?.wait().map(drop)
    });
    check("counts for 1 and from 2 members", &|comm| comm.all_to_all(&values(0, 2), &[2], &[1, 2])?.wait().map(drop));
    check("member 2 of a group of 2", &|comm| comm.broadcast(&values(0, 2), 2)?.wait().map(drop));
    check("does not send to itself", &|comm| comm.send(&values(0, 2), comm.rank())?.wait().map(drop));
}

#[test]
fn threads_run_side_by_side() {
    let arrived = AtomicUsize::new(0);
    let results = threads::run(8, PATIENCE, |comm| {
        arrived.fetch_add(1, Ordering::SeqCst);
        let started = Instant::now();
        while arrived.load(Ordering::SeqCst) < comm.size() && started.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        Ok::<_, Infallible>(arrived.load(Ordering::SeqCst))
    });
    assert!(results.iter().all(|result| *result == Ok(8)));
}

#[test]
fn large_sums_are_shared_and_have_the_same_bits() {
    let places = 50_001;
    for size in [1, 2, 5, 8] {
        let expected: Vec<f32> =
            (0..places).map(|place| (1..size).fold(value(0, place), |sum, rank| sum + value(rank, place))).collect();
        let sums = all(size, |comm| {
            let own = values(comm.rank(), places).reshape([3, -1]);
            let pending = [comm.all_reduce(&own)?, comm.all_reduce(&own)?];
            // The even ranks wait for the second first.
            let mut found = Vec::new();
            let order: Box<dyn Iterator<Item = _>> =
                if comm.rank() % 2 == 0 { Box::new(pending.into_iter().rev()) } else { Box::new(pending.into_iter()) };
            for pending in order {
                let mut sum = pending.wait()?;
                assert_eq!(sum.size(), [3, places as i64 / 3]);
                found.push(floats(&sum));
                sum += 1;
            }
            Ok(found)
        });
        assert!(sums.into_iter().flatten().all(|sum| sum == expected), "of {size}");
    }
}
