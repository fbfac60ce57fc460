//! The page of validation: claims with what was wanted and found, then a section per study.

use comfy_table::{Table, presets};

use crate::summary::model_error::ClusterError;

/// Something that the simulator should be good at.
pub struct Claim {
    /// What is looked at.
    pub what: String,
    /// What was asked for.
    pub wanted: String,
    /// What was found.
    pub found: String,
    /// Whether that is enough.
    pub met: bool,
}

/// One study.
#[derive(Default)]
pub struct Section {
    /// Its heading.
    pub title: String,
    /// Markdown below the heading.
    pub text: String,
    /// What it claims.
    pub claims: Vec<Claim>,
    /// What it says about a cluster's simulation.
    pub errors: Vec<ClusterError>,
}

impl Section {
    /// A section with nothing below its heading yet.
    pub fn new(title: &str) -> Self {
        Self { title: title.to_owned(), ..Self::default() }
    }

    /// Adds a paragraph, a table or a picture.
    pub fn add(&mut self, block: impl std::fmt::Display) {
        self.text += &format!("{}\n\n", block.to_string().trim_end());
    }

    /// Adds a table.
    pub fn table(&mut self, mut table: Table) {
        table.load_preset(presets::ASCII_MARKDOWN);
        self.add(table.trim_fmt());
    }

    /// Adds a picture that lies beside the page.
    pub fn picture(&mut self, name: &str, what: &str) {
        self.add(format!("![{what}]({name}.svg)"));
    }

    /// States whether `found` is within `wanted`.
    pub fn claim(&mut self, what: impl Into<String>, wanted: impl Into<String>, found: impl Into<String>, met: bool) {
        self.claims.push(Claim { what: what.into(), wanted: wanted.into(), found: found.into(), met });
    }
}

/// The page in Markdown.
pub fn markdown(introduction: &str, sections: &[Section]) -> String {
    let mut page = format!("# Validation\n\n{introduction}\n\n| | wanted | found | |\n|---|---|---|---|\n");
    for claim in sections.iter().flat_map(|section| &section.claims) {
        let met = if claim.met { "met" } else { "**not met**" };
        page += &format!("| {} | {} | {} | {met} |\n", claim.what, claim.wanted, claim.found);
    }
    for section in sections {
        page += &format!("\n## {}\n\n{}", section.title, section.text);
    }
    page.trim_end().to_owned() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_stand_before_sections() {
        let mut section = Section::new("Layers");
        section.claim("mean error", "at most 3%", "2.4%", true);
        section.claim("R²", "at least 0.95", "0.90", false);
        section.add("Text.");
        let page = markdown("What this is.", &[section]);
        let places = ["What this is.", "| mean error | at most 3% | 2.4% | met |", "**not met**", "## Layers", "Text."]
            .map(|part| page.find(part).unwrap_or(usize::MAX));
        assert!(places.is_sorted() && places[4] < usize::MAX, "{page}");
    }
}
