//! Where a checkpoint was made, as far as it tells itself.

use cryo_checkpoint::dump_log::Versions;
use cryo_checkpoint::source::{Error, Source};
use cryo_criu_image::Kind;
use cryo_criu_image::cpuinfo::Cpuinfo;

use crate::nodeinfo::Node;

/// Features that programs choose by: the beginnings of their names.
const CHOSEN: [&str; 21] = [
    "sse", "ssse", "avx", "amx", "fma", "bmi", "aes", "sha", "popcnt", "movbe", "adx", "vaes",
    "vpclmul", "pclmul", "asimd", "sve", "abm", "f16c", "gfni", "xsavec", "xsaveopt",
];

/// Longest name of a processor that is shown; those of real ones have 48 bytes.
const MAX_MODEL_CHARS: usize = 64;

/// What is known of the node that a checkpoint was made on.
#[derive(Debug, Default)]
pub(super) struct Origin {
    /// What to call it.
    pub(super) name: String,
    /// The features of its processor that programs choose by, if they are known.
    pub(super) features: Option<Vec<String>>,
    /// The version of its CRIU.
    pub(super) criu: Option<String>,
    /// The release of its kernel.
    pub(super) kernel: Option<String>,
}

impl Origin {
    /// By what the checkpoint says.
    ///
    /// # Errors
    ///
    /// What says it is damaged.
    pub(super) fn of_checkpoint(source: &Source) -> Result<Self, Error> {
        let cpu: Option<Cpuinfo> = source.view(&source.image_name(Kind::Cpuinfo, 0))?;
        let versions = Versions::of(source)?;
        let features = cpu
            .iter()
            .flat_map(Cpuinfo::features)
            .map(str::to_owned)
            .collect::<Vec<_>>();
        let model = cpu.map(|cpu| {
            let model = String::from_utf8_lossy(&cpu.model);
            model.trim().chars().take(MAX_MODEL_CHARS).collect()
        });
        Ok(Self {
            name: model
                .filter(|model: &String| !model.is_empty())
                .unwrap_or_else(|| "the processor it was made on".to_owned()),
            features: (!features.is_empty()).then_some(features),
            criu: versions.criu,
            kernel: versions.kernel,
        })
    }

    /// The same by the node's own words, which count where there are some.
    pub(super) fn told_by(self, node: &Node) -> Self {
        let chosen = |feature: &&String| CHOSEN.iter().any(|start| feature.starts_with(start));
        let features = node.cpu.features.iter().filter(chosen).cloned().collect();
        let criu = node.criu.as_ref().map(|criu| criu.version.clone());
        Self {
            name: node.hostname.clone(),
            features: Some(features),
            criu: criu.or(self.criu),
            kernel: Some(node.kernel.release.clone()),
        }
    }
}
