// What is made of a sum of squares on the device: one invocation.
//   clip:     out = [norm, min(1, most / (norm + 1e-6))]; a norm that is not finite stays so in the factor
//   inverse:  out[0] = 1 / (norm + 1e-7)

struct Args { most: f32 }

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> squares: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(1)
fn clip() {
    let norm = sqrt(squares[0]);
    out[0] = norm;
    out[1] = min(1.0, args.most / (norm + 1e-6));
}

@compute @workgroup_size(1)
fn inverse() {
    out[0] = 1.0 / (sqrt(squares[0]) + 1e-7);
}
