#include "pipeline/app/trace_costs.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "kernels/runtime/error.h"

namespace pipeoptim::app {
namespace {

struct Span {
  std::size_t stage;
  int stream;
  std::string op;
  double begin, end;
};

struct Total {
  double time = 0;
  std::int64_t count = 0;
  void add(double duration) {
    time += duration;
    ++count;
  }
  double mean() const { return count == 0 ? 0 : time / static_cast<double>(count); }
};

std::vector<Span> read_spans(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw DataError("cannot read the trace " + path);
  std::vector<Span> spans;
  try {
    const nlohmann::json trace = nlohmann::json::parse(file);
    for (const nlohmann::json& event : trace.at("traceEvents")) {
      if (event.at("ph") != "X") continue;
      const std::string name = event.at("name");
      const double begin = event.at("ts");
      spans.push_back({event.at("pid"), event.at("tid"), name.substr(0, name.find(' ')), begin,
                       begin + event.at("dur").get<double>()});
    }
  } catch (const nlohmann::json::exception& error) {
    throw DataError(path + " is not a trace of pipeoptim train (" + error.what() + ")");
  }
  return spans;
}

bool is_update(const Span& span) { return span.stream == 0 && (span.op == "U" || span.op == "UP"); }

}  // namespace

TraceCosts read_trace_costs(const std::string& path) {
  std::vector<Span> spans = read_spans(path);
  // What follows a stage's last update is evaluation, which other stages may not have come to yet. A stream's
  // spans are in its order; the times of different streams are only nearly so.
  std::map<std::size_t, std::size_t> last_updates;  // by stage, its place
  for (std::size_t i = 0; i < spans.size(); ++i) {
    if (is_update(spans[i])) last_updates[spans[i].stage] = i;
  }
  double last_update = 0;
  std::vector<Span> training;
  for (std::size_t i = 0; i < spans.size(); ++i) {
    const auto last = last_updates.find(spans[i].stage);
    if (last == last_updates.end()) continue;
    if (spans[i].stream == 0 ? i > last->second : spans[i].end > spans[last->second].end) continue;
    if (i == last->second) last_update = std::max(last_update, spans[i].end);
    training.push_back(spans[i]);
  }
  spans = std::move(training);
  if (spans.empty()) throw DataError(path + " holds no training");

  std::size_t stages = 0;
  double begin = spans.front().begin;
  for (const Span& span : spans) {
    stages = std::max(stages, span.stage + 1);
    begin = std::min(begin, span.begin);
  }
  TraceCosts costs;
  costs.makespan = last_update - begin;
  std::vector<std::map<std::string, Total>> compute(stages);
  std::vector<Total> weights(stages), activations(stages), gradients(stages);
  for (const Span& span : spans) {
    const double duration = span.end - span.begin;
    if (span.stream == 1) activations[span.stage].add(duration);
    if (span.stream == 2) gradients[span.stage].add(duration);
    if (span.stream != 0) continue;
    if (span.op == "F" || span.op == "B" || span.op == "BI" || span.op == "BW") {
      compute[span.stage][span.op].add(duration);
    } else {  // updates, predictions and copies of weights all belong to the update
      weights[span.stage].time += duration;
      if (is_update(span)) ++weights[span.stage].count;
    }
  }
  costs.minibatches = weights[0].count;
  costs.microbatches = compute[0]["F"].count;
  costs.split = compute[0]["BI"].count > 0;
  for (std::size_t k = 0; k < stages; ++k) {
    auto& ops = compute[k];
    if (ops["F"].count == 0 || ops["F"].count != ops["B"].count + ops["BI"].count) {
      throw DataError(path +
                      " holds more than one epoch or only a part of one: trace a run of --epochs 1 "
                      "(or fewer --steps), whose trace is complete");
    }
    costs.stages.push_back(
        {ops["F"].mean(), ops["B"].mean() + ops["BI"].mean(), ops["BW"].mean(), weights[k].mean()});
    if (k + 1 < stages) costs.links.push_back({activations[k + 1].mean(), gradients[k].mean()});
  }
  return costs;
}

}  // namespace pipeoptim::app
