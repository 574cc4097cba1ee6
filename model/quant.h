/* quant.h: weight-only quantization: schemes, the layout on disk, the quantizers.
 *
 * Only the four linears of a layer are quantized; embedding (= LM head), norms and biases stay
 * FP16 in the file. A model may ask for an INT8 head ("head": "int8" in quantization_config): a
 * rank then quantizes its rows of the embedding, one scale each, when it loads them, and multiplies
 * with these; what it looks tokens up in stays FP16. The format is symmetric: w' = q * scale, one
 * FP16 scale per row and group of columns.
 *
 * Layout on disk, for a linear of [rows, cols] (out x in) with `groups` groups:
 *
 *   <name>.weight        INT8: I8 [rows, cols]
 *                        INT4: U8 [rows, cols / 2], even column in the HIGH nibble, two's
 * complement <name>.weight_scale  F16 [rows, groups]
 *
 *     byte of a row        0            1            2              cols/2 - 1
 *                    +------+------+------+------+------+---- ... -+------+------+
 *     INT4 nibbles   | q[0] | q[1] | q[2] | q[3] | q[4] |          |q[c-2]|q[c-1]|
 *                    +------+------+------+------+------+---- ... -+------+------+
 *                      high   low    high   low
 *
 *     byte j = (q[2j] << 4) | (q[2j + 1] & 15)
 *
 *     scale of a row |  s[0]           |  s[1]           |         |  s[groups-1] |
 *                      columns [0, G)    columns [G, 2G)            G = cols / groups
 *
 * All groups of a tensor have the same number of columns G; no padding, no zero points. Rows are
 * whole bytes: an INT4 tensor has an even number of columns, also per tensor-parallel rank.
 *
 * Group kinds:
 *   row      one group per row. The published quantizer on an unsplit checkpoint.
 *   shard N  what N published shards hold once merged: tensors split by columns (attention.dense,
 *            mlp.dense_4h_to_h) have N groups, those split by rows have one.
 *   cols G   groups of 32, 64 or 128 columns in every linear; not a published layout, better
 *            quality.
 *
 * Published quantizer (row and shard; GLM-130B quantization/functional.py): every step is rounded
 * to FP16,
 *   scale = fp16(max|w| / (2^(bits-1) - 1)),  q = round_half_even(fp16(w / scale)),
 * without a clamp: where the FP16 scale has lost precision (tiny rows) q leaves [-7, 7] and keeps
 * its low bits, e.g. 8 -> -8. Scale 0 gives q = 0.
 */
#ifndef GLMD_MODEL_QUANT_H
#define GLMD_MODEL_QUANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "model/shard.h"

struct json_t;

enum quant_weights { QUANT_FP16, QUANT_INT8, QUANT_INT4 }; /* order of enum k_weight */
enum quant_group { QUANT_GROUP_ROW, QUANT_GROUP_SHARD, QUANT_GROUP_COLS };

struct quant_scheme {
    enum quant_weights weights;
    enum quant_group group; /* no meaning for QUANT_FP16: QUANT_GROUP_ROW */
    uint32_t group_n;       /* SHARD: number of shards (2..); COLS: 32, 64, 128; ROW: 0 */
    bool head_int8;         /* not with QUANT_FP16 */
};

enum { QUANT_MAX_SHARDS = 256, QUANT_DESCRIBE_BYTES = 64 };

/* "int4", "int8", "fp16" <-> enum; -EINVAL. */
int quant_weights_parse(const char *text, enum quant_weights *ret_weights);
const char *quant_weights_name(enum quant_weights w);
unsigned quant_bits(enum quant_weights w); /* 16, 8, 4 */

/* "row", "shard", "shard:N", "32", "64", "128" into group and group_n of the scheme. "shard" alone
 * gives group_n = 0: the caller puts the source's number in. shard:1 becomes row. */
int quant_group_parse(const char *text, struct quant_scheme *scheme, struct err *e);

/* "fp16" or "int8" into head_int8; -EINVAL. */
int quant_head_parse(const char *text, struct quant_scheme *scheme, struct err *e);

/* "int4, one scale per row", for people. */
void quant_describe(const struct quant_scheme *s, char ret_text[QUANT_DESCRIBE_BYTES]);

/* The "quantization_config" object of config.json; absent = FP16. -EINVAL names key, expected and
 * found. quant_to_json adds the object to config (nothing for FP16). */
int quant_from_json(const struct json_t *config, struct quant_scheme *ret_scheme, struct err *e);
int quant_to_json(const struct quant_scheme *s, struct json_t *config);

/* Whether this tensor's weight is quantized under the scheme (a linear, and not FP16). */
bool quant_applies(const struct quant_scheme *s, const struct shard_tensor *t);

/* Groups per row of a quantized tensor; 0 when the scheme does not apply to it. */
uint32_t quant_n_groups(const struct quant_scheme *s, const struct shard_tensor *t);

/* Stored columns of a quantized tensor: bytes of a row for `cols` logical columns. */
uint64_t quant_row_bytes(enum quant_weights w, uint64_t cols);

/* Whether every linear of the architecture can be stored so: groups divide the columns, an even
 * number of columns for INT4; and whether there may be an INT8 head. */
int quant_check(const struct quant_scheme *s, const struct arch *a, struct err *e);

/* The scales that one piece (shard_pieces) of a quantized tensor needs: groups
 * [group0, group0 + n_groups) of the rows of the piece, each covering group_cols columns OF THE
 * PIECE. A piece narrower than a group (row scales, or fewer published shards than ranks) has one
 * group as wide as itself. -EINVAL when the boundaries of ranks and groups cross. */
struct quant_groups {
    uint32_t group0, n_groups;
    uint32_t group_cols;
};
int quant_piece_groups(const struct quant_scheme *s, const struct shard_tensor *t,
                       const struct shard_piece *piece, struct quant_groups *ret, struct err *e);

/* Quantizes rows of FP16 weights w [n_rows, cols] into q [n_rows, quant_row_bytes(cols)] and scale
 * [n_rows, n_groups]; cols is a multiple of n_groups. QUANT_GROUP_ROW and _SHARD: the published
 * quantizer, bit for bit. QUANT_GROUP_COLS: INT4 scales are chosen per group to minimise the
 * squared error and q is clamped to [-8, 7]; INT8 uses the published formula, clamped. Infinite
 * and NaN weights give q = 0. Pure; any thread. */
void quant_rows(const struct quant_scheme *s, const uint16_t *w, uint64_t n_rows, uint64_t cols,
                uint32_t n_groups, uint8_t *ret_q, uint16_t *ret_scale);

/* The inverse, as the published kernels compute it: w' = fp16(fp16(q) * scale). */
void quant_dequantize_rows(enum quant_weights weights, const uint8_t *q, const uint16_t *scale,
                           uint64_t n_rows, uint64_t cols, uint32_t n_groups, uint16_t *ret_w);

#endif
