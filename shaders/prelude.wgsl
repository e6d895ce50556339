// Before every kernel. Row kernels are written for `Element`, WIDTH floats of one row: a vec4f where rows are a multiple of
// four floats, else an f32. A workgroup of WORKGROUP invocations reduces with `workgroup_sum` and `workgroup_max`: in one
// subgroup instruction where the workgroup is one subgroup, else by a tree in shared memory.

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
