//! One process per rank: the same losses as with threads, and what happens when one is killed or was started wrongly.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Folder, Ran, small_trace};

const MODEL: &str = "train --model gpt-micro --gpus 2 --global-batch-size 4 --micro-batch-size 1 --warmup 1 --timeline \
                     --trace trace.parquet";

/// How long a rank waits for another, s. Longer than any pause of a busy machine.
const TIMEOUT: u64 = 120;

/// With a trace that is read faster than the default is made.
fn folder() -> Folder {
    let folder = Folder::new();
    small_trace(&folder);
    folder
}

/// A port of one test alone: below those that the system gives to connections, another one in every process and call.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let port = 12_000 + (std::process::id() % 500) as u16 * 40 + NEXT.fetch_add(1, Ordering::Relaxed) % 40;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Starts a rank of two.
fn start(folder: &Folder, rank: usize, port: u16, arguments: &str) -> Child {
    let mut command = folder.command(arguments);
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", "2").env("MASTER_ADDR", "127.0.0.1");
    // As torchrun does: ranks share the cores.
    command.env("MASTER_PORT", port.to_string()).env("OMP_NUM_THREADS", "1");
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn start_both(folder: &Folder, arguments: &str) -> [Child; 2] {
    let port = free_port();
    [0, 1].map(|rank| start(folder, rank, port, arguments))
}

fn end(child: Child) -> Ran {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn losses(folder: &Folder, out: &str) -> Vec<f64> {
    let frame = folder.frame(&format!("{out}/iterations.parquet"));
    frame.column("loss").unwrap().f64().unwrap().iter().flatten().collect()
}

fn errors(ran: &Ran) -> Vec<&str> {
    ran.stderr.lines().filter(|line| line.starts_with("error:")).collect()
}

#[test]
fn processes_train_the_same_as_threads() {
    let folder = folder();
    for plan in ["--pipeline-model-parallel-size 2", "--system smartmoe --placement-every 2"] {
        let arguments = format!("{MODEL} {plan} --iterations 6 --overwrite");
        folder.succeed(&format!("{arguments} --out threads"));
        let [first, second] = start_both(&folder, &format!("{arguments} --out processes")).map(end);
        assert_eq!((first.status, second.status), (Some(0), Some(0)), "{}\n{}", first.stderr, second.stderr);
        assert_eq!((second.stdout.as_str(), second.stderr.as_str()), ("", ""), "rank 0 alone prints");
        let (found, expected) = (losses(&folder, "processes"), losses(&folder, "threads"));
        assert_eq!(expected.len(), 6);
        assert_eq!(found, expected);
        // A timeline of what was measured, and an execution trace a rank, whoever the ranks are.
        let written = |end: &str| folder.files().iter().filter(|name| name.ends_with(end)).count();
        assert_eq!((written("expert-only.json") + written("smartmoe.json"), written(".et")), (2, 4));
    }
}

#[test]
fn a_suite_is_run_in_the_order_that_rank_0_calls() {
    let folder = folder();
    let case = "[[cases]]\nmodel = \"gpt-micro\"\ncluster = \"inky\"\ngpus = 2\nglobal_batch = 4\nmicro_batch = 1\n";
    let head = "name = \"test\"\ndescription = \"for tests\"\nengine = \"train\"\nbaseline = \"expert-only\"\n\
                systems = [\"expert-only\", \"fastermoe\"]\niterations = 3\nwarmup = 1\nseeds = [1, 2]\n";
    folder.write("suite.toml", &format!("{head}{case}gate = \"no-drop\"\n{case}gate = \"capacity 1.2\"\n"));
    let [first, second] = start_both(&folder, "run ./suite.toml --trace trace.parquet --out out").map(end);
    assert_eq!((first.status, second.status), (Some(0), Some(0)), "{}\n{}", first.stderr, second.stderr);
    assert_eq!(losses(&folder, "out").len(), 2 * 2 * 2 * 3);
    // Everything is there: nothing is called.
    let again = start_both(&folder, "run ./suite.toml --trace trace.parquet --out out").map(end);
    assert!(again.iter().all(|ran| ran.status == Some(0)), "{}\n{}", again[0].stderr, again[1].stderr);
}

/// Who joins shards is no rank of theirs, and the whole was trained where they were.
#[test]
fn shards_that_processes_trained_are_joined_by_one() {
    let folder = folder();
    let case = "[[cases]]\nmodel = \"gpt-micro\"\ncluster = \"inky\"\ngpus = 2\nglobal_batch = 4\nmicro_batch = 1\n";
    let head = "name = \"test\"\ndescription = \"for tests\"\nengine = \"train\"\nbaseline = \"expert-only\"\n\
                systems = [\"expert-only\"]\niterations = 3\nwarmup = 1\n";
    folder.write("suite.toml", &format!("{head}{case}gate = \"no-drop\"\n{case}gate = \"capacity 1.2\"\n"));
    for number in [1, 2] {
        let run = format!("run ./suite.toml --trace trace.parquet --shard {number}/2 --out part{number}");
        let ran = start_both(&folder, &run).map(end);
        assert!(ran.iter().all(|ran| ran.status == Some(0)), "{}\n{}", ran[0].stderr, ran[1].stderr);
    }
    let stated = |out: &str| folder.text(&format!("{out}/run.json"));
    for number in [1, 2] {
        let path = format!("part{number}/run.json");
        let elsewhere = stated(&format!("part{number}")).replace("\"host\": \"", &format!("\"host\": \"node{number}-"));
        folder.write(&path, &elsewhere);
    }
    folder.succeed("merge whole part1 part2");
    assert_eq!(losses(&folder, "whole"), [losses(&folder, "part1"), losses(&folder, "part2")].concat());
    let whole = stated("whole");
    assert!(whole.contains("\"host\": \"node1-") && whole.contains(", node2-"), "{whole}");
    folder.write("part2/run.json", &stated("part2").replace("one core\"", "two cores\""));
    folder.refuse("merge other part1 part2", &["part1 and part2: timed on ", "one core, ", "two cores, "]);
    assert!(!folder.join("other").exists());
}

/// A timeline of what was trained is of that training.
#[test]
fn a_run_that_was_trained_is_not_trained_again_for_a_timeline() {
    let folder = folder();
    let run = "train --model gpt-micro --gpus 2 --global-batch-size 4 --micro-batch-size 1 --warmup 1 --trace trace.parquet \
               --iterations 3 --out out";
    folder.succeed(run);
    let trained = folder.bytes("out/iterations.parquet");
    folder.refuse(&format!("{run} --timeline"), &["--timeline: out: the run has ended without: --overwrite trains"]);
    assert!(folder.bytes("out/iterations.parquet") == trained);
    folder.succeed(&format!("{run} --timeline --overwrite"));
    folder.succeed(&format!("{run} --timeline"));
}

/// Times of two machines are not one run's: neither takes the other's for its own.
#[test]
fn a_run_goes_on_where_it_was_begun() {
    let folder = folder();
    let run = "train --model gpt-micro --gpus 2 --global-batch-size 4 --micro-batch-size 1 --warmup 1 --trace trace.parquet \
               --iterations 3 --out out";
    folder.succeed(run);
    // As one that was interrupted before it was joined.
    for name in ["iterations.parquet", "spans.parquet"] {
        std::fs::remove_file(folder.join("out").join(name)).unwrap();
    }
    std::fs::create_dir(folder.join("out/cases")).unwrap();
    let stated = folder.text("out/run.json");
    folder.write("out/run.json", &stated.replace("one core\"", "elsewhere\""));
    folder
        .refuse(run, &["out: goes on where it was begun, or anew with --overwrite: timed on ", "elsewhere", "and on "]);
    folder.write("out/run.json", &stated.replace("\"host\": \"", "\"host\": \"a-"));
    folder.succeed(run);
    assert!(folder.text("out/run.json").contains("\"host\": \"a-"), "both hosts");
}

/// Of the processes of a run, all are killed between two systems: the next attempt takes what the first system's training gave.
/// Times tell: another training would have others.
#[test]
fn a_killed_run_keeps_the_systems_that_have_finished() {
    let folder = folder();
    let suite = |iterations: usize| {
        let text = format!(
            "name = \"test\"\ndescription = \"for tests\"\nengine = \"train\"\nbaseline = \"fastermoe\"\n\
             systems = [\"expert-only\", \"fastermoe\", \"tutel\"]\niterations = {iterations}\nwarmup = 1\n[[cases]]\n\
             model = \"gpt-micro\"\ncluster = \"inky\"\ngpus = 2\ngate = \"no-drop\"\nglobal_batch = 4\nmicro_batch = 1\n"
        );
        folder.write("suite.toml", &text);
    };
    suite(20);
    const RUN: &str = "run ./suite.toml --trace trace.parquet --out out --timeline";
    let stored = |system: &str| {
        let ends = format!("{system}.spans.parquet");
        folder.files().into_iter().find(|name| name.starts_with("out/cases/") && name.ends_with(&ends))
    };
    let mut both = start_both(&folder, RUN);
    while stored("expert-only").is_none() {
        assert_eq!(both[0].try_wait().unwrap(), None, "ended before it could be killed");
        std::thread::sleep(Duration::from_millis(1));
    }
    for child in &mut both {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(stored("tutel").is_none() && !folder.join("out/iterations.parquet").exists());
    let frames = ["iterations", "spans"].map(|kind| {
        let spans = stored("expert-only").unwrap();
        folder.frame(&spans.replace(".spans.", &format!(".{kind}.")))
    });

    suite(21);
    folder.refuse(RUN, &["out: holds another run", "iterations = 20, now 21"]);
    suite(20);
    let again = start_both(&folder, RUN).map(end);
    assert!(again.iter().all(|ran| ran.status == Some(0)), "{}\n{}", again[0].stderr, again[1].stderr);
    for (kind, frame) in ["iterations", "spans"].iter().zip(&frames) {
        let joined = folder.frame(&format!("out/{kind}.parquet"));
        assert!(joined.slice(0, frame.height()).equals_missing(frame), "{kind}: trained again");
        let systems = joined.column("system").unwrap().n_unique().unwrap();
        assert_eq!(systems, 3, "{kind}");
    }
    assert!(!folder.join("out/cases").exists());
    // Everything is there, timelines too: nothing is called.
    let ended = folder.bytes("out/iterations.parquet");
    assert!(start_both(&folder, RUN).map(end).iter().all(|ran| ran.status == Some(0)));
    assert!(folder.bytes("out/iterations.parquet") == ended);
}

#[test]
fn a_killed_process_ends_the_others_and_a_checkpoint_goes_on() {
    let folder = folder();
    let arguments = format!("{MODEL} --expert-model-parallel-size 2 --checkpoint kept --checkpoint-every 5");
    let [mut first, mut second] =
        start_both(&folder, &format!("{arguments} --iterations 100000 --timeout {TIMEOUT} --out out"));
    while reached(&folder.join("kept")).is_none_or(|iteration| iteration < 10) {
        assert_eq!(first.try_wait().unwrap(), None, "ended without a checkpoint");
        std::thread::sleep(Duration::from_millis(20));
    }
    second.kill().unwrap();
    let killed = Instant::now();
    let ran = end(first);
    second.wait().unwrap();
    assert!(killed.elapsed() < Duration::from_secs(TIMEOUT), "ended by the timeout alone");
    assert_eq!(ran.status, Some(1), "{}", ran.stderr);
    let errors = errors(&ran);
    assert_eq!(errors.len(), 1, "{}", ran.stderr);
    for fragment in ["crash: rank 0: ", " of ", "rank 1 died"] {
        assert!(errors[0].contains(fragment), "{}", errors[0]);
    }
    let frame = folder.frame("out/iterations.parquet");
    let status = frame.column("status").unwrap().str().unwrap().clone();
    let before = losses(&folder, "out");
    assert_eq!((frame.height(), status.last()), (before.len() + 1, Some("crash")));

    // Without the processes, too: ranks are threads this time.
    let iterations = reached(&folder.join("kept")).unwrap() + 2;
    folder.succeed(&format!("{arguments} --iterations {iterations} --out resumed"));
    let resumed = losses(&folder, "resumed");
    assert_eq!(resumed.len(), iterations);
    let common = resumed.len().min(before.len());
    assert_eq!(resumed[..common], before[..common]);
    folder.refuse(
        &format!("{arguments} --iterations {iterations} --learning-rate 0.5 --out other"),
        &["checkpoint.json", "training.learning_rate = 0.001, and this run has training.learning_rate = 0.5"],
    );
}

/// Another program listens at the port and says nothing: both ranks say so, and neither blames the other.
#[test]
fn a_port_that_another_program_has_is_named_by_both_ranks() {
    let folder = folder();
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let ranks = [0, 1].map(|rank| start(&folder, rank, port, &format!("{MODEL} --iterations 3 --timeout 2 --out out")));
    let said = ranks.map(|rank| {
        let ran = end(rank);
        assert_eq!((ran.status, errors(&ran).len()), (Some(1), 1), "{}", ran.stderr);
        errors(&ran)[0].to_owned()
    });
    let place = format!("127.0.0.1:{port}");
    for (said, fragments) in said.iter().zip([
        ["rank 0 cannot listen at", "Address already in use", "--master-port"],
        ["does not answer as rank 0 does", "another program has the port", "--master-port"],
    ]) {
        assert!(fragments.iter().chain([&place.as_str()]).all(|fragment| said.contains(fragment)), "{said}");
    }
    assert_eq!(said[0].matches("Address already in use").count(), 1, "{}", said[0]);
    assert!(!folder.join("out").exists());
}

/// Iterations of the last whole checkpoint of the one run in a folder.
fn reached(folder: &Path) -> Option<usize> {
    let run = std::fs::read_dir(folder).ok()?.next()?.ok()?.path();
    let all = std::fs::read_dir(run).ok()?.flatten().map(|entry| entry.path());
    let whole = all.filter(|path| path.join("checkpoint.json").exists());
    whole.filter_map(|path| path.file_name()?.to_str()?.strip_prefix("iteration-")?.parse().ok()).max()
}

#[test]
fn processes_that_do_not_fit_are_refused_before_any_work() {
    let folder = folder();
    let alone = |arguments: &str| end(start(&folder, 0, free_port(), arguments));
    let ran = alone("train --model gpt-micro --gpus 4 --global-batch-size 4 --out out");
    assert_eq!(ran.status, Some(2), "{}", ran.stderr);
    assert!(ran.stderr.contains("4 ranks, and WORLD_SIZE=2 processes by torchrun"), "{}", ran.stderr);
    let ran = alone(&format!("{MODEL} --out out --clock virtual"));
    assert_eq!(ran.status, Some(2), "{}", ran.stderr);
    assert!(ran.stderr.contains("--clock virtual: "), "{}", ran.stderr);
    let ran = alone(&format!("{MODEL} --out out --timeout 0.5"));
    assert_eq!(ran.status, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains("of 2 ranks, 1 did not come"), "{}", ran.stderr);
    folder.refuse(&format!("{MODEL} --backend tcp"), &["--backend tcp", "RANK and WORLD_SIZE"]);
    let port = free_port();
    let seeds = [1, 2].map(|seed| start(&folder, seed - 1, port, &format!("{MODEL} --out out --seed {seed}")));
    for ran in seeds.map(end) {
        assert_eq!(ran.status, Some(1), "{}", ran.stderr);
        assert!(ran.stderr.contains("was asked for another run"), "{}", ran.stderr);
    }
    assert_eq!(folder.files(), ["trace.parquet"], "nothing is written");
}
