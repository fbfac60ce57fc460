//! A file of token ids.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::{DataError, Entropy, Purpose, Samples, stream};

/// How a file stores ids, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Two bytes each.
    Uint16,
    /// Four bytes each.
    Int32,
}

impl TokenKind {
    /// By its name in numpy: `uint16` or `int32`.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Uint16, Self::Int32].into_iter().find(|kind| kind.to_string() == name)
    }

    const fn bytes(self) -> usize {
        match self {
            Self::Uint16 => 2,
            Self::Int32 => 4,
        }
    }
}

impl std::fmt::Display for TokenKind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Uint16 => "uint16",
            Self::Int32 => "int32",
        })
    }
}

/// A file of token ids, one after the other without a header, mapped into memory.
#[derive(Debug)]
pub struct TokenFile {
    map: Mmap,
    kind: TokenKind,
    vocabulary: usize,
    sequence: usize,
    seed: u64,
}

impl TokenFile {
    /// Opens the file and checks every id. Samples of `sequence + 1` tokens begin at random places.
    ///
    /// # Errors
    /// What is wrong with the file, where.
    pub fn open(
        path: &Path,
        kind: TokenKind,
        vocabulary: usize,
        sequence: usize,
        seed: u64,
    ) -> Result<Self, DataError> {
        let io = |source| DataError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len() as usize;
        if !bytes.is_multiple_of(kind.bytes()) {
            return Err(DataError::Size { path: path.to_owned(), bytes, kind });
        }
        let (tokens, needed) = (bytes / kind.bytes(), sequence + 1);
        if tokens < needed {
            return Err(DataError::Short { path: path.to_owned(), tokens, needed });
        }
        // SAFETY: the file is only read. Someone who cuts it during the run ends the run, as with any mapped file.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let file = Self { map, kind, vocabulary, sequence, seed };
        if let Some((position, id)) = (0..tokens).map(|at| (at, file.id(at))).find(|(_, id)| !file.allows(*id)) {
            let last = vocabulary.saturating_sub(1);
            return Err(DataError::Id { path: path.to_owned(), position, id, last, kind });
        }
        match file.upper_halves() {
            Some(most) => {
                let advice = match kind {
                    TokenKind::Uint16 => "is it --data-type int32?",
                    TokenKind::Int32 => "int64 is not read",
                };
                Err(DataError::Wider { path: path.to_owned(), kind, looked_at: file.looked_at(), most, advice })
            }
            None => Ok(file),
        }
    }

    /// The largest of the ids at even or at odd positions, where these look like the upper halves of ids twice as wide: all
    /// almost 0, and the others not.
    fn upper_halves(&self) -> Option<i64> {
        let mut most = [0, 0];
        (0..self.looked_at()).for_each(|at| most[at % 2] = self.id(at).max(most[at % 2]));
        let [least, other] = [most[0].min(most[1]), most[0].max(most[1])];
        // Vocabularies of up to 2^20 words have upper halves of up to 15.
        let looks_so = self.tokens() >= 16 && (least == 0 && other > 0 || least < 16 && other >= 1024);
        looks_so.then_some(least)
    }

    /// How many ids say what kind of file it is.
    fn looked_at(&self) -> usize {
        self.tokens().min(1 << 20)
    }

    /// Tokens in the file.
    pub fn tokens(&self) -> usize {
        self.map.len() / self.kind.bytes()
    }

    fn allows(&self, id: i64) -> bool {
        usize::try_from(id).is_ok_and(|id| id < self.vocabulary)
    }

    fn id(&self, position: usize) -> i64 {
        let bytes = &self.map[position * self.kind.bytes()..];
        match self.kind {
            TokenKind::Uint16 => i64::from(u16::from_le_bytes([bytes[0], bytes[1]])),
            TokenKind::Int32 => i64::from(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
        }
    }
}

impl Samples for TokenFile {
    fn sample(&self, iteration: usize, index: usize) -> Vec<i64> {
        let starts = (self.tokens() - self.sequence) as u64;
        let start = below(starts, &mut stream(self.seed, Purpose::Sample, iteration, index)) as usize;
        (start..=start + self.sequence).map(|position| self.id(position)).collect()
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn entropy(&self) -> Option<Entropy> {
        None
    }
}

/// A whole number below `bound`, by the upper half of a product: for any bound that occurs, as good as even.
fn below(bound: u64, rng: &mut ChaCha8Rng) -> u64 {
    ((u128::from(rng.next_u64()) * u128::from(bound)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn file(name: &str, bytes: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("moebench-data-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn files_of_both_kinds_are_read() {
        let ids: Vec<u16> = (0..1000).map(|at| at * 7 % 500).collect();
        let narrow = file("narrow", &ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>());
        let wide = file("wide", &ids.iter().flat_map(|id| i32::from(*id).to_le_bytes()).collect::<Vec<_>>());
        let narrow = TokenFile::open(&narrow, TokenKind::Uint16, 500, 20, 1).unwrap();
        let wide = TokenFile::open(&wide, TokenKind::Int32, 500, 20, 1).unwrap();
        assert_eq!((narrow.tokens(), wide.tokens()), (1000, 1000));
        let mut starts = std::collections::HashSet::new();
        for index in 0..200 {
            let sample = narrow.sample(1, index);
            assert_eq!(sample, wide.sample(1, index));
            assert_eq!(sample.len(), 21);
            assert!(sample.windows(2).all(|pair| pair[1] == (pair[0] + 7) % 500));
            starts.insert(sample[0]);
        }
        assert!(starts.len() > 100, "{}", starts.len());
        assert_ne!(narrow.sample(1, 0), narrow.sample(2, 0));
        // As many tokens as one sample needs: there is one place to begin.
        let exact = file("exact", &[1, 0, 2, 0, 3, 0]);
        assert_eq!(TokenFile::open(&exact, TokenKind::Uint16, 4, 2, 1).unwrap().sample(5, 5), [1, 2, 3]);
    }

    #[test]
    fn files_that_do_not_fit_are_refused_with_the_place() {
        let check = |name: &str, bytes: &[u8], kind, expected: &str| {
            let path = file(name, bytes);
            let error = TokenFile::open(&path, kind, 100, 2, 1).unwrap_err().to_string();
            assert!(error.starts_with(&path.display().to_string()) && error.contains(expected), "{error}");
        };
        let past = [99u16, 5, 100, 7].map(u16::to_le_bytes).concat();
        check("past", &past, TokenKind::Uint16, "token 2 (counted from 0) is 100: expected 0 to 99");
        let negative = [99i32, 5, 7, -1].map(i32::to_le_bytes).concat();
        check("negative", &negative, TokenKind::Int32, "token 3 (counted from 0) is -1: expected 0 to 99");
        check("odd", &[1, 2, 3], TokenKind::Uint16, "3 bytes are no whole number of uint16 ids");
        let wider: Vec<u8> = (0..40).flat_map(|id: i32| id.to_le_bytes()).collect();
        check("wider", &wider, TokenKind::Uint16, "every second of its first 80 uint16 ids is 0 or less");
        let wider: Vec<u8> = (0..40).flat_map(|id: i64| id.to_be_bytes()).collect();
        check("widest", &wider, TokenKind::Int32, "the file does not hold int32 ids");
        let wider: Vec<u8> = (0..40).flat_map(|id: i64| id.to_le_bytes()).collect();
        check("widest", &wider, TokenKind::Int32, "every second of its first 80 int32 ids is 0 or less");
        let long: Vec<u8> = (0..1 << 20).flat_map(|id: i32| (id % 64).to_le_bytes()).collect();
        check("long", &long, TokenKind::Uint16, "every second of its first 1048576 uint16 ids is 0 or less");
        check("short", &[1, 0, 2, 0], TokenKind::Uint16, "2 tokens: expected at least 3");
        check("empty", &[], TokenKind::Int32, "0 tokens: expected at least 3");
        let error = TokenFile::open(Path::new("/no/such/file"), TokenKind::Int32, 1, 1, 1).unwrap_err().to_string();
        assert!(error.starts_with("/no/such/file: "), "{error}");
        assert_eq!(TokenKind::named("uint16"), Some(TokenKind::Uint16));
        assert_eq!(TokenKind::named("int64"), None);
    }
}
