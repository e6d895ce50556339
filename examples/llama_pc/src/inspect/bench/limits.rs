//! The limits that the other parts are compared with: multiply-adds, matrix units, a copy.

use polytape::gpu::{KernelTier, Peak, Unit as Arithmetic};

use super::report::{Row, Unit};
use super::session::{Case, Session, agree};
use super::values::{tensor, value};

/// Values that are copied: far more than a cache holds, and no more than the smallest binding of WebGPU.
pub const COPIED: usize = 32 << 20;
/// On a software adapter, whose memory is slower.
const COPIED_BY_SOFTWARE: usize = 4 << 20;

/// Every line of the part.
pub fn run(session: &mut Session) -> Case {
    session.limits.multiply_adds = arithmetic(session, "f32 multiply-adds", Arithmetic::MultiplyAdd)?;
    if session.gpu.kernels() == KernelTier::Matrix {
        session.case("f16 products of matrix units", 0.0, |session| {
            session.limits.matrices = Some(arithmetic(session, "f16 products of matrix units", Arithmetic::Matrix)?);
            Ok(())
        });
    }
    let values = if session.gpu.adapter().is_software() { COPIED_BY_SOFTWARE } else { COPIED };
    let what = format!("copy of {} MiB", values >> 18);
    session.case(&what.clone(), 0.0, |session| copy(session, &what, values));
    Ok(())
}

/// FLOP/s of a unit.
fn arithmetic(session: &mut Session, what: &str, unit: Arithmetic) -> Case<f64> {
    let peak = Peak::new(&session.gpu, unit)?;
    peak.check()?;
    let timing = session.time(|| peak.run())?;
    let rate = peak.operations() / timing.seconds;
    session.row(Row {
        what: what.to_owned(),
        unit: Unit::Teraflops,
        value: rate / 1e12,
        spread: timing.spread,
        ..Row::default()
    });
    Ok(rate)
}

/// Reads and writes as many values, by a kernel.
fn copy(session: &mut Session, what: &str, values: usize) -> Case {
    let x = tensor(&session.gpu, &[values / 1024, 1024], 1.0, 1)?;
    let copied = x.scaled(0.5)?;
    for at in [0, values / 3, values - 1] {
        agree(|| format!("value {at}"), f64::from(copied.read(at..at + 1)?[0]), 0.5 * f64::from(value(1, at)), 1e-6)?;
    }
    drop(copied);
    let timing = session.time(|| x.scaled(0.5).map(drop))?;
    let rate = (2 * 4 * values) as f64 / timing.seconds;
    session.limits.copy = Some(rate);
    session.row(Row { what: what.to_owned(), unit: Unit::Gigabytes, value: rate / 1e9, spread: timing.spread, ..Row::default() });
    Ok(())
}
