//! One chart of each kind, with what its figures in the wild hold: intervals, published values, failures, gaps, marks.

use chart::{
    Bar, Frame, Group, GroupedBars, HeatCell, HeatMap, HeatPanel, LineChart, LinePanel, LineSeries, Panel, Scatter,
    ScatterPanel, ScatterSeries, Series, StackedBar, StackedBars, Width,
};

const SYSTEMS: [&str; 4] = ["Expert parallelism", "FasterMoE", "DeepSpeed-MoE †", "SmartMoE"];

pub(crate) fn grouped_bars() -> GroupedBars {
    let bar = |y: f64, published: Option<f64>| Bar {
        label: Some(format!("{y:.2}")),
        published,
        ..Bar::interval(y, y * 0.97, y * 1.04)
    };
    let group = |label: &str, y: f64| {
        let last = Bar { aside: Some("(+6%)".into()), second: Some(y * 1.06), ..bar(y, Some(y * 0.94)) };
        Group {
            label: label.into(),
            bars: vec![bar(1.0, None), bar(y * 0.8, Some(y * 0.85)), bar(y * 0.7, None), last],
            ..Group::default()
        }
    };
    let failed = Group {
        label: "32/inf".into(),
        bars: vec![
            Bar::failed("OOM"),
            Bar { published: Some(0.9), ..Bar::failed("TIMEOUT") },
            Bar::default(),
            Bar::value(1.4),
        ],
        ..Group::default()
    };
    GroupedBars {
        frame: Frame::default(),
        y_label: "Speedup over <expert parallelism>".into(),
        x_label: "GPUs / capacity factor".into(),
        series: Series::numbered(SYSTEMS),
        panels: vec![
            Panel { title: "inky".into(), groups: vec![group("16/1.2", 1.31), group("32/1.2", 1.88), failed] },
            Panel { title: "pinky".into(), groups: vec![group("16/1.2", 1.52), group("64/2.4", 2.27)] },
            Panel { title: "blinky".into(), groups: Vec::new() },
        ],
        reference: Some(1.0),
        second_label: "by medians".into(),
    }
}

pub(crate) fn stacked_bars() -> StackedBars {
    let bar = |label: &str, values: [f64; 4]| StackedBar {
        label: label.into(),
        values: values.to_vec(),
        note: format!("{:.0} ms", values.iter().sum::<f64>()),
    };
    let group = |label: &str, scale: f64| Group {
        label: label.into(),
        bars: vec![
            bar("EP", [31.0, 70.0, 12.0, 20.0].map(|v| v * scale)),
            bar("FasterMoE", [30.0, 41.0, 12.0, 20.0].map(|v| v * scale)),
            bar("SmartMoE", [29.0, 24.5, 12.0, 3.0].map(|v| v * scale)),
        ],
        ..Group::default()
    };
    StackedBars {
        frame: Frame { title: "Where the time goes".into(), ..Frame::default() },
        y_label: "Time of an iteration (ms)".into(),
        x_label: "System".into(),
        parts: Series::numbered(["Experts", "All-to-all", "Attention", "Waiting"]),
        panels: vec![
            Panel { title: "inky".into(), groups: vec![group("16 GPUs", 1.0), group("32 GPUs", 1.4)] },
            Panel { title: "pinky".into(), groups: vec![group("16 GPUs", 2.1)] },
        ],
        shares: false,
    }
}

pub(crate) fn stacked_shares() -> StackedBars {
    let mut chart = StackedBars { shares: true, y_label: "Share of an iteration".into(), ..stacked_bars() };
    chart.frame.width = Width::Column;
    chart.panels.truncate(1);
    chart.panels.iter_mut().flat_map(|p| &mut p.groups).flat_map(|g| &mut g.bars).for_each(|b| b.note.clear());
    chart
}

pub(crate) fn lines() -> LineChart {
    let wave = |i: usize| 80.0 + 22.0 * (i as f64 * 0.37).sin() + 6.0 * (i as f64 * 1.9).cos();
    let fixed: Vec<_> = (0..60).map(|i| (10.0 * i as f64, if i == 31 { f64::NAN } else { wave(i) + 18.0 })).collect();
    let online: Vec<_> = (0..60).map(|i| (10.0 * i as f64, wave(i) * 0.8)).collect();
    let marks = online.iter().step_by(20).copied().collect();
    let line = |name: &str, ink, points| LineSeries { name: name.into(), ink, points, marks: Vec::new() };
    let few: Vec<_> = (0..7).map(|i| (100.0 * i as f64, 9.5 - 0.4 * i as f64)).collect();
    LineChart {
        frame: Frame::default(),
        x_label: "Iteration".into(),
        panels: vec![
            LinePanel {
                title: "layer 6, placed every 10 iterations: gain 1.24 (published 1.31)".into(),
                y_label: "Layer time (ms)".into(),
                series: vec![
                    line("experts in order", 0, fixed),
                    LineSeries { marks, ..line("placed online", 1, online) },
                ],
                from_zero: true,
            },
            LinePanel {
                title: "loss".into(),
                y_label: "Loss (nats per token)".into(),
                series: vec![line("SmartMoE", 2, few), line("unigram entropy", 4, vec![(0.0, 7.9), (590.0, 7.9)])],
                from_zero: false,
            },
            LinePanel { title: "idle".into(), ..LinePanel::default() },
        ],
        mark_label: "experts moved".into(),
        log_x: false,
    }
}

pub(crate) fn lines_log() -> LineChart {
    let series = |name: &str, ink, top: f64| {
        let points = (0..15).map(|i| (2f64.powi(i + 6), top / (1.0 + 2f64.powi(12 - i)))).collect();
        LineSeries { name: name.into(), ink, points, marks: Vec::new() }
    };
    LineChart {
        frame: Frame { width: Width::Column, ..Frame::default() },
        x_label: "Message (bytes)".into(),
        panels: vec![LinePanel {
            y_label: "Bus bandwidth (GB/s)".into(),
            series: (0..8)
                .map(|ink| series(&format!("ranks {}", 2usize.pow(ink as u32)), ink, 40.0 + 9.0 * ink as f64))
                .collect(),
            from_zero: true,
            ..LinePanel::default()
        }],
        log_x: true,
        ..LineChart::default()
    }
}

pub(crate) fn map() -> HeatMap {
    let cell = |ink: usize, label: &str| Some(HeatCell { ink, winner: SYSTEMS[ink].into(), label: label.into() });
    let labels = |of: &[&str]| of.iter().map(|&label| label.to_owned()).collect::<Vec<_>>();
    HeatMap {
        x_label: "Fullest expert over the mean (half-life 50)".into(),
        y_label: "Network between nodes (simulated)".into(),
        series: Series::numbered(SYSTEMS),
        panels: vec![
            HeatPanel {
                title: "gpt, inky".into(),
                columns: labels(&["1", "1.5", "4, Gini 0.5"]),
                rows: labels(&["×0.25", "×1"]),
                cells: vec![
                    vec![cell(0, "1.00"), cell(3, "1.22"), cell(3, "OOM")],
                    vec![cell(0, "1.00"), None, cell(1, "10.5")],
                ],
            },
            HeatPanel {
                title: "mixtral, pinky".into(),
                columns: labels(&["trace"]),
                rows: labels(&["×1"]),
                cells: vec![vec![cell(3, "1.31")]],
            },
        ],
        ..HeatMap::default()
    }
}

pub(crate) fn scatter() -> Scatter {
    let points = |n: usize, scale: f64| {
        (1..=n).map(|i| (scale * i as f64, scale * (i as f64 + 0.3 * (i as f64 * 2.3).sin()))).collect()
    };
    let panel = |title: &str, scale: f64| ScatterPanel {
        title: title.into(),
        series: (0..5)
            .map(|ink| ScatterSeries { name: format!("system {ink}"), ink, points: points(4 + ink, scale) })
            .collect(),
        notes: vec!["MAPE 5.8 %".into(), "R² 0.98".into()],
    };
    Scatter {
        frame: Frame::default(),
        x_label: "Measured iteration time (s)".into(),
        y_label: "Predicted iteration time (s)".into(),
        panels: vec![
            panel("16 GPUs", 0.2),
            panel("32 GPUs", 1.0),
            panel("64 GPUs", 1e3),
            ScatterPanel { title: "128 GPUs".into(), ..ScatterPanel::default() },
        ],
        band: Some(0.1),
        log: false,
    }
}

pub(crate) fn scatter_log() -> Scatter {
    let mut chart = Scatter { log: true, ..scatter() };
    chart.panels.push(ScatterPanel {
        title: "many decades".into(),
        series: vec![ScatterSeries {
            name: "system 0".into(),
            ink: 0,
            points: (-3..4).map(|p| (10f64.powi(p), 1.3 * 10f64.powi(p))).collect(),
        }],
        notes: Vec::new(),
    });
    chart
}
