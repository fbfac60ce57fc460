//! How systems look, in figures and on the page of runs, whatever else is beside them: a colour for each paper's system, and its
//! variants in the same colour with another hatch, dash and marker. There are fewer colours than papers, so later papers share
//! them, again with other hatches. No two systems of this program look the same; of others it is said where they do.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use chart::{LOOKS, Look};

/// Colours before they begin again, in the order in which papers take them: the first eight looks have a colour each.
const ORDER: [usize; 8] = [0, 1, 3, 4, 5, 6, 7, 2];

/// A system's name in figures.
pub fn title(name: &str) -> String {
    systems::by_name(name).map_or(name, |system| system.title()).to_owned()
}

/// The look of a system; of one that this program does not know, one that follows from its name alone.
pub fn of(system: &str) -> Look {
    chart::look(ink(system))
}

/// The number of a system's look, as charts know it.
pub fn ink(system: &str) -> usize {
    static KNOWN: LazyLock<BTreeMap<&'static str, usize>> =
        LazyLock::new(|| assigned(systems::ALL.iter().map(|system| system.name())));
    let hash =
        || system.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte))) % LOOKS;
    KNOWN.get(system).copied().unwrap_or_else(hash)
}

/// Which of these systems look the same, for a caption; none where all differ.
pub fn alike<'s>(systems: impl IntoIterator<Item = &'s str>) -> Option<String> {
    let titles = |same: &Vec<&str>| same.iter().map(|name| title(name)).collect::<Vec<_>>().join(" and ");
    let mut by_ink: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for system in systems {
        let same = by_ink.entry(ink(system)).or_default();
        if !same.contains(&system) {
            same.push(system);
        }
    }
    let same: Vec<String> = by_ink.into_values().filter(|same| same.len() > 1).map(|same| titles(&same)).collect();
    (!same.is_empty()).then(|| format!("{} look the same", same.join("; ")))
}

/// In order, each system the next look in its paper's colour that is free; any free one where none is; after the last, they
/// begin again.
fn assigned<'s>(names: impl IntoIterator<Item = &'s str>) -> BTreeMap<&'s str, usize> {
    let (mut papers, mut taken, mut looks) = (Vec::<&str>::new(), [false; LOOKS], BTreeMap::new());
    for name in names {
        let known = papers.iter().position(|paper| is_variant(name, paper));
        let paper = known.unwrap_or(papers.len());
        if known.is_none() {
            papers.push(name);
        }
        let own = (0..LOOKS / ORDER.len()).map(|turn| ORDER[paper % ORDER.len()] + turn * ORDER.len());
        let free = own.chain(0..LOOKS).find(|look| !taken[*look]).unwrap_or(looks.len() % LOOKS);
        taken[free] = true;
        looks.insert(name, free);
    }
    looks
}

/// Whether a system is a variant of another: `smartmoe-offline` of `smartmoe`.
fn is_variant(name: &str, of: &str) -> bool {
    name.strip_prefix(of).is_some_and(|rest| rest.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_systems_look_the_same() {
        let all = || systems::ALL.iter().map(|system| system.name());
        assert_eq!(alike(all()), None);
        // Variants have the colour of their paper while hatches last.
        for name in all() {
            let paper = all().find(|paper| is_variant(name, paper)).unwrap_or(name);
            assert_eq!(of(name).color, of(paper).color, "{name} and {paper}");
        }
        let papers = ["expert-only", "fastermoe", "deepspeed", "tutel", "alpa", "megatron", "fsdp-ep", "smartmoe"];
        let colors: std::collections::BTreeSet<_> = papers.map(|name| of(name).color).into_iter().collect();
        assert_eq!(colors.len(), 8);
    }

    #[test]
    fn looks_are_given_out_once_and_what_repeats_is_said() {
        let names: Vec<String> = (0..LOOKS + 1).map(|number| format!("paper{number}")).collect();
        let looks = assigned(names.iter().map(String::as_str));
        let different: std::collections::BTreeSet<_> = looks.values().collect();
        assert_eq!(different.len(), LOOKS);
        let mut by_ink: BTreeMap<usize, Vec<&String>> = BTreeMap::new();
        names.iter().for_each(|name| by_ink.entry(ink(name)).or_default().push(name));
        let same = by_ink.values().find(|same| same.len() > 1).unwrap();
        let said = alike(same.iter().map(|name| name.as_str())).unwrap();
        assert!(said.starts_with(&format!("{} and {}", same[0], same[1])) && said.ends_with("look the same"), "{said}");
        // By the names that figures have for them.
        let other = (0..).map(|number| format!("paper{number}")).find(|name| ink(name) == ink("smartmoe")).unwrap();
        assert_eq!(alike(["smartmoe", &other]), Some(format!("SmartMoE and {other} look the same")));
        assert_eq!(of("<script>"), of("<script>"));
    }
}
