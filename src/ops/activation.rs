//! silu x·σ(x), gelu x·Φ(x), relu, tanh, exp, log: y = f(x), dx = dy·f'(x). Saves x.

use crate::error::Result;
use crate::gpu::{Access, Kernel, with_twin};
use crate::tape::Var;
use crate::tensor::{Tensor, map};

const SOURCE: &str = include_str!("../../shaders/activation.wgsl");

static FORWARD: Kernel =
    with_twin!(Kernel::trusted("activation", SOURCE, "forward", &[Access::Read, Access::ReadWrite]), twins::forward);
static BACKWARD: Kernel = with_twin!(
    Kernel::trusted("activation backward", SOURCE, "backward", &[Access::Read, Access::Read, Access::ReadWrite]),
    twins::backward
);

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

#[cfg(feature = "host")]
mod twins {
    use super::Function;
    use crate::gpu::host::Host;
    use crate::gpu::host::simd::{exp, sigmoid};

    impl Function {
        fn of(host: &Host<'_>) -> Self {
            let all = [Self::Silu, Self::Gelu, Self::Relu, Self::Tanh, Self::Exp, Self::Log];
            all[host.constant("FUNCTION") as usize]
        }
    }

    pub(super) fn forward(host: &Host<'_>) {
        match Function::of(host) {
            Function::Silu => map_values(host, silu),
            Function::Gelu => map_values(host, gelu),
            Function::Relu => map_values(host, |v| v.max(0.0)),
            Function::Tanh => map_values(host, tanh),
            Function::Exp => map_values(host, exp),
            Function::Log => map_values(host, f32::ln),
        }
    }

    pub(super) fn backward(host: &Host<'_>) {
        match Function::of(host) {
            Function::Silu => map_gradient(host, silu_derivative),
            Function::Gelu => map_gradient(host, gelu_derivative),
            Function::Relu => map_gradient(host, |v| if v > 0.0 { 1.0 } else { 0.0 }),
            Function::Tanh => map_gradient(host, tanh_derivative),
            Function::Exp => map_gradient(host, exp),
            Function::Log => map_gradient(host, f32::recip),
        }
    }

    fn map_values(host: &Host<'_>, f: impl Fn(f32) -> f32 + Sync) {
        let (x, [y]) = (host.input(0), host.outputs());
        host.map(
            8,
            [y],
            #[inline(always)]
            |range, [y]| {
                for (y, x) in y.iter_mut().zip(&x[range]) {
                    *y = f(*x);
                }
            },
        );
    }

    fn map_gradient(host: &Host<'_>, derivative: impl Fn(f32) -> f32 + Sync) {
        let (x, dy, [dx]) = (host.input(0), host.input(1), host.outputs());
        host.map(
            8,
            [dx],
            #[inline(always)]
            |range, [dx]| {
                for ((dx, x), dy) in dx.iter_mut().zip(&x[range.clone()]).zip(&dy[range]) {
                    *dx = dy * derivative(*x);
                }
            },
        );
    }

    #[inline(always)]
    fn silu(v: f32) -> f32 {
        v * sigmoid(v)
    }

    #[inline(always)]
    fn silu_derivative(v: f32) -> f32 {
        let s = sigmoid(v);
        s * (1.0 + v * (1.0 - s))
    }

    #[inline(always)]
    fn gelu(v: f32) -> f32 {
        v * normal_cdf(v)
    }

    #[inline(always)]
    fn gelu_derivative(v: f32) -> f32 {
        normal_cdf(v) + v * 0.398_942_3 * exp(-0.5 * v * v)
    }

    /// As the shader: a series near 0, where (1 - e)/(1 + e) cancels.
    #[inline(always)]
    fn tanh(v: f32) -> f32 {
        let e = exp(-2.0 * v.abs());
        let large = ((1.0 - e) / (1.0 + e)).copysign(v);
        let square = v * v;
        let series = -0.333_333_34 + square * (0.133_333_34 + square * (-0.053_968_25 + square * 0.021_869_49));
        let small = v * (1.0 + square * series);
        if v.abs() < 0.3 { small } else { large }
    }

    #[inline(always)]
    fn tanh_derivative(v: f32) -> f32 {
        let e = exp(-2.0 * v.abs());
        4.0 * e / ((1.0 + e) * (1.0 + e))
    }

    /// Φ by the shader's approximation.
    #[inline(always)]
    fn normal_cdf(v: f32) -> f32 {
        let z = v.abs() * std::f32::consts::FRAC_1_SQRT_2;
        let t = 1.0 / (1.0 + 0.327_591_1 * z);
        let series = 1.421_413_8 + t * (-1.453_152_1 + t * 1.061_405_4);
        let series = t * (0.254_829_6 + t * (-0.284_496_74 + t * series));
        let tail = 0.5 * series * exp(-z * z);
        if v < 0.0 { tail } else { 1.0 - tail }
    }
}
