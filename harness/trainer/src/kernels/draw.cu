// Random numbers from ChaCha8 (Bernstein 2008), the stream that the host draws too.

struct Stream {
    u32 key[8];
    u32 name[2];
};

__device__ __forceinline__ void quarter(u32 &a, u32 &b, u32 &c, u32 &d) {
    a += b; d ^= a; d = __funnelshift_l(d, d, 16);
    c += d; b ^= c; b = __funnelshift_l(b, b, 12);
    a += b; d ^= a; d = __funnelshift_l(d, d, 8);
    c += d; b ^= c; b = __funnelshift_l(b, b, 7);
}

// A block of the cipher: the 16 words from `16 * number` on.
__device__ __forceinline__ void words(u64 number, const Stream &stream, u32 x[16]) {
    const u32 start[16] = {0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u,
                           stream.key[0], stream.key[1], stream.key[2], stream.key[3],
                           stream.key[4], stream.key[5], stream.key[6], stream.key[7],
                           static_cast<u32>(number), static_cast<u32>(number >> 32), stream.name[0], stream.name[1]};
#pragma unroll
    for (int i = 0; i < 16; i++) x[i] = start[i];
#pragma unroll
    for (int round = 0; round < 4; round++) {
        quarter(x[0], x[4], x[8], x[12]);
        quarter(x[1], x[5], x[9], x[13]);
        quarter(x[2], x[6], x[10], x[14]);
        quarter(x[3], x[7], x[11], x[15]);
        quarter(x[0], x[5], x[10], x[15]);
        quarter(x[1], x[6], x[11], x[12]);
        quarter(x[2], x[7], x[8], x[13]);
        quarter(x[3], x[4], x[9], x[14]);
    }
#pragma unroll
    for (int i = 0; i < 16; i++) x[i] += start[i];
}

// A number in (0, 1].
__device__ __forceinline__ double number(u32 low, u32 high) {
    const u64 bits = (static_cast<u64>(high) << 32 | low) >> 11;
    return static_cast<double>(bits + 1) * (1.0 / 9007199254740992.0);
}

// Numbers in (0, 1]. A thread draws one block of the cipher: eight numbers.
extern "C" __global__ void __launch_bounds__(256) uniform(double *__restrict__ to, long count, Stream stream) {
    const u64 block = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    const long first = static_cast<long>(block) * 8;
    if (first >= count) return;
    u32 x[16];
    words(block, stream, x);
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (first + i < count) to[first + i] = number(x[2 * i], x[2 * i + 1]);
}

// Standard normal numbers by Box and Muller (1958), as many a thread.
extern "C" __global__ void __launch_bounds__(256) normal(float *__restrict__ to, long count, Stream stream, float deviation) {
    const u64 block = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    const long first = static_cast<long>(block) * 8;
    if (first >= count) return;
    u32 x[16];
    words(block, stream, x);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const double radius = sqrt(-2.0 * log(number(x[4 * i], x[4 * i + 1])));
        double sine, cosine;
        sincospi(2.0 * number(x[4 * i + 2], x[4 * i + 3]), &sine, &cosine);
        const long at = first + 2 * i;
        if (at < count) to[at] = static_cast<float>(radius * cosine) * deviation;
        if (at + 1 < count) to[at + 1] = static_cast<float>(radius * sine) * deviation;
    }
}
