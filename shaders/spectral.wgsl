// The matrix-vector passes of the PC layer, over a batch w [batch, rows, columns]. The batch index is workgroup z, or x for kernels
// with one workgroup per matrix. CHUNK is the number of rows per workgroup of `apply`.
//
// The entry points `iterate` and `…_whole` take small matrices, one per workgroup, from the beginning to the end.
//
// A row of w is the work of a team: TEAM invocations of the WORKGROUP, so that TEAMS rows are under way at a time, even of a matrix
// with few columns. TEAM is a multiple of 32, or the WORKGROUP, which is one subgroup then.

struct Args { rows: u32, columns: u32, chunks: u32, eps: f32, norm: u32, recover: u32, heads: u32, gamma_stride: u32 }

var<immediate> args: Args;

const SPECTRAL: u32 = 0u;
const FROBENIUS: u32 = 1u;

// The scalars of one matrix, computed by `divide`.
const S: u32 = 0u;           // s
const INVERSE: u32 = 1u;     // 1/s
const INVERSE2: u32 = 2u;    // 1/s²
const OUTPUT: u32 = 3u;      // γ·stop(s)/s, or γ/s without recovery
const GAMMA_SCALE: u32 = 4u; // stop(s), or 1 without recovery: dγ = GAMMA_SCALE·⟨E, N·P⟩
const PULL: u32 = 5u;        // the coefficient of u·vᵀ (spectral) or w (frobenius) in dw: ⟨M', N⟩, over ‖w‖ for frobenius
const NORM: u32 = 6u;        // ‖w‖ (frobenius): s without eps, which s - eps would not give back
const SCALARS: u32 = 64u; // from one matrix's to the next one's

@group(0) @binding(0) var<storage, read> w: array<Element>;
@group(0) @binding(1) var<storage, read> x: array<Element>;
@group(0) @binding(1) var<storage, read> scale: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read_write> y_elements: array<Element>;

@if ONE_SUBGROUP {
    fn team_sum(x: f32, lane: u32, turn: u32) -> f32 { return subgroupAdd(x); }
} @else {
    const BLOCK: u32 = 32u;
    const BLOCKS: u32 = WORKGROUP / BLOCK;
    // Twice: a turn writes while another invocation still reads what the turn before wrote, which saves a barrier.
    var<workgroup> shares: array<f32, 2u * WORKGROUP>;
    var<workgroup> block_sums: array<f32, 2u * BLOCKS>;

    // The sum over an invocation's team, for every team at once: every invocation of the workgroup calls it, `turn` counting the
    // calls. In a fixed order, without subgroups: which lanes form one is the driver's choice.
    fn team_sum(x: f32, lane: u32, turn: u32) -> f32 {
        let half = turn % 2u;
        shares[half * WORKGROUP + lane] = x;
        workgroupBarrier();
        let block = lane / BLOCK;
        var sum = 0.0;
        for (var i = 0u; i < BLOCK; i++) { sum += shares[half * WORKGROUP + block * BLOCK + i]; }
        @if SEVERAL_BLOCKS {
            if (lane % BLOCK == 0u) { block_sums[half * BLOCKS + block] = sum; }
            workgroupBarrier();
            sum = 0.0;
            let first = half * BLOCKS + lane / TEAM * (TEAM / BLOCK);
            for (var i = 0u; i < TEAM / BLOCK; i++) { sum += block_sums[first + i]; }
        }
        return sum;
    }
}

// y = w·x: one row per team.
@compute @workgroup_size(WORKGROUP)
fn multiply(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let columns = args.columns / WIDTH;
    let place = lane % TEAM;
    let row = group.x * TEAMS + lane / TEAM;
    // A team beyond the rows sums the last one again, for the barriers' sake.
    let start = (group.z * args.rows + min(row, args.rows - 1u)) * columns;
    var product = 0.0;
    for (var c = place; c < columns; c += TEAM) { product += total(w[start + c] * x[group.z * columns + c]); }
    product = team_sum(product, lane, 0u);
    if (place == 0u && row < args.rows) { y[group.z * args.rows + row] = product; }
}

@group(0) @binding(1) var<storage, read> v: array<Element>;
@group(0) @binding(1) var<storage, read> u: array<f32>;
@group(0) @binding(2) var<storage, read> inverses: array<f32>;
@group(0) @binding(3) var<storage, read_write> squares: array<f32>;
@group(0) @binding(4) var<storage, read_write> parts: array<Element>;

// parts[chunk] = Σ over the rows r of a chunk of y[r]·w[r], chunks along x: partial sums of wᵀy, where y is u, or with PRODUCT
// inverses·(w·v). `squares` gets Σ y². With PRODUCT this reads w once for both products: an invocation keeps its HELD Elements of a
// row in registers in between, and reads its team's next row meanwhile. HELD is 0 for rows too wide for that; they are read again
// from cache.
@if HELD {
    @if SEVERAL_TEAMS {
        var<workgroup> team_parts: array<Element, WORKGROUP>;
        var<workgroup> team_squares: array<f32, TEAMS>;
    }

    @compute @workgroup_size(WORKGROUP)
    fn apply(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
        let columns = args.columns / WIDTH;
        let first = group.z * args.rows + group.x * CHUNK;
        let count = min(CHUNK, args.rows - group.x * CHUNK);
        let part = (group.z * args.chunks + group.x) * columns;
        let team = lane / TEAM;
        let place = lane % TEAM;
        var square = 0.0;
        var sum: array<Element, HELD>;
        var row: array<Element, HELD>;
        var next: array<Element, HELD>;
        @if PRODUCT {
            let inverse = inverses[group.z];
            var right: array<Element, HELD>;
            @unroll for (var k = 0u; k < HELD; k++) {
                let c = place + k * TEAM;
                if (c < columns) { right[k] = v[group.z * columns + c]; }
            }
        }
        // Beyond the row: its last Element, which is multiplied by the zeros of `right` and never written. Beyond the chunk: its last
        // row, with a y of zero.
        let start = (first + min(team, count - 1u)) * columns;
        @unroll for (var k = 0u; k < HELD; k++) { row[k] = w[start + min(place + k * TEAM, columns - 1u)]; }
        for (var i = 0u; i < count; i += TEAMS) {
            let own = i + team;
            let start = (first + min(own + TEAMS, count - 1u)) * columns;
            @unroll for (var k = 0u; k < HELD; k++) { next[k] = w[start + min(place + k * TEAM, columns - 1u)]; }
            @if PRODUCT {
                var product = 0.0;
                @unroll for (var k = 0u; k < HELD; k++) { product += total(row[k] * right[k]); }
                let full = inverse * team_sum(product, lane, i / TEAMS);
            } @else {
                let full = u[first + min(own, count - 1u)];
            }
            let y = select(0.0, full, own < count);
            square += y * y;
            @unroll for (var k = 0u; k < HELD; k++) {
                sum[k] += y * row[k];
                row[k] = next[k];
            }
        }
        @if SEVERAL_TEAMS {
            if (place == 0u) { team_squares[team] = square; }
            @unroll for (var k = 0u; k < HELD; k++) {
                team_parts[lane] = sum[k];
                workgroupBarrier();
                if (team == 0u) {
                    for (var t = 1u; t < TEAMS; t++) { sum[k] += team_parts[t * TEAM + place]; }
                }
                workgroupBarrier();
            }
            for (var t = 1u; t < TEAMS; t++) { square += team_squares[t]; }
        }
        if (team == 0u) {
            @unroll for (var k = 0u; k < HELD; k++) {
                let c = place + k * TEAM;
                if (c < columns) { parts[part + c] = sum[k]; }
            }
        }
        if (lane == 0u) { squares[group.z * args.chunks + group.x] = square; }
    }
} @else {
    @compute @workgroup_size(WORKGROUP)
    fn apply(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
        let columns = args.columns / WIDTH;
        let first = group.z * args.rows + group.x * CHUNK;
        let count = min(CHUNK, args.rows - group.x * CHUNK);
        let part = (group.z * args.chunks + group.x) * columns;
        var square = 0.0;
        var y: array<f32, CHUNK>;
        for (var i = 0u; i < count; i++) {
            @if PRODUCT {
                var product = 0.0;
                for (var c = lane; c < columns; c += WORKGROUP) {
                    product += total(w[(first + i) * columns + c] * v[group.z * columns + c]);
                }
                y[i] = inverses[group.z] * workgroup_sum(product, lane);
            } @else {
                y[i] = u[first + i];
            }
            square += y[i] * y[i];
        }
        for (var c = lane; c < columns; c += WORKGROUP) {
            var sum = Element();
            for (var i = 0u; i < count; i++) { sum += y[i] * w[(first + i) * columns + c]; }
            parts[part + c] = sum;
        }
        if (lane == 0u) { squares[group.z * args.chunks + group.x] = square; }
    }
}

@if ITERATE {
    @group(0) @binding(1) var<storage, read> old_u: array<f32>;
    @group(0) @binding(2) var<storage, read> old_v: array<Element>;
    @group(0) @binding(3) var<storage, read_write> new_u: array<f32>;
    @group(0) @binding(4) var<storage, read_write> new_v: array<Element>;

    var<workgroup> z_parts: array<Element, WORKGROUP>;
    var<workgroup> z: array<Element, TEAM * HELD>;
    var<workgroup> y_squares: array<f32, TEAMS>;

    // The whole power iteration of one matrix: args.chunks times `apply` and `normalize`, then u = w·v / (|w·v| + eps). Every team holds
    // all of v. Teams beyond the rows take the last one again, with a y of zero.
    @compute @workgroup_size(WORKGROUP)
    fn iterate(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
        let columns = args.columns / WIDTH;
        let matrix = group.x * args.rows;
        let team = lane / TEAM;
        let place = lane % TEAM;
        var right: array<Element, HELD>;
        var row: array<Element, HELD>;
        @unroll for (var k = 0u; k < HELD; k++) {
            let c = place + k * TEAM;
            if (c < columns) { right[k] = old_v[group.x * columns + c]; }
        }
        var inverse = 1.0;
        var turn = 0u;
        for (var iteration = 0u; iteration < args.chunks; iteration++) {
            let is_first = iteration == 0u;
            var sum = array<Element, HELD>();
            var square = 0.0;
            for (var i = 0u; i < args.rows; i += TEAMS) {
                let own = min(i + team, args.rows - 1u);
                var product = 0.0;
                @unroll for (var k = 0u; k < HELD; k++) {
                    row[k] = w[(matrix + own) * columns + min(place + k * TEAM, columns - 1u)];
                    product += total(row[k] * right[k]);
                }
                let of_v = inverse * team_sum(product, lane, turn);
                turn++;
                let y = select(0.0, select(of_v, old_u[matrix + own], is_first), i + team < args.rows);
                square += y * y;
                @unroll for (var k = 0u; k < HELD; k++) { sum[k] += y * row[k]; }
            }
            if (place == 0u) { y_squares[team] = square; }
            @unroll for (var k = 0u; k < HELD; k++) {
                z_parts[lane] = sum[k];
                workgroupBarrier();
                if (team == 0u) {
                    for (var t = 1u; t < TEAMS; t++) { sum[k] += z_parts[t * TEAM + place]; }
                    z[place + k * TEAM] = sum[k];
                }
                workgroupBarrier();
            }
            var z_square = 0.0;
            @unroll for (var k = 0u; k < HELD; k++) {
                sum[k] = z[place + k * TEAM];
                z_square += select(0.0, total(sum[k] * sum[k]), place + k * TEAM < columns);
            }
            let norm = sqrt(team_sum(z_square, lane, turn));
            turn++;
            var y_square = 0.0;
            for (var t = 0u; t < TEAMS; t++) { y_square += y_squares[t]; }
            let scale = select(1.0 / (sqrt(y_square) + inverse * args.eps), 1.0, is_first);
            let next = 1.0 / (scale * norm + args.eps);
            inverse = select(1.0, next, norm != 0.0);
            @unroll for (var k = 0u; k < HELD; k++) {
                if (norm != 0.0 && place + k * TEAM < columns) { right[k] = scale * next * sum[k]; }
            }
        }
        @unroll for (var k = 0u; k < HELD; k++) {
            let c = place + k * TEAM;
            if (team == 0u && c < columns) { new_v[group.x * columns + c] = right[k]; }
        }
        var square = 0.0;
        for (var i = 0u; i < args.rows; i += TEAMS) {
            let own = min(i + team, args.rows - 1u);
            var product = 0.0;
            @unroll for (var k = 0u; k < HELD; k++) {
                product += total(w[(matrix + own) * columns + min(place + k * TEAM, columns - 1u)] * right[k]);
            }
            let y = team_sum(product, lane, turn);
            turn++;
            if (i + team < args.rows) {
                square += y * y;
                if (place == 0u) { new_u[matrix + own] = y; }
            }
        }
        if (place == 0u) { y_squares[team] = square; }
        workgroupBarrier();
        var y_square = 0.0;
        for (var t = 0u; t < TEAMS; t++) { y_square += y_squares[t]; }
        let norm = sqrt(y_square);
        // Only the invocation that wrote an element reads it.
        if (place == 0u) {
            for (var own = team; own < args.rows; own += TEAMS) {
                new_u[matrix + own] = select(old_u[matrix + own], new_u[matrix + own] / (norm + args.eps), norm != 0.0);
            }
        }
    }
}

// y[r] = Σ_c w[r, c]·x[r, c]: one row per team.
@compute @workgroup_size(WORKGROUP)
fn row_products(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let columns = args.columns / WIDTH;
    let place = lane % TEAM;
    let row = group.x * TEAMS + lane / TEAM;
    let start = (group.z * args.rows + min(row, args.rows - 1u)) * columns;
    var product = 0.0;
    for (var c = place; c < columns; c += TEAM) { product += total(w[start + c] * x[start + c]); }
    product = team_sum(product, lane, 0u);
    if (place == 0u && row < args.rows) { y[group.z * args.rows + row] = product; }
}

@group(0) @binding(0) var<storage, read> partials: array<Element>;
@group(0) @binding(1) var<storage, read> old_squares: array<f32>;
@group(0) @binding(2) var<storage, read> previous: array<Element>;
@group(0) @binding(3) var<storage, read_write> new_inverses: array<f32>;
@group(0) @binding(4) var<storage, read_write> vector: array<Element>;

// vector = z / (|z| + eps), z = Σ over the chunks of the partial sums: one workgroup per matrix. Here `columns` is the length of the
// vector. A zero z keeps the previous vector: otherwise a matrix initialized to zero would have u = v = 0 forever.
//
// With PRODUCT the partial sums are of y = inverse·w·v instead of u = w·v / (|w·v| + eps), so z is first divided by
// |y| + inverse·eps. The new inverse keeps the next y near unit length at any scale of w.
@compute @workgroup_size(WORKGROUP)
fn normalize(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let columns = args.columns / WIDTH;
    let base = group.x * columns;
    let old_inverse = new_inverses[group.x];
    var square = 0.0;
    for (var c = lane; c < columns; c += WORKGROUP) {
        // Four sums: as many loads under way at a time.
        var sums: array<Element, 4>;
        let start = group.x * args.chunks * columns + c;
        let fours = args.chunks / 4u;
        for (var chunk = 0u; chunk < 4u * fours; chunk += 4u) {
            @unroll for (var k = 0u; k < 4u; k++) { sums[k] += partials[start + (chunk + k) * columns]; }
        }
        for (var chunk = 4u * fours; chunk < args.chunks; chunk++) { sums[0] += partials[start + chunk * columns]; }
        let sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        vector[base + c] = sum;
        square += total(sum * sum);
    }
    let norm = sqrt(workgroup_sum(square, lane));
    var scale = 1.0;
    @if PRODUCT {
        var y = 0.0;
        for (var chunk = 0u; chunk < args.chunks; chunk++) { y += old_squares[group.x * args.chunks + chunk]; }
        scale = 1.0 / (sqrt(y) + old_inverse * args.eps);
    }
    let inverse = 1.0 / (scale * norm + args.eps);
    for (var c = lane; c < columns; c += WORKGROUP) {
        vector[base + c] = select(previous[base + c], scale * inverse * vector[base + c], norm != 0.0);
    }
    if (lane == 0u) { new_inverses[group.x] = select(1.0, inverse, norm != 0.0); }
}

@group(0) @binding(0) var<storage, read> numbers: array<f32>;
@group(0) @binding(1) var<storage, read> others: array<f32>;
@group(0) @binding(2) var<storage, read> gamma: array<f32>;
@group(0) @binding(2) var<storage, read_write> scalars: array<f32>;
@group(0) @binding(3) var<storage, read_write> new_scalars: array<f32>;
@group(0) @binding(2) var<storage, read_write> dgamma: array<f32>;

// Where the γ of a matrix is: one per head of a layer, and a stack of layers.
fn gamma_at(matrix: u32) -> u32 { return matrix / args.heads * args.gamma_stride + matrix % args.heads; }

fn write_scalars(matrix: u32, sum: f32) {
    var s = 1.0;
    if (args.norm == SPECTRAL) { s = sum + args.eps; }
    if (args.norm == FROBENIUS) { s = sqrt(sum) + args.eps; }
    let base = matrix * SCALARS;
    new_scalars[base + S] = s;
    new_scalars[base + INVERSE] = 1.0 / s;
    new_scalars[base + INVERSE2] = 1.0 / (s * s);
    new_scalars[base + OUTPUT] = gamma[gamma_at(matrix)] * select(1.0 / s, 1.0, args.recover == 1u);
    new_scalars[base + GAMMA_SCALE] = select(1.0, s, args.recover == 1u);
    new_scalars[base + PULL] = 0.0;
    new_scalars[base + NORM] = sqrt(max(sum, 0.0));
}

// The scalars of a matrix: s = Σ numbers·others + eps (spectral: w·v and u), √Σ numbers + eps (frobenius: row sums of squares), or 1.
@compute @workgroup_size(WORKGROUP)
fn divide(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var r = lane; r < args.rows; r += WORKGROUP) {
        let number = numbers[group.x * args.rows + r];
        sum += select(number, number * others[group.x * args.rows + r], args.norm == SPECTRAL);
    }
    sum = workgroup_sum(sum, lane);
    if (lane == 0u) { write_scalars(group.x, sum); }
}

@group(0) @binding(4) var<storage, read> direction: array<Element>;

// `divide` of u (`others`) and w·v, v being `direction`, or of the squares of w.
@compute @workgroup_size(WORKGROUP)
fn divide_whole(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let columns = args.columns / WIDTH;
    var sum = 0.0;
    for (var i = lane; i < args.rows * columns; i += WORKGROUP) {
        let element = w[group.x * args.rows * columns + i];
        if (args.norm == SPECTRAL) {
            sum += others[group.x * args.rows + i / columns] * total(element * direction[group.x * columns + i % columns]);
        } else {
            sum += total(element * element);
        }
    }
    sum = workgroup_sum(sum, lane);
    if (lane == 0u) { write_scalars(group.x, sum); }
}

// dgamma = GAMMA_SCALE·Σ numbers, where numbers are the row sums of P∘(NᵀE).
@compute @workgroup_size(WORKGROUP)
fn gamma_gradient(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var r = lane; r < args.rows; r += WORKGROUP) { sum += numbers[group.x * args.rows + r]; }
    sum = workgroup_sum(sum, lane);
    if (lane == 0u) { dgamma[gamma_at(group.x)] = others[group.x * SCALARS + GAMMA_SCALE] * sum; }
}

// The sum of m∘right over one matrix.
fn sum_of_products(matrix: u32, lane: u32) -> f32 {
    let elements = args.rows * args.columns / WIDTH;
    var sum = 0.0;
    for (var i = matrix * elements + lane; i < (matrix + 1u) * elements; i += WORKGROUP) { sum += total(m[i] * right[i]); }
    return workgroup_sum(sum, lane);
}

// `gamma_gradient` of P (`m`) and NᵀE (`right`).
@compute @workgroup_size(WORKGROUP)
fn gamma_gradient_whole(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let sum = sum_of_products(group.x, lane);
    if (lane == 0u) { dgamma[gamma_at(group.x)] = others[group.x * SCALARS + GAMMA_SCALE] * sum; }
}

// The coefficient PULL from Σ numbers = ⟨M', w⟩, into a copy of the scalars.
@compute @workgroup_size(WORKGROUP)
fn pull(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var r = lane; r < args.rows; r += WORKGROUP) { sum += numbers[group.x * args.rows + r]; }
    sum = workgroup_sum(sum, lane);
    if (lane == 0u) { write_pull(group.x, sum); }
}

// `pull` of M' (`m`) and w (`right`).
@compute @workgroup_size(WORKGROUP)
fn pull_whole(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let sum = sum_of_products(group.x, lane);
    if (lane == 0u) { write_pull(group.x, sum); }
}

fn write_pull(matrix: u32, sum: f32) {
    let base = matrix * SCALARS;
    var pull = sum / others[base + S];
    if (args.norm == FROBENIUS) {
        // The subgradient 0 of ‖w‖ at 0. Also covers a w whose squares underflow: ‖w‖ is far below eps, so its pull is below the
        // rounding error of M'.
        let norm = others[base + NORM];
        pull = select(0.0, pull / norm, norm > 0.0);
    }
    scalars[base + PULL] = pull;
    scalars[base + OUTPUT] = others[base + OUTPUT];
}

@group(0) @binding(0) var<storage, read> m: array<Element>;
@group(0) @binding(1) var<storage, read> factors: array<f32>;
@group(0) @binding(2) var<storage, read> left: array<f32>;
@group(0) @binding(3) var<storage, read> right: array<Element>;
@group(0) @binding(4) var<storage, read_write> dw: array<Element>;

// dw = OUTPUT·(m - PULL·u·vᵀ), with w in place of u·vᵀ for frobenius (`right` is w). One Element per invocation.
@compute @workgroup_size(64)
fn finish(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
    let columns = args.columns / WIDTH;
    let i = linear_index(group, groups, local, 64u);
    if (i >= args.chunks * args.rows * columns) { return; } // here chunks is the batch size
    let row = i / columns;
    let matrix = row / args.rows;
    let base = matrix * SCALARS;
    var pulled = Element();
    if (args.norm == SPECTRAL) { pulled = left[row] * right[matrix * columns + i % columns]; }
    if (args.norm == FROBENIUS) { pulled = right[i]; }
    dw[i] = factors[base + OUTPUT] * (m[i] - factors[base + PULL] * pulled);
}
