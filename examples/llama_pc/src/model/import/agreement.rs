//! Weights to start from must be of the network that the configuration describes: the same matrices with other heads, say, are
//! another one.

use std::path::{Path, PathBuf};

use super::hugging_face;
use super::source::describe;
use crate::config::{Config, Keys, differences, shown};
use crate::run::checkpoint::recorded_keys;
use crate::run::paths;
use crate::terminal::failure::Failure;
use crate::terminal::output;

/// The folder of the weights of `--init`: a run's newest checkpoint, or the folder itself. An error where `[model]` says
/// otherwise there than in the configuration.
pub fn initial_weights(path: &Path, config: &Config) -> Result<PathBuf, Failure> {
    let (folder, source, found) = described(path)?;
    let Some(found) = found else {
        if path.is_dir() {
            output::note(&format!(
                "note: {}: found no config.json or config.toml; heads, rotary embedding and norms are the configuration's",
                path.display()
            ));
        }
        return Ok(folder);
    };
    let wanted = config.model_keys();
    let differing = differences(&found, &wanted);
    let Some(first) = differing.first() else { return Ok(folder) };
    let message = format!(
        "{source}{} = {}, expected the configuration's {}",
        first.key,
        shown(first.found.as_ref()),
        shown(first.expected.as_ref())
    );
    let settings = differing
        .iter()
        .filter_map(|difference| Some(format!("{}={}", difference.key, difference.found.as_ref()?.trim_matches('"'))));
    let settings: Vec<String> = settings.collect();
    Err(Failure::usage(message).hint(format!("this configures the network of the weights: --set {}", settings.join(" "))))
}

/// The folder of the weights, the beginning of a message about its description, and `[model]` of the description, if there is one.
fn described(path: &Path) -> Result<(PathBuf, String, Option<Keys>), Failure> {
    if path.join(paths::CONFIG).is_file() {
        let (config, folder) = describe(path)?;
        let source = format!("{}: found ", path.join(paths::CONFIG).display());
        return Ok((folder, source, Some(config.model_keys())));
    }
    let file = path.join("config.json");
    if file.is_file() {
        let config = hugging_face::configuration(path)?;
        return Ok((path.to_owned(), format!("{}: found the equivalent of ", file.display()), Some(config.model_keys())));
    }
    // A checkpoint itself.
    let mut keys = recorded_keys(path)?;
    keys.retain(|key, _| key.starts_with("model."));
    Ok((path.to_owned(), format!("{}: found ", path.display()), (!keys.is_empty()).then_some(keys)))
}
