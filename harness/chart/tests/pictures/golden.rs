//! One picture of each kind of chart, byte for byte as `tests/pictures/golden/NAME.svg`. After a change that is meant to show,
//! `UPDATE_GOLDEN=1 cargo test -p chart` writes them anew; look at them before committing.

use std::error::Error;
use std::fs;
use std::path::Path;

use chart::Figure;

use crate::samples;

fn check(name: &str, figure: Figure) -> Result<(), Box<dyn Error>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pictures/golden").join(name).with_extension("svg");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        return Ok(fs::write(path, figure.svg)?);
    }
    let expected = fs::read_to_string(&path)?;
    let different = expected.lines().zip(figure.svg.lines()).enumerate().find(|(_, (old, new))| old != new);
    assert_eq!(different, None, "the first line of {name} that differs, counted from 0: (old, new)");
    assert_eq!(expected.len(), figure.svg.len(), "{name} has more or fewer lines");
    Ok(())
}

#[test]
fn grouped_bars() -> Result<(), Box<dyn Error>> {
    check("grouped_bars", samples::grouped_bars().draw()?)
}

#[test]
fn stacked_bars() -> Result<(), Box<dyn Error>> {
    check("stacked_bars", samples::stacked_bars().draw()?)
}

#[test]
fn stacked_shares() -> Result<(), Box<dyn Error>> {
    check("stacked_shares", samples::stacked_shares().draw()?)
}

#[test]
fn lines() -> Result<(), Box<dyn Error>> {
    check("lines", samples::lines().draw()?)
}

#[test]
fn lines_log() -> Result<(), Box<dyn Error>> {
    check("lines_log", samples::lines_log().draw()?)
}

#[test]
fn map() -> Result<(), Box<dyn Error>> {
    check("map", samples::map().draw()?)
}

#[test]
fn scatter() -> Result<(), Box<dyn Error>> {
    check("scatter", samples::scatter().draw()?)
}

#[test]
fn scatter_log() -> Result<(), Box<dyn Error>> {
    check("scatter_log", samples::scatter_log().draw()?)
}
