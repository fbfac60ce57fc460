// What lies between the grouped products of experts. Rows `[rows, width]` lie expert after expert, `ends[expert]` the row
// after its last; what is past the last end is not touched. Blocks: `[width / 256, experts, parts]` of 8 warps; a warp
// takes 256 columns of every `8 parts`-th row of its expert.

__device__ __forceinline__ float share(float x) { return 0.5f * (1.0f + erff(x * 0.70710678f)); }

__device__ __forceinline__ float density(float x) { return 0.39894228f * __expf(-0.5f * x * x); }

struct Place {
    int first, end, step, column;
};

__device__ __forceinline__ Place own(const int *__restrict__ ends) {
    const int start = blockIdx.y ? ends[blockIdx.y - 1] : 0;
    const int first = start + blockIdx.z * 8 + threadIdx.x / 32;
    return {first, ends[blockIdx.y], static_cast<int>(gridDim.z) * 8, static_cast<int>(blockIdx.x) * 256 + static_cast<int>(threadIdx.x) % 32 * 8};
}

// Adds up a block's columns into `[parts, experts, width]`.
__device__ __forceinline__ void add_up(const float sum[8], int width, float *__restrict__ partial) {
    __shared__ float all[8][257];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 8; i++) all[warp][lane * 8 + i] = sum[i];
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < 8; w++) total += all[w][threadIdx.x];
    const int column = blockIdx.x * 256 + threadIdx.x;
    if (column < width) partial[(static_cast<long>(blockIdx.z) * gridDim.y + blockIdx.y) * width + column] = total;
}

// `inner` gets its bias; `active` is its GELU.
extern "C" __global__ void __launch_bounds__(256) activate(bf16 *inner, const bf16 *__restrict__ bias, long stride, const int *__restrict__ ends,
                                    int width, bf16 *__restrict__ active) {
    const Place p = own(ends);
    if (p.column >= width) return;
    float b[8];
    unpack(load(bias + blockIdx.y * stride + p.column), b);
    for (int row = p.first; row < p.end; row += 4 * p.step) {
        Eight v[4];
#pragma unroll
        for (int u = 0; u < 4; u++) {
            const int r = row + u * p.step;
            if (r < p.end) v[u] = load(inner + static_cast<long>(r) * width + p.column);
        }
#pragma unroll
        for (int u = 0; u < 4; u++) {
            const int r = row + u * p.step;
            if (r >= p.end) break;
            float x[8];
            unpack(v[u], x);
#pragma unroll
            for (int i = 0; i < 8; i++) x[i] += b[i];
            const Eight biased = pack(x);
            unpack(biased, x);
#pragma unroll
            for (int i = 0; i < 8; i++) x[i] *= share(x[i]);
            const long at = static_cast<long>(r) * width + p.column;
            store(inner + at, biased);
            store(active + at, pack(x));
        }
    }
}

// Rows get their expert's bias.
extern "C" __global__ void __launch_bounds__(256) add_bias(bf16 *rows, const bf16 *__restrict__ bias, long stride, const int *__restrict__ ends, int width) {
    const Place p = own(ends);
    if (p.column >= width) return;
    float b[8];
    unpack(load(bias + blockIdx.y * stride + p.column), b);
#pragma unroll 4
    for (int row = p.first; row < p.end; row += p.step) {
        bf16 *at = rows + static_cast<long>(row) * width + p.column;
        float x[8];
        unpack(load(at), x);
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] += b[i];
        store(at, pack(x));
    }
}

// `gradient` of the active values becomes that of the inner ones; its columns are added up for the bias.
extern "C" __global__ void __launch_bounds__(256) deactivate(const bf16 *__restrict__ inner, bf16 *gradient, const int *__restrict__ ends, int width,
                                      float *__restrict__ partial) {
    const Place p = own(ends);
    float sum[8] = {};
    if (p.column < width) {
        for (int row = p.first; row < p.end; row += 4 * p.step) {
            Eight v[4], w[4];
#pragma unroll
            for (int u = 0; u < 4; u++) {
                const int r = row + u * p.step;
                if (r < p.end) {
                    v[u] = load(inner + static_cast<long>(r) * width + p.column);
                    w[u] = load(gradient + static_cast<long>(r) * width + p.column);
                }
            }
#pragma unroll
            for (int u = 0; u < 4; u++) {
                const int r = row + u * p.step;
                if (r >= p.end) break;
                float x[8], g[8];
                unpack(v[u], x);
                unpack(w[u], g);
#pragma unroll
                for (int i = 0; i < 8; i++) g[i] *= share(x[i]) + x[i] * density(x[i]);
                const Eight rounded = pack(g);
                unpack(rounded, g);
#pragma unroll
                for (int i = 0; i < 8; i++) sum[i] += g[i];
                store(gradient + static_cast<long>(r) * width + p.column, rounded);
            }
        }
    }
    add_up(sum, width, partial);
}

// The sums of columns over each expert's rows.
extern "C" __global__ void __launch_bounds__(256) column_sums(const bf16 *__restrict__ rows, const int *__restrict__ ends, int width, float *__restrict__ partial) {
    const Place p = own(ends);
    float sum[8] = {};
    if (p.column < width) {
#pragma unroll 4
        for (int row = p.first; row < p.end; row += p.step) {
            float x[8];
            unpack(load(rows + static_cast<long>(row) * width + p.column), x);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] += x[i];
        }
    }
    add_up(sum, width, partial);
}

// Partial sums `[parts, groups, width]`, put into or added to rows of `width` that lie `stride` apart.
// Blocks: `[width / 32, groups]` of 32 x 32.
extern "C" __global__ void __launch_bounds__(1024) finish(const float *__restrict__ partial, int parts, int width, float *__restrict__ to, long stride, int fresh) {
    const long column = blockIdx.x * 32 + threadIdx.x;
    const long columns = static_cast<long>(gridDim.y) * width;
    const float sum = sum_of_column(partial + static_cast<long>(blockIdx.y) * width, parts, columns, column < width ? column : columns);
    if (threadIdx.y == 0 && column < width) {
        float *at = to + blockIdx.y * stride + column;
        *at = fresh ? sum : *at + sum;
    }
}
