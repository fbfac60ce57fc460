// The gate without the host: scores, choices, the rows that they take, and gradients.

// Whether the score `a` of expert `i` comes before `b` of `j`: by score, then by number. What is no number comes last.
__device__ __forceinline__ bool before(float a, int i, float b, int j) { return a > b || (a == b && i < j); }

// Minus infinity, below every score that counts.
#define LEAST __int_as_float(0xff800000)

// The best score after that of `last`, among experts from `first` on that lie `step` apart.
template <typename Score>
__device__ __forceinline__ void next_best(int first, int end, int step, Score score, float last, int last_expert, float &best, int &expert) {
    best = LEAST;
    expert = 0x7fffffff;
    for (int e = first; e < end; e += step) {
        float own = score(e);
        if (!(own >= LEAST)) own = LEAST;
        if (before(last, last_expert, own, e) && before(own, e, best, expert)) {
            best = own;
            expert = e;
        }
    }
}

// The best `k` (at most 32) of `score(expert)`: lane `i` gets the `i`th best and its expert.
template <typename Score>
__device__ __forceinline__ void best_of(int experts, int k, Score score, float &own, int &own_expert) {
    const int lane = threadIdx.x % 32;
    float last = -LEAST;
    int last_expert = -1;
    own = LEAST;
    own_expert = 0;
    for (int rank = 0; rank < k; rank++) {
        float best;
        int expert;
        next_best(lane, experts, 32, score, last, last_expert, best, expert);
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
}

// The best `k` (at most 32) of `[tokens, experts]` scores, best first, and the softmax over them: a warp a token.
extern "C" __global__ void __launch_bounds__(256) choose(const float *__restrict__ scores, const bf16 *__restrict__ bias, int tokens, int experts, int k,
                                  int *__restrict__ chosen, float *__restrict__ weights) {
    const int token = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (token >= tokens) return;
    scores += static_cast<long>(token) * experts;
    float own;
    int own_expert;
    best_of(experts, k, [&](int e) { return scores[e] + single(bias[e]); }, own, own_expert);
    const float most = __shfl_sync(ALL, own, 0);
    const float exponential = lane < k ? __expf(own - most) : 0.0f;
    const float sum = warp_sum(exponential);
    if (lane < k) {
        chosen[static_cast<long>(token) * k + lane] = own_expert;
        weights[static_cast<long>(token) * k + lane] = exponential / sum;
    }
}

// How logits become scores, choices and weights.
struct Router {
    int sigmoid, renormalise;
    // Groups of experts, at most 32; those that a token keeps; scores of a group that are summed. No groups: no limit.
    int groups, kept, best;
    float scale;
};

// The groups whose best scores have the largest sums, a bit each.
template <typename Score>
__device__ __forceinline__ u32 kept_groups(const Router &router, int room, Score score) {
    const int lane = threadIdx.x % 32;
    float sum = LEAST;
    if (lane < router.groups) {
        float last = -LEAST, best;
        int last_expert = -1, expert;
        sum = 0.0f;
        for (int rank = 0; rank < router.best; rank++) {
            next_best(lane * room, (lane + 1) * room, 1, score, last, last_expert, best, expert);
            sum += best;
            last = best;
            last_expert = expert;
        }
        if (!(sum >= LEAST)) sum = LEAST;
    }
    int rank = 0;
    for (int group = 0; group < router.groups; group++) rank += before(__shfl_sync(ALL, sum, group), group, sum, lane);
    return __ballot_sync(ALL, lane < router.groups && rank < router.kept);
}

// Logits `[tokens, experts]` become scores, and scores choices and weights `[tokens, k]`: a warp a token, at most 1024 experts and
// 32 choices. `bias`: added to logits; `selection`: to scores, for the choice alone; `given`: the choices, whatever the scores. All
// three may be none.
extern "C" __global__ void __launch_bounds__(256) route(float *scores, const bf16 *__restrict__ bias, const float *__restrict__ selection,
                                 const int *__restrict__ given, int tokens, int experts, int k, Router router, int *__restrict__ chosen,
                                 float *__restrict__ weights) {
    extern __shared__ float all_logits[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, token = blockIdx.x * (blockDim.x / 32) + warp;
    if (token >= tokens) return;
    scores += static_cast<long>(token) * experts;
    float *logits = all_logits + warp * experts;
    float most = LEAST;
    for (int e = lane; e < experts; e += 32) {
        logits[e] = scores[e] + (bias ? single(bias[e]) : 0.0f);
        most = fmaxf(most, logits[e]);
    }
    most = warp_max(most);
    float sum = 0.0f;
    for (int e = lane; e < experts; e += 32) {
        const float score = router.sigmoid ? 1.0f / (1.0f + expf(-logits[e])) : expf(logits[e] - most);
        scores[e] = score;
        sum += score;
    }
    sum = warp_sum(sum);
    if (!router.sigmoid)
        for (int e = lane; e < experts; e += 32) scores[e] /= sum;
    __syncwarp();

    const long at = static_cast<long>(token) * k + lane;
    float own;
    int expert = 0;
    if (given) {
        if (lane < k) expert = given[at];
    } else if (selection || router.groups) {
        const int room = router.groups ? experts / router.groups : experts;
        const auto biased = [&](int e) { return scores[e] + (selection ? selection[e] : 0.0f); };
        const u32 kept = router.groups ? kept_groups(router, room, biased) : 1;
        best_of(experts, k, [&](int e) { return kept >> (e / room) & 1 ? biased(e) : LEAST; }, own, expert);
    } else {
        // Scores of different logits may be equal.
        best_of(experts, k, [&](int e) { return logits[e]; }, own, expert);
    }
    float weight = 0.0f;
    if (!router.sigmoid && router.renormalise) {
        const float logit = lane < k ? logits[expert] : LEAST, largest = warp_max(logit);
        if (lane < k) weight = expf(logit - largest);
    } else if (lane < k) {
        weight = scores[expert];
    }
    if (router.renormalise) weight /= warp_sum(weight);
    if (lane < k) {
        chosen[at] = expert;
        weights[at] = weight * router.scale;
    }
}

// `route` backwards: the gradient of all logits, from that of the weights. A balance loss adds `factor` times `coefficients`
// `[experts]` to the gradient of each token's shares, which are the scores, divided by their sum; it may be none.
extern "C" __global__ void __launch_bounds__(256) route_backward(const float *__restrict__ scores, const int *__restrict__ chosen,
                                          const float *__restrict__ weights, const float *__restrict__ of_weights,
                                          const float *__restrict__ coefficients, float factor, int tokens, int experts, int k, Router router, float *to) {
    const int token = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (token >= tokens) return;
    scores += static_cast<long>(token) * experts;
    to += static_cast<long>(token) * experts;
    const long at = static_cast<long>(token) * k + lane;
    // Gradients times what they are of: of the weight, then of the score that it comes from.
    float own = lane < k ? weights[at] * of_weights[at] : 0.0f;
    const float sum = warp_sum(own);
    if (router.renormalise && lane < k) own -= weights[at] / router.scale * sum;
    const int expert = lane < k ? chosen[at] : 0;
    // What softmax takes from all: nothing where the weights of choices add up to the same, whatever the scores of others.
    const float of_all = router.sigmoid || router.renormalise ? 0.0f : sum;
    float total = 0.0f, product = 0.0f;
    if (coefficients) {
        for (int e = lane; e < experts; e += 32) {
            total += scores[e];
            product += scores[e] * coefficients[e];
        }
        total = router.sigmoid ? warp_sum(total) : 1.0f;
        product = warp_sum(product) / total;
    }
    for (int e = lane; e < experts; e += 32) {
        float gradient = -scores[e] * of_all;
        if (coefficients) gradient += scores[e] / total * (factor * (coefficients[e] - product));
        to[e] = router.sigmoid ? gradient * (1.0f - scores[e]) : gradient;
    }
    // The thread that has written an expert's gradient adds to it; choices that are given may name an expert twice.
    for (int choice = 0; choice < k; choice++) {
        const int e = __shfl_sync(ALL, expert, choice);
        const float gradient = __shfl_sync(ALL, own, choice);
        if (e % 32 == lane) to[e] += router.sigmoid ? gradient * (1.0f - scores[e]) : gradient;
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

// Gives rows to the choices of entries that lie piece after piece: of a piece, from `firsts[piece]` on. `starts[piece]`: entries of the pieces
// before. A choice that is no entry (-1) gets none; without `place_of`, each is at its own place.
extern "C" __global__ void __launch_bounds__(256) piece_rows(const int *__restrict__ place_of, int choices, const int *__restrict__ starts,
                                 const int *__restrict__ firsts, int pieces, int *__restrict__ row_of, int *__restrict__ choice_of) {
    const int choice = blockIdx.x * blockDim.x + threadIdx.x;
    if (choice >= choices) return;
    const int place = place_of ? place_of[choice] : choice;
    int row = -1;
    if (place >= 0) {
        int low = 0, high = pieces - 1;
        while (low < high) {
            const int middle = (low + high + 1) / 2;
            if (starts[middle] <= place) low = middle;
            else high = middle - 1;
        }
        row = firsts[low] + place - starts[low];
        choice_of[row] = choice;
    }
    row_of[choice] = row;
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
