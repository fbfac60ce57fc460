//! Which part of a suite's cases is meant: those whose ids a pattern fits, or a shard of several.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use workloads::{Case, Suite};

/// A pattern of ids: one of them as it is, a part of some, or all of some where `*` stands for any characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl FromStr for Pattern {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl Pattern {
    /// Whether it means that one of all ids: where it is one of them, that one alone, though it may be a part of others.
    pub fn means<'i>(&self, id: &str, all: impl IntoIterator<Item = &'i str>) -> bool {
        if all.into_iter().any(|other| other == self.0) { id == self.0 } else { self.fits(id) }
    }

    /// Whether it is that one of all ids, or means it by `*`: a part of it is not enough.
    pub fn is<'i>(&self, id: &str, all: impl IntoIterator<Item = &'i str>) -> bool {
        id == self.0 || self.0.contains('*') && self.means(id, all)
    }

    fn fits(&self, id: &str) -> bool {
        let mut pieces = self.0.split('*');
        let first = pieces.next().unwrap_or_default();
        let Some(last) = pieces.next_back() else { return id.contains(first) };
        let Some(mut rest) = id.strip_prefix(first).and_then(|rest| rest.strip_suffix(last)) else { return false };
        // The earliest place of each piece leaves most for the others.
        pieces.all(|piece| match rest.split_once(piece) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
    }
}

/// Keeps the cases that one of the patterns means, all where there is no pattern; their ids stay what they are in the whole suite.
pub fn keep(suites: &mut [Suite], patterns: &[Pattern]) {
    if patterns.is_empty() {
        return;
    }
    let all: Vec<String> = suites.iter().flat_map(|suite| &suite.cases).map(Case::id).collect();
    let meant = |id: String| patterns.iter().any(|pattern| pattern.means(&id, all.iter().map(String::as_str)));
    suites.iter_mut().for_each(|suite| suite.cases.retain(|case| meant(case.id())));
}

/// Keeps the one case of a suite that a pattern means; `name` is what errors call the suite.
///
/// # Errors
/// None or several, with the ids of all.
pub fn keep_one(name: &str, suite: &mut Suite, pattern: Option<&Pattern>) -> Result<()> {
    let ids = |suite: &Suite| suite.cases.iter().map(Case::id).collect::<Vec<_>>().join(", ");
    let all = ids(suite);
    keep(std::slice::from_mut(suite), pattern.cloned().as_slice());
    match suite.cases.len() {
        1 => Ok(()),
        0 => bail!("--case: no case of {name} is like that; it has {all}"),
        _ => bail!("--case: expected one case of {name}: {}", ids(suite)),
    }
}

/// One of several equal parts of a suite: every so manieth case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 1.
    pub number: usize,
    pub of: usize,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
        match numbers {
            Some((number, of)) if (1..=of).contains(&number) => Ok(Self { number, of }),
            _ => Err(format!("`{text}`: expected I/N with I from 1 to N, for example 2/4")),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl Shard {
    /// `slurm/N`, the shard that a task of a Slurm job array has the number of, whichever tasks the array has; or `slurm`, by its place in
    /// the array. From the values of `SLURM_ARRAY_TASK_ID`, `_MIN`, `_MAX`, `_STEP` and `_COUNT`.
    ///
    /// # Errors
    /// One that is no number, or not there; an array from which the number of shards does not follow.
    pub fn of_array(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let read = |name: &str| {
            let name = format!("SLURM_ARRAY_TASK_{name}");
            let value = variable(&name).and_then(|value| value.parse::<usize>().ok());
            value.ok_or_else(|| format!("{name}: expected a number, as Slurm sets it in a job array"))
        };
        let id = read("ID")?;
        if let Some(of) = text.strip_prefix("slurm/") {
            let tasks = format!("expected tasks from 1 to N of --shard slurm/N, for example --array=1-{of}");
            return format!("{id}/{of}")
                .parse()
                .map_err(|_| format!("SLURM_ARRAY_TASK_ID={id}, --shard {text}: {tasks}"));
        }
        let (least, most, step) = (read("MIN")?, read("MAX")?, read("STEP").unwrap_or(1).max(1));
        let number = |id: usize| id.saturating_sub(least) / step + 1;
        let (number, of) = (number(id), number(most));
        // One task may be one of an array that is submitted again, and a list of tasks has no step.
        if of < 2 || read("COUNT").is_ok_and(|count| count != of) {
            return Err(format!(
                "tasks {least} to {most} do not say how many shards there are: expected --shard slurm/N, which takes the task's \
                 number from Slurm"
            ));
        }
        Ok(Self { number, of })
    }

    /// Keeps its cases.
    pub fn keep(self, suite: &mut Suite) {
        let mut index = 0;
        suite.cases.retain(|_| {
            index += 1;
            (index - 1) % self.of == self.number - 1
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_part_or_a_whole_with_stars() {
        let id = "gpt-tiny.inky.16.no-drop";
        let fits = |pattern: &str| pattern.parse::<Pattern>().unwrap().fits(id);
        for pattern in ["inky", "16.no", id, "gpt-tiny*", "*no-drop", "*inky*", "gpt*.16.*", "*", "g**p"] {
            assert!(fits(pattern), "{pattern}");
        }
        for pattern in ["pinky", "inky*", "*inky", "gpt*inky", "*16*inky*", "gpt-tiny.inky.16.no-drop*no-drop"] {
            assert!(!fits(pattern), "{pattern}");
        }
    }

    #[test]
    fn a_pattern_that_is_an_id_means_no_other() {
        let all = ["m.c.8.capacity-2.4", "m.c.8.capacity-2", "m.c.8.capacity-2.batch64"];
        let meant = |pattern: &str| {
            let pattern: Pattern = pattern.parse().unwrap();
            all.map(|id| pattern.means(id, all))
        };
        assert_eq!(meant("m.c.8.capacity-2"), [false, true, false]);
        assert_eq!(meant("capacity-2"), [true, true, true]);
        assert_eq!(meant("capacity-2."), [true, false, true]);
        assert_eq!(meant("m.c.8.capacity-2*"), [true, true, true]);
    }

    #[test]
    fn shards_take_turns() {
        let of = |shard: &str| {
            let mut suite = Suite::named("test", "paper-gpt").unwrap();
            shard.parse::<Shard>().unwrap().keep(&mut suite);
            suite.cases.iter().map(Case::id).collect::<Vec<_>>()
        };
        let (whole, parts) = (of("1/1"), [of("1/3"), of("2/3"), of("3/3")]);
        assert!(whole.len() > 6 && parts.concat().len() == whole.len());
        assert!(whole.iter().enumerate().all(|(index, id)| parts[index % 3][index / 3] == *id));
        for bad in ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"] {
            assert!(bad.parse::<Shard>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_task_of_an_array_is_a_shard() {
        let counted = |text: &str, [id, least, most, step, count]: [&str; 5]| {
            Shard::of_array(text, |name| {
                let values = [("ID", id), ("MIN", least), ("MAX", most), ("STEP", step), ("COUNT", count)];
                let value = values.iter().find(|(end, _)| name.ends_with(end)).map(|(_, value): &(_, &str)| value);
                value.filter(|value| !value.is_empty()).map(|value| (*value).to_owned())
            })
        };
        let of = |id, least, most, step| counted("slurm", [id, least, most, step, ""]);
        assert_eq!(of("0", "0", "3", "1").unwrap().to_string(), "1/4");
        assert_eq!(counted("slurm", ["7", "1", "7", "2", "4"]).unwrap().to_string(), "4/4");
        // A task that is submitted again, and a list of tasks.
        for array in [["3", "3", "3", "1", "1"], ["5", "1", "9", "1", "3"]] {
            assert!(counted("slurm", array).unwrap_err().contains("expected --shard slurm/N"), "{array:?}");
        }
        assert_eq!(counted("slurm/4", ["3", "3", "3", "1", "1"]).unwrap().to_string(), "3/4");
        for array in [["0", "0", "3", "1", "4"], ["5", "1", "5", "1", "5"]] {
            assert!(counted("slurm/4", array).unwrap_err().contains("for example --array=1-4"), "{array:?}");
        }
        assert!(counted("slurm/x", ["1", "1", "2", "1", "2"]).is_err());
        assert_eq!(of("7", "1", "7", "2").unwrap().to_string(), "4/4");
        assert_eq!(of("2", "1", "3", "").unwrap().to_string(), "2/3");
        assert!(of("", "1", "3", "1").unwrap_err().starts_with("SLURM_ARRAY_TASK_ID: expected a number"));
    }
}
