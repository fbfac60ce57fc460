//! What models, clusters and traces in files are called in records, figures and file names: by their own names, wherever
//! the files are. Two models or clusters of one name are told apart by a hash of what they say, two traces by one of where they are.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use workloads::suite::{Described, LABEL, SuiteRouting, is_label};
use workloads::{Case, Cluster, Model, Suite, trace};

use crate::prepare;
use crate::provenance::sha256;
use crate::traces;

/// Finds the files of a suite, whose paths are relative to `folder`, and gives them their names.
///
/// # Errors
/// A file that cannot be read or used, or a name that no table can show.
pub fn suite(file: &str, suite: &mut Suite, folder: &Path) -> Result<()> {
    let mut names = Names { folder, ..Names::default() };
    for case in &mut suite.cases {
        names.case(&format!("{file}: cases[{}]", case.number), case)?;
    }
    suite.routing.iter_mut().try_for_each(|routing| names.routing(&format!("{file}: routing"), routing))?;
    Ok(suite.settle(file)?)
}

/// The same for a case alone, with paths relative to the current folder.
///
/// # Errors
/// As for [`suite`].
pub fn case(context: &str, case: &mut Case) -> Result<()> {
    Names::default().case(context, case)
}

/// The names given so far, each with what it stands for.
struct Names<'a> {
    folder: &'a Path,
    models: BTreeMap<String, String>,
    clusters: BTreeMap<String, String>,
    traces: BTreeMap<String, String>,
}

impl Default for Names<'_> {
    fn default() -> Self {
        Self { folder: Path::new(""), models: BTreeMap::new(), clusters: BTreeMap::new(), traces: BTreeMap::new() }
    }
}

impl Names<'_> {
    fn case(&mut self, context: &str, case: &mut Case) -> Result<()> {
        case.routing.iter_mut().try_for_each(|routing| self.routing(&format!("{context}.routing"), routing))?;
        self.model(&format!("{context}.model"), &mut case.model)?;
        for (system, difference) in &mut case.differs {
            if let Some(model) = &mut difference.model {
                self.model(&format!("{context}.differs.{system}.model"), model)?;
            }
        }
        let context = format!("{context}.cluster");
        let Some(place) = self.place(&mut case.cluster) else { return Ok(()) };
        let read = prepare::cluster(&context, &place).with_context(|| context.clone())?;
        let own = Cluster::named(&context, &read.name).ok().map(|own| format!("{own:?}"));
        case.cluster.name = unlike(&context, &mut self.clusters, &read.name, format!("{read:?}"), own)?;
        Ok(())
    }

    fn model(&mut self, context: &str, model: &mut Described) -> Result<()> {
        let Some(place) = self.place(model) else { return Ok(()) };
        let read = prepare::model(context, &place).with_context(|| context.to_owned())?;
        // Where a shape comes from changes nothing about it.
        let shape = |model: &Model| format!("{:?}", Model { source: String::new(), ..model.clone() });
        let own = Model::named(context, &read.name).ok().map(|own| shape(&own));
        model.name = unlike(context, &mut self.models, &read.name, shape(&read), own)?;
        Ok(())
    }

    /// What is not the name of a trace that comes with moebench is a file or a folder, which a path need not show.
    fn routing(&mut self, context: &str, routing: &mut SuiteRouting) -> Result<()> {
        let Some(described) = &mut routing.trace else { return Ok(()) };
        if trace::names().any(|known| known == described.name) {
            return Ok(());
        }
        let written = described.name.clone();
        described.file.get_or_insert_with(|| written.clone());
        self.place(described);
        let name = written.rsplit(['/', '\\']).find(|part| !part.is_empty()).unwrap_or(&written);
        let name = traces::without_ending(name).to_owned();
        described.name = unlike(&format!("{context}.trace"), &mut self.traces, &name, written, None)?;
        Ok(())
    }

    /// The path of a file, now relative to the current folder.
    fn place(&self, described: &mut Described) -> Option<String> {
        let file = described.file.as_mut()?;
        *file = self.folder.join(&*file).display().to_string();
        Some(file.clone())
    }
}

/// `name`, or that and a hash where it stands for something else already: in the suite, or among what comes with moebench (`own`).
fn unlike(
    context: &str,
    known: &mut BTreeMap<String, String>,
    name: &str,
    content: String,
    own: Option<String>,
) -> Result<String> {
    if !is_label(name) {
        bail!("{context}: name = {name:?}: expected {LABEL}");
    }
    let taken = known.get(name).or(own.as_ref());
    let name = match taken {
        Some(other) if *other != content => format!("{name}-{}", &sha256(content.as_bytes())[..8]),
        _ => name.to_owned(),
    };
    known.insert(name.clone(), content);
    Ok(name)
}
