// Layer normalisation (Ba et al. 2016) with the residual stream around it: a block a row, eight numbers a thread; width at
// most 8192 and a multiple of 8.

// `stream = input + branch + bias` (branch and bias may be none); `normed` is the stream normalised.
extern "C" __global__ void __launch_bounds__(1024) add_norm(const bf16 *__restrict__ input, const bf16 *__restrict__ branch, const bf16 *__restrict__ bias,
                                    const bf16 *__restrict__ scale, const bf16 *__restrict__ shift, int width, float epsilon,
                                    bf16 *__restrict__ stream, bf16 *__restrict__ normed, float2 *__restrict__ statistics) {
    const int at = threadIdx.x * 8;
    const long here = static_cast<long>(blockIdx.x) * width + at;
    const bool inside = at < width;
    float x[8] = {}, y[8];
    if (inside) {
        unpack(load(input + here), x);
        if (branch) {
            unpack(load(branch + here), y);
#pragma unroll
            for (int i = 0; i < 8; i++) x[i] += y[i];
            if (bias) {
                unpack(load(bias + at), y);
#pragma unroll
                for (int i = 0; i < 8; i++) x[i] += y[i];
            }
            const Eight rounded = pack(x);
            store(stream + here, rounded);
            unpack(rounded, x);
        }
    }
    float sum[1] = {};
#pragma unroll
    for (int i = 0; i < 8; i++) sum[0] += x[i];
    block_sums(sum);
    const float mean = sum[0] / width;
    sum[0] = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) sum[0] += inside ? (x[i] - mean) * (x[i] - mean) : 0.0f;
    block_sums(sum);
    const float inverse = rsqrtf(sum[0] / width + epsilon);
    if (threadIdx.x == 0) statistics[blockIdx.x] = make_float2(mean, inverse);
    if (inside) {
        float s[8];
        unpack(load(scale + at), s);
        unpack(load(shift + at), y);
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = (x[i] - mean) * inverse * s[i] + y[i];
        store(normed + here, pack(x));
    }
}

// The gradient of the stream from those of `normed` and of what else reads the stream (`beside`, may be none), and, by block,
// those of scale, shift and bias: `[3, blocks, width]`.
extern "C" __global__ void __launch_bounds__(1024) norm_backward(const bf16 *__restrict__ stream, const float2 *__restrict__ statistics, const bf16 *__restrict__ scale,
                                         const bf16 *__restrict__ gradient, const bf16 *__restrict__ beside, int rows, int width,
                                         bf16 *__restrict__ to, float *__restrict__ partial) {
    const int at = threadIdx.x * 8;
    const bool inside = at < width;
    float s[8] = {}, of_scale[8] = {}, of_shift[8] = {}, of_bias[8] = {};
    if (inside) unpack(load(scale + at), s);
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        const long here = static_cast<long>(row) * width + at;
        const float2 of_row = statistics[row];
        float x[8] = {}, g[8] = {};
        if (inside) {
            unpack(load(stream + here), x);
            unpack(load(gradient + here), g);
        }
        float sums[2] = {};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            x[i] = (x[i] - of_row.x) * of_row.y;
            of_scale[i] += g[i] * x[i];
            of_shift[i] += g[i];
            g[i] *= s[i];
            sums[0] += g[i];
            sums[1] += g[i] * x[i];
        }
        float other[8] = {};
        if (inside && beside) unpack(load(beside + here), other);
        block_sums(sums);
#pragma unroll
        for (int i = 0; i < 8; i++) g[i] = of_row.y * (g[i] - sums[0] / width - x[i] * sums[1] / width) + other[i];
        const Eight rounded = pack(g);
        unpack(rounded, g);
#pragma unroll
        for (int i = 0; i < 8; i++) of_bias[i] += g[i];
        if (inside) store(to + here, rounded);
    }
    if (!inside) return;
    const long all = static_cast<long>(gridDim.x) * width, own = static_cast<long>(blockIdx.x) * width + at;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        partial[own + i] = of_scale[i];
        partial[all + own + i] = of_shift[i];
        partial[2 * all + own + i] = of_bias[i];
    }
}

// The gradients of a projection's bias: partial sums of columns of `[rows, width]`, `[blocks, width]`.
extern "C" __global__ void __launch_bounds__(256) bias_gradient(const bf16 *__restrict__ rows, int count, int width, float *__restrict__ partial) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int column = blockIdx.x * 256 + lane * 8;
    float sum[8] = {};
    if (column < width) {
#pragma unroll 4
        for (int row = blockIdx.y * 8 + warp; row < count; row += gridDim.y * 8) {
            float x[8];
            unpack(load(rows + static_cast<long>(row) * width + column), x);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] += x[i];
        }
    }
    __shared__ float all[8][257];
#pragma unroll
    for (int i = 0; i < 8; i++) all[warp][lane * 8 + i] = sum[i];
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < 8; w++) total += all[w][threadIdx.x];
    const int own = blockIdx.x * 256 + threadIdx.x;
    if (own < width) partial[static_cast<long>(blockIdx.y) * width + own] = total;
}

// Sums over the rows of `[groups, rows, width]`: blocks `[width / 32, groups]` of 32 x 32.
extern "C" __global__ void __launch_bounds__(1024) finish_columns(const float *__restrict__ partial, int rows, int width, float *__restrict__ to) {
    const long column = blockIdx.x * 32 + threadIdx.x;
    const float sum = sum_of_column(partial + static_cast<long>(blockIdx.y) * rows * width, rows, width, column);
    if (threadIdx.y == 0 && column < width) to[static_cast<long>(blockIdx.y) * width + column] = sum;
}
