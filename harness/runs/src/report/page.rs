//! Pages in Markdown that show several figures.

use workloads::Suite;
use workloads::suite::Collection;

use crate::figures;

/// The page of a collection: each suite's figure, and where its numbers lie.
pub fn of_collection(collection: &Collection, suites: &[Suite], trace: &str) -> String {
    let mut page = format!(
        "# {}\n\n{}. Simulated, on the routing trace `{}`; `moebench run {}` wrote this page.\n",
        collection.name,
        collection.description,
        figures::trace_name(trace),
        collection.name
    );
    for suite in suites {
        let (name, figure) = (&suite.name, figures::name(suite.figure));
        page += &format!(
            "\n## {name}\n\n{}.\n\n![{name}]({name}/figures/{figure}.svg)\n\n[report]({name}/report.html), \
             [summary]({name}/summary.csv), [LaTeX table]({name}/tables/summary.tex), [figure as PDF]({name}/figures/{figure}.pdf), [what was run]({name}/run.json)\n",
            suite.description
        );
    }
    page
}
