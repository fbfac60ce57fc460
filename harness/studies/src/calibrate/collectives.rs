//! What collectives take over message sizes, and the lines over the bytes of the busiest port that a cluster's network constants are.

use std::fmt::Write;

use formats::nccl_tests::Collective;
use runs::report;
use workloads::Cluster;
use workloads::cluster::Constant;
use workloads::measured::Line;

use super::{line, write};

/// The line of a collective over the bytes of the busiest port; none without a size.
pub fn line_of(all: &[Collective], name: &str) -> Option<Line> {
    let points: Vec<(f64, f64)> = all.iter().filter(|of| of.name == name).map(|of| (of.moved, of.times[0])).collect();
    line::fit(&points)
}

/// Sets the constants of a network inside a node: bandwidth and start of a call by an all-to-all (or, without one, an all-reduce), start
/// of a send by sends.
pub fn apply(cluster: &mut Cluster, all: &[Collective], source: &str) {
    let own = |name: &str| line_of(all, name).map(|line| (name.to_owned(), line));
    let constant = |value: f64, name: &str, error: Option<f64>| Constant {
        value: write::rounded(value),
        uncertainty: error.map(|error| write::rounded(value * error)),
        peak: None,
        source: format!("{source}: line over the sizes of {name}, whose largest distance is the uncertainty"),
    };
    let network = &mut cluster.network;
    if let Some((name, Line { start, unit, error, .. })) = own("alltoall").or_else(|| own("all_reduce"))
        && unit > 0.0
    {
        let stated = network.intra_bandwidth.peak;
        let bandwidth = |rate: f64, name: &str, error| {
            let constant = constant(rate, name, error);
            Constant { peak: stated.filter(|&peak| peak >= constant.value), ..constant }
        };
        network.intra_bandwidth = bandwidth(1.0 / unit, &name, error);
        network.call_start = constant(start, &name, error);
        // Where one GPU receives most, little leaves it: its links carry more one way than each way at once, but no more than both ways together.
        let one_way = own("alltoallv skewed")
            .filter(|(_, line)| name == "alltoall" && line.unit > 0.0 && line.unit < 0.99 * unit);
        network.intra_both = one_way.as_ref().map(|_| constant(2.0 / unit, "alltoall, both ways", error));
        if let Some((name, one_way)) = one_way {
            network.intra_bandwidth = bandwidth(1.0 / one_way.unit.max(unit / 2.0), &name, one_way.error);
        }
    }
    if let Some((name, Line { start, error, .. })) = own("send").or_else(|| own("sendrecv")) {
        network.send_start = constant(start, &name, error);
    }
}

/// Every size of every collective, and its line.
pub fn table(all: &[Collective]) -> comfy_table::Table {
    let heads = ["collective", "ranks", "bytes", "time us", "algbw GB/s", "busbw GB/s", "line"];
    let mut table = report::table(&heads, &[1, 2, 3, 4, 5]);
    for (number, of) in all.iter().enumerate() {
        let first = number == 0 || all[number - 1].name != of.name;
        let line = line_of(all, &of.name).filter(|_| first);
        table.add_row([
            of.name.clone(),
            of.ranks.to_string(),
            format!("{:.0}", of.bytes),
            format!("{:.1}", of.times[0] * 1e6),
            format!("{:.2}", of.algorithm_bandwidth() / 1e9),
            format!("{:.2}", of.bus_bandwidth() / 1e9),
            line.map_or(String::new(), |line| {
                let error = line.error.unwrap_or(0.0) * 100.0;
                format!("{:.1} us + bytes / {:.1} GB/s, {error:.0}% at most", line.start * 1e6, 1e-9 / line.unit)
            }),
        ]);
    }
    table
}

/// Samples, a line each.
pub fn csv(all: &[Collective]) -> String {
    let mut text = "collective,ranks,bytes,median_us,least_us,most_us,algbw_gb_s,busbw_gb_s\n".to_owned();
    for of in all {
        let [median, least, most] = of.times.map(|time| time * 1e6);
        let (algorithm, bus) = (of.algorithm_bandwidth() / 1e9, of.bus_bandwidth() / 1e9);
        let Collective { name, ranks, bytes, .. } = of;
        let _ = writeln!(text, "{name},{ranks},{bytes},{median:.2},{least:.2},{most:.2},{algorithm:.3},{bus:.3}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two points are a line: 120 us for 24 MiB more.
    #[test]
    fn a_network_takes_the_line_of_its_collectives() {
        let of = |bytes: f64, time: f64| Collective {
            name: "all_reduce".to_owned(),
            ranks: 2,
            bytes,
            moved: bytes,
            times: [time; 3],
        };
        let found = [of(8_388_608.0, 60e-6), of(33_554_432.0, 180e-6)];
        let line = line_of(&found, "all_reduce").unwrap();
        assert!((line.start - 20e-6).abs() < 1e-9 && (1.0 / line.unit / 209.7e9 - 1.0).abs() < 1e-3, "{line:?}");
        let mut cluster = Cluster::named("test", "h100x8").unwrap();
        apply(&mut cluster, &found, "measured by nccl-tests");
        assert_eq!(cluster.network.call_start.value, 2e-5);
        assert_eq!(cluster.network.intra_bandwidth.value, 2.097e11);
        assert!(cluster.network.intra_bandwidth.source.contains("nccl-tests: line over the sizes of all_reduce"));
        assert_eq!(cluster.network.send_start, Cluster::named("test", "h100x8").unwrap().network.send_start);
        assert_eq!(cluster.network.intra_both, None);
    }

    /// 200 GB/s each way at once, 300 GB/s where one GPU only receives; of slower ones, all-to-alls say both.
    #[test]
    fn links_carry_more_one_way_than_each_way_at_once() {
        let of = |name: &str, moved: f64, rate: f64| Collective {
            name: name.to_owned(),
            ranks: 4,
            bytes: moved,
            moved,
            times: [1e-5 + moved / rate; 3],
        };
        for (one_way, expected) in [
            (3e11, (3e11, Some(4e11))),
            (1e11, (2e11, None)),
            (5e11, (4e11, Some(4e11))),
            (2.5e11, (2.5e11, Some(4e11))),
        ] {
            let both = |bytes: f64| [of("alltoall", bytes, 2e11), of("alltoallv skewed", bytes, one_way)];
            let mut cluster = Cluster::named("test", "h100x8").unwrap();
            // Between the two: of the faster, it is none.
            cluster.network.intra_bandwidth.peak = Some(2.2e11);
            apply(&mut cluster, &[both(1e6), both(1e8)].concat(), "measured");
            let network = &cluster.network;
            assert_eq!(network.intra_bandwidth.peak, (expected.0 <= 2.2e11).then_some(2.2e11));
            let found = (network.intra_bandwidth.value, network.intra_both.as_ref().map(|both| both.value));
            assert_eq!(found, expected);
            assert_eq!(network.call_start.value, 1e-5);
        }
    }
}
