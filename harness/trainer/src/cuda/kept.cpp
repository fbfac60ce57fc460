// What libtorch's C interface lacks.

#include <c10/core/CachingDeviceAllocator.h>

// Gives memory that the allocator of GPUs keeps for later back to the driver. False where there is no such allocator.
extern "C" bool moebench_release_kept() noexcept {
    try {
        c10::getDeviceAllocator(c10::DeviceType::CUDA)->emptyCache();
        return true;
    } catch (const std::exception&) {
        return false;
    }
}
