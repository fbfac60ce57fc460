//! NumPy's arrays, by the format's description: magic, version, a header in Python's notation, values.
//!
//! Values are streamed, so an array takes no memory beyond its counts, and a shape that its file does not hold is found
//! at the file's end. Arrays of objects and of records are refused. NPZ is a zip of these.

use std::io::Read;

use super::array::{ArraySink, Axis};
use super::tally::{Origin, Tally};
use super::{ImportError, ImportOptions};

/// Headers are a line of text; a longer one is no header.
const MOST_HEADER: usize = 1 << 16;

pub(super) fn read(
    tally: &mut Tally,
    options: &ImportOptions,
    path: &str,
    input: &mut dyn Read,
) -> Result<(), ImportError> {
    let header = Header::read(path, input)?;
    let default = Axis::of_counts(header.shape.len());
    let mut sink =
        ArraySink::new(tally, options, (path, Origin::of_path(path)?), &header.shape, header.fortran, default)?
            .padded_by(header.kind.greatest());
    let total = header.shape.iter().try_fold(1_u64, |product, &extent| product.checked_mul(extent as u64));
    let total = total.ok_or_else(|| header.refuse(path, "values that can be counted"))?;
    let size = header.kind.size;
    let mut buffer = vec![0; size * 4096];
    let mut done = 0;
    while done < total {
        let wanted = (total - done).min(4096) as usize * size;
        let read = fill(input, &mut buffer[..wanted]).map_err(|source| ImportError::read(path, source))?;
        if read < wanted {
            let found = format!("{} values of shape {:?}", done + (read / size) as u64, header.shape);
            return Err(ImportError::file(path, found, format!("{total} values")));
        }
        buffer[..wanted].chunks_exact(size).try_for_each(|value| sink.put(header.kind.decode(value)))?;
        done += (wanted / size) as u64;
    }
    Ok(())
}

/// Reads until the buffer is full or the input ends.
fn fill(input: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

struct Header {
    kind: Kind,
    fortran: bool,
    shape: Vec<usize>,
}

/// How a value is stored.
#[derive(Clone, Copy)]
struct Kind {
    letter: u8,
    size: usize,
    big_endian: bool,
}

impl Header {
    fn read(path: &str, input: &mut dyn Read) -> Result<Self, ImportError> {
        let cut = || ImportError::file(path, "a header that is cut off", "an NPY header");
        let mut take = |size: usize| {
            let mut bytes = vec![0; size];
            match fill(input, &mut bytes) {
                Ok(read) if read == size => Ok(bytes),
                Ok(_) => Err(cut()),
                Err(source) => Err(ImportError::read(path, source)),
            }
        };
        let version = take(8)?[6];
        let length = match version {
            1 => take(2)?.iter().rev().fold(0, |length, &byte| length << 8 | usize::from(byte)),
            _ => take(4)?.iter().rev().fold(0, |length, &byte| length << 8 | usize::from(byte)),
        };
        if length > MOST_HEADER {
            return Err(cut());
        }
        let text = take(length)?;
        Self::parse(&String::from_utf8_lossy(&text)).map_err(|expected| {
            let found: String = String::from_utf8_lossy(&text).trim().chars().take(120).collect();
            ImportError::file(path, format!("header {found}"), expected)
        })
    }

    /// From `{'descr': '<i4', 'fortran_order': False, 'shape': (2, 4, 8), }`.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let after = |key: &str| {
            let at = text.find(&format!("'{key}'")).or_else(|| text.find(&format!("\"{key}\"")))?;
            let (_, rest) = text[at..].split_once(':')?;
            Some(rest.trim_start())
        };
        let descr = after("descr").ok_or("a `descr`")?;
        let quote = descr.chars().next().filter(|c| "'\"".contains(*c)).ok_or("plain values, not records")?;
        let descr = descr[1..].split(quote).next().unwrap_or_default();
        let kind = Kind::parse(descr).ok_or("whole numbers or floats of 1 to 8 bytes")?;
        let fortran = after("fortran_order").ok_or("a `fortran_order`")?.starts_with("True");
        let shape = after("shape").and_then(|rest| rest.strip_prefix('(')?.split_once(')')).ok_or("a `shape`")?.0;
        let extents = shape.split(',').map(str::trim).filter(|extent| !extent.is_empty());
        let shape: Option<Vec<usize>> = extents.map(|extent| extent.trim_end_matches('L').parse().ok()).collect();
        Ok(Self { kind, fortran, shape: shape.ok_or("a `shape` of whole numbers")? })
    }

    fn refuse(&self, path: &str, expected: &str) -> ImportError {
        ImportError::file(path, format!("shape {:?}", self.shape), expected)
    }
}

impl Kind {
    fn parse(descr: &str) -> Option<Self> {
        let (order, rest) = match descr.as_bytes() {
            [order @ (b'<' | b'>' | b'|' | b'='), rest @ ..] => (*order, rest),
            rest => (b'<', rest),
        };
        let (&letter, size) = rest.split_first()?;
        let size = std::str::from_utf8(size).ok()?.parse().ok()?;
        let known = match letter {
            b'i' | b'u' => matches!(size, 1 | 2 | 4 | 8),
            b'f' => matches!(size, 2 | 4 | 8),
            b'b' => size == 1,
            _ => false,
        };
        known.then_some(Self { letter, size, big_endian: order == b'>' })
    }

    /// The greatest value of an unsigned type: what -1 becomes in it. Of one byte it may as well be the last of 256 experts.
    fn greatest(self) -> Option<f64> {
        (self.letter == b'u' && self.size > 1).then(|| self.decode(&[0xff; 8][..self.size]))
    }

    fn decode(self, bytes: &[u8]) -> f64 {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        if self.big_endian {
            word[..bytes.len()].reverse();
        }
        let bits = u64::from_le_bytes(word);
        let unused = 64 - 8 * bytes.len() as u32;
        match (self.letter, self.size) {
            (b'f', 2) => half(bits as u16),
            (b'f', 4) => f64::from(f32::from_bits(bits as u32)),
            (b'f', _) => f64::from_bits(bits),
            (b'i', _) => ((bits << unused) as i64 >> unused) as f64,
            _ => bits as f64,
        }
    }
}

/// IEEE's 16-bit float.
pub(super) fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let size = match exponent {
        0 => fraction * 2_f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (fraction + 1024.0) * 2_f64.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -size } else { size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_every_kind() {
        let check = |descr: &str, bytes: &[u8], expected: f64| {
            assert_eq!(Kind::parse(descr).unwrap().decode(bytes), expected, "{descr}");
        };
        check("<i4", &[0xfe, 0xff, 0xff, 0xff], -2.0);
        check(">i2", &[1, 2], 258.0);
        check("|u1", &[200], 200.0);
        let greatest = ["|u1", "<u2", ">u4", "<i2"].map(|descr| Kind::parse(descr).unwrap().greatest());
        assert_eq!(greatest, [None, Some(65535.0), Some(4294967295.0), None]);
        check("<i8", &[0, 0, 0, 0, 1, 0, 0, 0], 4294967296.0);
        check("<f2", &[0x00, 0x3c], 1.0);
        check("<f2", &[0x01, 0xc0], -2.001953125);
        check("<f4", &1.5_f32.to_le_bytes(), 1.5);
        check(">f8", &(-3.0_f64).to_be_bytes(), -3.0);
        for descr in ["|O", "<c8", "<i3", "<U5", "", "<"] {
            assert!(Kind::parse(descr).is_none(), "{descr}");
        }
    }
}
