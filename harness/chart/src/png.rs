//! The picture as pixels, for slides and pages that take nothing else.
//!
//! `zeno` covers paths with shades; glyphs are the outlines of the compiled-in font. What it takes to put a picture into a
//! PNG file is written here: the `png` crate asks for features of `flate2` that would compile Polars anew.

use plotters_backend::BackendCoord;
use ttf_parser::OutlineBuilder;
use zeno::{Command, Fill, Join, Mask, PathBuilder, Stroke, Style, Vector};

use crate::canvas::{Element, Paint, Path, Pen, Rgb, TextRun, UNITS, is_closed};

/// Pixels, and how many stand for a point.
struct Raster {
    width: usize,
    height: usize,
    scale: f32,
    /// Red, green and blue of each pixel, row by row.
    pixels: Vec<u8>,
}

/// The file of a picture of width x height points.
pub(crate) fn document(size: (f64, f64), elements: &[Element], dots_per_inch: f64) -> Vec<u8> {
    let scale = dots_per_inch / 72.0;
    let [width, height] = [size.0, size.1].map(|points| (points * scale).round().max(1.0) as usize);
    let mut raster = Raster { width, height, scale: scale as f32, pixels: vec![255; width * height * 3] };
    for element in elements {
        match element {
            Element::Stroke(paths, pen) => paths.iter().for_each(|path| raster.stroke(&raster.trace(path), *pen)),
            Element::Fill(corners, color) => {
                let mut path = raster.trace(corners);
                path.push(Command::Close);
                raster.cover(&path, Fill::NonZero, *color);
            }
            Element::Circle(center, radius, paint) => raster.circle(*center, *radius, *paint),
            Element::Text(run) => raster.text(run),
        }
    }
    raster.encoded()
}

impl Raster {
    /// Canvas units as pixels.
    fn pixels(&self, units: f64) -> f32 {
        (units / UNITS) as f32 * self.scale
    }

    fn at(&self, (x, y): BackendCoord) -> Vector {
        Vector::new(self.pixels(f64::from(x)), self.pixels(f64::from(y)))
    }

    fn trace(&self, path: &Path) -> Vec<Command> {
        let closed = is_closed(path);
        let open = if closed { &path[..path.len() - 1] } else { path };
        let point = |(i, at): (usize, &BackendCoord)| match i {
            0 => Command::MoveTo(self.at(*at)),
            _ => Command::LineTo(self.at(*at)),
        };
        let mut commands: Vec<Command> = open.iter().enumerate().map(point).collect();
        commands.extend(closed.then_some(Command::Close));
        commands
    }

    fn stroke(&mut self, path: &[Command], pen: Pen) {
        let mut style = Stroke::new(self.pixels(f64::from(pen.width)));
        self.cover(path, *style.join(Join::Round), pen.color);
    }

    fn circle(&mut self, center: BackendCoord, radius: u32, paint: Paint) {
        let mut path = Vec::new();
        path.add_circle(self.at(center), self.pixels(f64::from(radius)));
        match paint {
            Paint::Fill(color) => self.cover(&path, Fill::NonZero, color),
            Paint::Stroke(pen) => self.stroke(&path, pen),
        }
    }

    fn text(&mut self, run: &TextRun) {
        let face = run.weight.face();
        let (anchor, unit) = (self.at(run.at), self.pixels(run.size) / f32::from(face.units_per_em()));
        let (mut along, down) = (self.pixels(run.start()), self.pixels(run.drop));
        let mut glyphs = Glyphs { path: Vec::new(), unit, start: anchor, upright: run.upright };
        for character in run.text.chars() {
            let glyph = face.glyph_index(character).unwrap_or_default();
            glyphs.start = match run.upright {
                true => Vector::new(anchor.x + down, anchor.y - along),
                false => Vector::new(anchor.x + along, anchor.y + down),
            };
            // A glyph without an outline is a space.
            let _ = face.outline_glyph(glyph, &mut glyphs);
            along += f32::from(face.glyph_hor_advance(glyph).unwrap_or(0)) * unit;
        }
        self.cover(&glyphs.path, Fill::NonZero, run.color);
    }

    /// Lays a colour over what a path covers.
    fn cover<'s>(&mut self, path: &[Command], style: impl Into<Style<'s>>, color: Rgb) {
        let (mask, placed) = Mask::new(path).style(style).render();
        for (row, line) in mask.chunks_exact((placed.width as usize).max(1)).enumerate() {
            for (column, cover) in line.iter().enumerate().filter(|(_, cover)| **cover > 0) {
                let (x, y) = (placed.left as isize + column as isize, placed.top as isize + row as isize);
                self.blend(x, y, *cover, color);
            }
        }
    }

    fn blend(&mut self, x: isize, y: isize, cover: u8, (red, green, blue): Rgb) {
        let inside = |at: isize, length: usize| usize::try_from(at).ok().filter(|at| *at < length);
        let (Some(x), Some(y)) = (inside(x, self.width), inside(y, self.height)) else { return };
        let first = (y * self.width + x) * 3;
        for (pixel, ink) in self.pixels[first..first + 3].iter_mut().zip([red, green, blue]) {
            let (old, new, cover) = (u32::from(*pixel), u32::from(ink), u32::from(cover));
            *pixel = ((old * (255 - cover) + new * cover + 127) / 255) as u8;
        }
    }

    /// The file: 8 bits a channel, rows as they are but for those that repeat the row above.
    fn encoded(&self) -> Vec<u8> {
        let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
        let size = [self.width, self.height].map(|length| (length as u32).to_be_bytes());
        chunk(&mut file, b"IHDR", &[&size[0][..], &size[1], &[8, 2, 0, 0, 0]].concat());
        // So that programs print the picture in its size.
        let per_meter = (f64::from(self.scale) * 72.0 / 0.0254).round() as u32;
        chunk(&mut file, b"pHYs", &[&per_meter.to_be_bytes()[..], &per_meter.to_be_bytes(), &[1]].concat());
        let line = self.width * 3;
        let mut rows = Vec::with_capacity((line + 1) * self.height);
        for (y, row) in self.pixels.chunks_exact(line).enumerate() {
            let above = if y > 0 { &self.pixels[(y - 1) * line..y * line] } else { &[] };
            // Filter 2 keeps the difference to the row above, filter 0 the row.
            rows.push(if y > 0 { 2 } else { 0 });
            match y {
                0 => rows.extend_from_slice(row),
                _ => rows.extend(row.iter().zip(above).map(|(own, above)| own.wrapping_sub(*above))),
            }
        }
        chunk(&mut file, b"IDAT", &miniz_oxide::deflate::compress_to_vec_zlib(&rows, 8));
        chunk(&mut file, b"IEND", &[]);
        file
    }
}

fn chunk(file: &mut Vec<u8>, kind: &[u8; 4], data: &[u8]) {
    file.extend((data.len() as u32).to_be_bytes());
    let start = file.len();
    file.extend_from_slice(kind);
    file.extend_from_slice(data);
    file.extend(crc(&file[start..]).to_be_bytes());
}

/// CRC-32 of ISO 3309, as PNG wants it.
fn crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        let shifted = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
        (0..8).fold(crc ^ u32::from(*byte), shifted)
    };
    !bytes.iter().fold(!0, step)
}

/// Outlines of a line of text.
struct Glyphs {
    path: Vec<Command>,
    /// Pixels of a font unit.
    unit: f32,
    /// Where the glyph's origin lies.
    start: Vector,
    upright: bool,
}

impl Glyphs {
    fn at(&self, x: f32, y: f32) -> Vector {
        let (x, y) = (x * self.unit, y * self.unit);
        match self.upright {
            true => Vector::new(self.start.x - y, self.start.y - x),
            false => Vector::new(self.start.x + x, self.start.y - y),
        }
    }
}

impl OutlineBuilder for Glyphs {
    fn move_to(&mut self, x: f32, y: f32) {
        self.path.push(Command::MoveTo(self.at(x, y)));
    }

    fn line_to(&mut self, x: f32, y: f32) {
        self.path.push(Command::LineTo(self.at(x, y)));
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        self.path.push(Command::QuadTo(self.at(x1, y1), self.at(x, y)));
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        self.path.push(Command::CurveTo(self.at(x1, y1), self.at(x2, y2), self.at(x, y)));
    }

    fn close(&mut self) {
        self.path.push(Command::Close);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::font::Weight;

    #[test]
    fn a_checksum_is_that_of_the_standard() {
        assert_eq!(crc(b"123456789"), 0xCBF4_3926);
        assert_eq!(crc(b"IEND"), 0xAE42_6082);
    }

    /// The pixels of a file, which hold what was drawn and no more.
    fn decoded(file: &[u8]) -> (usize, Vec<u8>) {
        let width = u32::from_be_bytes(file[16..20].try_into().unwrap()) as usize;
        let at = file.windows(4).position(|four| four == b"IDAT").unwrap();
        let length = u32::from_be_bytes(file[at - 4..at].try_into().unwrap()) as usize;
        let rows = miniz_oxide::inflate::decompress_to_vec_zlib(&file[at + 4..at + 4 + length]).unwrap();
        let mut pixels: Vec<u8> = Vec::new();
        for row in rows.chunks_exact(width * 3 + 1) {
            let above = pixels.len().checked_sub(width * 3);
            for (x, byte) in row[1..].iter().enumerate() {
                let old = above.filter(|_| row[0] == 2).map_or(0, |above| pixels[above + x]);
                pixels.push(byte.wrapping_add(old));
            }
        }
        (width, pixels)
    }

    #[test]
    fn pixels_are_where_the_picture_has_ink() {
        let square = vec![(100, 100), (300, 100), (300, 200), (100, 200)];
        let (width, pixels) = decoded(&document((5.0, 4.0), &[Element::Fill(square, (213, 94, 0))], 144.0));
        assert_eq!((width, pixels.len()), (10, 10 * 8 * 3));
        for (at, pixel) in pixels.chunks_exact(3).enumerate() {
            let inside = (2..6).contains(&(at % 10)) && (2..4).contains(&(at / 10));
            assert_eq!(pixel, if inside { [213, 94, 0] } else { [255; 3] }, "pixel {at}");
        }
    }

    #[test]
    fn text_is_inked_within_its_box() {
        let run = |upright| TextRun {
            text: "Il1".into(),
            at: (1000, 2000),
            size: 1000.0,
            weight: Weight::Regular,
            color: (0, 0, 0),
            align: crate::canvas::Align::Left,
            drop: 0.0,
            upright,
        };
        for upright in [false, true] {
            let (width, pixels) = decoded(&document((40.0, 30.0), &[Element::Text(run(upright))], 72.0));
            let inked = pixels.chunks_exact(3).enumerate().filter(|(_, pixel)| pixel[0] < 128).map(|(at, _)| at);
            let inked: Vec<(usize, usize)> = inked.map(|at| (at % width, at / width)).collect();
            let (across, down) = if upright { (2..=10, 7..=20) } else { (10..=23, 12..=20) };
            assert!(inked.len() > 10 && inked.iter().all(|(x, y)| across.contains(x) && down.contains(y)), "{inked:?}");
        }
    }
}
