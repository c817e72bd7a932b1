#include "pipeline/app/records.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace pipeoptim::app {
namespace {

using Json = nlohmann::ordered_json;

Json optional_number(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

Json metadata(const char* what, int stage, int stream, const std::string& name) {
  return {{"ph", "M"}, {"name", what}, {"pid", stage}, {"tid", stream}, {"args", {{"name", name}}}};
}

}  // namespace

// The shortest text that reads back as the same double: all digits of a float, and valid JSON.
std::string step_line(const StepResult& step) {
  return fmt::format("{{\"step\": {}, \"loss\": {}}}", step.step, Json(step.loss).dump());
}

std::string epoch_line(const EpochResult& epoch) {
  const Json line = {{"epoch", epoch.epoch},
                     {"train_loss", epoch.train_loss},
                     {"train_accuracy", epoch.train_accuracy},
                     {"test_loss", optional_number(epoch.test_loss)},
                     {"test_accuracy", optional_number(epoch.test_accuracy)},
                     {"samples_per_second", epoch.samples_per_second},
                     {"seconds", epoch.seconds},
                     {"lr", static_cast<double>(epoch.learning_rate)},
                     {"skipped_updates", epoch.skipped_updates}};
  return line.dump();
}

std::string version_line(const VersionRecord& record, int micro_batches) {
  const std::string micro =
      micro_batches > 1 ? fmt::format(", \"microbatch\": {}", record.microbatch) : std::string();
  return fmt::format(
      "{{\"stage\": {}, \"minibatch\": {}{}, \"op\": \"{}\", \"version\": {}, \"horizon\": {}}}",
      record.stage, record.minibatch, micro, record.op, record.version, record.horizon);
}

std::string chrome_trace(const std::vector<TraceSpan>& spans, int stages) {
  static const char* const streams[] = {"compute", "incoming", "outgoing"};
  std::string text = "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n";
  for (int stage = 0; stage < stages; ++stage) {
    text += metadata("process_name", stage, 0, fmt::format("stage {}", stage)).dump() + ",\n";
    for (int stream = 0; stream < 3; ++stream) {
      text += metadata("thread_name", stage, stream, streams[stream]).dump() + ",\n";
    }
  }
  for (const TraceSpan& span : spans) {
    text += fmt::format(
        "{{\"ph\": \"X\", \"name\": {}, \"pid\": {}, \"tid\": {}, \"ts\": {:.3f}, \"dur\": {:.3f}}},\n",
        Json(span.name).dump(), span.stage, span.stream, span.begin_us, span.end_us - span.begin_us);
  }
  if (text.ends_with(",\n")) text.erase(text.size() - 2, 1);
  return text + "]}\n";
}

std::string plan_json(const std::vector<StageInfo>& stages) {
  Json plan = {{"stages", Json::array()}};
  for (const StageInfo& stage : stages) {
    Json layers = Json::array();
    for (const LayerInfo& layer : stage.layers) layers.push_back(layer.name);
    const StageMemory& memory = stage.memory;
    plan["stages"].push_back({{"layers", layers},
                              {"parameters", stage.parameters},
                              {"bytes",
                               {{"weights", memory.weights},
                                {"gradients", memory.gradients},
                                {"optimizer", memory.optimizer},
                                {"predicted", memory.predicted},
                                {"versions", memory.versions},
                                {"states", memory.states},
                                {"stash", memory.stash},
                                {"workspace", memory.workspace},
                                {"transfers", memory.transfers},
                                {"total", memory.total()}}}});
  }
  return plan.dump();
}

}  // namespace pipeoptim::app
