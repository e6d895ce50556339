// Rotary position embedding in half-split order: within a head, the pair (x[i], x[i + half]) is rotated by the angle of its
// position. A row of `angles` holds half cosines, then half sines. BACKWARD rotates by the negative angle. In place, one pair of
// Elements per invocation.

struct Args { rows: u32, first: u32, columns: u32, half: u32, sequence: u32, position: u32 }

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> angles: array<Element>;
@group(0) @binding(1) var<storage, read_write> x: array<Element>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
    let i = linear_index(group, groups, local, 64u);
    let half = args.half / WIDTH;
    let pairs = args.columns / WIDTH / 2u;
    if (i >= args.rows * pairs) { return; }
    let row = i / pairs;
    let pair = i % pairs;
    let at = row * 2u * pairs + (pair / half) * 2u * half + pair % half;
    let angle = (args.position + (args.first + row) % args.sequence) * 2u * half + pair % half;
    let c = angles[angle];
    var s = angles[angle + half];
    if (BACKWARD == 1u) { s = -s; }
    let left = x[at];
    let right = x[at + half];
    x[at] = left * c - right * s;
    x[at + half] = right * c + left * s;
}
