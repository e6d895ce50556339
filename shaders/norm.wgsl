// The clipping factor from a sum of squares, by one invocation.
//   norm = unscale·√sum, out = [norm, unscale·min(1, most / (norm + 1e-6))]; a non-finite norm propagates to the factor

struct Args { most: f32, unscale: f32 }

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> squares: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(1)
fn clip() {
    let norm = args.unscale * sqrt(squares[0]);
    out[0] = norm;
    var factor = args.unscale * min(1.0, args.most / (norm + 1e-6));
    // Tested by its bits: compilers may assume finite floats, and min(1, NaN) may be 1.
    if ((bitcast<u32>(norm) & 0x7f800000u) == 0x7f800000u) { factor = norm; }
    out[1] = factor;
}
