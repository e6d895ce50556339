//! The lists of kernels leave none out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use polytape::gpu::KernelVariant;
use polytape_drivers::variants_by_class;

fn every_variant() -> &'static [KernelVariant] {
    static VARIANTS: OnceLock<Vec<KernelVariant>> = OnceLock::new();
    VARIANTS.get_or_init(|| {
        let by_class = variants_by_class().unwrap_or_else(|error| panic!("{error}"));
        by_class.into_iter().flat_map(|(_, variants)| variants).collect()
    })
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the library's sources");
    let of_entry = |entry: std::io::Result<std::fs::DirEntry>| match entry.expect("an entry").path() {
        path if path.is_dir() => sources(&path),
        path if path.extension().is_some_and(|extension| extension == "rs") => vec![path],
        _ => Vec::new(),
    };
    entries.flat_map(of_entry).collect()
}

/// The names in the library's text: all of its own kernels go through one constructor.
fn names() -> BTreeSet<String> {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src");
    let mut names = BTreeSet::new();
    for path in sources(&library) {
        let text = std::fs::read_to_string(&path).expect("a source");
        // A file may have a function of its own that calls the constructor.
        for constructor in ["Kernel::trusted(", "(kernel("] {
            let literal = |call: &str| Some(call.trim_start().strip_prefix('"')?.split_once('"')?.0.to_owned());
            let found: Vec<Option<String>> = text.split(constructor).skip(1).map(literal).collect();
            let has_own = text.contains("const fn kernel(");
            assert!(has_own || found.iter().all(Option::is_some), "{}: a kernel without a literal name", path.display());
            names.extend(found.into_iter().flatten());
        }
    }
    names
}

#[test]
fn every_kernel_of_the_library_is_listed() {
    let listed: BTreeSet<String> = every_variant().iter().map(|variant| variant.kernel.to_owned()).collect();
    let named = names();
    assert!(named.len() > 40, "{named:?}");
    let missing: Vec<_> = named.difference(&listed).collect();
    assert!(missing.is_empty(), "tools/drivers runs no operation that launches {missing:?}");
}

/// A flag that is never listed with its other value may be one that no listed operation sets. Numbers of groups are no flags.
#[test]
fn every_flag_is_listed_on_and_off() {
    let mut values: BTreeMap<&str, BTreeSet<u32>> = BTreeMap::new();
    let constants = every_variant().iter().flat_map(|variant| &variant.constants);
    for (name, value) in constants.filter(|(name, _)| !name.ends_with("GROUPS")) {
        values.entry(name).or_default().insert(*value);
    }
    let stuck: Vec<_> = values.iter().filter(|(_, values)| values.len() == 1 && *values.last().unwrap_or(&0) < 2).collect();
    assert!(stuck.is_empty(), "tools/drivers runs no operation that gives these constants another value: {stuck:?}");
}
