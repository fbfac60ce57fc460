//! Reader of the routing trace published with SmartMoE (ATC'23).
//!
//! The artifact holds a text file per sampled iteration and rank, `table_iter{N}_rank{R}.log`, with a line per layer:
//! `layer:[[count of each expert] per micro-batch]`, the counts written as floats. The 8016 files are 145 MB of
//! text, so counts are read byte by byte, and a value is looked at again only when it is not plain. Nothing in the
//! files says how many experts a token chose: the artifact's gate is top-2.

use std::collections::BTreeMap;

use super::{BOM, MOST_ENTRIES, RoutingTrace, TraceError, TraceShape};

/// Choices per token of the artifact's gate, which its logs do not say.
const TOP_K: u32 = 2;

/// Collects the files of a trace, in any order.
pub struct ArtifactReader {
    name: String,
    top_k: u32,
    seen: usize,
    files: BTreeMap<(u32, u32), RankFile>,
    extents: Extents,
}

/// What one file holds.
struct RankFile {
    name: String,
    layers: usize,
    /// `[layer][micro_batch][expert]`
    counts: Vec<u32>,
}

/// Extents that all lines share, each known once the first line has been read.
#[derive(Clone, Copy, Default)]
struct Extents {
    micro_batches: Option<usize>,
    experts: Option<usize>,
    entries: Option<u64>,
}

impl ArtifactReader {
    /// A reader with no files yet; `name` is the name of the trace to be.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), top_k: TOP_K, seen: 0, files: BTreeMap::new(), extents: Extents::default() }
    }

    /// The same for logs of a gate of so many choices a token, where that is known.
    #[must_use]
    pub fn with_top_k(self, top_k: Option<u32>) -> Self {
        Self { top_k: top_k.unwrap_or(self.top_k), ..self }
    }

    /// Reads one file. Folders before the name do not matter, and files with other names are passed over.
    ///
    /// # Errors
    /// Text that is cut off or malformed, a value that is no whole count, a layer left out, extents or sums that
    /// differ from earlier lines, an iteration and rank given before. Each names file and line.
    pub fn add(&mut self, file_name: &str, text: &str) -> Result<(), TraceError> {
        self.add_bytes(file_name, text.as_bytes())
    }

    /// The trace of all files added.
    ///
    /// # Errors
    /// No file of the format, a rank that an iteration lacks, an iteration that is missing from the evenly spaced
    /// ones, a file with fewer layers than others, and what [`RoutingTrace::new`] refuses.
    pub fn finish(self) -> Result<RoutingTrace, TraceError> {
        let Some(last_rank) = self.files.keys().map(|&(_, rank)| rank).max() else {
            return Err(TraceError::NoFiles { name: self.name, files: self.seen });
        };
        let iterations = self.iterations(last_rank)?;
        let layers = self.layers()?;
        let shape = TraceShape {
            layers,
            micro_batches: self.extents.micro_batches.unwrap_or(0),
            ranks: last_rank as usize + 1,
            experts: self.extents.experts.unwrap_or(0),
            // Too many for 32 bits are too many for a trace.
            entries: self.extents.entries.unwrap_or(0).try_into().unwrap_or(u32::MAX),
            top_k: self.top_k,
        };
        let counts = interleave(&shape, iterations.len(), self.files.into_values());
        RoutingTrace::new(self.name, shape, iterations, counts)
    }

    pub(super) fn add_bytes(&mut self, file_name: &str, text: &[u8]) -> Result<(), TraceError> {
        self.seen += 1;
        let Some((iteration, rank)) = parse_name(file_name) else {
            return Ok(());
        };
        let file = file_name.to_string();
        if let Some(earlier) = self.files.get(&(iteration, rank)) {
            let earlier = earlier.name.clone();
            return Err(TraceError::Duplicate { file, iteration, rank, earlier });
        }
        let text = text.strip_prefix(BOM).unwrap_or(text);
        let mut counts = Vec::with_capacity(text.len() / 5);
        let mut layers = 0;
        for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let mut line = Line { file: &file, number: index + 1, text: line, at: 0 };
            line.read(layers, &mut self.extents, &mut counts)?;
            layers += 1;
        }
        if layers == 0 {
            let line = Line { file: &file, number: 1, text: b"", at: 0 };
            return Err(line.malformed("layer 0 as `0:[[counts], ..]`"));
        }
        counts.shrink_to_fit();
        self.files.insert((iteration, rank), RankFile { name: file, layers, counts });
        Ok(())
    }

    /// Labels of the samples, every rank of every one being there.
    fn iterations(&self, last_rank: u32) -> Result<Vec<u32>, TraceError> {
        let mut iterations = self.files.keys().map(|&(iteration, _)| iteration).collect::<Vec<_>>();
        iterations.dedup();
        let (first, last) = (iterations[0], iterations[iterations.len() - 1]);
        let step = iterations.windows(2).map(|pair| pair[1] - pair[0]).min().unwrap_or(1);
        for pair in iterations.windows(2) {
            if pair[1] - pair[0] != step {
                let (name, iteration) = (self.name.clone(), pair[0] + step);
                return Err(TraceError::MissingIteration { name, iteration, step, first, last });
            }
        }
        for &iteration in &iterations {
            let given = self.files.range((iteration, 0)..=(iteration, u32::MAX));
            if let Some(rank) = first_gap(given.map(|(&(_, rank), _)| rank), last_rank) {
                let name = self.name.clone();
                return Err(TraceError::MissingRank { name, iteration, rank, last_rank });
            }
        }
        Ok(iterations)
    }

    /// Layers of every file.
    fn layers(&self) -> Result<usize, TraceError> {
        let expected = self.files.values().map(|file| file.layers).max().unwrap_or(0);
        match self.files.values().find(|file| file.layers < expected) {
            Some(short) => Err(TraceError::ShortFile { file: short.name.clone(), layers: short.layers, expected }),
            None => Ok(expected),
        }
    }
}

/// Lowest number of `0..=last` that ascending `given` lacks.
fn first_gap(given: impl Iterator<Item = u32>, last: u32) -> Option<u32> {
    let mut expected = 0;
    for number in given {
        if number != expected {
            return Some(expected);
        }
        expected += 1;
    }
    (expected <= last).then_some(expected)
}

/// Files in order (iteration, rank) to `[iteration][layer][micro_batch][rank][expert]`; each is freed once copied.
fn interleave(shape: &TraceShape, iterations: usize, files: impl Iterator<Item = RankFile>) -> Vec<u32> {
    let mut counts = vec![0; iterations * shape.counts_per_iteration()];
    for (index, file) in files.enumerate() {
        let (iteration, rank) = (index / shape.ranks, index % shape.ranks);
        let start = iteration * shape.counts_per_iteration() + rank * shape.experts;
        for (place, row) in file.counts.chunks_exact(shape.experts).enumerate() {
            let at = start + place * shape.ranks * shape.experts;
            counts[at..at + shape.experts].copy_from_slice(row);
        }
    }
    counts
}

/// Iteration and rank of `[folder/]table_iter{N}_rank{R}.log`.
pub(super) fn parse_name(path: &str) -> Option<(u32, u32)> {
    let name = path.rsplit(['/', '\\']).next()?;
    let name = name.strip_suffix(".gz").or(name.strip_suffix(".xz")).unwrap_or(name);
    let numbers = name.strip_prefix("table_iter")?.strip_suffix(".log")?;
    let (iteration, rank) = numbers.split_once("_rank")?;
    let number = |digits: &str| {
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| digits.parse().ok()).flatten()
    };
    Some((number(iteration)?, number(rank)?))
}

/// A cursor in one line.
struct Line<'a> {
    file: &'a str,
    number: usize,
    text: &'a [u8],
    at: usize,
}

impl Line<'_> {
    /// Reads `layer:[[..], ..]`, appends its counts `[micro_batch][expert]`, and compares its extents.
    fn read(&mut self, layer: usize, extents: &mut Extents, counts: &mut Vec<u32>) -> Result<(), TraceError> {
        let found = self.layer_number()?;
        if found != layer {
            let (file, line) = (self.file.to_string(), self.number);
            return Err(TraceError::MissingLayer { file, line, found, expected: layer });
        }
        self.expect(b':', "`:` after the layer number")?;
        self.expect(b'[', "`[` before the first micro-batch")?;
        let mut micro_batch = 0;
        loop {
            self.expect(b'[', "`[` before the counts of a micro-batch")?;
            self.row(micro_batch, extents, counts)?;
            micro_batch += 1;
            match self.next_of(b',', b']', "`,` or `]` after a micro-batch")? {
                b',' => continue,
                _ => break,
            }
        }
        self.skip_blanks();
        if self.at < self.text.len() {
            return Err(self.malformed("the end of the line"));
        }
        self.compare("micro-batches", micro_batch, &mut extents.micro_batches)
    }

    /// Reads the counts of one micro-batch, after its `[`.
    fn row(&mut self, micro_batch: usize, extents: &mut Extents, counts: &mut Vec<u32>) -> Result<(), TraceError> {
        let (mut expert, mut sum) = (0, 0);
        loop {
            let count = match self.plain_count() {
                Some(count) => count,
                None => self.other_count(micro_batch, expert)?,
            };
            counts.push(count);
            sum += u64::from(count);
            expert += 1;
            match self.next_of(b',', b']', "`,` or `]` after a count")? {
                b',' => continue,
                _ => break,
            }
        }
        self.compare("experts", expert, &mut extents.experts)?;
        let expected = *extents.entries.get_or_insert(sum);
        if sum != expected {
            let (file, line) = (self.file.to_string(), self.number);
            return Err(TraceError::RowSum { file, line, micro_batch, sum, expected });
        }
        Ok(())
    }

    /// Digits followed by `.0`: how the artifact writes every count. Leaves the cursor where it was otherwise.
    fn plain_count(&mut self) -> Option<u32> {
        let (mut at, mut count) = (self.at, 0_u32);
        while let Some(&digit @ b'0'..=b'9') = self.text.get(at) {
            if at - self.at == 9 {
                return None;
            }
            count = count * 10 + u32::from(digit - b'0');
            at += 1;
        }
        let plain = at > self.at
            && count <= MOST_ENTRIES
            && self.text.get(at..at + 2) == Some(b".0")
            && matches!(self.text.get(at + 2), Some(b',' | b']'));
        plain.then(|| self.at = at + 2)?;
        Some(count)
    }

    /// Any other way to write a whole number, or an error that says what stands there instead.
    fn other_count(&mut self, micro_batch: usize, expert: usize) -> Result<u32, TraceError> {
        self.skip_blanks();
        let rest = &self.text[self.at..];
        let ends = |byte: &u8| matches!(byte, b',' | b'[' | b']' | b' ' | b'\t' | b'\r');
        let length = rest.iter().position(ends).unwrap_or(rest.len());
        let value = String::from_utf8_lossy(&rest[..length]).into_owned();
        let Ok(number) = value.parse::<f64>() else {
            return Err(self.malformed("a count"));
        };
        if self.at + length == self.text.len() {
            self.at += length;
            return Err(self.malformed("`,` or `]` after a count"));
        }
        if !(0.0..=f64::from(MOST_ENTRIES)).contains(&number) || number.fract() != 0.0 {
            let (file, line) = (self.file.to_string(), self.number);
            return Err(TraceError::NotACount { file, line, micro_batch, expert, value });
        }
        self.at += length;
        Ok(number as u32)
    }

    fn layer_number(&mut self) -> Result<usize, TraceError> {
        self.skip_blanks();
        let digits = self.text[self.at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let text = std::str::from_utf8(&self.text[self.at..self.at + digits]).unwrap_or_default();
        let number = text.parse().map_err(|_| self.malformed("a layer number"))?;
        self.at += digits;
        Ok(number)
    }

    fn expect(&mut self, byte: u8, expected: &'static str) -> Result<(), TraceError> {
        self.next_of(byte, byte, expected).map(drop)
    }

    /// Steps over one of two bytes and the blanks around it.
    fn next_of(&mut self, one: u8, other: u8, expected: &'static str) -> Result<u8, TraceError> {
        self.skip_blanks();
        match self.text.get(self.at) {
            Some(&byte) if byte == one || byte == other => {
                self.at += 1;
                self.skip_blanks();
                Ok(byte)
            }
            _ => Err(self.malformed(expected)),
        }
    }

    fn skip_blanks(&mut self) {
        while let Some(b' ' | b'\t' | b'\r') = self.text.get(self.at) {
            self.at += 1;
        }
    }

    fn compare(&self, what: &'static str, found: usize, known: &mut Option<usize>) -> Result<(), TraceError> {
        let expected = *known.get_or_insert(found);
        if found == expected {
            return Ok(());
        }
        Err(TraceError::Extent { file: self.file.to_string(), line: self.number, what, found, expected })
    }

    fn malformed(&self, expected: &'static str) -> TraceError {
        let rest = &self.text[self.at.min(self.text.len())..];
        let found = match rest {
            [] => "the end of the line".to_string(),
            _ => format!("{:?}", String::from_utf8_lossy(&rest[..rest.len().min(20)])),
        };
        let (file, line, column) = (self.file.to_string(), self.number, self.at + 1);
        TraceError::Malformed { file, line, column, expected, found }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::OnceLock;

    use super::*;
    use crate::shared_data::shared_data;
    use crate::trace::{ImportOptions, Importer};

    /// The published trace, read once.
    pub(in crate::trace) fn real_trace() -> &'static RoutingTrace {
        static TRACE: OnceLock<RoutingTrace> = OnceLock::new();
        TRACE.get_or_init(|| {
            let mut file = std::fs::File::open(shared_data("moe_trace.tar.xz")).unwrap();
            let mut importer = Importer::new("smartmoe-ae", ImportOptions::default());
            importer.add("moe_trace.tar.xz", &mut file).unwrap();
            importer.finish().unwrap()
        })
    }

    const LINE_0: &str = "0:[[1.0, 3.0, 4.0], [4.0, 4.0, 0.0]]\n";
    const LINE_1: &str = "1:[[4.0, 0.0, 4.0], [2.0, 2.0, 4.0]]\n";

    fn read(files: &[(&str, &str)]) -> Result<RoutingTrace, TraceError> {
        let mut reader = ArtifactReader::new("t");
        for (name, text) in files {
            reader.add(name, text)?;
        }
        reader.finish()
    }

    fn check_error(files: &[(&str, &str)], message: &str) {
        let error = read(files).expect_err(message);
        assert_eq!(error.to_string(), message);
    }

    fn check_line(line: &str, message: &str) {
        check_error(&[("table_iter1_rank0.log", &format!("{LINE_0}{line}"))], message);
    }

    #[test]
    fn reads_files_in_any_order() {
        let text = format!("{LINE_0}{LINE_1}");
        let other = text.replace("[4.0, 4.0, 0.0]", "[4, 1e0,3.00 ]");
        let trace = read(&[
            ("a/table_iter11_rank1.log", &other),
            ("a/table_iter1_rank0.log", &text),
            ("a/README", "not a trace"),
            ("table_iter11_rank0.log", &text),
            ("table_iter1_rank1.log", &text),
        ])
        .unwrap();
        assert_eq!(trace.iterations(), [1, 11]);
        assert_eq!(trace.shape().rows(), 4);
        assert_eq!((trace.shape().entries, trace.shape().top_k), (8, 2));
        assert_eq!(trace.row(1, 0, 1, 1), [4, 1, 3]);
        assert_eq!(trace.row(0, 1, 0, 1), [4, 0, 4]);
    }

    #[test]
    fn says_what_is_wrong_with_a_line() {
        let at = "table_iter1_rank0.log, line 2";
        check_line(
            "1:[[4.0, 0.0, 4.",
            &format!("{at}, column 17: expected `,` or `]` after a count, found the end of the line"),
        );
        check_line(
            "1:[[4.0, 0.0, 4.0], [2.0,",
            &format!("{at}, column 26: expected a count, found the end of the line"),
        );
        check_line(
            "1:[[4.0, 0.0, 4.0]",
            &format!("{at}, column 19: expected `,` or `]` after a micro-batch, found the end of the line"),
        );
        check_line("1:[[4.0, x, 4.0]]", &format!("{at}, column 10: expected a count, found \"x, 4.0]]\""));
        check_line("layer 1", &format!("{at}, column 1: expected a layer number, found \"layer 1\""));
        check_line(
            &LINE_1.replace("]]", "]] 5"),
            &format!("{at}, column 38: expected the end of the line, found \"5\""),
        );
        let value = |value: &str| {
            format!("{at}: micro-batch 0, expert 1 is {value}, expected a whole number of entries from 0 to 2^30")
        };
        for bad in ["NaN", "-1.0", "0.5", "inf", "1e300"] {
            check_line(&LINE_1.replacen("0.0", bad, 1), &value(bad));
        }
        check_line(&LINE_1.replacen("1:", "2:", 1), &format!("{at}: found layer 2, layer 1 is missing"));
        check_line(
            &LINE_1.replacen("4.0", "3.0", 1),
            &format!("{at}: micro-batch 0 sums to 7, expected 8 entries as in the rows before"),
        );
        check_line("1:[[4.0, 4.0]]", &format!("{at}: 2 experts, expected 3 as in the lines before"));
        check_line("1:[[4.0, 4.0, 0.0]]", &format!("{at}: 1 micro-batches, expected 2 as in the lines before"));
    }

    #[test]
    fn says_what_is_missing() {
        let text = format!("{LINE_0}{LINE_1}");
        let (a, b) = (("table_iter1_rank0.log", &*text), ("table_iter1_rank2.log", &*text));
        check_error(&[a, b], "t: iteration 1 has no rank 1, expected a file table_iter1_rank1.log (ranks 0 to 2)");
        let late = [("table_iter11_rank0.log", &*text), ("table_iter31_rank0.log", &*text)];
        check_error(&[a, late[0], late[1]], "t: iteration 21 is missing, expected every 10 iterations from 1 to 31");
        check_error(
            &[a, ("table_iter11_rank0.log", LINE_0)],
            "table_iter11_rank0.log: ends after 1 layers, layer 1 is missing (other files have 2 layers)",
        );
        check_error(
            &[a, ("x/table_iter1_rank0.log", &*text)],
            "x/table_iter1_rank0.log: iteration 1, rank 0 was already given by table_iter1_rank0.log",
        );
        check_error(
            &[("README", ""), ("table_iterx_rank0.log", "")],
            "t: none of 2 files is named table_iter<N>_rank<R>.log",
        );
        check_error(
            &[("table_iter1_rank0.log", "\n")],
            "table_iter1_rank0.log, line 1, column 1: expected layer 0 as `0:[[counts], ..]`, found the end of the line",
        );
        let above = LINE_0.replacen("[1.0, 3.0, 4.0]", "[1.0, 2.0, 5.0]", 1);
        check_error(
            &[("table_iter1_rank0.log", &above)],
            "iteration 1, layer 0, micro-batch 0, rank 0: expert 2 has 5 entries, expected at most 4 (a token's 2 choices differ)",
        );
    }

    #[test]
    #[ignore = "needs MOEBENCH_SHARED: the published trace"]
    fn reads_the_published_trace() {
        let trace = real_trace();
        let expected = TraceShape { layers: 24, micro_batches: 4, ranks: 16, experts: 32, entries: 4096, top_k: 2 };
        assert_eq!(*trace.shape(), expected);
        assert_eq!(trace.iterations().len(), 501);
        assert_eq!(trace.iterations()[500], 5001);
        assert_eq!(trace.row(168, 0, 0, 5)[18], 808);
    }
}
