import pytest

import nanorlhf.nanoray as nanoray
from nanorlhf.nanoray.options import CallOptions, Options


def double(x):
    return 2 * x


def test_options_add_up():
    options = Options().merged({"num_cpus": 2}).merged({"name": "n"})
    assert (options.num_cpus, options.name) == (2, "n")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_gpu": 1}, "unknown option 'num_gpu'; known: get_if_exists, lifetime"),
        ({"num_returns": -1}, "num_returns=-1 is neither a number of refs"),
        ({"max_retries": -2}, "max_retries=-2 counts repetitions"),
        ({"max_restarts": -2}, "max_restarts=-2 counts repetitions"),
        ({"max_task_retries": -2}, "max_task_retries=-2 counts repetitions"),
        ({"lifetime": "job"}, "lifetime='job' is unknown"),
        ({"get_if_exists": True}, "get_if_exists=True needs name"),
        ({"num_gpus": 2.5}, "num_gpus=2.5"),
        ({"runtime_env": {"pip": []}}, "has 'pip'; known: env_vars"),
        ({"placement_group_bundle_index": 1}, "needs placement_group"),
    ],
)
def test_wrong_options_are_refused_when_they_are_given(changes, match):
    with pytest.raises(ValueError, match=match):
        nanoray.remote(double).options(**changes)


def test_environment_variables_are_strings():
    with pytest.raises(TypeError, match="must be str"):
        Options(runtime_env={"env_vars": {"N": 1}})


@pytest.mark.parametrize("kinds", [ValueError, ["ValueError"], [int], 3, None])
def test_what_is_retried_is_a_bool_or_a_list_of_exceptions(kinds):
    with pytest.raises(TypeError, match="must be True, False or a list of exception types"):
        Options(retry_exceptions=kinds)
    with pytest.raises(TypeError, match="must be True, False or a list of exception types"):
        CallOptions(retry_exceptions=kinds)


def test_the_options_of_one_call_are_checked_too():
    assert CallOptions().merged({"num_returns": 2}).num_returns == 2
    with pytest.raises(ValueError, match=r"unknown option 'num_cpus'; known: .*max_task_retries"):
        CallOptions().merged({"num_cpus": 1})
    with pytest.raises(ValueError, match="max_task_retries=-2"):
        CallOptions(max_task_retries=-2)


def test_remote_things_are_not_called_directly():
    with pytest.raises(TypeError, match=r"use double.remote\(\)"):
        nanoray.remote(double)(1)
    with pytest.raises(TypeError, match="needs a function or a class"):
        nanoray.remote(3)
    with pytest.raises(TypeError, match="is remote already"):
        nanoray.remote(nanoray.remote(double))
    with pytest.raises(TypeError, match="not both"):
        nanoray.remote(double, num_cpus=1)


def test_every_call_needs_an_engine(no_engine):
    assert not nanoray.is_initialized()
    for call in (
        lambda: nanoray.put(1),
        lambda: nanoray.remote(double).remote(1),
        lambda: nanoray.placement_group([{"CPU": 1}]),
        nanoray.cluster_resources,
    ):
        with pytest.raises(nanoray.NotInitializedError, match=r"call nanoray.init\(\) first"):
            call()
    nanoray.shutdown()
