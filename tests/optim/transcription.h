// Every rule in double, written from PyTorch's documentation and the sources, apart from optim/. It knows the
// arena of optimizer_run.h.
#pragma once

#include <cmath>
#include <utility>
#include <vector>

#include "tests/optim/optimizer_run.h"

namespace pipeoptim::test {

using Rows = std::vector<std::vector<double>>;

inline Rows transposed(const Rows& a) {
  Rows flipped(a.front().size(), std::vector<double>(a.size()));
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (std::size_t j = 0; j < a[i].size(); ++j) flipped[j][i] = a[i][j];
  }
  return flipped;
}

inline Rows product(const Rows& a, const Rows& b) {
  Rows c(a.size(), std::vector<double>(b.front().size()));
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (std::size_t k = 0; k < b.size(); ++k) {
      for (std::size_t j = 0; j < c[i].size(); ++j) c[i][j] += a[i][k] * b[k][j];
    }
  }
  return c;
}

inline Rows combined(double alpha, const Rows& a, double beta, const Rows& b) {
  Rows c = a;
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (std::size_t j = 0; j < a[i].size(); ++j) c[i][j] = alpha * a[i][j] + beta * b[i][j];
  }
  return c;
}

// As its source has it: on the matrix lying down.
inline Rows newton_schulz(Rows x) {
  const bool tall = x.size() > x.front().size();
  if (tall) x = transposed(x);
  double squares = 0;
  for (const auto& row : x) {
    for (const double value : row) squares += value * value;
  }
  for (auto& row : x) {
    for (double& value : row) value /= std::max(std::sqrt(squares), 1e-7);
  }
  for (int step = 0; step < 5; ++step) {
    const Rows a = product(x, transposed(x));
    const Rows b = combined(-4.7750, a, 2.0315, product(a, a));
    x = combined(3.4445, x, 1, product(b, x));
  }
  return tall ? transposed(x) : x;
}

class Transcription {
 public:
  Transcription(const OptimizerConfig& config, const std::vector<float>& weights)
      : config_(with_rule_defaults(config)),
        w_(weights.begin(), weights.end()),
        direction_(w_.size()),
        first_(w_.size()),
        second_(w_.size()),
        third_(w_.size()),
        previous_(w_.size()) {}

  void step(const std::vector<float>& gradients, double lr) {
    ++t_;
    mu_product_ *= mu(t_);
    std::size_t end = w_.size();
    if (config_.rule == "muon") {
      matrix_step(gradients, lr);
      end = kMatrixBegin;
    }
    for (std::size_t i = 0; i < end; ++i) {
      const bool decays = i < 9001 || i >= 9050;
      one(i, static_cast<double>(gradients[i]), lr, decays ? config_.weight_decay : 0);
    }
  }
  // Linear prediction from the formulas of the table in docs/methods.md.
  double predicted(std::size_t i, double distance) const { return w_[i] - distance * direction_[i]; }
  double weight(std::size_t i) const { return w_[i]; }

 private:
  double mu(int t) const { return *config_.beta1 * (1 - 0.5 * std::pow(0.96, t * config_.momentum_decay)); }

  void one(std::size_t i, double g, double lr, double decay) {
    const OptimizerConfig& c = config_;
    const bool decoupled = c.rule == "adamw" || c.rule == "lion" || c.rule == "adan" || c.rule == "muon";
    if (!decoupled) g += decay * w_[i];
    if (decoupled && c.rule != "adan") w_[i] *= 1 - lr * decay;
    double applied = 0;
    if (c.rule == "adan" || c.rule == "lion") {
      applied = c.rule == "adan" ? adan(i, g) : lion(i, g);
    } else if (c.rule == "rmsprop" || c.rule == "adagrad") {
      applied = adaptive(i, g);
    } else {
      applied = c.rule.starts_with("sgd") || c.rule == "nesterov" ? sgd(i, g) : adam(i, g);
    }
    w_[i] -= lr * applied;
    if (c.rule == "adan") w_[i] /= 1 + lr * decay;
  }

  // Each returns what is applied, and leaves the direction of predictions.
  double sgd(std::size_t i, double g) {
    const OptimizerConfig& c = config_;
    const double u = *c.momentum;
    double& m = first_[i];
    double& d = direction_[i];
    if (c.rule == "sgd") return d = g;
    m = t_ == 1 ? g : u * m + (c.rule == "sgdm" ? 1 - c.dampening : 1) * g;
    if (c.rule == "nesterov") return d = g + u * m;
    d = m;
    if (c.rule == "sgdm") {
      if (c.momentum_direction == MomentumDirection::kReleasedCode) d = u * m + (1 - c.dampening) * g;
      return m;
    }
    return std::pow(u, c.delay) * m + (1 - std::pow(u, c.delay)) / (1 - u) * g;
  }

  double adam(std::size_t i, double g) {
    const OptimizerConfig& c = config_;
    const double b1 = *c.beta1, b2 = *c.beta2;
    double& m = first_[i];
    double& v = second_[i];
    m = b1 * m + (1 - b1) * g;
    v = b2 * v + (1 - b2) * g * g;
    const double root = std::sqrt(v / (1 - std::pow(b2, t_))) + *c.eps;
    if (c.rule == "nadam") {
      return direction_[i] =
                 (mu(t_ + 1) * m / (1 - mu_product_ * mu(t_ + 1)) + (1 - mu(t_)) * g / (1 - mu_product_)) /
                 root;
    }
    return direction_[i] = m / (1 - std::pow(b1, t_)) / root;
  }

  double adan(std::size_t i, double g) {
    const OptimizerConfig& c = config_;
    const double b1 = *c.beta1, b2 = *c.beta2, b3 = c.beta3;
    const double difference = t_ == 1 ? 0 : g - previous_[i];
    previous_[i] = g;
    first_[i] = b1 * first_[i] + (1 - b1) * g;
    second_[i] = b2 * second_[i] + (1 - b2) * difference;
    third_[i] = b3 * third_[i] + (1 - b3) * std::pow(g + b2 * difference, 2);
    return direction_[i] = (first_[i] / (1 - std::pow(b1, t_)) + b2 * second_[i] / (1 - std::pow(b2, t_))) /
                           (std::sqrt(third_[i] / (1 - std::pow(b3, t_))) + *c.eps);
  }

  double lion(std::size_t i, double g) {
    const double b1 = *config_.beta1, b2 = *config_.beta2;
    const double mixed = b1 * first_[i] + (1 - b1) * g;
    first_[i] = b2 * first_[i] + (1 - b2) * g;
    return direction_[i] = mixed > 0 ? 1 : mixed < 0 ? -1 : 0;
  }

  double adaptive(std::size_t i, double g) {
    const double a = config_.alpha;
    second_[i] = config_.rule == "adagrad" ? second_[i] + g * g : a * second_[i] + (1 - a) * g * g;
    return direction_[i] = g / (std::sqrt(second_[i]) + *config_.eps);
  }

  void matrix_step(const std::vector<float>& gradients, double lr) {
    const double u = *config_.momentum;
    Rows ahead(kMatrixRows, std::vector<double>(kMatrixColumns));
    std::size_t i = kMatrixBegin;
    for (auto& row : ahead) {
      for (double& value : row) {
        const double g = static_cast<double>(gradients[i]);
        first_[i] = u * first_[i] + (1 - u) * g;
        value = u * first_[i++] + (1 - u) * g;
      }
    }
    const double scale = config_.muon_scale == MuonScale::kOriginal
                             ? std::sqrt(std::max(1.0, double{kMatrixRows} / kMatrixColumns))
                             : 0.2 * std::sqrt(std::max<double>(kMatrixRows, kMatrixColumns));
    i = kMatrixBegin;
    for (const auto& row : newton_schulz(std::move(ahead))) {
      for (const double value : row) {
        direction_[i] = scale * value;
        w_[i] = w_[i] * (1 - lr * config_.weight_decay) - lr * direction_[i];
        ++i;
      }
    }
  }

  OptimizerConfig config_;
  std::vector<double> w_, direction_, first_, second_, third_, previous_;
  double mu_product_ = 1;
  int t_ = 0;
};

}  // namespace pipeoptim::test
