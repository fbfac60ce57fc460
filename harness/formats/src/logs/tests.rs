use super::*;

fn read(text: &str) -> TrainingLog {
    TrainingLog::read("t.log", &[text.as_bytes()]).unwrap()
}

fn megatron(iteration: u64, milliseconds: f64) -> String {
    format!(
        " [2026-08-22 10:11:12.123456] iteration {iteration:>8}/     500 | consumed samples:         {} | elapsed time per iteration (ms): {milliseconds:.1} | throughput per GPU (TFLOP/s/GPU): 312.4 | learning rate: 1.000000E-04 | global batch size:   256 | lm loss: 8.123400E+00 | load_balancing_loss: 1.02E+00 | loss scale: 1.0 | grad norm: 2.117 | number of skipped iterations:   0 | number of nan iterations:   0 |\n",
        iteration * 256
    )
}

fn titan(prefix: &str, step: u64, tps: &str) -> String {
    format!(
        "{prefix}[titan] 2026-08-21 10:00:00,123 - root - INFO - \u{1b}[31mstep: {step:>2}  \u{1b}[32mloss: 8.1234  \u{1b}[38;2;180;60;0mgrad_norm: 1.25  \u{1b}[36mmemory: 41.50GiB(52.43%)  \u{1b}[34mtps: {tps}  \u{1b}[39mtflops: 312.10  mfu: 31.56%\u{1b}[39m\n"
    )
}

fn times(log: &TrainingLog) -> Vec<(u64, u64, Pace)> {
    log.steps.iter().map(|step| (step.iteration, step.covers, step.pace)).collect()
}

fn seconds(time: f64) -> Pace {
    Pace::Step(Seconds(time))
}

#[test]
fn lines_of_megatron_are_means_over_an_interval() {
    let text = [megatron(1, 9000.0), megatron(10, 800.0), megatron(20, 812.5)].concat();
    let noise = "[Rank 3] (after 10 iterations) memory (MB) | allocated: 10.0 | max allocated: 20.0 | reserved: 30.0 | max reserved: 40.0\n\
                 using world size: 8, data-parallel size: 8, tensor-model-parallel size: 1\n\
                 \u{20}validation loss at iteration 10 | lm loss value: 8.0E+00 | lm loss PPL: 2.9E+03 |\n\
                 (min, max) time across ranks (ms):\n    forward-backward ...............................: (700.1, 710.9)\n";
    let log = read(&(text + noise));
    assert_eq!(times(&log), [(1, 1, seconds(9.0)), (10, 9, seconds(0.8)), (20, 10, seconds(0.8125))]);
    assert_eq!((log.program, log.world), (Program::MegatronLm, Some(8)));
    assert_eq!(log.peak, Some(Peak { rank: 3, bytes: Bytes(40.0 * 1048576.0) }));
    assert_eq!((log.steps[1].loss, log.steps[1].global_batch), (Some(8.1234), Some(256)));
    assert_eq!((log.warmup(0), log.warmup(1), log.warmup(2), log.warmup(10), log.warmup(11)), (0, 1, 2, 2, 3));
    assert!(log.left_out.is_empty());
}

#[test]
fn ranks_prefixes_colours_and_thousands_of_torchtitan_are_read() {
    let text = [
        titan("[rank0]:", 1, "12"),
        titan("[rank1]:", 1, "13"),
        titan("[rank0]:", 10, "7,012"),
        titan("[rank0]:", 20, "7,100"),
        titan("[rank1]:", 10, "6,999.5"),
        "[rank0]:[titan] 2026 - root - INFO - validate step: 20  loss: 7.9  memory: 1.00GiB(1%)  tps: 9,999\n"
            .to_owned(),
        "[rank0]: step: 21 of the profiler\n".to_owned(),
    ];
    let log = read(&text.concat());
    let pace = Pace::TokensPerSecondAndGpu;
    assert_eq!(times(&log), [(1, 1, pace(12.0)), (10, 9, pace(6999.5)), (20, 10, pace(7100.0))]);
    assert_eq!(log.peak, Some(Peak { rank: 0, bytes: Bytes(41.5 * 1073741824.0) }));
    // 64 samples of 4096 tokens on 8 GPUs.
    let step = log.iterations(8, 64.0 * 4096.0)[1].timing.step.0;
    assert!((step - 64.0 * 4096.0 / 6999.5 / 8.0).abs() < 1e-12);
    assert!(log.left_out.is_empty(), "ranks that print one after the other are no restart: {:?}", log.left_out);
}

#[test]
fn a_restart_supersedes_what_it_does_again_and_its_first_line_does_not_count() {
    let first = [1, 2, 3, 4, 5].map(|n| megatron(n, 1000.0 + n as f64));
    let second = [4, 5, 6].map(|n| megatron(n, 2000.0 + n as f64));
    let log = read(&[first.concat(), "Traceback (most recent call last):\n".to_owned(), second.concat()].concat());
    let expected = [(1, 1, 1.001), (2, 1, 1.002), (3, 1, 1.003), (5, 1, 2.005), (6, 1, 2.006)];
    assert_eq!(times(&log), expected.map(|(iteration, covers, time)| (iteration, covers, seconds(time))));
    assert_eq!(log.left_out, ["the first line after each of 1 restarts, and 2 that were done again"]);
    // The same line twice is one.
    assert_eq!(times(&read(&[megatron(7, 5.0), megatron(7, 5.0)].concat())), [(7, 7, seconds(0.005))]);
}

/// A job that saves and ends, and goes on in the next file, goes back by nothing.
#[test]
fn a_restart_that_goes_on_is_one() {
    let megatron = |numbers: &[u64]| numbers.iter().map(|&n| megatron(n, 800.0)).collect::<String>();
    let slow = |number| self::megatron(number, 9000.0);
    let [one, two] = [megatron(&[10, 20]), slow(21) + &megatron(&[30, 40])];
    let expected = [(10, 9, seconds(0.8)), (20, 10, seconds(0.8)), (30, 9, seconds(0.8)), (40, 10, seconds(0.8))];
    let left_out = ["the first line after each of 1 restarts, and 0 that were done again"];
    let log = TrainingLog::read("t.log", &[one.as_bytes(), two.as_bytes()]).unwrap();
    assert_eq!((&times(&log)[..], &log.left_out[..]), (&expected[..], &left_out.map(str::to_owned)[..]));
    let world = "using world size: 8, data-parallel size: 8\n";
    assert_eq!(times(&read(&[world, &one, world, &two].concat())), expected, "in one file");
    // One rank of Megatron-LM prints: the same iteration at another time was done again.
    let log = read(&[one, slow(20), megatron(&[30])].concat());
    assert_eq!(times(&log), [(10, 10, seconds(0.8)), (30, 10, seconds(0.8))]);
    assert_eq!(log.left_out, ["the first line after each of 1 restarts, and 1 that were done again"]);
    // Each rank's first line is one.
    let [one, two] = [10, 20].map(|n| [titan("[rank0]:", n, "7,000"), titan("[rank1]:", n, "7,010")].concat());
    let log = TrainingLog::read("t.log", &[one.as_bytes(), two.as_bytes()]).unwrap();
    assert_eq!(log.steps.len(), 1, "{log:?}");
}

#[test]
fn an_iteration_that_two_ranks_print_is_one() {
    let titan = |step, tps| titan("", step, tps);
    let slow = [titan(1, "12"), titan(10, "7,100"), titan(10, "7,000"), titan(20, "7,010"), titan(20, "7,110")];
    let log = read(&slow.concat());
    let pace = Pace::TokensPerSecondAndGpu;
    assert_eq!(times(&log), [(1, 1, pace(12.0)), (10, 9, pace(7000.0)), (20, 10, pace(7010.0))]);
    assert!(log.left_out.is_empty(), "{:?}", log.left_out);
    let nan = |tps| titan(20, tps).replace("8.1234", "nan");
    for twice in [[nan("81"), nan("81")], [nan("81"), titan(20, "84")], [titan(20, "84"), nan("81")]] {
        let log = read(&[titan(10, "80"), twice.concat()].concat());
        assert_eq!((log.iterations(8, 1.0).len(), log.diverged()), (1, Some(20)));
        assert!(log.left_out.is_empty(), "{:?}", log.left_out);
    }
    let ranks = [titan(20, "81"), nan("80")].map(|line| line.trim_end().to_owned());
    let ranks = read(&format!("[default0]: {} [default1]: {}\n", ranks[0], ranks[1]));
    assert_eq!(ranks.diverged(), Some(20));
    assert_eq!(times(&read(&[megatron(10, 800.0), megatron(10, 800.0)].concat())).len(), 1, "written twice");
}

#[test]
fn what_others_write_into_a_line_does_not_become_a_number() {
    let whole = megatron(10, 800.0);
    let (one, two) = (whole.trim_end().to_owned(), megatron(20, 810.0));
    let log = read(&format!("{one}{two}"));
    assert_eq!(times(&log), [(10, 10, seconds(0.8)), (20, 10, seconds(0.81))]);
    let broken = two.replace("(ms): 810.0 |", "(ms): 81[rank3]:W warning: x | y |");
    let log = read(&format!("{whole}{broken}{}", megatron(30, 820.0)));
    assert_eq!(times(&log), [(10, 10, seconds(0.8)), (30, 20, seconds(0.82))]);
    assert_eq!(log.left_out, ["1 lines that others had written into"]);
    // A progress bar's carriage returns, a byte that is no text, and a line cut short.
    let mut bytes = format!(" 5%|#\r{whole}\r").into_bytes();
    bytes.extend(b"\xff iteration       20/     500 | consumed samples: 1 | elapsed time per iter");
    assert_eq!(times(&TrainingLog::read("t.log", &[&bytes]).unwrap()), [(10, 10, seconds(0.8))]);
}

#[test]
fn other_batches_are_left_out_and_losses_that_are_no_number_end_a_log() {
    let ramp = megatron(1, 500.0).replace("batch size:   256", "batch size:   128");
    let mut log = read(&[ramp, megatron(2, 800.0), megatron(3, 810.0).replace("8.123400E+00", "nan")].concat());
    assert!(
        log.clone().keep_batch("t.log", 64).unwrap_err().to_string().contains("128: expected that of the case, 64")
    );
    log.keep_batch("t.log", 256).unwrap();
    assert_eq!(log.left_out, ["1 lines of another global batch than 256"]);
    assert_eq!((log.iterations(8, 1.0).len(), log.diverged()), (1, Some(3)));
}

#[test]
fn a_text_without_iterations_is_refused() {
    for text in ["", "step: 3 of something", "iteration 5/ 10 | no time here |"] {
        let error = TrainingLog::read("t.log", &[text.as_bytes()]).unwrap_err().to_string();
        assert!(error.contains("t.log: no line of an iteration: expected lines such as"), "{error}");
    }
    let both = [megatron(1, 5.0), titan("", 1, "7")].concat();
    assert!(TrainingLog::read("t.log", &[both.as_bytes()]).unwrap_err().to_string().contains("and of torchtitan"));
}

/// Bytes of any kind, and lines of logs with some of their bytes changed, are read or refused; they never end the program.
#[test]
fn no_bytes_end_the_program() {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};
    let mut draws = ChaCha8Rng::seed_from_u64(14);
    let whole =
        [megatron(1, 9.0), titan("3: ", 5, "1,2"), "[Rank 1] memory (MB) | max reserved: 4\n".to_owned()].concat();
    for _ in 0..2000 {
        let mut bytes = whole.clone().into_bytes();
        for _ in 0..draws.next_u32() % 12 {
            let at = draws.next_u32() as usize % bytes.len();
            match draws.next_u32() % 3 {
                0 => bytes[at] = draws.next_u32() as u8,
                1 => drop(bytes.drain(at..bytes.len().min(at + 7))),
                _ => bytes.insert(at, b"\n|:/ ,[]-0"[draws.next_u32() as usize % 10]),
            }
        }
        if let Ok(log) = TrainingLog::read("t.log", &[&bytes]) {
            assert!(log.steps.iter().all(|step| step.covers >= 1 && step.covers <= step.iteration), "{log:?}");
            log.iterations(8, 4096.0);
        }
    }
}
