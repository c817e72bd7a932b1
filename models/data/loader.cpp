#include "models/data/loader.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "models/draws.h"

namespace pipeoptim {

namespace {

void check(const Dataset& dataset, const LoaderOptions& options) {
  if (options.batch < 1) throw std::invalid_argument("the batch size must be at least 1");
  if (options.depth < 1) throw std::invalid_argument("a loader keeps at least one mini-batch ready");
  if (dataset.records() < 1) throw std::invalid_argument("data '" + dataset.name + "' has no records");
  if (dataset.records() > std::numeric_limits<std::uint32_t>::max()) {
    throw std::invalid_argument("data '" + dataset.name + "' has more records than a loader can count");
  }
  if (options.remainder == Remainder::kDrop && options.batch > dataset.records()) {
    throw std::invalid_argument("the batch size " + std::to_string(options.batch) + " exceeds the " +
                                std::to_string(dataset.records()) + " records of '" + dataset.name + "'");
  }
}

}  // namespace

Loader::Loader(std::shared_ptr<const Dataset> dataset, const LoaderOptions& options)
    : dataset_(std::move(dataset)), options_(options) {
  check(*dataset_, options_);
  const std::int64_t records = dataset_->records();
  minibatches_ = records / options_.batch;
  if (options_.remainder == Remainder::kPad && records % options_.batch != 0) ++minibatches_;

  for (std::size_t channel = 0; channel < static_cast<std::size_t>(dataset_->channels); ++channel) {
    for (int byte = 0; byte < 256; ++byte) {
      const double scaled = byte / 255.0;
      normalised_.push_back(static_cast<float>((scaled - static_cast<double>(dataset_->mean[channel])) /
                                               static_cast<double>(dataset_->deviation[channel])));
    }
  }
  order_.resize(static_cast<std::size_t>(records));
  const auto held = static_cast<std::size_t>(options_.batch * options_.depth);
  inputs_ = Buffer<float>(options_.device, held * static_cast<std::size_t>(dataset_->values()),
                          MemoryKind::kPinned);
  labels_ = Buffer<std::int32_t>(options_.device, held * static_cast<std::size_t>(dataset_->record_labels()),
                                 MemoryKind::kPinned);
  slots_.resize(static_cast<std::size_t>(options_.depth));
  thread_ = std::thread([this] { read_ahead(); });
}

Loader::~Loader() {
  {
    const std::lock_guard lock(mutex_);
    quit_ = true;
  }
  wanted_.notify_all();
  thread_.join();
}

void Loader::start_epoch(std::int64_t epoch) {
  {
    const std::lock_guard lock(mutex_);
    epoch_ = epoch;
    ++generation_;
    next_ = 0;
    std::fill(slots_.begin(), slots_.end(), Slot{});
  }
  wanted_.notify_all();
}

void Loader::check_request(std::int64_t t) const {
  if (generation_ == 0) throw std::logic_error("a loader was asked for a mini-batch before start_epoch");
  if (t < 0 || t >= minibatches_) {
    throw std::logic_error("mini-batch " + std::to_string(t) + " of an epoch that has " +
                           std::to_string(minibatches_));
  }
}

LoadedBatch Loader::acquire(std::int64_t t) {
  std::unique_lock lock(mutex_);
  check_request(t);
  ready_.wait(lock, [&] { return is_ready(t); });
  return {inputs_of(t), labels_of(t)};
}

bool Loader::wait(std::int64_t t, std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  check_request(t);
  return ready_.wait_for(lock, limit, [&] { return is_ready(t); });
}

void Loader::release(std::int64_t t) {
  {
    const std::lock_guard lock(mutex_);
    if (slot(t).minibatch == t) slot(t) = Slot{};
  }
  wanted_.notify_all();
}

float* Loader::inputs_of(std::int64_t t) const {
  return inputs_.data() + t % options_.depth * options_.batch * dataset_->values();
}

std::int32_t* Loader::labels_of(std::int64_t t) const {
  return labels_.data() + t % options_.depth * options_.batch * dataset_->record_labels();
}

// The thread: the only writer of the buffers, so a slot given up by start_epoch is never written by two.
void Loader::read_ahead() {
  std::int64_t ordered = 0;  // the generation that order_ belongs to
  std::unique_lock lock(mutex_);
  for (;;) {
    wanted_.wait(lock, [&] {
      return quit_ || (generation_ > 0 && next_ < minibatches_ && slot(next_).minibatch < 0);
    });
    if (quit_) return;
    const std::int64_t t = next_, epoch = epoch_, generation = generation_;
    slot(t) = {t, false};
    lock.unlock();
    if (ordered != generation) make_order(epoch);
    ordered = generation;
    fill(epoch, t);
    lock.lock();
    if (generation != generation_) continue;
    slot(t).ready = true;
    ++next_;
    ready_.notify_all();
  }
}

// Fisher-Yates with one counted draw an exchange.
void Loader::make_order(std::int64_t epoch) {
  std::iota(order_.begin(), order_.end(), 0U);
  if (options_.order == Order::kFile) return;
  for (std::size_t i = order_.size() - 1; i > 0; --i) {
    const std::uint32_t word = draw(options_.seed, Purpose::kShuffle, static_cast<std::uint64_t>(epoch), i);
    std::swap(order_[i], order_[bounded(word, static_cast<std::uint32_t>(i + 1))]);
  }
}

void Loader::fill(std::int64_t epoch, std::int64_t t) {
  const std::int64_t values = dataset_->values(), record_labels = dataset_->record_labels();
  const std::int64_t first = t * options_.batch;
  float* inputs = inputs_of(t);
  std::int32_t* labels = labels_of(t);
  for (std::int64_t i = 0; i < options_.batch; ++i) {
    float* out = inputs + i * values;
    if (first + i >= dataset_->records()) {
      std::fill(out, out + values, 0.0F);
      std::fill_n(labels + i * record_labels, record_labels, -1);
      continue;
    }
    const std::uint32_t record = order_[static_cast<std::size_t>(first + i)];
    write_labels(record, labels + i * record_labels);
    if (dataset_->kind == DataKind::kImages) {
      write_image(epoch, record, out);
    } else {
      const auto tokens = dataset_->tokens.begin() + record * values;
      std::transform(tokens, tokens + values, out,
                     [](std::int32_t token) { return static_cast<float>(token); });
    }
  }
}

void Loader::write_labels(std::int64_t record, std::int32_t* out) const {
  if (dataset_->kind == DataKind::kRunningText) {
    std::copy_n(dataset_->tokens.begin() + record * dataset_->values() + 1, dataset_->record_labels(), out);
  } else {
    *out = dataset_->labels[static_cast<std::size_t>(record)];
  }
}

void Loader::write_image(std::int64_t epoch, std::int64_t record, float* out) const {
  const std::int64_t height = dataset_->height, width = dataset_->width, channels = dataset_->channels;
  const std::uint8_t* image = dataset_->images.data() + record * dataset_->values();
  std::int64_t down = 0, right = 0;
  bool flipped = false;
  if (options_.augmentation == Augmentation::kCropAndFlip) {
    const std::int64_t padding = std::min(height, width) < 32 ? 2 : 4;
    const auto word = [&](std::uint64_t which) {
      return draw(options_.seed, Purpose::kAugment, static_cast<std::uint64_t>(epoch),
                  static_cast<std::uint64_t>(record) * 4 + which);
    };
    down = bounded(word(0), static_cast<std::uint32_t>(2 * padding + 1)) - padding;
    right = bounded(word(1), static_cast<std::uint32_t>(2 * padding + 1)) - padding;
    flipped = (word(2) >> 31) != 0;
  }
  const float* table = normalised_.data();
  for (std::int64_t y = 0; y < height; ++y) {
    const std::int64_t from_y = y + down;
    const bool row_inside = from_y >= 0 && from_y < height;
    for (std::int64_t x = 0; x < width; ++x) {
      const std::int64_t from_x = (flipped ? width - 1 - x : x) + right;
      const bool inside = row_inside && from_x >= 0 && from_x < width;
      const std::uint8_t* pixel = inside ? image + (from_y * width + from_x) * channels : nullptr;
      for (std::int64_t c = 0; c < channels; ++c) *out++ = table[c * 256 + (pixel ? pixel[c] : 0)];
    }
  }
}

}  // namespace pipeoptim
