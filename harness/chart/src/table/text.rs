//! A part of a table as plain text, its columns aligned.

use super::{PaperTable, Room, lines_of};

impl PaperTable {
    /// One part, wrapped for [`Room::text`]; headings stand above their rows, across all columns.
    pub fn text(&self) -> String {
        let room = Room::text(usize::MAX);
        let indent = if self.groups.iter().all(|group| group.heading.is_empty()) { "" } else { "  " };
        let widths: Vec<usize> = (0..self.header.len()).map(|at| self.column_width(at, &room) as usize).collect();
        let words: Vec<bool> = (0..self.header.len()).map(|at| self.is_words(at)).collect();
        let line = |row: &[String], number: usize| {
            let cells = row.iter().zip(&widths).enumerate().map(|(at, (cell, &width))| {
                let cell = cell.lines().nth(number).unwrap_or_default();
                if words[at] { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            format!("{}\n", format!("{indent}{}", cells.collect::<Vec<_>>().join("  ")).trim_end())
        };
        let lines = |row: &[String]| (0..lines_of(row)).map(|number| line(row, number)).collect::<String>();
        let mut text = lines(&self.header);
        for group in &self.groups {
            group.heading.lines().for_each(|heading| text += &format!("{heading}\n"));
            text.extend(group.rows.iter().map(|row| lines(row)));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RowGroup;

    #[test]
    fn columns_that_do_not_fit_stand_below() {
        let row = |cells: [&str; 4]| cells.map(str::to_owned).to_vec();
        let group = RowGroup { heading: "a case".into(), rows: vec![row(["a", "1.5", "±2%", "pp1 dp8"])] };
        let table = PaperTable { header: row(["", "speedup over one", "error", "plan"]), groups: vec![group] };
        let parts: Vec<String> = table.fitted(&Room::text(24)).iter().map(PaperTable::text).collect();
        let beside = "      speedup  error\n     over one\na case\n  a       1.5    ±2%\n";
        assert_eq!(parts, [beside, "     plan\na case\n  a  pp1 dp8\n"]);
    }
}
