#include "pipeline/edge.h"

#include <stdexcept>
#include <string>

namespace pipeoptim {
namespace {

// What both kinds of edges need to know of the ends that are in this process.
class Ends {
 public:
  Ends(EngineCore& core, Payload payload, int from, int to)
      : core_(core), activation_(payload == Payload::kActivation), from_(from), to_(to) {}

  int to() const { return to_; }
  bool activation() const { return activation_; }
  StreamId stream_id() const { return activation_ ? kActivations : kGradients; }
  Stream& arrival_stream() const { return lane(to_).streams[stream_id()]; }

  Event& filled(std::int32_t slot) const {
    return at(activation_ ? lane(from_).output_ready : lane(from_).input_gradient_ready, slot);
  }
  Event& consumed(std::int32_t slot) const {
    return at(activation_ ? lane(from_).output_consumed : lane(from_).input_gradient_consumed, slot);
  }
  Event& free(std::int32_t slot) const { return at(lane(to_).slot_free, slot); }
  Event& arrived(std::int32_t slot) const {
    return at(activation_ ? lane(to_).input_ready : lane(to_).gradient_ready, slot);
  }

  Tensor source(std::int32_t slot) const {
    return activation_ ? stage(from_).output(slot) : stage(from_).input_gradient(slot);
  }
  Tensor target(std::int32_t slot) const {
    return activation_ ? stage(to_).input(slot) : stage(to_).output_gradient(slot);
  }

 private:
  static Event& at(std::vector<Event>& events, std::int32_t slot) {
    return events[static_cast<std::size_t>(slot)];
  }
  StageLane& lane(int k) const { return *core_.lanes[static_cast<std::size_t>(k)]; }
  Stage& stage(int k) const { return core_.stages[static_cast<std::size_t>(k)]; }

  EngineCore& core_;
  bool activation_;
  int from_, to_;
};

// Both ends here: the receive copies from the sender's slot, on the receiver's stream.
class LocalEdge final : public Edge {
 public:
  explicit LocalEdge(const Ends& ends) : ends_(ends) {}

  void begin_pass(std::int32_t microbatches) override {
    sent_.clear();
    received_ = 0;
    sent_.reserve(static_cast<std::size_t>(microbatches));
  }

  void send(const Instruction& instruction) override {
    sent_.push_back({instruction.microbatch, instruction.slot});
  }

  void receive(const Instruction& instruction, PassRecorder& recorder) override {
    const std::int32_t from = sender_slot(instruction);
    Stream& stream = ends_.arrival_stream();
    stream.wait(ends_.filled(from));
    stream.wait(ends_.free(instruction.slot));
    recorder.begin_span(ends_.to(), ends_.stream_id(), instruction);
    const Tensor target = ends_.target(instruction.slot);
    stream.copy(target.memory(), ends_.source(from).memory(), target.bytes());
    recorder.end_span(ends_.to(), ends_.stream_id());
    stream.record(ends_.arrived(instruction.slot));
    stream.record(ends_.consumed(from));
  }

 private:
  struct Sent {
    std::int32_t microbatch, slot;
  };

  // A mismatch means that the schedule and its validation disagree.
  std::int32_t sender_slot(const Instruction& instruction) {
    if (received_ == sent_.size() || sent_[received_].microbatch != instruction.microbatch) {
      throw std::logic_error("stage " + std::to_string(ends_.to()) + ": " + to_string(instruction) +
                             " has no matching send");
    }
    return sent_[received_++].slot;
  }

  Ends ends_;
  std::vector<Sent> sent_;  // of the pass, in order
  std::size_t received_ = 0;
};

// One end here. A send has a stream of its own, so that nothing but later sends stands behind it.
class RemoteEdge final : public Edge {
 public:
  RemoteEdge(const Ends& ends, PeerLinks& links, Link link, std::optional<Stream> departures)
      : ends_(ends), links_(links), link_(link), departures_(std::move(departures)) {}

  void begin_pass(std::int32_t) override {}

  void send(const Instruction& instruction) override {
    departures_->wait(ends_.filled(instruction.slot));
    const Tensor source = ends_.source(instruction.slot);
    links_.send(link_, *departures_, source.memory(), source.bytes());
    departures_->record(ends_.consumed(instruction.slot));
  }

  void receive(const Instruction& instruction, PassRecorder& recorder) override {
    Stream& stream = ends_.arrival_stream();
    stream.wait(ends_.free(instruction.slot));
    recorder.begin_span(ends_.to(), ends_.stream_id(), instruction);
    const Tensor target = ends_.target(instruction.slot);
    links_.receive(link_, stream, target.memory(), target.bytes());
    recorder.end_span(ends_.to(), ends_.stream_id());
    stream.record(ends_.arrived(instruction.slot));
  }

  void synchronize() override {
    if (departures_) departures_->synchronize();
  }
  void throw_if_failed() override {
    if (departures_) departures_->throw_if_failed();
  }

 private:
  Ends ends_;
  PeerLinks& links_;
  Link link_;
  std::optional<Stream> departures_;
};

}  // namespace

std::unique_ptr<Edge> make_edge(EngineCore& core, Payload payload, int from, int to) {
  const Ends ends(core, payload, from, to);
  if (core.here(from) && core.here(to)) return std::make_unique<LocalEdge>(ends);
  if (!core.here(from) && !core.here(to)) return nullptr;
  const bool activation = payload == Payload::kActivation;
  if (core.here(to)) {
    const Link link = activation ? Link::kActivationsFromPrevious : Link::kGradientsFromNext;
    return std::make_unique<RemoteEdge>(ends, *core.links, link, std::nullopt);
  }
  const Link link = activation ? Link::kActivationsToNext : Link::kGradientsToPrevious;
  const std::string name = "stage" + std::to_string(from) + (activation ? "-out" : "-back");
  Stream departures(core.device_of(from), {.threads = 1, .execution = core.config.execution, .name = name});
  return std::make_unique<RemoteEdge>(ends, *core.links, link, std::move(departures));
}

}  // namespace pipeoptim
