"""Workers on a fake device: everything of a rank but the model runs as it ships."""

import threading
import time

import pytest

SPEC = "fake:step_us=2000:decode_us=10:end=0.02"


@pytest.fixture
def weights(model):
    return model("ckpt-fp16-tp1", "--weights", "int4")


def tokens_of(c, api, text, **sampling):
    request = api.GenerateRequest(text=text, max_tokens=40, return_token_ids=True,
                                  sampling=api.SamplingParameters(**sampling))
    return [t for r in c.inference.Generate(request, timeout=60) for d in r.choices for t in d.tokens]


def test_tokens_follow_the_context_and_the_parameters(cluster, api, weights):
    c = cluster(weights, tp=2, group__devices=SPEC)
    assert [r.device for r in c.status().groups[0].ranks] == [SPEC, SPEC]
    greedy = tokens_of(c, api, "The river", top_k=1, ignore_end=True)
    assert len(greedy) == 40
    assert tokens_of(c, api, "The river", top_k=1, ignore_end=True) == greedy
    assert tokens_of(c, api, "The rivers", top_k=1, ignore_end=True) != greedy
    sampled = tokens_of(c, api, "The river", seed=1, ignore_end=True)
    assert tokens_of(c, api, "The river", seed=1, ignore_end=True) == sampled != greedy
    assert tokens_of(c, api, "The river", seed=2, ignore_end=True) != sampled
    ends = [len(tokens_of(c, api, "The river", seed=seed)) for seed in range(20)]
    assert min(ends) < 40, f"two tokens in a hundred end a text, none of 20 texts ended: {ends}"


def test_streams_share_steps_that_take_their_time(cluster, api, weights):
    c = cluster(weights, tp=2, group__devices="fake:step_us=20000", worker__slots=32)
    results = {}

    def run(i):
        results[i] = tokens_of(c, api, f"river {i}", top_k=1, ignore_end=True)

    begin = time.monotonic()
    threads = [threading.Thread(target=run, args=(i,)) for i in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    seconds = time.monotonic() - begin
    assert sorted(map(len, results.values())) == [40] * 16
    assert seconds >= 40 * 0.02  # each token of a stream is a step
    assert seconds < 16 * 40 * 0.02  # and the streams did not take turns
    alone = tokens_of(c, api, "river 7", top_k=1, ignore_end=True)
    assert alone == results[7]


def test_a_long_step_is_left_when_the_epoch_ends(cluster, api, weights):
    c = cluster(weights, group__devices="fake:step_us=600000000", deadlines__step="600ms")
    call = c.inference.Generate(api.GenerateRequest(text="The river", max_tokens=4), timeout=60)
    first = c.status().groups[0]
    assert first.ranks[0].pid
    # the step deadline takes the group down; the engine thread joins the next epoch at once
    again = c.wait(lambda: (s := c.group_ready()) and s.groups[0].epoch > first.epoch and s.groups[0],
                   "another epoch")
    assert again.ranks[0].pid == first.ranks[0].pid
    call.cancel()
