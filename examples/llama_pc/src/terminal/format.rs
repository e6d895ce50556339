//! Durations, bytes and counts in human-readable form.

/// Seconds in human-readable form: `48s`, `3m05s`, `2h07m`.
pub fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// Bytes with three digits: `1.25 GiB`.
pub fn binary(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut size, mut unit) = (bytes as f64, 0);
    while size >= 999.5 && unit + 1 < units.len() {
        size /= 1024.0;
        unit += 1;
    }
    let digits = match size {
        _ if unit == 0 => 0,
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{size:.digits$} {}", units[unit])
}

/// A count with separators, `1,234,567`.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A name or a message out of a file, as one line of at most `limit` characters: control characters are escaped, and what is too
/// long ends in `…`.
pub fn clipped(text: &str, limit: usize) -> String {
    let escaped = text.chars().flat_map(|c| {
        let escape = c.is_control().then(|| c.escape_debug());
        let plain = escape.is_none().then_some(c);
        escape.into_iter().flatten().chain(plain)
    });
    let mut line: Vec<char> = escaped.take(limit + 1).collect();
    if line.len() > limit {
        line.truncate(limit.saturating_sub(1));
        line.push('…');
    }
    line.into_iter().collect()
}

/// The first names of a list and how many more there are: `a, b, c and 4 more`.
pub fn listed<S: AsRef<str>>(names: &[S]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).map(|name| clipped(name.as_ref(), 80)).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {} more", grouped(more as u64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!([4.4, 65.0, 3599.6, 7620.0].map(duration), ["4s", "1m05s", "1h00m", "2h07m"]);
    }

    #[test]
    fn bytes_keep_three_digits() {
        let shown = [512, 999, 1000, 1 << 20, 1_342_177_280, 22 << 30, 512 << 20].map(binary);
        assert_eq!(shown, ["512 B", "999 B", "0.98 KiB", "1.00 MiB", "1.25 GiB", "22.0 GiB", "512 MiB"]);
    }

    #[test]
    fn counts_are_grouped() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn long_and_odd_names_become_short_lines() {
        assert_eq!(clipped("größe", 5), "größe");
        assert_eq!(clipped("größer", 5), "größ…");
        assert_eq!(clipped("a\nb\u{0}", 80), "a\\nb\\0");
        assert_eq!(clipped(&"\n".repeat(99), 7).chars().count(), 7);
        assert_eq!(listed(&["a", "b"]), "a, b");
        assert_eq!(listed(&["x"; 7]), "x, x, x, x, x and 2 more");
    }
}
