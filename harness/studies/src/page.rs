//! The page of validation: claims with what was wanted and found, then a section per study.

use std::path::Path;

use anyhow::Result;
use chart::Width;
use comfy_table::{Table, presets};

use super::Inputs;
use super::claims::Claim;
use crate::measurements;
use runs::figures::PaperFigure;
use runs::store;
use runs::summary::model_error::ClusterError;

#[derive(Default)]
pub struct Section {
    pub title: String,
    /// Markdown below the heading.
    pub text: String,
    pub claims: Vec<Claim>,
    /// Figures that the text shows.
    pub figures: Vec<PaperFigure>,
    /// What it says about a cluster's simulation.
    pub errors: Vec<ClusterError>,
}

impl Section {
    /// A section with nothing below its heading yet.
    pub fn new(title: &str) -> Self {
        Self { title: title.to_owned(), ..Self::default() }
    }

    pub fn add(&mut self, paragraph: impl std::fmt::Display) {
        self.text += &format!("{}\n\n", paragraph.to_string().trim_end());
    }

    pub fn table(&mut self, mut table: Table) {
        table.load_preset(presets::ASCII_MARKDOWN);
        self.add(table.trim_fmt());
    }

    /// Its claims as a table in Markdown.
    pub fn table_of_claims(&self) -> String {
        claims_table(self.claims.iter())
    }

    /// Adds a figure, to be saved beside the page, and its caption below it.
    pub fn picture(&mut self, figure: PaperFigure) {
        let PaperFigure { name, caption, .. } = &figure;
        let what = caption.split(';').next().unwrap_or_default();
        self.add(format!("![{what}]({name}.svg)"));
        self.add(caption);
        self.figures.push(figure);
    }

    /// Adds to the caption of a figure that it shows; of captions that say the same, to the last.
    pub fn add_to_caption(&mut self, name: &str, words: &str) {
        if let Some(figure) = self.figures.iter_mut().find(|figure| figure.name == name) {
            let longer = format!("{} {words}", figure.caption);
            if let Some(at) = self.text.rfind(&figure.caption) {
                self.text.replace_range(at..at + figure.caption.len(), &longer);
            }
            figure.caption = longer;
        }
    }

    /// Saves its figures in a page's folder.
    ///
    /// # Errors
    /// When the drawing library fails, or a file cannot be written.
    pub fn save_figures(&self, folder: &Path) -> Result<()> {
        self.figures.iter().try_for_each(|figure| {
            let drawn = figure.chart.draw(Width::Page)?;
            store::write_text(&folder.join(format!("{}.svg", figure.name)), &drawn.svg)
        })
    }
}

/// The page in Markdown.
///
/// # Errors
/// A file of measurements that cannot be read.
pub fn markdown(inputs: &Inputs, sections: &[Section]) -> Result<String> {
    Ok(assembled(&introduction(inputs)?, sections))
}

fn introduction(inputs: &Inputs) -> Result<String> {
    let mut files = Vec::new();
    for path in inputs.files()?.iter().filter(|path| path.is_file()) {
        let (name, hash) = measurements::named(path)?;
        files.push(format!("`{name}` (sha256 {hash})"));
    }
    Ok(format!(include_str!("prose/introduction.md"), files = files.join(", ")))
}

fn claims_table<'c>(claims: impl Iterator<Item = &'c Claim>) -> String {
    let row = |claim: &Claim| {
        let met = if claim.met { "met" } else { "**not met**" };
        format!("| {} | {} | {} | {met} |\n", claim.what, claim.wanted, claim.found)
    };
    let rows: String = claims.map(row).collect();
    format!("| | wanted | found | |\n|---|---|---|---|\n{rows}")
}

fn assembled(introduction: &str, sections: &[Section]) -> String {
    let introduction = introduction.trim_end();
    let claims = claims_table(sections.iter().flat_map(|section| &section.claims));
    let mut page = format!("# Validation\n\n{introduction}\n\n{claims}");
    for section in sections {
        page += &format!("\n## {}\n\n{}", section.title, section.text);
    }
    page.trim_end().to_owned() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caption_is_added_to_on_the_page_and_in_the_figure() {
        let mut section = Section::new("Iterations");
        let chart = chart::AnyChart::Scatter(chart::Scatter::default());
        section.picture(PaperFigure {
            name: "f".to_owned(),
            chart,
            caption: "Times; predicted: simulated.".to_owned(),
        });
        section.add_to_caption("another", "Never.");
        section.add_to_caption("f", "In sample.");
        assert_eq!(section.figures[0].caption, "Times; predicted: simulated. In sample.");
        assert_eq!(section.text, "![Times](f.svg)\n\nTimes; predicted: simulated. In sample.\n\n");
    }

    #[test]
    fn claims_stand_before_sections() {
        let claim = |what: &str, met| {
            let [what, wanted, found] = [what, "at most 3%", "2.4%"].map(str::to_owned);
            Claim { what, wanted, found, met }
        };
        let mut section = Section::new("Layers");
        section.claims = vec![claim("mean error", true), claim("largest error", false)];
        section.add("Text.");
        let page = assembled("What this is.\n", &[section]);
        let places = ["What this is.", "| mean error | at most 3% | 2.4% | met |", "**not met**", "## Layers", "Text."]
            .map(|part| page.find(part).unwrap_or(usize::MAX));
        assert!(places.is_sorted() && places[4] < usize::MAX, "{page}");
    }
}
