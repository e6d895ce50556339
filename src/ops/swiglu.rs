//! SwiGLU: y = silu(gate)·up. Saves gate and up. dgate = dy·up·silu'(gate), dup = dy·silu(gate), in one pass.

use crate::error::{Error, Result};
use crate::gpu::{Access, Kernel, with_twin};
use crate::tape::Var;
use crate::tensor::{Tensor, map};

const SOURCE: &str = include_str!("../../shaders/swiglu.wgsl");

static FORWARD: Kernel =
    with_twin!(Kernel::trusted("swiglu", SOURCE, "forward", &[Access::Read, Access::Read, Access::ReadWrite]), twins::forward);
static BACKWARD: Kernel = with_twin!(
    Kernel::trusted(
        "swiglu backward",
        SOURCE,
        "backward",
        &[Access::Read, Access::Read, Access::Read, Access::ReadWrite, Access::ReadWrite],
    ),
    twins::backward
);

impl<'t> Var<'t> {
    /// SwiGLU, elementwise: `y = silu(self)·up`; self is the gate. Backward, with s = σ(self): `dself = dy·up·s·(1 + self·(1 - s))`,
    /// `dup = dy·self·s`, in one pass. An error unless the shapes are equal.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let gate = tape.leaf(Tensor::zeros(&gpu, &[1])?);
    /// let up = tape.leaf(Tensor::from_slice(&gpu, &[3.0], &[1])?);
    /// let y = gate.swiglu(&up)?;
    /// assert_eq!(y.value().item()?, 0.0);
    /// let gradients = tape.backward(&y, &mut Gradients::new())?;
    /// assert!((gradients.get(&gate).unwrap().item()? - 1.5).abs() < 1e-6);
    /// assert_eq!(gradients.get(&up).unwrap().item()?, 0.0); // silu(0)
    /// # Ok::<(), Error>(())
    /// ```
    pub fn swiglu(&self, up: &Var<'t>) -> Result<Var<'t>> {
        let (gate, up_value) = (self.value().clone(), up.value().clone());
        if gate.shape() != up_value.shape() {
            let problem = format!("{:?} and {:?}: the shapes differ", gate.shape(), up_value.shape());
            return Err(Error::shape("swiglu", &[gate.shape(), up_value.shape()], problem));
        }
        let y = Tensor::uninitialized(gate.gpu(), gate.shape())?;
        map(&FORWARD, &[], &[&gate, &up_value, &y], None, &[])?;
        self.tape().record("swiglu", y, [self, up], move |dy, _| {
            // In one buffer: both may be products of one input.
            let gradients = Tensor::uninitialized_parts(gate.gpu(), gate.shape(), 2)?;
            map(&BACKWARD, &[], &[&gate, &up_value, &dy, &gradients[0], &gradients[1]], None, &[])?;
            Ok(gradients.try_into().map(|gradients: [Tensor; 2]| gradients.map(Some)).expect("bug: not two gradients"))
        })
    }
}

#[cfg(feature = "host")]
mod twins {
    use crate::gpu::host::Host;
    use crate::gpu::host::simd::{exp, sigmoid};

    pub(super) fn forward(host: &Host<'_>) {
        let (gate, up, [y]) = (host.input(0), host.input(1), host.outputs());
        host.map(
            8,
            [y],
            #[inline(always)]
            |range, [y]| {
                for ((y, gate), up) in y.iter_mut().zip(&gate[range.clone()]).zip(&up[range]) {
                    *y = gate / (1.0 + exp(-gate)) * up;
                }
            },
        );
    }

    pub(super) fn backward(host: &Host<'_>) {
        let (gate, up, dy, [dgate, dup]) = (host.input(0), host.input(1), host.input(2), host.outputs());
        host.map(
            8,
            [dgate, dup],
            #[inline(always)]
            |range, [dgate, dup]| {
                let inputs = gate[range.clone()].iter().zip(&up[range.clone()]).zip(&dy[range]);
                for ((dgate, dup), ((gate, up), dy)) in dgate.iter_mut().zip(dup).zip(inputs) {
                    let s = sigmoid(*gate);
                    let scaled = dy * s;
                    *dgate = scaled * up * gate.mul_add(1.0 - s, 1.0);
                    *dup = scaled * gate;
                }
            },
        );
    }
}
