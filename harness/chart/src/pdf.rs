//! The PDF document of a figure, one page.
//!
//! Written with `pdf-writer` rather than converted from the SVG: the converter (`svg2pdf`) brings a shaping engine, a
//! rasteriser and three font parsers, and takes five times as long to build as all that is used here.
//!
//! Text stays text: each weight in use is embedded as a subset with a map back to Unicode, so it can be searched and
//! copied, and a publisher's check for unembedded fonts passes. No dates and no random identifiers are written.

use std::collections::BTreeMap;

use pdf_writer::types::{CidFontType, FontFlags, LineJoinStyle, SystemInfo, UnicodeCmap};
use pdf_writer::{Content, Finish, Name, Pdf, Rect, Ref, Str, TextStr};
use plotters_backend::BackendCoord;
use subsetter::GlyphRemapper;
use ttf_parser::GlyphId;

use crate::FigureError;
use crate::canvas::{Element, Paint, Path, Pen, Rgb, TextRun, UNITS, is_closed};
use crate::font::Weight;

const CATALOG: Ref = Ref::new(1);
const PAGES: Ref = Ref::new(2);
const PAGE: Ref = Ref::new(3);
const CONTENT: Ref = Ref::new(4);
const INFO: Ref = Ref::new(5);
/// The first of a font's five references.
const REGULAR: i32 = 6;
const BOLD: i32 = 11;

const IDENTITY: SystemInfo<'static> = SystemInfo { registry: Str(b"Adobe"), ordering: Str(b"Identity"), supplement: 0 };

/// The document of a picture of width x height points.
///
/// # Errors
/// A font that cannot be cut down to the glyphs in use.
pub(crate) fn document(size: (f64, f64), elements: &[Element]) -> Result<Vec<u8>, FigureError> {
    let mut document = PdfDocument::new(size);
    for element in elements {
        match element {
            Element::Stroke(paths, pen) => document.stroke(paths, *pen),
            Element::Fill(corners, color) => document.fill(corners, *color),
            Element::Circle(center, radius, paint) => document.circle(*center, *radius, *paint),
            Element::Text(run) => document.text(run),
        }
    }
    document.finish()
}

struct PdfDocument {
    size: (f64, f64),
    content: Content,
    regular: FontSubset,
    bold: FontSubset,
}

impl PdfDocument {
    fn new(size: (f64, f64)) -> Self {
        let mut content = Content::new();
        // From here on in points, y downwards, as on the canvas.
        content.transform([1.0, 0.0, 0.0, -1.0, 0.0, size.1 as f32]);
        content.set_line_join(LineJoinStyle::RoundJoin);
        let (regular, bold) = (FontSubset::new(Weight::Regular), FontSubset::new(Weight::Bold));
        Self { size, content, regular, bold }
    }

    fn finish(self) -> Result<Vec<u8>, FigureError> {
        let fonts: Vec<FontSubset> = [self.regular, self.bold].into_iter().filter(FontSubset::is_used).collect();
        let mut pdf = Pdf::new();
        pdf.catalog(CATALOG).pages(PAGES);
        pdf.pages(PAGES).kids([PAGE]).count(1);
        pdf.document_info(INFO).producer(TextStr("moebench"));
        write_page(&mut pdf, self.size, &fonts);
        pdf.stream(CONTENT, &self.content.finish());
        for font in &fonts {
            font.embed(&mut pdf)?;
        }
        Ok(pdf.finish())
    }

    fn stroke(&mut self, paths: &[Path], pen: Pen) {
        self.set_stroke(pen);
        for path in paths {
            let closed = is_closed(path);
            self.trace(if closed { &path[..path.len() - 1] } else { path });
            if closed {
                self.content.close_path();
            }
        }
        self.content.stroke();
    }

    fn fill(&mut self, corners: &[BackendCoord], color: Rgb) {
        self.set_fill(color);
        self.trace(corners);
        self.content.close_path().fill_nonzero();
    }

    /// Four Bezier arcs; 0.5523 is the handle length that keeps within 0.03 % of a circle.
    fn circle(&mut self, center: BackendCoord, radius: u32, paint: Paint) {
        match paint {
            Paint::Fill(color) => self.set_fill(color),
            Paint::Stroke(pen) => self.set_stroke(pen),
        }
        let (x, y, r) = (points(f64::from(center.0)), points(f64::from(center.1)), points(f64::from(radius)));
        let h = r * 0.5523;
        self.content.move_to(x + r, y);
        self.content.cubic_to(x + r, y + h, x + h, y + r, x, y + r);
        self.content.cubic_to(x - h, y + r, x - r, y + h, x - r, y);
        self.content.cubic_to(x - r, y - h, x - h, y - r, x, y - r);
        self.content.cubic_to(x + h, y - r, x + r, y - h, x + r, y);
        match paint {
            Paint::Fill(_) => self.content.fill_nonzero(),
            Paint::Stroke(_) => self.content.close_path().stroke(),
        };
    }

    fn text(&mut self, run: &TextRun) {
        let size = run.size / UNITS;
        let shift = run.start() / UNITS;
        let (x, y, drop) = (f64::from(run.at.0) / UNITS, f64::from(run.at.1) / UNITS, run.drop / UNITS);
        // The matrix flips y back, because glyphs are drawn upwards.
        let matrix = match run.upright {
            true => [0.0, -1.0, -1.0, 0.0, (x + drop) as f32, (y - shift) as f32],
            false => [1.0, 0.0, 0.0, -1.0, (x + shift) as f32, (y + drop) as f32],
        };
        let font = match run.weight {
            Weight::Regular => &mut self.regular,
            Weight::Bold => &mut self.bold,
        };
        let (name, glyphs) = (font.resource_name(), font.encode(&run.text));
        self.set_fill(run.color);
        self.content
            .begin_text()
            .set_font(Name(name), size as f32)
            .set_text_matrix(matrix)
            .show(Str(&glyphs))
            .end_text();
    }

    fn trace(&mut self, path: &[BackendCoord]) {
        for (i, &(x, y)) in path.iter().enumerate() {
            let (x, y) = (points(f64::from(x)), points(f64::from(y)));
            match i {
                0 => self.content.move_to(x, y),
                _ => self.content.line_to(x, y),
            };
        }
    }

    fn set_fill(&mut self, (r, g, b): Rgb) {
        self.content.set_fill_rgb(channel(r), channel(g), channel(b));
    }

    fn set_stroke(&mut self, pen: Pen) {
        let (r, g, b) = pen.color;
        self.content.set_stroke_rgb(channel(r), channel(g), channel(b)).set_line_width(points(f64::from(pen.width)));
    }
}

fn channel(value: u8) -> f32 {
    f32::from(value) / 255.0
}

fn points(units: f64) -> f32 {
    (units / UNITS) as f32
}

fn write_page(pdf: &mut Pdf, (width, height): (f64, f64), fonts: &[FontSubset]) {
    let mut page = pdf.page(PAGE);
    page.media_box(Rect::new(0.0, 0.0, width as f32, height as f32)).parent(PAGES).contents(CONTENT);
    let mut resources = page.resources();
    let mut dictionary = resources.fonts();
    for font in fonts {
        dictionary.pair(Name(font.resource_name()), font.reference(0));
    }
    dictionary.finish();
    resources.finish();
}

/// The glyphs of one weight that the figure has used so far.
struct FontSubset {
    weight: Weight,
    glyphs: GlyphRemapper,
    /// Glyph number in the subset -> the character it stands for.
    characters: BTreeMap<u16, char>,
}

impl FontSubset {
    fn new(weight: Weight) -> Self {
        Self { weight, glyphs: GlyphRemapper::new(), characters: BTreeMap::new() }
    }

    fn is_used(&self) -> bool {
        !self.characters.is_empty()
    }

    fn resource_name(&self) -> &'static [u8] {
        match self.weight {
            Weight::Regular => b"F0",
            Weight::Bold => b"F1",
        }
    }

    /// Two bytes a glyph, by the numbers of the subset.
    fn encode(&mut self, text: &str) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(2 * text.len());
        for c in text.chars() {
            let glyph = self.glyphs.remap(self.weight.face().glyph_index(c).unwrap_or_default().0);
            self.characters.entry(glyph).or_insert(c);
            bytes.extend(glyph.to_be_bytes());
        }
        bytes
    }

    fn reference(&self, nth: i32) -> Ref {
        let first = if self.weight == Weight::Bold { BOLD } else { REGULAR };
        Ref::new(first + nth)
    }

    /// In thousandths of the type size, as PDF wants them.
    fn thousandths(&self, font_units: f64) -> f32 {
        (font_units * 1000.0 / f64::from(self.weight.face().units_per_em())) as f32
    }

    fn embed(&self, pdf: &mut Pdf) -> Result<(), FigureError> {
        let weight = self.weight;
        let bytes = subsetter::subset(weight.bytes(), 0, &self.glyphs)
            .map_err(|e| FigureError::Font { font: weight.postscript_name(), reason: e.to_string() })?;
        // The six letters mark a subset; they need to differ within one file only.
        let tag = if weight == Weight::Bold { "MOEBND" } else { "MOERGD" };
        let name = format!("{tag}+{}", weight.postscript_name());
        pdf.type0_font(self.reference(0))
            .base_font(Name(name.as_bytes()))
            .encoding_predefined(Name(b"Identity-H"))
            .descendant_font(self.reference(1))
            .to_unicode(self.reference(3));
        self.write_widths(pdf, &name);
        self.write_descriptor(pdf, &name);
        pdf.cmap(self.reference(3), &self.unicode_map());
        pdf.stream(self.reference(4), &bytes).pair(Name(b"Length1"), bytes.len() as i32);
        Ok(())
    }

    fn write_widths(&self, pdf: &mut Pdf, name: &str) {
        let mut font = pdf.cid_font(self.reference(1));
        font.subtype(CidFontType::Type2)
            .base_font(Name(name.as_bytes()))
            .system_info(IDENTITY)
            .font_descriptor(self.reference(2))
            .cid_to_gid_map_predefined(Name(b"Identity"));
        let face = self.weight.face();
        let widths = self.glyphs.remapped_gids().map(|glyph| {
            let advance = face.glyph_hor_advance(GlyphId(glyph)).unwrap_or(0);
            self.thousandths(f64::from(advance))
        });
        font.widths().consecutive(0, widths);
    }

    fn write_descriptor(&self, pdf: &mut Pdf, name: &str) {
        let face = self.weight.face();
        let bounds = face.global_bounding_box();
        let scaled = |value: i16| self.thousandths(f64::from(value));
        pdf.font_descriptor(self.reference(2))
            .name(Name(name.as_bytes()))
            .flags(FontFlags::SYMBOLIC)
            .bbox(Rect::new(scaled(bounds.x_min), scaled(bounds.y_min), scaled(bounds.x_max), scaled(bounds.y_max)))
            .italic_angle(0.0)
            .ascent(scaled(face.ascender()))
            .descent(scaled(face.descender()))
            .cap_height(scaled(face.capital_height().unwrap_or(0)))
            .stem_v(if self.weight == Weight::Bold { 140.0 } else { 80.0 })
            .font_file2(self.reference(4));
    }

    fn unicode_map(&self) -> Vec<u8> {
        let mut map = UnicodeCmap::new(Name(b"Adobe-Identity-UCS"), IDENTITY);
        for (&glyph, &character) in &self.characters {
            map.pair(glyph, character);
        }
        map.finish().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use crate::{FigureError, Frame, GroupedBars};

    #[test]
    fn pdf_is_stable_and_embeds_its_fonts() -> Result<(), FigureError> {
        let frame = Frame { title: "A title in bold".into(), ..Frame::default() };
        let chart = GroupedBars { frame, ..GroupedBars::default() };
        let pdf = chart.draw()?.pdf;
        assert_eq!(pdf, chart.draw()?.pdf);
        assert!(pdf.starts_with(b"%PDF-"));
        let holds = |needle: &[u8]| pdf.windows(needle.len()).any(|window| window == needle);
        assert!(holds(b"/FontFile2") && holds(b"+DejaVuSans") && holds(b"+DejaVuSans-Bold"));
        assert!(holds(b"/ToUnicode") && !holds(b"/CreationDate"));
        Ok(())
    }
}
