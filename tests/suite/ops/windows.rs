//! Every operation on tensors that exceed the binding limit, forward and backward: the reference's values and the bits of a device
//! that binds them whole.

use polytape::spectral::{NewtonSchulz, PcConfig, Preconditioner, newton_schulz, newton_schulz_binding};
use polytape::{AttentionShape, Indices, Params, Result, Role, RotaryTable, Tensor, Var, rms_and_abs_max};
use rand::RngExt;

use super::attention::precisions;
use super::matmul::{TRANSPOSES, multiply, sizes_of};
use crate::check::{assert_refused_on, check_windows, check_windows_at, upload};
use crate::device;
use crate::reference::Array;
use crate::reference::array::seeded;
use crate::reference::attention::{self, attention, attention_vjp};
use crate::reference::cross_entropy::{cross_entropy_head, cross_entropy_head_vjp};
use crate::reference::differences::random_arrays;
use crate::reference::elementwise::*;
use crate::reference::embedding::{embedding, embedding_vjp};
use crate::reference::layout::{concat, concat_vjp, reshape, reshape_vjp, slice, slice_vjp, transpose, transpose_vjp};
use crate::reference::matmul::{matmul, matmul_vjp};
use crate::reference::newton_schulz::{Coefficients, iterate};
use crate::reference::normalize::{rms_norm, rms_norm_vjp, softmax, softmax_vjp};
use crate::reference::rotary::{Rotary, Scaling, rotary, rotary_vjp};
use crate::tolerance::{self, ELEMENTWISE, EXACT, TRANSCENDENTAL, assert_close, cross_entropy, normalize, reduction};

/// In vec4 and without; neither's rows are a multiple of 256 bytes.
const SHAPES: [&[usize]; 2] = [&[130, 260], &[301, 99]];

#[test]
fn elementwise_operations() {
    for shape in SHAPES {
        let two = || random_arrays(2101, [shape, shape]);
        let one = || random_arrays(2102, [shape]);
        let tolerance = &[ELEMENTWISE];
        check_windows("add", two(), |x| x[0].add(&x[1]), |x| add(&x[0], &x[1]), |_, dy| add_vjp(dy), tolerance, &[]);
        check_windows("sub", two(), |x| x[0].sub(&x[1]), |x| sub(&x[0], &x[1]), |_, dy| sub_vjp(dy), tolerance, &[]);
        let vjp = |x: &[_], dy: &_| mul_vjp(&x[0], &x[1], dy);
        check_windows("mul", two(), |x| x[0].mul(&x[1]), |x| mul(&x[0], &x[1]), vjp, tolerance, &[]);
        check_windows(
            "scale",
            one(),
            |x| x[0].scale(-1.75),
            |x| scale(&x[0], -1.75),
            |_, dy| scale_vjp(-1.75, dy),
            tolerance,
            &[],
        );
        let sums = [reduction(shape[0] * shape[1]), ELEMENTWISE];
        check_windows("sum", one(), |x| x[0].sum(), |x| sum(&x[0]), |x, dy| sum_vjp(&x[0], dy), &sums, &[]);
        check_windows("mean", one(), |x| x[0].mean(), |x| mean(&x[0]), |x, dy| mean_vjp(&x[0], dy), &sums, &[]);
    }
}

#[test]
fn activations() {
    let tolerance = &[TRANSCENDENTAL];
    let one = || random_arrays(2103, [SHAPES[0]]);
    check_windows("silu", one(), |x| x[0].silu(), |x| silu(&x[0]), |x, dy| silu_vjp(&x[0], dy), tolerance, &[]);
    check_windows("gelu", one(), |x| x[0].gelu(), |x| gelu(&x[0]), |x, dy| gelu_vjp(&x[0], dy), tolerance, &[]);
    check_windows("relu", one(), |x| x[0].relu(), |x| relu(&x[0]), |x, dy| relu_vjp(&x[0], dy), &[EXACT], &[]);
    check_windows("tanh", one(), |x| x[0].tanh(), |x| tanh(&x[0]), |x, dy| tanh_vjp(&x[0], dy), tolerance, &[]);
    check_windows("exp", one(), |x| x[0].exp(), |x| exp(&x[0]), |x, dy| exp_vjp(&x[0], dy), tolerance, &[]);
    let positive = one().map(|x| x.map(|x| f64::from((x.abs() + 0.1) as f32)));
    check_windows("log", positive, |x| x[0].log(), |x| log(&x[0]), |x, dy| log_vjp(&x[0], dy), tolerance, &[]);
    let two = random_arrays(2104, [SHAPES[1], SHAPES[1]]);
    let vjp = |x: &[_], dy: &_| swiglu_vjp(&x[0], &x[1], dy);
    check_windows("swiglu", two, |x| x[0].swiglu(&x[1]), |x| swiglu(&x[0], &x[1]), vjp, tolerance, &[]);
}

#[test]
fn broadcast_rows_and_their_column_sums() {
    // The last: windows of a part of the 64 rows that an invocation adds up.
    for shape in [SHAPES[0], SHAPES[1], &[4200, 4], &[150, 1000], &[40, 1000], &[130, 1024]] {
        let inputs = || random_arrays(2105, [shape, &shape[1..]]);
        let tolerances = [ELEMENTWISE, ELEMENTWISE, reduction(shape[0])];
        let vjp = |x: &[_], dy: &_| mul_row_vjp(&x[0], &x[1], dy);
        let sum = |_: &[_], dy: &_| add_row_vjp(dy);
        check_windows("add_row", inputs(), |x| x[0].add_row(&x[1]), |x| add_row(&x[0], &x[1]), sum, &tolerances, &[]);
        check_windows("mul_row", inputs(), |x| x[0].mul_row(&x[1]), |x| mul_row(&x[0], &x[1]), vjp, &tolerances, &[]);
    }
}

#[test]
fn normalizations_and_rotary() {
    for shape in [SHAPES[1], &[130, 256]] {
        let tolerance = normalize(shape[1]);
        let input = random_arrays(2106, [shape]);
        check_windows(
            "softmax",
            input,
            |x| x[0].softmax(),
            |x| softmax(&x[0]),
            |x, dy| softmax_vjp(&x[0], dy),
            &[tolerance],
            &[],
        );
        let eps = f64::from(1e-5f32);
        check_windows(
            "rms_norm",
            random_arrays(2107, [shape, &shape[1..]]),
            |x| x[0].rms_norm(&x[1], 1e-5),
            |x| rms_norm(&x[0], &x[1], eps),
            |x, dy| rms_norm_vjp(&x[0], &x[1], eps, dy),
            &[tolerance, tolerance, tolerance.and(reduction(shape[0]))],
            &[],
        );
    }
    for [seq, heads, head_dim] in [[101, 6, 14], [37, 8, 64]] {
        let settings = Rotary { seq, head_dim, offset: 0, theta: 10_000.0, scaling: Scaling::None };
        check_windows(
            "rotary",
            random_arrays(2108, [&[3 * seq, heads * head_dim]]),
            move |x| x[0].rotary(&RotaryTable::new(x[0].value().gpu(), seq + 5, head_dim, 10_000.0)?, seq),
            |x| rotary(&x[0], settings),
            |_, dy| rotary_vjp(settings, dy),
            &[tolerance::ELEMENTWISE],
            &[],
        );
    }
}

#[test]
fn copies() {
    for shape in [&[130, 260][..], &[301, 99], &[3, 70, 130], &[5, 2, 61, 67]] {
        let input = || random_arrays(2109, [shape]);
        let flat = [shape.iter().product::<usize>()];
        let vjp = |x: &[_], dy: &_| reshape_vjp(&x[0], dy);
        check_windows("reshape", input(), move |x| x[0].reshape(&flat), |x| reshape(&x[0], &flat), vjp, &[EXACT], &[]);
        let vjp = |_: &[_], dy: &_| transpose_vjp(dy);
        check_windows("transpose", input(), |x| x[0].transpose(), |x| transpose(&x[0]), vjp, &[EXACT], &[]);
        for (dim, &size) in shape.iter().enumerate() {
            let range = 1..size.max(3) - 1;
            let [recorded, back] = [range.clone(), range.clone()];
            check_windows(
                "slice",
                input(),
                move |x| x[0].slice(dim, recorded.clone()),
                |x| slice(&x[0], dim, range.clone()),
                |x, dy| slice_vjp(&x[0], dim, back.clone(), dy),
                &[EXACT],
                &[],
            );
            let other = [&shape[..dim], &[size + 1], &shape[dim + 1..]].concat();
            check_windows(
                "concat",
                random_arrays(2110, [shape, &other]),
                move |x| Var::concat(&[&x[0], &x[1]], dim),
                |x| concat(&[&x[0], &x[1]], dim),
                |x, dy| concat_vjp(&[&x[0], &x[1]], dim, dy).try_into().expect("two gradients"),
                &[EXACT],
                &[],
            );
        }
    }
}

#[test]
fn embedding_in_windows_of_its_table_and_of_its_output() {
    // Both exceed a binding, the output alone, the table alone; rows of 256 bytes and others.
    for (count, [vocabulary, dim]) in [(401, [301, 99]), (300, [7, 132]), (5, [200, 132]), (700, [20, 64])] {
        let mut rng = seeded(2111);
        let ids: Vec<u32> = (0..count).map(|_| rng.random_range(0..vocabulary as u32)).collect();
        let repeats = ids.iter().map(|id| ids.iter().filter(|other| *other == id).count()).max().unwrap_or(1);
        let on_device = ids.clone();
        check_windows(
            "embedding",
            random_arrays(2112, [&[vocabulary, dim]]),
            move |x| x[0].embedding(&Indices::from_slice(x[0].value().gpu(), &on_device)?),
            |x| embedding(&x[0], &ids),
            |x, dy| embedding_vjp(&x[0], &ids, dy),
            &[EXACT, reduction(repeats)],
            &[],
        );
    }
}

/// Whether a product op(a)·op(b) is cut along its inner dimension: as only whole stored rows shrink a binding, where these run along it.
fn is_cut_inside(a: usize, transpose_a: bool, b: usize, transpose_b: bool) -> bool {
    let is_over = |elements: usize| 4 * elements as u64 > device::NARROW;
    (is_over(a) && transpose_a) || (is_over(b) && !transpose_b)
}

#[test]
fn products() {
    for sizes in [[300, 132, 68], [301, 99, 65], [68, 300, 132], [132, 68, 300], [5, 64, 700], [700, 8, 7]] {
        for transposes in TRANSPOSES {
            let [rows, inner, columns] = sizes;
            let [ta, tb] = transposes;
            let (a, b, y) = (rows * inner, inner * columns, rows * columns);
            let da = if ta { is_cut_inside(b, tb, y, true) } else { is_cut_inside(y, false, b, !tb) };
            let db = if tb { is_cut_inside(y, true, a, ta) } else { is_cut_inside(a, !ta, y, false) };
            let inside = [is_cut_inside(a, ta, b, tb), da, db];
            let rounded_otherwise: Vec<usize> = (0..3).filter(|&part| inside[part]).collect();
            if [a, b, y].iter().all(|&elements| 4 * elements as u64 <= device::NARROW) {
                continue;
            }
            let shapes = sizes_of(sizes, transposes, [&[], &[]]);
            check_windows(
                &format!("matmul of {sizes:?} transposing {transposes:?}"),
                random_arrays(2113, [&shapes[0], &shapes[1]]),
                move |x| multiply(&x[0], &x[1], transposes),
                |x| matmul(&x[0], &x[1], ta, tb),
                |x, dy| matmul_vjp(&x[0], &x[1], ta, tb, dy),
                &[reduction(inner), reduction(columns), reduction(rows)],
                &rounded_otherwise,
            );
        }
    }
}

#[test]
fn products_of_batches_and_with_a_residual() {
    let [batch, rows, inner, columns] = [5, 100, 64, 80];
    check_windows(
        "matmul of a batch",
        random_arrays(2114, [&[batch, rows, inner], &[batch, inner, columns]]),
        |x| x[0].matmul(&x[1]),
        |x| matmul(&x[0], &x[1], false, false),
        |x, dy| matmul_vjp(&x[0], &x[1], false, false, dy),
        &[reduction(inner), reduction(columns), reduction(rows)],
        &[],
    );
    let product = |x: &[Array]| matmul(&x[0], &x[1], false, true);
    check_windows(
        "matmul_nt_add",
        random_arrays(2115, [&[301, 64], &[99, 64], &[301, 99]]),
        |x| x[0].matmul_nt_add(&x[1], &x[2]),
        |x| product(x).plus(&x[2]),
        |x, dy| {
            let [da, db] = matmul_vjp(&x[0], &x[1], false, true, dy);
            [da, db, dy.clone()]
        },
        &[reduction(64), reduction(99), reduction(301), ELEMENTWISE],
        &[2],
    );
}

#[test]
fn several_products_of_one_input() {
    // Weights and outputs that exceed a binding, and sums in slices whose partial products do.
    for [rows, inner, columns] in [[300, 64, 68], [136, 100, 200], [128, 64, 1600]] {
        let weight = [columns, inner];
        let largest = 4 * (rows * columns).max(columns * inner) as u64;
        check_windows(
            "matmul_nt_each",
            random_arrays(2120, [&[rows, inner], &weight, &weight]),
            |x| {
                let y = x[0].matmul_nt_each(&[&x[1], &x[2]])?;
                Var::concat(&[&y[0], &y[1]], 1)
            },
            |x| concat(&[&matmul(&x[0], &x[1], false, true), &matmul(&x[0], &x[2], false, true)], 1),
            |x, dy| {
                let of = |at: usize| matmul_vjp(&x[0], &x[1 + at], false, true, &slice(dy, 1, at * columns..(at + 1) * columns));
                let [[da, dw], [db, dv]] = [of(0), of(1)];
                [da.plus(&db), dw, dv]
            },
            &[reduction(inner), reduction(2 * columns), reduction(rows)],
            // Of x over the rows of the weights, of these over the rows of x and dy.
            if largest > device::NARROW { &[1, 2, 3] } else { &[] },
        );
    }
}

#[test]
fn the_cross_entropy_of_a_head() {
    for [rows, dim, vocabulary] in [[300, 100, 70], [70, 36, 700]] {
        let mut rng = seeded(2116);
        let targets: Vec<u32> = (0..rows).map(|_| rng.random_range(0..vocabulary as u32)).collect();
        let on_device = targets.clone();
        let tolerance = cross_entropy(rows, dim, vocabulary);
        check_windows(
            "cross-entropy",
            random_arrays(2117, [&[rows, dim], &[vocabulary, dim]]),
            move |x| x[0].head_cross_entropy(&x[1], &Indices::from_slice(x[0].value().gpu(), &on_device)?),
            |x| cross_entropy_head(&x[0], &x[1], &targets),
            |x, dy| cross_entropy_head_vjp(&x[0], &x[1], &targets, dy),
            &[tolerance, tolerance.and(reduction(vocabulary).times(2.0)), tolerance],
            // dx sums over the rows of the weight, dw over those of the logits and of x.
            if 4 * vocabulary * dim > device::NARROW as usize { &[1, 2] } else { &[2] },
        );
    }
}

#[test]
fn attention_in_windows_of_sequences() {
    // In vec4 and without: sequences that start at multiples of 256 bytes and anywhere.
    for (sizes, seq) in [([5, 4, 2, 32], 37), ([13, 3, 3, 5], 101), ([3, 2, 1, 64], 65)] {
        let [batch, heads, kv_heads, head_dim] = sizes;
        let shape = AttentionShape { batch, heads, kv_heads, head_dim };
        let windows = shape.windows(seq, seq, device::NARROW).expect("windows");
        assert!(windows.sequences < batch && windows.queries == seq && windows.bytes <= device::NARROW, "{windows:?}");
        check_attention(shape, seq, seq);
    }
}

#[test]
fn attention_in_windows_of_the_queries_of_one_sequence() {
    for (sizes, queries, keys) in [([2, 8, 2, 16], 150, 150), ([1, 9, 3, 5], 401, 401), ([2, 8, 1, 32], 70, 101)] {
        let [batch, heads, kv_heads, head_dim] = sizes;
        let shape = AttentionShape { batch, heads, kv_heads, head_dim };
        let windows = shape.windows(queries, keys, device::NARROW).expect("windows");
        assert!(windows.queries < queries && windows.bytes <= device::NARROW, "{windows:?}");
        check_attention(shape, queries, keys);
    }
}

/// The reference has a query for every key: zeros for those that are not asked for.
fn check_attention(shape: AttentionShape, queries: usize, keys: usize) {
    let AttentionShape { batch, heads, kv_heads, head_dim } = shape;
    let columns = heads * head_dim;
    let square = attention::AttentionShape { batch, seq: keys, heads, kv_heads, head_dim };
    let widen = |x: &Array| {
        let x = x.reshape(&[batch, queries, columns]);
        let padded = if queries == keys { x } else { concat(&[&Array::zeros(&[batch, keys - queries, columns]), &x], 1) };
        padded.reshape(&[batch * keys, columns])
    };
    let narrow = |x: &Array| {
        let last = slice(&x.reshape(&[batch, keys, columns]), 1, keys - queries..keys);
        last.reshape(&[batch * queries, columns])
    };
    let kv = [batch * keys, kv_heads * head_dim];
    let tolerances = [tolerance::attention(keys, head_dim), tolerance::ATTENTION_F16];
    for (precision, tolerance) in precisions().iter().zip(tolerances) {
        check_windows_at(
            *precision,
            &format!("attention of {queries} queries and {keys} keys as {shape:?}"),
            random_arrays(2118, [&[batch * queries, columns], &kv, &kv]),
            move |x| x[0].attention(&x[1], &x[2], shape),
            |x| narrow(&attention(&widen(&x[0]), &x[1], &x[2], square)),
            |x, dy| {
                let [dq, dk, dv] = attention_vjp(&widen(&x[0]), &x[1], &x[2], square, &widen(dy));
                [narrow(&dq), dk, dv]
            },
            &[tolerance],
            &[],
        );
    }
}

#[test]
fn what_cannot_be_cut_is_refused_with_its_bytes_and_the_limit() {
    let shape = AttentionShape { batch: 1, heads: 2, kv_heads: 2, head_dim: 64 };
    let keys = "attention: k and v [130, 128] of one sequence are bound whole: 66560 bytes each, the limit of a binding is 65536";
    assert_refused_on(device::narrow(), &[&[130, 128][..]; 3], move |x| x[0].attention(&x[1], &x[2], shape), keys);
    let softmax = "kernel softmax: a binding of 65600 bytes, the adapter allows 65536";
    assert_refused_on(device::narrow(), &[&[1, 16_400]], |x| x[0].softmax(), softmax);
    // Its matrices are bound whole by the passes over their vectors.
    let layer = || -> Result<()> {
        let mut params = Params::new(device::narrow());
        let weight = params.add("w", Role::Matrix, Tensor::zeros(device::narrow(), &[200, 100])?)?;
        let layers = Preconditioner::attach(&mut params, PcConfig::default(), &[(weight, 2)], 1)?;
        let effective = layers.effective(&params).map(drop);
        let refused = layers.refresh(&mut params);
        assert_eq!(refused.expect_err("an error").to_string(), effective.as_ref().expect_err("an error").to_string());
        effective
    };
    let pc = "pc: [2, 100, 100] is bound whole: 80000 bytes, the limit of a binding is 65536";
    assert_eq!(layer().expect_err("an error expected").to_string(), pc);
    let wide = newton_schulz(Tensor::zeros(device::narrow(), &[100, 200]).expect("zeros"), NewtonSchulz::Simple, 1);
    let text = wide.expect_err("an error expected").to_string();
    assert!(text.starts_with("matmul: [100, 200] × [200, 100]: a binding of 80000 bytes, the limit is 65536"), "{text}");
    assert_eq!(newton_schulz_binding([100, 200]), 80_000);
}

#[test]
fn what_is_not_differentiable() {
    let [x, d] = random_arrays(2119, [&[301, 99], &[400, 60]]);
    let d = d.times(1.0 / d.norm()).map(|value| f64::from(value as f32));
    let want = iterate(&d, Coefficients::Simple, 3);
    for (gpu, narrow) in device::all().iter().zip(device::all_narrow()) {
        let statistics = |gpu| upload(gpu, &x).and_then(|x| rms_and_abs_max(&[&x, &x])?.to_vec()).expect("statistics");
        assert_eq!(statistics(gpu), statistics(narrow));
        // Tall: its Gram matrix is cut along the rows that it sums over.
        assert!(newton_schulz_binding([400, 60]) < device::NARROW && 4 * d.data.len() as u64 > device::NARROW);
        let got = upload(narrow, &d).and_then(|d| newton_schulz(d, NewtonSchulz::Simple, 3)?.to_vec()).expect("Newton–Schulz");
        assert_close("Newton–Schulz", &got, &want, tolerance::newton_schulz(3, 60, 400));
    }
}
