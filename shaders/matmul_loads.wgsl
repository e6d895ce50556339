// Loads of the operands' tiles, [ROWS] and [COLUMNS] × DEPTH, a vec4 per invocation at a time.
//
// Constants: ROWS, COLUMNS, DEPTH, TRANSPOSE_A, TRANSPOSE_B, VECTORS, F16_OPERANDS.

@if F16_OPERANDS { alias Loaded = vec4<f16>; } @else { alias Loaded = vec4f; }

// Tile coordinates of the vec4 that an invocation loads: four consecutive rows or columns at one inner index (of a tile `side`
// wide), or four consecutive inner indices of one row or column.
struct Place { side: u32, depth: u32 }

fn along_side(index: u32, side: u32) -> Place { return Place(index % (side / 4u) * 4u, index / (side / 4u)); }

fn along_depth(index: u32) -> Place { return Place(index / (DEPTH / 4u), index % (DEPTH / 4u) * 4u); }

fn place_a(index: u32) -> Place {
    if (TRANSPOSE_A == 1u) { return along_side(index, ROWS); }
    return along_depth(index);
}

fn place_b(index: u32) -> Place {
    if (TRANSPOSE_B == 0u) { return along_side(index, COLUMNS); }
    return along_depth(index);
}

// Loads have no branch, which would hold up the compiler's schedule: addresses are clamped into the operand. Rows and columns
// beyond it go to outputs that are never stored; inner indices beyond it become zeros in store_a and store_b.
fn fetch_a(index: u32, row: u32, k: u32, base: u32) -> Loaded {
    let at = place_a(index);
    let inner = k + at.depth;
    let side = row + at.side;
    @if VECTORS {
        if (TRANSPOSE_A == 1u) { return load_a(base + min(inner, args.inner - 1u) * args.a_stride + min(side, args.rows - 4u), 4u); }
        return load_a(base + min(side, args.rows - 1u) * args.a_stride + min(inner, args.inner - 4u), 4u);
    } @else {
        if (inner >= args.inner || side >= args.rows) { return Loaded(); }
        if (TRANSPOSE_A == 1u) { return load_a(base + inner * args.a_stride + side, args.rows - side); }
        return load_a(base + side * args.a_stride + inner, args.inner - inner);
    }
}

fn fetch_b(index: u32, column: u32, k: u32, base: u32) -> Loaded {
    let at = place_b(index);
    let inner = k + at.depth;
    let side = column + at.side;
    @if VECTORS {
        if (TRANSPOSE_B == 0u) { return load_b(base + min(inner, args.inner - 1u) * args.b_stride + min(side, args.columns - 4u), 4u); }
        return load_b(base + min(side, args.columns - 1u) * args.b_stride + min(inner, args.inner - 4u), 4u);
    } @else {
        if (inner >= args.inner || side >= args.columns) { return Loaded(); }
        if (TRANSPOSE_B == 0u) { return load_b(base + inner * args.b_stride + side, args.columns - side); }
        return load_b(base + side * args.b_stride + inner, args.inner - inner);
    }
}
