"""Which job a process joins, by flags or by the environment."""

from types import SimpleNamespace

import numpy as np
import pytest

from dilax.runtime.processes import (
    differing_process,
    gathered,
    is_writer,
    job_settings,
    join_job,
    own_share,
)

TORCHRUN = {
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
    "WORLD_SIZE": "16",
    "RANK": "9",
    "LOCAL_RANK": "1",
}


def _flags(**given):
    none = dict.fromkeys(("coordinator", "processes", "process_id"))
    return SimpleNamespace(**{**none, "distributed": False, "join_timeout": 1, **given})


def test_a_process_alone_joins_nothing():
    assert job_settings(_flags(), TORCHRUN) is None  # unless asked to


def test_flags_name_a_job():
    flags = _flags(coordinator="host:1234", processes=4, process_id=3)
    assert job_settings(flags, {}) == {
        "coordinator_address": "host:1234",
        "num_processes": 4,
        "process_id": 3,
    }


def test_torchrun_s_variables_name_a_job():
    assert job_settings(_flags(distributed=True), TORCHRUN) == {
        "coordinator_address": "10.0.0.1:29500",
        "num_processes": 16,
        "process_id": 9,
        "local_device_ids": [1],
    }


def test_other_clusters_are_left_to_jax():
    assert job_settings(_flags(distributed=True), {"SLURM_JOB_ID": "1"}) == {}


@pytest.mark.parametrize(
    "given, message",
    [
        ({"coordinator": "a:1"}, "--coordinator: give --processes and --process_id"),
        ({"processes": 2}, "--processes: give --coordinator"),
        ({"process_id": 0}, "--process_id: give --coordinator"),
        (
            {"coordinator": "a:1", "processes": 2, "process_id": 2},
            "--process_id=2: must be 0 to 1",
        ),
        (
            {"coordinator": "host", "processes": 2, "process_id": 0},
            "--coordinator=host: must be HOST:PORT",
        ),
    ],
)
def test_what_is_missing_or_wrong_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        job_settings(_flags(**given), {})


def test_a_coordinator_that_does_not_answer_is_named():
    flags = _flags(coordinator="127.0.0.1:9", processes=2, process_id=1)
    with pytest.raises(ValueError, match=r"coordinator=127\.0\.0\.1:9: did not answer"):
        join_job(flags)


def test_one_process_has_and_writes_all():
    assert is_writer()
    assert own_share([3, 1, 2]) == [3, 1, 2]
    every = gathered(np.array([[2**40, -1]]))
    assert every.tolist() == [[[2**40, -1]]]
    assert differing_process("anything") is None
