/* sample.cuh: the kernels of sampling on the device. Rules and arithmetic: kernels/sampling.h; all
 * that CTAs add up are integers, so that neither their number nor their order can be seen in a
 * result. Included by sample.cu and by tests.
 *
 *   kernel     CTAs           reads        makes
 *   prepare    tiles x rows   logits       bias in place; values: logits under the strategy; peaks
 *   weigh      tiles x rows   both         masses: sums of weights, first maximum; bins of digit 0
 *   select     tiles x rows   values       bins of the next digit: of the rank, then of the mass
 *   sums       tiles x rows   values       the edge of the last cut; shares: what is left of it
 *   tops       tiles x rows   logits       best tokens of every tile
 *   choose     rows           all          the rank and the tile, then the token
 *
 * Where several ranks share the vocabulary, peaks, masses, shares and choices go to all of them,
 * and cuts are found otherwise (sample_shard.cuh):
 *
 *   collect    tiles x rows   values       behind select, of the rank: candidates
 *   shard_cut  rows           candidates   the edge of the last cut, before sums
 *   finish     rows           choices      the results
 *
 * A CTA is a tile of a row: 2048 logits, of one part of it. Tiles are in the order of the ids. What
 * a kernel leaves (state, bins), the next one reads: nothing waits for another CTA. The bins of a
 * digit are searched by every CTA of the kernel that follows, which costs less than a launch
 * between them.
 */
#ifndef GLMD_KERNELS_CUDA_SAMPLE_CUH
#define GLMD_KERNELS_CUDA_SAMPLE_CUH

#include "kernels/cuda/sample_cut.cuh"   // IWYU pragma: export
#include "kernels/cuda/sample_draw.cuh"  // IWYU pragma: export
#include "kernels/cuda/sample_row.cuh"   // IWYU pragma: export
#include "kernels/cuda/sample_shard.cuh" // IWYU pragma: export

#endif
