// What lies between the grouped products of experts. Rows `[rows, width]` lie expert after expert, `ends[expert]` the row
// after its last; what is past the last end is not touched. Blocks: `[width / 256, rows / TILE]` of 8 warps, each with 256
// columns of every eighth row of its tile: as many as there are rows, however these fall on experts.
//
// Sums over an expert's rows come in pieces: what a tile has of an expert. Piece `tile + expert` is no other's, for from piece to
// piece either the tile or the expert goes on.

constexpr int TILE = 128;

__device__ __forceinline__ float share(float x) { return 0.5f * (1.0f + erff(x * 0.70710678f)); }

__device__ __forceinline__ float density(float x) { return 0.39894228f * __expf(-0.5f * x * x); }

// The expert of a row: the first that ends after it.
__device__ __forceinline__ int expert_of(const int *__restrict__ ends, int experts, int row) {
    int low = 0, high = experts;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (ends[middle] > row) high = middle;
        else low = middle + 1;
    }
    return low;
}

// Calls `piece(expert, first, end)` for every expert with rows in the block's tile, in order.
template <typename Piece>
__device__ __forceinline__ void pieces(const int *__restrict__ ends, int experts, Piece piece) {
    int row = blockIdx.y * TILE;
    const int end = min(row + TILE, ends[experts - 1]);
    for (int expert = row < end ? expert_of(ends, experts, row) : experts; row < end; expert++) {
        const int last = min(end, ends[expert]);
        if (last > row) piece(expert, row, last);
        row = max(row, last);
    }
}

__device__ __forceinline__ int own_column() { return blockIdx.x * 256 + threadIdx.x % 32 * 8; }

// Adds up a block's columns of a piece into `[pieces, width]`.
__device__ __forceinline__ void add_up(const float sum[8], int expert, int width, float *__restrict__ partial) {
    __shared__ float all[8][257];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 8; i++) all[warp][lane * 8 + i] = sum[i];
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < 8; w++) total += all[w][threadIdx.x];
    const int column = blockIdx.x * 256 + threadIdx.x;
    if (column < width) partial[static_cast<long>(blockIdx.y + expert) * width + column] = total;
    __syncthreads();
}

// `inner` gets its bias; `active` is its GELU.
extern "C" __global__ void __launch_bounds__(256)
    activate(bf16 *inner, const bf16 *__restrict__ bias, long stride, const int *__restrict__ ends, int experts, int width, bf16 *__restrict__ active) {
    const int column = own_column();
    if (column >= width) return;
    pieces(ends, experts, [&](int expert, int first, int end) {
        float b[8];
        unpack(load(bias + expert * stride + column), b);
        for (int row = first + threadIdx.x / 32; row < end; row += 4 * 8) {
            Eight v[4];
#pragma unroll
            for (int u = 0; u < 4; u++)
                if (row + 8 * u < end) v[u] = load(inner + static_cast<long>(row + 8 * u) * width + column);
#pragma unroll
            for (int u = 0; u < 4; u++) {
                if (row + 8 * u >= end) break;
                float x[8];
                unpack(v[u], x);
#pragma unroll
                for (int i = 0; i < 8; i++) x[i] += b[i];
                const Eight biased = pack(x);
                unpack(biased, x);
#pragma unroll
                for (int i = 0; i < 8; i++) x[i] *= share(x[i]);
                const long at = static_cast<long>(row + 8 * u) * width + column;
                store(inner + at, biased);
                store(active + at, pack(x));
            }
        }
    });
}

// Rows get their expert's bias.
extern "C" __global__ void __launch_bounds__(256)
    add_bias(bf16 *rows, const bf16 *__restrict__ bias, long stride, const int *__restrict__ ends, int experts, int width) {
    const int column = own_column();
    if (column >= width) return;
    pieces(ends, experts, [&](int expert, int first, int end) {
        float b[8];
        unpack(load(bias + expert * stride + column), b);
        for (int row = first + threadIdx.x / 32; row < end; row += 4 * 8) {
            Eight v[4];
#pragma unroll
            for (int u = 0; u < 4; u++)
                if (row + 8 * u < end) v[u] = load(rows + static_cast<long>(row + 8 * u) * width + column);
#pragma unroll
            for (int u = 0; u < 4; u++) {
                if (row + 8 * u >= end) break;
                float x[8];
                unpack(v[u], x);
#pragma unroll
                for (int i = 0; i < 8; i++) x[i] += b[i];
                store(rows + static_cast<long>(row + 8 * u) * width + column, pack(x));
            }
        }
    });
}

// `gradient` of the active values becomes that of the inner ones; its columns are added up for the bias.
extern "C" __global__ void __launch_bounds__(256)
    deactivate(const bf16 *__restrict__ inner, bf16 *gradient, const int *__restrict__ ends, int experts, int width, float *__restrict__ partial) {
    const int column = own_column();
    pieces(ends, experts, [&](int expert, int first, int end) {
        float sum[8] = {};
        for (int row = first + threadIdx.x / 32; row < end && column < width; row += 4 * 8) {
            Eight v[4], w[4];
#pragma unroll
            for (int u = 0; u < 4; u++) {
                if (row + 8 * u < end) {
                    v[u] = load(inner + static_cast<long>(row + 8 * u) * width + column);
                    w[u] = load(gradient + static_cast<long>(row + 8 * u) * width + column);
                }
            }
#pragma unroll
            for (int u = 0; u < 4; u++) {
                if (row + 8 * u >= end) break;
                float x[8], g[8];
                unpack(v[u], x);
                unpack(w[u], g);
#pragma unroll
                for (int i = 0; i < 8; i++) g[i] *= share(x[i]) + x[i] * density(x[i]);
                const Eight rounded = pack(g);
                unpack(rounded, g);
#pragma unroll
                for (int i = 0; i < 8; i++) sum[i] += g[i];
                store(gradient + static_cast<long>(row + 8 * u) * width + column, rounded);
            }
        }
        add_up(sum, expert, width, partial);
    });
}

// The sums of columns over each expert's rows.
extern "C" __global__ void __launch_bounds__(256)
    column_sums(const bf16 *__restrict__ rows, const int *__restrict__ ends, int experts, int width, float *__restrict__ partial) {
    const int column = own_column();
    pieces(ends, experts, [&](int expert, int first, int end) {
        float sum[8] = {};
#pragma unroll 4
        for (int row = first + threadIdx.x / 32; row < end && column < width; row += 8) {
            float x[8];
            unpack(load(rows + static_cast<long>(row) * width + column), x);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] += x[i];
        }
        add_up(sum, expert, width, partial);
    });
}

// Adds up each expert's pieces `[pieces, width]` into rows of `width` that lie `stride` apart; unless these are fresh, adds to
// what is there. Blocks: `[width / 32, experts]` of 32 x 32.
extern "C" __global__ void __launch_bounds__(1024)
    finish(const float *__restrict__ partial, const int *__restrict__ ends, int width, float *__restrict__ to, long stride, int fresh) {
    const int expert = blockIdx.y, column = blockIdx.x * 32 + threadIdx.x;
    const int start = expert ? ends[expert - 1] : 0, end = ends[expert];
    const int first = start / TILE, tiles = end > start ? (end - 1) / TILE + 1 - first : 0;
    const float sum = sum_of_column(partial + static_cast<long>(first + expert) * width, tiles, width, column);
    if (threadIdx.y == 0 && column < width) {
        float *at = to + expert * stride + column;
        *at = fresh ? sum : *at + sum;
    }
}
