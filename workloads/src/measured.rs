//! Operations of a training program, measured one by one on a GPU: a cluster may state what they take. The cost model takes these
//! times for the shapes that they were measured on, and its formulas for all others.

use serde::Deserialize;

use crate::error::ConfigError;

/// Parts of a training step that run on one GPU and wait for no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// A block without gate and experts. Its unit is a sample.
    Block,
    /// Scores, choice, and rows back at their tokens; rows put into the order of the exchange, too, where that has no line. Its unit is a
    /// token. Its shape leaves out how many experts a token chooses and whether a capacity bounds them: a line holds for the one top-k and
    /// kind of gate, bounded or not, that it was measured with, and a cluster states one.
    Gate,
    /// Rows put into the order of the exchange once the counts of all ranks are known, forward. Its unit is a token, its shape the gate's, whose
    /// line holds the rest; a cluster without one has it in the gate's line.
    Permute,
    /// One of a rank's experts. Its unit is a row. A rank's experts then run in grouped products, whatever a program says, as the trainer's do on a GPU:
    /// beside the start of each they cost one call.
    Expert,
    /// Embedding, head and loss together. Their unit is a sample.
    Edges,
    /// The optimizer's step. Its unit is a parameter.
    Optimizer,
}

impl Operation {
    /// As it is written in a cluster's TOML.
    pub fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Gate => "gate",
            Self::Permute => "permute",
            Self::Expert => "expert",
            Self::Edges => "edges",
            Self::Optimizer => "optimizer",
        }
    }

    /// Whether it has a backward pass of its own.
    pub fn has_backward(self) -> bool {
        !matches!(self, Self::Permute | Self::Optimizer)
    }
}

/// What an operation of one shape takes.
///
/// A host issues operations in order and does not wait for its GPU, so that operations queue up: the GPU then takes its own time for
/// each, `queued`, as long as the host takes no longer to issue them, `issue`. Where a cluster does not state these two, every
/// operation takes what it took from an idle GPU on, `forward` and `backward`, and hosts take no time.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredOperation {
    /// Which.
    pub operation: Operation,
    /// What it was measured on, as [`crate::model::shapes`] writes it; empty for the optimizer.
    pub shape: String,
    /// The forward pass, or the whole of an operation that has one: from an idle GPU until it is idle again or, of ranks with a GPU each, in an
    /// iteration whose hosts wait around every exchange.
    pub forward: Line,
    /// The backward pass, likewise; none where there is no such ([`Operation::has_backward`]).
    pub backward: Option<Line>,
    /// What the GPU takes behind other work, when all is issued before it begins.
    pub queued: Option<Passes>,
    /// What the host takes to issue it.
    pub issue: Option<Passes>,
    /// Where the times come from.
    pub source: String,
}

/// The passes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passes {
    /// The forward pass, or the whole of an operation that has one.
    pub forward: Line,
    /// The backward pass; none where there is no such ([`Operation::has_backward`]).
    pub backward: Option<Line>,
}

/// A time that grows with a number of units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Without any unit, s.
    pub start: f64,
    /// For each unit, s.
    pub unit: f64,
    /// Of experts, once for all that run together, s.
    #[serde(default)]
    pub call: f64,
    /// The largest distance of a measured time from the line, as a share of that time.
    pub error: Option<f64>,
}

impl Line {
    /// The time of that many units, s.
    pub fn of(&self, units: f64) -> f64 {
        self.of_several(1.0, units)
    }

    /// The time of so many experts that run together on so many rows in all, s.
    pub fn of_several(&self, experts: f64, rows: f64) -> f64 {
        self.call + self.start * experts + self.unit * rows
    }
}

impl MeasuredOperation {
    /// From an idle GPU until it is idle again.
    pub fn alone(&self) -> Passes {
        Passes { forward: self.forward, backward: self.backward }
    }

    /// Whether its times are numbers of at least 0, with a source.
    pub(crate) fn check(&self, file: &str) -> Result<(), ConfigError> {
        let field = |part: &str| format!("gpu.measured {} ({}): {part}", self.operation.name(), self.shape);
        let all = [("", Some(self.alone())), ("queued.", self.queued), ("issue.", self.issue)];
        for (path, passes) in all.into_iter().filter_map(|(path, passes)| Some((path, passes?))) {
            self.check_passes(file, passes, &|part| field(&format!("{path}{part}")))?;
        }
        if let (Some(_), None) | (None, Some(_)) = (self.queued, self.issue) {
            let missing = if self.queued.is_none() { "queued" } else { "issue" };
            return Err(ConfigError::value(file, field(missing), "missing", "queued and issue, or neither"));
        }
        if self.source.trim().is_empty() {
            return Err(ConfigError::value(file, field("source"), "\"\"", "where the times come from"));
        }
        Ok(())
    }

    fn check_passes(&self, file: &str, passes: Passes, field: &dyn Fn(&str) -> String) -> Result<(), ConfigError> {
        for (pass, line) in [("forward", Some(passes.forward)), ("backward", passes.backward)] {
            let Some(Line { start, unit, call, error }) = line else { continue };
            for (part, value) in [("start", start), ("unit", unit), ("call", call), ("error", error.unwrap_or(0.0))] {
                if !(value.is_finite() && value >= 0.0) {
                    let field = field(&format!("{pass}.{part}"));
                    return Err(ConfigError::value(file, field, value, "a number of at least 0"));
                }
            }
            if call > 0.0 && self.operation != Operation::Expert {
                let field = field(&format!("{pass}.call"));
                return Err(ConfigError::value(file, field, call, "none but for experts, which run together"));
            }
        }
        if passes.backward.is_some() != self.operation.has_backward() {
            let found = if passes.backward.is_some() { "given" } else { "missing" };
            let expected = "one for every operation but permute and optimizer";
            return Err(ConfigError::value(file, field("backward"), found, expected));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cluster;

    fn with(measured: &str) -> Result<Cluster, ConfigError> {
        Cluster::parse("c.toml", &format!("{}\n{measured}", Cluster::text("test", "inky").unwrap()))
    }

    #[test]
    fn measured_operations_are_read_and_checked() {
        let good = "[[gpu.measured]]\noperation = \"expert\"\nshape = \"8 wide\"\nforward = { start = 1e-6, unit = 2e-9 }\n\
                    backward = { start = 2e-6, unit = 4e-9, error = 0.1 }\nsource = \"a test\"\n";
        let cluster = with(good).unwrap();
        assert_eq!(cluster.gpu.measured[0].operation, Operation::Expert);
        assert_eq!(cluster.gpu.measured[0].backward.unwrap().error, Some(0.1));
        let bad = |from: &str, to: &str, expected: &str| {
            let message = with(&good.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        bad("start = 1e-6", "start = -1e-6", "gpu.measured expert (8 wide): forward.start = -0.000001");
        bad("unit = 4e-9", "unit = nan", "backward.unit = NaN");
        bad("unit = 4e-9", "unit = 4e-9, call = -1", "backward.call = -1");
        let of_gate = good.replace("expert", "gate").replacen("unit = 4e-9", "unit = 4e-9, call = 1e-6", 1);
        let message = with(&of_gate).unwrap_err().to_string();
        assert!(message.contains("backward.call = 0.000001: expected none but for experts"), "{message}");
        bad("\"a test\"", "\" \"", "source");
        bad(
            "operation = \"expert\"",
            "operation = \"optimizer\"",
            "backward = given: expected one for every operation but permute",
        );
        let both = "queued = { forward = { start = 0, unit = 2e-9 }, backward = { start = 0, unit = 4e-9 } }\n\
                    issue = { forward = { start = 1e-6, unit = 0 }, backward = { start = 2e-6, unit = 0 } }\nsource";
        let ahead = with(&good.replacen("source", both, 1)).unwrap();
        let Some(Passes { forward, backward: Some(_) }) = ahead.gpu.measured[0].issue else { panic!("{ahead:?}") };
        assert_eq!((forward.of(4.0), ahead.gpu.measured[0].queued.unwrap().forward.of(4.0)), (1e-6, 8e-9));
        let (queued, issue) = both.trim_end_matches("\nsource").split_once('\n').unwrap();
        bad("source", &format!("{queued}\nsource"), "issue = missing: expected queued and issue, or neither");
        bad("source", &format!("{issue}\nsource"), "queued = missing");
        bad("source", &both.replacen("unit = 0 }", "unit = -1 }", 1), "issue.forward.unit = -1");
        bad("source", &both.replace(", backward = { start = 2e-6, unit = 0 }", ""), "issue.backward = missing");
        let twice = with(&format!("{good}{good}")).unwrap_err().to_string();
        assert!(twice.contains("gpu.measured expert (8 wide)") && twice.contains("once"), "{twice}");
    }
}
