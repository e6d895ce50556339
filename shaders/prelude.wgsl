// Prepended to every kernel. Row kernels are written for `Element`, WIDTH floats of one row: vec4f if the row length is a multiple
// of four, else f32. `workgroup_sum` and `workgroup_max` reduce over the WORKGROUP invocations of a workgroup: by one subgroup
// operation if it is one subgroup, by subgroup operations and shared memory with SUBGROUPS, else by a tree in shared memory.

const LOWEST: f32 = -3.40282347e38;

// Invocation index in a dispatch folded over x and y.
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
            // The first lane of each subgroup writes the subgroup's partial result to scratch, all other lanes the neutral element.
            // Then every subgroup reduces all of scratch. This works for any subgroup size and any mapping of lanes; `subgroup_id`
            // does not: DX12 lacks it, and naga's emulation assumes that consecutive invocations share a subgroup.
            struct Lanes { rank: u32, count: u32 }

            fn write_partials(x: f32, neutral: f32, lane: u32) -> Lanes {
                scratch[lane] = select(neutral, x, lane == subgroupBroadcastFirst(lane));
                workgroupBarrier();
                return Lanes(subgroupExclusiveAdd(1u), subgroupAdd(1u));
            }

            fn workgroup_sum(x: f32, lane: u32) -> f32 {
                let lanes = write_partials(subgroupAdd(x), 0.0, lane);
                var sum = 0.0;
                for (var i = lanes.rank; i < WORKGROUP; i += lanes.count) { sum += scratch[i]; }
                workgroupBarrier();
                return subgroupAdd(sum);
            }

            fn workgroup_max(x: f32, lane: u32) -> f32 {
                let lanes = write_partials(subgroupMax(x), LOWEST, lane);
                var highest = LOWEST;
                for (var i = lanes.rank; i < WORKGROUP; i += lanes.count) { highest = max(highest, scratch[i]); }
                workgroupBarrier();
                return subgroupMax(highest);
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
