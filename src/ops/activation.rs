//! silu x·σ(x), gelu x·Φ(x), relu, tanh, exp, log: y = f(x), dx = dy·f'(x). Saves x.

use crate::error::Result;
use crate::gpu::{Access, Kernel};
use crate::tape::Var;
use crate::tensor::{Tensor, map};

const SOURCE: &str = include_str!("../../shaders/activation.wgsl");

static FORWARD: Kernel = Kernel::trusted("activation", SOURCE, "forward", &[Access::Read, Access::ReadWrite]);
static BACKWARD: Kernel =
    Kernel::trusted("activation backward", SOURCE, "backward", &[Access::Read, Access::Read, Access::ReadWrite]);

/// The shader's numbers for the functions.
#[derive(Clone, Copy)]
enum Function {
    Silu,
    Gelu,
    Relu,
    Tanh,
    Exp,
    Log,
}

impl<'t> Var<'t> {
    /// x·σ(x).
    pub fn silu(&self) -> Result<Var<'t>> {
        self.activate("silu", Function::Silu)
    }

    /// x·Φ(x) with the normal distribution function Φ, to an absolute error of 2e-7·|x|.
    pub fn gelu(&self) -> Result<Var<'t>> {
        self.activate("gelu", Function::Gelu)
    }

    /// max(x, 0), with derivative 0 at 0.
    pub fn relu(&self) -> Result<Var<'t>> {
        self.activate("relu", Function::Relu)
    }

    /// The hyperbolic tangent.
    pub fn tanh(&self) -> Result<Var<'t>> {
        self.activate("tanh", Function::Tanh)
    }

    /// eˣ.
    pub fn exp(&self) -> Result<Var<'t>> {
        self.activate("exp", Function::Exp)
    }

    /// The natural logarithm.
    pub fn log(&self) -> Result<Var<'t>> {
        self.activate("log", Function::Log)
    }

    fn activate(&self, op: &'static str, function: Function) -> Result<Var<'t>> {
        let x = self.value().clone();
        let constants = [("FUNCTION", function as u32)];
        let y = Tensor::uninitialized(x.gpu(), x.shape())?;
        map(&FORWARD, &constants, &[&x, &y], None, &[])?;
        self.tape().record(op, y, [self], move |dy, _| {
            let dx = Tensor::uninitialized(x.gpu(), x.shape())?;
            map(&BACKWARD, &constants, &[&x, &dy, &dx], None, &[])?;
            Ok([Some(dx)])
        })
    }
}
