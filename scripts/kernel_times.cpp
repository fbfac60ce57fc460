// Kernel times of any program, by CUPTI: built and loaded by `scripts/gpu idle`. At the end, writes to standard error how much of
// a step ran no kernel, and which kernels took how long, over the second half of the steps. A step is from the first kernel whose
// name holds $KERNEL_TIMES_BEGIN to the last named $KERNEL_TIMES_END. CUPTI makes launches slower, so the idle share is an upper
// bound.
#include <cupti.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace {

struct Ran {
    std::string name;
    uint64_t start, end;
};

std::mutex lock;
std::vector<Ran> all;

void CUPTIAPI give(uint8_t **buffer, size_t *size, size_t *records) {
    *size = 8 << 20;
    *buffer = static_cast<uint8_t *>(std::aligned_alloc(8, *size));
    *records = 0;
}

void CUPTIAPI take(CUcontext, uint32_t, uint8_t *buffer, size_t, size_t valid) {
    std::lock_guard<std::mutex> guard(lock);
    CUpti_Activity *record = nullptr;
    while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) {
        if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
            const auto *kernel = reinterpret_cast<CUpti_ActivityKernel9 *>(record);
            all.push_back({kernel->name, kernel->start, kernel->end});
        } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
            const auto *copy = reinterpret_cast<CUpti_ActivityMemcpy5 *>(record);
            all.push_back({"copy", copy->start, copy->end});
        } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
            const auto *set = reinterpret_cast<CUpti_ActivityMemset4 *>(record);
            all.push_back({"set", set->start, set->end});
        }
    }
    std::free(buffer);
}

// A step: the kernels from the first that follows the optimizer of the step before, to the end of its own optimizer.
struct Step {
    size_t first, last;
};

std::vector<Step> steps(const std::string &begin, const std::string &end) {
    std::vector<Step> found;
    size_t first = all.size(), last = all.size();
    for (size_t i = 0; i < all.size(); i++) {
        const bool begins = all[i].name.find(begin) != std::string::npos;
        if (begins && last < all.size()) {
            if (first < last) found.push_back({first, last});
            first = last = all.size();
        }
        if (begins && first == all.size()) first = i;
        if (all[i].name == end && first < all.size()) last = i;
    }
    if (first < last && last < all.size()) found.push_back({first, last});
    return found;
}

std::string variable(const char *name) {
    const char *value = std::getenv(name);
    return value ? value : "";
}

void report() {
    cuptiActivityFlushAll(1);
    std::sort(all.begin(), all.end(), [](const Ran &one, const Ran &other) { return one.start < other.start; });
    std::vector<Step> counted = steps(variable("KERNEL_TIMES_BEGIN"), variable("KERNEL_TIMES_END"));
    counted.erase(counted.begin(), counted.begin() + static_cast<long>(counted.size() / 2));
    if (counted.empty()) return;
    const double count = static_cast<double>(counted.size());
    uint64_t busy = 0, whole = 0, ran = 0;
    std::map<std::string, std::pair<uint64_t, int>> kernels;
    for (const Step &step : counted) {
        uint64_t end = all[step.first].start;
        for (size_t i = step.first; i <= step.last; i++) {
            busy += all[i].end - std::min(all[i].end, std::max(all[i].start, end));
            end = std::max(end, all[i].end);
            auto &of = kernels[all[i].name.substr(0, 90)];
            of.first += all[i].end - all[i].start;
            of.second++;
            ran++;
        }
        whole += end - all[step.first].start;
    }
    std::fprintf(stderr, "%.2f ms from the first kernel of a step to its last, of which none runs in %.1f%%; %.0f kernels and copies\n",
                 static_cast<double>(whole) / count / 1e6, 100.0 * (1.0 - static_cast<double>(busy) / static_cast<double>(whole)),
                 static_cast<double>(ran) / count);
    std::vector<std::pair<std::string, std::pair<uint64_t, int>>> sorted(kernels.begin(), kernels.end());
    std::sort(sorted.begin(), sorted.end(), [](const auto &one, const auto &other) { return one.second.first > other.second.first; });
    for (size_t i = 0; i < std::min<size_t>(sorted.size(), 30); i++)
        std::fprintf(stderr, "%10.1f us %7.1f x  %s\n", static_cast<double>(sorted[i].second.first) / count / 1e3,
                     sorted[i].second.second / count, sorted[i].first.c_str());
}

}  // namespace

extern "C" int InitializeInjection() {
    cuptiActivityRegisterCallbacks(give, take);
    cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
    cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMCPY);
    cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMSET);
    std::atexit(report);
    return 1;
}
