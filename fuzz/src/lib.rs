//! What the fuzz targets share.

use llama_pc::readers::Scratch;

/// Calls a reader in a folder that this process keeps, in memory where the system has a place for that.
pub fn scratch(reader: impl FnOnce(&Scratch)) {
    thread_local! {
        static FOLDER: tempfile::TempDir = {
            let memory = std::path::Path::new("/dev/shm");
            let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
            folder.expect("a temporary folder")
        };
    }
    FOLDER.with(|folder| reader(&Scratch::new(folder.path())));
}
