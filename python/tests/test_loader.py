"""The loader against a slow plain reference, and how it behaves when it is used badly."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import paragon


def loader(shards, batch_size=4, **options):
    options.setdefault("quiet", True)
    options.setdefault("threads", 2)
    return paragon.Loader(shards, batch_size, **options)


def turned(image, code):
    """Applies an augmentation code by its definition."""
    if code & 1:
        image = image[:, ::-1]
    if code & 2:
        image = image[::-1]
    if code & 4:
        image = image.transpose(1, 0, 2)
    return image


def bfloat16_bits(values):
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16"])
@pytest.mark.parametrize("augment", [True, False])
def test_batches_are_the_records_turned_and_scaled(shards, layout, dtype, augment):
    pairs = paragon.ShardSet(shards)
    seen = set()
    for batch in loader(shards, layout=layout, dtype=dtype, augment=augment, seed=3):
        for array, side in zip(batch, (0, 1)):
            values = np.asarray(array)
            assert values.dtype == np.dtype(dtype) and values.shape == array.shape
            for n, (record, code) in enumerate(zip(batch.records, batch.augmentation)):
                expected = turned(np.asarray(pairs[record][side]), code)
                if layout == "NCHW":
                    expected = expected.transpose(2, 0, 1)
                if dtype != "uint8":
                    expected = (expected.astype(np.float32) / np.float32(255)).astype(dtype)
                assert np.array_equal(values[n], expected)
        seen.update(batch.augmentation)
    assert seen == (set(range(8)) if augment else {0})


def test_an_epoch_has_every_record_once_and_the_next_for_goes_on(shards):
    whole = loader(shards, batch_size=8, seed=1)
    assert len(whole) == 9 and whole.samples == 72
    first = [tuple(batch.records) for batch in whole]
    assert sorted(sum(first, ())) == list(range(72))
    second = [tuple(batch.records) for batch in whole]
    assert sorted(sum(second, ())) == list(range(72)) and second != first
    assert whole.epoch == 2 and whole.batch_number == 18


def test_batches_that_do_not_divide_the_epoch_cross_its_end(shards):
    uneven = loader(shards, batch_size=10)
    lengths, records = [], []
    for epoch in range(5):
        lengths.append(len(uneven))
        for batch in uneven:
            assert batch.epoch == epoch and len(batch) == 10
            records += batch.records
    assert lengths == [8, 7, 7, 7, 7] and len(records) == 360
    for epoch in range(5):
        assert sorted(records[72 * epoch:72 * (epoch + 1)]) == list(range(72))


def first_batches(shards, count, **options):
    found = []
    for batch in loader(shards, endless=True, **options):
        found.append((batch.number, batch.records, batch.augmentation, batch.numpy()[1].tobytes()))
        if len(found) == count:
            return found


def test_any_number_of_threads_gives_the_same_batches(shards):
    expected = first_batches(shards, 40, threads=1, seed=9)
    for threads in range(2, 9):
        assert first_batches(shards, 40, threads=threads, seed=9) == expected
    assert first_batches(shards, 40, threads=1, seed=10) != expected


def test_ranks_share_the_samples_of_one_process(shards):
    alone = [batch.records for batch in loader(shards, batch_size=12, seed=5)]
    ranks = [[batch.records for batch in loader(shards, batch_size=4, seed=5, rank=rank, world_size=3)] for rank in range(3)]
    assert len({len(rank) for rank in ranks}) == 1
    mixed = [[ranks[i % 3][n][i // 3] for i in range(12)] for n in range(len(alone))]
    assert mixed == alone


def test_a_state_goes_on_in_the_middle_of_an_epoch(shards):
    one = loader(shards, seed=2)
    stream = iter(one)
    for _ in range(7):
        next(stream)
    state = one.state_dict()
    expected = [(batch.records, batch.augmentation) for batch in stream]
    other = loader(shards, seed=2, threads=1, layout="NHWC", dtype="uint8")
    other.load_state_dict(state)
    assert [(batch.records, batch.augmentation) for batch in other] == expected
    # and of a loader that runs already
    one.load_state_dict(state)
    assert [(batch.records, batch.augmentation) for batch in one] == expected
    with pytest.raises(ValueError, match="seed=2 and this loader has seed=3"):
        loader(shards, seed=3).load_state_dict(state)
    with pytest.raises(ValueError, match='no "fingerprint"'):
        one.load_state_dict({})


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="signals of Unix")
def test_a_signal_handler_can_take_the_state_while_a_batch_is_waited_for(shards):
    one = loader(shards, slots=2, endless=True)
    stream = iter(one)
    held = [next(stream), next(stream)]
    states = []
    before = signal.signal(signal.SIGALRM, lambda *_: states.append(one.state_dict()["batch"]))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(paragon.Error):
            next(stream)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert states == [2] and held


def test_several_sets_with_weights(shards):
    mixed = loader([shards, str(shards)], weights=[3, 1], batch_size=8)
    assert mixed.samples == 144
    records = [record for batch in mixed for record in batch.records]
    assert sum(record < 72 for record in records) == 108


def test_uint8_nhwc_without_augmentation_is_the_slot_itself(shards):
    plain = loader(shards, layout="NHWC", dtype="uint8", augment=False)
    turned = loader(shards, layout="NHWC", dtype="uint8")
    pixels = 4 * 16 * 16 * 3 * 5
    assert plain.memory["slot_bytes"] == pixels + 4 * 9
    assert turned.memory["slot_bytes"] == 2 * pixels + 4 * 9


def test_the_memory_is_printed_and_a_limit_is_held(shards, capfd):
    made = loader(shards, quiet=False, slots=3)
    assert "3 slots of" in capfd.readouterr().err
    memory = made.memory
    total = memory["slots"] * memory["slot_bytes"] + memory["threads"] * memory["thread_bytes"] + memory["index_bytes"]
    assert memory["total"] == total
    loader(shards, slots=3, host_memory=total)
    with pytest.raises(ValueError, match="host_memory allows"):
        loader(shards, slots=3, host_memory=total - 1)


def test_a_view_outlives_batch_iterator_and_loader(shards):
    short = loader(shards, slots=3, endless=True, seed=4)
    stream = iter(short)
    batch = next(stream)
    view = batch.numpy()[1]
    part = view[1:2, :, 3:5]
    copy = view.copy()
    del batch
    for _ in range(50):
        next(stream)
    assert np.array_equal(view, copy)
    del view
    for _ in range(50):
        next(stream)
    assert np.array_equal(part, copy[1:2, :, 3:5])
    del stream, short
    gc.collect()
    rubbish = [np.full(copy.shape, n, copy.dtype) for n in range(8)]
    assert np.array_equal(part, copy[1:2, :, 3:5]) and rubbish


def test_holding_every_slot_is_an_error_and_letting_go_helps(shards):
    stream = iter(loader(shards, slots=3, endless=True))
    held = [next(stream).hr for _ in range(3)]
    started = time.monotonic()
    with pytest.raises(paragon.Error, match="all 3 batches of the loader are held"):
        next(stream)
    assert 1 < time.monotonic() - started < 10
    held.pop()
    assert next(stream).number == 3


def test_a_batch_in_flight_is_kept_until_its_event(shards):
    class Event:
        done = False

        def query(self):
            return self.done

    event = Event()
    stream = iter(loader(shards, slots=2, endless=True))
    batch = next(stream)
    view = batch.numpy()[0]
    address, copy = view.ctypes.data, view.copy()
    batch.keep_until(event)
    del batch, view
    addresses = set()
    for _ in range(20):
        addresses.add(next(stream).numpy()[0].ctypes.data)
    assert address not in addresses
    event.done = True
    for _ in range(20):
        addresses.add(next(stream).numpy()[0].ctypes.data)
    assert address in addresses and copy.any()


def test_dlpack_capsules(shards):
    batch = next(iter(loader(shards, dtype="uint8")))
    for version in (None, (0, 8), (1, 0), (1, 2)):
        assert "dltensor" in repr(batch.lq.__dlpack__(max_version=version))  # and is freed untaken
    assert batch.lq.__dlpack_device__() == (1, 0)
    assert np.array_equal(np.from_dlpack(batch.lq), np.asarray(batch.lq))
    with pytest.raises(BufferError):
        batch.lq.__dlpack__(copy=True)
    with pytest.raises(BufferError):
        batch.lq.__dlpack__(dl_device=(2, 0))
    with pytest.raises(TypeError, match="NumPy has no bfloat16"):
        next(iter(loader(shards, dtype="bfloat16"))).numpy()


def resources():
    """Resident memory in bytes, and open descriptors."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGESIZE"), len(os.listdir("/proc/self/fd"))


def test_a_thousand_abandoned_iterators_leave_nothing(shards, threads_become):
    def abandon(n):
        one = loader(shards, threads=1 + n % 8, seed=n, dtype=["float32", "uint8"][n % 2])
        kept = None
        for i, batch in enumerate(one):
            kept = batch.hr.numpy()[0]
            if i == n % 5:
                break
        return kept

    for n in range(100):
        abandon(n)
    gc.collect()
    memory, descriptors = resources()
    for n in range(1000):
        abandon(n)
    gc.collect()
    after, descriptors_after = resources()
    threads_become(0)
    assert descriptors_after == descriptors
    assert after - memory < 16 << 20


def test_an_exception_in_the_loop_ends_the_threads(shards, threads_become):
    with pytest.raises(ZeroDivisionError):
        for batch in loader(shards):
            batch.number // 0
    gc.collect()
    with loader(shards) as one:
        next(iter(one))
        threads_become(2)
    threads_become(0)
    assert next(iter(one)).number == 1  # goes on where it was


def test_threads_of_python_share_a_loader(shards):
    one = loader(shards, batch_size=8, slots=8)
    numbers = []

    def take():
        for batch in one:
            numbers.append(batch.number)

    takers = [threading.Thread(target=take) for _ in range(3)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join(60)
    assert sorted(set(numbers)) == sorted(numbers) and len(numbers) % 9 == 0


def test_a_damaged_record_is_named(photos, tmp_path):
    paragon.shard(photos, out=tmp_path / "set", scale=2, lq_size=16, quiet=True)
    (shard,) = (tmp_path / "set").glob("*.psh")
    data = bytearray(shard.read_bytes())
    data[5000] ^= 255
    shard.write_bytes(data)
    with pytest.raises(paragon.DamagedError, match=r"shard-00000\.psh.*record \d+.*image 0000\d\d"):
        for _ in loader(tmp_path / "set"):
            pass
    with pytest.warns(RuntimeWarning, match="takes its place"):
        replaced = loader(tmp_path / "set", on_corrupt="substitute")
        assert sum(len(batch) for batch in replaced) == 72
    assert replaced.stats()["substituted"] >= 1  # the threads are in the next epoch already
    found = paragon.ShardSet(tmp_path / "set").verify()
    assert found["pairs"] == 72 and len(found["damaged"]) == 1


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"lq_size": 17}, ValueError, "use at most 16"),
        ({"batch_size": 0}, ValueError, "0 pairs"),
        ({"threads": 0}, ValueError, "loader threads"),
        ({"dtype": "int8"}, ValueError, "dtype=\"int8\"; use one of"),
        ({"layout": "CHW"}, ValueError, "layout=\"CHW\"; use one of"),
        ({"augment": "flip"}, ValueError, "augment=\"flip\"; use one of"),
        ({"rank": 1}, ValueError, "rank 1 of 1"),
        ({"weights": [1, 2]}, ValueError, "2 weights for 1 sets"),
        ({"host_memory": "much"}, ValueError, "host_memory="),
        ({"window": "wide"}, ValueError, "window="),
        ({"io": "fast"}, ValueError, "io="),
        ({"on_corrupt": "skip"}, ValueError, "on_corrupt="),
        ({"shards": "nowhere"}, FileNotFoundError, "nowhere"),
        ({"shards": 3}, TypeError, "folder of a set"),
    ],
)
def test_wrong_arguments_are_named(shards, options, error, text):
    with pytest.raises(error, match=text):
        paragon.Loader(**{"shards": shards, "quiet": True, **options})


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_ctrl_c_ends_a_wait(shards):
    # All slots are held, so `next` waits; the signal must end it long before the error does.
    code = f"""
import paragon, signal, threading, time, os
signal.signal(signal.SIGINT, signal.default_int_handler)
stream = iter(paragon.Loader({str(shards)!r}, 4, slots=2, quiet=True, endless=True))
held = [next(stream), next(stream)]
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
started = time.monotonic()
try:
    next(stream)
except KeyboardInterrupt:
    assert time.monotonic() - started < 1.5
    held.pop()
    print("interrupted, then", next(stream).number)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "interrupted, then 2\n", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_refused_and_ends(shards):
    code = f"""
import paragon, os, gc, sys
one = paragon.Loader({str(shards)!r}, 4, quiet=True)
before = paragon.Loader({str(shards)!r}, 4, quiet=True)
batch = next(iter(one))
child = os.fork()
if child == 0:
    try:
        next(iter(one))
        os._exit(1)
    except RuntimeError as error:
        assert "forked process" in str(error), error
    assert next(iter(before)).number == 0      # was not started before the fork
    assert len(paragon.ShardSet({str(shards)!r})[0]) == 2
    del one, batch
    gc.collect()
    sys.exit(0)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), next(iter(one)).number)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "0 1\n", done.stderr


def test_the_gil_is_free_while_a_batch_is_waited_for(shards):
    stream = iter(loader(shards, slots=2, endless=True))
    held = [next(stream), next(stream)]
    counted = [0]
    running = threading.Event()

    def count():
        running.set()
        while running.is_set():
            counted[0] += 1
            time.sleep(0.001)

    other = threading.Thread(target=count)
    other.start()
    running.wait()
    with pytest.raises(paragon.Error):
        next(stream)
    running.clear()
    other.join()
    assert counted[0] > 200 and held
