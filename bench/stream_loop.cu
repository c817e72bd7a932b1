// The ceiling of stream_loop.h on a CUDA device.
#include <algorithm>

#include "bench/traffic.h"
#include "kernels/runtime/launch.h"

namespace pipeoptim::bench {
namespace {

template <int kRead, int kKept, int kWritten, int kRounded>
struct DeviceLoop {
  const float* read[kRead];
  float* kept[kKept + 1];  // + 1: there may be none
  float* written[kWritten + 1];
  Bf16* rounded[kRounded + 1];
  float zero;  // at run time, so that the compiler cannot leave out anything

  static constexpr int kWidth = 4;
  PO_HD void operator()(std::int64_t i) const { at<1>(i); }
  template <int kPack>
  PO_HD void at(std::int64_t i) const {
    Pack<kPack> sum = load_pack<kPack>(read[0] + i);
    for (int k = 1; k < kRead; ++k) add(sum, load_pack<kPack>(read[k] + i), 1);
    if constexpr (kKept + kWritten + kRounded == 0) {
      static_assert(kRead == 1);                  // which would be written back as it is
      constexpr float kUnlikely = 1.2345678e30F;  // the compiler cannot know that no sum is this
      if (sum.value[0] + zero == kUnlikely) store_pack(const_cast<float*>(read[0]) + i, sum);
    }
    for (int k = 0; k < kKept; ++k) {
      Pack<kPack> value = load_pack<kPack>(kept[k] + i);
      add(value, sum, zero);
      store_pack(kept[k] + i, value);
    }
    for (int k = 0; k < kWritten; ++k) store_pack(written[k] + i, sum);
    if constexpr (kRounded > 0) {
      Pack<kPack, Bf16> nearest;
      for (int j = 0; j < kPack; ++j) nearest.value[j] = to_bf16(sum.value[j]);
      for (int k = 0; k < kRounded; ++k) store_pack(rounded[k] + i, nearest);
    }
  }
  bool packs() const {
    const auto aligned = [](const void* array) { return allow_packs(array); };
    return std::all_of(read, read + kRead, aligned) && std::all_of(kept, kept + kKept, aligned) &&
           std::all_of(written, written + kWritten, aligned) &&
           std::all_of(rounded, rounded + kRounded, aligned);
  }

 private:
  template <int kPack>
  PO_HD static void add(Pack<kPack>& to, const Pack<kPack>& from, float factor) {
    for (int j = 0; j < kPack; ++j) to.value[j] += factor * from.value[j];
  }
};

}  // namespace

void enqueue_device_loop(Stream& stream, const Traffic& traffic, std::int64_t n) {
  with_counts(traffic, [&]<int kRead, int kKept, int kWritten, int kRounded>() {
    DeviceLoop<kRead, kKept, kWritten, kRounded> loop{};
    std::copy(traffic.read.begin(), traffic.read.end(), loop.read);
    std::copy(traffic.kept.begin(), traffic.kept.end(), loop.kept);
    std::copy(traffic.written.begin(), traffic.written.end(), loop.written);
    std::copy(traffic.rounded.begin(), traffic.rounded.end(), loop.rounded);
    for_each(stream, n, loop);
  });
}

}  // namespace pipeoptim::bench
