//! Mean iteration times as LAER-MoE's artifact tabulates them: a row for each data set, method, model and weight of the balance loss.
//!
//! Model and set-up follow from the name of the model and the method, by what the artifact's scripts state ([`Model`], [`METHODS`]); columns
//! of their own (`layers`, `hidden`, `global_batch`, `tp`, ..) take their place where a file has them, so that other models and batches can be described.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use systems::{Job, Plan, Recompute, System, Zero};
use workloads::csv_file::{Count, CsvRow, Positive};
use workloads::{Cluster, Gate, Model};

use crate::measurements;

/// A measured mean, and what it was measured of.
pub struct Step {
    pub dataset: String,
    /// As the file names it.
    pub method: String,
    /// As the file names it.
    pub model: String,
    /// Weight of the balance loss.
    pub aux_loss: f64,
    /// Mean iteration, s.
    pub measured: f64,
    pub system: &'static dyn System,
    pub job: Job,
    pub plan: Plan,
}

#[derive(Deserialize)]
struct Row {
    dataset: String,
    method: String,
    model_name: String,
    aux_loss: Option<f64>,
    avg_time_ms: Positive,
    gpus: Option<Count>,
    global_batch: Option<Count>,
    micro_batch: Option<Count>,
    tp: Option<Count>,
    ep: Option<Count>,
    seq_len: Option<Count>,
    vocabulary: Option<Count>,
    layers: Option<Count>,
    hidden: Option<Count>,
    heads: Option<Count>,
    kv_heads: Option<Count>,
    experts: Option<Count>,
    top_k: Option<Count>,
    expert_inner: Option<Count>,
}

/// What a method of the artifact is here.
struct Method {
    published: &'static str,
    system: &'static str,
    /// Whether parameters are sharded over all ranks; otherwise attention is cut over tensor-parallel ranks.
    sharded: bool,
}

const METHODS: [Method; 4] = [
    Method { published: "FSDP", system: "fsdp-ep-queued", sharded: true },
    Method { published: "FLEX", system: "flexmoe-fsep", sharded: true },
    Method { published: "LAER", system: "laer", sharded: true },
    Method { published: "megatron", system: "megatron", sharded: false },
];

/// The artifact's models, and how their experts are cut. Qwen-8x7B is taken to have the shape of Mixtral 8x7B: its name says no more.
const FAMILIES: [(&str, Shape); 3] = [
    ("mixtral-8x7b", Shape { hidden: 4096, heads: 32, inner: 14336, layers: [32, 24] }),
    ("mixtral-8x22b", Shape { hidden: 6144, heads: 48, inner: 16384, layers: [18, 14] }),
    ("qwen-8x7b", Shape { hidden: 4096, heads: 32, inner: 14336, layers: [32, 24] }),
];

/// Experts, choices per token, and by how much experts are narrower.
const CUTS: [(&str, [usize; 3]); 2] = [("e8k2", [8, 2, 1]), ("e16k4", [16, 4, 2])];

#[derive(Clone, Copy)]
struct Shape {
    hidden: usize,
    heads: usize,
    inner: usize,
    /// By cut.
    layers: [usize; 2],
}

/// What all runs of the artifact have in common: GPUs, samples an iteration, samples of a micro-batch, tokens of a sample, words, heads of keys and values, ranks that share
/// a set of experts where it is sharded and where not.
const GPUS: usize = 32;
const GLOBAL_BATCH: usize = 128;
const MICRO_BATCH: usize = 2;
const SEQ_LEN: usize = 8192;
const VOCABULARY: usize = 32000;
const KV_HEADS: usize = 8;
const EXPERT_RANKS: [usize; 2] = [4, 8];

/// Reads a file's rows, in their order.
///
/// # Errors
/// A cell that cannot be, a method or model that is not known, a plan that does not fit, or a row that stands twice: with file and
/// line.
pub fn read(path: &Path, cluster: &Cluster) -> Result<Vec<Step>> {
    let file = measurements::open(path)?;
    let mut steps: Vec<Step> = Vec::new();
    for row in file.rows() {
        let step = row.read::<Row>()?.step(&row, cluster)?;
        if steps.iter().any(|other| other.is_of(&step)) {
            let Step { dataset, method, model, aux_loss, .. } = &step;
            let found = format!("{dataset}, {method}, {model}, aux_loss {aux_loss}");
            return Err(row.wrong(format!("{found}: expected every configuration once")).into());
        }
        steps.push(step);
    }
    Ok(steps)
}

impl Step {
    /// Whether both are the same configuration.
    fn is_of(&self, other: &Self) -> bool {
        self.same_case(other) && self.system.name() == other.system.name() && self.plan == other.plan
    }

    /// Whether both train the same model on the same data in the same batches.
    pub fn same_case(&self, other: &Self) -> bool {
        let case = |step: &Self| (step.dataset.clone(), step.model.clone(), step.job.gpus, step.job.global_batch);
        case(self) == case(other) && self.aux_loss == other.aux_loss && self.job.model.blocks == other.job.model.blocks
    }

    /// Data, model and weight of the balance loss, for people.
    pub fn case(&self) -> String {
        format!("{}, {}, aux {}", self.dataset, self.model, self.aux_loss)
    }
}

impl Row {
    fn step(self, row: &CsvRow, cluster: &Cluster) -> Result<Step> {
        let method = self.method(row)?;
        let aux_loss = self.aux_loss.unwrap_or(0.0);
        if !(aux_loss.is_finite() && aux_loss >= 0.0) {
            return Err(row.wrong(format!("aux_loss = {aux_loss}: expected a number of at least 0")).into());
        }
        let model = self.model(row)?;
        let number = |given: Option<Count>, stated: usize| given.map_or(stated, |count| count.0);
        let (gpus, batch) = (number(self.gpus, GPUS), number(self.global_batch, GLOBAL_BATCH));
        let plan = self.plan(method, &model, gpus);
        let job = Job::new(model, cluster.clone(), gpus, Gate::NoDrop, batch).with_micro_batch(plan.micro_batch);
        plan.check(&job).with_context(|| row.place())?;
        Ok(Step {
            dataset: self.dataset,
            method: self.method,
            model: self.model_name,
            aux_loss,
            measured: self.avg_time_ms.0 * 1e-3,
            system: systems::by_name(method.system)?,
            job,
            plan,
        })
    }

    fn method(&self, row: &CsvRow) -> Result<&'static Method> {
        let called =
            |known: &&Method| [known.published, known.system].iter().any(|n| n.eq_ignore_ascii_case(&self.method));
        let known = METHODS.iter().find(called);
        known.ok_or_else(|| {
            let names = METHODS.map(|known| known.published).join(", ");
            row.wrong(format!("method = {}: expected one of {names}", self.method)).into()
        })
    }

    /// The model of that name, changed by the row's own columns; any model whose columns are all there.
    fn model(&self, row: &CsvRow) -> Result<Model> {
        let named = |(family, shape): &(&str, Shape)| {
            let cut = self.model_name.strip_prefix(family)?.strip_prefix('-')?;
            let at = CUTS.iter().position(|(name, _)| *name == cut)?;
            Some((*shape, at))
        };
        let known = FAMILIES.iter().find_map(named);
        let pick = |column: &str, given: Option<Count>, stated: Option<usize>| -> Result<usize> {
            given.map(|count| count.0).or(stated).ok_or_else(|| {
                let names: Vec<&str> = FAMILIES.iter().map(|(family, _)| *family).collect();
                let cuts = CUTS.map(|(cut, _)| cut).join(" or ");
                let wanted = format!("{} with -{cuts}, or a column `{column}` that says it", names.join(", "));
                row.wrong(format!("model_name = {}: expected {wanted}", self.model_name)).into()
            })
        };
        let of = |part: fn(&Shape, [usize; 3]) -> usize| known.map(|(shape, at)| part(&shape, CUTS[at].1));
        let layers = pick("layers", self.layers, known.map(|(shape, at)| shape.layers[at]))?;
        let hidden = pick("hidden", self.hidden, of(|shape, _| shape.hidden))?;
        let heads = pick("heads", self.heads, of(|shape, _| shape.heads))?;
        let experts = pick("experts", self.experts, of(|_, [experts, ..]| experts))?;
        let top_k = pick("top_k", self.top_k, of(|_, [_, top_k, _]| top_k))?;
        let inner = pick("expert_inner", self.expert_inner, of(|shape, [.., narrower]| shape.inner / narrower))?;
        let number = |given: Option<Count>, stated: usize| given.map_or(stated, |count| count.0);
        let (kv_heads, seq_len) = (number(self.kv_heads, KV_HEADS), number(self.seq_len, SEQ_LEN));
        let vocabulary = number(self.vocabulary, VOCABULARY);
        let text = format!(
            "name = {:?}\nsource = \"LAER-MoE (ASPLOS'26) artifact\"\n[gpt]\nlayers = {layers}\nhidden = {hidden}\n\
             heads = {heads}\nkv_heads = {kv_heads}\nseq_len = {seq_len}\nvocabulary = {vocabulary}\n\
             experts = {experts}\ntop_k = {top_k}\nexpert_inner = {inner}\nexpert_gated = true\nactivation = \"silu\"\n\
             bias = false\ndropout = false\nnorm = \"rms\"\npositions = \"rotary\"\nrope_theta = 1e6\ntied = false\n\
             fused_attention = true\n",
            self.model_name
        );
        Ok(Model::parse(&row.place(), &text)?)
    }

    /// Where parameters are sharded, all ranks are replicas; Megatron cuts attention over 8 ranks, or 4 where experts are many.
    fn plan(&self, method: &Method, model: &Model, gpus: usize) -> Plan {
        let number = |given: Option<Count>, stated: usize| given.map_or(stated, |count| count.0);
        let experts = model.moe_layers().next().map_or(1, |moe| moe.experts);
        let tp = number(
            self.tp,
            if method.sharded {
                1
            } else if experts > EXPERT_RANKS[1] {
                4
            } else {
                8
            },
        );
        let ep = number(self.ep, EXPERT_RANKS[usize::from(!method.sharded)].min(gpus));
        Plan {
            dp: gpus / tp,
            tp,
            ep,
            expert_dp: gpus / ep,
            micro_batch: number(self.micro_batch, MICRO_BATCH),
            zero: if method.sharded { Zero::Weights } else { Zero::Optimizer },
            recompute: Recompute::Full,
            placement_every: 1,
            ..Plan::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(name: &str, text: &str) -> Result<Vec<Step>> {
        let path = std::env::temp_dir().join(format!("moebench-{}-{name}.csv", std::process::id()));
        std::fs::write(&path, text).unwrap();
        let steps = read(&path, &Cluster::named("test", "a100x8").unwrap());
        std::fs::remove_file(path).unwrap();
        steps
    }

    const HEADER: &str = "dataset,method,model_name,aux_loss,avg_time_ms";

    /// Parameters of 8x7B: Mixtral's 46.7 billion.
    #[test]
    fn rows_have_the_artifacts_models_and_plans() {
        let rows = "w,FSDP,mixtral-8x7b-e8k2,0.0,35000\nw,laer,mixtral-8x22b-e16k4,0.0001,20000\n\
                    w,megatron,mixtral-8x7b-e8k2,0.0,43000\nw,Megatron,qwen-8x7b-e16k4,,26000\n";
        let steps = read_text("steps", &format!("{HEADER}\n{rows}")).unwrap();
        let plans: Vec<String> = steps.iter().map(|step| step.plan.to_string()).collect();
        assert_eq!(plans[0], "pp1 dp32 tp1 ep4 edp8 mb2 zero3 full every1");
        assert_eq!(plans[1], plans[0]);
        assert_eq!(plans[2], "pp1 dp4 tp8 ep8 edp4 mb2 zero1 full every1");
        assert_eq!(plans[3], "pp1 dp8 tp4 ep8 edp4 mb2 zero1 full every1");
        assert_eq!(
            steps.iter().map(|step| step.system.name()).collect::<Vec<_>>(),
            ["fsdp-ep-queued", "laer", "megatron", "megatron"]
        );
        assert!(steps[0].same_case(&steps[2]) && !steps[0].same_case(&steps[1]));
        assert!((steps[0].job.model.parameters() as f64 / 46.7e9 - 1.0).abs() < 0.001);
        let moe = steps[1].job.model.moe_layers().next().unwrap();
        assert_eq!((moe.experts, moe.expert.inner, steps[1].job.top_k()), (16, 8192, 4));
        assert_eq!(steps[0].measured, 35.0);
    }

    #[test]
    fn a_model_that_is_not_known_may_be_described() {
        let columns = "layers,hidden,heads,experts,top_k,expert_inner,global_batch,seq_len";
        let row = "w,FLEX,mine,0.0,1000,4,1024,16,32,8,512,256,4096";
        let steps = read_text("described", &format!("{HEADER},{columns}\n{row}\n")).unwrap();
        let (job, moe) = (&steps[0].job, steps[0].job.model.moe_layers().next().unwrap());
        assert_eq!((job.global_batch, job.top_k(), moe.experts, moe.tokens), (256, 8, 32, 4096));
        // One column changes a known model.
        let row = "w,FLEX,mixtral-8x7b-e8k2,0.0,1000,4,,,,,,,";
        let steps = read_text("changed", &format!("{HEADER},{columns}\n{row}\n")).unwrap();
        assert_eq!(steps[0].job.model.blocks.len(), 4);
    }

    #[test]
    fn bad_rows_name_line_and_column() {
        let good = "w,FSDP,mixtral-8x7b-e8k2,0.0,35000";
        let check = |name: &str, row: &str, expected: &[&str]| {
            let read = read_text(name, &format!("{HEADER}\n{good}\n{row}\n"));
            let message = format!("{:#}", read.err().expect("an error"));
            assert!(expected.iter().all(|part| message.contains(part)), "{message}");
        };
        check("twice", good, &["line 3", "w, FSDP, mixtral-8x7b-e8k2, aux_loss 0: expected every configuration once"]);
        check("system", "w,Tutel,mixtral-8x7b-e8k2,0.0,1", &["line 3", "method = Tutel: expected one of FSDP, FLEX"]);
        check("model", "w,FSDP,llama-e8k2,0.0,1", &["line 3", "model_name = llama-e8k2", "or a column `layers`"]);
        check("time", "w,LAER,mixtral-8x7b-e8k2,0.0,-1", &["line 3", "avg_time_ms = -1: expected a number above 0"]);
        check("aux", "w,LAER,mixtral-8x7b-e8k2,-1,1", &["line 3", "aux_loss = -1: expected a number of at least 0"]);
        let message = format!("{:#}", read_text("column", "dataset,method\nw,FSDP\n").err().unwrap());
        assert!(message.contains("no column `model_name`"), "{message}");
        let text = format!("{HEADER},global_batch\n{good},33\n");
        let message = format!("{:#}", read_text("plan", &text).err().unwrap());
        assert!(message.contains("line 2") && message.contains("global batch = 33"), "{message}");
    }
}
