//! A part of a table as Markdown, its columns aligned in the text, too.

use super::{PaperTable, Room, RowGroup};
use crate::Width;

impl PaperTable {
    /// The same with cells as Markdown takes them: what fits is told of these.
    #[must_use]
    pub fn escaped_for_markdown(&self) -> Self {
        let mut table = self.clone();
        let groups = table.groups.iter_mut().flat_map(|group| {
            let RowGroup { heading, rows } = group;
            std::iter::once(heading).chain(rows.iter_mut().flatten())
        });
        groups.chain(&mut table.header).for_each(|cell| *cell = escaped(cell));
        table
    }

    /// One part; a group's heading is a row.
    pub fn markdown(&self) -> String {
        let room = Room::markdown(Width::Page);
        let widths: Vec<usize> =
            (0..self.header.len()).map(|at| (self.column_width(at, &room) as usize).max(3)).collect();
        let words: Vec<bool> = (0..self.header.len()).map(|at| self.is_words(at)).collect();
        let line = |row: &[String]| {
            let cells = row.iter().zip(&widths).zip(&words).map(|((cell, &width), words)| match words {
                true => format!("{cell:<width$}"),
                false => format!("{cell:>width$}"),
            });
            format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
        };
        let rule = widths.iter().zip(&words).map(|(width, words)| match words {
            true => "-".repeat(*width),
            false => format!("{}:", "-".repeat(width - 1)),
        });
        let mut text = line(&self.header) + &line(&rule.collect::<Vec<_>>());
        for group in &self.groups {
            if !group.heading.is_empty() {
                let mut heading = vec![String::new(); self.header.len()];
                heading[0].clone_from(&group.heading);
                text += &line(&heading);
            }
            text.extend(group.rows.iter().map(|row| line(row)));
        }
        text
    }
}

fn escaped(cell: &str) -> String {
    cell.replace('&', "&amp;").replace('<', "&lt;").replace('|', "\\|").replace('*', "\\*")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_strokes_escaped() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let group = RowGroup { heading: "x|y".into(), rows: vec![row(["a", "1.5*"]), row(["longer", "<2"])] };
        let table = PaperTable { header: row(["", "b"]), groups: vec![group] }.escaped_for_markdown();
        let expected = "\
|        |     b |
| ------ | ----: |
| x\\|y   |       |
| a      | 1.5\\* |
| longer | &lt;2 |
";
        assert_eq!(table.markdown(), expected);
        assert_eq!(table.groups[0].rows[1], ["longer", "&lt;2"]);
    }
}
