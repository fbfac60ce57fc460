//! The footer: columns, where their pages are, and what the file's writer noted.

use super::Fault;
use super::thrift::{Thrift, Wire};

/// What a footer says.
#[derive(Debug, Default)]
pub(super) struct Footer {
    pub(super) columns: Vec<Column>,
    pub(super) groups: Vec<RowGroup>,
    /// Keys and values.
    pub(super) notes: Vec<(String, String)>,
}

/// A column of the table: a field at the top, with one leaf below it, or with more than can be read as one.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) name: String,
    /// Where its leaf is among all leaves, and how it is stored.
    pub(super) leaf: Result<Leaf, Fault>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Leaf {
    pub(super) index: usize,
    pub(super) kind: Kind,
    /// The level at which a value is there.
    pub(super) defined: u32,
    /// The level from which an element of a list is there, with a value or without; 0 where there are no lists.
    pub(super) element: u32,
    pub(super) list: bool,
}

/// How values are stored, and what they mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Boolean,
    Int32 {
        signed: bool,
    },
    Int64 {
        signed: bool,
    },
    Float,
    Double,
    /// IEEE's 16 bits.
    Half,
    Text,
}

/// Rows that are stored together.
#[derive(Debug, Default)]
pub(super) struct RowGroup {
    pub(super) rows: u64,
    /// `[leaf]`
    pub(super) chunks: Vec<Chunk>,
}

/// The pages of one leaf.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chunk {
    pub(super) codec: i64,
    /// Entries, absent values included.
    pub(super) values: i64,
    pub(super) start: u64,
    pub(super) length: u64,
    elsewhere: bool,
}

/// One element of the schema, in the order of a walk from the top.
#[derive(Debug, Default)]
struct Element {
    name: String,
    kind: Option<i64>,
    width: i64,
    repetition: i64,
    children: i64,
    converted: Option<i64>,
    /// Field of the union of logical types.
    logical: Option<i64>,
    signed: bool,
}

impl Footer {
    /// Reads the footer of a whole file.
    pub(super) fn read(file: &[u8]) -> Result<Self, Fault> {
        let cut = "a file that is cut off";
        let body = file.strip_suffix(b"PAR1").filter(|_| file.len() >= 12 && file.starts_with(b"PAR1")).ok_or(cut)?;
        let (body, length) = body.split_at(body.len() - 4);
        let length = u32::from_le_bytes(length.try_into().map_err(|_| cut)?) as usize;
        let start = body.len().checked_sub(length).filter(|&start| start >= 4).ok_or(cut)?;
        let (mut schema, mut footer) = (Vec::new(), Self::default());
        Thrift::new(&body[start..]).structure(&mut |thrift, id, wire| {
            match (id, wire) {
                (2, Wire::List) => thrift.list(&mut |thrift, _| {
                    schema.push(Element::read(thrift)?);
                    Ok(())
                })?,
                (4, Wire::List) => thrift.list(&mut |thrift, _| {
                    footer.groups.push(RowGroup::read(thrift)?);
                    Ok(())
                })?,
                (5, Wire::List) => thrift.list(&mut |thrift, _| {
                    footer.notes.push(pair(thrift)?);
                    Ok(())
                })?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let leaves = footer.read_columns(&schema)?;
        if let Some(group) = footer.groups.iter().find(|group| group.chunks.len() != leaves) {
            return Err(format!("{} columns of pages for {leaves} of values", group.chunks.len()));
        }
        if footer.groups.iter().flat_map(|group| &group.chunks).any(|chunk| chunk.elsewhere) {
            return Err("columns in other files".to_owned());
        }
        Ok(footer)
    }

    /// The columns below the root; returns the number of all leaves.
    fn read_columns(&mut self, schema: &[Element]) -> Result<usize, Fault> {
        let root = schema.first().ok_or("a file without columns")?;
        let (mut at, mut leaves) = (1, 0);
        for _ in 0..root.children {
            let top = schema.get(at).ok_or("a schema that is cut off")?;
            let first = leaves;
            let mut path = Vec::new();
            walk(schema, &mut at, &mut leaves, &mut path, 0)?;
            let leaf = if leaves == first + 1 { leaf(&path, first) } else { Err("fields of its own".to_owned()) };
            self.columns.push(Column { name: top.name.clone(), leaf });
        }
        Ok(leaves)
    }
}

/// Steps over an element and all below it, counting leaves; `path` is that to the last leaf.
fn walk<'a>(
    schema: &'a [Element],
    at: &mut usize,
    leaves: &mut usize,
    path: &mut Vec<&'a Element>,
    depth: u32,
) -> Result<(), Fault> {
    let element = schema.get(*at).ok_or("a schema that is cut off")?;
    if depth > 24 {
        return Err("fields in fields without end".to_owned());
    }
    *at += 1;
    path.truncate(depth as usize);
    path.push(element);
    if element.kind.is_some() {
        *leaves += 1;
        return Ok(());
    }
    for _ in 0..element.children {
        walk(schema, at, leaves, path, depth + 1)?;
    }
    Ok(())
}

/// What the elements from the top to a leaf say of it.
fn leaf(path: &[&Element], index: usize) -> Result<Leaf, Fault> {
    let last = path.last().ok_or("no values")?;
    let (mut defined, mut element, mut lists) = (0, 0, 0);
    for part in path {
        defined += u32::from(part.repetition != 0);
        if part.repetition == 2 {
            lists += 1;
            element = defined;
        }
    }
    if lists > 1 {
        return Err("lists of lists".to_owned());
    }
    Ok(Leaf { index, kind: last.values()?, defined, element, list: lists == 1 })
}

impl Element {
    fn read(thrift: &mut Thrift) -> Result<Self, Fault> {
        let mut element = Self { signed: true, ..Self::default() };
        thrift.structure(&mut |thrift, id, wire| {
            match (id, wire) {
                (1, Wire::Int) => element.kind = Some(thrift.int()?),
                (2, Wire::Int) => element.width = thrift.int()?,
                (3, Wire::Int) => element.repetition = thrift.int()?,
                (4, Wire::Binary) => element.name = thrift.text()?,
                (5, Wire::Int) => element.children = thrift.int()?,
                (6, Wire::Int) => element.converted = Some(thrift.int()?),
                (10, Wire::Struct) => element.logical_type(thrift)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(element)
    }

    fn logical_type(&mut self, thrift: &mut Thrift) -> Result<(), Fault> {
        thrift.structure(&mut |thrift, id, wire| {
            self.logical = Some(id);
            // An integer of so many bits, and whether it has a sign.
            if (id, wire) != (10, Wire::Struct) {
                return Ok(false);
            }
            thrift.structure(&mut |_, id, wire| {
                self.signed &= (id, wire) != (2, Wire::False);
                Ok(false)
            })?;
            Ok(true)
        })
    }

    fn values(&self) -> Result<Kind, Fault> {
        const UNSIGNED: std::ops::RangeInclusive<i64> = 11..=14;
        let signed = self.signed && !self.converted.is_some_and(|converted| UNSIGNED.contains(&converted));
        if self.converted == Some(5) || self.logical == Some(5) {
            return Err("decimal numbers".to_owned());
        }
        match self.kind {
            Some(0) => Ok(Kind::Boolean),
            Some(1) => Ok(Kind::Int32 { signed }),
            Some(2) => Ok(Kind::Int64 { signed }),
            Some(4) => Ok(Kind::Float),
            Some(5) => Ok(Kind::Double),
            Some(6) => Ok(Kind::Text),
            Some(7) if self.logical == Some(15) && self.width == 2 => Ok(Kind::Half),
            _ => Err("values that are neither numbers nor text".to_owned()),
        }
    }
}

impl RowGroup {
    fn read(thrift: &mut Thrift) -> Result<Self, Fault> {
        let mut group = Self::default();
        thrift.structure(&mut |thrift, id, wire| {
            match (id, wire) {
                (1, Wire::List) => thrift.list(&mut |thrift, _| {
                    group.chunks.push(Chunk::read(thrift)?);
                    Ok(())
                })?,
                (3, Wire::Int) => group.rows = u64::try_from(thrift.int()?).map_err(|_| "fewer than 0 rows")?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(group)
    }
}

impl Chunk {
    fn read(thrift: &mut Thrift) -> Result<Self, Fault> {
        let mut chunk = Self::default();
        thrift.structure(&mut |thrift, id, wire| {
            match (id, wire) {
                (1, Wire::Binary) => chunk.elsewhere = !thrift.text()?.is_empty(),
                (3, Wire::Struct) => chunk.metadata(thrift)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(chunk)
    }

    fn metadata(&mut self, thrift: &mut Thrift) -> Result<(), Fault> {
        let place = |number: i64| u64::try_from(number).map_err(|_| "a place before the file");
        let mut dictionary = None;
        thrift.structure(&mut |thrift, id, wire| {
            match (id, wire) {
                (4, Wire::Int) => self.codec = thrift.int()?,
                (5, Wire::Int) => self.values = thrift.int()?,
                (7, Wire::Int) => self.length = place(thrift.int()?)?,
                (9, Wire::Int) => self.start = place(thrift.int()?)?,
                (11, Wire::Int) => dictionary = Some(place(thrift.int()?)?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        // Some writers state 0 where there is none.
        self.start = dictionary.filter(|&at| at >= 4).map_or(self.start, |at| at.min(self.start));
        Ok(())
    }
}

fn pair(thrift: &mut Thrift) -> Result<(String, String), Fault> {
    let (mut key, mut value) = (String::new(), String::new());
    thrift.structure(&mut |thrift, id, wire| {
        match (id, wire) {
            (1, Wire::Binary) => key = thrift.text()?,
            (2, Wire::Binary) => value = thrift.text()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok((key, value))
}
