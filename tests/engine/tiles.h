// The instructions of AMX that amx.h uses, in plain C++, so that its code runs on a processor without
// tiles: test_library.py includes this before it.  As Intel describes them (Software Developer's
// Manual, volume 2: LDTILECFG, TILELOADD, TDPBF16PS, TILESTORED), but denormals are not zero.

#include <cstdlib>

namespace emulated {

struct Tile {
  alignas(64) uint8_t line[16][64];
};

inline thread_local uint8_t config[64];
inline thread_local Tile tile[8];

inline int bytes(int t) { return config[16 + 2 * t] | config[17 + 2 * t] << 8; }
inline int lines(int t) { return config[48 + t]; }

inline void need(bool right) {
  if (!right) std::abort();  // what the processor would fault at
}

inline void load_config(const void* from) {
  std::memcpy(config, from, sizeof config);
  need(config[0] == 1);
  for (int t = 0; t < 8; ++t) need(bytes(t) <= 64 && lines(t) <= 16);
  std::memset(tile, 0, sizeof tile);
}

inline void store_config(void* to) { std::memcpy(to, config, sizeof config); }

inline void release() { std::memset(config, 0, sizeof config); }

inline void zero(int t) {
  need(config[0] == 1);
  tile[t] = {};
}

inline void load(int t, const void* from, int64_t stride) {
  zero(t);
  for (int i = 0; i < lines(t); ++i)
    std::memcpy(tile[t].line[i], static_cast<const char*>(from) + i * stride, bytes(t));
}

inline void store(int t, void* to, int64_t stride) {
  need(config[0] == 1);
  for (int i = 0; i < lines(t); ++i)
    std::memcpy(static_cast<char*>(to) + i * stride, tile[t].line[i], bytes(t));
}

inline float number(const uint8_t* bits) { return widen(uint16_t(bits[0] | bits[1] << 8)); }

inline void multiply(int c, int a, int b) {
  need(bytes(a) / 4 == lines(b) && lines(a) == lines(c) && bytes(b) == bytes(c));
  for (int m = 0; m < lines(c); ++m)
    for (int n = 0; n < bytes(c) / 4; ++n) {
      float sum[2] = {};
      for (int k = 0; k < lines(b); ++k)
        for (int half = 0; half < 2; ++half)
          sum[half] += number(tile[a].line[m] + 4 * k + 2 * half) *
                       number(tile[b].line[k] + 4 * n + 2 * half);
      float before;
      std::memcpy(&before, tile[c].line[m] + 4 * n, 4);
      const float after = before + (sum[0] + sum[1]);
      std::memcpy(tile[c].line[m] + 4 * n, &after, 4);
    }
}

}  // namespace emulated

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_release
#define _tile_zero(t) emulated::zero(t)
#define _tile_loadd(t, from, stride) emulated::load(t, from, stride)
#define _tile_stored(t, to, stride) emulated::store(t, to, stride)
#define _tile_dpbf16ps(c, a, b) emulated::multiply(c, a, b)
#define _tile_release() emulated::release()
