// sp_shim.cc: see sp_shim.h.
#include "model/tokenizer/sp_shim.h"

#include <cstdlib>
#include <exception>
#include <new>
#include <string_view>
#include <vector>

#include <sentencepiece_processor.h>

struct sp_shim {
    sentencepiece::SentencePieceProcessor processor;
};

// Runs `body`, which returns an int, and turns what it throws into an error.
template <typename Body> static int guarded(struct err *e, Body body) noexcept
{
    try {
        return body();
    } catch (const std::bad_alloc &) {
        return err_set(e, -ENOMEM, "SentencePiece: out of memory");
    } catch (const std::exception &x) {
        return err_set(e, -EINVAL, "SentencePiece: %s", x.what());
    } catch (...) {
        return err_set(e, -EINVAL, "SentencePiece: unknown failure");
    }
}

int sp_shim_load(const void *model, size_t size, struct sp_shim **ret, struct err *e)
{
    return guarded(e, [&] {
        auto shim = std::make_unique<sp_shim>();
        const auto status = shim->processor.LoadFromSerializedProto(
            std::string_view(static_cast<const char *>(model), size));
        if (!status.ok())
            return err_set(e, -EINVAL, "SentencePiece: %s", status.error_message());
        *ret = shim.release();
        return 0;
    });
}

void sp_shim_free(struct sp_shim *s)
{
    delete s;
}

int sp_shim_encode(const struct sp_shim *s, const char *text, size_t size, int32_t **ret_ids,
                   size_t *ret_n, struct err *e)
{
    return guarded(e, [&] {
        std::vector<int> ids;
        const auto status = s->processor.Encode(std::string_view(text, size), &ids);
        if (!status.ok())
            return err_set(e, -EINVAL, "SentencePiece: %s", status.error_message());
        auto *copy = static_cast<int32_t *>(std::calloc(ids.size() + 1, sizeof(int32_t)));
        if (!copy)
            return err_set(e, -ENOMEM, "SentencePiece: out of memory");
        for (size_t i = 0; i != ids.size(); i++)
            copy[i] = ids[i];
        *ret_ids = copy;
        *ret_n = ids.size();
        return 0;
    });
}
