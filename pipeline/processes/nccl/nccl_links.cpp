// Links over NCCL: one communicator of two ranks for each directed edge.
//
// Why nothing can block for ever. A send ends with its receive, so it may stand long in its stream, and
// whatever stands behind it waits, too. Operations of one communicator are ordered among each other, whatever
// their streams. So each edge has a communicator and, at both ends, a stream to itself: behind a waiting send
// there are only later sends of the same edge, in the order of their receives. A send and its receive
// together then wait for what the copy within a process waits for (a filled slot here, a free one there, the
// transfer before), and the validation of the schedule, which allows one tensor a channel, covers both.
//
// NCCL warns of communicators that are busy at the same time on one device. Its two reasons, and what is
// done:
// - The kernels wait in place, and all that wait must fit on the device beside each other. There are four at
//   most, one an edge and end, each held to kBlocks blocks; other kernels never wait for them, but come
//   behind them by events only, and so always leave their place again.
// - A call that waits for the whole device, made between a send and what its other end waits for, would hang.
//   Memory is taken before the first pass, connections are made by an exchange right here (NCCL would do both
//   at the first message), and the program has the driver load all kernels at the start
//   (CUDA_MODULE_LOADING=EAGER), instead of each before its first launch.
//
// A communicator with grouped sends and receives would need pairs known beforehand: which send goes with
// which receive is the schedule's business, and differs between warm-up, steady state and stages.
#include <nccl.h>

#include <array>
#include <chrono>
#include <cstring>
#include <exception>
#include <mutex>
#include <source_location>
#include <span>
#include <string>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/cuda/cuda_check.h"
#include "kernels/runtime/error.h"
#include "pipeline/processes/peer_links.h"

namespace pipeoptim {
namespace {

constexpr int kBlocks = 4;
constexpr std::chrono::seconds kCallTime(2);  // more than any call that is not blocked takes
constexpr int kSender = 0, kReceiver = 1;     // ranks in each communicator

void check(ncclResult_t status, const std::string& call,
           std::source_location where = std::source_location::current()) {
  if (status == ncclSuccess) return;
  const char* last = ncclGetLastError(nullptr);
  std::string text = ncclGetErrorString(status);
  if (last != nullptr && *last != '\0') text += std::string("; ") + last;
  throw DeviceError(call, text, where);
}

// Of the edges that begin in a process.
struct Ids {
  ncclUniqueId activations{}, gradients{};
};

class NcclLinks final : public PeerLinks, public Watched {
 public:
  NcclLinks(ProcessGroup& group, Device device) : group_(group) {
    const cuda::DeviceGuard guard(device);
    try {
      open_all(exchange_ids());
      first_messages(device);
    } catch (...) {
      abandon();
      throw;
    }
    group_.watch(this);
  }

  // Streams that used the links are idle or gone. Communicators are taken leave of by both ends; not where
  // the other one may not come to it.
  ~NcclLinks() override {
    group_.watch(nullptr);
    if (group_.failed() || std::uncaught_exceptions() > exceptions_) abandon();
    for (ncclComm_t& comm : comms_) {
      if (comm != nullptr) static_cast<void>(ncclCommDestroy(comm));
    }
  }
  NcclLinks(const NcclLinks&) = delete;
  NcclLinks& operator=(const NcclLinks&) = delete;

  void send(Link link, Stream& stream, const void* values, std::size_t bytes) override {
    const std::lock_guard lock(mutex_);
    require(ncclSend(values, bytes, ncclUint8, kReceiver, comm_of(link), native(stream)), "ncclSend", link);
  }
  void receive(Link link, Stream& stream, void* values, std::size_t bytes) override {
    const std::lock_guard lock(mutex_);
    require(ncclRecv(values, bytes, ncclUint8, kSender, comm_of(link), native(stream)), "ncclRecv", link);
  }

  void throw_if_failed() override { group_.throw_if_failed(); }

  // A call that stands in the driver, because its queue is full, is no reason to stop watching.
  std::string trouble() noexcept override {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return {};
    for (std::size_t i = 0; i < kLinks; ++i) {
      if (comms_[i] == nullptr) continue;
      ncclResult_t state = ncclSuccess;
      const ncclResult_t status = ncclCommGetAsyncError(comms_[i], &state);
      if (status == ncclSuccess && (state == ncclSuccess || state == ncclInProgress)) continue;
      return "NCCL, " + describe(static_cast<Link>(i)) + ": " +
             ncclGetErrorString(status == ncclSuccess ? state : status);
    }
    return {};
  }

  // Waits a while for a call that is under way; one that stands in the driver is freed by the abort itself.
  void abandon() noexcept override {
    const std::unique_lock lock(mutex_, kCallTime);
    for (ncclComm_t& comm : comms_) {
      if (comm != nullptr) static_cast<void>(ncclCommAbort(comm));
      comm = nullptr;
    }
  }

 private:
  static cudaStream_t native(const Stream& stream) { return static_cast<cudaStream_t>(stream.native()); }

  bool has_previous() const { return group_.rank() > 0; }
  bool has_next() const { return group_.rank() + 1 < group_.size(); }

  std::string describe(Link link) const {
    switch (link) {
      case Link::kActivationsFromPrevious:
        return "activations from " + group_.name(group_.rank() - 1);
      case Link::kGradientsToPrevious:
        return "gradients to " + group_.name(group_.rank() - 1);
      case Link::kActivationsToNext:
        return "activations to " + group_.name(group_.rank() + 1);
      default:
        return "gradients from " + group_.name(group_.rank() + 1);
    }
  }

  // Names the link only after a failure: a send or receive allocates nothing.
  void require(ncclResult_t status, const char* call, Link link,
               std::source_location where = std::source_location::current()) const {
    if (status != ncclSuccess) check(status, std::string(call) + ", " + describe(link), where);
  }

  ncclComm_t comm_of(Link link) const {
    const ncclComm_t comm = comms_[static_cast<std::size_t>(link)];
    if (comm == nullptr) {
      group_.throw_if_failed();
      throw DeviceError(describe(link), "the connection was ended");
    }
    return comm;
  }

  std::vector<Ids> exchange_ids() {
    Ids mine;
    if (has_next()) check(ncclGetUniqueId(&mine.activations), "ncclGetUniqueId");
    if (has_previous()) check(ncclGetUniqueId(&mine.gradients), "ncclGetUniqueId");
    std::vector<Ids> all;
    for (const auto& bytes : group_.all_gather(std::as_bytes(std::span(&mine, 1)))) {
      std::memcpy(&all.emplace_back(), bytes.data(), sizeof(Ids));
    }
    return all;
  }

  // From the first border of the pipeline to the last, and in the same order on both sides of each.
  void open_all(const std::vector<Ids>& ids) {
    const auto rank = static_cast<std::size_t>(group_.rank());
    if (has_previous()) {
      open(Link::kActivationsFromPrevious, ids[rank - 1].activations, kReceiver);
      open(Link::kGradientsToPrevious, ids[rank].gradients, kSender);
    }
    if (has_next()) {
      open(Link::kActivationsToNext, ids[rank].activations, kSender);
      open(Link::kGradientsFromNext, ids[rank + 1].gradients, kReceiver);
    }
  }

  void open(Link link, const ncclUniqueId& id, int rank) {
    group_.throw_if_failed();
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 1;  // otherwise NCCL starts a thread for each message
    config.maxCTAs = kBlocks;
    require(ncclCommInitRankConfig(&comms_[static_cast<std::size_t>(link)], 2, id, rank, &config),
            "ncclCommInitRankConfig", link);
  }

  void first_messages(Device device) {
    Stream stream(device, {.name = "links"});
    const Buffer<float> value(device, 1);
    for (const Link link : {Link::kActivationsFromPrevious, Link::kGradientsToPrevious,
                            Link::kActivationsToNext, Link::kGradientsFromNext}) {
      if (comms_[static_cast<std::size_t>(link)] == nullptr) continue;
      if (link == Link::kGradientsToPrevious || link == Link::kActivationsToNext) {
        send(link, stream, value.data(), 1);
      } else {
        receive(link, stream, value.data(), 1);
      }
      stream.synchronize();
    }
  }

  ProcessGroup& group_;
  const int exceptions_ = std::uncaught_exceptions();
  std::timed_mutex mutex_;  // an abort comes from the watcher
  std::array<ncclComm_t, kLinks> comms_{};
};

}  // namespace

std::unique_ptr<PeerLinks> make_nccl_links(ProcessGroup& group, Device device) {
  return std::make_unique<NcclLinks>(group, device);
}
bool built_with_nccl() { return true; }

}  // namespace pipeoptim
