#include "cpu.hpp"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <string>

namespace slipway {

namespace {

// A file with `quota period`, or two files with one number each; 0 when there is no limit.
double quota(const std::filesystem::path& cgroup) {
  double allowed = 0, period = 0;
  std::string first;
  if (std::ifstream v2(cgroup / "cpu.max"); v2 >> first >> period) return first == "max" || period <= 0 ? 0 : std::strtod(first.c_str(), nullptr) / period;
  std::ifstream us(cgroup / "cpu/cpu.cfs_quota_us"), length(cgroup / "cpu/cpu.cfs_period_us");
  if (us >> allowed && length >> period && allowed > 0 && period > 0) return allowed / period;
  return 0;
}

}  // namespace

int cpu_limit(const std::filesystem::path& cgroup) {
  cpu_set_t set;
  CPU_ZERO(&set);
  const int available = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  const double limit = quota(cgroup);
  return std::max(1, limit > 0 ? std::min(available, static_cast<int>(limit)) : available);
}

}  // namespace slipway
