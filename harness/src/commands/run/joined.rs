//! The engine of a run whose shards were trained, where they were trained: what it says of itself is what they say. It runs nothing.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use systems::Plan;
use workloads::EngineKind;

use runs::engines::{Engine, Extent};
use runs::prepare::PreparedRun;
use runs::provenance::{ENGINE, Provenance};
use runs::records::Outcome;

/// What the shards' `run.json` say.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Joined(Provenance);

impl Joined {
    /// Of the shards in these folders.
    ///
    /// # Errors
    /// No shard, or shards that other engines ran or other machines.
    pub(crate) fn new(shards: &[(&Path, &Provenance)]) -> Result<Self> {
        let (&(first, one), others) = shards.split_first().context("no shard")?;
        let mut all = one.clone();
        for (folder, shard) in others {
            let both = || format!("{} and {}", first.display(), folder.display());
            let engine = |of: &Provenance| (of.engine, of.inputs.hashes.get(ENGINE).cloned());
            ensure!(engine(shard) == engine(one), "{}: engine says something else", both());
            all = Provenance::clone(shard).with_times_of(&all).with_context(both)?;
        }
        let entropies = shards.iter().flat_map(|(_, shard)| &shard.suite).flat_map(|suite| &suite.drawn.entropies);
        let entropies: BTreeMap<String, [f64; 2]> = entropies.map(|(case, of)| (case.clone(), *of)).collect();
        all.suite.iter_mut().for_each(|suite| suite.drawn.entropies.clone_from(&entropies));
        Ok(Self(all))
    }
}

impl Engine for Joined {
    fn kind(&self) -> EngineKind {
        self.0.engine
    }

    fn hash(&self) -> String {
        self.0.inputs.hashes.get(ENGINE).cloned().unwrap_or_default()
    }

    fn run(&self, run: &PreparedRun, _plan: Plan, _extent: Extent, _tick: &(dyn Fn() + Sync)) -> Result<Outcome> {
        bail!("{}: no shard has all that is asked for of it", run.id())
    }

    fn place(&self) -> Option<String> {
        self.0.suite.as_ref()?.drawn.measured_on.clone()
    }

    fn host(&self) -> Option<(String, usize)> {
        Some((self.0.host.clone(), self.0.cores))
    }

    fn libraries(&self) -> BTreeMap<String, String> {
        self.0.libraries.clone()
    }

    fn entropy(&self, run: &PreparedRun) -> Option<[f64; 2]> {
        self.0.suite.as_ref()?.drawn.entropies.get(&run.case_id).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runs::provenance::{Inputs, SuiteFacts};

    fn shard(host: &str, gpu: &str, engine: &str, case: &str) -> Provenance {
        let hashes = [(ENGINE.to_owned(), engine.to_owned())].into();
        let mut suite = SuiteFacts::default();
        suite.drawn.measured_on = Some(gpu.to_owned());
        suite.drawn.entropies.insert(case.to_owned(), [1.0, 2.0]);
        let made = Provenance::new(EngineKind::Measured, Inputs { hashes, ..Inputs::default() });
        Provenance { host: host.to_owned(), cores: 8, suite: Some(suite), ..made }
    }

    #[test]
    fn a_whole_was_trained_where_its_shards_were() {
        let join =
            |shards: [Provenance; 2]| Joined::new(&[(Path::new("s1"), &shards[0]), (Path::new("s2"), &shards[1])]);
        let joined = join([shard("n2", "H100", "x", "a"), shard("n1", "H100", "x", "b")]).unwrap();
        assert_eq!((joined.place().as_deref(), joined.host()), (Some("H100"), Some(("n1, n2".to_owned(), 8))));
        assert_eq!((joined.hash().as_str(), joined.kind()), ("x", EngineKind::Measured));
        assert_eq!(joined.0.suite.unwrap().drawn.entropies.len(), 2);
        let refused = |other| format!("{:#}", join([shard("n1", "H100", "x", "a"), other]).unwrap_err());
        let message = refused(shard("n1", "A100", "x", "b"));
        assert!(message.starts_with("s1 and s2: timed on H100, 8 cores (n1), and on A100, 8 cores (n1)"), "{message}");
        assert_eq!(refused(shard("n1", "H100", "y", "b")), "s1 and s2: engine says something else");
    }
}
