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

    /// Lines like `MemTotal:  24000000 kB`.
    fn parse(text: &str) -> Option<Self> {
        let bytes = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().trim_end_matches(" kB").parse::<f64>().ok().map(|kilobytes| kilobytes * 1024.0)
        };
        Some(Self { total: bytes("MemTotal:")?, available: bytes("MemAvailable:")? })
    }
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
