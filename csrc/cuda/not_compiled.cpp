// The CUDA entries of a build without a CUDA compiler: each says so.
#include "oss_ext/advance.h"
#include "oss_ext/best_step.h"
#include "oss_ext/device.h"
#include "oss_ext/gram.h"
#include "oss_ext/min_plus.h"
#include "oss_ext/min_reduce.h"
#include "oss_ext/pairwise_cost.h"

namespace oss_ext::cuda {

bool compiled() { return false; }
const char* error_string(Status) { return "this build of oss_ext has no CUDA kernels"; }

int64_t pairwise_cost_workspace(const PairwiseCostParams&, int) { return kNotCompiled; }
int64_t pairwise_cost_samples_per_sum(const PairwiseCostParams&, int) { return kNotCompiled; }
Status pairwise_cost(const PairwiseCostParams&, int, void*) { return kNotCompiled; }
int64_t min_reduce_workspace(const MinReduceParams&, int) { return kNotCompiled; }
Status min_reduce(const MinReduceParams&, int, void*) { return kNotCompiled; }
Status advance(const AdvanceParams&, int, void*) { return kNotCompiled; }
int64_t gram_workspace(const GramParams&, int) { return kNotCompiled; }
Status gram(const GramParams&, int, void*) { return kNotCompiled; }
Status min_plus(const MinPlusParams&, int, void*) { return kNotCompiled; }
int64_t screen_splits(const StepsParams&, int64_t, int64_t, int) { return kNotCompiled; }
int64_t weigh_parts(const StepsParams&) { return kNotCompiled; }
Status screen(const ScreenParams&, int, void*) { return kNotCompiled; }
Status shortlist(const ShortlistParams&, int, void*) { return kNotCompiled; }
Status weigh(const WeighParams&, int, void*) { return kNotCompiled; }
Status choose(const ChooseParams&, int, void*) { return kNotCompiled; }

}  // namespace oss_ext::cuda
