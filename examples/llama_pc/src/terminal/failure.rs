//! Errors for the user: an exit status, one sentence, and perhaps a hint.

use std::fmt;
use std::path::Path;

/// An error on its way to the user. The message is one sentence that names the file, key or adapter, what was found and
/// what was expected; `main` prints it and exits with `status`.
#[derive(Debug)]
pub struct Failure {
    /// 2 for a usage or configuration error, 1 for anything else.
    pub status: u8,
    /// A training's numbers left the range of their format: a result where divergence is studied, an error elsewhere.
    pub has_diverged: bool,
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// The user asked for something that cannot be: a bad flag, a bad key, an output that exists already.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { status: 2, has_diverged: false, message: one_line(message.into()), hint: None }
    }

    /// Anything else: a file that is missing, cut or foreign, a device that fails.
    pub fn other(message: impl Into<String>) -> Self {
        Self { status: 1, has_diverged: false, message: one_line(message.into()), hint: None }
    }

    /// An input or output error. There is no `From<std::io::Error>`, because such an error must always name its file.
    pub fn io(action: &str, path: &Path, error: &std::io::Error) -> Self {
        let reason = match error.kind() {
            std::io::ErrorKind::NotFound => "no such file or folder".to_owned(),
            std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
            _ => error.to_string(),
        };
        Self::other(format!("cannot {action} {}: {reason}", path.display()))
    }

    /// Says in which step it happened, unless it does.
    pub fn within_step(mut self, step: u64) -> Self {
        if !self.message.starts_with("step ") {
            self.message = format!("step {step}: {}", self.message);
        }
        self
    }

    /// Marks it as that of a training that diverged.
    pub fn diverged(self) -> Self {
        Self { has_diverged: true, ..self }
    }

    /// Adds a line that says what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// [`Failure::hint`] after the one that is there, if any.
    pub fn and_hint(self, more: &str) -> Self {
        let hint = self.hint.as_ref().map_or_else(|| more.to_owned(), |hint| format!("{hint}; {more}"));
        self.hint(hint)
    }
}

impl From<polytape::Error> for Failure {
    fn from(error: polytape::Error) -> Self {
        let failure = Self::other(error.to_string());
        match error {
            polytape::Error::OutOfMemory { .. } => failure.hint(
                "a smaller train.batch_size or train.checkpoint_activations = true needs less memory; `plan` says how much",
            ),
            _ => failure,
        }
    }
}

/// A longer message is shortened to this many characters of its start, which names the file, and of its end, which says what was expected.
const SHOWN: [usize; 2] = [260, 130];

/// A message may quote untrusted files: control characters are escaped, and the middle of a very long one is left out.
fn one_line(message: String) -> String {
    let [first, last] = SHOWN;
    if !message.contains(char::is_control) && message.len() <= first + last {
        return message;
    }
    let spelled = |c: char| if c.is_control() { c.escape_debug().to_string() } else { c.to_string() };
    let spelled: Vec<char> = message.chars().flat_map(|c| spelled(c).chars().collect::<Vec<_>>()).collect();
    if spelled.len() <= first + last {
        return spelled.into_iter().collect();
    }
    let (head, tail) = (&spelled[..first], &spelled[spelled.len() - last..]);
    head.iter().chain([' ', '…', ' '].iter()).chain(tail).collect()
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_has_its_own_line() {
        let failure = Failure::usage("runs/a exists already").hint("choose another --out");
        assert_eq!(failure.to_string(), "runs/a exists already\nhint: choose another --out");
        assert_eq!(failure.status, 2);
        let failure = failure.and_hint("or --resume it");
        assert_eq!(failure.to_string(), "runs/a exists already\nhint: choose another --out; or --resume it");
    }

    #[test]
    fn a_message_stays_on_its_line() {
        let failure = Failure::other("a.parquet: found columns \u{1b}[2Ja\nb, größe");
        assert_eq!(failure.to_string(), "a.parquet: found columns \\u{1b}[2Ja\\nb, größe");
    }

    #[test]
    fn a_quoted_file_does_not_fill_the_screen() {
        let text = Failure::other(format!("a.json: found {}, expected a list", "é\n".repeat(9999))).to_string();
        assert!(
            text.starts_with("a.json: found é\\né") && text.ends_with("\\n, expected a list") && text.contains(" … "),
            "{text}"
        );
        assert_eq!(text.chars().count(), SHOWN[0] + SHOWN[1] + 3);
        let fits = "é".repeat(SHOWN[0] + SHOWN[1]);
        assert_eq!(Failure::other(fits.clone()).to_string(), fits);
    }

    #[test]
    fn an_io_error_names_its_file() {
        let error = std::io::Error::from(std::io::ErrorKind::NotFound);
        let failure = Failure::io("read", Path::new("a/b.bin"), &error);
        assert_eq!(failure.to_string(), "cannot read a/b.bin: no such file or folder");
        assert_eq!(failure.status, 1);
    }
}
