//! Newton–Schulz against the golden numbers and the reference, and its purpose: singular values near 1.

use polytape::spectral::{NewtonSchulz, newton_schulz};
use polytape::{Gpu, Tensor};

use super::round;
use crate::check::upload;
use crate::device;
use crate::golden;
use crate::reference::Array;
use crate::reference::differences::random_arrays;
use crate::reference::newton_schulz::{Coefficients, iterate};
use crate::reference::svd::svd;
use crate::tolerance::{assert_close, newton_schulz as tolerance};

const SETS: [(NewtonSchulz, Coefficients); 4] = [
    (NewtonSchulz::Simple, Coefficients::Simple),
    (NewtonSchulz::Quintic, Coefficients::Quintic),
    (NewtonSchulz::PolarExpress, Coefficients::PolarExpress),
    (NewtonSchulz::Aol, Coefficients::Aol),
];

fn run(gpu: &Gpu, x: &Array, set: NewtonSchulz, steps: usize) -> Vec<f32> {
    let made = upload(gpu, x).and_then(|x| newton_schulz(x, set, steps));
    let values = made.and_then(|y| {
        assert_eq!(y.shape(), x.shape);
        y.to_vec()
    });
    values.expect("newton_schulz")
}

/// d/(‖d‖ + 1e-7), as the optimizer passes it.
fn normalised(d: &Array) -> Array {
    round(&d.times(1.0 / (d.norm() + 1e-7)))
}

#[test]
fn the_golden_cases_are_reproduced() {
    for gpu in device::all() {
        for case in golden::newton_schulz() {
            let shape = [case.rows, case.cols];
            let wanted = Coefficients::from_name(&case.coefficients).expect("a known set");
            let (set, _) = SETS.into_iter().find(|(_, coefficients)| *coefficients == wanted).expect("every set is listed");
            let got = run(gpu, &normalised(&golden::f32_array(&shape, &case.x)), set, case.steps);
            let name = format!("{} {shape:?}", case.coefficients);
            let (short, long) = (case.rows.min(case.cols), case.rows.max(case.cols));
            assert_close(&name, &got, &Array::new(&shape, case.y), tolerance(case.steps, short, long));
        }
    }
}

#[test]
fn every_set_matches_for_tall_and_wide_matrices() {
    for shape in [[1, 1], [1, 9], [13, 7], [65, 33], [33, 65], [40, 40], [128, 260]] {
        let [d] = random_arrays(2301, [&shape]);
        let x = normalised(&d);
        for (set, coefficients) in SETS {
            // Up to twice the table's length: it cycles, or its last row repeats.
            for steps in [1, coefficients.default_steps(), 10] {
                let want = iterate(&x, coefficients, steps);
                for gpu in device::all() {
                    let name = format!("{coefficients:?} {shape:?}, {steps} steps, {} kernels", gpu.kernels());
                    let limits = tolerance(steps, shape[0].min(shape[1]), shape[0].max(shape[1]));
                    // The one singular value of a single row is 1, which quintic's first step sends to 0.12 out of terms whose
                    // sizes add up to 13.9.
                    let limits = if shape[0] == 1 { limits.times(120.0) } else { limits };
                    assert_close(&name, &run(gpu, &x, set, steps), &want, limits);
                }
            }
        }
    }
}

#[test]
fn zero_steps_and_a_zero_matrix_change_nothing() {
    for gpu in device::all() {
        let [x] = random_arrays(2311, [&[5, 8]]);
        assert_eq!(run(gpu, &x, NewtonSchulz::Simple, 0), x.to_f32());
        assert_eq!(run(gpu, &Array::zeros(&[5, 8]), NewtonSchulz::PolarExpress, 8), vec![0.0; 40]);
    }
}

#[test]
fn a_matrix_becomes_nearly_orthogonal() {
    let [d] = random_arrays(2321, [&[64, 96]]);
    let x = normalised(&d);
    // Where each set sends the singular values of a random 64 × 96 matrix, 0.02 to 0.23 of its norm: simple oscillates around
    // 1 by design, the others close in. A fifth step of aol would begin its four triples again, at a step made for small values.
    for (set, steps, band) in [
        (NewtonSchulz::Simple, 5, 0.65..1.25),
        (NewtonSchulz::Quintic, 5, 0.85..1.15),
        (NewtonSchulz::PolarExpress, 8, 0.99..1.01),
        (NewtonSchulz::Aol, 4, 0.85..1.15),
    ] {
        for gpu in device::all() {
            let y = Array::from_f32(&[64, 96], &run(gpu, &x, set, steps));
            let sigma = svd(&y).sigma;
            let (largest, smallest) = (sigma[0], sigma[63]);
            assert!(band.contains(&largest) && band.contains(&smallest), "{set:?}: {smallest} to {largest}, not in {band:?}");
        }
    }
}

#[test]
fn a_vector_is_refused() {
    let x = Tensor::zeros(device::default(), &[4]).expect("a tensor");
    let error = newton_schulz(x, NewtonSchulz::Simple, 5).expect_err("no matrix");
    assert_eq!(error.to_string(), "newton_schulz: shape [4]: 2 or 3 dimensions expected");
}
