//! Cases as a suite writes them. A list of values is an axis: a table of `[[cases]]` becomes a case for each combination of its
//! lists, the last axis fastest: model, cluster, network, GPUs, gate, global batch, micro-batch, then layers and routing.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{BoolDeserializer, F64Deserializer, I64Deserializer, StrDeserializer};
use serde::de::{Error, IntoDeserializer, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::gate::Gate;
use crate::plan::GivenPlan;
use crate::suite::{Case, Described, Difference, SearchSpace, SuiteRouting};

/// No suite has more cases: each has files of its own.
const MOST_CASES: usize = 10_000;

/// A table of `[[cases]]`; its fields are those of [`Case`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CaseSpec {
    name: Option<String>,
    model: Axis<Described>,
    cluster: Axis<Described>,
    network: Option<Axis<f64>>,
    gpus: Axis<usize>,
    gate: Axis<Gate>,
    global_batch: Axis<usize>,
    micro_batch: Option<Axis<usize>>,
    #[serde(default)]
    search: SearchSpace,
    #[serde(default)]
    plans: BTreeMap<String, GivenPlan>,
    #[serde(default)]
    differs: BTreeMap<String, Difference>,
    #[serde(default)]
    routing: Vec<SuiteRouting>,
    #[serde(default)]
    layers: Vec<usize>,
}

/// Reads the tables of `[[cases]]` and multiplies their lists out.
pub(crate) fn cases<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Case>, D::Error> {
    let mut cases = Vec::new();
    for (index, spec) in Vec::<CaseSpec>::deserialize(deserializer)?.into_iter().enumerate() {
        let wrong = |reason: String| D::Error::custom(format!("cases[{index}]{reason}"));
        if let Some(field) = spec.empty_axis() {
            return Err(wrong(format!(".{field} = []: expected a value, or a list of at least one")));
        }
        if cases.len().saturating_add(spec.count()) > MOST_CASES {
            return Err(wrong(format!(
                ": {} cases by its lists alone: expected at most {MOST_CASES} in a suite",
                spec.count()
            )));
        }
        cases.extend(spec.cases());
    }
    cases.iter_mut().enumerate().for_each(|(number, case)| case.number = number);
    Ok(cases)
}

impl CaseSpec {
    fn lengths(&self) -> [(&'static str, usize); 7] {
        [
            ("model", self.model.0.len()),
            ("cluster", self.cluster.0.len()),
            ("network", self.network.as_ref().map_or(1, |axis| axis.0.len())),
            ("gpus", self.gpus.0.len()),
            ("gate", self.gate.0.len()),
            ("global_batch", self.global_batch.0.len()),
            ("micro_batch", self.micro_batch.as_ref().map_or(1, |axis| axis.0.len())),
        ]
    }

    fn empty_axis(&self) -> Option<&'static str> {
        self.lengths().into_iter().find(|(_, length)| *length == 0).map(|(field, _)| field)
    }

    fn count(&self) -> usize {
        let more = [self.layers.len().max(1), self.routing.len().max(1)];
        let lengths = self.lengths().map(|(_, length)| length);
        lengths.into_iter().chain(more).fold(1, usize::saturating_mul)
    }

    fn cases(self) -> Vec<Case> {
        let mut cases = vec![self.first()];
        cases = each(&cases, &self.model.0, |case, model| case.model = model.clone());
        cases = each(&cases, &self.cluster.0, |case, cluster| case.cluster = cluster.clone());
        if let Some(factors) = &self.network {
            cases = each(&cases, &factors.0, |case, &factor| case.network = Some(factor));
        }
        cases = each(&cases, &self.gpus.0, |case, &gpus| case.gpus = gpus);
        cases = each(&cases, &self.gate.0, |case, &gate| case.gate = gate);
        cases = each(&cases, &self.global_batch.0, |case, &batch| case.global_batch = batch);
        if let Some(sizes) = &self.micro_batch {
            cases = each(&cases, &sizes.0, |case, &size| case.micro_batch = Some(size));
        }
        if !self.layers.is_empty() {
            cases = each(&cases, &self.layers, |case, &layer| case.layer = Some(layer));
        }
        if !self.routing.is_empty() {
            cases = each(&cases, &self.routing, |case, routing| case.routing = vec![routing.clone()]);
        }
        cases
    }

    /// With the first value of every list.
    fn first(&self) -> Case {
        let (mut plans, mut ranked) = (BTreeMap::new(), BTreeMap::new());
        for (system, given) in &self.plans {
            match *given {
                GivenPlan::Degrees(plan) => drop(plans.insert(system.clone(), plan)),
                GivenPlan::Rank(rank) => drop(ranked.insert(system.clone(), rank)),
            }
        }
        Case {
            number: 0,
            name: self.name.clone(),
            model: self.model.0[0].clone(),
            cluster: self.cluster.0[0].clone(),
            network: None,
            gpus: self.gpus.0[0],
            gate: self.gate.0[0],
            global_batch: self.global_batch.0[0],
            micro_batch: None,
            search: self.search,
            plans,
            ranked,
            differs: self.differs.clone(),
            routing: Vec::new(),
            layer: None,
            batch: None,
        }
    }
}

/// Every case with every value.
fn each<T>(cases: &[Case], values: &[T], set: impl Fn(&mut Case, &T)) -> Vec<Case> {
    let with = |case: &Case, value: &T| {
        let mut case = case.clone();
        set(&mut case, value);
        case
    };
    cases.iter().flat_map(|case| values.iter().map(move |value| with(case, value))).collect()
}

/// A value, or a list of them.
#[derive(Clone, Debug)]
struct Axis<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Axis<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrMore(PhantomData))
    }
}

struct OneOrMore<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMore<T> {
    type Value = Axis<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value or a list of values")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Axis<T>, E> {
        let value: StrDeserializer<E> = text.into_deserializer();
        T::deserialize(value).map(|value| Axis(vec![value]))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Axis<T>, E> {
        let value: I64Deserializer<E> = number.into_deserializer();
        T::deserialize(value).map(|value| Axis(vec![value]))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Axis<T>, E> {
        let value: F64Deserializer<E> = number.into_deserializer();
        T::deserialize(value).map(|value| Axis(vec![value]))
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<Axis<T>, E> {
        let value: BoolDeserializer<E> = flag.into_deserializer();
        T::deserialize(value).map(|value| Axis(vec![value]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Axis<T>, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Axis(values))
    }
}

#[cfg(test)]
mod tests {
    use crate::Suite;
    use crate::suite::Case;

    const HEAD: &str = "name = \"sweep\"\ndescription = \"d\"\nsystems = [\"tutel\"]\nbaseline = \"tutel\"\niterations = 4\nwarmup = 1\n\
        [[cases]]\ncluster = \"inky\"\n";

    fn ids(case: &str) -> Result<Vec<String>, String> {
        let read = Suite::parse("s.toml", &format!("{HEAD}{case}"));
        read.map(|suite| suite.cases.iter().map(Case::id).collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn lists_multiply_out_and_what_differs_is_in_the_id() {
        let swept = "model = [\"gpt-tiny\", \"gpt-micro\"]\ngpus = [8, 16]\ngate = [\"no-drop\", \"capacity 1.2\"]\n";
        let mut expected = Vec::new();
        for model in ["gpt-tiny", "gpt-micro"] {
            for gpus in [8, 16] {
                for gate in ["no-drop", "capacity-1.2"] {
                    expected.push(format!("{model}.inky.{gpus}.{gate}"));
                }
            }
        }
        assert_eq!(ids(&format!("{swept}global_batch = 64")).unwrap(), expected);
        let with_batches = |id: &String| ["batch64", "batch128"].map(|batch| format!("{id}.{batch}"));
        let expected: Vec<String> = expected.iter().flat_map(with_batches).collect();
        assert_eq!(ids(&format!("{swept}global_batch = [64, 128]")).unwrap(), expected);
        let micro = "model = \"gpt-tiny\"\ngpus = 8\ngate = [\"no-drop\"]\nglobal_batch = 64\nmicro_batch = [1, 2]\n";
        let one = "gpt-tiny.inky.8.no-drop";
        assert_eq!(ids(micro).unwrap(), [1, 2].map(|size| format!("{one}.batch64x{size}")));
        let slower = format!("{}network = [0.5, 2]\n", micro.replace("[1, 2]", "1"));
        assert_eq!(ids(&slower).unwrap(), ["net0.5", "net2"].map(|end| format!("{one}.{end}")));
        let routed = format!("{micro}routing = [{{ max_over_mean = 2 }}, {{ workload = \"W1\" }}]");
        assert_eq!(
            ids(&routed).unwrap(),
            ["max2.batch64x1", "W1.batch64x1", "max2.batch64x2", "W1.batch64x2"].map(|end| format!("{one}.{end}"))
        );
    }

    #[test]
    fn bad_lists_name_the_field() {
        let good = "model = \"gpt-tiny\"\ngpus = [8, 16]\ngate = \"no-drop\"\nglobal_batch = 64";
        let check = |from: &str, to: &str, expected: &str| {
            assert!(good.contains(from), "{from}");
            let message = ids(&good.replace(from, to)).unwrap_err();
            assert!(message.contains(expected), "{message}");
        };
        check("[8, 16]", "[]", "cases[0].gpus = []: expected a value, or a list");
        check("[8, 16]", "[8, \"16\"]", "invalid type: string \"16\", expected usize");
        check("[8, 16]", "true", "invalid type: boolean `true`, expected usize");
        check("gpus", "network = [1, 0]\ngpus", "cases[2].network = 0: expected a finite number above 0");
        check("[8, 16]", "[8, 0]", "cases[1].gpus = 0: expected at least 1");
        check("[8, 16]", "[8, 8]", "cases[1] = gpt-tiny.inky.8.no-drop: expected an id unlike");
        check("\"no-drop\"", "[\"no-drop\", \"nodrop\"]", "gate `nodrop`: expected `no-drop`");
        let many = format!("[{}]", (1..200).map(|n| n.to_string()).collect::<Vec<_>>().join(", "));
        check(
            "64",
            &format!("{many}\nmicro_batch = {many}"),
            "cases[0]: 79202 cases by its lists alone: expected at most 10000",
        );
    }
}
