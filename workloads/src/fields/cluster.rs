//! Fields of a cluster.

use super::Kind::{Constant, Flag, List, Number, Table as Inner, Text, Whole, Words};
use super::{Table, may, must};

/// A cluster's file.
pub static CLUSTER: Table = Table {
    about: "A cluster: GPUs, links and host. A constant is `{ value = 8e10, source = \"where it comes from\" }` in SI units, with `uncertainty` (one standard error) where it was fitted and `peak` where a datasheet bounds it",
    fields: &[
        must("name", Text, "\"mine\"", "Its name in records, figures and ids"),
        may("description", Text, "\"Nodes of eight GPUs\"", "What it is, for people"),
        must("gpus_per_node", Whole, "8", "Consecutive ranks that share a node"),
        must("gpu", Inner(&GPU), "{}", "One GPU"),
        must("network", Inner(&NETWORK), "{}", "Links inside and between nodes"),
        must("host", Inner(&HOST), "{}", "Work of the host that the GPU waits for"),
        may(
            "program",
            Inner(&PROGRAM),
            "{ grouped_products = true }",
            "What the training program does otherwise than those of the studies, under every system",
        ),
    ],
};

static PROGRAM: Table = Table {
    about: "What a training program does otherwise than those of the studies, under every system",
    fields: &[
        may(
            "gradient",
            Constant("B"),
            CONSTANT,
            "A parameter's gradient as it is held and summed over replicas, B; 2 when absent",
        ),
        may(
            "activations",
            Words(&["published", "counted"]),
            "\"published\"",
            "What is kept of a forward pass, and held for copies of experts and shards of optimizer state, `published`: as the studies' formulas say, or `counted`: as this program's trainer does on a GPU; `published` when absent",
        ),
        may(
            "grouped_products",
            Flag,
            "true",
            "Whether a rank multiplies all of its experts in one grouped product, under every system; as each system does when absent. Measured experts are grouped",
        ),
        may(
            "overlap_state",
            Flag,
            "true",
            "Whether gradients are reduced beside the last backward pass, and weights of sharded optimizer state gathered beside the first forward pass, under every system; as each system does when absent",
        ),
    ],
};

static GPU: Table = Table {
    about: "One GPU's rates and memory",
    fields: &[
        must("name", Text, "\"A100-SXM4-80GB\"", "Product name"),
        must("memory", Constant("B"), CONSTANT, "Device memory, B"),
        must(
            "memory_reserved",
            Constant("B"),
            CONSTANT,
            "Memory that a job cannot use (context, communication buffers, fragmentation), B",
        ),
        must(
            "memory_bandwidth",
            Constant("B/s"),
            CONSTANT,
            "Bandwidth of device memory that streaming kernels reach, B/s",
        ),
        must(
            "scatter_bandwidth",
            Constant("B/s"),
            CONSTANT,
            "Bandwidth of kernels that gather and scatter rows by index, B/s",
        ),
        must("gemm_rate", Constant("FLOP/s"), CONSTANT, "Rate that half-precision matrix products reach, FLOP/s"),
        must(
            "expert_start",
            Constant("s"),
            CONSTANT,
            "What an expert with any rows takes beyond arithmetic and memory traffic, forward, s",
        ),
        may(
            "block_traffic",
            Constant("times"),
            CONSTANT,
            "How often what a block stores outside its experts goes through memory in a forward pass; twice where absent",
        ),
        may(
            "hour_price",
            Constant("per hour"),
            CONSTANT,
            "What an hour of one costs, in the currency that its source names: summaries then say what a run costs; no time depends on it",
        ),
        may(
            "measured",
            List(&Inner(&MEASURED)),
            "[]",
            "Operations that were measured there one by one, as `calibrate measure --operations` writes them; formulas say what all others take",
        ),
    ],
};

static MEASURED: Table = Table {
    about: "What an operation of one shape takes, a line over its units",
    fields: &[
        must(
            "operation",
            Words(&["block", "gate", "permute", "expert", "edges", "optimizer"]),
            "\"expert\"",
            "Which; their units are a sample, a token, a token, a row, a sample and a parameter; the lines of a gate and of its permutation hold \
             for the one top-k and kind of gate, bounded or not, that they were measured with",
        ),
        must("shape", Text, "\"\"", "What it was measured on, in the words of the command that writes it"),
        must(
            "forward",
            Inner(&LINE),
            "{ start = 1e-5, unit = 1e-8 }",
            "The forward pass, or all of a permutation or of the optimizer's step: from an idle GPU until it is idle again; of ranks with a GPU each, in an iteration whose hosts wait around every exchange",
        ),
        may(
            "backward",
            Inner(&LINE),
            "{ start = 2e-5, unit = 2e-8 }",
            "The backward pass; none for permute and optimizer",
        ),
        may(
            "queued",
            Inner(&PASSES),
            "{ forward = { start = 0, unit = 1e-8 }, backward = { start = 0, unit = 2e-8 } }",
            "What the GPU takes behind other work, when all is issued before it begins; with `issue`, or neither",
        ),
        may(
            "issue",
            Inner(&PASSES),
            "{ forward = { start = 1e-5, unit = 0 }, backward = { start = 2e-5, unit = 0 } }",
            "What the host takes to issue it: it runs ahead of the GPU until it waits for it. Where absent, hosts take no time and \
             operations what they take from an idle GPU on",
        ),
        must("source", Text, "\"where it comes from\"", "Where the times come from"),
    ],
};

static PASSES: Table = Table {
    about: "The passes of an operation, each a line over its units",
    fields: &[
        must(
            "forward",
            Inner(&LINE),
            "{ start = 1e-5, unit = 1e-8 }",
            "The forward pass, or all of a permutation or of the optimizer's step",
        ),
        may(
            "backward",
            Inner(&LINE),
            "{ start = 2e-5, unit = 2e-8 }",
            "The backward pass; none for permute and optimizer",
        ),
    ],
};

static LINE: Table = Table {
    about: "A time that grows with a number of units",
    fields: &[
        must("start", Number, "1e-5", "Without any unit, s"),
        must("unit", Number, "1e-8", "For each unit, s"),
        may("call", Number, "5e-5", "Of experts, once for all that run together, s; 0 when absent"),
        may("error", Number, "0.1", "The largest distance of a measured time from the line, as a share of that time"),
    ],
};

static NETWORK: Table = Table {
    about: "Bandwidths in each direction, and start-up times",
    fields: &[
        must(
            "intra_bandwidth",
            Constant("B/s"),
            CONSTANT,
            "One GPU's bandwidth to the others of its node, B/s each way",
        ),
        may(
            "intra_both",
            Constant("B/s"),
            CONSTANT,
            "What one GPU sends to the others of its node and receives from them, together, B/s: `intra_bandwidth` to twice that, which is meant when absent",
        ),
        must(
            "inter_bandwidth",
            Constant("B/s"),
            CONSTANT,
            "A whole node's bandwidth to other nodes, shared by its GPUs, B/s each way",
        ),
        must("port_bandwidth", Constant("B/s"), CONSTANT, "One GPU's bandwidth to other nodes, B/s each way"),
        must(
            "rooted_bandwidth",
            Constant("B/s"),
            CONSTANT,
            "Rate of a broadcast from, or a reduction to, one GPU across nodes, B/s",
        ),
        must("call_start", Constant("s"), CONSTANT, "Start-up of one grouped call or collective, s"),
        must("peer_start", Constant("s"), CONSTANT, "Start-up for each peer on another node in a grouped call, s"),
        must("send_start", Constant("s"), CONSTANT, "Start-up of one send between two ranks, s"),
        may(
            "slows_kernels",
            Constant("1"),
            CONSTANT,
            "By how much longer kernels take while an exchange or a transfer of weights runs on their GPU, as a share of their time; not at all where absent",
        ),
        may(
            "slowed_by_kernels",
            Constant("1"),
            CONSTANT,
            "By how much longer a transfer of weights takes while kernels run on its GPUs, as a share of its time; not at all where absent",
        ),
        may(
            "tiers",
            List(&Inner(&TIER)),
            "[]",
            "Pods, racks or rail groups of several nodes, smallest first; without any, every node reaches every other at its full rate",
        ),
    ],
};

static TIER: Table = Table {
    about: "Nodes that share links to the rest of the cluster",
    fields: &[
        must("name", Text, "\"pod\"", "What such a unit is called"),
        must("nodes", Whole, "8", "Consecutive nodes of a unit"),
        must(
            "bandwidth",
            Constant("B/s"),
            CONSTANT,
            "What a unit's nodes could send to other units together, were its links not oversubscribed, B/s each way",
        ),
        must(
            "oversubscription",
            Constant("1"),
            CONSTANT,
            "How many times more its nodes may send than its links carry; at least 1",
        ),
    ],
};

static HOST: Table = Table {
    about: "Work of the host that the GPU waits for",
    fields: &[
        must("iteration", Constant("s"), CONSTANT, "Per training iteration (data loading, logging, loss scaling), s"),
        must(
            "block",
            Constant("s"),
            CONSTANT,
            "Per pass through a transformer block (launches of its small kernels), s",
        ),
        must("synchronisation", Constant("s"), CONSTANT, "Per wait of the host for the device, s"),
        may(
            "exchange",
            Constant("s"),
            CONSTANT,
            "Per call of an exchange between ranks until it is issued, where operations state `issue`, s",
        ),
        may(
            "part",
            Constant("s"),
            CONSTANT,
            "Besides, per rank and per part of a transfer that such a call sends to or receives from, s",
        ),
        may("arrival", Constant("s"), CONSTANT, "Per call of an exchange when its result is needed, s"),
        may("counts", Constant("s"), CONSTANT, "Per exchange of counts until it is issued, s"),
        may(
            "reading",
            Constant("s"),
            CONSTANT,
            "From then until the host has read the counts of all ranks of a node, on an idle GPU, s; where absent, an exchange of as many bytes \
             and, if a program says so, a synchronisation",
        ),
        may(
            "image",
            Constant("s"),
            CONSTANT,
            "Per image that a rank trains on, where a model of images was measured, s",
        ),
        must(
            "decision_step",
            Constant("s"),
            CONSTANT,
            "One elementary step of an online decision (one expert held against one rank), s",
        ),
    ],
};

/// What a constant looks like. Nobody's hardware.
const CONSTANT: &str = "{ value = 1.0, source = \"where it comes from\" }";
