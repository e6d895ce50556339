use polytape::{Indices, Result, Var};
use rand::RngExt;

use crate::check::{assert_refused, check};
use crate::device;
use crate::reference::array::seeded;
use crate::reference::differences::random_arrays;
use crate::reference::embedding::{embedding, embedding_vjp};
use crate::tolerance::{EXACT, reduction};

fn look_up<'t>(table: &Var<'t>, ids: &[u32]) -> Result<Var<'t>> {
    table.embedding(&Indices::from_slice(table.value().gpu(), ids)?)
}

fn check_table(name: &str, shape: [usize; 2], ids: Vec<u32>) {
    let repeats = ids.iter().map(|id| ids.iter().filter(|other| *other == id).count()).max().unwrap_or(1);
    let on_device = ids.clone();
    check(
        name,
        random_arrays(1901, [&shape]),
        move |x| look_up(&x[0], &on_device),
        |x| embedding(&x[0], &ids),
        |x, dy| embedding_vjp(&x[0], &ids, dy),
        &[EXACT, reduction(repeats)],
    );
}

#[test]
fn rows_are_looked_up_and_their_gradients_collected() {
    let mut rng = seeded(1902);
    for (count, [vocabulary, dim]) in [(1, [1, 1]), (37, [7, 13]), (101, [37, 64]), (260, [130, 68])] {
        let ids = (0..count).map(|_| rng.random_range(0..vocabulary as u32)).collect();
        check_table("embedding", [vocabulary, dim], ids);
    }
}

#[test]
fn one_row_may_be_looked_up_everywhere() {
    check_table("embedding of one id", [5, 7], vec![3; 301]);
    check_table("embedding of the ends", [5, 4], vec![4, 0, 4, 4, 0]);
}

#[test]
fn ids_outside_of_the_table_are_refused() {
    let text = "embedding: index 7 at position 2: below 7 expected";
    assert_refused(&[&[7, 4]], |x| look_up(&x[0], &[6, 0, 7, 9]), text);
    assert_refused(&[&[7]], |x| look_up(&x[0], &[0]), "embedding: shape [7]: 2 dimensions expected");
    let error = Indices::from_slice(device::default(), &[]).expect_err("nothing to look up");
    assert_eq!(error.to_string(), "indices: no values given");
}
