//! `metrics.jsonl`: one JSON object per logged step.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::measured::{Exchanged, Gmcn, Layers, SigmaError};
use super::paths;
use crate::terminal::failure::Failure;
use crate::terminal::format::{binary, grouped};
use crate::terminal::output;

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Optimizer steps, including this one.
    pub step: u64,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Mean loss of the step, in nats per token.
    pub loss: f64,
    /// Global norm of the gradient before clipping, without the loss scale. Null where the gradient overflowed.
    pub grad_norm: Option<f64>,
    /// Learning rate of the step.
    pub lr: f64,
    pub tokens_per_second: f64,
    /// Training time so far.
    pub seconds: f64,
    /// Peak device memory.
    pub memory_bytes: u64,
    /// Model FLOPs utilization: share of the adapter's peak; if the user gives the peak.
    #[serde(default, alias = "utilization", skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    /// On several ranks only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranks: Option<Exchanged>,
    /// On validation steps only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
    /// Factor of the loss in the backward pass, where `train.precision` is below f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f32>,
    /// The step was skipped: a spike, or an overflow.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// Steps skipped so far.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped_steps: u64,
    /// On the steps of `train.log_spectrum_every` only: of the weights after the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gmcn: Option<Gmcn>,
    /// On the same steps: of the PC layers with the spectral norm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sigma_error: Option<SigmaError>,
    /// On the steps of `train.log_layers_every` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Layers>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Metrics {
    /// The step's progress line; `smoothed` is the loss over the last steps.
    pub fn summary(&self, smoothed: f64) -> String {
        let mut text = format!("loss {:.4} (smoothed {smoothed:.4})", self.loss);
        if let Some(val_loss) = self.val_loss {
            text += &format!("  validation {val_loss:.4}");
        }
        text += &match self.tokens_per_second {
            slow @ ..10.0 => format!("  {slow:.2} tokens/s"),
            fast => format!("  {} tokens/s", grouped(fast.round() as u64)),
        };
        if let Some(mfu) = self.mfu {
            text += &format!("  {:.1} % of peak", 100.0 * mfu);
        }
        text + &format!("  {}", binary(self.memory_bytes))
    }

    /// Its scalars with their TensorBoard tags.
    pub fn scalars(&self) -> Vec<(String, f32)> {
        let mut scalars = vec![
            ("loss/train".to_owned(), self.loss as f32),
            ("learning_rate".to_owned(), self.lr as f32),
            ("tokens".to_owned(), self.tokens as f32),
            ("speed/tokens_per_second".to_owned(), self.tokens_per_second as f32),
            ("memory/bytes".to_owned(), self.memory_bytes as f32),
        ];
        let optional = [
            ("gradient_norm", self.grad_norm),
            ("loss_scale", self.loss_scale.map(f64::from)),
            ("loss/validation", self.val_loss),
            ("speed/mfu", self.mfu),
        ];
        scalars.extend(optional.into_iter().filter_map(|(tag, value)| Some((tag.to_owned(), value? as f32))));
        if self.skipped_steps > 0 {
            scalars.push(("skipped_steps".to_owned(), self.skipped_steps as f32));
        }
        scalars.extend(self.gmcn.iter().flat_map(Gmcn::scalars));
        scalars.extend(self.sigma_error.iter().flat_map(SigmaError::scalars));
        scalars.extend(self.layers.iter().flat_map(Layers::scalars));
        scalars
    }
}

/// All lines of a run's `metrics.jsonl`.
pub fn read_metrics(run: &Path) -> Result<Vec<Metrics>, Failure> {
    let path = run.join(paths::METRICS);
    let lines = read_lines(&path)?;
    (1..)
        .zip(&lines)
        .map(|(number, line)| serde_json::from_slice(line).map_err(|error| not_metrics(&path, number, &error)))
        .collect()
}

/// The lines of a file of metrics; a last one that a killed process left incomplete is left out, with a note.
pub fn read_lines(path: &Path) -> Result<Vec<Vec<u8>>, Failure> {
    let bytes = std::fs::read(path).map_err(|error| Failure::io("read", path, &error))?;
    let mut lines: Vec<Vec<u8>> = bytes.split_inclusive(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
    if let Some(number) = lines.len().checked_sub(1)
        && is_cut(&lines[number])
    {
        lines.pop();
        output::note(&format!("note: {}: skipped line {}, which is incomplete", path.display(), number + 1));
    }
    Ok(lines)
}

/// Whether a line lacks its end: not only the newline.
fn is_cut(line: &[u8]) -> bool {
    !line.ends_with(b"\n") && serde_json::from_slice::<serde::de::IgnoredAny>(line).is_err()
}

/// (step, loss) of training and of validation.
pub fn losses(rows: &[Metrics]) -> [Vec<(f64, f64)>; 2] {
    let val = |row: &Metrics| Some((row.step as f64, row.val_loss?));
    [rows.iter().map(|row| (row.step as f64, row.loss)).collect(), rows.iter().filter_map(val).collect()]
}

/// Truncates the metrics after the last line of at most `step` steps. A line that a killed process left incomplete is dropped,
/// too; one that lacks only its newline gets it.
pub fn cut(path: &Path, step: u64) -> Result<(), Failure> {
    if !path.exists() {
        return Ok(());
    }
    #[derive(Deserialize)]
    struct Row {
        step: u64,
    }
    let bytes = std::fs::read(path).map_err(|error| Failure::io("read", path, &error))?;
    let mut keep = 0;
    for (number, line) in (1..).zip(bytes.split_inclusive(|&byte| byte == b'\n')) {
        if is_cut(line) {
            output::note(&format!("note: {}: removed line {number}, which is incomplete", path.display()));
            break;
        }
        let row: Row = serde_json::from_slice(line).map_err(|error| not_metrics(path, number, &error))?;
        if row.step > step {
            break;
        }
        keep += line.len();
    }
    let lacks_newline = keep > 0 && bytes[keep - 1] != b'\n';
    if keep == bytes.len() && !lacks_newline {
        return Ok(());
    }
    let repair = || {
        let mut file = OpenOptions::new().append(true).open(path)?;
        file.set_len(keep as u64)?;
        if lacks_newline { file.write_all(b"\n") } else { Ok(()) }
    };
    repair().map_err(|error| Failure::io("cut", path, &error))
}

fn not_metrics(path: &Path, line: u64, error: &serde_json::Error) -> Failure {
    Failure::other(format!("{}: line {line}: found {error}, expected a line of metrics", path.display()))
}

/// A smoothed loss: an exponential moving average over the logged steps.
#[derive(Default)]
pub struct Smoothed {
    seen: u64,
    mean: f64,
}

impl Smoothed {
    /// Time constant in logged steps.
    const MEMORY: u64 = 50;

    /// Adds a loss and returns the average.
    pub fn add(&mut self, loss: f64) -> f64 {
        self.seen += 1;
        self.mean += (loss - self.mean) / self.seen.min(Self::MEMORY) as f64;
        self.mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64, val_loss: Option<f64>) -> Metrics {
        Metrics { step, loss: 5.25, tokens_per_second: 12_345.6, memory_bytes: 1 << 20, val_loss, ..Metrics::default() }
    }

    #[test]
    fn a_line_of_metrics_has_the_published_keys() {
        let keys = |row: &Metrics| -> Vec<String> {
            let value = serde_json::to_value(row).expect("JSON");
            value.as_object().expect("an object").keys().cloned().collect()
        };
        let always = ["grad_norm", "loss", "lr", "memory_bytes", "seconds", "step", "tokens", "tokens_per_second"];
        assert_eq!(keys(&row(1, None)), always);
        assert_eq!(keys(&row(1, Some(1.0))).last().map(String::as_str), Some("val_loss"));
        assert_eq!(row(1, Some(6.0)).summary(5.5), "loss 5.2500 (smoothed 5.5000)  validation 6.0000  12,346 tokens/s  1.00 MiB");
    }

    #[test]
    fn a_smoothed_loss_follows_the_losses() {
        let mut smoothed = Smoothed::default();
        assert_eq!([4.0, 2.0, 3.0].map(|loss| smoothed.add(loss)), [4.0, 3.0, 3.0]);
        let last = (0..1000).map(|_| smoothed.add(1.0)).last().expect("a mean");
        assert!((1.0..1.001).contains(&last), "{last}");
    }
}
