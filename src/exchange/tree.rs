//! The sum of a step's gradients: leaves that are joined in a binary tree by index, in the same way wherever they were computed.

use crate::error::Result;
use crate::params::Gradients;
use crate::tensor::Tensor;

/// The loss and the gradients of some of a step's micro-batches.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) loss: Tensor,
    pub(crate) gradients: Gradients,
}

impl Leaf {
    /// The sum of two neighbours.
    pub(crate) fn join(mut self, right: Self) -> Result<Self> {
        self.loss = self.loss.accumulate(right.loss)?;
        for (id, gradient) in right.gradients.into_present() {
            self.gradients.add(id, gradient)?;
        }
        Ok(self)
    }
}

/// Joins values that come in order, each pair as soon as it is complete: at most one waits on each level.
pub(crate) struct Tree<T> {
    /// (Leaves below, value), the largest first.
    waiting: Vec<(usize, T)>,
}

impl<T> Tree<T> {
    pub(crate) fn new() -> Self {
        Self { waiting: Vec::new() }
    }

    /// The next leaf.
    pub(crate) fn push(&mut self, leaf: T, mut join: impl FnMut(T, T) -> Result<T>) -> Result<()> {
        let (mut leaves, mut value) = (1, leaf);
        while let Some((below, left)) = self.waiting.pop() {
            if below != leaves {
                self.waiting.push((below, left));
                break;
            }
            value = join(left, value)?;
            leaves *= 2;
        }
        self.waiting.push((leaves, value));
        Ok(())
    }

    /// What has not been joined yet, the nearest last.
    pub(crate) fn into_waiting(self) -> impl Iterator<Item = T> {
        self.waiting.into_iter().map(|(_, value)| value)
    }

    /// The root, once there is a power of two of leaves; `None` of no leaves.
    pub(crate) fn root(mut self) -> Option<T> {
        let root = self.waiting.pop();
        assert!(self.waiting.is_empty(), "bug: a tree with a number of leaves that is no power of two");
        root.map(|(_, value)| value)
    }
}

/// The root over values that are all there.
pub(crate) fn root<T>(leaves: impl IntoIterator<Item = T>, join: impl Fn(T, T) -> Result<T>) -> Result<Option<T>> {
    let mut tree = Tree::new();
    leaves.into_iter().try_for_each(|leaf| tree.push(leaf, &join))?;
    Ok(tree.root())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_join_by_index() {
        let join = |a: String, b: String| Ok(format!("({a}{b})"));
        let of = |count: usize| root((0..count).map(|i| i.to_string()), join).expect("a tree");
        assert_eq!([1, 2, 4, 8].map(|n| of(n).expect("a root")), ["0", "(01)", "((01)(23))", "(((01)(23))((45)(67)))"]);
        assert_eq!(of(0), None);
    }
}
