// Fetches the far rows first .. first + BLOCK of one head.
fn fetch(first: u32, batch: u32, head: u32, lane: u32) {
    @unroll for (var p = 0u; p < PARTS; p++) {
        let element = p * LANES + lane;
        let row = head_row(batch, far_count(), first + element / QUARTERS, far_heads(), head);
        first_part[p] = load_far_first(row, element % QUARTERS);
        second_part[p] = load_far_second(row, element % QUARTERS);
    }
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let head = group.y;
    let batch = group.z;
    let first = (args.first_group + group.x) * LANES * OWN;
    var near_first: array<vec4f, OWN * QUARTERS>;
    var near_second: array<vec4f, OWN * QUARTERS>;
    var sum_first: array<vec4f, OWN * QUARTERS>;
    @if QUERY_SIDE {
        var own_lse: array<f32, OWN>;
        var own_delta: array<f32, OWN>;
    } @else {
        var sum_second: array<vec4f, OWN * QUARTERS>;
    }
    @unroll for (var i = 0u; i < OWN; i++) {
        let near = first + i * LANES + lane;
        let row = head_row(batch, near_count(), near, near_heads(), head);
        @unroll for (var d = 0u; d < QUARTERS; d++) {
            near_first[i * QUARTERS + d] = load_near_first(row, d);
            near_second[i * QUARTERS + d] = load_near_second(row, d);
            @if CONTINUED {
                sum_first[i * QUARTERS + d] = load_first(row, d);
                sum_second[i * QUARTERS + d] = load_second(row, d);
            } @else {
                sum_first[i * QUARTERS + d] = vec4f();
                @if QUERY_SIDE {} @else { sum_second[i * QUARTERS + d] = vec4f(); }
            }
        }
        @if QUERY_SIDE {
            own_lse[i] = lse[args.statistic_start + row / DIM];
            own_delta[i] = delta[args.statistic_start + row / DIM];
        }
    }
    @if QUERY_SIDE {
        let far_head_first = head / args.group;
        let far_head_end = far_head_first + 1u;
        let begin = 0u;
        let end = min(args.keys, first + LANES * OWN + args.offset);
    } @else {
        let far_head_first = head * args.group + args.group_first;
        let far_head_end = head * args.group + args.group_end;
        let begin = max(first, args.offset) - args.offset;
        let end = args.queries;
    }
    for (var far_head = far_head_first; far_head < far_head_end; far_head++) {
        for (var far = begin; far < end; far += BLOCK) {
            fetch(far, batch, far_head, lane);
            @unroll for (var j = 0u; j < BLOCK; j++) {
                @if QUERY_SIDE {} @else {
                    let statistic = args.statistic_start + head_row(batch, args.queries, far + j, args.heads, far_head) / DIM;
                    let far_lse = lse[statistic];
                    let far_delta = delta[statistic];
                }
                var score: array<f32, OWN>;
                var dscore: array<f32, OWN>;
                @unroll for (var i = 0u; i < OWN; i++) { score[i] = 0.0; dscore[i] = 0.0; }
                @unroll for (var d = 0u; d < QUARTERS; d++) {
                    let x = subgroupShuffle(first_part[(j * QUARTERS + d) / LANES], (j * QUARTERS + d) % LANES);
                    let z = subgroupShuffle(second_part[(j * QUARTERS + d) / LANES], (j * QUARTERS + d) % LANES);
                    @unroll for (var i = 0u; i < OWN; i++) {
                        let a = near_first[i * QUARTERS + d];
                        let b = near_second[i * QUARTERS + d];
                        score[i] = fma(x.x, a.x, fma(x.y, a.y, fma(x.z, a.z, fma(x.w, a.w, score[i]))));
                        dscore[i] = fma(z.x, b.x, fma(z.y, b.y, fma(z.z, b.z, fma(z.w, b.w, dscore[i]))));
                    }
                }
                @unroll for (var i = 0u; i < OWN; i++) {
                    let near = first + i * LANES + lane;
                    @if QUERY_SIDE {
                        let seen = far + j <= near + args.offset && far + j < args.keys;
                        let p = select(0.0, exp(args.scale * score[i] - own_lse[i]), seen);
                        dscore[i] = p * (dscore[i] - own_delta[i]) * args.scale;
                    } @else {
                        let seen = near <= far + j + args.offset && far + j < args.queries;
                        let p = select(0.0, exp(args.scale * score[i] - far_lse), seen);
                        dscore[i] = p * (dscore[i] - far_delta) * args.scale;
                        score[i] = p;
                    }
                }
                @unroll for (var d = 0u; d < QUARTERS; d++) {
                    let x = subgroupShuffle(first_part[(j * QUARTERS + d) / LANES], (j * QUARTERS + d) % LANES);
                    @unroll for (var i = 0u; i < OWN; i++) {
                        sum_first[i * QUARTERS + d] = fma(vec4f(dscore[i]), x, sum_first[i * QUARTERS + d]);
                    }
                    @if QUERY_SIDE {} @else {
                        let z = subgroupShuffle(second_part[(j * QUARTERS + d) / LANES], (j * QUARTERS + d) % LANES);
                        @unroll for (var i = 0u; i < OWN; i++) {
                            sum_second[i * QUARTERS + d] = fma(vec4f(score[i]), z, sum_second[i * QUARTERS + d]);
                        }
                    }
                }
            }
        }
    }
    @unroll for (var i = 0u; i < OWN; i++) {
        let near = first + i * LANES + lane;
        if (near < near_count()) {
            let row = head_row(batch, near_count(), near, near_heads(), head);
            @unroll for (var d = 0u; d < QUARTERS; d++) {
                store_first(row, d, sum_first[i * QUARTERS + d]);
                @if QUERY_SIDE {} @else { store_second(row, d, sum_second[i * QUARTERS + d]); }
            }
        }
    }
}
