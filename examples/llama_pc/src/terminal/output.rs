//! Writing to the terminal. Unlike `println!`, these do not panic when a pipe is closed.

use std::io::Write;

use super::failure::Failure;

/// Writes results to standard output and flushes; adds no newline.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| Failure::other(format!("cannot write to standard output: {error}")))
}

/// Writes a line to standard error. Errors are ignored: there is no other place to report them.
pub fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
