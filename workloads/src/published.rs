//! Numbers that were published with the systems' papers, to be shown beside ours.
//!
//! `workloads/published/*.csv` holds what we know as facts, one number a row, typed from the measurements that came with an
//! artifact: which figure it belongs to, what was run (model, cluster, GPUs, gate, system, plan), the number and where it
//! comes from. What is not held is not there; nothing is interpolated.

use serde::Deserialize;

use crate::csv_file::{Count, CsvFile, Positive};
use crate::error::ConfigError;
use crate::gate::Gate;
use crate::throughput::PublishedTraining;

/// All published numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Published {
    /// In the order of the files.
    pub rows: Vec<Number>,
    /// Training runs of modern models.
    pub training: Vec<PublishedTraining>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Quantity {
    /// Median time of an iteration after the warm-up, s.
    #[serde(rename = "median_step_s")]
    MedianStep,
    /// Sum over all iterations, start-up included, s.
    #[serde(rename = "sum_s")]
    Sum,
    /// Ratio of the baseline's sum to the system's.
    #[serde(rename = "speedup_by_sums")]
    SpeedupBySums,
}

/// What ran a system. SmartMoE's authors ran FastMoE, the plans that they call Alpa's and their own in one stack, so a plan
/// measured there under one name is a measurement of all.
fn stack(system: &str) -> &str {
    match system {
        "expert-only" | "alpa" => "smartmoe",
        variant if variant.starts_with("smartmoe-") => "smartmoe",
        other => other,
    }
}

/// A row of a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    figure: String,
    model: String,
    cluster: String,
    gpus: Count,
    gate: Gate,
    system: String,
    plan: String,
    quantity: Quantity,
    value: Positive,
    source: String,
}

impl From<Row> for Number {
    fn from(row: Row) -> Self {
        let Row { figure, model, cluster, gpus, gate, system, plan, quantity, value, source } = row;
        let run = PublishedRun { model, cluster, gpus: gpus.0, gate, system };
        Self { figure, run, plan, quantity, value: value.0, source }
    }
}

const FILES: [(&str, &str); 2] = [
    ("published/end_to_end.csv", include_str!("../published/end_to_end.csv")),
    ("published/layers.csv", include_str!("../published/layers.csv")),
];

/// A claim of a paper that no number is held of.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotHeld {
    /// The paper's figure.
    pub figure: String,
    /// What is claimed.
    pub claim: String,
    /// Why it is not tested, or where else it is.
    pub why: String,
}

impl NotHeld {
    /// Those that are known.
    ///
    /// # Errors
    /// A defect of the file.
    pub fn all() -> Result<Vec<Self>, ConfigError> {
        CsvFile::parse("published/not_held.csv", include_bytes!("../published/not_held.csv"))?.read()
    }
}

/// Between which values published runs lie, where no single number is held.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedRange {
    /// The paper's figure.
    pub figure: String,
    /// The model as the system trained it.
    pub model: String,
    /// The cluster.
    pub cluster: String,
    /// Number of GPUs.
    pub gpus: Count,
    /// The system.
    pub system: String,
    /// What lies there, whatever the gate.
    pub quantity: Ranged,
    /// In seconds, or a ratio.
    pub low: Positive,
    /// At least `low`.
    pub high: Positive,
    /// Where it comes from.
    pub source: String,
}

/// What a published range is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Ranged {
    /// Time of an iteration, s.
    #[serde(rename = "step_s")]
    Step,
    /// Ratio of the baseline's time to the system's.
    #[serde(rename = "speedup")]
    Speedup,
}

impl PublishedRange {
    /// Those that are known.
    ///
    /// # Errors
    /// A defect of the file.
    pub fn all() -> Result<Vec<Self>, ConfigError> {
        CsvFile::parse("published/ranges.csv", include_bytes!("../published/ranges.csv"))?.read()
    }

    /// How far a value lies outside, relative to the nearer end and with its sign; 0 inside.
    pub fn error(&self, value: f64) -> f64 {
        value / value.clamp(self.low.0, self.high.0) - 1.0
    }
}

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
        Ok(Self { rows, training: PublishedTraining::all()? })
    }

    /// Reads one file of numbers; `file` names it in errors.
    ///
    /// # Errors
    /// A cell that cannot be, with file, line and column, and a number that stands twice.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        let mut rows: Vec<Number> = Vec::new();
        for row in CsvFile::parse(file, text.as_bytes())?.rows() {
            let number = Number::from(row.read::<Row>()?);
            if rows.iter().any(|other| other.quantity == number.quantity && other.run == number.run) {
                return Err(row.wrong("expected every number of a run once"));
            }
            rows.push(number);
        }
        Ok(Self { rows, training: Vec::new() })
    }

    /// A number of the plan that was executed (as records write plans, and the same without online placement), under
    /// whatever name of the same stack it was measured.
    pub fn of_plan(&self, run: &PublishedRun, quantity: Quantity, plan: &str) -> Option<&Number> {
        let offline = plan.split(" every").next().unwrap_or(plan);
        let found = self.rows.iter().filter(|row| {
            let PublishedRun { model, cluster, gpus, gate, system } = &row.run;
            row.quantity == quantity
                && (model, cluster, gpus, gate) == (&run.model, &run.cluster, &run.gpus, &run.gate)
                && stack(system) == stack(&run.system)
                && (row.plan == plan || row.plan == offline)
        });
        found.min_by_key(|row| row.run.system != run.system)
    }

    /// Whether anything that the simulator can be held against was measured with that model on that many GPUs of the cluster.
    pub fn covers(&self, run: &PublishedRun) -> bool {
        let wanted = (run.model.as_str(), run.cluster.as_str(), run.gpus);
        let known = self.training.iter().filter(|run| run.outside.is_none());
        self.rows.iter().any(|row| (row.run.model.as_str(), row.run.cluster.as_str(), row.run.gpus) == wanted)
            || known.into_iter().any(|run| (run.model.name.as_str(), run.cluster.name.as_str(), run.gpus) == wanted)
    }

    /// A number of a run.
    pub fn of(&self, run: &PublishedRun, quantity: Quantity) -> Option<&Number> {
        self.rows.iter().find(|row| row.quantity == quantity && row.run == *run)
    }
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

    /// The plan that Alpa's bars show is one that SmartMoE may pick; FasterMoE on it is another program.
    #[test]
    fn a_plan_is_found_under_any_name_of_its_stack() {
        let published = Published::all().unwrap();
        let run = |system: &str| PublishedRun {
            model: "gpt-l16-h2560-e32".into(),
            cluster: "inky".into(),
            gpus: 32,
            gate: Gate::Capacity { factor: 1.2 },
            system: system.into(),
        };
        let median = |system: &str, plan: &str| published.of_plan(&run(system), Quantity::MedianStep, plan);
        let picked = median("smartmoe", "pp4 dp8 tp1 ep8 edp1 mb4 every10").unwrap();
        assert_eq!((picked.run.system.as_str(), (picked.value * 1e3).round()), ("alpa", 2774.0));
        assert_eq!(median("smartmoe", "pp8 dp4 tp1 ep4 edp1 mb4").unwrap().run.system, "smartmoe");
        assert_eq!(median("fastermoe", "pp4 dp8 tp1 ep8 edp1 mb4"), None);
        assert_eq!(median("smartmoe", "pp2 dp16 tp1 ep8 edp2 mb4"), None);
        assert!(published.covers(&run("tutel")) && !published.covers(&PublishedRun { gpus: 64, ..run("tutel") }));
    }

    /// Runs of DeepSeek-V3 are held on 256 and 1024 H100s, and on 2048 one in another precision alone.
    #[test]
    fn published_training_runs_cover_their_setting() {
        let published = Published::all().unwrap();
        let covers = |cluster: &str, gpus: usize| {
            let (model, cluster, gate, system) = ("deepseek-v3".into(), cluster.into(), Gate::NoDrop, "symi".into());
            published.covers(&PublishedRun { model, cluster, gpus, gate, system })
        };
        assert!(covers("h100x8", 256) && covers("h100x8", 1024));
        assert!(!covers("h100x8", 2048) && !covers("h200x8", 256));
    }

    /// An error is 0 inside a range and relative to the nearer end outside; every range is of something that moebench knows.
    #[test]
    fn ranges_are_of_known_runs() {
        let ranges = PublishedRange::all().unwrap();
        assert!(!ranges.is_empty());
        for range in ranges {
            assert!(range.low.0 <= range.high.0, "{range:?}");
            Model::named("published", &range.model).unwrap();
            Cluster::named("published", &range.cluster).unwrap();
            let errors = [range.low.0 * 0.5, range.low.0, range.high.0, range.high.0 * 1.5].map(|v| range.error(v));
            let expected = [-0.5, 0.0, 0.0, 0.5];
            assert!(errors.iter().zip(expected).all(|(error, expected)| (error - expected).abs() < 1e-9), "{errors:?}");
        }
    }

    #[test]
    fn errors_name_file_line_and_column() {
        let check = |row: &str, expected: &str| {
            let text = format!("figure,model,cluster,gpus,gate,system,plan,quantity,value,source\n{row}\n");
            let message = Published::parse("p.csv", &text).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check("8,m,inky,16,no-drop,smartmoe,pp1,sum_s,1", "p.csv: CSV error: record 1 (line: 2");
        check("8,m,inky,0,no-drop,smartmoe,pp1,sum_s,1,s", "p.csv: line 2: gpus = 0: expected a whole number of at");
        check("8,m,inky,16,nodrop,smartmoe,pp1,sum_s,1,s", "p.csv: line 2: gate = nodrop");
        check("8,m,inky,16,no-drop,smartmoe,pp1,mean,1,s", "p.csv: line 2: quantity = mean: expected median_step_s or");
        check("8,m,inky,16,no-drop,smartmoe,pp1,sum_s,-1,s", "p.csv: line 2: value = -1: expected a number above 0");
        check("8,m,inky,16,no-drop,,pp1,sum_s,1,s", "p.csv: line 2: system = nothing: expected a value");
        let row = "8,m,inky,16,no-drop,smartmoe,pp1,sum_s,1,s";
        check(&format!("{row}\n{row}"), "p.csv: line 3: expected every number of a run once");
        let unknown = Published::parse("p.csv", "figure,b\n8,1\n").unwrap_err().to_string();
        assert!(unknown.contains("p.csv: line 2: unknown field `b`"), "{unknown}");
    }
}
