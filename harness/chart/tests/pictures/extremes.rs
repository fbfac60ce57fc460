//! Whatever the data, a chart is drawn: well-formed XML, no number that is none, and nothing written far off the page.

use chart::{
    Bar, BarValue, Figure, FigureError, Frame, Group, GroupedBars, HeatCell, HeatMap, HeatPanel, LineChart, LinePanel,
    LineSeries, Panel, Scatter, ScatterPanel, ScatterSeries, Series, StackedBar, StackedBars, Width,
};

/// Series of values that tempt a chart to divide by zero, overflow or loop.
fn values() -> Vec<(&'static str, Vec<f64>)> {
    vec![
        ("nothing", vec![]),
        ("one value", vec![3.0]),
        ("one zero", vec![0.0]),
        ("one value twice", vec![-2.5, -2.5]),
        ("not a number", vec![f64::NAN]),
        ("numbers and none", vec![f64::NAN, 1.0, f64::INFINITY, 2.0, f64::NEG_INFINITY, f64::NAN]),
        ("the whole range", vec![f64::MIN, -1.0, 0.0, f64::MAX]),
        ("huge", vec![1e99, 2e100, 9e307]),
        ("huge of both signs", vec![-1e100, 1e100]),
        ("tiny", vec![1e-99, 3e-300, 5e-324]),
        ("tiny and huge", vec![1e-100, 1.0, 1e100]),
        ("a rounding error apart", vec![1e15, 1e15 + 1.0, 1.0 + f64::EPSILON, 1.0]),
        ("close together far from zero", vec![1e12, 1e12 + 1e-3, 1e12 + 2e-3]),
        ("negative", vec![-5.0, -0.1, -1e6]),
        ("negative zero", vec![-0.0, 0.0]),
        ("many", (0..400).map(|i| f64::from(i) * (f64::from(i) * 0.7).sin()).collect()),
    ]
}

fn names() -> Vec<String> {
    let long = "a name without any space that is longer than every page is wide ".replace(' ', "-").repeat(8);
    ["", "EP", "<b>&\"'\u{0}\u{1f}\u{7f}\u{fffe}\n\t", "日本語 \u{1F600} \u{0301}", &long].map(str::to_owned).to_vec()
}

fn frame(width: Width, height: Option<f64>, text: &str) -> Frame {
    Frame { width, height, title: text.to_owned() }
}

fn check(what: &str, figure: Result<Figure, FigureError>) {
    let figure = figure.unwrap_or_else(|error| panic!("{what}: {error}"));
    let document = roxmltree::Document::parse(&figure.svg).unwrap_or_else(|error| panic!("{what}: {error}"));
    let root = document.root_element();
    let size = numbers(root.attribute("viewBox").unwrap_or_default());
    let page = -REACH..=size[2].max(size[3]) + REACH;
    for node in document.descendants().filter(roxmltree::Node::is_element) {
        for attribute in node.attributes().filter(|a| GEOMETRY.contains(&a.name())) {
            for value in numbers(attribute.value()) {
                assert!(page.contains(&value), "{what}: {} {}", attribute.name(), attribute.value());
            }
        }
    }
    assert!(figure.pdf.starts_with(b"%PDF-"), "{what}");
    // What is drawn is the first stream; fonts are binary.
    let pdf = String::from_utf8_lossy(&figure.pdf);
    let content = pdf.split_once("endstream").map_or("", |(content, _)| content);
    assert!(!content.contains("NaN") && !content.contains("inf"), "{what}: a number that is none in the PDF");
}

/// Points beyond the page that a label may start or end at.
const REACH: f64 = 20.0;
const GEOMETRY: [&str; 10] = ["d", "x", "y", "cx", "cy", "r", "font-size", "stroke-width", "transform", "viewBox"];

fn numbers(attribute: &str) -> Vec<f64> {
    let lengths = attribute.replace("translate", "").replace("rotate(-90)", "");
    let words = lengths.split(|c: char| c.is_whitespace() || "MLZ()".contains(c)).filter(|word| !word.is_empty());
    words.map(|word| word.parse().unwrap_or(f64::NAN)).collect()
}

fn bar_charts(frame: &Frame, name: &str, values: &[f64]) -> [GroupedBars; 2] {
    let bar = |(i, &y): (usize, &f64)| Bar {
        value: match i % 4 {
            0 => BarValue::Value { y, low: y / 2.0, high: y * 2.0 },
            1 => BarValue::Value { y, low: f64::NAN, high: f64::INFINITY },
            2 => BarValue::Failed { label: name.to_owned() },
            _ => BarValue::Value { y, low: y, high: y },
        },
        published: (i % 3 == 0).then_some(-y),
        published_of_other: i % 2 == 0,
        second: (i % 2 == 0).then_some(y / 2.0),
        label: (i % 2 == 0).then(|| name.to_owned()),
        aside: Some(name.to_owned()),
    };
    let bars: Vec<Bar> = values.iter().enumerate().map(bar).collect();
    let group = |bars| Group { label: name.to_owned(), over: vec![name.to_owned()], bars };
    let chart = |groups, reference| GroupedBars {
        frame: frame.clone(),
        x_label: name.to_owned(),
        y_label: name.to_owned(),
        series: Series::numbered(names()),
        panels: vec![Panel { title: name.to_owned(), groups }, Panel::default()],
        reference,
        ..GroupedBars::default()
    };
    [
        chart(vec![group(bars.clone())], values.first().copied()),
        chart(bars.into_iter().map(|bar| group(vec![bar])).collect(), None),
    ]
}

fn stacked_charts(frame: &Frame, name: &str, values: &[f64]) -> [StackedBars; 2] {
    let bar = |values: &[f64]| StackedBar { label: name.to_owned(), values: values.to_vec(), note: name.to_owned() };
    let bars: Vec<StackedBar> = values.chunks(3).map(bar).chain([bar(values)]).collect();
    let group = Group { label: name.to_owned(), over: vec![name.to_owned()], bars };
    [false, true].map(|shares| StackedBars {
        frame: frame.clone(),
        x_label: name.to_owned(),
        y_label: name.to_owned(),
        parts: Series::numbered(names()),
        panels: vec![Panel { title: name.to_owned(), groups: vec![group.clone(), Group::default()] }],
        shares,
    })
}

/// Values against each other, both ways.
fn points(values: &[f64]) -> Vec<(f64, f64)> {
    values.iter().copied().zip(values.iter().rev().copied()).collect()
}

fn line_charts(frame: &Frame, name: &str, values: &[f64]) -> [LineChart; 2] {
    let series = LineSeries { name: name.to_owned(), ink: 9, points: points(values), marks: points(values) };
    let panel = |from_zero| LinePanel {
        title: name.to_owned(),
        y_label: name.to_owned(),
        series: vec![series.clone(), LineSeries::default()],
        from_zero,
    };
    [false, true].map(|log_x| LineChart {
        frame: frame.clone(),
        x_label: name.to_owned(),
        panels: vec![panel(true), panel(false), LinePanel::default()],
        mark_label: name.to_owned(),
        log_x,
    })
}

fn scatters(frame: &Frame, name: &str, values: &[f64]) -> [Scatter; 2] {
    let series = ScatterSeries { name: name.to_owned(), ink: 9, points: points(values) };
    let panel = ScatterPanel { title: name.to_owned(), series: vec![series], notes: vec![name.to_owned(); 3] };
    [(false, 0.1), (true, 2.0)].map(|(log, band)| Scatter {
        frame: frame.clone(),
        x_label: name.to_owned(),
        y_label: name.to_owned(),
        panels: vec![panel.clone(), ScatterPanel::default()],
        band: Some(band),
        log,
    })
}

/// A cell for each value, in one row and in one column, with more labels than cells and fewer.
fn maps(frame: &Frame, name: &str, values: &[f64]) -> [HeatMap; 2] {
    let cell = |(i, y): (usize, &f64)| {
        (i % 5 != 4).then(|| HeatCell { ink: i, winner: name.to_owned(), label: format!("{y} {name}") })
    };
    let cells: Vec<Option<HeatCell>> = values.iter().enumerate().map(cell).collect();
    let names = |count: usize| vec![name.to_owned(); count];
    let chart = |rows: usize, columns: usize, cells| HeatMap {
        frame: frame.clone(),
        x_label: name.to_owned(),
        y_label: name.to_owned(),
        series: Series::numbered(self::names()),
        panels: vec![
            HeatPanel { title: name.to_owned(), columns: names(columns), rows: names(rows), cells },
            HeatPanel::default(),
        ],
    };
    let column = cells.iter().map(|cell| vec![cell.clone()]).collect();
    [chart(2, cells.len(), vec![cells.clone()]), chart(cells.len().saturating_sub(1), 1, column)]
}

fn check_all(what: &str, frame: &Frame, name: &str, values: &[f64]) {
    bar_charts(frame, name, values).iter().for_each(|chart| check(what, chart.draw()));
    stacked_charts(frame, name, values).iter().for_each(|chart| check(what, chart.draw()));
    line_charts(frame, name, values).iter().for_each(|chart| check(what, chart.draw()));
    scatters(frame, name, values).iter().for_each(|chart| check(what, chart.draw()));
    maps(frame, name, values).iter().for_each(|chart| check(what, chart.draw()));
}

#[test]
fn any_values_are_drawn() {
    for (what, values) in values() {
        for width in [Width::Page, Width::Column] {
            check_all(what, &Frame { width, ..Frame::default() }, "EP", &values);
        }
    }
}

const FEW: [f64; 5] = [1.0, f64::NAN, 3.0, 2.0, 5.0];

#[test]
fn any_names_fit() {
    for name in names() {
        for width in [Width::Page, Width::Column] {
            check_all(&format!("{name:?}"), &frame(width, None, &name), &name, &FEW);
        }
    }
}

#[test]
fn any_height_is_drawn() {
    for height in [0.0, -1e9, f64::NAN, f64::INFINITY, 2000.0] {
        check_all(&format!("{height} high"), &frame(Width::Column, Some(height), "EP"), "EP", &FEW);
    }
}

#[test]
fn any_number_of_panels_is_drawn() {
    for count in [0, 1, 2, 7, 40, 300] {
        let frame = Frame { width: Width::Column, ..Frame::default() };
        let what = format!("{count} panels");
        let [mut bars, _] = bar_charts(&frame, "EP", &[1.0, 2.0]);
        let [mut stacked, _] = stacked_charts(&frame, "EP", &[1.0, 2.0]);
        let [mut lines, _] = line_charts(&frame, "EP", &[1.0, 2.0]);
        let [mut scatter, _] = scatters(&frame, "EP", &[1.0, 2.0]);
        let [mut map, _] = maps(&frame, "EP", &[1.0, 2.0]);
        bars.panels = vec![bars.panels[0].clone(); count];
        stacked.panels = vec![stacked.panels[0].clone(); count];
        lines.panels = vec![lines.panels[0].clone(); count];
        scatter.panels = vec![scatter.panels[0].clone(); count];
        map.panels = vec![map.panels[0].clone(); count];
        for figure in [bars.draw(), stacked.draw(), lines.draw(), scatter.draw(), map.draw()] {
            check(&what, figure);
        }
    }
}
