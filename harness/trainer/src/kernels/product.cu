// The gradients of expert matrices: for every expert, the product of the transposed rows of one matrix with those of another,
// added in single precision to what is there.
//
// A block computes tiles of 128 x 256 one after the other. Its first warp group loads: the bulk copy engine brings 64 rows of
// both matrices into one of three stages of shared memory, as boxes of 64 columns. The two others multiply 64 x 256 each by
// Hopper's matrix instruction, straight from the stages. Rows of the next expert in an expert's last box are cleared. Results
// go to shared memory, from where the copy engine puts or adds them while the next tile is under way.

constexpr int TILE_M = 128, TILE_N = 256, TILE_K = 64, STAGES = 3, SIDE = 16;
// A box: 64 rows of 64 numbers, 128 bytes each, in the copy engine's 128-byte swizzle.
constexpr int BOX = TILE_K * 128;
constexpr int STAGE = BOX * (TILE_M + TILE_N) / 64;

// Half of a warp group's results: four boxes of 64 rows and 32 numbers, in the same swizzle.
constexpr int RESULT_BOX = 64 * 128, RESULT = 4 * RESULT_BOX;

// A tensor map as the driver encodes it.
struct __align__(64) Map {
    u64 words[16];
};

__device__ __forceinline__ u32 shared_address(const void *pointer) { return static_cast<u32>(__cvta_generic_to_shared(pointer)); }

__device__ __forceinline__ void init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

__device__ __forceinline__ void expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void wait(u32 barrier, u32 phase) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra.uni over;\nbra.uni again;\nover:\n}\n" ::"r"(barrier), "r"(phase)
        : "memory");
}

__device__ __forceinline__ void copy(u32 to, const Map &map, int column, int row, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to),
                 "l"(&map), "r"(barrier), "r"(column), "r"(row)
                 : "memory");
}

__device__ __forceinline__ void put(const Map &map, int column, int row, int group, u32 from, int fresh) {
    if (fresh)
        asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map), "r"(from), "r"(column), "r"(row),
                     "r"(group)
                     : "memory");
    else
        asm volatile("cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map), "r"(from),
                     "r"(column), "r"(row), "r"(group)
                     : "memory");
}

// A stage's boxes for the matrix instruction: columns contiguous, eight rows 1024 bytes, 64 columns a box apart.
__device__ __forceinline__ u64 describe(u32 address) {
    return static_cast<u64>((address & 0x3ffffu) >> 4) | static_cast<u64>(BOX >> 4) << 16 | static_cast<u64>(1024 >> 4) << 32 | 1ull << 62;
}

// `d` plus, or, unless `add`, the product of 16 rows: `[16, 64]` transposed times `[16, 256]`.
__device__ __forceinline__ void multiply(float (&d)[128], u64 first, u64 second, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
        "}, %128, %129, p, 1, 1, 1, 1;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
          "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
          "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
          "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
          "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]),
          "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]),
          "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]),
          "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]),
          "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]),
          "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]),
          "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]),
          "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]),
          "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
        : "l"(first), "l"(second), "r"(add));
}

struct Tile {
    int group, first, end, m, n;
};

struct Product {
    const int *ends;
    int groups, m, n, fresh;

    __device__ __forceinline__ int tiles() const { return groups * (m / TILE_M) * (n / TILE_N); }

    // Tiles go down in columns of at most `SIDE` rows of tiles, so that what blocks read at a time stays in the cache.
    __device__ __forceinline__ Tile tile(int number) const {
        const int rows = m / TILE_M, across = n / TILE_N, each = rows * across;
        const int group = number / each, rest = number % each;
        const int parts = (rows + SIDE - 1) / SIDE, side = (rows + parts - 1) / parts;
        const int first = rest / (side * across) * side, own = min(side, rows - first), local = rest - first * across;
        return {group, group ? ends[group - 1] : 0, ends[group], (first + local % own) * TILE_M, local / own * TILE_N};
    }
};

extern "C" __global__ void __launch_bounds__(384, 1)
    weight_product(const __grid_constant__ Map first, const __grid_constant__ Map second, const __grid_constant__ Map to,
                   const __grid_constant__ Product product) {
    extern __shared__ __align__(1024) unsigned char stages[];
    __shared__ __align__(8) u64 barriers[2 * STAGES];
    const u32 base = (shared_address(stages) + 1023) & ~1023u;
    const u32 full = shared_address(barriers), empty = full + 8 * STAGES;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            init(full + 8 * stage, 1);
            init(empty + 8 * stage, 2);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    const int group = threadIdx.x / 128;
    int stage = 0;
    u32 phase = 0;
    auto next = [&] {
        if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
        }
    };
    if (group == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x != 0) return;
        for (int number = blockIdx.x; number < product.tiles(); number += gridDim.x) {
            const Tile tile = product.tile(number);
            for (int row = tile.first; row < tile.end; row += TILE_K, next()) {
                wait(empty + 8 * stage, phase ^ 1);
                const u32 barrier = full + 8 * stage, to = base + stage * STAGE;
                expect(barrier, STAGE);
#pragma unroll
                for (int box = 0; box < TILE_M / 64; box++) copy(to + box * BOX, first, tile.m + 64 * box, row, barrier);
#pragma unroll
                for (int box = 0; box < TILE_N / 64; box++)
                    copy(to + (TILE_M / 64 + box) * BOX, second, tile.n + 64 * box, row, barrier);
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        const int own = group - 1, thread = threadIdx.x % 128;
        for (int number = blockIdx.x; number < product.tiles(); number += gridDim.x) {
            const Tile tile = product.tile(number);
            if (tile.first == tile.end && !product.fresh) continue;
            float d[128];
#pragma unroll
            for (int i = 0; i < 128; i++) d[i] = 0.0f;
            int before = -1;
            for (int row = tile.first; row < tile.end; row += TILE_K, next()) {
                wait(full + 8 * stage, phase);
                const u32 from = base + stage * STAGE, mine = from + own * BOX;
                if (row + TILE_K > tile.end) {
                    for (int at = (tile.end - row) * 128 + thread * 16; at < BOX; at += 128 * 16)
                        asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(mine + at), "r"(0) : "memory");
                    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
                    asm volatile("bar.sync %0, 128;" ::"r"(1 + own) : "memory");
                }
                asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
                for (int k = 0; k < TILE_K / 16; k++)
                    multiply(d, describe(mine + k * 2048), describe(from + TILE_M / 64 * BOX + k * 2048), 1);
                asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
                asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
                if (before >= 0 && thread == 0) arrive(empty + 8 * before);
                before = stage;
            }
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            if (before >= 0 && thread == 0) arrive(empty + 8 * before);
            // The results, 128 columns at a time: a thread has pairs of neighbours in two rows.
            const u32 results = base + STAGES * STAGE + own * RESULT;
            const int row = thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                if (thread == 0) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
                asm volatile("bar.sync %0, 128;" ::"r"(1 + own) : "memory");
#pragma unroll
                for (int i = 0; i < 16; i++) {
                    const int at = 8 * i + column;
                    // Sixteen bytes of a row change places by the row's number.
                    const u32 there = results + at / 32 * RESULT_BOX + row * 128 + ((at % 32 / 4) ^ (row % 8)) * 16 + at % 4 * 4;
                    const int from = 64 * half + 4 * i;
                    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(there), "f"(d[from]), "f"(d[from + 1]) : "memory");
                    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(there + 8 * 128), "f"(d[from + 2]), "f"(d[from + 3]) : "memory");
                }
                asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
                asm volatile("bar.sync %0, 128;" ::"r"(1 + own) : "memory");
                if (thread == 0) {
#pragma unroll
                    for (int box = 0; box < 4; box++)
                        put(to, tile.n + 128 * half + 32 * box, tile.m + 64 * own, tile.group, results + box * RESULT_BOX, product.fresh);
                    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
                }
            }
        }
        if (threadIdx.x % 128 == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
}
