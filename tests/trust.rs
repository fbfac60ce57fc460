//! What is stored survives: SIGKILL at any moment, a full disk and folders that cannot be written, at each write of a run, simulated,
//! measured and emulated, of its checkpoints, and of the commands that write from stored runs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use polars::prelude::DataFrame;

use crate::support::{Folder, Ran, small_trace, suite_toml};

type Files = BTreeMap<String, Vec<u8>>;

/// All files of the folder below `part` but half-written ones, of which some lead to a device without an end.
fn files(folder: &Folder, part: &str) -> Files {
    let below = format!("{part}/");
    let names = folder.files().into_iter().filter(|name| name.starts_with(&below) && !name.ends_with(".tmp"));
    names.map(|name| (name[part.len() + 1..].to_owned(), folder.bytes(&name))).collect()
}

/// Records of the cases, or of runs of them, that are finished in a folder whose run has not ended: what marks them is written last.
fn finished(folder: &Folder, out: &str) -> Files {
    let all = files(folder, &format!("{out}/cases"));
    let ids = all.keys().filter_map(|name| name.strip_suffix(".spans.parquet"));
    let of = |id: &str| ["iterations.parquet", "details.json", "spans.parquet"].map(|kind| format!("{id}.{kind}"));
    ids.flat_map(of).map(|name| (name.clone(), all.get(&name).unwrap_or_else(|| panic!("no {name}")).clone())).collect()
}

/// Kills a run `kills` times at random moments, of its beginning, its cases and its end, going on after each; whenever it
/// ends it begins anew elsewhere. No record of a finished case may be lost or another afterwards.
fn kill(folder: &Folder, run: &str, kills: usize, seed: u64) -> Vec<String> {
    let begun = Instant::now();
    folder.succeed(&format!("{run} --out whole"));
    let whole = begun.elapsed();
    let mut draw = crate::support::draws(seed, 1_000_000);
    let (mut killed, mut ended) = (0, Vec::new());
    while killed < kills {
        let out = format!("killed{}", ended.len());
        let mut kept = Files::new();
        loop {
            let mut child = folder
                .command(&format!("{run} --out {out}"))
                .stderr(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(whole.mul_f64(draw() as f64 / 1e6));
            // What has ended by itself was not killed.
            let survived = child.try_wait().unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            if let Some(status) = survived {
                assert!(status.success());
                break;
            }
            killed += 1;
            if folder.join(&format!("{out}/cases")).exists() {
                let now = finished(folder, &out);
                let joined = folder.join(&format!("{out}/spans.parquet")).exists();
                for (name, bytes) in &kept {
                    assert!(joined || now.get(name) == Some(bytes), "{out}: {name} was lost or is another");
                }
                kept.extend(now);
            }
            if killed == kills {
                folder.succeed(&format!("{run} --out {out}"));
                break;
            }
        }
        hold(folder, &out, &kept);
        ended.push(out);
    }
    ended
}

/// The joined frames have the rows of every case, or run of one, that was finished before.
fn hold(folder: &Folder, out: &str, kept: &Files) {
    for kind in ["iterations", "spans"] {
        let joined = folder.frame(&format!("{out}/{kind}.parquet"));
        let runs = |frame: &DataFrame| {
            let [cases, systems] = ["case", "system"].map(|name| frame.column(name).unwrap().str().unwrap().clone());
            let both = cases.iter().zip(systems.iter()).map(|(case, system)| format!("{case:?} {system:?}"));
            both.collect::<Vec<_>>()
        };
        let all = runs(&joined);
        for (name, bytes) in kept.iter().filter(|(name, _)| name.ends_with(&format!("{kind}.parquet"))) {
            folder.write("kept.parquet", "");
            fs::write(folder.join("kept.parquet"), bytes).unwrap();
            let rows = folder.frame("kept.parquet");
            // A log has no spans.
            if rows.height() == 0 {
                continue;
            }
            let first = all.iter().position(|run| *run == runs(&rows)[0]).unwrap();
            assert!(joined.slice(first as i64, rows.height()).equals_missing(&rows), "{out}: {name}: other rows");
        }
    }
    assert!(!folder.join(&format!("{out}/cases")).exists());
}

/// Simulated: the bytes of a run that nobody killed, all derived files included.
fn simulated(kills: usize) {
    let folder = Folder::new();
    small_trace(&folder);
    folder.write("suite.toml", &suite_toml(&[(4, "no-drop"), (8, "no-drop"), (16, "capacity 1.2"), (16, "no-drop")]));
    let run = "run suite.toml --trace trace.parquet --threads 2 --iterations 60 --timeline";
    let ended = kill(&folder, run, kills, 1);
    // These two say which command ran it, its folder included.
    let but_origin = |mut files: Files| {
        files.retain(|name, _| !["run.json", "report.html"].contains(&name.as_str()));
        files
    };
    let expected = but_origin(files(&folder, "whole"));
    for out in ended {
        let found = but_origin(files(&folder, &out));
        assert!(folder.files().iter().all(|name| !name.ends_with(".tmp")));
        assert!(found.keys().eq(expected.keys()), "{out}: {:?}", found.keys());
        for (name, bytes) in &expected {
            assert!(found[name] == *bytes, "{out}: {name} is another");
        }
    }
}

/// Killed while the joined cases went: half of them do not stand in the way of anything, and go.
#[test]
fn half_removed_cases_go() {
    let (folder, _) = prepared();
    let whole = files(&folder, "whole");
    for (name, bytes) in &whole {
        folder.write(&format!("out/{name}"), "");
        fs::write(folder.join(&format!("out/{name}")), bytes).unwrap();
    }
    folder.write("out/cases.tmp/gpt-tiny.inky.4.no-drop.seed1.spans.parquet", "");
    folder.succeed("compare out whole");
    folder.succeed(SMALL);
    assert!(files(&folder, "out").keys().eq(whole.keys()));
}

#[cfg(feature = "train")]
fn trained(kills: usize, options: &str) {
    let folder = Folder::new();
    small_trace(&folder);
    let case = |gate: &str| {
        format!(
            "[[cases]]\nmodel = \"gpt-micro\"\ncluster = \"inky\"\ngpus = 2\ngate = \"{gate}\"\nglobal_batch = 8\nmicro_batch = 1\n"
        )
    };
    let cases = ["no-drop", "capacity 1.2", "switch 1.5"].map(case).concat();
    folder.write(
        "suite.toml",
        &format!(
            "name = \"both\"\ndescription = \"d\"\nengine = \"train\"\nsystems = [\"expert-only\", \"tutel\"]\n\
             baseline = \"tutel\"\niterations = 4\nwarmup = 1\n{cases}"
        ),
    );
    kill(&folder, &format!("run suite.toml --trace trace.parquet {options}"), kills, 2);
}

#[test]
fn kills_lose_no_record_of_a_simulated_run() {
    simulated(4);
}

#[cfg(feature = "train")]
#[test]
fn kills_lose_no_record_of_a_measured_run() {
    trained(3, "");
}

#[cfg(feature = "train")]
#[test]
fn a_kill_loses_no_record_of_an_emulated_run() {
    trained(1, "--engine emulate");
}

#[test]
#[ignore = "long: 50 kills of every engine that this build has"]
fn fifty_kills_lose_no_record_of_any_engine() {
    simulated(50);
    #[cfg(feature = "train")]
    for options in ["", "--engine emulate"] {
        trained(50, options);
    }
}

const SMALL: &str = "run suite.toml --trace trace.parquet --out out --timeline";

/// A run of two cases in `whole`, the names of all files that it writes on its way, and its folder as it is just after its start.
fn prepared() -> (Folder, Vec<String>) {
    let folder = Folder::new();
    small_trace(&folder);
    let suite = suite_toml(&[(4, "no-drop"), (8, "no-drop")]).replace("iterations = 12", "iterations = 3");
    folder.write("suite.toml", &suite);
    folder.succeed(SMALL);
    fs::rename(folder.join("out"), folder.join("whole")).unwrap();
    let mut names: Vec<String> = files(&folder, "whole").into_keys().collect();
    // Execution traces are a file a rank: one stands for all.
    names.retain(|name| !name.ends_with(".et") || name.ends_with("8.no-drop.seed1/smartmoe.0.et"));
    for case in ["gpt-tiny.inky.4.no-drop.seed1", "gpt-tiny.inky.8.no-drop.seed1"] {
        let of_case = |kind: &str| format!("cases/{case}.{kind}");
        names.extend(["iterations.parquet", "details.json", "spans.parquet"].map(of_case));
    }
    assert!(names.len() >= 19, "{names:?}");
    (folder, names)
}

/// The folder `out` of a run that has begun and done nothing.
fn begun(folder: &Folder) {
    let _ = fs::remove_dir_all(folder.join("out"));
    folder.write("out/run.json", &folder.text("whole/run.json"));
}

fn failed(ran: &Ran, path: &str, why: &str) {
    let errors: Vec<&str> = ran.stderr.lines().filter(|line| line.starts_with("error:")).collect();
    assert!(ran.status.is_some_and(|status| status != 0), "{path}: {}", ran.stderr);
    assert!(errors.len() == 1 && errors[0].contains(path) && errors[0].contains(why), "{path}, {why}: {}", ran.stderr);
}

/// What was there is there, and going on ends with the bytes of a run that nothing disturbed.
fn goes_on(folder: &Folder, before: &Files) {
    let now = files(folder, "out");
    for (name, bytes) in before {
        // When cases were joined, they go; every start says anew who it is.
        let passing = name.starts_with("cases/") || name == "run.json";
        assert!(passing || now.get(name) == Some(bytes), "{name} was harmed");
    }
    folder.succeed(SMALL);
    let [mut whole, mut out] = ["whole", "out"].map(|part| files(folder, part));
    // These two say by whom and by which command it was run.
    for files in [&mut whole, &mut out] {
        files.retain(|name, _| !["run.json", "report.html"].contains(&name.as_str()));
    }
    assert!(whole == out, "{:?}, expected {:?}", out.keys(), whole.keys());
}

/// Every temporary file of a write in turn leads to `/dev/full`, on which every write fails as on a full disk.
#[test]
fn a_full_disk_at_each_write_is_told_and_harms_nothing() {
    let (folder, names) = prepared();
    for name in &names {
        begun(&folder);
        if name == "run.json" {
            fs::remove_file(folder.join("out/run.json")).unwrap();
        }
        let temporary = folder.join(&format!("out/{name}.tmp"));
        fs::create_dir_all(temporary.parent().unwrap()).unwrap();
        symlink("/dev/full", &temporary).unwrap();
        let before = files(&folder, "out");
        failed(&folder.moebench(SMALL), &format!("out/{name}: cannot be written"), "No space left on device");
        assert!(!temporary.is_symlink(), "{name}: what was half-written goes");
        goes_on(&folder, &before);
    }
}

/// The same where the run has ended, for all that is derived from it: what was there stays.
#[test]
fn a_full_disk_leaves_an_ended_run_as_it_is() {
    let (folder, names) = prepared();
    for name in names.iter().filter(|name| !name.starts_with("cases/")) {
        let derived = ["figures/", "tables/", "summary.csv", "report.html"].iter().any(|part| name.starts_with(part));
        if !derived {
            continue;
        }
        let _ = fs::remove_dir_all(folder.join("out"));
        for (name, bytes) in files(&folder, "whole") {
            folder.write(&format!("out/{name}"), "");
            fs::write(folder.join(&format!("out/{name}")), bytes).unwrap();
        }
        let before = files(&folder, "out");
        symlink("/dev/full", folder.join(&format!("out/{name}.tmp"))).unwrap();
        failed(&folder.moebench(SMALL), &format!("out/{name}: cannot be written"), "No space left on device");
        assert!(files(&folder, "out") == before, "{name}");
        goes_on(&folder, &before);
    }
}

/// Runs it as somebody who may read everything and write where everybody may: root may write everywhere.
fn as_nobody(folder: &Folder, arguments: &str) -> Ran {
    use std::os::unix::process::CommandExt;
    let mut command = folder.command(arguments);
    if is_root() {
        command.uid(65534).gid(65534);
    }
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

fn allow(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Each folder of a run in turn can be read alone.
#[test]
fn a_read_only_folder_is_told_and_harms_nothing() {
    let (folder, names) = prepared();
    let mut parents: Vec<&str> =
        names.iter().filter_map(|name| name.rsplit_once('/')).map(|(parent, _)| parent).collect();
    parents.sort_unstable();
    parents.dedup();
    for parent in [""].into_iter().chain(parents) {
        begun(&folder);
        let mut path = folder.join("out");
        allow(&path, 0o777);
        for part in parent.split('/').filter(|part| !part.is_empty()) {
            path = path.join(part);
            fs::create_dir(&path).unwrap();
            allow(&path, 0o777);
        }
        let before = files(&folder, "out");
        allow(&path, 0o555);
        let said = if parent.is_empty() { "out/".to_owned() } else { format!("out/{parent}/") };
        failed(&as_nobody(&folder, SMALL), &said, "Permission denied");
        allow(&path, 0o777);
        goes_on(&folder, &before);
    }
}

/// A command that writes into `out` and goes on there, and the files that it writes, in an order in which each is still to be
/// written when those before it are there.
struct Writes {
    folder: Folder,
    command: String,
    names: Vec<String>,
}

impl Writes {
    /// Runs it undisturbed and moves what it wrote to `whole`. Of its files those in `cases` are gone by then: they are named.
    fn new(folder: Folder, command: &str, cases: &[&str]) -> Self {
        folder.succeed(command);
        fs::rename(folder.join("out"), folder.join("whole")).unwrap();
        const KINDS: [&str; 3] = ["iterations.parquet", "details.json", "spans.parquet"];
        let (first, last): (Vec<_>, Vec<_>) = files(&folder, "whole")
            .into_keys()
            .filter(|name| name != "run.json" && !KINDS.contains(&name.as_str()))
            .partition(|name| name.starts_with("timelines/"));
        let of_cases = cases.iter().flat_map(|case| KINDS.map(|kind| format!("cases/{case}.{kind}")));
        let joined = if cases.is_empty() { Vec::new() } else { KINDS.map(str::to_owned).to_vec() };
        let names = first.into_iter().chain(of_cases).chain(joined).chain(last).collect();
        Self { folder, command: command.to_owned(), names }
    }

    /// Of the pictures, of which each is written like every other, one alone.
    fn with_one_figure(mut self, figure: &str) -> Self {
        let one = format!("figures/{figure}");
        self.names.retain(|name| !name.starts_with("figures/") || name.starts_with(&one));
        assert!(self.names.iter().any(|name| name.starts_with(&one)), "{:?}", self.names);
        self
    }

    /// `out` of a run that has begun and done nothing; of what is no run, an empty folder.
    fn begin(&self) {
        match self.folder.join("whole/run.json").exists() {
            true => begun(&self.folder),
            false => fs::create_dir(self.folder.join("out")).unwrap(),
        }
    }

    /// All of `out` that stays as it is once it is there: every start says anew who it is, cases are joined, and what is
    /// run again has other times.
    fn lasting(&self) -> Files {
        let mut all = files(&self.folder, "out");
        all.retain(|name, _| name != "run.json" && !name.starts_with("cases/") && !name.starts_with("timelines/"));
        all
    }

    /// Each write in turn fails as on a full disk; in the end everything is there, what was finished first of all.
    fn full_disk_at_each(&self) {
        let folder = &self.folder;
        self.begin();
        let mut kept = Files::new();
        for name in &self.names {
            let temporary = folder.join(&format!("out/{name}.tmp"));
            fs::create_dir_all(temporary.parent().unwrap()).unwrap();
            symlink("/dev/full", &temporary).unwrap();
            let before = self.lasting();
            failed(
                &folder.moebench(&self.command),
                &format!("out/{name}: cannot be written"),
                "No space left on device",
            );
            assert!(!temporary.is_symlink(), "{name}: what was half-written goes");
            let now = self.lasting();
            assert!(before.iter().all(|(name, bytes)| now.get(name) == Some(bytes)), "{name}: another was harmed");
            kept.extend(finished(folder, "out"));
        }
        self.ends();
        if folder.join("whole/run.json").exists() {
            assert!(!kept.is_empty());
            hold(folder, "out", &kept);
        }
    }

    /// Each folder in turn can be read alone.
    fn read_only_at_each(&self) {
        let folder = &self.folder;
        self.begin();
        allow(folder.path(), 0o777);
        allow(&folder.join("out"), 0o777);
        let mut parents = vec![""];
        for (parent, _) in self.names.iter().filter_map(|name| name.rsplit_once('/')) {
            // The folder of timelines has folders alone.
            parents.extend(parent.split_once('/').map(|(above, _)| above).into_iter().chain([parent]));
        }
        let mut done: Vec<&str> = Vec::new();
        for parent in parents {
            if done.contains(&parent) {
                continue;
            }
            done.push(parent);
            let path = folder.join(&format!("out/{parent}"));
            fs::create_dir_all(&path).unwrap();
            let before = self.lasting();
            allow(&path, 0o555);
            let said = if parent.is_empty() { "out/".to_owned() } else { format!("out/{parent}/") };
            failed(&as_nobody(folder, &self.command), &said, "Permission denied");
            allow(&path, 0o777);
            let now = self.lasting();
            assert!(before.iter().all(|(name, bytes)| now.get(name) == Some(bytes)), "{parent}: a file was harmed");
        }
        self.ends();
    }

    fn ends(&self) {
        self.folder.succeed(&self.command);
        let [whole, out] = ["whole", "out"].map(|part| files(&self.folder, part));
        assert!(out.keys().eq(whole.keys()), "{:?}, expected {:?}", out.keys(), whole.keys());
    }
}

/// The commands that write from what is stored: figures, tables, shards that are joined, the log of another program.
fn from_stored() -> Vec<Writes> {
    let small = |gpus: &[usize]| {
        let folder = Folder::new();
        small_trace(&folder);
        let cases: Vec<_> = gpus.iter().map(|&gpus| (gpus, "no-drop")).collect();
        folder.write("suite.toml", &suite_toml(&cases).replace("iterations = 12", "iterations = 3"));
        folder
    };
    let stored = || {
        let folder = small(&[4]);
        folder.succeed("run suite.toml --trace trace.parquet --out stored");
        folder
    };
    let shards = small(&[4, 8]);
    for number in [1, 2] {
        shards.succeed(&format!("run suite.toml --trace trace.parquet --shard {number}/2 --out part{number}"));
    }
    let log = Folder::new();
    let line = |number: u32| {
        format!(
            " iteration {number}/ 500 | consumed samples: 64 | elapsed time per iteration (ms): {number}4.0 | \
             learning rate: 1.0E-04 | global batch size: 64 | lm loss: 8.1E+00 | grad norm: 2.1 |\n"
        )
    };
    log.write("train.log", &(1..=6).map(line).collect::<String>());
    vec![
        Writes::new(stored(), "plot stored --figure end_to_end --format svg,png --out out", &[]),
        Writes::new(stored(), "table stored --format latex,csv --out out", &[]),
        Writes::new(
            shards,
            "merge out part1 part2",
            &["gpt-tiny.inky.4.no-drop.seed1", "gpt-tiny.inky.8.no-drop.seed1"],
        )
        .with_one_figure("end_to_end.svg"),
        Writes::new(
            log,
            "import-log train.log --model gpt-tiny --cluster inky --gpus 8 --global-batch-size 64 --system megatron \
             --plan 'pp1 dp8 tp1 ep8 edp1 mb2' --warmup 1 --out out",
            &["gpt-tiny.inky.8.no-drop.seed1.megatron"],
        )
        .with_one_figure("loss.svg"),
    ]
}

#[test]
fn a_full_disk_at_each_write_from_stored_runs_is_told_and_harms_nothing() {
    from_stored().iter().for_each(Writes::full_disk_at_each);
}

#[test]
fn a_read_only_folder_for_what_is_written_from_stored_runs_is_told() {
    from_stored().iter().for_each(Writes::read_only_at_each);
}

/// Two ranks as threads, measured (`train`) or under a virtual clock (`emulate`). Its own figure is the losses.
#[cfg(feature = "train")]
fn of_ranks(engine: &str) -> Writes {
    let folder = Folder::new();
    small_trace(&folder);
    folder.write(
        "suite.toml",
        "name = \"ranks\"\ndescription = \"d\"\nengine = \"train\"\nsystems = [\"expert-only\"]\n\
         baseline = \"expert-only\"\niterations = 3\nwarmup = 1\n[[cases]]\nmodel = \"gpt-micro\"\ncluster = \"inky\"\n\
         gpus = 2\ngate = \"no-drop\"\nglobal_batch = 8\nmicro_batch = 1\n",
    );
    let command = format!("run suite.toml --engine {engine} --trace trace.parquet --out out --timeline");
    Writes::new(folder, &command, &["gpt-micro.inky.2.no-drop.seed1.expert-only"]).with_one_figure("loss.svg")
}

#[cfg(feature = "train")]
#[test]
fn a_full_disk_at_each_write_of_ranks_is_told_and_harms_nothing() {
    ["train", "emulate"].map(of_ranks).iter().for_each(Writes::full_disk_at_each);
}

#[cfg(feature = "train")]
#[test]
fn a_read_only_folder_of_ranks_is_told_and_harms_nothing() {
    ["train", "emulate"].map(of_ranks).iter().for_each(Writes::read_only_at_each);
}

/// Each file of a checkpoint fails in turn, then its folder: the checkpoint before stays, and training goes on from it to the losses
/// of a run that nothing disturbed. Reports are appended to their file, where a full disk leaves half a line.
#[cfg(feature = "train")]
#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_one_before() {
    for clock in ["wall", "virtual"] {
        let folder = Folder::new();
        small_trace(&folder);
        let train = |iterations: usize, rest: &str| {
            format!(
                "train --model gpt-micro --gpus 2 --global-batch-size 8 --micro-batch-size 1 --system expert-only --warmup 1 \
                 --trace trace.parquet --clock {clock} --iterations {iterations} {rest}"
            )
        };
        let losses = |out: &str| {
            let frame = folder.frame(&format!("{out}/iterations.parquet"));
            frame.column("loss").unwrap().f64().unwrap().iter().flatten().collect::<Vec<_>>()
        };
        let kept = "kept/gpt-micro.inky.2.no-drop.seed1.expert-only";
        folder.succeed(&train(3, "--out whole"));
        folder.succeed(&train(1, "--checkpoint kept --out first"));
        let first = files(&folder, kept);
        let unharmed = |name: &str| {
            let now = files(&folder, kept);
            assert!(first.iter().all(|(name, bytes)| now[name].starts_with(bytes)), "{clock}: {name}");
        };
        let on = |out: &str| train(3, &format!("--checkpoint kept --checkpoint-every 1 --overwrite --out {out}"));
        for name in
            ["rank-0.safetensors", "rank-1.safetensors", "checkpoint.json"].map(|of| format!("iteration-2/{of}"))
        {
            let temporary = folder.join(&format!("{kept}/{name}.tmp"));
            fs::create_dir_all(temporary.parent().unwrap()).unwrap();
            symlink("/dev/full", &temporary).unwrap();
            failed(&folder.moebench(&on("out")), &format!("{kept}/{name}"), "No space left on device");
            assert!(!temporary.is_symlink(), "{name}: what was half-written goes");
            unharmed(&name);
        }
        symlink("/dev/full", folder.join(&format!("{kept}/reports.jsonl.tmp"))).unwrap();
        failed(&folder.moebench(&on("out")), &format!("{kept}/reports.jsonl"), "No space left on device");
        unharmed("reports.jsonl");
        let half = [&first["reports.jsonl"][..], b"[{\"half"].concat();
        fs::write(folder.join(&format!("{kept}/reports.jsonl")), half).unwrap();
        for path in [folder.path(), &folder.join("out")] {
            allow(path, 0o777);
        }
        allow(&folder.join(kept), 0o555);
        failed(&as_nobody(&folder, &on("denied")), kept, "Permission denied");
        allow(&folder.join(kept), 0o755);
        unharmed("the folder");
        let ran = folder.moebench(&on("out"));
        assert_eq!(ran.status, Some(0), "{}", ran.stderr);
        assert!(ran.stderr.contains("goes on after iteration 1"), "{}", ran.stderr);
        assert_eq!(losses("out"), losses("whole"), "{clock}");
    }
}
