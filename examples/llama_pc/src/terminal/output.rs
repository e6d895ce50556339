//! Writing to the terminal. Unlike `println!`, these do not panic when a pipe is closed.

use std::io::Write;
use std::sync::OnceLock;

use super::failure::Failure;

/// Writes results to standard output and flushes; adds no newline.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| Failure::other(format!("cannot write to standard output: {error}")))
}

/// This process among several ranks, once it is one. The one static of the program: warnings come from deep within libraries.
static RANK: OnceLock<(usize, String)> = OnceLock::new();

/// From now on this process is one of several ranks: its warnings and errors say which, and only the first rank's other lines appear.
#[cfg(feature = "mpi")]
pub fn speak_for(rank: usize, host: &str) {
    RANK.get_or_init(|| (rank, host.to_owned()));
}

/// Writes a line to standard error. Errors are ignored: there is no other place to report them.
pub fn note(line: &str) {
    let line = RANK.get().map_or_else(|| Some(line.to_owned()), |(rank, host)| spoken(line, *rank, host));
    if let Some(line) = line {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// A line as a rank says it, if it says it.
fn spoken(line: &str, rank: usize, host: &str) -> Option<String> {
    for kind in ["warning: ", "error: "] {
        if let Some(text) = line.strip_prefix(kind) {
            return Some(format!("{kind}rank {rank} (host {host}): {text}"));
        }
    }
    (rank == 0).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_name_their_rank_and_the_rest_is_said_once() {
        assert_eq!(spoken("warning: slow", 2, "b").expect("a line"), "warning: rank 2 (host b): slow");
        assert_eq!(spoken("error: bad\nhint: good", 0, "a").expect("a line"), "error: rank 0 (host a): bad\nhint: good");
        assert_eq!([spoken("step 3", 0, "a").as_deref(), spoken("step 3", 1, "a").as_deref()], [Some("step 3"), None]);
    }
}
