// Mini-batches of a data set, made ready ahead of time by a thread of their own.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/device.h"
#include "models/data/dataset.h"

namespace pipeoptim {

enum class Remainder {
  kDrop,  // an incomplete last mini-batch is left out
  kPad    // it is filled up with zero records of label -1
};
enum class Order { kFile, kShuffled };
enum class Augmentation {
  kNone,
  kCropAndFlip  // random crop from the image padded with black (4 pixels; 2 below 32x32), random horizontal
                // flip
};

struct LoaderOptions {
  std::int64_t batch = 128;
  Order order = Order::kFile;
  Augmentation augmentation = Augmentation::kNone;
  Remainder remainder = Remainder::kDrop;
  std::uint64_t seed = 0;
  int depth = 4;  // mini-batches kept ready, those acquired and not yet released included
  Device device = Device::host();
};

struct LoadedBatch {
  const float* inputs;  // batch x height x width x channels, normalised; or batch x sequence_length tokens
  const std::int32_t* labels;  // batch, of running text batch x sequence_length; -1: padding
};

// Mini-batch t of an epoch is a function of (data, options, epoch, t) alone: the same bits on every machine.
// In file order it is the records t*batch .. t*batch+batch-1. Nothing is allocated after construction.
// acquire is for one thread; release may come from any. The destructor may come at any time when no call is
// under way.
class Loader {
 public:
  // Throws std::invalid_argument for impossible numbers, such as no whole mini-batch in the data.
  Loader(std::shared_ptr<const Dataset> dataset, const LoaderOptions& options);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  std::int64_t minibatches() const { return minibatches_; }  // in an epoch
  const Dataset& dataset() const { return *dataset_; }
  const LoaderOptions& options() const { return options_; }

  // Begins reading ahead from mini-batch 0 of an epoch; what is left of an earlier one is dropped.
  // Mini-batches still acquired lose their content and must not be released.
  void start_epoch(std::int64_t epoch);
  // Blocks until mini-batch t is ready; it stays valid until release(t). Mini-batches come in order:
  // acquiring t while t - depth is not released waits for that release. Throws std::logic_error before
  // start_epoch and past the last mini-batch.
  LoadedBatch acquire(std::int64_t t);
  void release(std::int64_t t);
  // Whether acquire(t) would not block, as soon as it is so, or after `limit`.
  bool wait(std::int64_t t, std::chrono::milliseconds limit);

 private:
  struct Slot {
    std::int64_t minibatch = -1;  // -1: free
    bool ready = false;
  };

  // Throws as acquire() does.
  void check_request(std::int64_t t) const;
  bool is_ready(std::int64_t t) { return slot(t).minibatch == t && slot(t).ready; }
  Slot& slot(std::int64_t t) { return slots_[static_cast<std::size_t>(t % options_.depth)]; }
  float* inputs_of(std::int64_t t) const;
  std::int32_t* labels_of(std::int64_t t) const;
  void read_ahead();
  void make_order(std::int64_t epoch);
  void fill(std::int64_t epoch, std::int64_t t);
  void write_image(std::int64_t epoch, std::int64_t record, float* out) const;
  void write_labels(std::int64_t record, std::int32_t* out) const;

  std::shared_ptr<const Dataset> dataset_;
  LoaderOptions options_;
  std::int64_t minibatches_ = 0;
  std::vector<float> normalised_;     // channels x 256: what a byte becomes
  std::vector<std::uint32_t> order_;  // the thread's own
  Buffer<float> inputs_;
  Buffer<std::int32_t> labels_;

  std::mutex mutex_;
  std::condition_variable ready_, wanted_;
  std::vector<Slot> slots_;
  std::int64_t epoch_ = 0;
  std::int64_t generation_ = 0;  // counts start_epoch; what was read for an older one is dropped
  std::int64_t next_ = 0;        // the mini-batch to read next
  bool quit_ = false;
  std::thread thread_;
};

}  // namespace pipeoptim
