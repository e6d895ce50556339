fn load_near(pair: u32, row: u32, d: u32) -> vec4f {
    if (pair == 0u) { return load_near_first(row, d); }
    return load_near_second(row, d);
}

fn load_far(pair: u32, row: u32, d: u32) -> vec4f {
    if (pair == 0u) { return load_far_first(row, d); }
    return load_far_second(row, d);
}

// The rows of a head on one side.
fn rows_of(batch: u32, count: u32, heads: u32, head: u32, first: u32) -> Rows {
    return Rows(head_row(batch, count, 0u, heads, head), heads * DIM, first, count - 1u);
}

// The log-sum-exp and delta of one query.
struct Statistic { lse: f32, delta: f32 }

fn statistic(queries: Rows, row: u32) -> Statistic {
    let at = args.statistic_start + place(queries, row) / DIM;
    return Statistic(lse[at], delta[at]);
}

// Whether the query of a near and a far row sees the key: the rows' numbers in their tiles.
fn is_seen(near: Rows, far: Rows, near_row: u32, far_row: u32) -> bool {
    let near_at = near.first + near_row;
    let far_at = far.first + far_row;
    @if QUERY_SIDE {
        return far_at <= min(near_at + args.offset, far.last);
    } @else {
        return near_at <= far_at + args.offset && far_at <= far.last;
    }
}

fn walk(group: vec3u, lane: Lane) {
    let head = group.y;
    let batch = group.z;
    @if QUERY_SIDE {
        // The last queries see the most keys: first.
        let first = ((args.queries - 1u) / NEAR_ROWS - args.first_group - group.x) * NEAR_ROWS;
        let far_head_first = head / args.group;
        let far_head_end = far_head_first + 1u;
        let begin = 0u;
        let end = min(args.keys, first + NEAR_ROWS + args.offset);
    } @else {
        let first = (args.first_group + group.x) * NEAR_ROWS;
        let far_head_first = head * args.group + args.group_first;
        let far_head_end = head * args.group + args.group_end;
        let begin = (max(first, args.offset) - args.offset) / FAR_ROWS * FAR_ROWS;
        let end = args.queries;
    }
    let near = rows_of(batch, near_count(), near_heads(), head, first);
    var score: array<f32, OWN * FAR>;
    var sum_first: array<vec4f, OWN * COLUMNS>;
    @if QUERY_SIDE {
        var statistics: array<Statistic, OWN>;
        @unroll for (var i = 0u; i < OWN; i++) { statistics[i] = statistic(near, i * NEAR_LANES + lane.near); }
    } @else {
        var sum_second: array<vec4f, OWN * COLUMNS>;
    }
    @unroll for (var i = 0u; i < OWN; i++) {
        @unroll for (var c = 0u; c < COLUMNS; c++) {
            @if CONTINUED {
                let row = place(near, i * NEAR_LANES + lane.near);
                let quarter = min(c * FAR_LANES + lane.far, QUARTERS - 1u);
                sum_first[i * COLUMNS + c] = load_first(row, quarter);
                sum_second[i * COLUMNS + c] = load_second(row, quarter);
            } @else {
                sum_first[i * COLUMNS + c] = vec4f();
                @if QUERY_SIDE {} @else { sum_second[i * COLUMNS + c] = vec4f(); }
            }
        }
    }
    hold_near(near, lane);
    for (var far_head = far_head_first; far_head < far_head_end; far_head++) {
        for (var far_row = begin; far_row < end; far_row += FAR_ROWS) {
            let far = rows_of(batch, far_count(), far_heads(), far_head, far_row);
            @if QUERY_SIDE {} @else {
                var statistics: array<Statistic, FAR>;
                @unroll for (var j = 0u; j < FAR; j++) { statistics[j] = statistic(far, lane.far * FAR + j); }
            }
            score_pair(0u, near, far, lane, &score);
            @unroll for (var i = 0u; i < OWN; i++) {
                @unroll for (var g = 0u; g < FAR_GROUPS; g++) {
                    var p = vec4f();
                    @unroll for (var r = 0u; r < 4; r++) {
                        let j = g * 4u + r;
                        @if QUERY_SIDE { let sum = statistics[i].lse; } @else { let sum = statistics[j].lse; }
                        let seen = is_seen(near, far, i * NEAR_LANES + lane.near, lane.far * FAR + j);
                        p[r] = select(0.0, exp(args.scale * score[i * FAR + j] - sum), seen);
                    }
                    put_weights(lane, i, lane.far * FAR_GROUPS + g, p);
                }
            }
            @if QUERY_SIDE {
                score_pair(1u, near, far, lane, &score);
            } @else {
                accumulate(1u, far, lane, &sum_second);
                score_held(1u, near, far, lane, &score);
            }
            // All lanes have read the probabilities that were accumulated; each turns its own into gradients of the scores.
            @unroll for (var i = 0u; i < OWN; i++) {
                @unroll for (var g = 0u; g < FAR_GROUPS; g++) {
                    let p = weights_at(lane, i, lane.far * FAR_GROUPS + g);
                    var ds = vec4f();
                    @unroll for (var r = 0u; r < 4; r++) {
                        let j = g * 4u + r;
                        @if QUERY_SIDE { let product = statistics[i].delta; } @else { let product = statistics[j].delta; }
                        ds[r] = p[r] * (score[i * FAR + j] - product) * args.scale;
                    }
                    put_weights(lane, i, lane.far * FAR_GROUPS + g, ds);
                }
            }
            accumulate(0u, far, lane, &sum_first);
        }
    }
    @unroll for (var i = 0u; i < OWN; i++) {
        let near_row = i * NEAR_LANES + lane.near;
        if (first + near_row < near_count()) {
            let row = place(near, near_row);
            @unroll for (var c = 0u; c < COLUMNS; c++) {
                let quarter = c * FAR_LANES + lane.far;
                if (quarter < QUARTERS) {
                    store_first(row, quarter, sum_first[i * COLUMNS + c]);
                    @if QUERY_SIDE {} @else { store_second(row, quarter, sum_second[i * COLUMNS + c]); }
                }
            }
        }
    }
}
