//! Mutated inputs against everything that reads a file: a short run, on any compiler, of what `scripts/fuzz` does at length.

use std::path::Path;

use crate::support::{Folder, draws};

#[path = "fuzz/targets.rs"]
mod targets;

/// Inputs for each target.
const ROUNDS: usize = 1000;

/// Texts that readers of numbers stumble over.
const NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "18446744073709551615",
    "9223372036854775808",
    "1000000000000",
    "4294967296",
    "nan",
    "inf",
    "1e308",
    "1,5",
    "\"\"",
    "[[]]",
];

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds").join(target);
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// One to four changes of one of the seeds.
fn mutated(seeds: &[Vec<u8>], draw: &mut impl FnMut() -> u64) -> Vec<u8> {
    let mut below = |bound: usize| draw() as usize % bound.max(1);
    let mut bytes = seeds[below(seeds.len())].clone();
    for _ in 0..=below(4) {
        let (at, length) = (below(bytes.len()), below(9));
        let end = (at + length).min(bytes.len());
        match below(6) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << below(8),
            1 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][below(5)],
            2 => drop(bytes.drain(at..end)),
            3 => drop(bytes.splice(at..end, NUMBERS[below(NUMBERS.len())].bytes())),
            4 => {
                let other = &seeds[below(seeds.len())];
                let from = below(other.len());
                let part = other[from..(from + below(200)).min(other.len())].to_vec();
                drop(bytes.splice(at..at, part));
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

#[test]
fn readers_survive_mutated_files() {
    for (name, target) in targets::TARGETS {
        let seeds = seeds(name);
        seeds.iter().for_each(|seed| target(seed));
        let mut draw = draws(7, 1 << 31);
        (0..ROUNDS).for_each(|_| target(&mutated(&seeds, &mut draw)));
    }
}

/// Measurements as the studies type them: read or refused in one line.
#[test]
fn measurements_are_read_or_refused() {
    let folder = Folder::new();
    let head = "cluster,gpus,system,gate,layers,hidden,experts,seq_len,global_batch,micro_batch,pp,dp,ep,iteration,elapsed_ms\n";
    let seed = format!("{head}inky,16,fastmoe,no-drop,16,2560,16,1024,256,4,1,16,16,1,1234.5\n").into_bytes();
    let path = folder.join("measured.csv");
    let (mut read, mut refused) = (0, 0);
    let mut draw = draws(3, 1 << 31);
    for round in 0..300 {
        let bytes = if round == 0 { seed.clone() } else { mutated(std::slice::from_ref(&seed), &mut draw) };
        std::fs::write(&path, bytes).unwrap();
        match studies::measurements::iterations::read(&path, &|name| runs::prepare::cluster("test", name)) {
            Ok(_) => read += 1,
            Err(error) => {
                assert!(!format!("{error:#}").is_empty());
                refused += 1;
            }
        }
    }
    assert!(read > 0 && refused > 0, "{read} read, {refused} refused");
}
