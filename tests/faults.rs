//! Kinds of fault that users of such programs report: launchers that start less than they seem to, checkpoints of other runs,
//! token files of another kind, settings that are no numbers, losses that go nowhere.

use crate::support::{Folder, Ran, small_trace};

/// Two iterations of the smallest model on two ranks, with a trace that is read faster than the default is made.
const TRAIN: &str = "train --model gpt-micro --global-batch-size 8 --micro-batch-size 1 --system expert-only --warmup 1 \
                     --trace trace.parquet";

fn folder() -> Folder {
    let folder = Folder::new();
    small_trace(&folder);
    folder
}

/// Runs `moebench` with variables of its environment set.
fn with_variables(folder: &Folder, variables: &[(&str, &str)], arguments: &str) -> Ran {
    let output = folder.command(arguments).envs(variables.iter().copied()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// What an interactive shell and a batch script of Slurm leave in the environment.
#[test]
fn one_process_of_slurm_runs_all_ranks() {
    let folder = folder();
    for tasks in ["1", "8"] {
        let variables =
            [("SLURM_PROCID", "0"), ("SLURM_NTASKS", tasks), ("SLURM_LOCALID", "0"), ("SLURM_JOB_NODELIST", "a[1-2]")];
        let arguments = format!("{TRAIN} --gpus 2 --iterations 2 --timeout 60 --overwrite --out out");
        let ran = with_variables(&folder, &variables, &arguments);
        assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    }
    let step = [("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_STEP_NODELIST", "localhost")];
    let ran = with_variables(&folder, &step, &format!("{TRAIN} --gpus 2 --iterations 2 --out step"));
    assert_eq!(ran.status, Some(2), "{}", ran.stderr);
    assert!(ran.stderr.contains("2 ranks, and SLURM_STEP_NUM_TASKS=4 processes by srun"), "{}", ran.stderr);
    assert!(ran.stderr.contains("--backend threads"), "{}", ran.stderr);
}

#[test]
fn a_resumed_run_says_from_where_and_another_runs_checkpoint_is_refused() {
    let folder = folder();
    let run = |gpus: usize, rest: &str| format!("{TRAIN} --gpus {gpus} --checkpoint kept --overwrite --out out {rest}");
    let id = "gpt-micro.inky.2.no-drop.seed1.expert-only";
    let first = folder.moebench(&run(2, "--iterations 2"));
    assert_eq!(first.status, Some(0), "{}", first.stderr);
    let begins = format!("{id}: begins at iteration 1, as there is no checkpoint in kept/{id}");
    assert!(first.stderr.contains(&begins), "{}", first.stderr);
    let second = folder.moebench(&run(2, "--iterations 4"));
    assert_eq!(second.status, Some(0), "{}", second.stderr);
    let goes_on = format!("{id}: goes on after iteration 2, from the checkpoint in kept/{id}");
    assert!(second.stderr.contains(&goes_on), "{}", second.stderr);
    let other = |field: &str| ["kept/", "checkpoint.json: a checkpoint with ", field].map(str::to_owned);
    let refuse = |arguments: String, field: &str| {
        let fragments = other(field);
        folder.refuse(&arguments, &fragments.each_ref().map(String::as_str));
    };
    refuse(run(4, "--iterations 6"), "gpus = 2, and this run has gpus = 4: choose another --checkpoint");
    refuse(run(2, "--iterations 6 --seed 2"), "= ");
    refuse(run(2, "--iterations 6 --gate 'capacity 1.2'"), "gate = NoDrop, and this run has gate = Capacity");
    refuse(run(2, "--iterations 6 --learning-rate 0.5"), "training.learning_rate = 0.001");
    // Systems that are asked for together share the folder.
    folder.write(
        "suite.toml",
        "name = \"both\"\ndescription = \"d\"\nengine = \"train\"\nsystems = [\"expert-only\", \"tutel\"]\n\
         baseline = \"tutel\"\niterations = 4\nwarmup = 1\n[[cases]]\nmodel = \"gpt-micro\"\ncluster = \"inky\"\n\
         gpus = 2\ngate = \"no-drop\"\nglobal_batch = 8\nmicro_batch = 1\n",
    );
    let both = folder.moebench("run ./suite.toml --trace trace.parquet --checkpoint kept --out both");
    assert_eq!(both.status, Some(0), "{}", both.stderr);
    assert!(both.stderr.contains(&format!("{id}: goes on after iteration 4")), "{}", both.stderr);
}

#[test]
fn ids_half_as_wide_as_the_files_are_not_trained_on() {
    let folder = folder();
    let ids: Vec<u8> = (0..4096_u32).flat_map(|id| (id % 50).to_le_bytes()).collect();
    std::fs::write(folder.join("tokens.bin"), ids).unwrap();
    let arguments = format!("{TRAIN} --gpus 2 --iterations 2 --data tokens.bin --out out");
    folder.refuse(&arguments, &["tokens.bin", "every second of its first 8192 uint16 ids is 0", "--data-type int32"]);
    folder.succeed(&format!("{arguments} --data-type int32"));
}

#[test]
fn settings_that_are_no_numbers_are_refused() {
    let folder = folder();
    let refuse = |option: &str, fragments: &[&str]| {
        folder.refuse(&format!("{TRAIN} --gpus 2 --iterations 2 {option}"), fragments);
    };
    refuse("--learning-rate nan", &["--learning-rate NaN", "expected a finite number"]);
    refuse("--clip-norm inf", &["--clip-norm inf", "expected a finite number"]);
    for timeout in ["nan", "inf", "1e300", "0"] {
        refuse(&format!("--timeout {timeout}"), &["--timeout ", "expected more than 0 and at most"]);
    }
    let much = usize::MAX;
    refuse(&format!("--pipeline-model-parallel-size {much} --tensor-model-parallel-size 4"), &["expected a multiple"]);
    assert_eq!(folder.files(), ["trace.parquet"], "nothing is written");
}

/// A step size that no training survives: the run stops where the loss is no number any more.
#[test]
fn a_run_without_a_loss_is_diverged_and_has_no_speedup() {
    let folder = folder();
    let ran =
        folder.moebench(&format!("{TRAIN} --gpus 2 --iterations 30 --learning-rate 1e38 --clip-norm 0 --out out"));
    assert_eq!(ran.status, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains("diverged: the loss of iteration "), "{}", ran.stderr);
    let frame = folder.frame("out/iterations.parquet");
    let status = frame.column("status").unwrap().str().unwrap().clone();
    assert_eq!(status.last(), Some("diverged"));
    assert!(frame.height() < 30, "training went on");
    let losses = frame.column("loss").unwrap().f64().unwrap().clone();
    assert!(losses.iter().flatten().all(f64::is_finite));
    let summary = folder.text("out/summary.csv");
    let column = summary.lines().next().unwrap().split(',').position(|name| name == "speedup_by_totals").unwrap();
    assert_eq!(summary.lines().nth(1).unwrap().split(',').nth(column), Some(""), "{summary}");
}
