// Cross-entropy on half-precision logits `[tokens, words]`, a multiple of 8 words: a block a token. `target`: the token's
// word among these, negative where another rank holds it.

// `whole`: logarithm of the sum of exponentials; `at_target`: the target's logit, 0 where it is not here.
extern "C" __global__ void __launch_bounds__(512) entropy(const bf16 *__restrict__ logits, const long *__restrict__ target, int words,
                                  float *__restrict__ whole, float *__restrict__ at_target) {
    logits += static_cast<long>(blockIdx.x) * words;
    const float least = __int_as_float(0xff800000);
    float most = least, sum = 0.0f;
#pragma unroll 4
    for (int at = threadIdx.x * 8; at < words; at += 512 * 8) {
        float x[8];
        unpack(load(logits + at), x);
        float top = x[0];
#pragma unroll
        for (int i = 1; i < 8; i++) top = fmaxf(top, x[i]);
        if (top > most) {
            sum *= __expf(most - top);
            most = top;
        }
#pragma unroll
        for (int i = 0; i < 8; i++) sum += __expf(x[i] - most);
    }
    __shared__ float of_warp[2][16];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    auto join = [&](float other, float of_other) {
        const float top = fmaxf(most, other);
        if (top > least) sum = sum * __expf(most - top) + of_other * __expf(other - top);
        most = top;
    };
#pragma unroll
    for (int step = 16; step > 0; step /= 2) join(__shfl_xor_sync(ALL, most, step), __shfl_xor_sync(ALL, sum, step));
    if (lane == 0) {
        of_warp[0][warp] = most;
        of_warp[1][warp] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < 16; w++) join(of_warp[0][w], of_warp[1][w]);
        whole[blockIdx.x] = most + logf(sum);
        const long word = target[blockIdx.x];
        at_target[blockIdx.x] = word >= 0 ? single(logits[word]) : 0.0f;
    }
}

// Logits become their gradient: `scale` times (share of the exponentials, less 1 at the target).
extern "C" __global__ void __launch_bounds__(512) entropy_backward(bf16 *logits, const long *__restrict__ target, const float *__restrict__ whole, int words, float scale) {
    logits += static_cast<long>(blockIdx.x) * words;
    const float all = whole[blockIdx.x];
    const long word = target[blockIdx.x];
#pragma unroll 4
    for (int at = threadIdx.x * 8; at < words; at += 512 * 8) {
        float x[8];
        unpack(load(logits + at), x);
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = scale * (__expf(x[i] - all) - (at + i == word ? 1.0f : 0.0f));
        store(logits + at, pack(x));
    }
}
