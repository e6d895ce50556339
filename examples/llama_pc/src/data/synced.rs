//! Writing what a power failure must not undo.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use crate::terminal::failure::Failure;

/// Writes and syncs a file.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let mut file = File::create(path).map_err(|error| Failure::io("create", path, &error))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|error| Failure::io("write", path, &error))
}

/// Syncs the entries of a folder, which only Unix allows.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}
