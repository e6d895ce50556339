//! RMS and maximum absolute value of whole tensors.

use polytape::{Tensor, rms_and_abs_max};

use crate::device;
use crate::reference::Array;
use crate::reference::array::seeded;
use crate::tolerance::{assert_close_scalar, reduction};

#[test]
fn the_rms_and_the_maximum_of_each_tensor_match() {
    let mut rng = seeded(4401);
    // One element, a prime, one chunk exactly, several chunks with a tail.
    let arrays: Vec<Array> = [&[1][..], &[101], &[128, 128], &[211, 313]].map(|shape| Array::random(shape, &mut rng)).to_vec();
    for gpu in device::all() {
        let tensor =
            |array: &Array| Tensor::from_slice(gpu, &array.data.iter().map(|&x| x as f32).collect::<Vec<_>>(), &[array.len()]);
        let tensors: Vec<Tensor> = arrays.iter().map(|array| tensor(array).expect("a tensor")).collect();
        let found = rms_and_abs_max(&tensors.iter().collect::<Vec<_>>()).and_then(|pairs| pairs.to_vec()).expect("pairs");
        for (array, pair) in arrays.iter().zip(found.chunks(2)) {
            let count = array.len();
            assert_close_scalar("rms", pair[0], (array.dot(array) / count as f64).sqrt(), 0.0, reduction(count));
            let most = array.data.iter().fold(0.0f32, |most, &x| most.max((x as f32).abs()));
            assert_eq!(pair[1], most, "{count} elements, {} kernels", gpu.kernels());
        }
    }
}

#[test]
fn one_value_that_is_not_finite_shows() {
    for gpu in device::all() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut values = vec![1.0; 20_000];
            values[17_000] = bad;
            let tensor = Tensor::from_slice(gpu, &values, &[20_000]).expect("a tensor");
            let found = rms_and_abs_max(&[&tensor]).and_then(|pairs| pairs.to_vec()).expect("a pair");
            assert!(!found[0].is_finite(), "{bad}: {found:?}, {} kernels", gpu.kernels());
        }
    }
    assert!(rms_and_abs_max(&[]).is_err());
}
