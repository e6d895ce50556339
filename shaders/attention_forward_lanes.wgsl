// Fetches the keys and values first .. first + BLOCK.
fn fetch(first: u32, batch: u32, heads: u32, head: u32, lane: u32) {
    @unroll for (var p = 0u; p < PARTS; p++) {
        let element = p * LANES + lane;
        let row = key_row(batch, first + element / QUARTERS, heads, head);
        first_part[p] = load_k(row, element % QUARTERS);
        second_part[p] = load_v(row, element % QUARTERS);
    }
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let head = group.y;
    let batch = group.z;
    let kv_heads = args.heads / args.group;
    let first = (args.first_group + group.x) * LANES * OWN;
    var own_q: array<vec4f, OWN * QUARTERS>;
    var sum: array<vec4f, OWN * QUARTERS>;
    var top: array<f32, OWN>;
    var mass: array<f32, OWN>;
    @unroll for (var i = 0u; i < OWN; i++) {
        let row = head_row(batch, args.queries, first + i * LANES + lane, args.heads, head);
        @unroll for (var d = 0u; d < QUARTERS; d++) {
            own_q[i * QUARTERS + d] = args.scale * load_q(row, d);
            sum[i * QUARTERS + d] = vec4f();
        }
        top[i] = MASKED;
        mass[i] = 0.0;
    }
    let end = min(args.keys, first + LANES * OWN + args.offset);
    for (var key = 0u; key < end; key += BLOCK) {
        fetch(key, batch, kv_heads, head / args.group, lane);
        var score: array<f32, OWN * BLOCK>;
        @unroll for (var j = 0u; j < BLOCK; j++) {
            @unroll for (var i = 0u; i < OWN; i++) { score[i * BLOCK + j] = 0.0; }
            @unroll for (var d = 0u; d < QUARTERS; d++) {
                let x = subgroupShuffle(first_part[(j * QUARTERS + d) / LANES], (j * QUARTERS + d) % LANES);
                @unroll for (var i = 0u; i < OWN; i++) {
                    let y = own_q[i * QUARTERS + d];
                    score[i * BLOCK + j] = fma(x.x, y.x, fma(x.y, y.y, fma(x.z, y.z, fma(x.w, y.w, score[i * BLOCK + j]))));
                }
            }
        }
        @unroll for (var i = 0u; i < OWN; i++) {
            let last = first + i * LANES + lane + args.offset;
            var highest = top[i];
            @unroll for (var j = 0u; j < BLOCK; j++) {
                score[i * BLOCK + j] = select(score[i * BLOCK + j], MASKED, key + j > last || key + j >= args.keys);
                highest = max(highest, score[i * BLOCK + j]);
            }
            let shrink = exp(top[i] - highest);
            top[i] = highest;
            mass[i] *= shrink;
            @unroll for (var d = 0u; d < QUARTERS; d++) { sum[i * QUARTERS + d] *= shrink; }
            @unroll for (var j = 0u; j < BLOCK; j++) {
                score[i * BLOCK + j] = exp(score[i * BLOCK + j] - highest);
                mass[i] += score[i * BLOCK + j];
            }
        }
        @unroll for (var j = 0u; j < BLOCK; j++) {
            @unroll for (var d = 0u; d < QUARTERS; d++) {
                let x = subgroupShuffle(second_part[(j * QUARTERS + d) / LANES], (j * QUARTERS + d) % LANES);
                @unroll for (var i = 0u; i < OWN; i++) {
                    sum[i * QUARTERS + d] = fma(vec4f(score[i * BLOCK + j]), x, sum[i * QUARTERS + d]);
                }
            }
        }
    }
    @unroll for (var i = 0u; i < OWN; i++) {
        let query = first + i * LANES + lane;
        if (query < args.queries) {
            let row = head_row(batch, args.queries, query, args.heads, head);
            @unroll for (var d = 0u; d < QUARTERS; d++) { store_o(row, d, sum[i * QUARTERS + d] / mass[i]); }
            lse[args.statistic_start + (batch * args.queries + query) * args.heads + head] = top[i] + log(mass[i]);
        }
    }
}
