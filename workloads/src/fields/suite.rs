//! Fields of a suite, and of what stands in it.

use super::Kind::{Axis, BySystem, Either, List, Number, Table as Inner, Text, Whole, Words};
use super::{Kind, Table, may, must};

/// A suite's file.
pub static SUITE: Table = Table {
    about: "A suite: which cases are run under which systems, how often and on which routing",
    fields: &[
        must("name", Text, "\"mine\"", "Its name: the folder of its results"),
        may("description", Text, "\"What it answers\"", "What it answers, for people"),
        must(
            "systems",
            List(&Text),
            "[\"expert-only\", \"smartmoe\"]",
            "Names of systems (`moebench list systems`), in the order of the figure's bars",
        ),
        may(
            "baseline",
            Text,
            "\"expert-only\"",
            "The system that speedups are over; the first of `systems` when absent",
        ),
        may("compare", List(&Text), "[]", "Systems that tables show speedups over besides the baseline"),
        may("searched", List(&Text), "[]", "Systems whose plans SmartMoE's search finds, instead of their own rules"),
        must("iterations", Whole, "30", "Training iterations per run, warm-up included"),
        must("warmup", Whole, "10", "First iterations that means, medians and speedups leave out"),
        may("seeds", List(&Whole), "[1]", "One run per seed; 1 alone when absent"),
        may(
            "routing",
            Inner(&ROUTING),
            "{ workload = \"W1\" }",
            "The suite's routing, instead of the built-in trace; `--trace` goes before it",
        ),
        may("trace", Inner(&TRACE), "{ profile = 100 }", "Which part of a routing trace a run replays"),
        may(
            "engine",
            Words(&["simulate", "train", "emulate"]),
            "\"simulate\"",
            "What runs it unless `--engine` says otherwise; `simulate` when absent",
        ),
        may("training", Inner(&TRAINING), "{ learning_rate = 1e-3 }", "How models are trained, where they really are"),
        may(
            "figure",
            Words(&["speedups", "performance-model", "layers", "series", "map"]),
            "\"speedups\"",
            "What is drawn; `speedups` when absent",
        ),
        must("cases", List(&Inner(&CASE)), "[]", "What is trained where"),
    ],
};

/// A table of `[[cases]]`.
pub(super) static CASE: Table = Table {
    about: "A group of bars: a model on a cluster under a gate. Lists of values multiply out to cases",
    fields: &[
        must(
            "model",
            Axis(&Text),
            "\"gpt-tiny\"",
            "The model, by name (`moebench list models`), or by a path that is relative to the suite's folder",
        ),
        must("cluster", Axis(&Text), "\"inky\"", "The cluster, likewise"),
        may("network", Axis(&Number), "0.5", "Factor on every bandwidth between the cluster's nodes; 1 when absent"),
        must("gpus", Axis(&Whole), "8", "GPUs used, from the cluster's first node on"),
        must(
            "gate",
            Axis(&Text),
            "\"no-drop\"",
            "`no-drop`, `no-drop balanced` (trained with a balance loss), `capacity FACTOR` or `switch FACTOR`",
        ),
        must("global_batch", Axis(&Whole), "64", "Samples per iteration, over all GPUs"),
        may(
            "micro_batch",
            Axis(&Whole),
            "2",
            "Samples per rank and micro-batch, the same for every system; each system's choice when absent",
        ),
        may(
            "search",
            Words(&["degrees", "all"]),
            "\"degrees\"",
            "What searches for plans may choose: `degrees` of parallelism, or `all` (virtual stages, ZeRO and recomputation, too); `degrees` when absent",
        ),
        may(
            "plans",
            BySystem(&PLAN),
            "{}",
            "Plans given instead of searched for, by system: a text as tables show it, a table of degrees, or a rank of `moebench plan`",
        ),
        may(
            "differs",
            BySystem(&Inner(&DIFFERENCE)),
            "{}",
            "What a system trains otherwise than the case says, by system",
        ),
        may(
            "routing",
            List(&Inner(&ROUTING)),
            "[{ max_over_mean = 2.0 }]",
            "The case's routing; each becomes a case of its own",
        ),
        may(
            "layers",
            List(&Whole),
            "[]",
            "MoE layers to run alone, counted from 0, instead of whole iterations; each becomes a case of its own",
        ),
        may("name", Text, "\"long\"", "Tells apart cases that differ in nothing that an id shows; part of the id"),
    ],
};

static PLAN: Kind = Either(&[Text, Inner(&DEGREES), Whole]);

pub(super) static DEGREES: Table = Table {
    about: "A plan's degrees: inside a stage `ep * expert_dp = dp * tp`",
    fields: &[
        must("pp", Whole, "1", "Pipeline stages"),
        must("dp", Whole, "8", "Data-parallel replicas"),
        must("tp", Whole, "1", "Tensor-parallel ranks"),
        must("ep", Whole, "8", "Ranks that share one set of experts"),
        must("expert_dp", Whole, "1", "Replicas of that set within a stage"),
        must("micro_batch", Whole, "1", "Samples per rank and micro-batch"),
        may("vp", Whole, "1", "Virtual stages per rank; 1 when absent"),
        may("zero", Whole, "0", "Sharded over replicas: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too"),
        may("recompute", Words(&["none", "selective", "full"]), "\"none\"", "What the backward pass computes again"),
        may("placement_every", Whole, "0", "Iterations between online placements; 0 for none"),
    ],
};

pub(super) static DIFFERENCE: Table = Table {
    about: "Where one system's run differs from its case",
    fields: &[
        may("model", Text, "\"gpt-micro\"", "Another model"),
        may("gate", Text, "\"no-drop\"", "Another gate"),
        may("micro_batch", Whole, "1", "Another micro-batch"),
    ],
};

pub(super) static ROUTING: Table = Table {
    about: "A recorded trace, or routing of a stated imbalance; with no field, balanced",
    fields: &[
        may(
            "trace",
            Text,
            "\"gpt-routing\"",
            "A recorded trace, by name or by a path that is relative to the suite's folder, instead of all below",
        ),
        may(
            "workload",
            Words(&["W0", "W1", "W2", "W3", "W4", "W5", "W6", "W7"]),
            "\"W1\"",
            "One of the workloads W0 to W7, instead of the skew below",
        ),
        may("max_over_mean", Number, "2.0", "Entries of the fullest expert of a layer over the mean"),
        may("gini", Number, "0.3", "Gini coefficient of the experts' entries, from 0"),
        may("half_life", Number, "50", "Iterations until half of the skew has moved on to other experts"),
        may("seed", Whole, "0", "Seed of its draws; 0 when absent"),
    ],
};

pub(super) static TRACE: Table = Table {
    about: "Which part of a routing trace a run replays",
    fields: &[
        may("start", Whole, "1", "Trace iteration of the first training iteration; the trace's first when absent"),
        may("stride", Whole, "1", "Trace iterations per training iteration; 1 when absent"),
        may("profile", Whole, "100", "Iterations of the profiling run that offline searches see; 100 when absent"),
        may(
            "profile_start",
            Whole,
            "1",
            "Trace iteration of its first iteration, for a stale profile; that of the first training iteration when absent",
        ),
    ],
};

pub(super) static TRAINING: Table = Table {
    about: "Constants of the optimizer (Adam with decoupled weight decay) and of the loss",
    fields: &[
        may("learning_rate", Number, "1e-3", "Step size; 1e-3 when absent"),
        may("beta1", Number, "0.9", "Decay of the running mean of gradients; 0.9 when absent"),
        may("beta2", Number, "0.95", "Decay of the running mean of squares; 0.95 when absent"),
        may("epsilon", Number, "1e-8", "Added to the root of the mean of squares; 1e-8 when absent"),
        may("weight_decay", Number, "0.0", "Decay of weights per step, times the step size; 0 when absent"),
        may("clip_norm", Number, "1.0", "Largest norm of the whole gradient, 0 for no limit; 1 when absent"),
        may("balance_loss", Number, "0.01", "Weight of the balance loss of gates that have one; 0.01 when absent"),
        may(
            "gradients",
            Words(&["single", "half"]),
            "\"single\"",
            "Precision in which the trainer holds gradients and sums them over ranks; `single` when absent. Predictions follow where the cluster's program states a gradient's size",
        ),
    ],
};
