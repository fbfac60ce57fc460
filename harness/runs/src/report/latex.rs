//! `tables/summary.tex`: the summary as a LaTeX table (`booktabs`) for a paper.

use chart::escape_latex;

use crate::report::TextTable;

/// The table, to be put into a `table` environment.
pub fn render(table: &TextTable) -> String {
    let columns: String = (0..table.header.len()).map(|i| if i < table.text_columns { 'l' } else { 'r' }).collect();
    let line = |cells: &[String]| -> String {
        let cells: Vec<String> = cells.iter().map(|cell| escape_latex(cell)).collect();
        format!("{} \\\\\n", cells.join(" & "))
    };
    let mut text = format!("% Needs \\usepackage{{booktabs}}.\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n");
    text += &line(&table.header);
    text += "\\midrule\n";
    for (index, row) in table.rows.iter().enumerate() {
        // A case's first row names it.
        if index > 0 && row.first().is_some_and(|case| !case.is_empty()) {
            text += "\\addlinespace\n";
        }
        text += &line(row);
    }
    text + "\\bottomrule\n\\end{tabular}\n"
}
