// Adam in one pass over a bucket: reads master weights, moments and gradient, writes the first three and the weights.

struct Adam {
    float beta1, beta2;
    // Learning rate over the first moment's correction; the second moment's correction, inverted.
    float rate, of_second;
    float epsilon;
    // 1 - learning rate x weight decay.
    float keep;
};

__device__ __forceinline__ float update(const Adam &adam, float &master, float &first, float &second, float gradient) {
    first += (gradient - first) * (1.0f - adam.beta1);
    second += (gradient * gradient - second) * (1.0f - adam.beta2);
    master = master * adam.keep - adam.rate * first / (sqrtf(second * adam.of_second) + adam.epsilon);
    return master;
}

// `factor`: what gradients are multiplied by, one number on the device.
extern "C" __global__ void __launch_bounds__(256) adam(float *__restrict__ master, float *__restrict__ first, float *__restrict__ second,
                                const float *__restrict__ gradient, bf16 *__restrict__ weights,
                                const float *__restrict__ factor, long count, Adam adam) {
    const float scale = *factor;
    const long quads = count / 4, step = static_cast<long>(gridDim.x) * blockDim.x;
    const long self = static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x;
    for (long at = self; at < quads; at += step) {
        float4 w = reinterpret_cast<float4 *>(master)[at];
        float4 m = reinterpret_cast<float4 *>(first)[at];
        float4 v = reinterpret_cast<float4 *>(second)[at];
        const float4 g = reinterpret_cast<const float4 *>(gradient)[at];
        update(adam, w.x, m.x, v.x, g.x * scale);
        update(adam, w.y, m.y, v.y, g.y * scale);
        update(adam, w.z, m.z, v.z, g.z * scale);
        update(adam, w.w, m.w, v.w, g.w * scale);
        reinterpret_cast<float4 *>(master)[at] = w;
        reinterpret_cast<float4 *>(first)[at] = m;
        reinterpret_cast<float4 *>(second)[at] = v;
        reinterpret_cast<uint2 *>(weights)[at] = make_uint2(pair(w.x, w.y), pair(w.z, w.w));
    }
    const long at = quads * 4 + self;
    if (at < count) weights[at] = half(update(adam, master[at], first[at], second[at], gradient[at] * scale));
}

// The sum of squares of a block's share, `[blocks]`: added up in a fixed order, so the norm is the same in every run.
extern "C" __global__ void __launch_bounds__(512) squares(const float *__restrict__ gradient, long count, double *__restrict__ partial) {
    const long quads = count / 4, step = static_cast<long>(gridDim.x) * blockDim.x;
    const long self = static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x;
    double sum = 0.0;
#pragma unroll 4
    for (long at = self; at < quads; at += step) {
        const float4 g = reinterpret_cast<const float4 *>(gradient)[at];
        sum += g.x * g.x + g.y * g.y + g.z * g.z + g.w * g.w;
    }
    const long at = quads * 4 + self;
    if (at < count) sum += gradient[at] * gradient[at];
    for (int shift = 16; shift > 0; shift /= 2) sum += __shfl_xor_sync(ALL, sum, shift);
    __shared__ double of_warp[16];
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        sum = 0.0;
        for (int warp = 0; warp < blockDim.x / 32; warp++) sum += of_warp[warp];
        partial[blockIdx.x] = sum;
    }
}

// `groups` matrices of `size` half-precision numbers, put into or added to single-precision ones `stride` apart.
extern "C" __global__ void __launch_bounds__(256) accumulate(const bf16 *__restrict__ from, float *__restrict__ to, long size, long stride, int fresh) {
    from += blockIdx.y * size;
    to += blockIdx.y * stride;
    const long eights = size / 8, step = static_cast<long>(gridDim.x) * blockDim.x;
    for (long at = static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x; at < eights; at += step) {
        float v[8];
        unpack(load(from + 8 * at), v);
        float4 *there = reinterpret_cast<float4 *>(to) + 2 * at;
        float4 a = make_float4(v[0], v[1], v[2], v[3]), b = make_float4(v[4], v[5], v[6], v[7]);
        if (!fresh) {
            const float4 c = there[0], d = there[1];
            a = make_float4(a.x + c.x, a.y + c.y, a.z + c.z, a.w + c.w);
            b = make_float4(b.x + d.x, b.y + d.y, b.z + d.z, b.w + d.w);
        }
        there[0] = a;
        there[1] = b;
    }
}
