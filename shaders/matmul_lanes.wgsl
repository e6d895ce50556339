// Product for adapters that execute a subgroup as SIMD on the CPU (lavapipe, WARP).
//
// A workgroup is one subgroup of LANES lanes and computes a ROWS × (4·LANES·SPAN) output tile without shared memory: each lane
// accumulates SPAN vec4 of columns for all rows in registers; A is distributed over the lanes and broadcast by shuffles with
// constant indices; B is read as vec4 along the columns. Per step of four along the inner dimension a lane loads ROWS / LANES
// vec4 of A and 4·SPAN of B for 16·ROWS·SPAN multiply-adds. A load is a scalar sequence per lane there, so the tile is as large
// as the L1 caches allow.
//
// Constants: LANES, ROWS, PARTS = ROWS / LANES, SPAN, TRANSPOSE_A, TRANSPOSE_B, VECTORS, F16_TERMS, F16X3.

// Loads are clamped to the matrix instead of guarded: rows and columns beyond the edge repeat the last one and are never stored;
// inner indices beyond the end are zero (none with VECTORS).

// LANES rows of op(A) from `row` at inner indices k … k+3, one vec4 per lane. Not transposed: lane l holds row l at four inner
// indices. Transposed: LANES / 4 consecutive lanes hold four rows each at one inner index.
fn load_a_part(row: u32, k: u32, lane: u32, base: u32) -> vec4f {
    @if TRANSPOSE_A {
        let inner = k + lane / (LANES / 4u);
        let first = row + (lane % (LANES / 4u)) * 4u;
        @if VECTORS {
            return a[(base + inner * args.a_stride + min(first, args.rows - 4u)) / 4u];
        } @else {
            let start = base + min(inner, args.inner - 1u) * args.a_stride;
            var value = vec4f();
            @unroll for (var q = 0u; q < 4; q++) { value[q] = a[start + min(first + q, args.rows - 1u)]; }
            return select(vec4f(), value, inner < args.inner);
        }
    } @else {
        let start = base + min(row + lane, args.rows - 1u) * args.a_stride;
        @if VECTORS {
            return a[(start + k) / 4u];
        } @else {
            var value = vec4f();
            @unroll for (var q = 0u; q < 4; q++) { value[q] = a[start + min(k + q, args.inner - 1u)]; }
            return select(vec4f(), value, vec4u(k, k + 1u, k + 2u, k + 3u) < vec4u(args.inner));
        }
    }
}

// Four columns of op(B) at one inner index.
fn load_b_row(k: u32, column: u32, base: u32) -> vec4f {
    @if VECTORS {
        return b[(base + k * args.b_stride + min(column, args.columns - 4u)) / 4u];
    } @else {
        let start = base + min(k, args.inner - 1u) * args.b_stride;
        var value = vec4f();
        @unroll for (var q = 0u; q < 4; q++) { value[q] = b[start + min(column + q, args.columns - 1u)]; }
        return select(vec4f(), value, k < args.inner);
    }
}

// Four inner indices of one column of op(B), for a transposed B.
fn load_b_column(k: u32, column: u32, base: u32) -> vec4f {
    let start = base + min(column, args.columns - 1u) * args.b_stride;
    @if VECTORS {
        return b[(start + k) / 4u];
    } @else {
        var value = vec4f();
        @unroll for (var q = 0u; q < 4; q++) { value[q] = b[start + min(k + q, args.inner - 1u)]; }
        return select(vec4f(), value, vec4u(k, k + 1u, k + 2u, k + 3u) < vec4u(args.inner));
    }
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let row = (args.first_group + group.y) * ROWS;
    let column = group.x * (4u * LANES * SPAN) + 4u * lane;
    let range = k_range(group.z);
    let a_base = args.a_offset + range.batch * args.a_batch;
    let b_base = args.b_offset + range.batch * args.b_batch;
    if (SYMMETRIC == 1u && group.x * (4u * LANES * SPAN) >= row + ROWS) { return; }
    var sum: array<vec4f, ROWS * SPAN>;
    var a_part: array<vec4f, PARTS>;
    var b_part: array<vec4f, 4u * SPAN>;
    @if F16X3 {
        var a_low: array<vec4f, PARTS>;
        var b_low: array<vec4f, 4u * SPAN>;
    }
    for (var k = range.first; k < range.end; k += 4u) {
        @unroll for (var i = 0u; i < PARTS; i++) {
            a_part[i] = load_a_part(row + i * LANES, k, lane, a_base);
        }
        @unroll for (var j = 0u; j < SPAN; j++) {
            @if TRANSPOSE_B {
                let first = column + j * 4u * LANES;
                let b0 = load_b_column(k, first, b_base);
                let b1 = load_b_column(k, first + 1u, b_base);
                let b2 = load_b_column(k, first + 2u, b_base);
                let b3 = load_b_column(k, first + 3u, b_base);
                b_part[4u * j] = vec4f(b0.x, b1.x, b2.x, b3.x);
                b_part[4u * j + 1u] = vec4f(b0.y, b1.y, b2.y, b3.y);
                b_part[4u * j + 2u] = vec4f(b0.z, b1.z, b2.z, b3.z);
                b_part[4u * j + 3u] = vec4f(b0.w, b1.w, b2.w, b3.w);
            } @else {
                @unroll for (var q = 0u; q < 4; q++) {
                    b_part[4u * j + q] = load_b_row(k + q, column + j * 4u * LANES, b_base);
                }
            }
        }
        @if F16_TERMS {
            @unroll for (var i = 0u; i < PARTS; i++) {
                let x = a_part[i];
                a_part[i] = to_half(x);
                @if F16X3 { a_low[i] = low_half(x, a_part[i]); }
            }
            @unroll for (var j = 0u; j < SPAN; j++) {
                @unroll for (var q = 0u; q < 4; q++) {
                    let x = b_part[4u * j + q];
                    b_part[4u * j + q] = to_half(x);
                    @if F16X3 { b_low[4u * j + q] = low_half(x, b_part[4u * j + q]); }
                }
            }
        }
        @unroll for (var i = 0u; i < ROWS; i++) {
            @unroll for (var q = 0u; q < 4; q++) {
                @if TRANSPOSE_A {
                    const component = i % 4u;
                    const holder = q * (LANES / 4u) + (i % LANES) / 4u;
                } @else {
                    const component = q;
                    const holder = i % LANES;
                }
                let x = vec4f(subgroupShuffle(a_part[i / LANES][component], holder));
                @unroll for (var j = 0u; j < SPAN; j++) {
                    sum[i * SPAN + j] = fma(x, b_part[4u * j + q], sum[i * SPAN + j]);
                }
                @if F16X3 {
                    let low = vec4f(subgroupShuffle(a_low[i / LANES][component], holder));
                    @unroll for (var j = 0u; j < SPAN; j++) {
                        sum[i * SPAN + j] = fma(x, b_low[4u * j + q], sum[i * SPAN + j]);
                        sum[i * SPAN + j] = fma(low, b_part[4u * j + q], sum[i * SPAN + j]);
                    }
                }
            }
        }
    }
    // LANES rows at a time are copied to an array, so that a rolled loop can run the epilogue while the sums stay in registers.
    // Compile time on Mesa 22 is quadratic in the accesses to an array: copying all sums at once would take seconds. The array is
    // oversized because Mesa 25 then aligns the stack, where most of the sums are spilled.
    var done: array<vec4f, ROWS * SPAN>;
    let alpha = alpha_of(group.z);
    for (var part = 0u; part < PARTS && row + part * LANES < args.rows; part++) {
        @unroll for (var i = 0u; i < LANES; i++) {
            @unroll for (var j = 0u; j < SPAN; j++) {
                var value = vec4f();
                @unroll for (var p = 0u; p < PARTS; p++) {
                    value = select(value, sum[(p * LANES + i) * SPAN + j], part == p);
                }
                done[i * SPAN + j] = value;
            }
        }
        for (var i = 0u; i < LANES * SPAN; i++) {
            finish(row + part * LANES + i / SPAN, column + (i % SPAN) * 4u * LANES, group.z, alpha, done[i]);
        }
    }
}
