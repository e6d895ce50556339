//! Who owns what: a pure function of the parameters and the number of shares, so that all ranks agree without communicating.

use std::ops::Range;

use super::wire::Wire;
use crate::error::{Error, Result};
use crate::ops::CHUNK;
use crate::optim::Optimizer;
use crate::params::{Param, ParamId, Params, Role};
use crate::spectral::Preconditioner;

/// Maximum values per bucket: even with a flag word per value, a message stays below 2 GiB.
const MOST_VALUES: usize = 1 << 27;
/// FLOP that take about as long as an optimizer's pass over one value.
const PASS: usize = 32;

/// A parameter, or rows of one, with one owner.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    /// The parameter in the complete set.
    pub(crate) param: ParamId,
    /// Its name there.
    pub(crate) name: String,
    pub(crate) role: Role,
    /// Of the whole parameter.
    pub(crate) shape: Vec<usize>,
    /// What of its first dimension.
    pub(crate) rows: Range<usize>,
    /// Its share of the work.
    pub(crate) share: usize,
    /// Whether the model sees it: all but the u, v and γ of PC layers.
    pub(crate) visible: bool,
}

/// Every parameter, divided into items and dealt to shares.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// In order of parameters and rows.
    pub(crate) items: Vec<Item>,
    pub(crate) shares: usize,
}

/// A parameter, as far as its owner depends on it.
#[derive(Debug, Clone, Copy)]
pub struct Dealt<'a> {
    /// What it is.
    pub role: Role,
    /// Sizes of its dimensions.
    pub shape: &'a [usize],
    /// Products with a matrix of its smaller side's size that its PC layer and its update take in a step.
    pub products: usize,
}

/// A parameter, or rows of one, with the share that owns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DealtPiece {
    /// Its position in the list.
    pub parameter: usize,
    /// What of its first dimension.
    pub rows: Range<usize>,
    /// Of `ranks` ranks, the owner is share · ranks / shares.
    pub share: usize,
}

/// Deals parameters to shares by work, longest first, each to the share with the least. Embedding and head are divided by rows.
pub fn deal(parameters: &[Dealt<'_>], shares: usize) -> Vec<DealtPiece> {
    let mut dealt = Vec::new();
    for (parameter, one) in parameters.iter().enumerate() {
        dealt.extend(pieces(one.role, one.shape, shares).into_iter().map(|rows| DealtPiece { parameter, rows, share: 0 }));
    }
    let work = |piece: &DealtPiece| {
        let Dealt { shape, products, .. } = parameters[piece.parameter];
        let side = shape.iter().copied().min().unwrap_or(1);
        piece.rows.len() * shape[1..].iter().product::<usize>() * (PASS + 2 * side * products)
    };
    let mut order: Vec<usize> = (0..dealt.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse(work(&dealt[at])));
    let mut loads = vec![0; shares];
    for at in order {
        let share = (0..shares).min_by_key(|&share| loads[share]).unwrap_or(0);
        dealt[at].share = share;
        loads[share] += work(&dealt[at]);
    }
    dealt
}

/// Bytes that all ranks together send in a step, to the byte: every gradient but the owner's and every weight to all others, a word for each part of a
/// bucket and for each loss, the partial sums of the norm with a word for each parameter, and the first rank's loss and norm. `hidden` parameters, of less than one
/// partial sum each, are trained but not seen by the model.
pub fn step_bytes(parameters: &[Dealt<'_>], hidden: usize, shares: usize, ranks: usize, wire: Wire) -> u64 {
    let pieces = deal(parameters, shares);
    let columns = |piece: &DealtPiece| parameters[piece.parameter].shape[1..].iter().product::<usize>();
    let sum = |of: &dyn Fn(&DealtPiece) -> usize| pieces.iter().map(of).sum::<usize>();
    let values = sum(&|piece| piece.rows.len() * columns(piece));
    let bucket = bucket_size(values, ranks, None);
    let parts = sum(&|piece| piece.rows.len().div_ceil(rows_of_part(bucket, columns(piece))));
    let partials = sum(&|piece| (piece.rows.len() * columns(piece)).div_ceil(CHUNK));
    let words = parts + pieces.len() + partials + 2 * hidden + ranks + 2;
    ((ranks - 1) * (2 * wire.size() * values + 4 * words)) as u64
}

/// Values per bucket, as wanted or else few enough that the first are on their way while others are being computed, and enough that a
/// message costs little.
pub(super) fn bucket_size(values: usize, ranks: usize, wanted: Option<usize>) -> usize {
    wanted.map_or_else(|| (values / ranks / 16).clamp(64 << 10, 4 << 20), |wanted| wanted.clamp(1, MOST_VALUES))
}

/// Rows of a parameter that travel together.
pub(super) fn rows_of_part(bucket: usize, columns: usize) -> usize {
    (bucket / columns).max(1)
}

impl Item {
    /// Its name at its owner.
    pub(crate) fn own_name(&self) -> String {
        if self.is_whole() { self.name.clone() } else { format!("{}[{}..{}]", self.name, self.rows.start, self.rows.end) }
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.rows == (0..self.shape[0])
    }

    /// Values per row.
    pub(crate) fn columns(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Its shape at its owner.
    pub(crate) fn own_shape(&self) -> Vec<usize> {
        [&[self.rows.len()], &self.shape[1..]].concat()
    }

    pub(crate) fn numel(&self) -> usize {
        self.rows.len() * self.columns()
    }

    /// Whether a gradient flows into it.
    pub(crate) fn is_trainable(&self) -> bool {
        self.role != Role::State
    }
}

impl Layout {
    /// Deals the parameters that the model sees; u, v and γ go with their matrix.
    pub(crate) fn new(
        params: &Params,
        preconditioner: Option<&Preconditioner>,
        optimizer: &dyn Optimizer,
        shares: usize,
    ) -> Result<Self> {
        let companions: Vec<(ParamId, Vec<ParamId>)> = preconditioner.map(Preconditioner::companions).unwrap_or_default();
        let is_companion = |id: ParamId| companions.iter().any(|(_, others)| others.contains(&id));
        let seen: Vec<(ParamId, &Param)> = params.iter().filter(|(id, _)| !is_companion(*id)).collect();
        let dealt = |&(id, param): &(ParamId, &'_ Param)| {
            let layer = preconditioner.filter(|pc| pc.weights().any(|weight| weight == id));
            layer.map_or(0, |pc| pc.config().products()) + optimizer.products(param.role)
        };
        let list: Vec<Dealt<'_>> =
            seen.iter().map(|one| Dealt { role: one.1.role, shape: one.1.tensor.shape(), products: dealt(one) }).collect();
        let item = |(id, param): (ParamId, &Param), rows: Range<usize>, share: usize, visible: bool| {
            let (name, shape) = (param.name.clone(), param.tensor.shape().to_vec());
            Item { param: id, name, role: param.role, shape, rows, share, visible }
        };
        let mut items: Vec<Item> =
            deal(&list, shares).into_iter().map(|piece| item(seen[piece.parameter], piece.rows, piece.share, true)).collect();
        for (weight, others) in companions {
            let share = items.iter().find(|item| item.param == weight).map_or(0, |item| item.share);
            for id in others {
                let param = params.get(id)?;
                items.push(item((id, param), 0..param.tensor.shape()[0], share, false));
            }
        }
        items.sort_by_key(|item| (item.param, item.rows.start));
        Ok(Self { items, shares })
    }

    /// The rank that owns an item.
    pub(crate) fn owner(&self, item: &Item, ranks: usize) -> usize {
        item.share * ranks / self.shares
    }

    /// An error unless the shares divide evenly between that many ranks.
    pub(crate) fn check(&self, ranks: usize) -> Result<()> {
        if ranks > 0 && self.shares.is_multiple_of(ranks) {
            return Ok(());
        }
        Err(Error::Value(format!("{ranks} ranks: a divisor of the {} replicas expected", self.shares)))
    }
}

/// The rows of each item of a parameter: the embedding and the head are divided, where a piece still begins with a partial sum of the
/// gradient norm, so that the sums are those of the whole.
fn pieces(role: Role, shape: &[usize], shares: usize) -> Vec<Range<usize>> {
    let rows = shape[0];
    if !matches!(role, Role::Embedding | Role::Head) {
        return std::iter::once(0..rows).collect();
    }
    let columns: usize = shape[1..].iter().product();
    let least = CHUNK >> columns.trailing_zeros().min(CHUNK.ilog2());
    let step = rows.div_ceil(shares).next_multiple_of(least);
    (0..rows).step_by(step).map(|first| first..rows.min(first + step)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_has_a_size_that_can_be_sent() {
        let size = |wanted| bucket_size(1 << 30, 4, wanted);
        assert_eq!([None, Some(0), Some(1000), Some(usize::MAX)].map(size), [4 << 20, 1, 1000, MOST_VALUES]);
        assert_eq!(bucket_size(1000, 4, None), 64 << 10);
    }

    #[test]
    fn tables_are_cut_where_a_partial_sum_begins() {
        let whole = |rows| std::iter::once(0..rows).collect::<Vec<_>>();
        assert_eq!(pieces(Role::Matrix, &[4096, 256], 4), whole(4096));
        assert_eq!(pieces(Role::Embedding, &[4096, 256], 4), [0..1024, 1024..2048, 2048..3072, 3072..4096]);
        assert_eq!(pieces(Role::Head, &[1000, 256], 4), [0..256, 256..512, 512..768, 768..1000]);
        assert_eq!(pieces(Role::Head, &[50, 32], 4), whole(50), "less than one sum");
        assert_eq!(pieces(Role::Head, &[40_000, 7], 2), [0..32_768, 32_768..40_000]);
    }
}
