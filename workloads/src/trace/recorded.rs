//! Traces that were recorded and come with the program, by name.

use super::RoutingTrace;
use super::import::{ImportError, ImportOptions, Importer};

/// A trace of this project's own.
struct Recorded {
    name: &'static str,
    /// Where it is from.
    note: &'static str,
    /// Parquet, as `trace import` reads it.
    bytes: &'static [u8],
}

const ALL: [Recorded; 1] = [Recorded {
    name: "gpt-routing",
    note: "recorded by this program: a GPT of 24 MoE layers of 32 experts (results/h100/gpt-routing.toml) that learns the source text of Python packages, 3,000 iterations, every 15th; a rank is one of 16 samples of 1024 bytes",
    bytes: include_bytes!("../../traces/gpt-routing.parquet"),
}];

/// Names of all.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|recorded| recorded.name)
}

/// The trace of this name; none if no trace has it.
///
/// # Errors
/// A damaged file, which a test would have found.
pub fn named(name: &str) -> Option<Result<RoutingTrace, ImportError>> {
    ALL.iter().find(|recorded| recorded.name == name).map(Recorded::read)
}

impl Recorded {
    fn read(&self) -> Result<RoutingTrace, ImportError> {
        let mut importer = Importer::new(self.name, ImportOptions::default());
        importer.add("trace.parquet", &mut &*self.bytes)?;
        Ok(importer.finish()?.with_notes(vec![self.note.to_owned()]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::TraceStats;
    use super::*;

    #[test]
    fn the_traces_that_come_with_the_program_are_whole() {
        for name in names() {
            let trace = named(name).unwrap().unwrap();
            assert_eq!((trace.name(), trace.notes().len()), (name, 1));
            TraceStats::new(&trace, trace.shape().ranks).unwrap();
        }
        assert!(named("synthetic").is_none());
    }

    #[test]
    fn our_own_trace_has_the_shape_of_the_studys() {
        let trace = named("gpt-routing").unwrap().unwrap();
        let shape = trace.shape();
        assert_eq!((shape.layers, shape.experts, shape.ranks, shape.top_k), (24, 32, 16, 2));
        assert_eq!((trace.iterations().len(), trace.iterations()[199]), (200, 2986));
    }
}
