//! One check: an operation on the device, forward and backward, and how far it is from the reference.

use std::fmt;

use polytape::{Gpu, Gradients, Params, Precision, Result, Tape, Tensor, Var};
use polytape_reference::Array;
use polytape_reference::array::seeded;
use polytape_reference::tolerance::{Tolerance, worst_error};

/// The table's first line.
pub const HEADING: &str =
    "operation                           shape                           worst error    tolerance  verdict\n";

/// Computes the parts of a result, with what they should be.
type Run = dyn Fn(&Gpu) -> Result<Vec<Part>> + Send + Sync;

/// A check that can run on any device, and on any thread.
pub struct Check {
    operation: String,
    shape: String,
    run: Box<Run>,
}

impl Check {
    /// From a function that computes the parts.
    pub fn new(
        operation: impl Into<String>,
        shape: impl Into<String>,
        run: impl Fn(&Gpu) -> Result<Vec<Part>> + Send + Sync + 'static,
    ) -> Self {
        Self { operation: operation.into(), shape: shape.into(), run: Box::new(run) }
    }

    /// Its line of the table.
    pub fn run(&self, gpu: &Gpu) -> Line {
        Line::new(&self.operation, &self.shape, (self.run)(gpu))
    }
}

/// A line of the table.
pub struct Line {
    operation: String,
    shape: String,
    /// Error and tolerance of the part with the largest ratio of the two; or why there is none.
    worst: std::result::Result<(f64, f64), String>,
}

impl Line {
    /// From the parts, or the error of running it.
    fn new(operation: impl Into<String>, shape: impl Into<String>, outcome: Result<Vec<Part>>) -> Self {
        let ratio = |(error, limit): (f64, f64)| if error == 0.0 { 0.0 } else { error / limit };
        let worst = match outcome {
            Err(error) => Err(error.to_string()),
            Ok(parts) => {
                let parts = parts.into_iter().map(|part| (part.error, part.tolerance.relative));
                parts.max_by(|a, b| ratio(*a).total_cmp(&ratio(*b))).ok_or_else(|| "nothing was computed".to_owned())
            }
        };
        Self { operation: operation.into(), shape: shape.into(), worst }
    }

    /// Whether every part is within its tolerance; NaN is not.
    pub fn passed(&self) -> bool {
        self.worst.as_ref().is_ok_and(|(error, limit)| error <= limit)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, shape, worst } = self;
        match worst {
            Ok((error, limit)) => {
                let verdict = if self.passed() { "ok" } else { "FAILED" };
                writeln!(f, "{operation:34}  {shape:30}  {error:>11.1e}  {limit:>11.1e}  {verdict}")
            }
            Err(reason) => writeln!(f, "{operation:34}  {shape:30}  FAILED: {}", reason.replace('\n', " ")),
        }
    }
}

/// A result of an operation: its error relative to the scale of the expected values, and the tolerance.
pub struct Part {
    error: f64,
    tolerance: Tolerance,
}

impl Part {
    /// Of a tensor on the device.
    pub fn of(found: &Tensor, wanted: &Array, tolerance: Tolerance) -> Result<Self> {
        Ok(Self::of_values(&found.to_vec()?, wanted, tolerance))
    }

    /// Of values on the host; a wrong number of them is an infinite error.
    pub fn of_values(found: &[f32], wanted: &Array, tolerance: Tolerance) -> Self {
        let error = if found.len() == wanted.len() { worst_error(found, wanted) } else { f64::INFINITY };
        Self { error, tolerance }
    }
}

/// Runs an operation forward on `inputs` and backward from a random cotangent; `forward` and `vjp` are the reference. The
/// tolerances are the value's and then one per gradient; the last applies to those not given.
pub fn differentiable<const N: usize>(
    operation: &str,
    inputs: [Array; N],
    record: impl for<'t> Fn(&[Var<'t>]) -> Result<Var<'t>> + Send + Sync + 'static,
    forward: impl Fn(&[Array]) -> Array + Send + Sync + 'static,
    vjp: impl Fn(&[Array], &Array) -> [Array; N] + Send + Sync + 'static,
    tolerances: &[Tolerance],
) -> Check {
    differentiable_at(Precision::F32, operation, inputs, record, forward, vjp, tolerances)
}

/// [`differentiable`] on a tape of the precision.
pub fn differentiable_at<const N: usize>(
    precision: Precision,
    operation: &str,
    inputs: [Array; N],
    record: impl for<'t> Fn(&[Var<'t>]) -> Result<Var<'t>> + Send + Sync + 'static,
    forward: impl Fn(&[Array]) -> Array + Send + Sync + 'static,
    vjp: impl Fn(&[Array], &Array) -> [Array; N] + Send + Sync + 'static,
    tolerances: &[Tolerance],
) -> Check {
    let shapes: Vec<String> = inputs.iter().map(|input| shape(&input.shape)).collect();
    let tolerances = tolerances.to_vec();
    Check::new(operation, shapes.join(" "), move |gpu| {
        let value = forward(&inputs);
        let dy = Array::random(&value.shape, &mut seeded(977));
        let gradients = vjp(&inputs, &dy);
        let params = Params::new(gpu);
        let tape = Tape::new(&params).with_precision(precision);
        let leaves = inputs.iter().map(|input| Ok(tape.leaf(upload(gpu, input)?))).collect::<Result<Vec<Var<'_>>>>()?;
        let y = record(&leaves)?;
        let found = tape.backward_from(&[(&y, upload(gpu, &dy)?)], &mut Gradients::new())?;
        let mut parts = vec![Part::of(y.value(), &value, tolerances[0])?];
        for (at, (leaf, wanted)) in leaves.iter().zip(&gradients).enumerate() {
            let tolerance = tolerances[(at + 1).min(tolerances.len() - 1)];
            parts.push(match found.get(leaf) {
                Some(gradient) => Part::of(gradient, wanted, tolerance)?,
                None => Part { error: f64::INFINITY, tolerance },
            });
        }
        Ok(parts)
    })
}

/// An array on the device.
pub fn upload(gpu: &Gpu, array: &Array) -> Result<Tensor> {
    Tensor::from_slice(gpu, &array.to_f32(), &array.shape)
}

/// The array rounded to float32.
pub fn rounded(array: &Array) -> Array {
    array.map(|value| f64::from(value as f32))
}

/// `2×3`.
pub fn shape(sizes: &[usize]) -> String {
    sizes.iter().map(usize::to_string).collect::<Vec<_>>().join("×")
}

#[cfg(test)]
mod tests {
    use polytape_reference::tolerance::{ELEMENTWISE, EXACT};

    use super::*;

    fn line(parts: Vec<Part>) -> Line {
        Line::new("op", "2×3", Ok(parts))
    }

    #[test]
    fn one_wrong_part_fails_the_line() {
        let wanted = Array::new(&[2], vec![1.0, 2.0]);
        let right = || Part::of_values(&[1.0, 2.0], &wanted, EXACT);
        assert!(line(vec![right(), right()]).passed());
        for wrong in [&[1.0, 2.1][..], &[1.0, f32::NAN], &[1.0]] {
            let line = line(vec![right(), Part::of_values(wrong, &wanted, ELEMENTWISE), right()]);
            assert!(!line.passed() && line.to_string().contains("FAILED"), "{line}");
        }
        assert!(!line(Vec::new()).passed(), "a check of nothing is not a passed one");
        let failed = Line::new("op", "2×3", Err(polytape::Error::Value("no\nluck".into())));
        assert!(!failed.passed() && failed.to_string().ends_with("FAILED: no luck\n"), "{failed}");
    }
}
