//! A part of a table as LaTeX (`booktabs`): a float of its own that needs no scaling.

use super::{PaperTable, RowGroup, lines_of};
use crate::{Width, escape_latex};

/// Of TeX, in an inch.
const POINTS: f64 = 72.27;
/// Of a page's text of 9 in, less what a float's blank and the rules of a table take.
const HEIGHT: f64 = 9.0 * POINTS - 50.0;
/// From line to line, at 8 pt, the rules' blank spread over them.
const LEADING: f64 = 9.6;
/// Between columns: two of LaTeX's `\tabcolsep`, as the table sets it.
pub(super) const GAP: f64 = 6.0;
/// From line to line of a caption, and the width of its letters, at 10 pt.
const CAPTION: [f64; 2] = [12.0, 5.0];
/// Floats that LaTeX is left to hold at once: 18 in its oldest versions, two of them the paper's own.
const HELD: usize = 16;

/// Of TeX.
pub(super) fn points(width: Width) -> f64 {
    width.points() / 72.0 * POINTS
}

/// Lines of a table on a page beside a caption of so many letters.
pub(super) fn lines(width: Width, caption: usize) -> usize {
    let [leading, letter] = CAPTION;
    let of_caption = (caption as f64 * letter / points(width)).ceil() + 1.0;
    (((HEIGHT - of_caption * leading) / LEADING) as usize).max(10)
}

impl PaperTable {
    /// All parts, one after the other. LaTeX sets none of them before a page ends: after some it is made to.
    pub fn latex_of_parts(parts: &[String]) -> String {
        parts.chunks(HELD).map(|held| held.join("\n")).collect::<Vec<_>>().join("\n\\clearpage\n")
    }

    /// One part; `label` is what `\ref` finds it by. The type's size is its own, whatever the class makes of `\footnotesize`.
    pub fn latex(&self, width: Width, caption: &str, label: &str) -> String {
        let environment = match width {
            Width::Page => "table*",
            Width::Column => "table",
        };
        let columns: String = (0..self.header.len()).map(|at| if self.is_words(at) { 'l' } else { 'r' }).collect();
        format!(
            "\\begin{{{environment}}}\n\\centering\n\\caption{{{}}}\n\\label{{{label}}}\n\\vspace{{4pt}}\n\\fontsize{{8}}{{9.6}}\\selectfont\n\
             \\setlength{{\\tabcolsep}}{{3pt}}\n\\begin{{tabular}}{{@{{}}{columns}@{{}}}}\n\\toprule\n{}\\midrule\n{}\\bottomrule\n\
             \\end{{tabular}}\n\\end{{{environment}}}\n",
            escape_latex(caption),
            lines_in_latex(&self.header),
            self.groups.iter().enumerate().map(|(at, group)| self.group(at, group)).collect::<String>()
        )
    }

    fn group(&self, at: usize, group: &RowGroup) -> String {
        let heading = |line: &str| {
            format!("\\multicolumn{{{}}}{{@{{}}l@{{}}}}{{{}}} \\\\\n", self.header.len(), escape_latex(line))
        };
        let mut text = if at > 0 { "\\addlinespace\n".to_owned() } else { String::new() };
        text.extend(group.heading.lines().map(heading));
        text.extend(group.rows.iter().map(|row| lines_in_latex(row)));
        text
    }
}

/// A row, with a row of LaTeX's for each of its lines.
fn lines_in_latex(row: &[String]) -> String {
    let line = |at: usize| {
        let cells = row.iter().map(|cell| escape_latex(cell.lines().nth(at).unwrap_or_default()));
        let cells = cells.collect::<Vec<_>>().join(" & ");
        // After a line's end LaTeX takes a bracket for the end's own.
        let guard = if cells.starts_with(['[', '*']) { "{}" } else { "" };
        format!("{guard}{cells} \\\\\n")
    };
    (0..lines_of(row)).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
        cells.map(str::to_owned).to_vec()
    }

    #[test]
    fn cells_are_escaped_and_groups_set_apart() {
        let group = |heading: &str, rows: &[[&str; 2]]| RowGroup {
            heading: heading.to_owned(),
            rows: rows.iter().map(|cells| row(*cells)).collect(),
        };
        let groups = vec![group("", &[["a_1", "2%"], ["[b]", "1\n[0, ±4]"]]), group("c & d", &[["e", "x"]])];
        let text = PaperTable { header: row(["case", "± 5%"]), groups }.latex(Width::Column, "50% of a_b", "tab:x");
        assert!(
            text.starts_with("\\begin{table}\n\\centering\n\\caption{50\\% of a\\_b}\n\\label{tab:x}\n\\vspace{4pt}\n"),
            "{text}"
        );
        let body = "\\begin{tabular}{@{}lr@{}}\n\\toprule\ncase & $\\pm$ 5\\% \\\\\n\\midrule\na\\_1 & 2\\% \\\\\n\
                    {}[b] & 1 \\\\\n & [0, $\\pm$4] \\\\\n\\addlinespace\n\\multicolumn{2}{@{}l@{}}{c \\& d} \\\\\ne & x \\\\\n\
                    \\bottomrule\n\\end{tabular}\n\\end{table}\n";
        assert!(text.ends_with(body), "{text}");
    }

    /// More floats than LaTeX can hold before a page ends: "Too many unprocessed floats".
    #[test]
    fn many_parts_begin_pages_in_between() {
        let text = |count: usize| PaperTable::latex_of_parts(&vec!["x".to_owned(); count]);
        assert_eq!(text(2), "x\nx");
        assert_eq!([HELD, HELD + 1, 3 * HELD].map(|count| text(count).matches("\\clearpage\n").count()), [0, 1, 2]);
        assert_eq!(text(3 * HELD).matches('x').count(), 3 * HELD);
    }

    #[test]
    fn a_long_caption_takes_lines_from_the_table() {
        assert!(lines(Width::Column, 100) > lines(Width::Column, 1000));
        assert!(lines(Width::Column, 1000) < lines(Width::Page, 1000));
        assert_eq!(lines(Width::Column, 100_000), 10);
    }
}
