//! Thrift's compact protocol, as far as Parquet's footers and page headers need it.
//!
//! Lengths are held against the bytes that are left before anything is taken, so a claim costs nothing.

use super::Fault;

/// Structures in structures; footers have fewer than ten.
const DEEPEST: u32 = 24;

/// The kind of a field or element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    True,
    False,
    Byte,
    /// 16, 32 or 64 bits: all are written alike.
    Int,
    Double,
    Binary,
    List,
    Map,
    Struct,
}

impl Wire {
    fn of(code: u8) -> Result<Self, Fault> {
        Ok(match code {
            1 => Self::True,
            2 => Self::False,
            3 => Self::Byte,
            4..=6 => Self::Int,
            7 => Self::Double,
            8 => Self::Binary,
            9 | 10 => Self::List,
            11 => Self::Map,
            12 => Self::Struct,
            _ => return Err(format!("a field of kind {code}")),
        })
    }
}

/// A place in bytes.
pub(super) struct Thrift<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: u32,
}

impl<'a> Thrift<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, depth: 0 }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Reads a structure: `field` is asked about each field and says whether it has read it.
    pub(super) fn structure(
        &mut self,
        field: &mut dyn FnMut(&mut Self, i64, Wire) -> Result<bool, Fault>,
    ) -> Result<(), Fault> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err("structures in structures without end".to_owned());
        }
        let mut id = 0;
        loop {
            let head = self.byte()?;
            if head == 0 {
                self.depth -= 1;
                return Ok(());
            }
            let wire = Wire::of(head & 15)?;
            id = if head >> 4 == 0 { self.int()? } else { id + i64::from(head >> 4) };
            if i16::try_from(id).is_err() {
                return Err(format!("a field of number {id}"));
            }
            if !field(self, id, wire)? {
                self.skip(wire)?;
            }
        }
    }

    /// Reads a list: `element` reads each of its elements.
    pub(super) fn list(&mut self, element: &mut dyn FnMut(&mut Self, Wire) -> Result<(), Fault>) -> Result<(), Fault> {
        let head = self.byte()?;
        let wire = Wire::of(head & 15)?;
        let length = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        // Every element takes a byte at least.
        if length > (self.bytes.len() - self.at) as u64 {
            return Err(format!("a list of {length} elements in fewer bytes"));
        }
        (0..length).try_for_each(|_| element(self, wire))
    }

    pub(super) fn int(&mut self) -> Result<i64, Fault> {
        let bits = self.varint()?;
        Ok((bits >> 1) as i64 ^ -((bits & 1) as i64))
    }

    pub(super) fn text(&mut self) -> Result<String, Fault> {
        Ok(String::from_utf8_lossy(self.binary()?).into_owned())
    }

    pub(super) fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.take(1)?[0])
    }

    fn binary(&mut self) -> Result<&'a [u8], Fault> {
        let length = self.varint()?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn varint(&mut self) -> Result<u64, Fault> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(number);
            }
        }
        Err("a number of more than 64 bits".to_owned())
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Fault> {
        let taken = self.bytes[self.at..].get(..length).ok_or("a structure that is cut off")?;
        self.at += length;
        Ok(taken)
    }

    fn skip(&mut self, wire: Wire) -> Result<(), Fault> {
        match wire {
            Wire::True | Wire::False => Ok(()),
            Wire::Byte => self.byte().map(drop),
            Wire::Int => self.varint().map(drop),
            Wire::Double => self.take(8).map(drop),
            Wire::Binary => self.binary().map(drop),
            Wire::Struct => self.structure(&mut |_, _, _| Ok(false)),
            Wire::List => self.list(&mut |thrift, wire| thrift.skip_element(wire)),
            Wire::Map => self.skip_map(),
        }
    }

    /// Truth values are bytes in lists, and part of the head in structures.
    fn skip_element(&mut self, wire: Wire) -> Result<(), Fault> {
        match wire {
            Wire::True | Wire::False => self.byte().map(drop),
            Wire::List | Wire::Map => {
                self.depth += 1;
                if self.depth > DEEPEST {
                    return Err("lists in lists without end".to_owned());
                }
                let skipped = self.skip(wire);
                self.depth -= 1;
                skipped
            }
            wire => self.skip(wire),
        }
    }

    fn skip_map(&mut self) -> Result<(), Fault> {
        let length = self.varint()?;
        if length == 0 {
            return Ok(());
        }
        if length > (self.bytes.len() - self.at) as u64 {
            return Err(format!("a map of {length} pairs in fewer bytes"));
        }
        let kinds = self.byte()?;
        let (key, value) = (Wire::of(kinds >> 4)?, Wire::of(kinds & 15)?);
        (0..length).try_for_each(|_| {
            self.skip_element(key)?;
            self.skip_element(value)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_passed_over() {
        // 1: 300, 2: true, 3: "ab", 5: [1, 2], 6: {1: -1}, 7: {"a": 1}, 8: 0.0, 20: 5.
        let mut bytes = vec![0x15, 0xd8, 0x04, 0x11, 0x18, 2, b'a', b'b', 0x29, 0x25, 2, 4, 0x1c, 0x15, 1, 0];
        bytes.extend([0x1b, 1, 0x85, 1, b'a', 2, 0x17, 0, 0, 0, 0, 0, 0, 0, 0, 0x05, 40, 10, 0]);
        let mut thrift = Thrift::new(&bytes);
        let mut seen = Vec::new();
        let mut read = |thrift: &mut Thrift, id: i64, wire: Wire| {
            seen.push((id, if wire == Wire::Int { thrift.int()? } else { 0 }));
            Ok(wire == Wire::Int)
        };
        thrift.structure(&mut read).unwrap();
        assert_eq!(seen, [(1, 300), (2, 0), (3, 0), (5, 0), (6, 0), (7, 0), (8, 0), (20, 5)]);
        assert_eq!(thrift.position(), bytes.len());
    }

    #[test]
    fn claims_without_bytes_are_refused() {
        let refused = |bytes: &[u8]| Thrift::new(bytes).structure(&mut |_, _, _| Ok(false)).unwrap_err();
        assert!(refused(&[0x19, 0xf5, 0xff, 0xff, 0x7f]).contains("a list of 2097151 elements"));
        assert!(refused(&[0x18, 0xff, 0x7f, b'a']).contains("cut off"));
        assert!(refused(&[0x1b, 0xff, 0x7f, 0x55]).contains("a map of 16383 pairs"));
        assert!(refused(&[0x1c; 64]).contains("without end"));
        assert!(refused(&[0x19, 0x19, 0x19, 0x19].repeat(20)).contains("without end"));
        assert!(refused(&[0x15]).contains("cut off"));
    }
}
