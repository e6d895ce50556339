//! One call per operation and shape: compares the value and every gradient with the float64 reference on every device, and requires
//! the same bits on a second run, through a checkpoint, and when accumulated into existing gradients.

use std::rc::Rc;

use polytape::{Gpu, Gradients, Params, Precision, Result, Tape, Tensor, Var};

use crate::device;
use crate::reference::Array;
use crate::reference::array::seeded;
use crate::tolerance::{ELEMENTWISE, Tolerance, assert_close};

/// Records the operation on `inputs` as leaves and runs the backward from a random cotangent. `forward` and `vjp` are the reference.
/// The tolerances are for the value, then one per gradient; the last one repeats.
#[track_caller]
pub fn check<const N: usize>(
    name: &str,
    inputs: [Array; N],
    record: impl for<'t> Fn(&[Var<'t>]) -> Result<Var<'t>> + 'static,
    forward: impl Fn(&[Array]) -> Array,
    vjp: impl Fn(&[Array], &Array) -> [Array; N],
    tolerances: &[Tolerance],
) {
    check_at(Precision::F32, name, inputs, record, forward, vjp, tolerances);
}

/// [`check`] on tapes with this precision.
#[track_caller]
pub fn check_at<const N: usize>(
    precision: Precision,
    name: &str,
    inputs: [Array; N],
    record: impl for<'t> Fn(&[Var<'t>]) -> Result<Var<'t>> + 'static,
    forward: impl Fn(&[Array]) -> Array,
    vjp: impl Fn(&[Array], &Array) -> [Array; N],
    tolerances: &[Tolerance],
) {
    let value = forward(&inputs);
    let dy = Array::random(&value.shape, &mut seeded(977));
    let gradients = vjp(&inputs, &dy);
    let wanted: Vec<&Array> = [&value].into_iter().chain(&gradients).collect();
    let shapes: Vec<&[usize]> = inputs.iter().map(|input| &input.shape[..]).collect();
    let record = Rc::new(record);
    for gpu in device::all() {
        let context = format!("{name} of {shapes:?} at {precision} with {} kernels", gpu.kernels());
        let run = |way| match run((gpu, precision), &inputs, &dy, &record, way) {
            Ok(results) => results,
            Err(error) => panic!("{context}: {error}"),
        };
        let results = run(Way::Plain);
        for (index, (result, want)) in results.iter().zip(&wanted).enumerate() {
            let part = if index == 0 { "value".into() } else { format!("gradient {}", index - 1) };
            assert_eq!(result.shape(), want.shape, "{context}: shape of the {part}");
            let tolerance = tolerances[index.min(tolerances.len() - 1)];
            assert_close(&format!("{context}, {part}"), &values(result), want, tolerance);
        }
        assert!(bits(&results) == bits(&run(Way::Plain)), "{context}: a second run gives other bits");
        assert!(bits(&results) == bits(&run(Way::Checkpointed)), "{context}: a checkpoint gives other bits");
        for (index, result) in run(Way::Accumulated)[1..].iter().enumerate() {
            let sum = earlier(&inputs, index).plus(&gradients[index]);
            let tolerance = tolerances[(index + 1).min(tolerances.len() - 1)].and(ELEMENTWISE);
            assert_close(&format!("{context}, gradient {index} added to another"), &values(result), &sum, tolerance);
        }
    }
}

/// [`check`] on devices that show a kernel little of a buffer, of which the operation needs more: the reference's values, and the
/// bits of devices that show all. Parts of the result in `rounded_otherwise`, 0 for the value and then the gradients, are free of the
/// latter: those of products that are cut along their inner dimension.
#[track_caller]
pub fn check_windows<const N: usize>(
    name: &str,
    inputs: [Array; N],
    record: impl for<'t> Fn(&[Var<'t>]) -> Result<Var<'t>> + 'static,
    forward: impl Fn(&[Array]) -> Array,
    vjp: impl Fn(&[Array], &Array) -> [Array; N],
    tolerances: &[Tolerance],
    rounded_otherwise: &[usize],
) {
    check_windows_at(Precision::F32, name, inputs, record, forward, vjp, tolerances, rounded_otherwise);
}

/// [`check_windows`] on tapes with this precision.
#[track_caller]
#[expect(clippy::too_many_arguments, reason = "those of check_windows and a precision")]
pub fn check_windows_at<const N: usize>(
    precision: Precision,
    name: &str,
    inputs: [Array; N],
    record: impl for<'t> Fn(&[Var<'t>]) -> Result<Var<'t>> + 'static,
    forward: impl Fn(&[Array]) -> Array,
    vjp: impl Fn(&[Array], &Array) -> [Array; N],
    tolerances: &[Tolerance],
    rounded_otherwise: &[usize],
) {
    let value = forward(&inputs);
    let dy = Array::random(&value.shape, &mut seeded(979));
    let gradients = vjp(&inputs, &dy);
    let largest = inputs.iter().chain([&value]).map(|array| 4 * array.data.len() as u64).max();
    assert!(largest > Some(device::NARROW), "{name}: {largest:?} bytes need no windows");
    let record = Rc::new(record);
    for (whole, narrow) in device::all().iter().zip(device::all_narrow()) {
        let context = format!("{name} at {precision} in windows with {} kernels", narrow.kernels());
        for way in [Way::Plain, Way::Accumulated] {
            let on = |gpu| match run((gpu, precision), &inputs, &dy, &record, way) {
                Ok(results) => results,
                Err(error) => panic!("{context}: {error}"),
            };
            let (uncut, cut) = (on(whole), on(narrow));
            for (index, (uncut, cut)) in uncut.iter().zip(&cut).enumerate() {
                let want = match (index, way) {
                    (0, _) => value.clone(),
                    (_, Way::Accumulated) => earlier(&inputs, index - 1).plus(&gradients[index - 1]),
                    _ => gradients[index - 1].clone(),
                };
                let tolerance = tolerances[index.min(tolerances.len() - 1)];
                let tolerance = if way == Way::Accumulated { tolerance.and(ELEMENTWISE) } else { tolerance };
                assert_close(&format!("{context}, part {index}"), &values(cut), &want, tolerance);
                let same =
                    rounded_otherwise.contains(&index) || bits(std::slice::from_ref(cut)) == bits(std::slice::from_ref(uncut));
                assert!(same, "{context}, part {index}: other bits than without windows");
            }
        }
    }
}

/// How an operation is run.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Plain,
    Checkpointed,
    /// With a gradient already accumulated in every input: see [`earlier`].
    Accumulated,
}

/// The gradient accumulated in an input before the operation's own.
fn earlier(inputs: &[Array], index: usize) -> Array {
    Array::random(&inputs[index].shape, &mut seeded(983 + index as u64))
}

/// The value, then the gradient of every input.
fn run<const N: usize, F>(
    (gpu, precision): (&Gpu, Precision),
    inputs: &[Array; N],
    dy: &Array,
    record: &Rc<F>,
    way: Way,
) -> Result<Vec<Tensor>>
where
    F: for<'t> Fn(&[Var<'t>]) -> Result<Var<'t>> + 'static,
{
    let params = Params::new(gpu);
    let tape = Tape::new(&params).with_precision(precision);
    let leaves = inputs.iter().map(|input| Ok(tape.leaf(upload(gpu, input)?))).collect::<Result<Vec<Var<'_>>>>()?;
    let y = if way == Way::Checkpointed {
        let record = record.clone();
        tape.checkpoint(&leaves.iter().collect::<Vec<_>>(), move |_, inputs| record(inputs))?
    } else {
        record(&leaves)?
    };
    let mut seeds = vec![(y.clone(), upload(gpu, dy)?)];
    if way == Way::Accumulated {
        for (index, leaf) in leaves.iter().enumerate() {
            seeds.push((leaf.scale(1.0)?, upload(gpu, &earlier(inputs, index))?));
        }
    }
    let seeds: Vec<(&Var<'_>, Tensor)> = seeds.iter().map(|(var, gradient)| (var, gradient.clone())).collect();
    let gradients = tape.backward_from(&seeds, &mut Gradients::new())?;
    let gradient = |leaf: &Var<'_>| gradients.get(leaf).cloned().expect("a gradient flows into every input");
    Ok([y.value().clone()].into_iter().chain(leaves.iter().map(gradient)).collect())
}

pub fn upload(gpu: &Gpu, array: &Array) -> Result<Tensor> {
    Tensor::from_slice(gpu, &array.to_f32(), &array.shape)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_vec().unwrap_or_else(|error| panic!("read-back: {error}"))
}

fn bits(tensors: &[Tensor]) -> Vec<Vec<u32>> {
    tensors.iter().map(|tensor| values(tensor).into_iter().map(f32::to_bits).collect()).collect()
}

/// Asserts that the operation fails on leaves of these shapes with exactly this text.
#[track_caller]
pub fn assert_refused(shapes: &[&[usize]], record: impl for<'t> Fn(&[Var<'t>]) -> Result<Var<'t>>, text: &str) {
    assert_refused_on(device::default(), shapes, record, text);
}

/// [`assert_refused`] on a device.
#[track_caller]
pub fn assert_refused_on(gpu: &Gpu, shapes: &[&[usize]], record: impl for<'t> Fn(&[Var<'t>]) -> Result<Var<'t>>, text: &str) {
    let params = Params::new(gpu);
    let tape = Tape::new(&params);
    let leaves: Result<Vec<Var<'_>>> = shapes.iter().map(|shape| Ok(tape.leaf(Tensor::zeros(gpu, shape)?))).collect();
    match leaves.and_then(|leaves| record(&leaves)) {
        Ok(y) => panic!("{shapes:?} gave {:?}, an error expected: {text}", y.shape()),
        Err(error) => assert_eq!(error.to_string(), text),
    }
}
