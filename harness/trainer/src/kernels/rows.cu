// Between tokens `[tokens, width]` and rows `[rows, width]`: a warp a row or token, 16 bytes a lane.
// `row_of[choice]`: -1 where it was dropped; `choice_of[row]`: -1 where the row is padding.

// Every entry's token at its row, zeros elsewhere.
extern "C" __global__ void __launch_bounds__(256) gather(const bf16 *__restrict__ tokens, const int *__restrict__ choice_of, int rows, int k, int width,
                                  bf16 *__restrict__ to) {
    const int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const int choice = choice_of[row];
    const bf16 *from = tokens + static_cast<long>(max(choice, 0) / k) * width;
    to += static_cast<long>(row) * width;
#pragma unroll 4
    for (int at = lane * 8; at < width; at += 256) store(to + at, choice < 0 ? Eight{} : load(from + at));
}

// Each token's results, weighted and added to what it carries (`residual`, may be none).
extern "C" __global__ void __launch_bounds__(256) combine(const bf16 *__restrict__ rows, const int *__restrict__ row_of, const float *__restrict__ weights,
                                   const bf16 *__restrict__ residual, int tokens, int k, int width, bf16 *__restrict__ to) {
    const int token = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (token >= tokens) return;
    const long here = static_cast<long>(token) * width;
#pragma unroll 4
    for (int at = lane * 8; at < width; at += 256) {
        float sum[8] = {};
        if (residual) unpack(load(residual + here + at), sum);
        for (int j = 0; j < k; j++) {
            const int row = row_of[token * k + j];
            if (row < 0) continue;
            const float weight = weights[token * k + j];
            float x[8];
            unpack(load(rows + static_cast<long>(row) * width + at), x);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] += weight * x[i];
        }
        store(to + here + at, pack(sum));
    }
}

// `combine` backwards: the gradient of every row, and that of the weight of its choice.
extern "C" __global__ void __launch_bounds__(256) spread(const bf16 *__restrict__ gradient, const bf16 *__restrict__ outputs, const int *__restrict__ choice_of,
                                  const float *__restrict__ weights, int rows, int k, int width, bf16 *__restrict__ to,
                                  float *__restrict__ of_weight) {
    const int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const int choice = choice_of[row];
    const float weight = choice < 0 ? 0.0f : weights[choice];
    const bf16 *from = gradient + static_cast<long>(max(choice, 0) / k) * width;
    const long here = static_cast<long>(row) * width;
    float product = 0.0f;
#pragma unroll 4
    for (int at = lane * 8; at < width; at += 256) {
        float g[8], y[8];
        unpack(load(from + at), g);
        unpack(load(outputs + here + at), y);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            product += g[i] * y[i];
            g[i] *= weight;
        }
        store(to + here + at, choice < 0 ? Eight{} : pack(g));
    }
    product = warp_sum(product);
    if (lane == 0 && choice >= 0) of_weight[choice] = product;
}

// `gather` backwards, and the gate's part: the gradient of every token from those of its rows and of its scores.
// `of_weight` becomes the gradient of the scores. `gate` `[experts, width]`.
extern "C" __global__ void __launch_bounds__(256) collect(const bf16 *__restrict__ rows, const int *__restrict__ row_of, const int *__restrict__ chosen,
                                   const float *__restrict__ weights, float *__restrict__ of_weight, const bf16 *__restrict__ gate,
                                   int tokens, int k, int width, bf16 *__restrict__ to) {
    const int token = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (token >= tokens) return;
    const int first = token * k;
    float mean = 0.0f;
    for (int j = 0; j < k; j++) mean += weights[first + j] * of_weight[first + j];
    __syncwarp();
    const long here = static_cast<long>(token) * width;
#pragma unroll 2
    for (int at = lane * 8; at < width; at += 256) {
        float sum[8] = {};
        for (int j = 0; j < k; j++) {
            const int row = row_of[first + j];
            float x[8], g[8];
            const float of_score = weights[first + j] * (of_weight[first + j] - mean);
            unpack(load(gate + static_cast<long>(chosen[first + j]) * width + at), g);
            if (row >= 0) unpack(load(rows + static_cast<long>(row) * width + at), x);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] += of_score * g[i] + (row >= 0 ? x[i] : 0.0f);
        }
        store(to + here + at, pack(sum));
    }
    __syncwarp();
    if (lane < k) of_weight[first + lane] = weights[first + lane] * (of_weight[first + lane] - mean);
}
