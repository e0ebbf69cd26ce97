"""Workers and their memory: tasks cover all images, sums over tasks are a tree."""

import math
import pickle

import pytest
import torch
from joblib import parallel_config

from skconvrfm.compute.parallel import (
    Resources,
    parallel_resources,
    spans,
    sum_tasks,
)


class Term:
    """A number that knows how many of its kind are alive."""

    alive = most = 0

    def __init__(self, value):
        self.value = value
        Term.alive += 1
        Term.most = max(Term.most, Term.alive)

    def __add__(self, other):
        return Term(self.value + other.value)

    def __del__(self):
        Term.alive -= 1


def resources(**options):
    return Resources("cpu", torch.float64, 2**20, **options)


@pytest.mark.parametrize("n_tasks", [1, 2, 7, 64, 1000])
def test_sum_holds_the_logarithm_of_its_tasks(n_tasks):
    Term.most = 0
    tasks = ((2**index,) for index in range(n_tasks))
    total = sum_tasks(Term, tasks, resources())
    assert total.value == 2**n_tasks - 1
    assert Term.most <= math.log2(n_tasks) + 3


def test_sum_is_in_the_order_of_its_tasks():
    total = sum_tasks(str, ((letter,) for letter in "abcdefg"), resources())
    assert total == "abcdefg"


@pytest.mark.parametrize("n_workers", [1, 3])
@pytest.mark.parametrize("n", [0, 1, 17, 100])
def test_spans_cover_all_images_once(n, n_workers):
    parts = spans(n, resources(n_workers=n_workers), largest=30)
    covered = [index for part in parts for index in range(part.start, part.stop)]
    assert covered == list(range(n))
    assert all(part.stop - part.start <= 30 for part in parts)
    if n == 100 and n_workers == 3:
        assert len(parts) == 12  # four a worker


def test_one_worker_has_one_span():
    assert spans(10**6, resources()) == [slice(0, 10**6)]


def with_threads(value):
    return value, torch.get_num_threads()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["threading", "loky", "multiprocessing"])
def test_tasks_go_to_the_backend_of_the_context_in_order(backend):
    before = torch.get_num_threads()
    with parallel_config(backend, n_jobs=2):
        shared = parallel_resources("cpu", torch.float32, 2**20, None)
        assert shared.n_workers == 2
        results = list(shared.run(with_threads, ((index,) for index in range(9))))
    assert [value for value, _ in results] == list(range(9))
    assert {threads for _, threads in results} == {max(1, before // 2)}
    assert torch.get_num_threads() == before


def test_one_worker_has_no_pool():
    alone = parallel_resources("cpu", torch.float32, 2**20, None)
    assert alone.n_workers == 1
    assert pickle.loads(pickle.dumps(alone)) == alone


def test_workers_of_a_cluster_have_the_memory_of_their_machines():
    one = resources(n_workers=8, n_machines=4).one_worker()
    assert one.memory == 2**20 // 2 and one.n_workers == 1
    local = resources(n_workers=8).one_worker()
    assert local.memory == 2**20 // 8
