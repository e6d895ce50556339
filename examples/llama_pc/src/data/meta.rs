//! `meta.json`: what `prepare` wrote, next to `train/` and `val/`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::terminal::failure::Failure;

/// How tokens were prepared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    pub vocab: usize,
    /// How the tokenizer was made: a path's file name, or "byte-level BPE".
    pub tokenizer: String,
    pub seed: u64,
    /// The fraction of the documents that was chosen for validation; none if the user named its text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_fraction: Option<f64>,
    pub train: Part,
    pub val: Part,
}

/// Totals of one split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub documents: u64,
    /// Bytes of UTF-8 text, without special tokens.
    pub bytes: u64,
    /// Tokens, special ones included.
    pub tokens: u64,
}

impl Meta {
    /// Writes `meta.json` in the folder.
    pub fn save(&self, folder: &Path) -> Result<(), Failure> {
        let path = folder.join("meta.json");
        let json = serde_json::to_string_pretty(self).expect("bug: meta.json does not serialise");
        std::fs::write(&path, json + "\n").map_err(|error| Failure::io("write", &path, &error))
    }
}

/// Bytes of text per token of prepared data (its `train` or `val` folder), or `None` without a `meta.json`. A loss in
/// nats per token, divided by ln 2 and by this, is bits per byte.
pub fn bytes_per_token(data: &Path) -> Option<f64> {
    let text = std::fs::read_to_string(data.parent()?.join("meta.json")).ok()?;
    let meta: Meta = serde_json::from_str(&text).ok()?;
    let part = match data.file_name()?.to_str()? {
        "train" => meta.train,
        "val" => meta.val,
        _ => return None,
    };
    (part.tokens > 0).then(|| part.bytes as f64 / part.tokens as f64)
}

/// The `tokenizer.json` of prepared data: in its folder or the parent.
pub fn tokenizer_of(data: &Path) -> Option<PathBuf> {
    let folders = [Some(data), data.parent()];
    folders.into_iter().flatten().map(|folder| folder.join("tokenizer.json")).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_per_token_are_those_of_the_part() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let part = |bytes, tokens| Part { documents: 1, bytes, tokens };
        let meta = Meta {
            vocab: 300,
            tokenizer: "byte-level BPE".to_owned(),
            seed: 1,
            val_fraction: Some(0.05),
            train: part(300, 100),
            val: part(50, 20),
        };
        meta.save(folder.path()).expect("it is written");
        assert_eq!(bytes_per_token(&folder.path().join("train")), Some(3.0));
        assert_eq!(bytes_per_token(&folder.path().join("val")), Some(2.5));
        assert_eq!(bytes_per_token(&folder.path().join("other")), None);
        assert_eq!(bytes_per_token(Path::new("no/such/val")), None);
    }
}
