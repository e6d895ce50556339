//! Writing to the terminal. `println!` panics when the reader of a pipe has gone; these do not.

use std::io::Write;

use super::failure::Failure;

/// Writes results to standard output, at once; a line ends only where the text has its end.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| Failure::other(format!("cannot write to standard output: {error}")))
}

/// Writes a line about the work to standard error. If nobody reads there, there is nobody to tell.
pub fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
