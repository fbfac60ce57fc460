//! What is inside of gz, xz and zip.
//!
//! Zip is read by its central directory, members stored or deflated: what NPZ files and common archivers hold. Encrypted
//! members, other methods and archives past 4 GiB are refused by name. Every stream ends with an error once it has grown to
//! [`LEAST_LIMIT`] bytes and to [`MOST_RATIO`] times its source, so that a small file cannot fill the memory.

use std::io::{self, BufRead, Read};
use std::ops::Range;

use flate2::Crc;
use flate2::bufread::{DeflateDecoder, MultiGzDecoder};
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};

use super::ImportError;

/// Growth above this needs a source of some size.
const LEAST_LIMIT: u64 = 1 << 26;
/// Memory that an xz may ask for to be unpacked; the strongest usual setting takes a quarter.
const MOST_DICTIONARY: u64 = 1 << 28;
/// No recorded loads are packed more densely.
const MOST_RATIO: u64 = 256;

/// The content of gz, of one member or several.
pub(super) fn gunzip(input: impl BufRead) -> impl Read {
    Bounded::new(input, MultiGzDecoder::new)
}

/// The content of xz, of one stream or several.
pub(super) fn unxz(input: impl BufRead) -> io::Result<impl Read> {
    let stream = Stream::new_stream_decoder(MOST_DICTIONARY, CONCATENATED)?;
    Ok(Bounded::new(input, |input| XzDecoder::new_stream(input, stream)))
}

/// Counts what is taken from a source.
struct Counted<R> {
    input: R,
    taken: std::rc::Rc<std::cell::Cell<u64>>,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(out)?;
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.input.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.taken.set(self.taken.get() + count as u64);
        self.input.consume(count);
    }
}

/// A decoder that may not give much more than it takes.
struct Bounded<D> {
    decoder: D,
    taken: std::rc::Rc<std::cell::Cell<u64>>,
    given: u64,
}

impl<D: Read> Bounded<D> {
    fn new<R: BufRead>(input: R, decoder: impl FnOnce(Counted<R>) -> D) -> Self {
        let taken = std::rc::Rc::new(std::cell::Cell::new(0));
        Self { decoder: decoder(Counted { input, taken: taken.clone() }), taken, given: 0 }
    }
}

impl<D: Read> Read for Bounded<D> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.decoder.read(out)?;
        self.given += count as u64;
        if self.given > LEAST_LIMIT.max(self.taken.get().saturating_mul(MOST_RATIO)) {
            let message = format!("unpacks to more than {MOST_RATIO} times its size");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(count)
    }
}

/// A file in a zip.
pub(super) struct Member {
    pub(super) name: String,
    data: Range<usize>,
    deflated: bool,
    crc: u32,
}

impl Member {
    /// Its content, checked at the end; `archive` is what [`members`] was given.
    pub(super) fn open<'a>(&self, archive: &'a [u8]) -> Box<dyn Read + 'a> {
        let data = &archive[self.data.clone()];
        let content: Box<dyn Read> =
            if self.deflated { Box::new(Bounded::new(data, DeflateDecoder::new)) } else { Box::new(data) };
        Box::new(Checked { content, crc: Crc::new(), expected: self.crc })
    }
}

/// A stream that must end with the checksum that the directory states.
struct Checked<'a> {
    content: Box<dyn Read + 'a>,
    crc: Crc,
    expected: u32,
}

impl Read for Checked<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.content.read(out)?;
        self.crc.update(&out[..count]);
        if count == 0 && !out.is_empty() && self.crc.sum() != self.expected {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "wrong checksum: the archive is damaged"));
        }
        Ok(count)
    }
}

/// The files of a zip, in the order of its directory.
pub(super) fn members(path: &str, archive: &[u8]) -> Result<Vec<Member>, ImportError> {
    let refuse = |found: &str| ImportError::file(path, found, "a whole zip of stored or deflated files");
    let cut = || refuse("a zip that is cut off");
    let end = end_of_directory(archive).ok_or_else(cut)?;
    let count = u16_at(archive, end + 10).ok_or_else(cut)?;
    let start = u32_at(archive, end + 16).ok_or_else(cut)?;
    if start == u32::MAX as usize || count == usize::from(u16::MAX) {
        return Err(refuse("a zip past 4 GiB or 65534 files"));
    }
    let mut at = start;
    let mut members = Vec::new();
    for _ in 0..count {
        let (member, next) = Member::of_entry(archive, at).map_err(|found| refuse(&found))?;
        members.extend(member);
        at = next;
    }
    Ok(members)
}

impl Member {
    /// One entry of the central directory (none of a folder), and where the next one begins.
    fn of_entry(archive: &[u8], at: usize) -> Result<(Option<Self>, usize), String> {
        let cut = || "a zip that is cut off".to_owned();
        let short = |offset: usize| u16_at(archive, at + offset).ok_or_else(cut);
        let long = |offset: usize| u32_at(archive, at + offset).ok_or_else(cut);
        if archive.get(at..at + 4) != Some(b"PK\x01\x02") {
            return Err(cut());
        }
        let (flags, method, size) = (short(8)?, short(10)?, long(20)?);
        let (name, extra, comment) = (short(28)?, short(30)?, short(32)?);
        let next = at + 46 + name + extra + comment;
        let name = archive.get(at + 46..at + 46 + name).ok_or_else(cut)?;
        let name = String::from_utf8_lossy(name).into_owned();
        if name.ends_with('/') || name.starts_with("__MACOSX/") {
            return Ok((None, next));
        }
        if flags & 1 == 1 || !matches!(method, 0 | 8) {
            return Err(format!("{name}, encrypted or packed by method {method}"));
        }
        // The local header repeats the name and has extra fields of its own.
        let local = long(42)?;
        let skip = |offset: usize| u16_at(archive, local.checked_add(offset)?);
        let skipped = skip(26).zip(skip(28)).map(|(name, extra)| local + 30 + name + extra);
        let start = skipped.filter(|_| archive.get(local..local + 4) == Some(b"PK\x03\x04")).ok_or_else(cut)?;
        let data = start..start + size;
        if size == u32::MAX as usize || archive.get(data.clone()).is_none() {
            return Err(cut());
        }
        Ok((Some(Self { name, data, deflated: method == 8, crc: long(16)? as u32 }), next))
    }
}

/// Where the end record begins: the last one, as a comment may follow it.
fn end_of_directory(archive: &[u8]) -> Option<usize> {
    let last = archive.len().checked_sub(22)?;
    (last.saturating_sub(usize::from(u16::MAX))..=last).rev().find(|&at| archive[at..].starts_with(b"PK\x05\x06"))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(usize::from(u16::from_le_bytes(bytes.try_into().ok()?)))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
}
