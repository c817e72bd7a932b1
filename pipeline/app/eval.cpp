// `pipeoptim eval`: loss and accuracy of saved weights on the test split.
#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <stdexcept>

#include "pipeline/app/app.h"
#include "pipeline/app/processes.h"
#include "pipeline/app/setup.h"

namespace pipeoptim::app {

namespace {

ExitCode evaluate(const CommandLine& line, ProcessGroup* group) {
  const Options& options = line.options();
  const Device device = group != nullptr ? own_device(options) : choose_device(options.device);
  const auto engine = make_engine(options, data_shape(options), device, false, group);
  Loader loader = make_test_loader(options, load_data(options, Split::kTest), device);
  if (group != nullptr) {
    Settings settings = line.settings();
    settings.push_back({"test records", std::to_string(loader.dataset().records())});
    require_same_settings(*group, settings);
  }
  load_weights(*engine, options.init);
  LoaderSource source(loader);
  loader.start_epoch(0);
  const PassResult result = engine->evaluate(source, loader.minibatches());
  if (!role_of(group).reports) return kSuccess;
  const auto records = loader.dataset().records();
  const double loss = result.loss_of(records), accuracy = result.accuracy_of(records);
  if (options.json) {
    const nlohmann::ordered_json all = {
        {"loss", loss}, {"accuracy", accuracy}, {"records", records}, {"seconds", result.seconds}};
    fmt::print("{}\n", all.dump());
  } else {
    fmt::print("loss {:.6f}  accuracy {:.2f} %  {} records  {:.1f} s\n", loss, 100 * accuracy, records,
               result.seconds);
  }
  return kSuccess;
}

}  // namespace

ExitCode evaluate(const CommandLine& line) {
  const Options& options = line.options();
  if (options.init.empty()) throw std::invalid_argument("eval needs weights: --init FILE.safetensors");
  return with_processes(options, [&](ProcessGroup* group) { return evaluate(line, group); });
}

}  // namespace pipeoptim::app
