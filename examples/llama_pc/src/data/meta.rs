//! `meta.json`: what `prepare` wrote, next to `train/` and `val/`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::synced;
use crate::terminal::failure::Failure;

/// How tokens were prepared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    pub vocab: usize,
    /// How the tokenizer was made: a path's file name, or "byte-level BPE".
    pub tokenizer: String,
    /// What tells it from others; older data have none.
    #[serde(default)]
    pub fingerprint: Option<String>,
    /// The tokens between which documents stand, null for none.
    #[serde(default)]
    pub bos: Option<Special>,
    #[serde(default)]
    pub eos: Option<Special>,
    pub seed: u64,
    /// The fraction of the documents that was chosen for validation; none if the user named its text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_fraction: Option<f64>,
    pub train: Part,
    pub val: Part,
}

/// A special token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Special {
    pub id: u32,
    pub token: String,
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
        let json = serde_json::to_string_pretty(self).expect("bug: meta.json does not serialise") + "\n";
        synced::write(&folder.join("meta.json"), json.as_bytes())
    }
}

/// The `meta.json` of prepared data: in its folder or the parent.
pub fn of(data: &Path) -> Option<Meta> {
    let folders = [Some(data), data.parent()];
    let texts = folders.into_iter().flatten().filter_map(|folder| std::fs::read_to_string(folder.join("meta.json")).ok());
    texts.filter_map(|text| serde_json::from_str(&text).ok()).next()
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
            fingerprint: Some("0123456789abcdef".to_owned()),
            bos: Some(Special { id: 0, token: "<s>".to_owned() }),
            eos: None,
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
        assert_eq!(of(&folder.path().join("val")), Some(meta.clone()));
        let older = serde_json::json!({"vocab": 3, "tokenizer": "t", "seed": 1, "val_fraction": 0.5, "train": meta.train, "val": meta.val});
        std::fs::write(folder.path().join("meta.json"), older.to_string()).expect("it is written");
        assert_eq!(of(folder.path()).expect("older data").fingerprint, None);
    }
}
