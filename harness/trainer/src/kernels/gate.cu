// The gate without the host: choices, the rows that they take, and the gradient of its weights.

// Whether the score `a` of expert `i` comes before `b` of `j`: by score, then by number. What is no number comes last.
__device__ __forceinline__ bool before(float a, int i, float b, int j) { return a > b || (a == b && i < j); }

// The best `k` (at most 32) of `[tokens, experts]` scores, best first, and the softmax over them: a warp a token.
extern "C" __global__ void __launch_bounds__(256) choose(const float *__restrict__ scores, const bf16 *__restrict__ bias, int tokens, int experts, int k,
                                  int *__restrict__ chosen, float *__restrict__ weights) {
    const int token = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (token >= tokens) return;
    scores += static_cast<long>(token) * experts;
    const float least = __int_as_float(0xff800000);
    float last = __int_as_float(0x7f800000), own = least;
    int last_expert = -1, own_expert = 0;
    for (int rank = 0; rank < k; rank++) {
        float best = least;
        int expert = 0x7fffffff;
        for (int e = lane; e < experts; e += 32) {
            float score = scores[e] + single(bias[e]);
            if (!(score >= least)) score = least;
            if (before(last, last_expert, score, e) && before(score, e, best, expert)) {
                best = score;
                expert = e;
            }
        }
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            const float other = __shfl_xor_sync(ALL, best, step);
            const int of_other = __shfl_xor_sync(ALL, expert, step);
            if (before(other, of_other, best, expert)) {
                best = other;
                expert = of_other;
            }
        }
        if (lane == rank) {
            own = best;
            own_expert = expert;
        }
        last = best;
        last_expert = expert;
    }
    const float most = __shfl_sync(ALL, own, 0);
    const float exponential = lane < k ? __expf(own - most) : 0.0f;
    const float sum = warp_sum(exponential);
    if (lane < k) {
        chosen[static_cast<long>(token) * k + lane] = own_expert;
        weights[static_cast<long>(token) * k + lane] = exponential / sum;
    }
}

// Choices of each expert in a warp's segment of `length` choices: `[segments, experts]`.
extern "C" __global__ void __launch_bounds__(256) count(const int *__restrict__ chosen, int choices, int experts, int length, int *__restrict__ counts) {
    extern __shared__ int seen[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int *own = seen + warp * experts;
    for (int e = lane; e < experts; e += 32) own[e] = 0;
    __syncwarp();
    const int segment = blockIdx.x * (blockDim.x / 32) + warp;
    const int first = segment * length, end = min(first + length, choices);
    if (first >= choices) return;
    for (int choice = first + lane; choice < end; choice += 32) {
        const int expert = chosen[choice];
        if (expert >= 0) atomicAdd(own + expert, 1);
    }
    __syncwarp();
    for (int e = lane; e < experts; e += 32) counts[static_cast<long>(segment) * experts + e] = own[e];
}

// Turns counts into the number of choices of the same expert in earlier segments. `totals` `[experts]`: all choices;
// `ends` `[experts]`: the row after each expert's last, where expert follows expert. At most 1024 experts, one block.
extern "C" __global__ void __launch_bounds__(1024) scan(int *__restrict__ counts, int segments, int experts, int *__restrict__ totals, int *__restrict__ ends) {
    __shared__ int of_expert[1024];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    of_expert[threadIdx.x] = 0;
    __syncthreads();
    for (int e = warp; e < experts; e += 32) {
        int sum = 0;
        for (int base = 0; base < segments; base += 32) {
            const int segment = base + lane;
            const int count = segment < segments ? counts[static_cast<long>(segment) * experts + e] : 0;
            int upto = count;
#pragma unroll
            for (int step = 1; step < 32; step *= 2) {
                const int other = __shfl_up_sync(ALL, upto, step);
                if (lane >= step) upto += other;
            }
            if (segment < segments) counts[static_cast<long>(segment) * experts + e] = sum + upto - count;
            sum += __shfl_sync(ALL, upto, 31);
        }
        if (lane == 0) {
            of_expert[e] = sum;
            totals[e] = sum;
        }
    }
    __syncthreads();
    for (int step = 1; step < 1024; step *= 2) {
        const int other = threadIdx.x >= step ? of_expert[threadIdx.x - step] : 0;
        __syncthreads();
        of_expert[threadIdx.x] += other;
        __syncthreads();
    }
    if (threadIdx.x < experts) ends[threadIdx.x] = of_expert[threadIdx.x];
}

// Gives every choice its row, in order of arrival: `base[expert]` and what came before. `base` none: expert follows expert.
// Choices past `most[expert]` get none (-1), where `most` is given.
extern "C" __global__ void __launch_bounds__(256) place(const int *__restrict__ chosen, int choices, int experts, int length,
                                 const int *__restrict__ before, const int *__restrict__ totals, const int *__restrict__ ends,
                                 const int *__restrict__ base, const int *__restrict__ most,
                                 int *__restrict__ row_of, int *__restrict__ choice_of) {
    extern __shared__ int next[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int *own = next + warp * experts;
    const int segment = blockIdx.x * (blockDim.x / 32) + warp;
    const int first = segment * length, end = min(first + length, choices);
    if (first >= choices) return;
    for (int e = lane; e < experts; e += 32) own[e] = before[static_cast<long>(segment) * experts + e];
    __syncwarp();
    for (int start = first; start < end; start += 32) {
        const int choice = start + lane;
        const int expert = choice < end ? chosen[choice] : -1;
        const u32 same = __match_any_sync(ALL, expert);
        const int rank = __popc(same & ((1u << lane) - 1));
        int row = -1;
        if (expert >= 0) {
            const int number = own[expert] + rank;
            if (!most || number < most[expert]) row = number + (base ? base[expert] : ends[expert] - totals[expert]);
        }
        __syncwarp();
        if (expert >= 0 && rank == 0) own[expert] += __popc(same);
        __syncwarp();
        if (choice < end) {
            row_of[choice] = row;
            if (row >= 0) choice_of[row] = choice;
        }
    }
}

// Partial gradients of the gate's weight and bias, `[parts, experts, width]` and `[parts, experts]`: an expert's entries
// each add their token times the gradient of their score. Blocks: `[width / 256, experts, parts]`.
extern "C" __global__ void __launch_bounds__(256) weight_gradient(const bf16 *__restrict__ tokens, const float *__restrict__ of_score, const int *__restrict__ choice_of,
                                           const int *__restrict__ starts, const int *__restrict__ counts, int k, int width,
                                           float *__restrict__ partial, float *__restrict__ partial_bias) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, expert = blockIdx.y, part = blockIdx.z;
    const int experts = gridDim.y, parts = gridDim.z;
    const int column = blockIdx.x * 256 + lane * 8;
    const int first = starts[expert], end = first + counts[expert];
    float sum[8] = {}, bias = 0.0f;
#pragma unroll 4
    for (int row = first + part * 8 + warp; row < end; row += parts * 8) {
        const int choice = choice_of[row];
        const float factor = of_score[choice];
        bias += factor;
        if (column < width) {
            float x[8];
            unpack(load(tokens + static_cast<long>(choice / k) * width + column), x);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] += factor * x[i];
        }
    }
    __shared__ float all[8][257];
    __shared__ float all_bias[8];
#pragma unroll
    for (int i = 0; i < 8; i++) all[warp][lane * 8 + i] = sum[i];
    if (lane == 0) all_bias[warp] = bias;
    __syncthreads();
    const int own = blockIdx.x * 256 + threadIdx.x;
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < 8; w++) total += all[w][threadIdx.x];
    if (own < width) partial[(static_cast<long>(part) * experts + expert) * width + own] = total;
    if (threadIdx.x == 0 && blockIdx.x == 0) {
        total = 0.0f;
        for (int w = 0; w < 8; w++) total += all_bias[w];
        partial_bias[part * experts + expert] = total;
    }
}
