// Before every kernel. Row kernels are written for `Element`, WIDTH floats of one row: a vec4f where rows are a multiple of
// four floats, else an f32. A workgroup of WORKGROUP invocations reduces with `workgroup_sum` and `workgroup_max`: in one
// subgroup instruction where the workgroup is one subgroup, else by subgroups and shared memory where the device's profile has
// SUBGROUPS, else by a tree in shared memory.

const LOWEST: f32 = -3.40282347e38;

// The index of an invocation in a dispatch that was folded over x and y.
fn linear_index(group: vec3u, groups: vec3u, local: u32, size: u32) -> u32 {
    return (group.y * groups.x + group.x) * size + local;
}

@if VECTORS {
    alias Element = vec4f;
    const WIDTH: u32 = 4u;
    fn total(x: Element) -> f32 { return (x.x + x.y) + (x.z + x.w); }
    fn largest(x: Element) -> f32 { return max(max(x.x, x.y), max(x.z, x.w)); }
} @else {
    alias Element = f32;
    const WIDTH: u32 = 1u;
    fn total(x: Element) -> f32 { return x; }
    fn largest(x: Element) -> f32 { return x; }
}

@if WORKGROUP {
    @if ONE_SUBGROUP {
        fn workgroup_sum(x: f32, lane: u32) -> f32 { return subgroupAdd(x); }
        fn workgroup_max(x: f32, lane: u32) -> f32 { return subgroupMax(x); }
    } @else {
        var<workgroup> scratch: array<f32, WORKGROUP>;

        @if SUBGROUPS {
            // A subgroup's first lane leaves its result in scratch, at a place of its own, and the others the neutral number.
            // Then each subgroup reduces all of scratch. That holds for any size of the subgroups and for any lanes in them;
            // `subgroup_id` would not: DX12 has none, and naga assumes there that neighbours share a subgroup.
            struct Lanes { rank: u32, count: u32 }

            fn share(x: f32, neutral: f32, lane: u32) -> Lanes {
                scratch[lane] = select(neutral, x, lane == subgroupBroadcastFirst(lane));
                workgroupBarrier();
                return Lanes(subgroupExclusiveAdd(1u), subgroupAdd(1u));
            }

            fn workgroup_sum(x: f32, lane: u32) -> f32 {
                let lanes = share(subgroupAdd(x), 0.0, lane);
                var sum = 0.0;
                for (var i = lanes.rank; i < WORKGROUP; i += lanes.count) { sum += scratch[i]; }
                workgroupBarrier();
                return subgroupAdd(sum);
            }

            fn workgroup_max(x: f32, lane: u32) -> f32 {
                let lanes = share(subgroupMax(x), LOWEST, lane);
                var most = LOWEST;
                for (var i = lanes.rank; i < WORKGROUP; i += lanes.count) { most = max(most, scratch[i]); }
                workgroupBarrier();
                return subgroupMax(most);
            }
        } @else {
            fn workgroup_sum(x: f32, lane: u32) -> f32 {
                scratch[lane] = x;
                for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
                    workgroupBarrier();
                    if (lane < half) { scratch[lane] += scratch[lane + half]; }
                }
                workgroupBarrier();
                let result = scratch[0];
                workgroupBarrier();
                return result;
            }

            fn workgroup_max(x: f32, lane: u32) -> f32 {
                scratch[lane] = x;
                for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
                    workgroupBarrier();
                    if (lane < half) { scratch[lane] = max(scratch[lane], scratch[lane + half]); }
                }
                workgroupBarrier();
                let result = scratch[0];
                workgroupBarrier();
                return result;
            }
        }
    }
}
