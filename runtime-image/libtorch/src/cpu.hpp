// How many CPUs this container may use: the least of affinity and the cgroup's quota (v2 or v1).
#pragma once

#include <filesystem>

namespace slipway {

// Whole CPUs, at least 1; a fraction of a CPU is left over, because a thread for it would only be throttled.
int cpu_limit(const std::filesystem::path& cgroup = "/sys/fs/cgroup");

}  // namespace slipway
