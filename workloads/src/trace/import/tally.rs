//! From counts under any labels to a trace: dense, numbered from 0, all rows of one size.
//!
//! Every change is a note of the trace: labels that are renumbered, layers and iterations without entries that are left
//! out, rows without entries that take the shares of their layer, rows of different sizes that are scaled to one.
//!
//! Memory is bounded before it is taken: rows grow to [`LEAST_LIMIT`] counts, or to [`MOST_SPARSE`] counts for every value
//! that was read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use super::super::apportion::Apportion;
use super::super::{Choices, MOST_COUNTS, MOST_ENTRIES, Place, RoutingTrace, TraceError, TraceShape, check_choices};
use super::{ImportError, ImportOptions, MOST_EXTENT};

/// A trace of this many counts is small, however few values it is made from.
const LEAST_LIMIT: usize = 1 << 24;
/// Counts for every value that was read; beyond, labels are wrong.
const MOST_SPARSE: usize = 256;

/// Where a row of counts belongs, as labelled in files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) iteration: u32,
    pub(super) layer: u32,
    pub(super) micro_batch: u32,
    pub(super) rank: u32,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { iteration, layer, micro_batch, rank } = self;
        write!(f, "iteration {iteration}, layer {layer}, micro-batch {micro_batch}, rank {rank}")
    }
}

/// What the numbers in a file's path say of everything in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) iteration: Option<u32>,
    pub(super) layer: Option<u32>,
    pub(super) micro_batch: Option<u32>,
    pub(super) rank: Option<u32>,
}

impl Origin {
    /// From words with a number, as `iter_0100/layer_03`; the last of a word counts.
    ///
    /// # Errors
    /// A number that is out of range.
    pub(super) fn of_path(path: &str) -> Result<Self, ImportError> {
        let number = |words: &[&str], most: u64| {
            let found = words.iter().find_map(|word| Some((word, digits_after(path, word)?)));
            let Some((word, digits)) = found else { return Ok(None) };
            match digits.parse().ok().filter(|&number| u64::from(number) <= most) {
                Some(number) => Ok(Some(number)),
                None => {
                    let found = format!("{word} {digits} in the name");
                    Err(ImportError::file(path, found, format!("a number from 0 to {most}")))
                }
            }
        };
        Ok(Self {
            iteration: number(&["iteration", "iter", "step"], u64::from(u32::MAX))?,
            layer: number(&["layer"], MOST_EXTENT - 1)?,
            micro_batch: number(&["micro_batch", "microbatch"], MOST_EXTENT - 1)?,
            rank: number(&["rank"], MOST_EXTENT - 1)?,
        })
    }

    pub(super) fn key(self) -> Key {
        let or_0 = |number: Option<u32>| number.unwrap_or(0);
        Key {
            iteration: or_0(self.iteration),
            layer: or_0(self.layer),
            micro_batch: or_0(self.micro_batch),
            rank: or_0(self.rank),
        }
    }
}

/// The digits that follow a word, with `_` or `-` between them or nothing.
fn digits_after<'p>(path: &'p str, word: &str) -> Option<&'p str> {
    let lower = path.to_ascii_lowercase();
    let digits = |(at, _): (usize, &str)| {
        let rest = path[at + word.len()..].trim_start_matches(['_', '-']);
        let other = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        Some(&rest[..rest.len() - other.len()]).filter(|digits| !digits.is_empty())
    };
    lower.match_indices(word).filter_map(digits).last()
}

/// One row: counts by expert, and the table that gave each.
#[derive(Default)]
struct Row {
    counts: Vec<u64>,
    given_by: Vec<u32>,
    /// The array that listed its tokens.
    listed_by: u32,
    /// Whether tokens were listed; padded ones have fewer choices than others.
    listed: bool,
}

impl Row {
    /// Entries; where listed tokens are padded, as many as leave room for those of the busiest expert.
    fn size(&self, top_k: u32) -> u128 {
        let most = self.counts.iter().max().map_or(0, |&most| u128::from(most) * u128::from(top_k));
        if self.listed { sum(&self.counts).max(most) } else { sum(&self.counts) }
    }
}

/// Collects counts.
#[derive(Default)]
pub(super) struct Tally {
    places: HashMap<Key, usize>,
    keys: Vec<Key>,
    rows: Vec<Row>,
    /// The row of the value before.
    last: Option<(Key, usize)>,
    /// Counts in all rows.
    held: usize,
    /// Values read.
    values: usize,
    /// Number of the table that is read, from 1.
    table: u32,
    /// Files of the tables.
    files: Vec<String>,
    /// The first table of the archive that is read.
    archive: Option<u32>,
    /// Tokens read into every key's first micro-batch.
    tokens: HashMap<Key, usize>,
    /// Highest number of experts that an array has room for.
    experts: usize,
    /// Choices of a token, where files list them.
    pub(super) choices: u32,
    pub(super) stated_top_k: Option<u32>,
    pub(super) stated_notes: Vec<String>,
    pub(super) stated_choices: Choices,
}

impl Tally {
    pub(super) fn is_empty(&self) -> bool {
        self.table == 0
    }

    /// Another table begins; what it gives adds to what others gave.
    pub(super) fn begin(&mut self, file: &str) {
        self.table += 1;
        self.files.push(file.to_owned());
    }

    /// An archive begins: what one of its tables gives, no other may. Gives what was before, for [`Self::leave_archive`].
    pub(super) fn enter_archive(&mut self) -> Option<u32> {
        let outer = self.archive;
        self.archive = outer.or(Some(self.table + 1));
        outer
    }

    /// The archive ends.
    pub(super) fn leave_archive(&mut self, outer: Option<u32>) {
        self.archive = outer;
    }

    /// An array with room for so many experts.
    pub(super) fn check_experts(&mut self, file: &str, experts: usize) -> Result<(), ImportError> {
        if experts as u64 > MOST_EXTENT {
            let expected = format!("at most {MOST_EXTENT}");
            return Err(ImportError::file(file, format!("{experts} experts"), expected));
        }
        self.experts = self.experts.max(experts);
        Ok(())
    }

    /// A count that stands once in a table.
    pub(super) fn set(
        &mut self,
        file: &str,
        at: impl Fn() -> String,
        key: Key,
        expert: usize,
        count: u64,
    ) -> Result<(), ImportError> {
        let (table, archive) = (self.table, self.archive);
        let row = self.row(file, key, expert)?;
        let before = row.given_by[expert];
        if before == table {
            return Err(ImportError::Value {
                file: file.into(),
                at: at(),
                field: format!("expert {expert} of {key}"),
                found: "given a second time".into(),
                expected: "one count (is a column of iterations, layers, micro-batches or ranks not named?)".into(),
            });
        }
        if archive.is_some_and(|first| before >= first) {
            return Err(self.given_twice(file, at(), key, before));
        }
        row.given_by[expert] = table;
        row.counts[expert] = row.counts[expert].saturating_add(count);
        Ok(())
    }

    /// One entry of a token.
    pub(super) fn add(&mut self, file: &str, key: Key, expert: usize) -> Result<(), ImportError> {
        let row = self.row(file, key, expert)?;
        row.counts[expert] += 1;
        row.listed = true;
        Ok(())
    }

    /// One entry of a token in an array, which holds all tokens of its rows.
    pub(super) fn add_of_array(
        &mut self,
        file: &str,
        at: impl Fn() -> String,
        key: Key,
        expert: usize,
    ) -> Result<(), ImportError> {
        let (table, archive) = (self.table, self.archive);
        let row = self.row(file, key, expert)?;
        let before = std::mem::replace(&mut row.listed_by, table);
        if before != table && archive.is_some_and(|first| before >= first) {
            return Err(self.given_twice(file, at(), key, before));
        }
        row.counts[expert] += 1;
        row.listed = true;
        Ok(())
    }

    /// What two files of an archive say.
    fn given_twice(&self, file: &str, at: String, key: Key, before: u32) -> ImportError {
        ImportError::Value {
            file: file.into(),
            at,
            field: key.to_string(),
            found: format!("in {}, too", self.files[before as usize - 1]),
            expected:
                "it once in an archive (numbers of iterations, layers, micro-batches or ranks in names tell arrays \
                       apart; files of a folder add up)"
                    .into(),
        }
    }

    /// Which micro-batch the next token of a key goes to.
    pub(super) fn micro_batch_of_token(&mut self, key: Key, tokens_per_micro_batch: Option<usize>) -> Key {
        let Some(size) = tokens_per_micro_batch else {
            return key;
        };
        let seen = self.tokens.entry(key).or_default();
        let batch = *seen / size.max(1);
        *seen += 1;
        Key { micro_batch: key.micro_batch.saturating_add(u32::try_from(batch).unwrap_or(u32::MAX)), ..key }
    }

    /// The row of a key, with room for an expert.
    fn row(&mut self, file: &str, key: Key, expert: usize) -> Result<&mut Row, ImportError> {
        self.values += 1;
        if expert as u64 >= MOST_EXTENT || u64::from(key.micro_batch) >= MOST_EXTENT {
            let found = format!("expert {expert}, micro-batch {}", key.micro_batch);
            return Err(ImportError::file(file, found, format!("numbers below {MOST_EXTENT}")));
        }
        let place = match self.last {
            Some((last, place)) if last == key => place,
            _ => *self.places.entry(key).or_insert_with(|| {
                self.keys.push(key);
                self.rows.push(Row::default());
                self.rows.len() - 1
            }),
        };
        self.last = Some((key, place));
        let row = &mut self.rows[place];
        if expert >= row.counts.len() {
            self.held += expert + 1 - row.counts.len();
            check_held(file, self.held, self.values)?;
            row.counts.resize(expert + 1, 0);
            row.given_by.resize(expert + 1, 0);
        }
        Ok(row)
    }

    /// The trace of all that was collected.
    pub(super) fn finish(mut self, name: String, options: &ImportOptions) -> Result<RoutingTrace, ImportError> {
        if options.cumulative {
            self.undo_totals(&name)?;
        }
        let widest = self.rows.iter().map(|row| row.counts.len()).max().unwrap_or(0).max(self.experts);
        let experts = options.experts.unwrap_or(widest);
        if experts < widest || experts as u64 > MOST_EXTENT {
            let expected = format!("{widest} (the highest number is {}) to {MOST_EXTENT}", widest.saturating_sub(1));
            return Err(TraceError::field("experts", experts, expected).into());
        }
        let mut notes = std::mem::take(&mut self.stated_notes);
        notes.dedup();
        let labels = Labels::new(&self, &name, &mut notes)?;
        let size = labels.size(experts);
        let limit = self.values.saturating_mul(MOST_SPARSE).clamp(LEAST_LIMIT, MOST_COUNTS);
        let Some(size) = size.filter(|&size| size <= limit) else {
            let found = format!("labels of {} counts or more from {} values", limit as u64 + 1, self.values);
            return Err(ImportError::file(&name, found, format!("at most {limit} counts")));
        };
        let top_k = self.top_k(options, &labels, &mut notes)?;
        check_choices(experts, "entries", top_k, top_k)?;
        let entries = self.entries(options, experts, top_k)?;
        let mut builder = Builder::new(&self, &labels, experts, entries, top_k);
        let mut counts = Vec::with_capacity(size);
        builder.fill(&mut counts);
        builder.say(&mut notes);
        let shape = TraceShape {
            layers: labels.layers.len(),
            micro_batches: labels.micro_batches.len(),
            ranks: labels.ranks.len(),
            experts,
            entries,
            top_k,
        };
        let trace = RoutingTrace::new(name, shape, labels.iterations, counts)?;
        Ok(trace.with_notes(notes).chosen_by(self.stated_choices))
    }

    /// Replaces running totals by their increase.
    fn undo_totals(&mut self, name: &str) -> Result<(), ImportError> {
        let mut order: Vec<usize> = (0..self.keys.len()).collect();
        let series = |key: Key| (key.layer, key.micro_batch, key.rank);
        order.sort_by_key(|&row| (series(self.keys[row]), std::cmp::Reverse(self.keys[row].iteration)));
        // From the last iteration back, so that the one before is still a total.
        for pair in order.windows(2) {
            let (later, before) = (pair[0], pair[1]);
            if series(self.keys[later]) != series(self.keys[before]) {
                continue;
            }
            let earlier = std::mem::take(&mut self.rows[before].counts);
            for (expert, total) in earlier.iter().enumerate() {
                let now = self.rows[later].counts.get(expert).copied().unwrap_or(0);
                let Some(increase) = now.checked_sub(*total) else {
                    let place = describe(self.keys[later]);
                    return Err(ImportError::Value {
                        file: name.into(),
                        at: place,
                        field: format!("expert {expert}"),
                        found: now.to_string(),
                        expected: format!("a total of at least {total}, as in the iteration before"),
                    });
                };
                if let Some(count) = self.rows[later].counts.get_mut(expert) {
                    *count = increase;
                }
            }
            self.rows[before].counts = earlier;
        }
        Ok(())
    }

    /// Choices per token: as told, as stated, as listed; otherwise the artifact's 2 where the counts allow it.
    fn top_k(&self, options: &ImportOptions, labels: &Labels, notes: &mut Vec<String>) -> Result<u32, ImportError> {
        let listed = (self.choices > 0).then_some(self.choices);
        let known = options.top_k.or(self.stated_top_k).or(listed);
        let top_k = known.unwrap_or(2);
        let breaks = |row: &Row| {
            if row.listed && top_k <= self.choices {
                // No token chose an expert twice, and padded ones are more than entries over choices.
                return false;
            }
            let most = row.counts.iter().max().map_or(0, |&most| u128::from(most));
            most * u128::from(top_k) > sum(&row.counts)
        };
        match known {
            None => {
                let odd = |row: &Row| !sum(&row.counts).is_multiple_of(2);
                let top_k = if self.rows.iter().any(|row| breaks(row) || odd(row)) { 1 } else { 2 };
                notes.push(format!("choices per token are not stated, taken as {top_k}"));
                Ok(top_k)
            }
            Some(top_k) => match self.rows.iter().position(breaks) {
                Some(row) => Err(self.above_cap(labels, row, top_k)),
                None => Ok(top_k),
            },
        }
    }

    fn above_cap(&self, labels: &Labels, row: usize, top_k: u32) -> ImportError {
        let (key, counts) = (self.keys[row], &self.rows[row].counts);
        let cap = sum(counts) / u128::from(top_k.max(1));
        let expert = counts.iter().position(|&count| u128::from(count) > cap).unwrap_or(0);
        let most = counts.iter().max().map_or(1, |&max| sum(counts) / u128::from(max.max(1)));
        ImportError::Value {
            file: labels.name.clone(),
            at: describe(key),
            field: format!("expert {expert}"),
            found: format!("{} entries of {}", counts[expert], sum(counts)),
            expected: format!(
                "at most {cap}, as a token's {top_k} choices differ (these counts allow a top_k of {most})"
            ),
        }
    }

    /// Entries per row of the trace.
    fn entries(&self, options: &ImportOptions, experts: usize, top_k: u32) -> Result<u32, ImportError> {
        let most = MOST_ENTRIES / top_k * top_k;
        let entries = match options.entries {
            Some(entries) => entries,
            None => {
                let fullest = self.rows.iter().map(|row| row.size(top_k)).max().unwrap_or(0);
                let rounded = fullest.div_ceil(u128::from(top_k)) * u128::from(top_k);
                u32::try_from(rounded).map_or(most, |entries| entries.min(most))
            }
        };
        check_choices(experts, "entries", entries, top_k)?;
        Ok(entries)
    }
}

fn check_held(file: &str, held: usize, values: usize) -> Result<(), ImportError> {
    let limit = values.saturating_mul(MOST_SPARSE).clamp(LEAST_LIMIT, MOST_COUNTS);
    if held > limit {
        let found = format!("room for {held} counts claimed by {values} values");
        return Err(ImportError::file(file, found, format!("at most {limit}")));
    }
    Ok(())
}

fn sum(counts: &[u64]) -> u128 {
    counts.iter().map(|&count| u128::from(count)).sum()
}

fn describe(key: Key) -> String {
    let Key { iteration, layer, micro_batch, rank } = key;
    let (layer, micro_batch, rank) = (layer as usize, micro_batch as usize, rank as usize);
    Place { iteration, layer, micro_batch, rank }.to_string()
}

/// The labels that hold entries, each extent ascending.
struct Labels {
    name: String,
    iterations: Vec<u32>,
    layers: Vec<u32>,
    micro_batches: Vec<u32>,
    ranks: Vec<u32>,
}

impl Labels {
    fn new(tally: &Tally, name: &str, notes: &mut Vec<String>) -> Result<Self, ImportError> {
        let all = |field: fn(&Key) -> u32| tally.keys.iter().map(field).collect::<BTreeSet<_>>();
        let full = |field: fn(&Key) -> u32| {
            let rows = tally.keys.iter().zip(&tally.rows).filter(|(_, row)| row.counts.iter().any(|&count| count > 0));
            rows.map(|(key, _)| field(key)).collect::<BTreeSet<_>>()
        };
        let kept = |what: &str, field: fn(&Key) -> u32, notes: &mut Vec<String>| {
            let (all, full) = (all(field), full(field));
            let empty: Vec<u32> = all.difference(&full).copied().collect();
            if !empty.is_empty() && !full.is_empty() {
                notes.push(format!("without entries and left out: {}", list(what, &empty)));
            }
            full.into_iter().collect::<Vec<u32>>()
        };
        let iterations = kept("iteration", |key| key.iteration, notes);
        if iterations.is_empty() {
            let found = match tally.keys.len() {
                0 => "no counts".to_owned(),
                rows => format!("{rows} rows (iteration, layer, micro-batch, rank), all of them 0"),
            };
            return Err(ImportError::file(name, found, "entries of at least one expert"));
        }
        let layers = kept("layer", |key| key.layer, notes);
        let micro_batches: Vec<u32> = all(|key| key.micro_batch).into_iter().collect();
        let ranks: Vec<u32> = all(|key| key.rank).into_iter().collect();
        for (what, labels) in [("layer", &layers), ("micro-batch", &micro_batches), ("rank", &ranks)] {
            if labels.iter().enumerate().any(|(index, &label)| index != label as usize) {
                notes.push(format!("numbered from 0: {}", list(what, labels)));
            }
        }
        Ok(Self { name: name.into(), iterations, layers, micro_batches, ranks })
    }

    /// Counts of the trace.
    fn size(&self, experts: usize) -> Option<usize> {
        let Self { iterations, layers, micro_batches, ranks, .. } = self;
        let extents = [iterations.len(), layers.len(), micro_batches.len(), ranks.len(), experts];
        extents.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent))
    }
}

/// `layer 3`, `layers 3, 4, 5` or `58 layers from 3 to 60`.
fn list(what: &str, labels: &[u32]) -> String {
    match labels {
        [one] => format!("{what} {one}"),
        few if few.len() <= 6 => {
            let numbers = few.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
            let plural = if what.ends_with("ch") { "es" } else { "s" };
            format!("{what}{plural} {numbers}")
        }
        many => {
            let plural = if what.ends_with("ch") { "es" } else { "s" };
            format!("{} {what}{plural} from {} to {}", many.len(), many[0], many[many.len() - 1])
        }
    }
}

/// Writes the rows of the trace in order.
struct Builder<'a> {
    tally: &'a Tally,
    labels: &'a Labels,
    experts: usize,
    entries: u32,
    cap: u32,
    apportion: Apportion,
    /// Least and greatest sum of a row.
    sums: Option<(u128, u128)>,
    scaled: bool,
    filled: usize,
    /// Loads by (iteration, layer), where rows had to be filled.
    loads: BTreeMap<(Option<u32>, u32), Vec<u64>>,
}

impl<'a> Builder<'a> {
    fn new(tally: &'a Tally, labels: &'a Labels, experts: usize, entries: u32, top_k: u32) -> Self {
        Self {
            tally,
            labels,
            experts,
            entries,
            cap: entries / top_k,
            apportion: Apportion::default(),
            sums: None,
            scaled: false,
            filled: 0,
            loads: BTreeMap::new(),
        }
    }

    fn fill(&mut self, counts: &mut Vec<u32>) {
        let labels = self.labels;
        for &iteration in &labels.iterations {
            for &layer in &labels.layers {
                for &micro_batch in &labels.micro_batches {
                    for &rank in &labels.ranks {
                        self.row(Key { iteration, layer, micro_batch, rank }, counts);
                    }
                }
            }
        }
    }

    fn row(&mut self, key: Key, counts: &mut Vec<u32>) {
        let tally = self.tally;
        let row = tally.places.get(&key).map(|&place| tally.rows[place].counts.as_slice());
        match row.filter(|row| row.iter().any(|&count| count > 0)) {
            Some(row) => {
                let sum = sum(row);
                let (low, high) = self.sums.unwrap_or((sum, sum));
                self.sums = Some((low.min(sum), high.max(sum)));
                self.scaled |= sum != u128::from(self.entries);
                self.share(row, counts);
            }
            None => {
                self.filled += 1;
                let loads = self.loads_of(key);
                self.share(&loads, counts);
            }
        }
    }

    /// Appends `entries` in proportion to counts.
    fn share(&mut self, row: &[u64], counts: &mut Vec<u32>) {
        let start = counts.len();
        counts.resize(start + self.experts, 0);
        // The largest shift that rounds nothing off in rows that are small enough as they are.
        let shift = (128 - (sum(row) >> 30).leading_zeros()).min(63);
        let mut weights: Vec<u32> = row.iter().map(|&count| (count >> shift) as u32).collect();
        weights.resize(self.experts, 0);
        self.apportion.share(&weights, self.entries, self.cap, &mut counts[start..]);
    }

    /// What stands for a row without entries: its layer in the same iteration, or else in all of them.
    fn loads_of(&mut self, key: Key) -> Vec<u64> {
        let tally = self.tally;
        let mut loads = |iteration: Option<u32>| {
            let sums = || {
                let mut sums = vec![0_u64; self.experts];
                let rows = tally.keys.iter().zip(&tally.rows);
                let same = |of: &Key| of.layer == key.layer && iteration.is_none_or(|wanted| of.iteration == wanted);
                for (_, row) in rows.filter(|(of, _)| same(of)) {
                    sums.iter_mut().zip(&row.counts).for_each(|(sum, &count)| *sum = sum.saturating_add(count));
                }
                sums
            };
            self.loads.entry((iteration, key.layer)).or_insert_with(sums).clone()
        };
        let now = loads(Some(key.iteration));
        if now.iter().any(|&load| load > 0) { now } else { loads(None) }
    }

    fn say(&self, notes: &mut Vec<String>) {
        let rows = self.labels.size(1).unwrap_or(0);
        if self.filled > 0 {
            notes.push(format!("{} of {rows} rows hold no entries and take the shares of their layer", self.filled));
        }
        if let (true, Some((low, high))) = (self.scaled, self.sums) {
            let sizes = if low == high { low.to_string() } else { format!("{low} to {high}") };
            notes.push(format!("rows hold {sizes} entries and are scaled to {} each", self.entries));
        }
    }
}
