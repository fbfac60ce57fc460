//! From what calls of exchanges take a rank's host to the constants of a cluster's hosts.

use std::fmt::Write;

use runs::report;
use trainer::bench::calls::{Call, Called};
use workloads::cluster::{Constant, Host};
use workloads::{Cluster, Seconds};

use super::{line, write};

/// Sets what exchanges take hosts: the slowest process, for which all others wait, but for counts that are read, and half the range as uncertainty. A part is the slope of the line of transfers
/// over their parts, and no more than what an all-to-all takes for each of its own, so that this most frequent call takes what was measured; a
/// call is an all-to-all without its parts.
pub fn apply(cluster: &mut Cluster, calls: &[Call], source: &str) {
    let of_process = |[value, uncertainty]: [f64; 2], what: &str, process: &str| Constant {
        value: write::rounded(value.max(0.0)),
        uncertainty: Some(write::rounded(uncertainty)),
        peak: None,
        source: format!(
            "{source}: host time, median of the trainer's own calls, {what}; the {process} process, and half the range over all"
        ),
    };
    let constant = |found, what: &str| of_process(found, what, "slowest");
    let Host { exchange, part, arrival, counts, reading, .. } = &mut cluster.host;
    let transfers: Vec<&Call> = calls.iter().filter(|call| call.called == Called::Transfer).collect();
    let points = transfers.iter().map(|call| (call.parts as f64, slowest(&call.issued)[0]));
    let Some(of_part) = line::fit(&points.collect::<Vec<_>>()) else { return };
    let exchanges = calls.iter().filter(|call| call.called == Called::Exchange && call.parts > 0);
    let unit = exchanges.map(|call| slowest(&call.issued)[0] / call.parts as f64).fold(of_part.unit, f64::min);
    let error = of_part.unit * of_part.error.unwrap_or(0.0);
    *part = Some(constant([unit, error], "line of transfers over their parts, whose largest distance instead"));
    for call in calls {
        let issued = slowest(&call.issued);
        match call.called {
            Called::Transfer => {}
            Called::Counts => {
                *counts = Some(constant(issued, "all-gather of counts"));
                // The rank that asks last waits least.
                let [slowest, half] = slowest(&call.arrived);
                let what = "counts read behind their all-gather";
                *reading = Some(of_process([slowest - 2.0 * half, half], what, "fastest"));
            }
            Called::Exchange => {
                let parts = unit * call.parts as f64;
                let what = format!("all-to-all less {} parts", call.parts);
                *exchange = Some(constant([issued[0] - parts, issued[1]], &what));
                *arrival = Some(constant(slowest(&call.arrived), "wait for an all-to-all, which is the GPU's"));
            }
        }
    }
}

/// Of the slowest, and half the range.
fn slowest(times: &[Seconds]) -> [f64; 2] {
    let all = || times.iter().map(|time| time.0);
    let (least, most) = (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
    [most, (most - least) / 2.0]
}

/// Every call.
pub fn table(calls: &[Call]) -> comfy_table::Table {
    let heads = ["host calls", "parts", "until issued us, slowest", "wait us, slowest", "until issued us, fastest"];
    let mut table = report::table(&heads, &[1, 2, 3, 4]);
    for call in calls {
        let us = |time: f64| format!("{:.1}", time * 1e6);
        let ([issued, half], [arrived, _]) = (slowest(&call.issued), slowest(&call.arrived));
        let name = call.called.name().to_owned();
        table.add_row([name, call.parts.to_string(), us(issued), us(arrived), us(issued - 2.0 * half)]);
    }
    table
}

/// A line for every call and process.
pub fn csv(calls: &[Call]) -> String {
    let mut text = "call,parts,process,issued_us,wait_us\n".to_owned();
    for call in calls {
        for (process, (issued, arrived)) in call.issued.iter().zip(&call.arrived).enumerate() {
            let (name, parts, [issued, arrived]) =
                (call.called.name(), call.parts, [issued, arrived].map(|t| t.0 * 1e6));
            let _ = writeln!(text, "{name},{parts},{process},{issued:.2},{arrived:.2}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 12 us a transfer and 9 us a part; an all-to-all of two parts in 30 us on one process and 34 us on the other.
    #[test]
    fn hosts_take_what_calls_take() {
        let call = |called, parts, issued: [f64; 2], arrived| Call {
            called,
            parts,
            issued: issued.map(|time| Seconds(time * 1e-6)).to_vec(),
            arrived: vec![Seconds(arrived); 2],
        };
        let transfer = |parts: usize| call(Called::Transfer, parts, [12.0 + 9.0 * parts as f64; 2], 0.0);
        let mut calls = [4, 8, 16, 32].map(transfer).to_vec();
        let counts = call(Called::Counts, 0, [50.0, 60.0], 7e-6);
        let counts = Call { arrived: [17e-6, 7e-6].map(Seconds).to_vec(), ..counts };
        calls.extend([call(Called::Exchange, 2, [30.0, 34.0], 8e-6), counts]);
        let mut cluster = Cluster::named("test", "inky").unwrap();
        apply(&mut cluster, &calls, "measured on a test: 2 processes");
        let Host { exchange, part, arrival, counts, reading, .. } = &cluster.host;
        let value = |constant: &Option<Constant>| constant.as_ref().unwrap().value;
        assert_eq!([exchange, part, arrival, counts, reading].map(value), [1.6e-5, 9e-6, 8e-6, 6e-5, 7e-6]);
        assert_eq!(counts.as_ref().unwrap().uncertainty, Some(5e-6));
        assert!(exchange.as_ref().unwrap().source.contains("2 processes: host time"), "{exchange:?}");
        assert!(csv(&calls).contains("all-to-all,2,1,34.00,8.00\n"), "{}", csv(&calls));
        // An all-to-all whose parts take less than those of transfers takes what it takes all the same.
        calls.retain(|call| call.called == Called::Transfer);
        calls.push(call(Called::Exchange, 14, [70.0, 70.0], 8e-6));
        apply(&mut cluster, &calls, "measured on a test: 8 processes");
        assert_eq!([&cluster.host.exchange, &cluster.host.part].map(value), [0.0, 5e-6]);
    }
}
