// An explicit list-of-versions simulation of pipeline training, in double precision: an MLP cut into stages,
// every version of every stage's weights and optimizer state kept, each method's table of weight versions
// written out. Independent of the library: no schedule, no engine, no layer is used.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace pipeoptim::oracle {

using Vector = std::vector<double>;

struct Settings {
  std::string method = "pipeoptim";
  std::string horizon = "exact";  // exact, paper, released-code
  bool geometric = false;
  std::string rule = "sgdm";  // sgdm, adam, adamw
  double lr = 0.05, momentum = 0.9, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
  int microbatches = 1;
};

// Weights and optimizer state of one stage at one version.
struct Version {
  Vector w, m, v;
  int steps = 0;
};

// width[0] inputs, then one Linear to each following width, ReLU between; stage k owns linears first[k] ..
// first[k+1]-1.
class Simulation {
 public:
  Simulation(std::vector<int> widths, std::vector<int> first, Settings settings)
      : widths_(std::move(widths)), first_(std::move(first)), settings_(std::move(settings)) {
    first_.push_back(linears());
    versions_.resize(first_.size() - 1);
    decay_.resize(versions_.size());
  }

  int depth() const { return static_cast<int>(versions_.size()); }
  int linears() const { return static_cast<int>(widths_.size()) - 1; }

  // The initial values of linear `l`, weight [out,in] (which decays) then bias (which does not).
  void append_initial(int l, const std::vector<float>& values, bool decays) {
    auto& list = versions_[static_cast<std::size_t>(stage_of(l))];
    auto& decay = decay_[static_cast<std::size_t>(stage_of(l))];
    decay.insert(decay.end(), values.size(), decays ? settings_.weight_decay : 0.0);
    if (list.empty()) list.emplace_back();
    list[0].w.insert(list[0].w.end(), values.begin(), values.end());
  }

  // The loss of mini-batch t (all versions before it exist), then the update that makes version t+1.
  double step(int t, const Vector& inputs, const std::vector<int>& labels) {
    const std::size_t records = labels.size();
    std::vector<Vector> activations{inputs};
    for (int l = 0; l < linears(); ++l) {
      activations.push_back(forward(l, weights(stage_of(l), t, true), activations.back(), records));
    }
    Vector gradient = activations.back();
    const double loss = cross_entropy(gradient, labels);
    std::vector<Vector> stage_gradients(versions_.size());
    for (std::size_t k = 0; k < versions_.size(); ++k)
      stage_gradients[k].assign(versions_[k][0].w.size(), 0.0);
    for (int l = linears() - 1; l >= 0; --l) {
      const auto k = static_cast<std::size_t>(stage_of(l));
      gradient =
          backward(l, weights(stage_of(l), t, false), activations[static_cast<std::size_t>(l)],
                   activations[static_cast<std::size_t>(l) + 1], gradient, records, stage_gradients[k]);
    }
    for (std::size_t k = 0; k < versions_.size(); ++k) {
      versions_[k].push_back(advance(versions_[k].back(), stage_gradients[k], decay_[k]));
    }
    return loss;
  }

  const Version& latest(int k) const { return versions_[static_cast<std::size_t>(k)].back(); }

 private:
  int stage_of(int l) const {
    int k = 0;
    while (l >= first_[static_cast<std::size_t>(k) + 1]) ++k;
    return k;
  }
  std::size_t offset(int l) const {
    std::size_t at = 0;
    for (int i = first_[static_cast<std::size_t>(stage_of(l))]; i < l; ++i) {
      at += static_cast<std::size_t>(widths_[static_cast<std::size_t>(i) + 1]) *
            static_cast<std::size_t>(widths_[static_cast<std::size_t>(i)] + 1);
    }
    return at;
  }

  // The table of weight versions: what stage k multiplies mini-batch t by.
  Vector weights(int k, int t, bool is_forward) const {
    const auto& list = versions_[static_cast<std::size_t>(k)];
    const auto at = [&](int version) -> const Version& { return list[static_cast<std::size_t>(version)]; };
    const int warm_up = depth() - 1 - k;
    const int early = std::max(0, t - warm_up);
    const std::string& method = settings_.method;
    if (method == "sequential" || method == "gpipe" || method == "1f1b") return at(t).w;
    if (method == "naive") return at(is_forward ? early : t).w;
    if (method == "pipedream") return at(early).w;
    if (method == "pipedream-2bw") return at(std::max(t - 1, 0)).w;
    if (method == "spectrain")
      return is_forward ? predict(k, at(early), k / 2 + warm_up) : predict(k, at(t), k / 2);
    if (method != "pipeoptim") throw std::invalid_argument("the oracle does not know " + method);
    if (!is_forward) return at(t).w;
    int distance = std::min(t, warm_up);
    if (settings_.horizon == "paper") distance = warm_up;
    if (settings_.horizon == "released-code") distance = depth() - k;
    return predict(k, at(early), distance);
  }

  Vector predict(int k, const Version& version, int distance) const {
    const Vector& decay = decay_[static_cast<std::size_t>(k)];
    Vector predicted = version.w;
    if (version.steps == 0 || distance == 0) return predicted;
    for (std::size_t i = 0; i < predicted.size(); ++i) {
      predicted[i] = settings_.geometric ? coast(version, i, distance, decay[i])
                                         : predicted[i] - distance * settings_.lr * direction(version, i);
    }
    return predicted;
  }

  double direction(const Version& version, std::size_t i) const {
    if (settings_.rule == "sgdm") return version.m[i];
    const double m = version.m[i] / (1 - std::pow(settings_.beta1, version.steps));
    const double v = version.v[i] / (1 - std::pow(settings_.beta2, version.steps));
    return m / (std::sqrt(v) + settings_.eps);
  }

  // `distance` steps with zero gradients; the second moment stays, its bias correction goes on.
  double coast(const Version& version, std::size_t i, int distance, double decay) const {
    const double u = settings_.momentum;
    double w = version.w[i];
    if (settings_.rule == "sgdm") {
      return w - settings_.lr * (u - std::pow(u, distance + 1)) / (1 - u) * version.m[i];
    }
    for (int s = 1; s <= distance; ++s) {
      if (settings_.rule == "adamw") w -= settings_.lr * decay * w;
      const double m = std::pow(settings_.beta1, s) * version.m[i];
      const double v = version.v[i] / (1 - std::pow(settings_.beta2, version.steps + s));
      w -= settings_.lr / (1 - std::pow(settings_.beta1, version.steps + s)) * m /
           (std::sqrt(v) + settings_.eps);
    }
    return w;
  }

  Version advance(const Version& before, const Vector& gradients, const Vector& decay) const {
    Version after = before;
    after.steps = before.steps + 1;
    if (before.steps == 0) {
      after.m.assign(before.w.size(), 0.0);
      after.v.assign(before.w.size(), 0.0);
    }
    for (std::size_t i = 0; i < after.w.size(); ++i) {
      double g = gradients[i];
      const bool adaptive = settings_.rule != "sgdm";
      if (settings_.rule == "adamw") {
        after.w[i] -= settings_.lr * decay[i] * after.w[i];
      } else {
        g += decay[i] * after.w[i];
      }
      after.m[i] = adaptive ? settings_.beta1 * after.m[i] + (1 - settings_.beta1) * g
                            : settings_.momentum * after.m[i] + g;
      if (adaptive) after.v[i] = settings_.beta2 * after.v[i] + (1 - settings_.beta2) * g * g;
    }
    for (std::size_t i = 0; i < after.w.size(); ++i) after.w[i] -= settings_.lr * direction(after, i);
    return after;
  }

  Vector forward(int l, const Vector& w, const Vector& x, std::size_t records) const {
    const auto in = static_cast<std::size_t>(widths_[static_cast<std::size_t>(l)]);
    const auto out = static_cast<std::size_t>(widths_[static_cast<std::size_t>(l) + 1]);
    const double* weight = w.data() + offset(l);
    const double* bias = weight + out * in;
    Vector y(records * out);
    for (std::size_t r = 0; r < records; ++r) {
      for (std::size_t o = 0; o < out; ++o) {
        double sum = bias[o];
        for (std::size_t i = 0; i < in; ++i) sum += weight[o * in + i] * x[r * in + i];
        y[r * out + o] = l + 1 < linears() ? std::max(sum, 0.0) : sum;
      }
    }
    return y;
  }

  Vector backward(int l, const Vector& w, const Vector& x, const Vector& y, Vector dy, std::size_t records,
                  Vector& gradients) const {
    const auto in = static_cast<std::size_t>(widths_[static_cast<std::size_t>(l)]);
    const auto out = static_cast<std::size_t>(widths_[static_cast<std::size_t>(l) + 1]);
    const double* weight = w.data() + offset(l);
    double* weight_gradient = gradients.data() + offset(l);
    double* bias_gradient = weight_gradient + out * in;
    Vector dx(records * in, 0.0);
    for (std::size_t r = 0; r < records; ++r) {
      for (std::size_t o = 0; o < out; ++o) {
        if (l + 1 < linears() && y[r * out + o] <= 0) dy[r * out + o] = 0;
        const double d = dy[r * out + o];
        bias_gradient[o] += d;
        for (std::size_t i = 0; i < in; ++i) {
          weight_gradient[o * in + i] += d * x[r * in + i];
          dx[r * in + i] += d * weight[o * in + i];
        }
      }
    }
    return dx;
  }

  // Mean cross-entropy; the logits become their gradient.
  static double cross_entropy(Vector& logits, const std::vector<int>& labels) {
    const std::size_t classes = logits.size() / labels.size();
    double loss = 0;
    for (std::size_t r = 0; r < labels.size(); ++r) {
      double* row = logits.data() + r * classes;
      const double largest = *std::max_element(row, row + classes);
      double sum = 0;
      for (std::size_t c = 0; c < classes; ++c) sum += std::exp(row[c] - largest);
      const double log_sum = largest + std::log(sum);
      loss += log_sum - row[labels[r]];
      for (std::size_t c = 0; c < classes; ++c) {
        const double target = static_cast<int>(c) == labels[r] ? 1.0 : 0.0;
        row[c] = (std::exp(row[c] - log_sum) - target) / static_cast<double>(labels.size());
      }
    }
    return loss / static_cast<double>(labels.size());
  }

  std::vector<int> widths_, first_;
  Settings settings_;
  std::vector<std::vector<Version>> versions_;  // by stage
  std::vector<Vector> decay_;                   // by stage: weight decay of each element
};

}  // namespace pipeoptim::oracle
