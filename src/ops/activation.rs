//! silu x·σ(x), gelu x·Φ(x), relu, tanh, exp, log: y = f(x), dx = dy·f'(x). Saves x.

use crate::error::Result;
use crate::gpu::{Access, Kernel};
use crate::tape::Var;
use crate::tensor::{Tensor, map};

const SOURCE: &str = include_str!("../../shaders/activation.wgsl");

static FORWARD: Kernel = Kernel::trusted("activation", SOURCE, "forward", &[Access::Read, Access::ReadWrite]);
static BACKWARD: Kernel =
    Kernel::trusted("activation backward", SOURCE, "backward", &[Access::Read, Access::Read, Access::ReadWrite]);

/// Values of the shader's FUNCTION constant.
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
    /// SiLU, elementwise: `y = x·σ(x)`, σ the logistic function. Backward: `dx = dy·σ(x)·(1 + x·(1 - σ(x)))`. Errors: only the
    /// device's.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.leaf(Tensor::zeros(&gpu, &[1])?);
    /// let y = x.silu()?;
    /// assert_eq!(y.value().item()?, 0.0);
    /// let gradients = tape.backward(&y, &mut Gradients::new())?;
    /// assert!((gradients.get(&x).unwrap().item()? - 0.5).abs() < 1e-6);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn silu(&self) -> Result<Var<'t>> {
        self.activate("silu", Function::Silu)
    }

    /// GELU, elementwise: `y = x·Φ(x)`, Φ the normal distribution function, to an absolute error of 2e-7·|x|; not the tanh
    /// approximation. Backward: `dx = dy·(Φ(x) + x·φ(x))`, φ the normal density. Errors: only the device's.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.leaf(Tensor::from_slice(&gpu, &[1.0], &[1])?);
    /// let y = x.gelu()?;
    /// assert!((y.value().item()? - 0.841345).abs() < 1e-5);
    /// let gradients = tape.backward(&y, &mut Gradients::new())?;
    /// assert!((gradients.get(&x).unwrap().item()? - 1.083316).abs() < 1e-5);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn gelu(&self) -> Result<Var<'t>> {
        self.activate("gelu", Function::Gelu)
    }

    /// ReLU, elementwise: `y = max(x, 0)`. Backward: `dx = dy` where `x > 0`, else 0, also at `x = 0`. Errors: only the device's.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.leaf(Tensor::from_slice(&gpu, &[-1.0, 0.0, 2.0], &[3])?);
    /// let y = x.relu()?;
    /// assert_eq!(y.value().to_vec()?, [0.0, 0.0, 2.0]);
    /// let gradients = tape.backward(&y.sum()?, &mut Gradients::new())?;
    /// assert_eq!(gradients.get(&x).unwrap().to_vec()?, [0.0, 0.0, 1.0]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn relu(&self) -> Result<Var<'t>> {
        self.activate("relu", Function::Relu)
    }

    /// Hyperbolic tangent, elementwise. Backward: `dx = dy/cosh²(x)`, exact to f32 where tanh saturates. Errors: only the device's.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.leaf(Tensor::from_slice(&gpu, &[0.0, 100.0], &[2])?);
    /// let y = x.tanh()?;
    /// assert_eq!(y.value().to_vec()?, [0.0, 1.0]);
    /// let gradients = tape.backward(&y.sum()?, &mut Gradients::new())?;
    /// assert_eq!(gradients.get(&x).unwrap().to_vec()?, [1.0, 0.0]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn tanh(&self) -> Result<Var<'t>> {
        self.activate("tanh", Function::Tanh)
    }

    /// Exponential, elementwise: `y = eˣ`; infinite above x = 88.7. Backward: `dx = dy·eˣ`. Errors: only the device's.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.leaf(Tensor::zeros(&gpu, &[1])?);
    /// let y = x.exp()?;
    /// assert!((y.value().item()? - 1.0).abs() < 1e-6);
    /// let gradients = tape.backward(&y, &mut Gradients::new())?;
    /// assert!((gradients.get(&x).unwrap().item()? - 1.0).abs() < 1e-6);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn exp(&self) -> Result<Var<'t>> {
        self.activate("exp", Function::Exp)
    }

    /// Natural logarithm, elementwise, of positive values; what an adapter returns for others is undefined. Backward:
    /// `dx = dy/x`. Errors: only the device's.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.leaf(Tensor::from_slice(&gpu, &[2.0], &[1])?);
    /// let y = x.log()?;
    /// assert!((y.value().item()? - 0.693147).abs() < 1e-6);
    /// let gradients = tape.backward(&y, &mut Gradients::new())?;
    /// assert!((gradients.get(&x).unwrap().item()? - 0.5).abs() < 1e-6);
    /// # Ok::<(), Error>(())
    /// ```
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
