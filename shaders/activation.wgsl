// y = f(x) and dx = dy·f'(x) for the function selected by the constant FUNCTION.

struct Args { count: u32, first: u32 }

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> x: array<vec4f>;
@group(0) @binding(1) var<storage, read> dy: array<vec4f>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> dx: array<vec4f>;

const SILU: u32 = 0u;
const GELU: u32 = 1u;
const RELU: u32 = 2u;
const TANH: u32 = 3u;
const EXP: u32 = 4u;
const LOG: u32 = 5u;

fn sigmoid(v: vec4f) -> vec4f { return 1.0 / (1.0 + exp(-v)); }

// With e = exp(-2|v|): ±(1 - e)/(1 + e), which cancels near 0; there the Taylor series is used.
fn safe_tanh(v: vec4f) -> vec4f {
    let e = exp(-2.0 * abs(v));
    let large = sign(v) * (1.0 - e) / (1.0 + e);
    let square = v * v;
    let small = v * (1.0 + square * (-0.33333333 + square * (0.13333333 + square * (-0.05396825 + square * 0.02186949))));
    return select(large, small, abs(v) < vec4f(0.3));
}

// Φ(v) = ½·erfc(-v/√2) by the rational approximation 7.1.26 of Abramowitz and Stegun, absolute error below 1.5e-7.
fn normal_cdf(v: vec4f) -> vec4f {
    let z = abs(v) * 0.70710678;
    let t = 1.0 / (1.0 + 0.3275911 * z);
    let series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    let tail = 0.5 * series * exp(-z * z);
    return select(1.0 - tail, tail, v < vec4f(0.0));
}

fn value(v: vec4f) -> vec4f {
    if (FUNCTION == SILU) { return v * sigmoid(v); }
    if (FUNCTION == GELU) { return v * normal_cdf(v); }
    if (FUNCTION == RELU) { return max(v, vec4f(0.0)); }
    if (FUNCTION == TANH) { return safe_tanh(v); }
    if (FUNCTION == EXP) { return exp(v); }
    return log(v);
}

fn derivative(v: vec4f) -> vec4f {
    if (FUNCTION == SILU) {
        let s = sigmoid(v);
        return s * (1.0 + v * (1.0 - s));
    }
    if (FUNCTION == GELU) { return normal_cdf(v) + v * 0.39894228 * exp(-0.5 * v * v); }
    if (FUNCTION == RELU) { return select(vec4f(0.0), vec4f(1.0), v > vec4f(0.0)); }
    if (FUNCTION == TANH) { // 1/cosh²; 1 - tanh² would cancel where tanh saturates
        let e = exp(-2.0 * abs(v));
        return 4.0 * e / ((1.0 + e) * (1.0 + e));
    }
    if (FUNCTION == EXP) { return exp(v); }
    return 1.0 / v;
}

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
    let i = linear_index(group, groups, local, 64u);
    if (i * 4u >= args.count) { return; }
    y[i] = value(x[i]);
}

@compute @workgroup_size(64)
fn backward(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
    let i = linear_index(group, groups, local, 64u);
    if (i * 4u >= args.count) { return; }
    dx[i] = dy[i] * derivative(x[i]);
}
