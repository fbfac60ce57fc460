// What lies between the grouped products of experts. Rows `[rows, width]` lie expert after expert, `ends[expert]` the row
// after its last; what is past the last end is not touched. Blocks: `[width / 256, rows / TILE]` of 8 warps, each with 256
// columns of every eighth row of its tile: as many as there are rows, however these fall on experts.
//
// Sums over an expert's rows come in pieces: what a tile has of an expert. Piece `tile + expert` is no other's, for from piece to
// piece either the tile or the expert goes on.

constexpr int TILE = 128;

// Activation functions, numbered as in the launch.
constexpr int GELU = 0, SILU = 1, CLAMPED_SILU = 2;
// Of the last: from where on both factors are cut off, and the factor in the sigmoid.
constexpr float LIMIT = 7.0f, STEEPNESS = 1.702f;

__device__ __forceinline__ float share(float x) { return 0.5f * (1.0f + erff(x * 0.70710678f)); }

__device__ __forceinline__ float density(float x) { return 0.39894228f * __expf(-0.5f * x * x); }

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

template <int ACTIVATION>
__device__ __forceinline__ float value(float x) {
    if constexpr (ACTIVATION == GELU) return x * share(x);
    if constexpr (ACTIVATION == SILU) return x * sigmoid(x);
    const float clamped = x > LIMIT ? LIMIT : x;
    return clamped * sigmoid(STEEPNESS * clamped);
}

template <int ACTIVATION>
__device__ __forceinline__ float slope(float x) {
    if constexpr (ACTIVATION == GELU) return share(x) + x * density(x);
    if (ACTIVATION == CLAMPED_SILU && x > LIMIT) return 0.0f;
    const float steepness = ACTIVATION == CLAMPED_SILU ? STEEPNESS : 1.0f, s = sigmoid(steepness * x);
    return s * (1.0f + steepness * x * (1.0f - s));
}

// What the gate's activation is multiplied by, from the first matrix's product.
template <int ACTIVATION>
__device__ __forceinline__ float factor(float x) {
    if constexpr (ACTIVATION != CLAMPED_SILU) return x;
    return (x > LIMIT ? LIMIT : x < -LIMIT ? -LIMIT : x) + 1.0f;
}

template <int ACTIVATION>
__device__ __forceinline__ float factor_slope(float x) {
    return ACTIVATION == CLAMPED_SILU && (x > LIMIT || x < -LIMIT) ? 0.0f : 1.0f;
}

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

// Adds a bias to eight numbers of a row, which are rounded and stored.
__device__ __forceinline__ void add_and_store(float x[8], const float bias[8], bf16 *to) {
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] += bias[i];
    const Eight biased = pack(x);
    unpack(biased, x);
    store(to, biased);
}

// The products `first` and, with a gate, `gate` get their biases where there are some; `active` is what the last matrix gets.
template <int ACTIVATION, bool GATED>
__device__ __forceinline__ void activate_rows(bf16 *first, const bf16 *__restrict__ first_bias, bf16 *gate, const bf16 *__restrict__ gate_bias, long stride,
                                              const int *__restrict__ ends, int experts, int width, bf16 *__restrict__ active) {
    constexpr int ROWS = GATED ? 2 : 4;
    const int column = own_column();
    if (column >= width) return;
    pieces(ends, experts, [&](int expert, int start, int end) {
        float b[8], c[8];
        if (first_bias) unpack(load(first_bias + expert * stride + column), b);
        if (GATED && gate_bias) unpack(load(gate_bias + expert * stride + column), c);
        for (int row = start + threadIdx.x / 32; row < end; row += ROWS * 8) {
            Eight v[ROWS], w[ROWS];
#pragma unroll
            for (int u = 0; u < ROWS; u++) {
                const long at = static_cast<long>(row + 8 * u) * width + column;
                if (row + 8 * u < end) {
                    v[u] = load(first + at);
                    if constexpr (GATED) w[u] = load(gate + at);
                }
            }
#pragma unroll
            for (int u = 0; u < ROWS; u++) {
                if (row + 8 * u >= end) break;
                const long at = static_cast<long>(row + 8 * u) * width + column;
                float x[8];
                unpack(v[u], x);
                if (first_bias) add_and_store(x, b, first + at);
                if constexpr (GATED) {
                    float y[8];
                    unpack(w[u], y);
                    if (gate_bias) add_and_store(y, c, gate + at);
#pragma unroll
                    for (int i = 0; i < 8; i++) x[i] = factor<ACTIVATION>(x[i]) * value<ACTIVATION>(y[i]);
                } else {
#pragma unroll
                    for (int i = 0; i < 8; i++) x[i] = value<ACTIVATION>(x[i]);
                }
                store(active + at, pack(x));
            }
        }
    });
}

extern "C" __global__ void __launch_bounds__(256, 4)
    activate(bf16 *inner, const bf16 *__restrict__ bias, long stride, const int *__restrict__ ends, int experts, int width, int activation,
             bf16 *__restrict__ active) {
    switch (activation) {
        case GELU: return activate_rows<GELU, false>(inner, bias, nullptr, nullptr, stride, ends, experts, width, active);
        case SILU: return activate_rows<SILU, false>(inner, bias, nullptr, nullptr, stride, ends, experts, width, active);
        default: return activate_rows<CLAMPED_SILU, false>(inner, bias, nullptr, nullptr, stride, ends, experts, width, active);
    }
}

extern "C" __global__ void __launch_bounds__(256, 3)
    activate_gated(bf16 *first, const bf16 *__restrict__ first_bias, bf16 *gate, const bf16 *__restrict__ gate_bias, long stride,
                   const int *__restrict__ ends, int experts, int width, int activation, bf16 *__restrict__ active) {
    switch (activation) {
        case GELU: return activate_rows<GELU, true>(first, first_bias, gate, gate_bias, stride, ends, experts, width, active);
        case SILU: return activate_rows<SILU, true>(first, first_bias, gate, gate_bias, stride, ends, experts, width, active);
        default: return activate_rows<CLAMPED_SILU, true>(first, first_bias, gate, gate_bias, stride, ends, experts, width, active);
    }
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

// `gradient` of the active values becomes that of `first` and, with a gate, `gate` becomes its own. Their columns are added up
// where there are biases.
template <int ACTIVATION, bool GATED>
__device__ __forceinline__ void deactivate_rows(const bf16 *__restrict__ first, bf16 *gate, bf16 *gradient, const int *__restrict__ ends, int experts, int width,
                                                float *__restrict__ first_partial, float *__restrict__ gate_partial) {
    constexpr int ROWS = GATED ? 2 : 4;
    const int column = own_column();
    pieces(ends, experts, [&](int expert, int start, int end) {
        float sum[8] = {}, gate_sum[8] = {};
        for (int row = start + threadIdx.x / 32; row < end && column < width; row += ROWS * 8) {
            Eight v[ROWS], w[ROWS], z[ROWS];
#pragma unroll
            for (int u = 0; u < ROWS; u++) {
                const long at = static_cast<long>(row + 8 * u) * width + column;
                if (row + 8 * u < end) {
                    v[u] = load(first + at);
                    w[u] = load(gradient + at);
                    if constexpr (GATED) z[u] = load(gate + at);
                }
            }
#pragma unroll
            for (int u = 0; u < ROWS; u++) {
                if (row + 8 * u >= end) break;
                const long at = static_cast<long>(row + 8 * u) * width + column;
                float x[8], g[8];
                unpack(v[u], x);
                unpack(w[u], g);
                if constexpr (GATED) {
                    float y[8];
                    unpack(z[u], y);
#pragma unroll
                    for (int i = 0; i < 8; i++) {
                        const float of_gate = g[i] * factor<ACTIVATION>(x[i]) * slope<ACTIVATION>(y[i]);
                        g[i] *= factor_slope<ACTIVATION>(x[i]) * value<ACTIVATION>(y[i]);
                        y[i] = of_gate;
                    }
                    const Eight rounded = pack(y);
                    unpack(rounded, y);
#pragma unroll
                    for (int i = 0; i < 8; i++) gate_sum[i] += y[i];
                    store(gate + at, rounded);
                } else {
#pragma unroll
                    for (int i = 0; i < 8; i++) g[i] *= slope<ACTIVATION>(x[i]);
                }
                const Eight rounded = pack(g);
                unpack(rounded, g);
#pragma unroll
                for (int i = 0; i < 8; i++) sum[i] += g[i];
                store(gradient + at, rounded);
            }
        }
        if (first_partial) add_up(sum, expert, width, first_partial);
        if (GATED && gate_partial) add_up(gate_sum, expert, width, gate_partial);
    });
}

extern "C" __global__ void __launch_bounds__(256, 3)
    deactivate(const bf16 *__restrict__ inner, bf16 *gradient, const int *__restrict__ ends, int experts, int width, int activation,
               float *__restrict__ partial) {
    switch (activation) {
        case GELU: return deactivate_rows<GELU, false>(inner, nullptr, gradient, ends, experts, width, partial, nullptr);
        case SILU: return deactivate_rows<SILU, false>(inner, nullptr, gradient, ends, experts, width, partial, nullptr);
        default: return deactivate_rows<CLAMPED_SILU, false>(inner, nullptr, gradient, ends, experts, width, partial, nullptr);
    }
}

extern "C" __global__ void __launch_bounds__(256, 3)
    deactivate_gated(const bf16 *__restrict__ first, bf16 *gate, bf16 *gradient, const int *__restrict__ ends, int experts, int width, int activation,
                     float *__restrict__ first_partial, float *__restrict__ gate_partial) {
    switch (activation) {
        case GELU: return deactivate_rows<GELU, true>(first, gate, gradient, ends, experts, width, first_partial, gate_partial);
        case SILU: return deactivate_rows<SILU, true>(first, gate, gradient, ends, experts, width, first_partial, gate_partial);
        default: return deactivate_rows<CLAMPED_SILU, true>(first, gate, gradient, ends, experts, width, first_partial, gate_partial);
    }
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
