//! Integration tests, one binary. Every expectation is written down here or computed in another way than the program does.

// What a switched-off feature and a changed constant do to simulated times.
mod features;
// Random jobs on random clusters: results move the right way.
mod properties;
// A system that is no part of moebench, added as one.
mod added;
// Tiny cases against arithmetic done by hand, and against every possible placement.
mod arithmetic;
// Everything around an engine, with one of known times.
mod mock;
// Medians, speedups and their spread, errors of predictions, least squares.
mod statistics;
// The house itself: layers, circles, sizes, and that ARCHITECTURE.md is true.
mod house;
// Systems with copies of experts: every entry once, what copies cost, what they bring.
mod copies;
// The same bytes whatever the threads, the order of cases or an interruption.
mod determinism;
// Kills, full disks and read-only folders at each write of a run.
#[cfg(target_os = "linux")]
mod trust;
// The licences of all dependencies against Cargo.lock.
mod licences;
// Wrong input: exit status 2, one line that names file, field and what is allowed, nothing written.
mod bad_input;
// Mutated files against every reader.
mod fuzzed;
// Spans of an iteration against its ledgers, and the files that show them.
mod timeline;
// Chakra execution traces, read back by a decoder of their own.
mod chakra;
// Runs as MLPerf's log lines.
mod mllog;
// Every command from its arguments to its files.
mod cli;
// Models that people train: configs, fields, and what the trainer has not learned.
mod models;
// Logs of other training programs as stored runs.
mod logs;
// Recordings of other tools, workloads and skews as traces.
mod traces;
// Stored runs: compared, joined from shards, and where they go.
mod stored;
// Cases of one's own: sweeps, changed fields, plans by rank.
mod sweeps;
// What comes with moebench shown, begun from and described to editors.
mod own;
// Models and clusters by files, and routing as an axis of a suite.
mod names;
// The columns of stored runs, their version, and readers that are not ours.
mod schema;
// The page of stored runs: rebuilt from their folders, complete or not, and in a browser.
mod page;
// Figures of stored runs: the same bytes again, legible in print, every format.
mod figures;
// Tables of stored runs: the same bytes again, within a column or a page, the numbers of the summary.
mod tables;
// Suites of single layers, and collections of suites.
mod layers;
// Measurements of other shapes and spellings, and the page of all studies.
mod validate;
// Predictions against what SmartMoE's authors measured; ignored without their data.
mod published;
// Where that data is.
mod shared_data;
// Folders, the program, and small clusters, models and routings.
mod support;
// Real training: the same model under every plan, policy and program.
#[cfg(feature = "train")]
mod training;
// Real training with copies of experts.
#[cfg(feature = "train")]
mod replicas;
// A virtual clock: emulated iterations against simulated ones, and clocks whose parts add up.
#[cfg(feature = "train")]
mod virtual_clock;
// Kinds of fault that users of such programs report.
#[cfg(feature = "train")]
mod faults;
// Ranks as processes, and their ends.
#[cfg(feature = "train")]
mod processes;
