// fuse_scales and its gradients as plain loops in double: every map dense, every step its own, the equations in sight.
//
// Written from the definition and independent of csrc/core, which the kernels that are tested against it use.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

namespace reference {

struct Size {
  int height;
  int width;
};

// [B, C, h, w]
struct Map {
  int batch = 0;
  int channels = 0;
  Size size{0, 0};
  std::vector<double> values;

  Map() = default;
  Map(int b, int c, Size s) : batch(b), channels(c), size(s) {
    values.assign(static_cast<size_t>(b) * c * s.height * s.width, 0.0);
  }
  double& at(int b, int c, int y, int x) {
    return values[((static_cast<size_t>(b) * channels + c) * size.height + y) * size.width + x];
  }
  double at(int b, int c, int y, int x) const { return const_cast<Map*>(this)->at(b, c, y, x); }
};

// Calls body(b, c, y, x) for every element.
template <typename Body>
void for_all(const Map& map, Body body) {
  for (int b = 0; b < map.batch; ++b) {
    for (int c = 0; c < map.channels; ++c) {
      for (int y = 0; y < map.size.height; ++y) {
        for (int x = 0; x < map.size.width; ++x) body(b, c, y, x);
      }
    }
  }
}

// body(input, weight) for the two inputs that output o of an axis reads.
template <typename Body>
void for_taps(int in, int out, bool align_corners, int o, Body body) {
  double source = align_corners ? (out > 1 ? o * (in - 1.0) / (out - 1.0) : 0.0) : (o + 0.5) * in / out - 0.5;
  if (source < 0.0) source = 0.0;
  const int first = static_cast<int>(std::floor(source)) < in - 1 ? static_cast<int>(std::floor(source)) : in - 1;
  const int second = first < in - 1 ? first + 1 : first;
  body(first, 1.0 - (source - first));
  body(second, source - first);
}

template <typename Body>
void for_taps_2d(Size in, Size out, bool align_corners, int y, int x, Body body) {
  for_taps(in.height, out.height, align_corners, y, [&](int v, double row_weight) {
    for_taps(in.width, out.width, align_corners, x,
             [&](int u, double column_weight) { body(v, u, row_weight * column_weight); });
  });
}

inline Map resize(const Map& from, Size size, bool align_corners) {
  Map to(from.batch, from.channels, size);
  for_all(to, [&](int b, int c, int y, int x) {
    for_taps_2d(from.size, size, align_corners, y, x,
                [&](int v, int u, double weight) { to.at(b, c, y, x) += weight * from.at(b, c, v, u); });
  });
  return to;
}

// The transposed matrix of resize(): from the gradient of its result to the gradient of its argument.
inline Map resize_adjoint(const Map& grad, Size size, bool align_corners) {
  Map to(grad.batch, grad.channels, size);
  for_all(grad, [&](int b, int c, int y, int x) {
    for_taps_2d(size, grad.size, align_corners, y, x,
                [&](int v, int u, double weight) { to.at(b, c, v, u) += weight * grad.at(b, c, y, x); });
  });
  return to;
}

// body(a, b) element by element; a channel of its own for all serves every channel.
template <typename Body>
Map combine(const Map& a, const Map& b, Body body) {
  const int channels = a.channels > b.channels ? a.channels : b.channels;
  Map to(a.batch, channels, a.size);
  for_all(to, [&](int n, int c, int y, int x) {
    to.at(n, c, y, x) = body(a.at(n, a.channels == 1 ? 0 : c, y, x), b.at(n, b.channels == 1 ? 0 : c, y, x));
  });
  return to;
}

inline Map times(const Map& a, const Map& b) {
  return combine(a, b, [](double x, double y) { return x * y; });
}
inline Map complement_times(const Map& a, const Map& b) {
  return combine(a, b, [](double x, double y) { return (1.0 - x) * y; });
}
inline Map plus(const Map& a, const Map& b) {
  return combine(a, b, [](double x, double y) { return x + y; });
}
inline Map minus(const Map& a, const Map& b) {
  return combine(a, b, [](double x, double y) { return x - y; });
}

inline Map sum_of_channels(const Map& map) {
  Map to(map.batch, 1, map.size);
  for_all(map, [&](int b, int c, int y, int x) { to.at(b, 0, y, x) += map.at(b, c, y, x); });
  return to;
}

struct Problem {
  std::vector<double> scales;  // descending
  Size size;
  bool align_corners = false;
  std::vector<Map> logits;     // by scale
  std::vector<Map> attention;  // by scale; the first is not used

  Size grid(size_t i) const {
    return {static_cast<int>(std::floor(size.height * scales[i])),
            static_cast<int>(std::floor(size.width * scales[i]))};
  }
};

struct Gradients {
  std::vector<Map> logits;
  std::vector<Map> attention;  // the first is empty
};

// P after each scale; with the last resize, if there is one, as one entry more.
inline std::vector<Map> fuse_scales_steps(const Problem& p) {
  const bool align = p.align_corners;
  std::vector<Map> steps = {resize(p.logits[0], p.grid(0), align)};
  for (size_t i = 1; i < p.scales.size(); ++i) {
    const Map l = resize(p.logits[i], p.grid(i), align);
    const Map a = resize(p.attention[i], p.grid(i), align);
    if (p.scales[i] >= 1.0) {
      steps.push_back(plus(times(a, l), complement_times(a, resize(steps.back(), p.grid(i), align))));
    } else {
      steps.push_back(
          plus(resize(times(a, l), p.size, align), complement_times(resize(a, p.size, align), steps.back())));
    }
  }
  if (p.scales.size() == 1) steps.push_back(resize(steps.back(), p.size, align));
  return steps;
}

inline Map fuse_scales(const Problem& p) { return fuse_scales_steps(p).back(); }

// With g = dLoss/dP and T for the adjoint of a resize, from the last scale to the first:
//     s < 1:   dz = U^T(A * R^T g)   dA = L * R^T g - R^T(g * P_before)   dP_before = (1 - R A) * g
//     s >= 1:  dz = U^T(A * g)       dA = g * (L - R P_before)            dP_before = R^T((1 - A) * g)
// and da = U^T dA, summed over the channels where they share the attention.
inline Gradients fuse_scales_backward(const Problem& p, Map g) {
  const bool align = p.align_corners;
  const std::vector<Map> steps = fuse_scales_steps(p);
  Gradients gradients;
  gradients.logits.resize(p.scales.size());
  gradients.attention.resize(p.scales.size());
  if (p.scales.size() == 1) g = resize_adjoint(g, p.grid(0), align);
  for (size_t i = p.scales.size() - 1; i > 0; --i) {
    const Map l = resize(p.logits[i], p.grid(i), align);
    const Map a = resize(p.attention[i], p.grid(i), align);
    const Map& before = steps[i - 1];
    Map dl, da;
    if (p.scales[i] >= 1.0) {
      dl = times(a, g);
      da = times(g, minus(l, resize(before, p.grid(i), align)));
      g = resize_adjoint(complement_times(a, g), before.size, align);
    } else {
      const Map back = resize_adjoint(g, p.grid(i), align);
      dl = times(a, back);
      da = minus(times(l, back), resize_adjoint(times(g, before), p.grid(i), align));
      g = complement_times(resize(a, p.size, align), g);
    }
    gradients.logits[i] = resize_adjoint(dl, p.logits[i].size, align);
    gradients.attention[i] =
        resize_adjoint(p.attention[i].channels == 1 ? sum_of_channels(da) : da, p.attention[i].size, align);
  }
  gradients.logits[0] = resize_adjoint(g, p.logits[0].size, align);
  return gradients;
}

}  // namespace reference
