//! TensorBoard's event files: records of TFRecord, each a protobuf `Event` with scalars.
//!
//! A training process writes one file, named after the step it starts at. A resumed run first truncates the earlier files at its
//! checkpoint, and its own file begins with a session start, which makes a running TensorBoard discard the same events.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crc32c::crc32c;

use crate::terminal::failure::Failure;

const PREFIX: &str = "events.out.tfevents.";

/// An event file that is being written.
pub struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// The file of a process that starts after `step` steps, at `time` in seconds since 1970.
    pub fn create(run: &Path, step: u64, time: f64) -> Result<Self, Failure> {
        let path = run.join(format!("{PREFIX}{step:010}.polytape"));
        let file = File::create(&path).map_err(|error| Failure::io("create", &path, &error))?;
        let mut this = Self { path, file };
        this.append(&event(time, 0, &text(3, b"brain.Event:2")))?;
        if step > 0 {
            // session_log { status: START }: invalidates all earlier events from this step on.
            this.append(&event(time, step + 1, &text(7, &number(1, 1))))?;
        }
        Ok(this)
    }

    /// Writes scalars of one step.
    pub fn scalars(&mut self, time: f64, step: u64, scalars: &[(String, f32)]) -> Result<(), Failure> {
        let value = |(tag, value): &(String, f32)| text(1, &[text(1, tag.as_bytes()), float(2, *value)].concat());
        let summary: Vec<u8> = scalars.iter().flat_map(value).collect();
        self.append(&event(time, step, &text(5, &summary)))
    }

    fn append(&mut self, event: &[u8]) -> Result<(), Failure> {
        self.file.write_all(&record(event)).map_err(|error| Failure::io("write", &self.path, &error))
    }
}

/// Truncates every event file of a run after its last event of at most `step` steps.
pub fn cut(run: &Path, step: u64) -> Result<(), Failure> {
    let entries = std::fs::read_dir(run).map_err(|error| Failure::io("read", run, &error))?;
    for entry in entries {
        let path = entry.map_err(|error| Failure::io("read", run, &error))?.path();
        let is_ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        if !is_ours {
            continue;
        }
        let bytes = std::fs::read(&path).map_err(|error| Failure::io("read", &path, &error))?;
        let keep = kept(&bytes, step);
        if keep < bytes.len() {
            let file = OpenOptions::new().write(true).open(&path);
            file.and_then(|file| file.set_len(keep as u64)).map_err(|error| Failure::io("cut", &path, &error))?;
        }
    }
    Ok(())
}

/// Bytes of the complete records before the first of a later step.
fn kept(bytes: &[u8], step: u64) -> usize {
    let mut at = 0;
    while let Some((event, length)) = next_record(&bytes[at..]) {
        if step_of(event).is_none_or(|found| found > step) {
            break;
        }
        at += length;
    }
    at
}

/// The first event, and the length of its record; `None` where the file ends or is truncated.
fn next_record(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let length = u64::from_le_bytes(*bytes.first_chunk()?);
    let length = usize::try_from(length).ok()?;
    let end = length.checked_add(16)?;
    let data = bytes.get(12..end.checked_sub(4)?)?;
    let sums = (bytes.get(8..12)?, bytes.get(end - 4..end)?);
    let whole = sums == (&masked(&bytes[..8])[..], &masked(data)[..]);
    whole.then_some((data, end))
}

/// The step of an event as [`event`] writes it: a time, then a step that is absent where it is 0.
fn step_of(event: &[u8]) -> Option<u64> {
    let rest = event.get(9..)?;
    match rest.split_first() {
        Some((0x10, digits)) => {
            let (mut step, mut shift) = (0u64, 0);
            for byte in digits {
                step |= u64::from(byte & 0x7f).checked_shl(shift)?;
                shift += 7;
                if byte & 0x80 == 0 {
                    return Some(step);
                }
            }
            None
        }
        _ => Some(0),
    }
}

/// An `Event`: wall_time, step, and one field of content.
fn event(time: f64, step: u64, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x09]; // field 1, 64 bits
    bytes.extend(time.to_le_bytes());
    if step > 0 {
        bytes.extend(number(2, step));
    }
    bytes.extend(content);
    bytes
}

/// The length and the data, each with its checksum.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), data, &masked(data)].concat()
}

/// TFRecord masks its checksums, because a CRC over data that contains its own CRC is degenerate.
fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// A protobuf field of variable length: text, bytes or a message.
fn text(field: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![field << 3 | 2];
    varint(bytes.len() as u64, &mut out);
    out.extend(bytes);
    out
}

fn number(field: u8, value: u64) -> Vec<u8> {
    let mut out = vec![field << 3];
    varint(value, &mut out);
    out
}

fn float(field: u8, value: f32) -> Vec<u8> {
    let mut out = vec![field << 3 | 5];
    out.extend(value.to_le_bytes());
    out
}

/// Seven bits per byte, the lowest first; the top bit marks that more follow.
fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(run: &Path, name: &str) -> Vec<u8> {
        std::fs::read(run.join(name)).expect("an event file")
    }

    #[test]
    fn the_bytes_are_those_that_tensorboard_reads() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut events = Events::create(folder.path(), 300, 1.5).expect("a file");
        events.scalars(2.0, 301, &[("loss/train".to_owned(), 3.25), ("lr".to_owned(), 0.5)]).expect("it is written");
        let found = written(folder.path(), "events.out.tfevents.0000000300.polytape");
        // As tensorflow's event.proto and summary.proto say; TensorBoard 2.21 reads exactly these bytes.
        let version = b"\x18\0\0\0\0\0\0\0\xa3\x7f\x4b\x22\x09\0\0\0\0\0\0\xf8\x3f\x1a\x0dbrain.Event:2\x2a\x28\x64\x6c";
        let start = b"\x10\0\0\0\0\0\0\0\x95\xfb\xfe\x18\x09\0\0\0\0\0\0\xf8\x3f\x10\xad\x02\x3a\x02\x08\x01\xd1\x79\x49\xd4";
        let scalars = b"\x2c\0\0\0\0\0\0\0\xf4\xae\xcc\x45\x09\0\0\0\0\0\0\0\x40\x10\xad\x02\x2a\x1e\
            \x0a\x11\x0a\x0aloss/train\x15\0\0\x50\x40\x0a\x09\x0a\x02lr\x15\0\0\0\x3f\xd6\x41\x9a\x28";
        assert_eq!(found, [&version[..], start, scalars].concat());
    }

    #[test]
    fn a_cut_file_ends_with_the_last_event_of_its_step() {
        let folder = tempfile::tempdir().expect("a folder");
        let name = "events.out.tfevents.0000000000.polytape";
        let mut events = Events::create(folder.path(), 0, 1.0).expect("a file");
        let mut lengths = vec![written(folder.path(), name).len()];
        for step in 1..=200 {
            events.scalars(1.0, step, &[("x".to_owned(), step as f32)]).expect("it is written");
            lengths.push(written(folder.path(), name).len());
        }
        // A record that a killed process left half-written.
        events.file.write_all(&[7; 13]).expect("it is written");
        for step in [200, 150, 127, 1, 0] {
            cut(folder.path(), step).expect("it is cut");
            assert_eq!(written(folder.path(), name).len(), lengths[step as usize]);
        }
    }
}
