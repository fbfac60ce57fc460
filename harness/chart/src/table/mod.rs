//! Tables of a paper: rows of words under a header, cut into parts that keep within a column or a page. Widths are those of
//! the letters that the table will be set in, so that nothing has to be scaled and nothing runs over.

mod latex;
mod letters;
mod markdown;
mod text;

use crate::Width;

/// Rows of words under a header.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PaperTable {
    /// What the columns hold; the first names the rows.
    pub header: Vec<String>,
    pub groups: Vec<RowGroup>,
}

/// Rows that belong together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowGroup {
    /// Printed across all columns; nothing where it is empty.
    pub heading: String,
    /// `[row][column]`; a line feed begins a new line in a cell.
    pub rows: Vec<Vec<String>>,
}

/// What a part of a table must keep within.
pub struct Room {
    width: f64,
    /// Of all its rows, the header's included.
    lines: usize,
    /// Between two columns.
    gap: f64,
    letter: fn(char) -> f64,
    /// Whether cells may have several lines, and headings stand across columns.
    breaks: bool,
}

impl Room {
    /// In points, for [`PaperTable::latex`] beside a caption of so many letters: widths and the height of a page are those
    /// that figures keep to.
    pub fn latex(width: Width, caption: usize) -> Self {
        let lines = latex::lines(width, caption);
        Self { width: latex::points(width), lines, gap: latex::GAP, letter: letters::width, breaks: true }
    }

    /// In characters, for [`PaperTable::markdown`]: 80 a line or 160.
    pub fn markdown(width: Width) -> Self {
        let characters = match width {
            Width::Column => 80.0,
            Width::Page => 160.0,
        };
        // The strokes at both ends of a line.
        Self { width: characters - 4.0, lines: usize::MAX, gap: 3.0, letter: |_| 1.0, breaks: false }
    }

    /// In characters a line, for [`PaperTable::text`], which indents rows below their headings.
    pub fn text(characters: usize) -> Self {
        let width = characters.saturating_sub(2).max(1) as f64;
        Self { width, lines: usize::MAX, gap: 2.0, letter: |_| 1.0, breaks: true }
    }

    /// Of the widest line.
    fn of(&self, text: &str) -> f64 {
        text.lines().map(|line| line.chars().map(self.letter).sum()).fold(0.0, f64::max)
    }
}

impl PaperTable {
    /// The same without columns that are empty, whatever their names say, and without groups that are then.
    #[must_use]
    pub fn without_empty(mut self) -> Self {
        self.groups.retain(|group| group.rows.iter().any(|row| row.iter().skip(1).any(|cell| !cell.is_empty())));
        let holds = |at: &usize| *at == 0 || self.column(*at).any(|cell| !cell.is_empty());
        let kept: Vec<usize> = (0..self.header.len()).filter(holds).collect();
        self.of_columns(&kept)
    }

    /// Whether a column begins at its left: the first, and those of words alone.
    fn is_words(&self, at: usize) -> bool {
        at == 0 || self.column(at).all(|cell| cell.is_empty() || cell.starts_with(char::is_alphabetic))
    }

    /// The same with brackets below what they follow.
    #[must_use]
    pub fn stacked(&self) -> Self {
        let mut table = self.clone();
        let cells = table.groups.iter_mut().flat_map(|group| &mut group.rows).flat_map(|row| row.iter_mut().skip(1));
        cells.for_each(|cell| *cell = cell.replace(" [", "\n["));
        table
    }

    /// In as few parts as hold it, each of which names its rows. A part has one column beside the first at the least, so that
    /// without [`Room::breaks`] long words can make it wider than the room.
    pub fn fitted(&self, room: &Room) -> Vec<Self> {
        let whole = if room.breaks { self.wrapped(room) } else { self.clone() };
        whole.column_parts(room).iter().flat_map(|part| whole.of_columns(part).pages(room)).collect()
    }

    /// As wide as the widest line of its cells needs.
    fn column_width(&self, at: usize, room: &Room) -> f64 {
        let headings = self.groups.iter().map(|group| group.heading.as_str()).filter(|_| at == 0 && !room.breaks);
        headings.chain(self.column(at)).map(|cell| room.of(cell)).fold(room.of(&self.header[at]), f64::max)
    }

    /// The cells of a column, without its name.
    fn column(&self, at: usize) -> impl Iterator<Item = &str> {
        self.groups.iter().flat_map(|group| &group.rows).map(move |row| row[at].as_str())
    }

    fn of_columns(&self, columns: &[usize]) -> Self {
        let pick = |row: &Vec<String>| columns.iter().map(|at| row[*at].clone()).collect::<Vec<_>>();
        let group =
            |group: &RowGroup| RowGroup { heading: group.heading.clone(), rows: group.rows.iter().map(pick).collect() };
        Self { header: pick(&self.header), groups: self.groups.iter().map(group).collect() }
    }

    /// No cell is wider than half of the room, so that one always fits beside its row's name; a column's name is no wider than
    /// eight digits or what stands below it, where its words allow that.
    fn wrapped(&self, room: &Room) -> Self {
        let most = (room.width - room.gap) / 2.0;
        let cells = |row: &Vec<String>| row.iter().map(|cell| wrapped(cell, most, room)).collect();
        let group = |group: &RowGroup| RowGroup {
            heading: wrapped(&group.heading, room.width, room),
            rows: group.rows.iter().map(cells).collect(),
        };
        let mut table = Self { header: self.header.clone(), groups: self.groups.iter().map(group).collect() };
        for at in 0..table.header.len() {
            let words = table.header[at].split_whitespace().map(|word| room.of(word));
            let below = table.column(at).map(|cell| room.of(cell)).chain(words).fold(room.of("00000000"), f64::max);
            table.header[at] = wrapped(&table.header[at], below.min(most), room);
        }
        table
    }

    /// Columns of each part: the first, and as many of the others as there is room for.
    fn column_parts(&self, room: &Room) -> Vec<Vec<usize>> {
        let first = self.column_width(0, room);
        let (mut parts, mut taken) = (vec![vec![0]], first);
        for column in 1..self.header.len() {
            let width = room.gap + self.column_width(column, room);
            if taken + width > room.width && parts.last().is_some_and(|part| part.len() > 1) {
                parts.push(vec![0]);
                taken = first;
            }
            taken += width;
            parts.last_mut().expect("there is one from the start").push(column);
        }
        parts
    }

    /// Groups stay together where they are not higher than a page themselves.
    fn pages(self, room: &Room) -> Vec<Self> {
        let lines = room.lines.saturating_sub(lines_of(&self.header)).max(1);
        let mut pages: Vec<Vec<RowGroup>> = vec![Vec::new()];
        for group in self.groups.into_iter().flat_map(|group| group.pieces(lines)) {
            let page = pages.last_mut().expect("there is one from the start");
            let taken: usize = page.iter().map(RowGroup::lines).sum();
            if taken > 0 && taken + group.lines() > lines {
                pages.push(vec![group]);
            } else {
                page.push(group);
            }
        }
        pages.into_iter().map(|groups| Self { header: self.header.clone(), groups }).collect()
    }
}

impl RowGroup {
    /// With a heading's blank above it.
    fn lines(&self) -> usize {
        let heading = if self.heading.is_empty() { 0 } else { self.heading.lines().count() + 1 };
        heading + self.rows.iter().map(|row| lines_of(row)).sum::<usize>()
    }

    /// Itself, or its rows in pieces of at most `room` lines, each under its heading.
    fn pieces(self, room: usize) -> Vec<Self> {
        let mut pieces = vec![Self { heading: self.heading.clone(), rows: Vec::new() }];
        for row in self.rows {
            let piece = pieces.last_mut().expect("there is one from the start");
            if !piece.rows.is_empty() && piece.lines() + lines_of(&row) > room {
                pieces.push(Self { heading: self.heading.clone(), rows: vec![row] });
            } else {
                piece.rows.push(row);
            }
        }
        pieces
    }
}

/// Lines of the highest cell of a row.
fn lines_of(row: &[String]) -> usize {
    row.iter().map(|cell| cell.lines().count()).max().unwrap_or(0).max(1)
}

/// Each line's words in lines of at most `most`; a longer word goes on in the next line.
fn wrapped(text: &str, most: f64, room: &Room) -> String {
    let mut lines: Vec<String> = Vec::new();
    for own in text.lines() {
        let first = lines.len();
        for word in own.split_whitespace().flat_map(|word| pieces(word, most, room)) {
            let longer = lines.get(first..).and_then(|own| own.last()).map(|line| format!("{line} {word}"));
            match (longer, lines.last_mut()) {
                (Some(longer), Some(line)) if room.of(&longer) <= most => *line = longer,
                _ => lines.push(word),
            }
        }
    }
    lines.join("\n")
}

/// A word in pieces of at most `most`, which end where a part of a name does, if one does.
fn pieces(word: &str, most: f64, room: &Room) -> Vec<String> {
    let mut pieces: Vec<String> = vec![String::new()];
    for part in word.split_inclusive(['-', '.', '/', '_']) {
        let piece = pieces.last_mut().expect("there is one from the start");
        if room.of(piece) + room.of(part) <= most {
            piece.push_str(part);
            continue;
        }
        pieces.push(String::new());
        for letter in part.chars() {
            let piece = pieces.last_mut().expect("there is one from the start");
            if room.of(piece) + (room.letter)(letter) > most {
                pieces.push(letter.into());
            } else {
                piece.push(letter);
            }
        }
    }
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    /// Words of all sorts, no letter of which is wider than the least room.
    fn words(random: &mut ChaCha8Rng) -> String {
        let letters: Vec<char> = "abimwWMXO019.-_% ±é[".chars().collect();
        let length = random.next_u32() % 60;
        (0..length).map(|_| letters[random.next_u32() as usize % letters.len()]).collect()
    }

    fn table(random: &mut ChaCha8Rng) -> PaperTable {
        let columns = 1 + random.next_u32() as usize % 12;
        let mut row = || (0..columns).map(|_| words(random)).collect::<Vec<_>>();
        let header = row();
        let mut group =
            |at: usize| RowGroup { heading: header[0].repeat(at), rows: (0..at * 17).map(|_| row()).collect() };
        let groups = (0..4).map(&mut group).collect();
        PaperTable { header, groups }
    }

    fn width(part: &PaperTable, room: &Room) -> f64 {
        let columns: f64 = (0..part.header.len()).map(|at| part.column_width(at, room)).sum();
        let headings = part.groups.iter().map(|group| room.of(&group.heading));
        headings.fold(columns + room.gap * part.header.len().saturating_sub(1) as f64, f64::max)
    }

    /// All letters of these columns, in any order: cells may be broken anywhere, and a row's lines stand side by side.
    fn letters(tables: &[PaperTable]) -> Vec<char> {
        let cells = tables.iter().flat_map(|table| (1..table.header.len()).flat_map(|at| table.column(at)));
        let mut all: Vec<char> = cells.flat_map(str::chars).filter(|letter| !letter.is_whitespace()).collect();
        all.sort_unstable();
        all
    }

    /// Whatever is in it, no part is wider or higher than its room, and no letter is lost.
    #[test]
    fn parts_keep_within_their_room_and_lose_nothing() {
        let mut random = ChaCha8Rng::seed_from_u64(5);
        for turn in 0..100 {
            let table = table(&mut random);
            let of = if turn % 2 == 0 { Width::Column } else { Width::Page };
            let room = Room::latex(of, random.next_u32() as usize % 1000);
            let parts = table.fitted(&room);
            for part in &parts {
                let wide = width(part, &room);
                assert!(wide <= room.width + 1e-6, "{wide} of {}: {part:?}", room.width);
                let high = lines_of(&part.header) + part.groups.iter().map(RowGroup::lines).sum::<usize>();
                let rows: usize = part.groups.iter().map(|group| group.rows.len()).sum();
                assert!(high <= room.lines || rows == 1, "{high} of {} lines: {part:?}", room.lines);
            }
            assert_eq!(letters(&parts), letters(std::slice::from_ref(&table)));
        }
    }

    fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
        cells.map(str::to_owned).to_vec()
    }

    #[test]
    fn rows_that_are_no_page_go_on_in_another_under_their_heading() {
        let group =
            |heading: &str, rows: usize| RowGroup { heading: heading.into(), rows: vec![row(["a", "1"]); rows] };
        let table = PaperTable { header: row(["a", "b"]), groups: vec![group("one", 30), group("two", 90)] };
        let room = Room::latex(Width::Column, 100);
        let parts = table.fitted(&room);
        let headings: Vec<&str> =
            parts.iter().flat_map(|part| &part.groups).map(|group| group.heading.as_str()).collect();
        assert_eq!(headings, ["one", "two", "two"]);
        assert_eq!(table.fitted(&Room::markdown(Width::Column)).len(), 1);
    }

    #[test]
    fn what_is_empty_is_left_out() {
        let rows = vec![row(["", "", "1"]), row(["b", "", ""])];
        let empty = RowGroup { heading: "nothing".into(), rows: vec![row(["c", "", ""])] };
        let groups = vec![RowGroup { heading: "some".into(), rows }, empty];
        let table = PaperTable { header: row(["name", "none", "one"]), groups }.without_empty();
        assert_eq!(table.header, ["name", "one"]);
        assert_eq!(table.groups.len(), 1);
    }

    #[test]
    fn brackets_go_below_what_they_follow() {
        let groups = vec![RowGroup { heading: String::new(), rows: vec![row(["a [b]", "1.5 [1, 2]"])] }];
        let table = PaperTable { header: row(["", "x"]), groups };
        assert_eq!(table.stacked().groups[0].rows[0], ["a [b]", "1.5\n[1, 2]"]);
    }
}
