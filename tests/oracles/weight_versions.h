// An explicit list-of-versions simulation of pipeline training, in double precision: an MLP cut into stages,
// every version of every stage's weights and optimizer state kept, each method's table of weight versions
// written out. Independent of the library: no schedule, no engine, no layer is used.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace pipeoptim::oracle {

using Vector = std::vector<double>;

// What a pass multiplies by: a version of its stage, and how many steps that is predicted ahead.
struct Reads {
  int version = 0, distance = 0;
};

struct Settings {
  std::string method = "pipeoptim";
  std::string horizon = "exact";     // exact, paper, released-code
  std::string predictor = "linear";  // linear, geometric, difference
  std::string rule = "sgdm";         // sgdm, sgdm-sc, adam, adamw, nadam
  double lr = 0.05, momentum = 0.9, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
  int microbatches = 1;
  int delay = 0;  // method "delayed"
  double pipemare_decay = 0.135;
  int pipemare_anneal = 0;
  // For orders whose versions have no closed form: stage, mini-batch, whether it is the forward.
  std::function<Reads(int, int, bool)> reads = {};
};

// Weights and optimizer state of one stage at one version.
struct Version {
  Vector w, m, v;
  Vector g;     // the gradient that led here, weight decay included
  Vector step;  // average of the weight steps
  double mu_product = 1;
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
      versions_[k].push_back(advance(static_cast<int>(k), versions_[k].back(), stage_gradients[k]));
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

  int warm_up(int k) const { return settings_.method == "delayed" ? settings_.delay : depth() - 1 - k; }

  // The table of weight versions: what stage k reads for mini-batch t.
  Reads table(int k, int t, bool is_forward) const {
    if (settings_.reads) return settings_.reads(k, t, is_forward);
    const int m = settings_.microbatches;
    const int early = std::max(0, t * m - warm_up(k)) / m;  // when the mini-batch's first forward comes
    const auto up = [m](int distance) { return (distance + m - 1) / m; };
    const std::string& method = settings_.method;
    for (const char* synchronous :
         {"sequential", "gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2", "zb-v", "zb-auto"}) {
      if (method == synchronous) return {t, 0};
    }
    if (method == "naive" || method == "spike-compensation") return {is_forward ? early : t, 0};
    if (method == "pipedream" || method == "async-nag") return {early, 0};
    if (method == "pipedream-vertical") return {std::max(0, t - (depth() - 1)), 0};
    if (method == "pipedream-2bw") return {std::max(t - 1, 0), 0};
    if (method == "spectrain" || method == "xpipe") {
      return is_forward ? Reads{early, up(k / 2 + warm_up(k))} : Reads{t, up(k / 2)};
    }
    if (method == "pipemare") return is_forward ? Reads{early, 0} : Reads{t, -std::min(t, warm_up(k))};
    if (method == "lwp" || method == "lwp-sc") return is_forward ? Reads{early, warm_up(k)} : Reads{t, 0};
    if (method != "pipeoptim" && method != "delayed") {
      throw std::invalid_argument("the oracle does not know " + method);
    }
    if (!is_forward) return {t, 0};
    int distance = std::min(t, warm_up(k));
    if (settings_.horizon == "paper") distance = warm_up(k);
    if (settings_.horizon == "released-code") distance = warm_up(k) + 1;
    return {early, distance};
  }

  Vector weights(int k, int t, bool is_forward) const {
    const Reads reads = table(k, t, is_forward);
    return predict(k, versions_[static_cast<std::size_t>(k)][static_cast<std::size_t>(reads.version)],
                   reads.distance);
  }

  Vector predict(int k, const Version& version, int distance) const {
    const Vector& decay = decay_[static_cast<std::size_t>(k)];
    Vector predicted = version.w;
    if (version.steps == 0 || distance == 0) return predicted;
    const bool steps = settings_.predictor == "difference" || settings_.method == "pipemare";
    for (std::size_t i = 0; i < predicted.size(); ++i) {
      if (steps) {
        predicted[i] += distance * version.step[i];
      } else if (settings_.predictor == "geometric") {
        predicted[i] = coast(version, i, distance, decay[i]);
      } else {
        const bool released = settings_.horizon == "released-code" && settings_.rule == "sgdm";
        const double along =
            released ? settings_.momentum * version.m[i] + version.g[i] : direction(version, i);
        predicted[i] -= distance * settings_.lr * along;
      }
    }
    return predicted;
  }

  double direction(const Version& version, std::size_t i) const {
    if (settings_.rule == "sgdm" || settings_.rule == "sgdm-sc") return version.m[i];
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

  Version advance(int k, const Version& before, const Vector& gradients) const {
    const Vector& decay = decay_[static_cast<std::size_t>(k)];
    Version after = before;
    after.steps = before.steps + 1;
    for (Vector* state : {&after.m, &after.v, &after.g, &after.step}) state->resize(before.w.size(), 0.0);
    const double lr = rate(k, before.steps);
    const bool momentum = settings_.rule == "sgdm" || settings_.rule == "sgdm-sc";
    const double mu = nesterov_mu(after.steps), next_mu = nesterov_mu(after.steps + 1);
    after.mu_product *= mu;
    for (std::size_t i = 0; i < after.w.size(); ++i) {
      double g = gradients[i];
      if (settings_.rule == "adamw") {
        after.w[i] -= lr * decay[i] * after.w[i];
      } else {
        g += decay[i] * after.w[i];
      }
      after.g[i] = g;
      after.m[i] = momentum ? settings_.momentum * after.m[i] + g
                            : settings_.beta1 * after.m[i] + (1 - settings_.beta1) * g;
      if (!momentum) after.v[i] = settings_.beta2 * after.v[i] + (1 - settings_.beta2) * g * g;
      if (settings_.rule == "sgdm-sc") {
        const double a = std::pow(settings_.momentum, warm_up(k));
        after.w[i] -= lr * (a * after.m[i] + (1 - a) / (1 - settings_.momentum) * g);
      } else if (settings_.rule == "nadam") {
        const double root =
            std::sqrt(after.v[i] / (1 - std::pow(settings_.beta2, after.steps))) + settings_.eps;
        after.w[i] -= lr *
                      ((1 - mu) / (1 - after.mu_product) * g +
                       next_mu / (1 - after.mu_product * next_mu) * after.m[i]) /
                      root;
      } else {
        after.w[i] -= lr * direction(after, i);
      }
      const double average = settings_.method == "pipemare" ? pipemare_average(k) : 0;
      after.step[i] = average * after.step[i] + (1 - average) * (after.w[i] - before.w[i]);
    }
    return after;
  }

  // PyTorch's momentum schedule of NAdam.
  double nesterov_mu(int step) const { return settings_.beta1 * (1 - 0.5 * std::pow(0.96, step * 0.004)); }

  double pipemare_average(int k) const {
    return warm_up(k) == 0 ? 0 : std::pow(settings_.pipemare_decay, 1.0 / warm_up(k));
  }

  // PipeMare: lr / gap^p, p from 1 down to 0 while the rates are annealed.
  double rate(int k, int step) const {
    if (settings_.method != "pipemare" || settings_.pipemare_anneal == 0 || warm_up(k) == 0)
      return settings_.lr;
    const double p = 1 - std::min(1.0, static_cast<double>(step) / settings_.pipemare_anneal);
    return settings_.lr / std::pow(warm_up(k), p);
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
