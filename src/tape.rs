//! [`Tape`] and [`Var`]: record, backward, recompute. Knows no operation.
//!
//! A tape borrows its parameters, so an optimizer's step on them waits until the tape is gone:
//!
//! ```
//! use polytape::optim::{AdamW, Clip, Optimizer};
//! use polytape::{Gpu, Gradients, Params, Role, Tape, Tensor};
//!
//! # fn main() -> polytape::Result<()> {
//! let gpu = Gpu::open(&Default::default())?;
//! let mut params = Params::new(&gpu);
//! let w = params.add("w", Role::Vector, Tensor::from_slice(&gpu, &[1.0, 2.0], &[2])?)?;
//! let mut optimizer = AdamW::new(Default::default());
//! let mut gradients = Gradients::new();
//!
//! let tape = Tape::new(&params);
//! let loss = tape.param(w)?.sum()?;
//! tape.backward(&loss, &mut gradients)?;
//!
//! let clip = Clip::new(&gpu, &gradients, 1.0)?;
//! optimizer.step(&mut params, gradients, &clip, 0.1)?;
//! # Ok(())
//! # }
//! ```
//!
//! The same step while the tape is still needed does not compile:
//!
//! ```compile_fail,E0502
//! # use polytape::optim::{AdamW, Clip, Optimizer};
//! # use polytape::{Gpu, Gradients, Params, Role, Tape, Tensor};
//! #
//! # fn main() -> polytape::Result<()> {
//! # let gpu = Gpu::open(&Default::default())?;
//! # let mut params = Params::new(&gpu);
//! # let w = params.add("w", Role::Vector, Tensor::from_slice(&gpu, &[1.0, 2.0], &[2])?)?;
//! # let mut optimizer = AdamW::new(Default::default());
//! # let mut gradients = Gradients::new();
//! #
//! let tape = Tape::new(&params);
//! let loss = tape.param(w)?.sum()?;
//! tape.backward(&loss, &mut gradients)?;
//!
//! let clip = Clip::new(&gpu, &gradients, 1.0)?;
//! optimizer.step(&mut params, gradients, &clip, 0.1)?; // error[E0502]: `params` is also borrowed as immutable
//! println!("{} nodes", tape.len());
//! # Ok(())
//! # }
//! ```

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::params::{Gradient, Gradients, ParamId, Params, Role};
use crate::precision::Precision;
use crate::tensor::{MAX_RANK, Tensor};

type Backward = Box<dyn FnOnce(Tensor, &[bool], &mut Sink<'_>) -> Result<Vec<Option<Gradient>>>>;
/// [`Backward`] of an operation with several outputs; `None` for those that no gradient reached.
type BackwardOfSeveral = Box<dyn FnOnce(Vec<Option<Tensor>>, &[bool]) -> Result<Vec<Option<Gradient>>>>;

/// Where parameter gradients go while a tape is walked.
struct Sink<'a> {
    params: &'a Params,
    gradients: &'a mut Gradients,
}

enum Node {
    /// A leaf whose gradient [`Leaves`] returns.
    Leaf,
    /// A parameter, whose gradient goes straight into the step's accumulator.
    Param(ParamId),
    /// An operation: its name, its parents, and the closure that turns dy into the parents' gradients.
    Operation { op: &'static str, parents: Vec<Parent>, backward: Backward },
    /// An operation with several outputs. These are the nodes after it: the walk meets them first and stores their gradients here.
    Several { op: &'static str, parents: Vec<Parent>, gradients: Vec<Option<Tensor>>, backward: BackwardOfSeveral },
    /// The output at an index of the operation at a node.
    Output { operation: usize, at: usize },
}

/// An input of an operation.
struct Parent {
    /// `None` where no gradient flows into it.
    node: Option<usize>,
    rank: usize,
    sizes: [usize; MAX_RANK],
}

impl Parent {
    fn new(variable: &Var<'_>) -> Self {
        let (rank, mut sizes) = (variable.shape().len(), [0; MAX_RANK]);
        sizes[..rank].copy_from_slice(variable.shape());
        Self { node: variable.node, rank, sizes }
    }

    fn shape(&self) -> &[usize] {
        &self.sizes[..self.rank]
    }
}

/// Records operations on [`Var`]s so that [`Tape::backward`] can return gradients.
///
/// Nodes hold no outputs; what an operation's backward closure captures is what is kept, and it is dropped as soon as the walk
/// has passed it.
pub struct Tape<'p> {
    /// Tells its variables from those of others.
    number: u64,
    params: &'p Params,
    precision: Precision,
    recording: bool,
    walked: Cell<bool>,
    nodes: RefCell<Vec<Node>>,
}

/// Number of tapes so far.
static TAPES: AtomicU64 = AtomicU64::new(0);

/// A tensor whose operations its tape records.
#[derive(Clone)]
pub struct Var<'t> {
    tape: &'t Tape<'t>,
    value: Tensor,
    node: Option<usize>,
}

/// The gradients of a tape's leaves after a walk.
pub struct Leaves {
    /// The tape's number.
    tape: u64,
    gradients: BTreeMap<usize, Tensor>,
}

impl Leaves {
    /// The gradient of a leaf; `None` when nothing flowed into it, and for a variable of another tape.
    pub fn get(&self, leaf: &Var<'_>) -> Option<&Tensor> {
        let node = leaf.node.filter(|_| leaf.tape.number == self.tape);
        node.and_then(|node| self.gradients.get(&node))
    }
}

impl<'p> Tape<'p> {
    /// A tape over `params` that records.
    pub fn new(params: &'p Params) -> Self {
        let number = TAPES.fetch_add(1, Ordering::Relaxed);
        Self { number, params, precision: Precision::F32, recording: true, walked: Cell::default(), nodes: RefCell::default() }
    }

    /// A tape over `params` that records nothing: for evaluation. Nothing is kept for a backward.
    pub fn inference(params: &'p Params) -> Self {
        Self { recording: false, ..Self::new(params) }
    }

    /// The same tape with the products of its variables, and those of their gradients, at `precision`.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// What the products of its variables are rounded to.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The parameters it reads.
    pub fn params(&self) -> &'p Params {
        self.params
    }

    /// Number of nodes recorded.
    pub fn len(&self) -> usize {
        self.nodes.borrow().len()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn push(&self, node: Node) -> Option<usize> {
        self.recording.then(|| {
            let mut nodes = self.nodes.borrow_mut();
            nodes.push(node);
            nodes.len() - 1
        })
    }

    /// A parameter as a variable; one of [`Role::State`] has no gradient. An error where the tape's parameters have no such id.
    pub fn param(&self, id: ParamId) -> Result<Var<'_>> {
        let param = self.params.get(id)?;
        let node = if param.role == Role::State { None } else { self.push(Node::Param(id)) };
        Ok(Var { tape: self, value: param.tensor.clone(), node })
    }

    /// A variable whose gradient [`Tape::backward`] returns.
    pub fn leaf(&self, value: Tensor) -> Var<'_> {
        Var { tape: self, value, node: self.push(Node::Leaf) }
    }

    /// A variable without gradient.
    pub fn constant(&self, value: Tensor) -> Var<'_> {
        Var { tape: self, value, node: None }
    }

    /// The only way to record an operation: its name, its value, its parents, and a closure from dy to one gradient per parent.
    ///
    /// The closure's second argument says which parents want a gradient; for the others `None` saves the work. It returns
    /// gradients and never adds them: the tape alone accumulates. Nothing is recorded when no parent wants a gradient.
    pub fn record<const N: usize>(
        &self,
        op: &'static str,
        value: Tensor,
        parents: [&Var<'_>; N],
        backward: impl FnOnce(Tensor, [bool; N]) -> Result<[Option<Tensor>; N]> + 'static,
    ) -> Result<Var<'_>> {
        self.record_many(op, value, &parents, move |dy, wanted| {
            let wanted = std::array::from_fn(|i| wanted[i]);
            Ok(backward(dy, wanted)?.into())
        })
    }

    /// [`Tape::record`] for gradients that are accumulated in place.
    pub(crate) fn record_accumulating<const N: usize>(
        &self,
        op: &'static str,
        value: Tensor,
        parents: [&Var<'_>; N],
        backward: impl FnOnce(Tensor, [bool; N]) -> Result<[Option<Gradient>; N]> + 'static,
    ) -> Result<Var<'_>> {
        let backward = move |dy: Tensor, wanted: &[bool], _: &mut Sink<'_>| {
            let wanted = std::array::from_fn(|i| wanted[i]);
            Ok(backward(dy, wanted)?.into())
        };
        self.record_node(op, value, &parents, Box::new(backward))
    }

    /// [`Tape::record`] for a number of parents that is known only at run time.
    pub fn record_many(
        &self,
        op: &'static str,
        value: Tensor,
        parents: &[&Var<'_>],
        backward: impl FnOnce(Tensor, &[bool]) -> Result<Vec<Option<Tensor>>> + 'static,
    ) -> Result<Var<'_>> {
        let own = |gradients: Vec<Option<Tensor>>| gradients.into_iter().map(|gradient| gradient.map(Gradient::from)).collect();
        self.record_node(op, value, parents, Box::new(move |dy, wanted, _| Ok(own(backward(dy, wanted)?))))
    }

    fn record_node(&self, op: &'static str, value: Tensor, parents: &[&Var<'_>], backward: Backward) -> Result<Var<'_>> {
        self.check_parents(op, parents)?;
        let wanted = parents.iter().any(|parent| parent.node.is_some());
        let parents = parents.iter().map(|parent| Parent::new(parent)).collect();
        let node = if wanted { self.push(Node::Operation { op, parents, backward }) } else { None };
        Ok(Var { tape: self, value, node })
    }

    /// An operation with several outputs: their values in order, and a closure from one gradient per output, `None` where nothing flowed
    /// into it, to one per parent.
    pub(crate) fn record_several(
        &self,
        op: &'static str,
        values: Vec<Tensor>,
        parents: &[&Var<'_>],
        backward: impl FnOnce(Vec<Option<Tensor>>, &[bool]) -> Result<Vec<Option<Gradient>>> + 'static,
    ) -> Result<Vec<Var<'_>>> {
        self.check_parents(op, parents)?;
        let parents = parents.iter().map(|parent| Parent::new(parent)).collect();
        Ok(self.push_several(op, values, parents, Box::new(backward)))
    }

    /// [`Tape::record_several`] of an operation that may change in place what nothing else shares: `forward` takes the inputs' values.
    pub(crate) fn record_in_place(
        &self,
        op: &'static str,
        inputs: Vec<Var<'_>>,
        forward: impl FnOnce(Vec<Tensor>) -> Result<Vec<Tensor>>,
        backward: impl FnOnce(Vec<Option<Tensor>>, &[bool]) -> Result<Vec<Option<Gradient>>> + 'static,
    ) -> Result<Vec<Var<'_>>> {
        self.check_parents(op, &inputs.iter().collect::<Vec<_>>())?;
        let parents = inputs.iter().map(Parent::new).collect();
        let values = forward(inputs.into_iter().map(|input| input.value).collect())?;
        Ok(self.push_several(op, values, parents, Box::new(backward)))
    }

    fn push_several(
        &self,
        op: &'static str,
        values: Vec<Tensor>,
        parents: Vec<Parent>,
        backward: BackwardOfSeveral,
    ) -> Vec<Var<'_>> {
        let is_wanted = parents.iter().any(|parent| parent.node.is_some());
        let gradients = values.iter().map(|_| None).collect();
        let node = Node::Several { op, parents, gradients, backward };
        let operation = if is_wanted { self.push(node) } else { None };
        let output = |at| operation.and_then(|operation| self.push(Node::Output { operation, at }));
        values.into_iter().enumerate().map(|(at, value)| Var { tape: self, value, node: output(at) }).collect()
    }

    fn owns(&self, variable: &Var<'_>) -> bool {
        variable.tape.number == self.number
    }

    fn check_parents(&self, op: &'static str, parents: &[&Var<'_>]) -> Result<()> {
        match parents.iter().all(|parent| self.owns(parent)) {
            true => Ok(()),
            false => Err(Error::Value(format!("{op}: its inputs are variables of different tapes"))),
        }
    }

    /// Runs `f` on `inputs` keeping only the inputs; the backward runs `f` again. `f` may read parameters from the tape it is given.
    ///
    /// The gradients have the same bits as without, unless an input is also used outside of `f` or given twice: what flows into it from
    /// `f` is then summed by itself before it is added to the rest, instead of term by term.
    pub fn checkpoint<F>(&self, inputs: &[&Var<'_>], f: F) -> Result<Var<'_>>
    where
        F: for<'a> Fn(&'a Tape<'a>, &[Var<'a>]) -> Result<Var<'a>> + 'static,
    {
        self.check_parents("checkpoint", inputs)?;
        let kept: Vec<Tensor> = inputs.iter().map(|input| input.value.clone()).collect();
        let value = {
            let plain = Tape::inference(self.params).with_precision(self.precision);
            let variables: Vec<Var<'_>> = kept.iter().map(|value| plain.constant(value.clone())).collect();
            f(&plain, &variables)?.value
        };
        if !self.recording {
            return Ok(self.constant(value));
        }
        let precision = self.precision;
        let backward = move |dy: Tensor, wanted: &[bool], sink: &mut Sink<'_>| {
            let inner = Tape::new(sink.params).with_precision(precision);
            let lift = |(value, &wanted)| if wanted { inner.leaf(value) } else { inner.constant(value) };
            let variables: Vec<Var<'_>> = kept.into_iter().zip(wanted).map(lift).collect();
            let output = f(&inner, &variables)?;
            let mut leaves = inner.walk(vec![(output.node, dy)], sink)?;
            let take = |variable: &Var<'_>| Some(leaves.gradients.remove(&variable.node?)?.into());
            Ok(variables.iter().map(take).collect())
        };
        // Recorded even when no input wants a gradient: parameters inside may.
        let parents = inputs.iter().map(|input| Parent::new(input)).collect();
        let node = self.push(Node::Operation { op: "checkpoint", parents, backward: Box::new(backward) });
        Ok(Var { tape: self, value, node })
    }

    /// Walks the tape from a scalar, adding parameter gradients to `gradients` and returning those of the leaves.
    pub fn backward(&self, loss: &Var<'_>, gradients: &mut Gradients) -> Result<Leaves> {
        self.backward_scaled(loss, 1.0, gradients)
    }

    /// [`Tape::backward`] of `factor` times the loss.
    pub fn backward_scaled(&self, loss: &Var<'_>, factor: f32, gradients: &mut Gradients) -> Result<Leaves> {
        if loss.value.len() != 1 {
            let problem = format!("shape {:?}: a scalar expected; backward_from takes any shape", loss.shape());
            return Err(Error::shape("backward", &[loss.shape()], problem));
        }
        let seed = Tensor::from_slice(loss.value.gpu(), &[factor], loss.shape())?;
        self.backward_from(&[(loss, seed)], gradients)
    }

    /// Walks the tape from given gradients of given variables.
    pub fn backward_from(&self, seeds: &[(&Var<'_>, Tensor)], gradients: &mut Gradients) -> Result<Leaves> {
        for (var, gradient) in seeds {
            if !self.owns(var) {
                return Err(Error::Value("backward: a variable of another tape".into()));
            }
            if var.shape() != gradient.shape() {
                let problem = format!("a variable of shape {:?} and a gradient of shape {:?}", var.shape(), gradient.shape());
                return Err(Error::shape("backward_from", &[var.shape(), gradient.shape()], problem));
            }
        }
        let seeds = seeds.iter().map(|(var, gradient)| (var.node, gradient.clone())).collect();
        self.walk(seeds, &mut Sink { params: self.params, gradients })
    }

    fn walk(&self, seeds: Vec<(Option<usize>, Tensor)>, sink: &mut Sink<'_>) -> Result<Leaves> {
        if self.walked.replace(true) {
            return Err(Error::Value("backward: it has already run on this tape".into()));
        }
        let mut nodes = self.nodes.take();
        let mut pending: Vec<Option<Tensor>> = (0..nodes.len()).map(|_| None).collect();
        for (node, gradient) in seeds {
            if let Some(node) = node {
                Gradient::from(gradient).add_to(&mut pending[node])?;
            }
        }
        let mut leaves = Leaves { tape: self.number, gradients: BTreeMap::new() };
        while let Some(node) = nodes.pop() {
            let dy = pending[nodes.len()].take();
            match (node, dy) {
                (Node::Leaf, Some(dy)) => drop(leaves.gradients.insert(nodes.len(), dy)),
                (Node::Param(id), Some(dy)) => sink.gradients.add(id, dy)?,
                (Node::Operation { op, parents, backward }, Some(dy)) => {
                    let produced = backward(dy, &wanted(&parents), sink)?;
                    pass_on(op, parents, produced, &nodes, &mut pending, sink)?;
                }
                (Node::Output { operation, at }, Some(dy)) => match &mut nodes[operation] {
                    Node::Several { gradients, .. } => gradients[at] = Some(dy),
                    _ => unreachable!("bug: an output of an operation that has one"),
                },
                (Node::Several { op, parents, gradients, backward }, _) if gradients.iter().any(Option::is_some) => {
                    let produced = backward(gradients, &wanted(&parents))?;
                    pass_on(op, parents, produced, &nodes, &mut pending, sink)?;
                }
                _ => {}
            }
        }
        Ok(leaves)
    }
}

fn wanted(parents: &[Parent]) -> Vec<bool> {
    parents.iter().map(|parent| parent.node.is_some()).collect()
}

/// Adds the gradients that an operation's backward returned to what has flowed into its inputs so far.
fn pass_on(
    op: &'static str,
    parents: Vec<Parent>,
    produced: Vec<Option<Gradient>>,
    nodes: &[Node],
    pending: &mut [Option<Tensor>],
    sink: &mut Sink<'_>,
) -> Result<()> {
    check_gradients(op, &parents, &produced)?;
    for (at, gradient) in produced.into_iter().enumerate() {
        let (Some(parent), Some(gradient)) = (parents[at].node, gradient) else { continue };
        match (gradient, &nodes[parent]) {
            (Gradient::Together { count, add }, _) => {
                let together: Vec<usize> = parents[at..at + count].iter().filter_map(|parent| parent.node).collect();
                assert_eq!(together.len(), count, "bug: a gradient that nothing wants");
                let take = |&node: &usize| match nodes[node] {
                    Node::Param(id) => sink.gradients.take(id),
                    _ => pending[node].take(),
                };
                let sums = add(together.iter().map(take).collect())?;
                for (node, sum) in together.into_iter().zip(sums) {
                    match nodes[node] {
                        Node::Param(id) => sink.gradients.put(id, sum)?,
                        _ => pending[node] = Some(sum),
                    }
                }
            }
            (gradient, Node::Param(id)) => sink.gradients.add_gradient(*id, gradient)?,
            (gradient, _) => gradient.add_to(&mut pending[parent])?,
        }
    }
    Ok(())
}

/// Whether an operation's backward returned one gradient per input, each of the input's shape.
fn check_gradients(op: &'static str, parents: &[Parent], gradients: &[Option<Gradient>]) -> Result<()> {
    if gradients.len() != parents.len() {
        let problem =
            format!("its backward returned {} gradients, one for each of {} inputs expected", gradients.len(), parents.len());
        let shapes: Vec<&[usize]> = parents.iter().map(Parent::shape).collect();
        return Err(Error::shape(op, &shapes, problem));
    }
    for (at, (parent, gradient)) in parents.iter().zip(gradients).enumerate() {
        let Some(Gradient::Tensor(gradient)) = gradient else { continue };
        if gradient.shape() != parent.shape() {
            let (found, expected) = (gradient.shape(), parent.shape());
            let problem = format!("its gradient for input {at} has shape {found:?}, {expected:?} expected");
            return Err(Error::shape(op, &[found, expected], problem));
        }
    }
    Ok(())
}

impl<'t> Var<'t> {
    /// The tape that records its operations.
    pub fn tape(&self) -> &'t Tape<'t> {
        self.tape
    }

    /// Its value.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// Sizes of its dimensions.
    pub fn shape(&self) -> &[usize] {
        self.value.shape()
    }

    /// Whether a gradient will flow into it.
    pub fn wants_gradient(&self) -> bool {
        self.node.is_some()
    }
}
