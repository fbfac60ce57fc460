//! Files of nccl-tests (2.19, and before): `size` is the larger of what a rank sends and receives, `algbw = size / time`, and `busbw` counts the
//! bytes that pass a port instead. GB are 1e9 bytes.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// A collective of one size.
#[derive(Clone, Debug, PartialEq)]
pub struct Collective {
    /// nccl-tests' name, such as `all_reduce`.
    pub name: String,
    /// Ranks of the group.
    pub ranks: usize,
    /// nccl-tests' size, bytes.
    pub bytes: f64,
    /// Bytes that pass the busiest port in one direction.
    pub moved: f64,
    /// Median, least and most, s.
    pub times: [f64; 3],
}

impl Collective {
    /// Size over time, B/s.
    pub fn algorithm_bandwidth(&self) -> f64 {
        self.bytes / self.times[0]
    }

    /// Bytes that pass the busiest port over time, B/s.
    pub fn bus_bandwidth(&self) -> f64 {
        self.moved / self.times[0]
    }
}

/// Bytes that pass a port for each byte of the size, by nccl-tests; none of a name that it does not have.
fn bus_factor(name: &str, ranks: usize) -> Option<f64> {
    let n = ranks as f64;
    Some(match name {
        "all_reduce" => 2.0 * (n - 1.0) / n,
        "all_gather" | "reduce_scatter" | "alltoall" | "alltoallv" => (n - 1.0) / n,
        "broadcast" | "reduce" | "sendrecv" => 1.0,
        _ => return None,
    })
}

/// Reads what a program of nccl-tests printed, or wrote as JSON. Where the text does not name the collective, the file's name must.
///
/// # Errors
/// A text without a row of a known collective, or without the line that names its columns.
pub fn read(path: &Path, text: &str) -> Result<Vec<Collective>> {
    let file = path.display().to_string();
    let stem = path.file_stem().map_or(String::new(), |stem| stem.to_string_lossy().into_owned());
    let found = match text.trim_start().starts_with('{') {
        true => of_json(text, &stem).with_context(|| file.clone())?,
        false => of_text(text, &stem).with_context(|| file.clone())?,
    };
    ensure!(!found.is_empty(), "{file}: no row with a size and a time: expected the output of a program of nccl-tests");
    Ok(found)
}

/// A program's or a file's name as the collective that it tests.
fn collective(text: &str) -> Option<String> {
    let name = text.rsplit('/').next()?.trim_end_matches("_perf").to_lowercase();
    let known =
        ["all_reduce", "all_gather", "reduce_scatter", "alltoallv", "alltoall", "broadcast", "sendrecv", "reduce"];
    known.iter().find(|known| name.contains(*known)).map(|&known| known.to_owned())
}

fn point(name: &str, ranks: usize, bytes: f64, microseconds: f64) -> Result<Collective> {
    let factor = bus_factor(name, ranks).with_context(|| format!("{name}: not a collective of nccl-tests"))?;
    let time = microseconds * 1e-6;
    Ok(Collective { name: name.to_owned(), ranks, bytes, moved: bytes * factor, times: [time; 3] })
}

/// Whether a row has a size and a time that a collective can have.
fn measured(bytes: f64, microseconds: f64) -> bool {
    bytes.is_finite() && bytes > 0.0 && microseconds.is_finite() && microseconds * 1e-6 > 0.0
}

fn of_text(text: &str, stem: &str) -> Result<Vec<Collective>> {
    let after = |line: &str, words: &str| {
        line.trim_start_matches('#').trim().strip_prefix(words).map(str::trim).map(str::to_owned)
    };
    let starts = || text.lines().filter_map(|line| after(line, "Collective test starting:"));
    ensure!(
        starts().count() < 2,
        "several lines `# Collective test starting`: expected the output of one program a file"
    );
    let named = starts().find_map(|program| collective(&program));
    let Some(name) = named.or_else(|| collective(stem)) else {
        bail!(
            "neither a line `# Collective test starting: NAME` nor the file's name says which collective: expected one of them"
        );
    };
    let ranks = text.lines().filter(|line| after(line, "Rank ").is_some()).count();
    ensure!(ranks > 0, "no line `#  Rank ..`: expected one for each rank");
    let from_end = time_from_end(text).context(
        "no line `# size count ... time algbw ...` that names the columns: expected one, as nccl-tests prints it",
    )?;
    let mut found = Vec::new();
    for (number, row) in text.lines().enumerate().filter(|(_, row)| !row.trim_start().starts_with('#')) {
        let mut columns: Vec<&str> = row.split_whitespace().collect();
        columns.truncate(columns.len() - timestamp(&columns));
        let time = columns.len().checked_sub(from_end).and_then(|place| columns.get(place));
        if let (Some(Ok(bytes)), Some(time)) = (columns.first().map(|text| text.parse::<f64>()), time) {
            let time: f64 = time.parse().with_context(|| format!("line {}: time {time}", number + 1))?;
            found.extend(measured(bytes, time).then(|| point(&name, ranks, bytes, time)).transpose()?);
        }
    }
    Ok(found)
}

/// How many columns before the end of a row its first time begins, by the line that names them. Not all versions have `redop` and
/// `root`, and a row may leave empty what stands before the time (`redop` of an all-to-all), never what stands behind it. Timestamps
/// do not count: not all versions name them, and in a row they are two words.
fn time_from_end(text: &str) -> Option<usize> {
    text.lines().find_map(|line| {
        let words = line.trim_start().strip_prefix('#')?.split_whitespace();
        let names: Vec<&str> = words.filter(|name| !name.eq_ignore_ascii_case("timestamp")).collect();
        let time = names.iter().position(|&name| name == "time")?;
        (names[0] == "size").then(|| names.len() - time)
    })
}

/// How many of a row's last words are the date and time of `-S 1`, `YYYY-MM-DD HH:MM:SS`.
fn timestamp(columns: &[&str]) -> usize {
    let like = |word: &str, pattern: &str| {
        let digits_as_0 = |c: char| if c.is_ascii_digit() { '0' } else { c };
        word.chars().map(digits_as_0).eq(pattern.chars())
    };
    match columns {
        [.., date, time] if like(date, "0000-00-00") && like(time, "00:00:00") => 2,
        _ => 0,
    }
}

fn of_json(text: &str, stem: &str) -> Result<Vec<Collective>> {
    let value: Value = serde_json::from_str(text)?;
    let program = match &value["args"] {
        Value::Array(words) => words.first().and_then(Value::as_str),
        Value::String(words) => words.split_whitespace().next(),
        _ => None,
    };
    let Some(name) = program.and_then(collective).or_else(|| collective(stem)) else {
        bail!("neither `args` nor the file's name says which collective: expected one of them");
    };
    let ranks = value["config"]["devices"].as_array().map_or(0, Vec::len);
    ensure!(ranks > 0, "config.devices is empty: expected one device for each rank");
    let results = value["results"].as_array().context("no `results`")?;
    let mut found = Vec::new();
    for result in results {
        let time = [&result["out_of_place"], &result["in_place"]]
            .into_iter()
            .find_map(|of| of["time"].as_f64().or_else(|| of["cpu_time"].as_f64()));
        let (Some(bytes), Some(time)) = (result["size"].as_f64(), time) else { continue };
        found.extend(measured(bytes, time).then(|| point(&name, ranks, bytes, time)).transpose()?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# nccl-tests version 2.19.6 nccl-headers=22809 nccl-library=22809
# Collective test starting: all_reduce_perf
# nThread 1 nGpus 2 minBytes 8388608 maxBytes 33554432 step: 2(factor) warmup iters: 1 iters: 20 agg iters: 1 validation: 1 graph: 0
# Using devices
#  Rank  0 Group  0 Pid  1234 on  host device  0 [0000:1b:00] NVIDIA H100 80GB HBM3
#  Rank  1 Group  0 Pid  1234 on  host device  1 [0000:43:00] NVIDIA H100 80GB HBM3
#
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw  #wrong     time   algbw   busbw  #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)             (us)  (GB/s)  (GB/s)
     8388608       2097152     float     sum      -1    60.00  139.81  139.81       0    59.00  142.18  142.18       0
    33554432       8388608     float     sum      -1   180.00  186.41  186.41     N/A   179.00  187.46  187.46     N/A
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 163.9
";

    #[test]
    fn what_nccl_tests_prints_is_read() {
        let found = read(Path::new("x.txt"), TEXT).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].name.as_str(), found[0].ranks, found[0].bytes), ("all_reduce", 2, 8_388_608.0));
        assert!((found[0].bus_bandwidth() / 139.81e9 - 1.0).abs() < 1e-3, "{found:?}");
        assert!((found[1].algorithm_bandwidth() / 186.41e9 - 1.0).abs() < 1e-3);
    }

    #[test]
    fn an_older_output_takes_its_name_from_its_file_and_a_json_from_its_program() {
        let older: String = TEXT.lines().skip(2).map(|line| format!("{line}\n")).collect();
        assert_eq!(read(Path::new("alltoall_perf.txt"), &older).unwrap()[0].name, "alltoall");
        let message = read(Path::new("x.txt"), &older).unwrap_err();
        assert!(format!("{message:#}").contains("says which collective"), "{message:#}");
        let json = r#"{"version": 3, "args": ["./build/sendrecv_perf", "-g", "2"], "config": {"devices": [{"rank": 0}, {"rank": 1}]},
            "results": [{"size": 1000, "out_of_place": {"time": 10.0, "alg_bw": 0.1}, "in_place": null},
                        {"size": 2000, "out_of_place": null, "in_place": {"cpu_time": 12.0}}]}"#;
        let found = read(Path::new("x.json"), json).unwrap();
        assert_eq!((found.len(), found[1].name.as_str(), found[1].moved), (2, "sendrecv", 2000.0));
        let unnamed: String =
            TEXT.lines().filter(|line| !line.contains("algbw")).map(|line| format!("{line}\n")).collect();
        let message = format!("{:#}", read(Path::new("x.txt"), &unnamed).unwrap_err());
        assert!(message.contains("x.txt: no line `# size count ... time"), "{message}");
        for text in ["", "{}", "# Collective test starting: all_reduce_perf\n"] {
            assert!(read(Path::new("x"), text).is_err(), "{text:?}");
        }
    }

    /// With `-S 1` a row ends in two words more, which the line of names has as one, or not at all.
    #[test]
    fn timestamps_move_no_column_and_two_outputs_are_not_one() {
        let stamped: String =
            TEXT.lines()
                .map(|line| {
                    if line.starts_with("    ") { format!("{line} 2026-01-01 10:00:00\n") } else { format!("{line}\n") }
                })
                .collect();
        let named = stamped
            .replace("#wrong\n", "#wrong     timestamp\n")
            .replace("(us)  (GB/s)  (GB/s)\n", "(us)  (GB/s)  (GB/s)  (YYYY-MM-DD hh:mm:ss)\n");
        assert!(named.len() > stamped.len() + 20);
        let plain = read(Path::new("x.txt"), TEXT).unwrap();
        for text in [stamped, named] {
            assert_eq!(read(Path::new("x.txt"), &text).unwrap(), plain, "{text}");
        }
        let two = TEXT.to_owned() + &TEXT.replace("all_reduce", "alltoall");
        let message = format!("{:#}", read(Path::new("x.txt"), &two).unwrap_err());
        assert!(message.contains("x.txt: several lines `# Collective test starting`: expected"), "{message}");
    }

    /// Older layouts have no `root`, and `redop` only of what reduces, or named and left empty.
    #[test]
    fn times_stand_where_the_header_says() {
        let of = |names: &str, row: &str| {
            let ranks =
                "#  Rank  0 Pid  1 on  host device  0 [0x1b] A100\n#  Rank  1 Pid  1 on  host device  1 [0x43] A100\n";
            let rest = "time   algbw   busbw  error     time   algbw   busbw  error";
            format!(
                "{ranks}#\n#  size   count    type   {names}  {rest}\n#  (B)  (elements)   (us)  (GB/s)  (GB/s)\n{row}\n"
            )
        };
        let rest = "60.00  139.81  139.81  0e+00    59.00  142.18  142.18  0e+00";
        for (file, names, row) in [
            ("all_reduce.txt", "redop", "8388608  2097152  float  sum"),
            ("all_gather.txt", "", "8388608  1048576  float"),
            ("alltoall.txt", "redop", "8388608  1048576  float"),
            ("broadcast.txt", "redop  root", "8388608  2097152  float  none  -1"),
        ] {
            let found = read(Path::new(file), &of(names, &format!("{row}  {rest}"))).unwrap();
            assert_eq!((found.len(), found[0].bytes, found[0].times), (1, 8_388_608.0, [60.0 * 1e-6; 3]), "{file}");
        }
    }
}
