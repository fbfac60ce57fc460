//! A chart of any kind: drawn at a width, and its data as text.

use crate::bars::BarValue;
use crate::columns::Group;
use crate::{Figure, FigureError, GroupedBars, HeatMap, LineChart, Panel, Scatter, StackedBars, Width};

#[derive(Debug, Clone, PartialEq)]
pub enum AnyChart {
    Bars(GroupedBars),
    Stacked(StackedBars),
    Lines(LineChart),
    Scatter(Scatter),
    Map(HeatMap),
}

impl AnyChart {
    /// Lays the chart out at a width and draws it.
    ///
    /// # Errors
    /// [`FigureError`] when the compiled-in font or the drawing library fails; never because of the data.
    pub fn draw(&self, width: Width) -> Result<Figure, FigureError> {
        let mut chart = self.clone();
        match &mut chart {
            Self::Bars(bars) => bars.frame.width = width,
            Self::Stacked(bars) => bars.frame.width = width,
            Self::Lines(lines) => lines.frame.width = width,
            Self::Scatter(scatter) => scatter.frame.width = width,
            Self::Map(map) => map.frame.width = width,
        }
        match &chart {
            Self::Bars(bars) => bars.draw(),
            Self::Stacked(bars) => bars.draw(),
            Self::Lines(lines) => lines.draw(),
            Self::Scatter(scatter) => scatter.draw(),
            Self::Map(map) => map.draw(),
        }
    }

    /// What is drawn, a line for every bar, part of a bar, point or cell, below a line of names.
    pub fn csv(&self) -> String {
        match self {
            Self::Bars(bars) => of_bars(bars),
            Self::Stacked(bars) => of_parts(bars),
            Self::Lines(lines) => of_lines(lines),
            Self::Scatter(scatter) => of_points(scatter),
            Self::Map(map) => of_cells(map),
        }
    }
}

fn of_bars(chart: &GroupedBars) -> String {
    let mut table = Table::new(&[
        "panel",
        "group",
        "series",
        "value",
        "low",
        "high",
        "second",
        "published",
        "published_of_other",
        "note",
    ]);
    for (panel, group, label) in groups(&chart.panels) {
        for (bar, series) in group.bars.iter().zip(&chart.series) {
            let (value, failed) = match &bar.value {
                BarValue::Value { y, low, high } => ([*y, *low, *high].map(number), ""),
                BarValue::Failed { label } => (Default::default(), label.as_str()),
                BarValue::Missing => (Default::default(), "n/a"),
            };
            let [value, low, high] = value;
            let note = if failed.is_empty() { bar.aside.as_deref().unwrap_or_default() } else { failed };
            let other = bar.published.map_or(String::new(), |_| bar.published_of_other.to_string());
            let [second, published] = [bar.second, bar.published].map(|value| value.map_or(String::new(), number));
            table.line(&[&panel.title, &label, &series.name, &value, &low, &high, &second, &published, &other, note]);
        }
    }
    table.text
}

fn of_parts(chart: &StackedBars) -> String {
    let mut table = Table::new(&["panel", "group", "bar", "part", "value"]);
    for (panel, group, label) in groups(&chart.panels) {
        for bar in &group.bars {
            for (value, part) in bar.values.iter().zip(&chart.parts) {
                table.line(&[&panel.title, &label, &bar.label, &part.name, &number(*value)]);
            }
        }
    }
    table.text
}

fn of_lines(chart: &LineChart) -> String {
    let mut table = Table::new(&["panel", "series", "x", "y", "mark"]);
    for (panel, series) in chart.panels.iter().flat_map(|panel| panel.series.iter().map(move |series| (panel, series)))
    {
        let points = series.points.iter().map(|point| (point, ""));
        for ((x, y), mark) in points.chain(series.marks.iter().map(|mark| (mark, chart.mark_label.as_str()))) {
            table.line(&[&panel.title, &series.name, &number(*x), &number(*y), mark]);
        }
    }
    table.text
}

fn of_points(chart: &Scatter) -> String {
    let mut table = Table::new(&["panel", "series", "x", "y"]);
    for (panel, series) in chart.panels.iter().flat_map(|panel| panel.series.iter().map(move |series| (panel, series)))
    {
        for (x, y) in &series.points {
            table.line(&[&panel.title, &series.name, &number(*x), &number(*y)]);
        }
    }
    table.text
}

fn of_cells(chart: &HeatMap) -> String {
    let mut table = Table::new(&["panel", "row", "column", "winner", "label"]);
    for panel in &chart.panels {
        for (row, cells) in panel.rows.iter().zip(&panel.cells) {
            for (column, cell) in panel.columns.iter().zip(cells) {
                let (winner, label) = cell.as_ref().map_or(("", ""), |cell| (&cell.winner, &cell.label));
                table.line(&[&panel.title, row, column, winner, label]);
            }
        }
    }
    table.text
}

/// Every group with its panel and its whole label, from the outermost level to the innermost.
fn groups<B>(panels: &[Panel<B>]) -> impl Iterator<Item = (&Panel<B>, &Group<B>, String)> {
    panels.iter().flat_map(|panel| panel.groups.iter().map(move |group| (panel, group))).map(|(panel, group)| {
        let levels = group.over.iter().rev().chain([&group.label]).filter(|label| !label.is_empty());
        (panel, group, levels.cloned().collect::<Vec<_>>().join(", "))
    })
}

fn number(value: f64) -> String {
    if value.is_finite() { value.to_string() } else { String::new() }
}

struct Table {
    text: String,
}

impl Table {
    fn new(names: &[&str]) -> Self {
        Self { text: names.join(",") + "\n" }
    }

    fn line(&mut self, cells: &[&str]) {
        let cells: Vec<String> = cells.iter().map(|cell| quoted(cell)).collect();
        self.text += &(cells.join(",") + "\n");
    }
}

/// A cell, in quotes where it holds what would end it.
fn quoted(cell: &str) -> String {
    match cell.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bar, HeatCell, HeatPanel, LinePanel, LineSeries, Series};

    #[test]
    fn data_are_what_is_drawn() {
        let bars = vec![Bar { published: Some(1.5), ..Bar::interval(2.0, 1.5, 2.25) }, Bar::failed("OOM")];
        let group = Group { label: "1.2".into(), over: vec!["16 GPUs".into()], bars };
        let chart = AnyChart::Bars(GroupedBars {
            series: Series::numbered(["A", "\"B\""]),
            panels: vec![Panel { title: "inky".into(), groups: vec![group] }],
            ..GroupedBars::default()
        });
        assert_eq!(
            chart.csv(),
            "panel,group,series,value,low,high,second,published,published_of_other,note\n\
             inky,\"16 GPUs, 1.2\",A,2,1.5,2.25,,1.5,false,\n\
             inky,\"16 GPUs, 1.2\",\"\"\"B\"\"\",,,,,,,OOM\n"
        );
        let series = LineSeries { name: "A".into(), points: vec![(1.0, f64::NAN)], marks: vec![(1.0, 0.1)], ink: 0 };
        let panels = vec![LinePanel { series: vec![series], ..LinePanel::default() }];
        let chart = AnyChart::Lines(LineChart { panels, mark_label: "moved".into(), ..LineChart::default() });
        assert_eq!(chart.csv(), "panel,series,x,y,mark\n,A,1,,\n,A,1,0.1,moved\n");
        let cell = HeatCell { ink: 0, winner: "A".into(), label: "1.5".into() };
        let (columns, cells) = (vec!["1".into(), "4, drift".into()], vec![vec![Some(cell), None]]);
        let panel = HeatPanel { title: "inky".into(), columns, rows: vec!["×2".into()], cells };
        let chart = AnyChart::Map(HeatMap { panels: vec![panel], ..HeatMap::default() });
        assert_eq!(chart.csv(), "panel,row,column,winner,label\ninky,×2,1,A,1.5\ninky,×2,\"4, drift\",,\n");
    }
}
