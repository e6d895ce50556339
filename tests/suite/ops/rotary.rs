use polytape::{Result, RotaryTable, Var};

use crate::check::{assert_refused, check};
use crate::device;
use crate::reference::differences::random_arrays;
use crate::reference::rotary::{Rotary, Scaling, rotary, rotary_vjp};
use crate::tolerance;

#[test]
fn rotary_matches() {
    // [batch, seq, heads, head_dim]: half of head_dim is and is not a multiple of four; more positions than invocations in a workgroup.
    for [batch, seq, heads, head_dim] in [[1, 1, 1, 2], [2, 7, 3, 14], [2, 37, 2, 8], [1, 101, 4, 64]] {
        let settings = Rotary { seq, head_dim, offset: 0, theta: 10_000.0, scaling: Scaling::None };
        check(
            "rotary",
            random_arrays(2001, [&[batch * seq, heads * head_dim]]),
            move |x| {
                // Longer than the sequence, as a model's table usually is.
                let table = RotaryTable::new(x[0].value().gpu(), seq + 5, head_dim, 10_000.0)?;
                x[0].rotary(&table, seq)
            },
            |x| rotary(&x[0], settings),
            |_, dy| rotary_vjp(settings, dy),
            &[tolerance::ELEMENTWISE],
        );
    }
}

#[test]
fn a_table_of_given_frequencies_rotates_and_multiplies() {
    // YaRN's frequencies and its factor: the backward rotates back and multiplies, too.
    let scaling = Scaling::Yarn { factor: 4.0, fast: 8.0, slow: 1.0, original: 64.0, attention: 1.25 };
    for [seq, heads, head_dim] in [[37, 2, 14], [101, 3, 16]] {
        let settings = Rotary { seq, head_dim, offset: 0, theta: 10_000.0, scaling };
        let frequencies: Vec<f64> = (0..head_dim / 2).map(|i| settings.frequency(i)).collect();
        check(
            "rotary with frequencies",
            random_arrays(2002, [&[2 * seq, heads * head_dim]]),
            move |x| x[0].rotary(&RotaryTable::with_frequencies(x[0].value().gpu(), seq, &frequencies, 1.25)?, seq),
            |x| rotary(&x[0], settings),
            |_, dy| rotary_vjp(settings, dy),
            &[tolerance::ELEMENTWISE],
        );
    }
}

fn rotate<'t>(x: &Var<'t>, sequence: usize) -> Result<Var<'t>> {
    x.rotary(&RotaryTable::new(x.value().gpu(), 8, 4, 100.0)?, sequence)
}

#[test]
fn shapes_that_are_no_positions_are_refused() {
    let heads = "rotary: [6, 10]: whole sequences of 3 and heads of 4 expected";
    assert_refused(&[&[6, 10]], |x| rotate(&x[0], 3), heads);
    let sequences = "rotary: [7, 8]: whole sequences of 3 and heads of 4 expected";
    assert_refused(&[&[7, 8]], |x| rotate(&x[0], 3), sequences);
    let positions = "rotary: positions 0..9, the table has 8";
    assert_refused(&[&[9, 8]], |x| rotate(&x[0], 9), positions);
    assert_refused(&[&[2, 3, 8]], |x| rotate(&x[0], 3), "rotary: shape [2, 3, 8]: 2 dimensions expected");
    let error = RotaryTable::new(device::default(), 8, 7, 100.0).expect_err("an odd head");
    assert_eq!(error.to_string(), "rotary: head_dim 7: an even number above 0 expected");
    let error = RotaryTable::with_frequencies(device::default(), 8, &[], 1.0).expect_err("no head");
    assert_eq!(error.to_string(), "rotary: no frequencies: one or more expected");
}
