//! What describes a data set and is none of its texts: cards, licences, lists of files.
//!
//! A folder as it was downloaded has them beside the data. They are left out only there: in a folder of sources, a README is a text
//! like any other.

use std::path::Path;

use super::source::{Kind, TextFile};

/// How the names of such files begin, before a character that is no letter.
const BEGINNINGS: [&str; 14] = [
    "readme",
    "license",
    "licence",
    "copying",
    "notice",
    "citation",
    "changelog",
    "authors",
    "contributing",
    "datasheet",
    "dataset_card",
    "manifest",
    "sha256sums",
    "md5sums",
];

/// Files that a program for data sets left.
const MARKERS: [&str; 6] =
    ["dataset_infos.json", "dataset_info.json", "dataset_dict.json", "_success", "_metadata", "_common_metadata"];

const EXTENSIONS: [&str; 4] = ["json", "md5", "sha256", "crc"];

/// Tells the files of `folder` that describe data beside or below them, of which it returns the names, from the texts.
pub fn apart(files: Vec<TextFile>, folder: &Path) -> (Vec<String>, Vec<TextFile>) {
    let script = folder.file_name().map(|name| format!("{}.py", name.to_string_lossy().to_lowercase()));
    let is_data = |file: &&TextFile| (file.kind.is_data() && !is_marker(&file.name)) || is_marker_of_a_set(&file.name);
    let data: Vec<String> = files.iter().filter(is_data).map(|file| parent(&file.name).to_owned()).collect();
    let (cards, texts): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| {
        let is_script = script.as_deref() == Some(&file.name.to_lowercase());
        (describes(file) || is_script) && data.iter().any(|folder| is_within(folder, parent(&file.name)))
    });
    (cards.into_iter().map(|file| file.name).collect(), texts)
}

fn describes(file: &TextFile) -> bool {
    let name = base(&file.name).to_lowercase();
    let begins = |beginning: &&str| {
        let rest = name.strip_prefix(*beginning);
        rest.is_some_and(|rest| !rest.starts_with(char::is_alphabetic))
    };
    let extension = name.rsplit_once('.').is_some_and(|(_, extension)| EXTENSIONS.contains(&extension));
    is_marker(&name) || (file.kind == Kind::Whole && (extension || BEGINNINGS.iter().any(begins)))
}

fn is_marker(name: &str) -> bool {
    MARKERS.contains(&base(name).to_lowercase().as_str())
}

/// Whether a folder with such a file is a data set even if its texts are plain files.
fn is_marker_of_a_set(name: &str) -> bool {
    MARKERS[..3].contains(&base(name).to_lowercase().as_str())
}

fn base(name: &str) -> &str {
    name.rsplit_once('/').map_or(name, |(_, base)| base)
}

/// The folder in a name; empty at the top.
fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn is_within(folder: &str, outer: &str) -> bool {
    outer.is_empty() || folder.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::super::json_records::Layout;
    use super::super::packing::Packing;
    use super::*;

    fn left(names: &[(&str, Kind)]) -> Vec<String> {
        let file =
            |&(name, kind): &(&str, Kind)| TextFile { path: name.into(), name: name.to_owned(), packing: Packing::Plain, kind };
        let (_, texts) = apart(names.iter().map(file).collect(), Path::new("down/MyData"));
        texts.into_iter().map(|file| file.name).collect()
    }

    #[test]
    fn what_describes_data_is_left_out_beside_them_only() {
        let (whole, lines) = (Kind::Whole, Kind::Json(Layout::Lines));
        let folder = [
            ("LICENSE", whole),
            ("README_zh.md", whole),
            ("data/readme", whole),
            ("data/train.parquet", Kind::Parquet),
            ("dataset_infos.json", lines),
            ("docs/README.md", whole),
            ("mydata.py", whole),
            ("readmeter.txt", whole),
            ("stats.json", whole),
            ("story.txt", whole),
        ];
        assert_eq!(left(&folder), ["data/train.parquet", "docs/README.md", "readmeter.txt", "story.txt"]);
        let sources = [("README.md", whole), ("main.rs", whole), ("package.json", whole)];
        assert_eq!(left(&sources), ["README.md", "main.rs", "package.json"]);
        assert_eq!(left(&[("README.md", whole), ("dataset_infos.json", whole), ("a.txt", whole)]), ["a.txt"]);
        assert_eq!(left(&[("a/README.md", whole), ("ab/x.jsonl", lines)]), ["a/README.md", "ab/x.jsonl"]);
    }
}
