// What all kernels share. No headers: the run-time compiler has none of CUDA's.

typedef unsigned short bf16;
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr u32 ALL = 0xffffffffu;

// Eight bf16 numbers, one 16-byte access.
struct __align__(16) Eight {
    u32 pairs[4];
};

__device__ __forceinline__ Eight load(const bf16 *from) { return *reinterpret_cast<const Eight *>(from); }

__device__ __forceinline__ void store(bf16 *to, const Eight &value) { *reinterpret_cast<Eight *>(to) = value; }

__device__ __forceinline__ float low(u32 pair) { return __uint_as_float(pair << 16); }

__device__ __forceinline__ float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ float single(bf16 value) { return __uint_as_float(static_cast<u32>(value) << 16); }

// Two numbers rounded to nearest, ties to even.
__device__ __forceinline__ u32 pair(float first, float second) {
    u32 result;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(second), "f"(first));
    return result;
}

__device__ __forceinline__ bf16 half(float value) { return static_cast<bf16>(pair(value, 0.0f) & 0xffffu); }

__device__ __forceinline__ void unpack(const Eight &from, float to[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        to[2 * i] = low(from.pairs[i]);
        to[2 * i + 1] = high(from.pairs[i]);
    }
}

__device__ __forceinline__ Eight pack(const float from[8]) {
    Eight result;
#pragma unroll
    for (int i = 0; i < 4; i++) result.pairs[i] = pair(from[2 * i], from[2 * i + 1]);
    return result;
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(ALL, value, step);
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(ALL, value, step));
    return value;
}

// Sums over a block, for every thread; blocks of whole warps, at most 32.
template <int N>
__device__ __forceinline__ void block_sums(float (&values)[N]) {
    __shared__ float of_warp[N][32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
#pragma unroll
    for (int i = 0; i < N; i++) {
        values[i] = warp_sum(values[i]);
        if (lane == 0) of_warp[i][warp] = values[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++) values[i] = warp_sum(lane < warps ? of_warp[i][lane] : 0.0f);
    __syncthreads();
}

// Sums over rows of an `[rows, columns]` matrix: 32 x 32 threads a block, a column each for 32 threads.
__device__ __forceinline__ float sum_of_column(const float *__restrict__ from, int rows, long columns, long column) {
    __shared__ float part[32][33];
    float sum = 0.0f;
    if (column < columns) {
#pragma unroll 4
        for (int row = threadIdx.y; row < rows; row += 32) sum += from[row * columns + column];
    }
    part[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    sum = warp_sum(part[threadIdx.x][threadIdx.y]);
    __syncthreads();
    if (threadIdx.x == 0) part[threadIdx.y][0] = sum;
    __syncthreads();
    return part[threadIdx.x][0];
}
