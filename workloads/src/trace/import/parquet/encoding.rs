//! Parquet's encodings, each read value by value: what a run or a count claims costs nothing until it is read.
//!
//! Readers hold places in a page, and are handed its bytes with every call.

use super::Fault;

/// A stretch of a page that is read from the front.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    pub(super) at: usize,
    pub(super) end: usize,
}

const CUT: &str = "a page that is cut off";

impl Span {
    pub(super) fn take<'p>(&mut self, page: &'p [u8], length: usize) -> Result<&'p [u8], Fault> {
        if length > self.end - self.at {
            return Err(CUT.to_owned());
        }
        self.at += length;
        page.get(self.at - length..self.at).ok_or_else(|| CUT.to_owned())
    }

    /// As much as is there of a part.
    pub(super) fn part(&mut self, length: usize) -> Self {
        let part = Self { at: self.at, end: self.at + length.min(self.end - self.at) };
        self.at = part.end;
        part
    }

    pub(super) fn length_prefix(&mut self, page: &[u8]) -> Result<usize, Fault> {
        let bytes = self.take(page, 4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    }

    fn varint(&mut self, page: &[u8]) -> Result<u64, Fault> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(page, 1)?[0];
            number |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(number);
            }
        }
        Err("a number of more than 64 bits".to_owned())
    }

    fn zigzag(&mut self, page: &[u8]) -> Result<i64, Fault> {
        let bits = self.varint(page)?;
        Ok((bits >> 1) as i64 ^ -((bits & 1) as i64))
    }

    /// Number `index` of those of `width` bits that are packed from the lowest bit up.
    fn packed(&self, page: &[u8], index: u64, width: u32) -> Result<u64, Fault> {
        let first = index * u64::from(width);
        let from = self.at + (first / 8) as usize;
        let bytes = page.get(from..self.end.min(page.len())).unwrap_or_default();
        let shift = (first % 8) as u32;
        let wanted = (shift + width).div_ceil(8) as usize;
        if bytes.len() < wanted {
            return Err(CUT.to_owned());
        }
        let mut word = [0; 16];
        word[..wanted].copy_from_slice(&bytes[..wanted]);
        let mask = if width == 64 { u64::MAX } else { (1 << width) - 1 };
        Ok((u128::from_le_bytes(word) >> shift) as u64 & mask)
    }
}

/// Runs of one number and groups of packed ones: levels, and places in a dictionary.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hybrid {
    width: u32,
    span: Span,
    /// Numbers left of the run.
    left: u64,
    run: Run,
}

#[derive(Clone, Copy, Debug)]
enum Run {
    Same(u32),
    Packed { span: Span, next: u64 },
}

impl Hybrid {
    /// Numbers of `width` bits, 0 to 32.
    pub(super) fn new(span: Span, width: u32) -> Self {
        Self { width, span, left: 0, run: Run::Same(0) }
    }

    /// Numbers from 0 to `most`; of 0 alone nothing is stored.
    pub(super) fn of_levels(span: Span, most: u32) -> Self {
        Self::new(span, u32::BITS - most.leading_zeros())
    }

    pub(super) fn next(&mut self, page: &[u8]) -> Result<u32, Fault> {
        if self.width == 0 {
            return Ok(0);
        }
        while self.left == 0 {
            self.begin(page)?;
        }
        self.left -= 1;
        match &mut self.run {
            Run::Same(value) => Ok(*value),
            Run::Packed { span, next } => {
                *next += 1;
                Ok(span.packed(page, *next - 1, self.width)? as u32)
            }
        }
    }

    fn begin(&mut self, page: &[u8]) -> Result<(), Fault> {
        let head = self.span.varint(page)?;
        if head & 1 == 0 {
            let bytes = self.span.take(page, self.width.div_ceil(8) as usize)?;
            let value = bytes.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
            (self.left, self.run) = (head >> 1, Run::Same(value));
            return Ok(());
        }
        let groups = head >> 1;
        let bytes = usize::try_from(groups).unwrap_or(usize::MAX).saturating_mul(self.width as usize);
        // The last group may end early.
        let span = self.span.part(bytes);
        let there = (span.end - span.at) as u64 * 8 / u64::from(self.width);
        (self.left, self.run) = (there.min(groups.saturating_mul(8)), Run::Packed { span, next: 0 });
        Ok(())
    }
}

/// Differences from number to number, packed in blocks (DELTA_BINARY_PACKED).
#[derive(Clone, Copy, Debug)]
pub(super) struct Delta {
    span: Span,
    /// Numbers in a miniblock, and miniblocks in a block.
    size: u64,
    blocks: usize,
    /// Numbers left.
    left: u64,
    last: i64,
    first: bool,
    least: i64,
    /// Widths of the miniblocks that are still to come in this block.
    widths: Span,
    packed: Span,
    width: u32,
    /// Numbers read of the miniblock.
    read: u64,
}

/// Writers make blocks of 128 to 2048.
const LARGEST_BLOCK: u64 = 1 << 12;

impl Delta {
    pub(super) fn new(mut span: Span, page: &[u8]) -> Result<Self, Fault> {
        let (block, blocks, left) = (span.varint(page)?, span.varint(page)?, span.varint(page)?);
        let last = span.zigzag(page)?;
        if blocks == 0 || block > LARGEST_BLOCK || !block.is_multiple_of(blocks) || block == 0 {
            return Err(format!("differences in blocks of {block} numbers in {blocks} parts"));
        }
        let size = block / blocks;
        let (widths, packed) = (Span::default(), Span::default());
        let blocks = blocks as usize;
        Ok(Self { span, size, blocks, left, last, first: true, least: 0, widths, packed, width: 0, read: size })
    }

    pub(super) fn next(&mut self, page: &[u8]) -> Result<i64, Fault> {
        self.left = self.left.checked_sub(1).ok_or(CUT)?;
        if self.first {
            self.first = false;
            return Ok(self.last);
        }
        if self.read == self.size {
            self.begin(page)?;
        }
        let difference = if self.width == 0 { 0 } else { self.packed.packed(page, self.read, self.width)? };
        self.read += 1;
        self.last = self.last.wrapping_add(self.least).wrapping_add(difference as i64);
        Ok(self.last)
    }

    /// The next miniblock.
    fn begin(&mut self, page: &[u8]) -> Result<(), Fault> {
        if self.widths.at == self.widths.end {
            self.least = self.span.zigzag(page)?;
            self.widths = self.span.part(self.blocks);
        }
        self.width = u32::from(self.widths.take(page, 1)?[0]);
        if self.width > 64 {
            return Err(format!("differences of {} bits", self.width));
        }
        self.packed = self.span.part((self.size * u64::from(self.width)).div_ceil(8) as usize);
        self.read = 0;
        Ok(())
    }

    /// What follows the last number.
    fn rest(mut self, page: &[u8]) -> Result<Span, Fault> {
        while self.left > 0 {
            self.next(page)?;
        }
        Ok(self.span)
    }
}

/// Where values come from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Values {
    /// One after the other; text with its length before it.
    Plain(Span),
    /// A bit each.
    Bits {
        span: Span,
        next: u64,
    },
    /// Runs of bits.
    Runs(Hybrid),
    /// Places in the dictionary.
    Places(Hybrid),
    Differences(Delta),
    /// First bytes of all values, then second bytes, and so on.
    Split {
        span: Span,
        count: usize,
        next: usize,
    },
    /// Lengths of all texts, then the texts.
    Lengths {
        lengths: Delta,
        texts: Span,
    },
}

/// What a value is, in its page or dictionary.
#[derive(Clone, Copy, Debug)]
pub(super) enum Raw {
    /// Bits of a number of the column's kind, in the lowest bits.
    Bits(u64),
    /// Place of a text in the page.
    Text(Span),
    /// Place in the dictionary.
    Place(u32),
}

impl Values {
    /// The reader of an encoding; `width` is that of a value in bytes, none for text, 0 for truth values.
    pub(super) fn new(encoding: i64, mut span: Span, width: Option<usize>, page: &[u8]) -> Result<Self, Fault> {
        Ok(match (encoding, width) {
            (0, Some(0)) => Self::Bits { span, next: 0 },
            (0, _) => Self::Plain(span),
            (2 | 8, _) => {
                let bits = u32::from(span.take(page, 1)?[0]);
                if bits > 32 {
                    return Err(format!("places of {bits} bits in a dictionary"));
                }
                Self::Places(Hybrid::new(span, bits))
            }
            (3, Some(0)) => {
                span.length_prefix(page)?;
                Self::Runs(Hybrid::new(span, 1))
            }
            (5, Some(4 | 8)) => Self::Differences(Delta::new(span, page)?),
            (6, None) => {
                let lengths = Delta::new(span, page)?;
                Self::Lengths { lengths, texts: lengths.rest(page)? }
            }
            (9, Some(width @ 1..)) => Self::Split { span, count: (span.end - span.at) / width, next: 0 },
            _ => return Err(format!("values in encoding {encoding}")),
        })
    }

    pub(super) fn next(&mut self, page: &[u8], width: Option<usize>) -> Result<Raw, Fault> {
        Ok(match self {
            Self::Plain(span) => match width {
                Some(width) => Raw::Bits(little_endian(span.take(page, width)?)),
                None => {
                    let length = span.length_prefix(page)?;
                    span.take(page, length)?;
                    Raw::Text(Span { at: span.at - length, end: span.at })
                }
            },
            Self::Bits { span, next } => {
                *next += 1;
                Raw::Bits(span.packed(page, *next - 1, 1)?)
            }
            Self::Runs(runs) => Raw::Bits(u64::from(runs.next(page)?)),
            Self::Places(places) => Raw::Place(places.next(page)?),
            Self::Differences(delta) => Raw::Bits(delta.next(page)? as u64),
            Self::Split { span, count, next } => {
                let mut bits = 0;
                for part in (0..width.unwrap_or(0)).rev() {
                    let byte = page.get(span.at + part * *count + *next).filter(|_| *next < *count).ok_or(CUT)?;
                    bits = bits << 8 | u64::from(*byte);
                }
                *next += 1;
                Raw::Bits(bits)
            }
            Self::Lengths { lengths, texts } => {
                let length = usize::try_from(lengths.next(page)?).map_err(|_| CUT)?;
                texts.take(page, length)?;
                Raw::Text(Span { at: texts.at - length, end: texts.at })
            }
        })
    }
}

/// A number of up to eight bytes.
pub(super) fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(page: &[u8]) -> Span {
        Span { at: 0, end: page.len() }
    }

    fn numbers(encoding: i64, width: Option<usize>, page: &[u8], count: usize) -> Result<Vec<u64>, Fault> {
        let mut values = Values::new(encoding, whole(page), width, page)?;
        let number = |_| match values.next(page, width)? {
            Raw::Bits(bits) => Ok(bits),
            Raw::Place(place) => Ok(u64::from(place)),
            Raw::Text(span) => Ok(span.at as u64 * 1000 + (span.end - span.at) as u64),
        };
        (0..count).map(number).collect()
    }

    /// The examples of the format's description: 0 to 7 in three bits each, and a run.
    #[test]
    fn runs_and_packed_groups() {
        let page = [0b0000_0011, 0b1000_1000, 0b1100_0110, 0b1111_1010, 0b0000_1010, 4];
        let mut levels = Hybrid::new(whole(&page), 3);
        let read: Vec<u32> = (0..13).map(|_| levels.next(&page).unwrap()).collect();
        assert_eq!(read, [0, 1, 2, 3, 4, 5, 6, 7, 4, 4, 4, 4, 4]);
        assert!(levels.next(&page).is_err(), "the page is at its end");
        // No level but 0, and nothing stored.
        assert_eq!(Hybrid::of_levels(Span::default(), 0).next(&[]), Ok(0));
        // A group that claims more than is there.
        let mut cut = Hybrid::new(Span { at: 0, end: 2 }, 8);
        assert_eq!([cut.next(&[0xff, 9]), cut.next(&[0xff, 9])].map(|value| value.is_ok()), [false, false]);
        let page = [0x03, 9];
        let mut early = Hybrid::new(whole(&page), 8);
        assert_eq!((early.next(&page), early.next(&page).is_err()), (Ok(9), true));
    }

    /// 7, 5, 3, 1, 2, 3, 4, 5 of the format's description: blocks of 128, 4 parts, differences from -2 in two bits.
    #[test]
    fn differences_in_blocks() {
        let packed = [0b11_00_00_00, 0b00_11_11_11, 0, 0, 0, 0, 0, 0];
        let page = [&[128, 1, 4, 8, 14, 3, 2, 0, 0, 0][..], &packed].concat();
        assert_eq!(numbers(5, Some(8), &page, 8).unwrap(), [7, 5, 3, 1, 2, 3, 4, 5]);
        assert!(numbers(5, Some(8), &page, 9).is_err(), "there are eight");
        // Backwards past the smallest number.
        let page = [128, 1, 4, 2, 1, 1, 0, 0, 0, 0];
        assert_eq!(numbers(5, Some(8), &page, 2).unwrap(), [u64::MAX, u64::MAX - 1]);
        for (block, why) in [(&[0, 1, 1, 0][..], "no block"), (&[128, 128, 128, 1, 1, 0], "a block of two millions")] {
            assert!(numbers(5, Some(8), block, 1).is_err(), "{why}");
        }
    }

    #[test]
    fn values_of_every_encoding() {
        assert_eq!(numbers(0, Some(2), &[1, 0, 2, 1], 2).unwrap(), [1, 258]);
        assert_eq!(numbers(0, Some(0), &[0b101], 3).unwrap(), [1, 0, 1]);
        assert_eq!(numbers(3, Some(0), &[2, 0, 0, 0, 6, 1], 3).unwrap(), [1, 1, 1]);
        assert_eq!(numbers(8, Some(4), &[2, 4, 3, 2, 1], 3).unwrap(), [3, 3, 1]);
        assert_eq!(numbers(9, Some(4), &[1, 2, 0, 1, 0, 0, 0, 0], 2).unwrap(), [1, 258]);
        assert_eq!(numbers(0, None, &[2, 0, 0, 0, b'a', b'b', 0, 0, 0, 0], 2).unwrap(), [4002, 10000]);
        // Two texts of 1 and 2 bytes behind their lengths.
        let lengths = [128, 1, 1, 2, 2, 2, 0];
        assert_eq!(numbers(6, None, &[&lengths[..], b"abc"].concat(), 2).unwrap(), [7001, 8002]);
        assert!(numbers(0, Some(8), &[1, 2, 3], 1).is_err());
        assert!(numbers(0, None, &[255, 255, 255, 255, 1], 1).is_err());
        assert_eq!(numbers(7, None, &[], 1).unwrap_err(), "values in encoding 7");
        assert!(numbers(8, Some(4), &[200, 1], 1).is_err(), "places of 200 bits");
    }
}
