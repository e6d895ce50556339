fn load_near(pair: u32, row: u32, d: u32) -> vec4f { return load_q(row, d); }

// The keys are paired with the queries; the values are only accumulated.
fn load_far(pair: u32, row: u32, d: u32) -> vec4f {
    if (pair == 0u) { return load_k(row, d); }
    return load_v(row, d);
}

fn walk(group: vec3u, lane: Lane) {
    let head = group.y;
    let batch = group.z;
    // The last queries see the most keys: first.
    let first = ((args.queries - 1u) / NEAR_ROWS - args.first_group - group.x) * NEAR_ROWS;
    let near = Rows(head_row(batch, args.queries, 0u, args.heads, head), args.heads * DIM, first, args.queries - 1u);
    let kv_heads = args.heads / args.group;
    var far = Rows(key_row(batch, 0u, kv_heads, head / args.group), kv_heads * DIM, 0u, args.keys - 1u);
    var sum: array<vec4f, OWN * COLUMNS>;
    var score: array<f32, OWN * FAR>;
    // Of each own row, in groups of four: the highest score so far, and the mass of this lane's keys.
    var top: array<vec4f, OWN_GROUPS>;
    var mass: array<vec4f, OWN_GROUPS>;
    @unroll for (var i = 0u; i < OWN; i++) {
        @unroll for (var c = 0u; c < COLUMNS; c++) { sum[i * COLUMNS + c] = vec4f(); }
    }
    @unroll for (var g = 0u; g < OWN_GROUPS; g++) {
        top[g] = vec4f(MASKED);
        mass[g] = vec4f();
    }
    let end = min(args.keys, first + NEAR_ROWS + args.offset);
    hold_near(near, lane);
    for (; far.first < end; far.first += FAR_ROWS) {
        score_pair(0u, near, far, lane, &score);
        // What this lane's keys raise the highest scores to, then all lanes'.
        let old = top;
        @unroll for (var i = 0u; i < OWN; i++) {
            let last = min(first + i * NEAR_LANES + lane.near + args.offset, args.keys - 1u);
            @unroll for (var j = 0u; j < FAR; j++) {
                let seen = far.first + lane.far * FAR + j <= last;
                score[i * FAR + j] = select(MASKED, args.scale * score[i * FAR + j], seen);
                top[i / 4u][i % 4u] = max(top[i / 4u][i % 4u], score[i * FAR + j]);
            }
        }
        workgroupBarrier();
        @unroll for (var g = 0u; g < OWN_GROUPS; g++) { exchange((g * FAR_LANES + lane.far) * NEAR_LANES + lane.near, top[g]); }
        workgroupBarrier();
        @unroll for (var g = 0u; g < OWN_GROUPS; g++) {
            @unroll for (var other = 0u; other < FAR_LANES; other++) {
                top[g] = max(top[g], exchanged((g * FAR_LANES + other) * NEAR_LANES + lane.near));
            }
            mass[g] *= exp(old[g] - top[g]);
        }
        @unroll for (var i = 0u; i < OWN; i++) {
            let highest = top[i / 4u][i % 4u];
            let shrink = exp(old[i / 4u][i % 4u] - highest);
            @unroll for (var c = 0u; c < COLUMNS; c++) { sum[i * COLUMNS + c] *= shrink; }
            @unroll for (var g = 0u; g < FAR_GROUPS; g++) {
                let at = i * FAR + g * 4u;
                let weight = exp(vec4f(score[at], score[at + 1u], score[at + 2u], score[at + 3u]) - highest);
                mass[i / 4u][i % 4u] += (weight.x + weight.y) + (weight.z + weight.w);
                put_weights(lane, i, lane.far * FAR_GROUPS + g, weight);
            }
        }
        accumulate(1u, far, lane, &sum);
    }
    workgroupBarrier();
    @unroll for (var g = 0u; g < OWN_GROUPS; g++) { exchange((g * FAR_LANES + lane.far) * NEAR_LANES + lane.near, mass[g]); }
    workgroupBarrier();
    @unroll for (var g = 0u; g < OWN_GROUPS; g++) {
        mass[g] = vec4f();
        @unroll for (var other = 0u; other < FAR_LANES; other++) { mass[g] += exchanged((g * FAR_LANES + other) * NEAR_LANES + lane.near); }
    }
    @unroll for (var i = 0u; i < OWN; i++) {
        let query = first + i * NEAR_LANES + lane.near;
        if (query < args.queries) {
            let total_mass = mass[i / 4u][i % 4u];
            let row = head_row(batch, args.queries, query, args.heads, head);
            @unroll for (var c = 0u; c < COLUMNS; c++) {
                let quarter = c * FAR_LANES + lane.far;
                if (quarter < QUARTERS) { store_o(row, quarter, sum[i * COLUMNS + c] / total_mass); }
            }
            if (lane.far == 0u) { lse[args.statistic_start + row / DIM] = top[i / 4u][i % 4u] + log(total_mass); }
        }
    }
}
