"""The micro-batcher with a model that only adds: every image gets its own result, whatever happens around it."""

import asyncio
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vggkit.serving.batcher import Batcher, Job
from vggkit.serving.refusals import Refusal


@dataclass(eq=False)
class Adder:
    """Adds a number to the first value of each input."""

    number: int = 0
    batches: list[int] = field(default_factory=list)
    is_held: threading.Event | None = None

    def compute(self, inputs, wanted):
        if self.is_held is not None:
            self.is_held.wait(10)
        self.batches.append(len(inputs))
        if (inputs == -1).any():
            raise ValueError("minus one")
        return [float(each[0, 0, 0]) + self.number for each in inputs]


def make_job(model, value, *, seconds=30.0, prepare=None):
    loop = asyncio.get_running_loop()
    return Job(
        model=model,
        prepare=prepare or (lambda: np.full((1, 1, 1), value, np.float32)),
        wanted=None,
        deadline=time.monotonic() + seconds,
        loop=loop,
        future=loop.create_future(),
    )


def open_batcher(**changes):
    return Batcher(**({"max_batch": 4, "max_wait_ms": 2, "max_queue": 64, "decoders": 3} | changes))


requests = st.lists(
    st.tuples(
        st.integers(0, 2),  # the model
        st.lists(st.integers(-1, 50), min_size=1, max_size=5),
        st.sampled_from(["waits", "waits", "waits", "gives up", "is late"]),
        st.sampled_from([0.0, 0.0, 0.001]),  # a pause before it
    ),
    max_size=12,
)


@settings(max_examples=40)
@given(requests=requests, max_batch=st.integers(1, 6), decoders=st.integers(1, 3))
def test_each_image_gets_its_own_result_in_any_order_of_events(requests, max_batch, decoders):
    models = [Adder(100), Adder(200), Adder(300)]
    queued = []

    async def send(batcher, model, values, fate, pause):
        await asyncio.sleep(pause)
        seconds = 0.0 if fate == "is late" else 30.0
        jobs = [make_job(models[model], value, seconds=seconds) for value in values]
        batcher.submit(jobs)
        if fate == "gives up":
            for job in jobs:
                job.future.cancel()
        return await asyncio.gather(*(job.future for job in jobs), return_exceptions=True)

    async def run():
        batcher = open_batcher(max_batch=max_batch, decoders=decoders, on_queue=queued.append)
        try:
            found = await asyncio.gather(*(send(batcher, *each) for each in requests))
            while batcher.admitted:  # what nobody waited for
                await asyncio.sleep(0.001)
            assert batcher.is_alive
            return found
        finally:
            batcher.close()

    found = asyncio.run(run())
    for (model, values, fate, _), results in zip(requests, found, strict=True):
        for value, result in zip(values, results, strict=True):
            if fate != "waits":
                assert isinstance(result, asyncio.CancelledError)
            elif isinstance(result, ValueError):  # -1 was in its batch
                assert -1 in [each for other, others, _, _ in requests if other == model for each in others]
            else:
                assert result == value + models[model].number
    assert all(size <= max_batch for model in models for size in model.batches)
    assert sum(queued) == 0


def test_images_that_come_while_the_engine_computes_go_through_it_together():
    async def run():
        model = Adder(is_held=threading.Event())
        batcher = open_batcher()
        first = make_job(model, 1)
        batcher.submit([first])
        while batcher._queue or batcher._decoding:  # it is being computed now
            await asyncio.sleep(0.001)
        others = [make_job(model, value) for value in range(2, 7)]
        batcher.submit(others)
        await asyncio.sleep(0.05)
        model.is_held.set()
        results = await asyncio.gather(*(job.future for job in [first, *others]))
        batcher.close()
        return results, model.batches

    assert asyncio.run(run()) == ([1, 2, 3, 4, 5, 6], [1, 4, 1])


def test_a_full_queue_refuses_all_of_a_request_or_none():
    async def run():
        model = Adder(is_held=threading.Event())
        batcher = open_batcher(max_queue=3)
        waiting = [make_job(model, value) for value in range(2)]
        batcher.submit(waiting)
        with pytest.raises(Refusal, match="2 images wait, and 3 may") as refused:
            batcher.submit([make_job(model, value) for value in range(2)])
        assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})
        last = make_job(model, 7)
        batcher.submit([last])
        model.is_held.set()
        assert await asyncio.gather(*(job.future for job in [*waiting, last])) == [0, 1, 7]
        batcher.close()
        with pytest.raises(Refusal, match="stopping"):
            batcher.submit([make_job(model, 1)])

    asyncio.run(run())


def test_an_image_that_cannot_be_decoded_fails_alone():
    async def run():
        model, batcher = Adder(), open_batcher()

        def fail():
            raise OSError("broken")

        jobs = [make_job(model, 1), make_job(model, 2, prepare=fail), make_job(model, 3)]
        batcher.submit(jobs)
        results = await asyncio.gather(*(job.future for job in jobs), return_exceptions=True)
        batcher.close()
        return results

    first, second, third = asyncio.run(run())
    assert (first, str(second), third) == (1, "broken", 3)
