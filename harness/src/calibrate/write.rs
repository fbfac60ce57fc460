//! A cluster as TOML, every constant with its value, uncertainty and source.

use workloads::Cluster;
use workloads::cluster::Constant;

use super::constants::Fitted;

/// Puts fitted values into a cluster, with where they come from. Constants of the gate are no part of it.
pub fn apply(cluster: &mut Cluster, fitted: &[Fitted], source: &str) {
    for (name, constant) in cluster.constants_mut() {
        if let Some(fitted) = fitted.iter().find(|fitted| fitted.name == name) {
            *constant = Constant {
                value: rounded(fitted.value),
                uncertainty: fitted.uncertainty.is_finite().then(|| rounded(fitted.uncertainty)),
                peak: constant.peak,
                source: match fitted.at_bound {
                    true => format!("{source}; at the bound of the fit"),
                    false => source.to_owned(),
                },
            };
        }
    }
}

/// To four significant digits: more than any fit determines.
pub fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// The cluster's TOML.
pub fn toml(cluster: &Cluster) -> String {
    let mut text = format!(
        "name = {}\ndescription = {}\ngpus_per_node = {}\n",
        quoted(&cluster.name),
        quoted(&cluster.description),
        cluster.gpus_per_node
    );
    let mut table = "";
    for (path, constant, _) in cluster.constants() {
        let (section, field) = path.split_once('.').unwrap_or(("", path));
        if section != table {
            table = section;
            text.push_str(&format!("\n[{section}]\n"));
            if section == "gpu" {
                text.push_str(&format!("name = {}\n", quoted(&cluster.gpu.name)));
            }
        }
        let optional = |name, value: Option<f64>| value.map_or(String::new(), |value| format!("{name} = {value:e}, "));
        let uncertainty = optional("uncertainty", constant.uncertainty);
        let peak = optional("peak", constant.peak);
        let source = quoted(&constant.source);
        text.push_str(&format!("{field} = {{ value = {:e}, {uncertainty}{peak}source = {source} }}\n", constant.value));
    }
    text
}

fn quoted(text: &str) -> String {
    let escaped: String = text
        .chars()
        .map(|c| match c {
            '"' => "\\\"".to_owned(),
            '\\' => "\\\\".to_owned(),
            '\n' => "\\n".to_owned(),
            c if c.is_control() => format!("\\u{:04X}", c as u32),
            c => c.to_string(),
        })
        .collect();
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for name in Cluster::names() {
            let mut cluster = Cluster::named("test", name).unwrap();
            cluster.description.push_str(" \"quoted\" \\ ");
            cluster.gpu.gemm_rate.uncertainty = Some(1.5e12);
            assert_eq!(Cluster::parse("t.toml", &toml(&cluster)).unwrap(), cluster);
        }
    }

    #[test]
    fn only_fitted_constants_change() {
        let before = Cluster::named("test", "inky").unwrap();
        let mut after = before.clone();
        let fitted =
            Fitted { name: "host.block".into(), value: 1.23456e-3, uncertainty: f64::INFINITY, at_bound: true };
        apply(&mut after, &[fitted], "fitted to x");
        assert_eq!(after.host.block.value, 1.235e-3);
        assert_eq!(after.host.block.source, "fitted to x; at the bound of the fit");
        assert_eq!((after.gpu, after.network), (before.gpu, before.network));
    }
}
