//! A recorded figure as a one-page PDF.
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
use ttf_parser::{Face, GlyphId};

use super::canvas::{Align, Rgb, Shape, TextRun, UNITS};
use super::font::{Weight, advance};
use super::{Figure, FigureError};

const CATALOG: Ref = Ref::new(1);
const PAGES: Ref = Ref::new(2);
const PAGE: Ref = Ref::new(3);
const CONTENT: Ref = Ref::new(4);
const INFO: Ref = Ref::new(5);
const FIRST_FONT: i32 = 6;
const REFS_PER_FONT: i32 = 5;

const IDENTITY: SystemInfo<'static> = SystemInfo { registry: Str(b"Adobe"), ordering: Str(b"Identity"), supplement: 0 };

pub(super) fn write(figure: &Figure) -> Result<Vec<u8>, FigureError> {
    let fonts = fonts_in_use(&figure.shapes)?;
    let content = page_content(figure, &fonts);
    let mut pdf = Pdf::new();
    pdf.catalog(CATALOG).pages(PAGES);
    pdf.pages(PAGES).kids([PAGE]).count(1);
    pdf.document_info(INFO).producer(TextStr("moebench"));
    write_page(&mut pdf, figure, &fonts);
    pdf.stream(CONTENT, &content);
    for font in &fonts {
        font.embed(&mut pdf)?;
    }
    Ok(pdf.finish())
}

/// One weight in use, with the glyphs that the figure needs.
struct EmbeddedFont {
    weight: Weight,
    face: Face<'static>,
    glyphs: GlyphRemapper,
    /// New glyph number -> the character it stands for.
    characters: BTreeMap<u16, char>,
    first_ref: i32,
}

fn fonts_in_use(shapes: &[Shape]) -> Result<Vec<EmbeddedFont>, FigureError> {
    let mut fonts = Vec::new();
    for weight in Weight::ALL {
        let texts = shapes.iter().filter_map(|shape| match shape {
            Shape::Text(run) if run.weight == weight => Some(run.text.as_str()),
            _ => None,
        });
        let all: String = texts.collect();
        if !all.is_empty() {
            let first_ref = FIRST_FONT + fonts.len() as i32 * REFS_PER_FONT;
            fonts.push(EmbeddedFont::holding(weight, &all, first_ref)?);
        }
    }
    Ok(fonts)
}

impl EmbeddedFont {
    fn holding(weight: Weight, text: &str, first_ref: i32) -> Result<Self, FigureError> {
        let face = weight.face()?;
        let mut glyphs = GlyphRemapper::new();
        let mut characters = BTreeMap::new();
        for c in text.chars() {
            let glyph = glyphs.remap(face.glyph_index(c).unwrap_or_default().0);
            characters.entry(glyph).or_insert(c);
        }
        Ok(Self { weight, face, glyphs, characters, first_ref })
    }

    fn reference(&self, nth: i32) -> Ref {
        Ref::new(self.first_ref + nth)
    }

    fn resource_name(&self) -> &'static [u8] {
        match self.weight {
            Weight::Regular => b"F0",
            Weight::Bold => b"F1",
        }
    }

    /// Two bytes a glyph, by the numbers of the subset.
    fn encode(&self, text: &str) -> Vec<u8> {
        text.chars()
            .map(|c| self.face.glyph_index(c).unwrap_or_default().0)
            .flat_map(|glyph| self.glyphs.get(glyph).unwrap_or(0).to_be_bytes())
            .collect()
    }

    fn width(&self, text: &str, size: f64) -> f64 {
        text.chars().map(|c| advance(&self.face, c)).sum::<f64>() * size
    }

    /// In thousandths of the type size, as PDF wants them.
    fn thousandths(&self, font_units: f64) -> f32 {
        (font_units * 1000.0 / f64::from(self.face.units_per_em())) as f32
    }

    fn embed(&self, pdf: &mut Pdf) -> Result<(), FigureError> {
        let subset = subsetter::subset(self.weight.bytes(), 0, &self.glyphs)
            .map_err(|e| FigureError::Font { font: self.weight.postscript_name(), reason: e.to_string() })?;
        // The six letters mark a subset; they need to differ within one file only.
        let tag = if self.weight == Weight::Bold { "MOEBND" } else { "MOERGD" };
        let name = format!("{tag}+{}", self.weight.postscript_name());
        pdf.type0_font(self.reference(0))
            .base_font(Name(name.as_bytes()))
            .encoding_predefined(Name(b"Identity-H"))
            .descendant_font(self.reference(1))
            .to_unicode(self.reference(3));
        self.write_widths(pdf, &name);
        self.write_descriptor(pdf, &name);
        pdf.cmap(self.reference(3), &self.unicode_map());
        pdf.stream(self.reference(4), &subset).pair(Name(b"Length1"), subset.len() as i32);
        Ok(())
    }

    fn write_widths(&self, pdf: &mut Pdf, name: &str) {
        let mut font = pdf.cid_font(self.reference(1));
        font.subtype(CidFontType::Type2)
            .base_font(Name(name.as_bytes()))
            .system_info(IDENTITY)
            .font_descriptor(self.reference(2))
            .cid_to_gid_map_predefined(Name(b"Identity"));
        let widths = self.glyphs.remapped_gids().map(|glyph| {
            let advance = self.face.glyph_hor_advance(GlyphId(glyph)).unwrap_or(0);
            self.thousandths(f64::from(advance))
        });
        font.widths().consecutive(0, widths);
    }

    fn write_descriptor(&self, pdf: &mut Pdf, name: &str) {
        let bounds = self.face.global_bounding_box();
        let scaled = |value: i16| self.thousandths(f64::from(value));
        pdf.font_descriptor(self.reference(2))
            .name(Name(name.as_bytes()))
            .flags(FontFlags::SYMBOLIC)
            .bbox(Rect::new(scaled(bounds.x_min), scaled(bounds.y_min), scaled(bounds.x_max), scaled(bounds.y_max)))
            .italic_angle(0.0)
            .ascent(scaled(self.face.ascender()))
            .descent(scaled(self.face.descender()))
            .cap_height(scaled(self.face.capital_height().unwrap_or(0)))
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

fn write_page(pdf: &mut Pdf, figure: &Figure, fonts: &[EmbeddedFont]) {
    let mut page = pdf.page(PAGE);
    page.media_box(Rect::new(0.0, 0.0, figure.width as f32, figure.height as f32)).parent(PAGES).contents(CONTENT);
    let mut resources = page.resources();
    let mut dictionary = resources.fonts();
    for font in fonts {
        dictionary.pair(Name(font.resource_name()), font.reference(0));
    }
    dictionary.finish();
    resources.finish();
}

fn page_content(figure: &Figure, fonts: &[EmbeddedFont]) -> Vec<u8> {
    let mut content = Content::new();
    // From here on in points, y downwards, as recorded.
    content.transform([1.0, 0.0, 0.0, -1.0, 0.0, figure.height as f32]);
    content.set_line_join(LineJoinStyle::RoundJoin);
    for shape in &figure.shapes {
        match shape {
            Shape::Stroke { paths, color, width } => stroke(&mut content, paths, *color, *width),
            Shape::Fill { corners, color } => {
                set_fill(&mut content, *color);
                trace(&mut content, corners);
                content.close_path().fill_nonzero();
            }
            Shape::Circle { center, radius, color, ring } => circle(&mut content, *center, *radius, *color, *ring),
            Shape::Text(run) => {
                if let Some(font) = fonts.iter().find(|f| f.weight == run.weight) {
                    text(&mut content, run, font);
                }
            }
        }
    }
    content.finish().to_vec()
}

fn stroke(content: &mut Content, paths: &[Vec<BackendCoord>], color: Rgb, width: u32) {
    set_stroke(content, color, width);
    for path in paths {
        let closed = path.len() > 2 && path.first() == path.last();
        trace(content, if closed { &path[..path.len() - 1] } else { path });
        if closed {
            content.close_path();
        }
    }
    content.stroke();
}

fn trace(content: &mut Content, path: &[BackendCoord]) {
    for (i, &(x, y)) in path.iter().enumerate() {
        let (x, y) = (points(f64::from(x)), points(f64::from(y)));
        if i == 0 {
            content.move_to(x, y)
        } else {
            content.line_to(x, y)
        };
    }
}

/// Four Bezier arcs; 0.5523 is the handle length that keeps within 0.03 % of a circle.
fn circle(content: &mut Content, center: BackendCoord, radius: u32, color: Rgb, ring: Option<u32>) {
    match ring {
        Some(width) => set_stroke(content, color, width),
        None => set_fill(content, color),
    }
    let (x, y, r) = (points(f64::from(center.0)), points(f64::from(center.1)), points(f64::from(radius)));
    let h = r * 0.5523;
    content.move_to(x + r, y);
    content.cubic_to(x + r, y + h, x + h, y + r, x, y + r);
    content.cubic_to(x - h, y + r, x - r, y + h, x - r, y);
    content.cubic_to(x - r, y - h, x - h, y - r, x, y - r);
    content.cubic_to(x + h, y - r, x + r, y - h, x + r, y);
    if ring.is_some() {
        content.close_path().stroke()
    } else {
        content.fill_nonzero()
    };
}

fn text(content: &mut Content, run: &TextRun, font: &EmbeddedFont) {
    let size = run.size / UNITS;
    let shift = match run.align {
        Align::Start => 0.0,
        Align::Middle => -font.width(&run.text, size) / 2.0,
        Align::End => -font.width(&run.text, size),
    };
    let (x, y, drop) = (f64::from(run.at.0) / UNITS, f64::from(run.at.1) / UNITS, run.drop / UNITS);
    // The matrix flips y back, because glyphs are drawn upwards.
    let matrix = if run.upright {
        [0.0, -1.0, -1.0, 0.0, (x + drop) as f32, (y - shift) as f32]
    } else {
        [1.0, 0.0, 0.0, -1.0, (x + shift) as f32, (y + drop) as f32]
    };
    set_fill(content, run.color);
    content
        .begin_text()
        .set_font(Name(font.resource_name()), size as f32)
        .set_text_matrix(matrix)
        .show(Str(&font.encode(&run.text)))
        .end_text();
}

fn set_fill(content: &mut Content, (r, g, b): Rgb) {
    content.set_fill_rgb(channel(r), channel(g), channel(b));
}

fn set_stroke(content: &mut Content, (r, g, b): Rgb, width: u32) {
    content.set_stroke_rgb(channel(r), channel(g), channel(b)).set_line_width(points(f64::from(width)));
}

fn channel(value: u8) -> f32 {
    f32::from(value) / 255.0
}

fn points(units: f64) -> f32 {
    (units / UNITS) as f32
}

#[cfg(test)]
mod tests {
    use crate::{FigureError, Frame, GroupedBars};

    #[test]
    fn pdf_is_stable_and_embeds_its_fonts() -> Result<(), FigureError> {
        let frame = Frame { footnote: "simulated".into(), title: "A title in bold".into(), ..Frame::default() };
        let figure = GroupedBars { frame, ..GroupedBars::default() }.draw()?;
        let pdf = figure.to_pdf()?;
        assert_eq!(pdf, figure.to_pdf()?);
        assert!(pdf.starts_with(b"%PDF-"));
        let holds = |needle: &[u8]| pdf.windows(needle.len()).any(|window| window == needle);
        assert!(holds(b"/FontFile2") && holds(b"+DejaVuSans") && holds(b"+DejaVuSans-Bold"));
        assert!(holds(b"/ToUnicode") && !holds(b"/CreationDate"));
        Ok(())
    }
}
