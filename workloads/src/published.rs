//! Numbers that were published with the systems' papers, to be shown beside ours.
//!
//! `workloads/published/*.csv` holds what we know as facts, one number a row, typed from the measurements that came with an
//! artifact: which figure it belongs to, what was run (model, cluster, GPUs, gate, system, plan), the number and where it
//! comes from. What is not held is not there; nothing is interpolated. Cells hold no commas and no quotes.

use std::str::FromStr;

use crate::error::ConfigError;
use crate::gate::Gate;

/// All published numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// In the order of the files.
    pub rows: Vec<Number>,
}

/// One published number.
#[derive(Clone, Debug, PartialEq)]
pub struct Number {
    /// The paper's figure.
    pub figure: String,
    /// What was run, by the names of moebench.
    pub run: PublishedRun,
    /// The plan that ran, as plans are written in records.
    pub plan: String,
    /// What the number is.
    pub quantity: Quantity,
    /// In seconds, or a ratio.
    pub value: f64,
    /// Where it comes from.
    pub source: String,
}

/// A system on a case.
#[derive(Clone, Debug, PartialEq)]
pub struct PublishedRun {
    /// The model as the system trained it.
    pub model: String,
    /// The cluster.
    pub cluster: String,
    /// Number of GPUs.
    pub gpus: usize,
    /// The gate as the system ran it.
    pub gate: Gate,
    /// The system.
    pub system: String,
}

/// What a published number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Median time of an iteration after the warm-up, s.
    MedianStep,
    /// Sum over all iterations, start-up included, s.
    Sum,
    /// Ratio of the baseline's sum to the system's.
    SpeedupBySums,
}

impl FromStr for Quantity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "median_step_s" => Ok(Self::MedianStep),
            "sum_s" => Ok(Self::Sum),
            "speedup_by_sums" => Ok(Self::SpeedupBySums),
            _ => Err("median_step_s, sum_s or speedup_by_sums".to_owned()),
        }
    }
}

const COLUMNS: [&str; 10] =
    ["figure", "model", "cluster", "gpus", "gate", "system", "plan", "quantity", "value", "source"];

const FILES: [(&str, &str); 2] = [
    ("published/end_to_end.csv", include_str!("../published/end_to_end.csv")),
    ("published/layers.csv", include_str!("../published/layers.csv")),
];

impl Published {
    /// The numbers that come with moebench.
    ///
    /// # Errors
    /// A defect of a file.
    pub fn all() -> Result<Self, ConfigError> {
        let mut rows: Vec<Number> = Vec::new();
        for (file, text) in FILES {
            rows.extend(Self::parse(file, text)?.rows);
        }
        Ok(Self { rows })
    }

    /// Reads one file; `file` names it in errors.
    ///
    /// # Errors
    /// A cell that cannot be, with file, line and column, and a number that stands twice.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        let mut lines = text.lines().enumerate();
        let header = lines.next().map_or("", |(_, line)| line);
        if header != COLUMNS.join(",") {
            return Err(ConfigError::value(file, "line 1", header, COLUMNS.join(",")));
        }
        let mut rows: Vec<Number> = Vec::new();
        for (index, line) in lines {
            let row = number(file, index + 1, line)?;
            let same = |other: &&Number| (&other.run, other.quantity) == (&row.run, row.quantity);
            if rows.iter().find(same).is_some() {
                let field = format!("line {}", index + 1);
                return Err(ConfigError::value(file, field, line, "every number of a run once"));
            }
            rows.push(row);
        }
        Ok(Self { rows })
    }

    /// A number of a run.
    pub fn of(&self, run: &PublishedRun, quantity: Quantity) -> Option<&Number> {
        self.rows.iter().find(|row| row.quantity == quantity && row.run == *run)
    }
}

fn number(file: &str, line: usize, text: &str) -> Result<Number, ConfigError> {
    let cells: Vec<&str> = text.split(',').map(str::trim).collect();
    if cells.len() != COLUMNS.len() {
        let expected = format!("{} cells: {}", COLUMNS.len(), COLUMNS.join(","));
        return Err(ConfigError::value(file, format!("line {line}"), text, expected));
    }
    let refuse = |column: usize, expected: &str| {
        ConfigError::value(file, format!("line {line}: {}", COLUMNS[column]), cells[column], expected)
    };
    if let Some(empty) = cells.iter().position(|cell| cell.is_empty()) {
        return Err(refuse(empty, "a value"));
    }
    let positive = |value: &f64| value.is_finite() && *value > 0.0;
    Ok(Number {
        figure: cells[0].to_owned(),
        run: PublishedRun {
            model: cells[1].to_owned(),
            cluster: cells[2].to_owned(),
            gpus: cells[3].parse().ok().filter(|gpus| *gpus > 0).ok_or_else(|| refuse(3, "a whole number above 0"))?,
            gate: cells[4].parse().map_err(|reason: String| refuse(4, &reason))?,
            system: cells[5].to_owned(),
        },
        plan: cells[6].to_owned(),
        quantity: cells[7].parse().map_err(|expected: String| refuse(7, &expected))?,
        value: cells[8].parse().ok().filter(positive).ok_or_else(|| refuse(8, "a number above 0"))?,
        source: cells[9].to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cluster, Model};

    #[test]
    fn the_files_name_known_models_and_clusters() {
        let published = Published::all().unwrap();
        assert!(published.rows.len() > 80);
        for row in published.rows {
            Model::named("published", &row.run.model).unwrap();
            Cluster::named("published", &row.run.cluster).unwrap();
        }
    }

    /// The paper's headline: 16 GPUs, no-drop, SmartMoE over FasterMoE, by sums.
    #[test]
    fn the_headline_is_held() {
        let published = Published::all().unwrap();
        let sum = |system: &str| {
            let run = PublishedRun {
                model: "gpt-l16-h2560-e16".into(),
                cluster: "inky".into(),
                gpus: 16,
                gate: Gate::NoDrop,
                system: system.into(),
            };
            published.of(&run, Quantity::Sum).unwrap().value
        };
        let headline = sum("fastermoe-unpipelined") / sum("smartmoe");
        assert!((headline - 1.88).abs() < 0.005, "{headline}");
    }

    #[test]
    fn errors_name_file_line_and_column() {
        let check = |row: &str, expected: &str| {
            let text = format!("{}\n{row}\n", COLUMNS.join(","));
            let message = Published::parse("p.csv", &text).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check("8,m,inky,16,no-drop,smartmoe,pp1,sum_s,1", "p.csv: line 2 = 8,m,inky");
        check("8,m,inky,0,no-drop,smartmoe,pp1,sum_s,1,s", "p.csv: line 2: gpus = 0: expected a whole number above 0");
        check("8,m,inky,16,nodrop,smartmoe,pp1,sum_s,1,s", "p.csv: line 2: gate = nodrop");
        check("8,m,inky,16,no-drop,smartmoe,pp1,mean,1,s", "p.csv: line 2: quantity = mean: expected median_step_s");
        check("8,m,inky,16,no-drop,smartmoe,pp1,sum_s,-1,s", "p.csv: line 2: value = -1: expected a number above 0");
        check("8,m,inky,16,no-drop,,pp1,sum_s,1,s", "p.csv: line 2: system = : expected a value");
        let row = "8,m,inky,16,no-drop,smartmoe,pp1,sum_s,1,s";
        check(&format!("{row}\n{row}"), "p.csv: line 3");
        assert!(Published::parse("p.csv", "a,b").unwrap_err().to_string().contains("p.csv: line 1 = a,b"));
    }
}
