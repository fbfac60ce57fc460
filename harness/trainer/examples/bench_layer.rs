//! `cargo run -p trainer --example bench_layer -- DEVICE [PEERS.jsonl [TIMES.csv]]`: MoE layers alone on `cpu` or `cuda`, timed,
//! beside the times of other programs; every repeat goes to the CSV.

use std::error::Error;
use std::{env, fs};

use tch::Device;
use trainer::bench::{self, LayerShape};

/// `WIDTHxINNERxEXPERTSxTOKENS`; a CPU takes the first alone.
const SHAPES: [&str; 5] =
    ["64x256x8x512", "2560x10240x16x8192", "1536x3072x16x8192", "1536x3072x64x8192", "2048x4096x32x16384"];
const SKEWS: [f64; 2] = [0.0, 1.5];
const TOP_K: usize = 2;
const WARMUP: usize = 4;
const REPEATS: usize = 20;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (device, shapes) = match arguments.first().map(String::as_str) {
        Some("cpu") => (Device::Cpu, &SHAPES[..1]),
        Some("cuda") => (Device::Cuda(0), &SHAPES[1..]),
        _ => return Err("expected a device: cpu or cuda".into()),
    };
    let mut peers = Vec::new();
    if let Some(path) = arguments.get(1) {
        for line in fs::read_to_string(path)?.lines().filter(|line| line.starts_with('{')) {
            peers.push(serde_json::from_str(line)?);
        }
    }
    let mut measured = Vec::new();
    for text in shapes {
        for skew in SKEWS {
            let shape = LayerShape::parse(text, TOP_K, skew).ok_or("a shape that is none")?;
            measured.push((shape, bench::layer(shape, device, WARMUP, REPEATS)?));
        }
    }
    println!("{}", bench::HEADER.join("  "));
    let rows = bench::rows(&measured, &peers, bench::peak(device)?);
    rows.iter().for_each(|row| println!("{}", row.join("  ")));
    println!("\n{}", bench::legend(bench::peak(device)?, device));
    if let Some(path) = arguments.get(2) {
        fs::write(path, bench::csv(&measured))?;
    }
    Ok(())
}
