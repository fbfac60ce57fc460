//! What the machine is that this program runs on.

use std::fs;

/// One thing that `moebench doctor` looks for.
pub struct Finding {
    pub what: &'static str,
    /// What was found, or why not.
    pub found: Result<String, String>,
    /// What works with it.
    pub serves: &'static str,
}

/// Memory of the host, B.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Memory {
    pub total: f64,
    pub available: f64,
}

impl Memory {
    /// As Linux states it; none where the system does not.
    pub fn of_host() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/meminfo").ok()?)
    }

    /// The most that this program has held so far, B; none where the system does not state it.
    pub fn peak_of_program() -> Option<f64> {
        kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
    }

    /// Lines like `MemTotal:  24000000 kB`.
    fn parse(text: &str) -> Option<Self> {
        Some(Self { total: kilobytes(text, "MemTotal:")?, available: kilobytes(text, "MemAvailable:")? })
    }
}

/// What a line states in kB, in B.
fn kilobytes(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches(" kB").parse::<f64>().ok().map(|kilobytes| kilobytes * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:       24000000 kB\nMemFree:  1 kB\nMemAvailable:   12000000 kB\n";
        assert_eq!(Memory::parse(text), Some(Memory { total: 24.576e9, available: 12.288e9 }));
        assert_eq!(Memory::parse("MemTotal: 1 kB\n"), None);
    }
}
