//! A column of one row group: its pages, unpacked one at a time, and its values row by row.

use std::io::{self, Read};
use std::ops::Range;

use super::super::npy::half;
use super::super::table::Cell;
use super::Fault;
use super::encoding::{Hybrid, Raw, Span, Values, little_endian};
use super::footer::{Chunk, Kind, Leaf};
use super::thrift::{Thrift, Wire};

/// Bytes that the pages of all columns may unpack to at one time.
const MOST_UNPACKED: usize = 3 << 27;
/// Values for each byte of a file, and besides. Repetition is cheap to store, but not that cheap.
const MOST_PER_BYTE: u64 = 4096;
const LEAST_LIMIT: u64 = 1 << 20;
/// Snappy makes no more of a byte.
const MOST_OF_SNAPPY: usize = 64;
/// Numbers in one list.
const MOST_NUMBERS: usize = 1 << 25;

/// What is left of [`MOST_UNPACKED`].
pub(super) struct Budget(usize);

impl Budget {
    pub(super) fn new() -> Self {
        Self(MOST_UNPACKED)
    }

    fn take(&mut self, bytes: usize) -> Result<(), Fault> {
        let left = self.0.checked_sub(bytes);
        self.0 = left.ok_or_else(|| format!("pages that unpack to more than {MOST_UNPACKED} bytes at one time"))?;
        Ok(())
    }
}

/// Reads a column from its first row on.
pub(super) struct ColumnReader<'f> {
    file: &'f [u8],
    leaf: Leaf,
    codec: i64,
    /// Where the next page begins, and where the last ends.
    place: Range<usize>,
    /// Entries that are left in all pages.
    left: u64,
    dictionary: Dictionary,
    page: Page,
    /// Whether the next row's first entry has been read, and its level.
    ahead: Option<u32>,
    row: Row,
    list: Vec<f64>,
}

/// The present row.
enum Row {
    Missing,
    Number(f64),
    /// In `ColumnReader::list`, of so many numbers.
    List([usize; 1]),
    /// A text in the page, or in the dictionary.
    Text {
        span: Span,
        of_dictionary: bool,
    },
}

/// Bytes of a page: those of the file, or unpacked.
enum Bytes {
    File(Range<usize>),
    Own(Vec<u8>),
}

impl Default for Bytes {
    fn default() -> Self {
        Self::Own(Vec::new())
    }
}

impl Bytes {
    fn of<'a>(&'a self, file: &'a [u8]) -> &'a [u8] {
        match self {
            Self::File(range) => file.get(range.clone()).unwrap_or_default(),
            Self::Own(bytes) => bytes,
        }
    }

    fn held(&self) -> usize {
        match self {
            Self::File(_) => 0,
            Self::Own(bytes) => bytes.capacity(),
        }
    }
}

#[derive(Default)]
struct Dictionary {
    bytes: Bytes,
    /// Where each text begins, with its length before it; numbers are found by their width.
    texts: Vec<u32>,
}

struct Page {
    bytes: Bytes,
    /// Entries that are left.
    left: u64,
    repetitions: Hybrid,
    definitions: Hybrid,
    values: Values,
}

impl Default for Page {
    fn default() -> Self {
        let none = Hybrid::new(Span::default(), 0);
        let values = Values::Plain(Span::default());
        Self { bytes: Bytes::default(), left: 0, repetitions: none, definitions: none, values }
    }
}

/// A page's header.
#[derive(Default)]
struct Header {
    kind: i64,
    unpacked: usize,
    packed: usize,
    entries: u64,
    encoding: i64,
    /// Encodings of levels that are not runs.
    odd_levels: bool,
    /// Bytes of both kinds of levels, which stand unpacked before the values of a page of version 2.
    levels: [usize; 2],
    plain_values: bool,
}

impl<'f> ColumnReader<'f> {
    pub(super) fn new(file: &'f [u8], leaf: Leaf, chunk: &Chunk) -> Result<Self, Fault> {
        let place = |at: u64| usize::try_from(at).ok().filter(|&at| at <= file.len());
        let end = place(chunk.start.saturating_add(chunk.length)).ok_or("pages behind the end of the file")?;
        let left = u64::try_from(chunk.values).map_err(|_| "fewer than 0 values")?;
        if left > LEAST_LIMIT + MOST_PER_BYTE * file.len() as u64 {
            return Err(format!("{left} values in a file of {} bytes", file.len()));
        }
        Ok(Self {
            file,
            leaf,
            codec: chunk.codec,
            place: chunk.start as usize..end,
            left,
            dictionary: Dictionary::default(),
            page: Page::default(),
            ahead: None,
            row: Row::Missing,
            list: Vec::new(),
        })
    }

    /// Gives back what its pages took.
    pub(super) fn close(self, budget: &mut Budget) {
        budget.0 += self.page.bytes.held() + self.dictionary.bytes.held();
    }

    /// The field of the present row.
    pub(super) fn cell(&self) -> Result<Cell<'_>, Fault> {
        Ok(match &self.row {
            Row::Missing => Cell::Missing,
            Row::Number(value) if value.is_nan() => Cell::Missing,
            Row::Number(value) => Cell::Number(*value),
            Row::List(shape) => Cell::List { shape, values: &self.list },
            Row::Text { span, of_dictionary } => {
                let bytes = if *of_dictionary { &self.dictionary.bytes } else { &self.page.bytes };
                let text = bytes.of(self.file).get(span.at..span.end).unwrap_or_default();
                Cell::Text(std::str::from_utf8(text).map_err(|_| "text that is no UTF-8")?)
            }
        })
    }

    /// Goes to the next row.
    pub(super) fn advance(&mut self, budget: &mut Budget) -> Result<(), Fault> {
        let level = match self.ahead.take() {
            Some(level) => level,
            None => match self.entry(budget)? {
                Some((0, level)) => level,
                Some(_) => return Err("a row that begins in the middle of a list".to_owned()),
                None => return Err("fewer values than rows".to_owned()),
            },
        };
        if self.leaf.list {
            return self.advance_list(level, budget);
        }
        self.row = if level == self.leaf.defined { self.value()? } else { Row::Missing };
        Ok(())
    }

    fn advance_list(&mut self, mut level: u32, budget: &mut Budget) -> Result<(), Fault> {
        self.list.clear();
        loop {
            if level == self.leaf.defined {
                match self.value()? {
                    Row::Number(value) => self.list.push(value),
                    _ => return Err("lists of text".to_owned()),
                }
            } else if level >= self.leaf.element {
                self.list.push(f64::NAN);
            }
            if self.list.len() > MOST_NUMBERS {
                return Err(format!("a list of more than {MOST_NUMBERS} numbers"));
            }
            match self.entry(budget)? {
                Some((0, next)) => {
                    self.ahead = Some(next);
                    break;
                }
                Some((_, next)) => level = next,
                None => break,
            }
        }
        self.row = Row::List([self.list.len()]);
        Ok(())
    }

    /// Levels of the next entry: of repetition, and of definition.
    fn entry(&mut self, budget: &mut Budget) -> Result<Option<(u32, u32)>, Fault> {
        while self.page.left == 0 {
            if self.left == 0 || self.place.is_empty() {
                return Ok(None);
            }
            self.load(budget)?;
        }
        self.page.left -= 1;
        self.left -= 1;
        let bytes = self.page.bytes.of(self.file);
        Ok(Some((self.page.repetitions.next(bytes)?, self.page.definitions.next(bytes)?)))
    }

    fn value(&mut self) -> Result<Row, Fault> {
        let (kind, width) = (self.leaf.kind, self.leaf.kind.width());
        let raw = self.page.values.next(self.page.bytes.of(self.file), width)?;
        let beyond = "a place behind the end of the dictionary";
        Ok(match (raw, width) {
            (Raw::Bits(bits), _) => Row::Number(kind.number(bits)),
            (Raw::Text(span), _) => Row::Text { span, of_dictionary: false },
            (Raw::Place(place), Some(width)) => {
                let at = place as usize * width;
                let bytes = self.dictionary.bytes.of(self.file).get(at..at + width).filter(|_| width > 0);
                Row::Number(kind.number(little_endian(bytes.ok_or(beyond)?)))
            }
            (Raw::Place(place), None) => {
                let bytes = self.dictionary.bytes.of(self.file);
                let at = *self.dictionary.texts.get(place as usize).ok_or(beyond)?;
                let mut span = Span { at: at as usize, end: bytes.len() };
                let length = span.length_prefix(bytes)?;
                Row::Text { span: span.part(length), of_dictionary: true }
            }
        })
    }

    /// Reads the next page, or passes over one that holds no values.
    fn load(&mut self, budget: &mut Budget) -> Result<(), Fault> {
        let header = self.header()?;
        let body = self.place.start..self.place.start + header.packed;
        if body.end > self.place.end {
            return Err("a page that is cut off".to_owned());
        }
        self.place.start = body.end;
        match header.kind {
            0 | 3 => {
                budget.0 += self.page.bytes.held();
                self.page = Page::default();
                self.page = self.data_page(&header, body, budget)?;
            }
            2 => {
                budget.0 += self.dictionary.bytes.held();
                self.dictionary = Dictionary::default();
                self.dictionary = self.read_dictionary(&header, body, budget)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn header(&mut self) -> Result<Header, Fault> {
        let mut thrift = Thrift::new(self.file.get(self.place.clone()).unwrap_or_default());
        let header = Header::read(&mut thrift)?;
        self.place.start += thrift.position();
        Ok(header)
    }

    fn data_page(&self, header: &Header, body: Range<usize>, budget: &mut Budget) -> Result<Page, Fault> {
        if header.odd_levels {
            return Err("levels that are not in runs".to_owned());
        }
        if header.entries > self.left {
            return Err("more values in pages than the column states".to_owned());
        }
        let lists = u32::from(self.leaf.list);
        let second = header.kind == 3;
        let bytes = self.unpack(header, body, budget)?;
        let page = bytes.of(self.file);
        let mut span = Span { at: 0, end: page.len() };
        let mut levels = |most: u32, stated: usize| {
            let length = match (second, most) {
                (true, _) => stated,
                (false, 0) => 0,
                (false, _) => span.length_prefix(page)?,
            };
            Ok::<Hybrid, Fault>(Hybrid::of_levels(span.part(length), most))
        };
        let repetitions = levels(lists, header.levels[0])?;
        let definitions = levels(self.leaf.defined, header.levels[1])?;
        let values = match span.at == span.end {
            // All values are absent.
            true => Values::Plain(span),
            false => Values::new(header.encoding, span, self.leaf.kind.width(), page)?,
        };
        Ok(Page { left: header.entries, repetitions, definitions, values, bytes })
    }

    fn read_dictionary(&self, header: &Header, body: Range<usize>, budget: &mut Budget) -> Result<Dictionary, Fault> {
        if !matches!(header.encoding, 0 | 2) {
            return Err(format!("a dictionary in encoding {}", header.encoding));
        }
        let bytes = self.unpack(header, body, budget)?;
        let page = bytes.of(self.file);
        let (mut span, mut texts) = (Span { at: 0, end: page.len() }, Vec::new());
        while self.leaf.kind == Kind::Text && span.at < span.end && (texts.len() as u64) < header.entries {
            texts.push(u32::try_from(span.at).map_err(|_| "a dictionary of more than 4 GiB")?);
            let length = span.length_prefix(page)?;
            span.take(page, length)?;
        }
        Ok(Dictionary { bytes, texts })
    }

    /// The bytes of a page, levels before values.
    fn unpack(&self, header: &Header, body: Range<usize>, budget: &mut Budget) -> Result<Bytes, Fault> {
        if self.codec == 0 {
            return Ok(Bytes::File(body));
        }
        let packed = self.file.get(body).ok_or("a page that is cut off")?;
        let levels = if header.kind == 3 { header.levels[0].saturating_add(header.levels[1]) } else { 0 };
        let (plain, packed) = packed.split_at_checked(levels).ok_or("levels that are cut off")?;
        budget.take(header.unpacked)?;
        let room = header.unpacked.checked_sub(levels).ok_or("levels larger than their page")?;
        let mut bytes = plain.to_vec();
        if header.plain_values {
            bytes.extend_from_slice(packed);
        } else {
            unpack(self.codec, packed, room, &mut bytes)?;
        }
        // What the budget gives back is what it gave.
        bytes.shrink_to_fit();
        budget.0 += header.unpacked;
        budget.take(bytes.capacity())?;
        Ok(Bytes::Own(bytes))
    }
}

impl Header {
    fn read(thrift: &mut Thrift) -> Result<Self, Fault> {
        const RUNS: i64 = 3;
        let size = |number: i64| usize::try_from(number).map_err(|_| "a page of fewer than 0 bytes");
        let entries = |number: i64| u64::try_from(number).map_err(|_| "a page of fewer than 0 values");
        let mut header = Self::default();
        thrift.structure(&mut |thrift, id, wire| {
            match (id, wire) {
                (1, Wire::Int) => header.kind = thrift.int()?,
                (2, Wire::Int) => header.unpacked = size(thrift.int()?)?,
                (3, Wire::Int) => header.packed = size(thrift.int()?)?,
                (5 | 7 | 8, Wire::Struct) => thrift.structure(&mut |thrift, field, wire| {
                    match (id, field, wire) {
                        (_, 1, Wire::Int) => header.entries = entries(thrift.int()?)?,
                        (5 | 7, 2, Wire::Int) | (8, 4, Wire::Int) => header.encoding = thrift.int()?,
                        (5, 3 | 4, Wire::Int) => header.odd_levels |= thrift.int()? != RUNS,
                        (8, 5, Wire::Int) => header.levels[1] = size(thrift.int()?)?,
                        (8, 6, Wire::Int) => header.levels[0] = size(thrift.int()?)?,
                        (8, 7, Wire::False) => header.plain_values = true,
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(header)
    }
}

impl Kind {
    /// Bytes of a value; none for text, 0 for truth values.
    fn width(self) -> Option<usize> {
        match self {
            Self::Boolean => Some(0),
            Self::Half => Some(2),
            Self::Int32 { .. } | Self::Float => Some(4),
            Self::Int64 { .. } | Self::Double => Some(8),
            Self::Text => None,
        }
    }

    fn number(self, bits: u64) -> f64 {
        match self {
            Self::Int32 { signed: true } => f64::from(bits as u32 as i32),
            Self::Int32 { signed: false } => f64::from(bits as u32),
            Self::Int64 { signed: true } => bits as i64 as f64,
            Self::Float => f64::from(f32::from_bits(bits as u32)),
            Self::Double => f64::from_bits(bits),
            Self::Half => half(bits as u16),
            Self::Boolean | Self::Text | Self::Int64 { signed: false } => bits as f64,
        }
    }
}

/// Appends what `packed` holds, of `size` bytes, to `out`.
fn unpack(codec: i64, packed: &[u8], size: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
    let before = out.len();
    match codec {
        1 => {
            let stated = snap::raw::decompress_len(packed).map_err(|error| error.to_string())?;
            if stated != size || size / MOST_OF_SNAPPY > packed.len() {
                return Err("a page of another size than its header states".to_owned());
            }
            out.resize(before + size, 0);
            snap::raw::Decoder::new().decompress(packed, &mut out[before..]).map_err(|error| error.to_string())?;
        }
        2 => read(flate2::bufread::MultiGzDecoder::new(packed), size, out)?,
        4 => read(brotli::Decompressor::new(packed, 1 << 14), size, out)?,
        6 => {
            let mut decoder = zstd::Decoder::with_buffer(packed).map_err(|error| error.to_string())?;
            // A window of 128 MiB is the most that writers make unless told otherwise.
            decoder.window_log_max(27).map_err(|error| error.to_string())?;
            read(decoder, size, out)?;
        }
        7 => unpack_lz4(packed, size, out)?,
        other => return Err(format!("pages packed by method {other}")),
    }
    match out.len() - before == size {
        true => Ok(()),
        false => Err("a page of another size than its header states".to_owned()),
    }
}

fn read(decoder: impl Read, size: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
    let read: io::Result<usize> = decoder.take(size as u64 + 1).read_to_end(out);
    read.map(drop).map_err(|error| format!("a page that cannot be unpacked ({error})"))
}

/// A block of LZ4: literals, then a copy of what came before, and so on; the last sequence is literals alone.
fn unpack_lz4(packed: &[u8], size: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
    let (start, mut at) = (out.len(), 0);
    let cut = || "an LZ4 block that is cut off".to_owned();
    let length = |at: &mut usize, nibble: u8| {
        let mut length = usize::from(nibble);
        let mut more = nibble == 15;
        while more {
            let byte = *packed.get(*at).ok_or_else(cut)?;
            *at += 1;
            length += usize::from(byte);
            more = byte == 255;
        }
        Ok::<usize, Fault>(length)
    };
    while let Some(&token) = packed.get(at) {
        at += 1;
        let literals = length(&mut at, token >> 4)?;
        out.extend_from_slice(packed.get(at..).and_then(|rest| rest.get(..literals)).ok_or_else(cut)?);
        at += literals;
        if at == packed.len() {
            break;
        }
        let offset = usize::from(u16::from_le_bytes([packed[at], *packed.get(at + 1).ok_or_else(cut)?]));
        at += 2;
        let copied = length(&mut at, token & 15)? + 4;
        let from = out.len().checked_sub(offset).filter(|&from| offset > 0 && from >= start).ok_or_else(cut)?;
        if out.len() - start + copied > size {
            return Err("a page of another size than its header states".to_owned());
        }
        (0..copied).for_each(|index| out.push(out[from + index]));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacked(codec: i64, packed: &[u8], size: usize) -> Result<Vec<u8>, Fault> {
        let mut out = b"levels".to_vec();
        unpack(codec, packed, size, &mut out).map(|()| out.split_off(6))
    }

    #[test]
    fn blocks_of_lz4() {
        // Two literals, a copy of 10 from 2 before, and a last literal.
        let packed = [0x26, b'a', b'b', 2, 0, 0x10, b'c'];
        assert_eq!(unpacked(7, &packed, 13).unwrap(), b"ababababababc");
        assert!(unpacked(7, &packed, 12).is_err() && unpacked(7, &packed, 14).is_err());
        for (bad, why) in [
            (&[0x26, b'a', b'b', 3, 0, 0x10, b'c'][..], "a copy from before the block"),
            (&[0x26, b'a', b'b', 0, 0, 0x10, b'c'], "a copy of itself"),
            (&[0xf0, 255, 255], "literals that are not there"),
            (&[0x26, b'a', b'b', 2], "half a place"),
            (&[0x2f, b'a', b'b', 1, 0, 255, 255, 255, 255, 255, 0], "a copy beyond the page"),
        ] {
            assert!(unpacked(7, bad, 13).is_err(), "{why}");
        }
    }

    /// Pages that unpack to more than they state, or than their bytes can hold.
    #[test]
    fn pages_keep_to_their_size() {
        let zeros = vec![0; 1 << 20];
        let packed = zstd::encode_all(&zeros[..], 3).unwrap();
        assert_eq!(unpacked(6, &packed, 1 << 20).unwrap(), zeros);
        assert!(unpacked(6, &packed, 1000).is_err());
        assert!(unpacked(6, &packed, 1 << 21).is_err());
        let snappy = snap::raw::Encoder::new().compress_vec(&zeros).unwrap();
        assert_eq!(unpacked(1, &snappy, 1 << 20).unwrap(), zeros);
        assert!(unpacked(1, &snappy[..100], 1 << 20).is_err());
        assert_eq!(unpacked(3, &[], 0).unwrap_err(), "pages packed by method 3");
        let mut budget = Budget::new();
        assert!(budget.take(MOST_UNPACKED).is_ok() && budget.take(1).unwrap_err().contains("402653184 bytes"));
    }
}
