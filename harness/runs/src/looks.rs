//! How systems look on the page of runs, whatever else is on it: a colour for each paper's system, and its variants in the same
//! colour with another hatch. There are fewer looks than systems. The first eight papers' systems and three variants of each
//! differ; after them colours and hatches begin again, so that two systems of a page may look the same. The page names both.

use chart::Look;

/// Colours before they begin again, in the order in which systems take them.
const ORDER: [usize; 8] = [0, 1, 3, 4, 5, 6, 7, 2];

/// The look of a system; of one that this program does not know, one that follows from its name alone.
pub fn of(system: &str) -> Look {
    let (family, variant) = place(system).unwrap_or_else(|| {
        let sum = system.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)));
        (sum % ORDER.len(), sum / ORDER.len() % 4)
    });
    let Look { color, hatch } = chart::look(ORDER[family % ORDER.len()]);
    // Systems beyond the last colour, and variants, take the next hatches.
    Look { color, hatch: hatch.next(family / ORDER.len() + variant) }
}

/// Which family a system belongs to, and which of its variants it is, from 0.
fn place(system: &str) -> Option<(usize, usize)> {
    let mut families: Vec<(&str, usize)> = Vec::new();
    for name in systems::ALL.iter().map(|system| system.name()) {
        let of = families
            .iter()
            .position(|(family, _)| name.strip_prefix(*family).is_some_and(|rest| rest.starts_with('-')));
        let family = of.unwrap_or_else(|| {
            families.push((name, 0));
            families.len() - 1
        });
        if name == system {
            return Some((family, families[family].1));
        }
        families[family].1 += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systems_of_one_family_differ_in_hatches_alone() {
        let first = systems::ALL[0].name();
        assert_eq!(place(first), Some((0, 0)));
        for system in systems::ALL {
            let (family, variant) = place(system.name()).unwrap();
            assert!(variant == 0 || system.name().contains('-'), "{}", system.name());
            assert_eq!(of(system.name()).color, chart::look(ORDER[family % ORDER.len()]).color);
        }
        // The first eight families have eight colours.
        let firsts = systems::ALL
            .iter()
            .filter(|system| place(system.name()).is_some_and(|(family, variant)| family < 8 && variant == 0));
        let colors: std::collections::BTreeSet<_> = firsts.map(|system| of(system.name()).color).collect();
        assert_eq!(colors.len(), 8);
        let differ = systems::ALL.iter().map(|system| system.name());
        let differ = differ.filter(|name| place(name).is_some_and(|(family, variant)| family < 8 && variant < 4));
        let differ: Vec<Look> = differ.map(of).collect();
        for (index, look) in differ.iter().enumerate() {
            assert!(!differ[..index].contains(look), "{look:?} twice");
        }
        assert_eq!(of("<script>"), of("<script>"));
    }
}
