"""Latents and weights that are moved between planted checkpoints do what they do by construction."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import planted  # noqa: E402

from lvr_jax.prism import experiment, shared  # noqa: E402

ROOT = Path(__file__).parents[2]
ITEMS = 24

pytestmark = pytest.mark.slow


def config(**fields):
    sys.path.insert(0, str(ROOT))
    from configs import transplant

    made = transplant.get_config()
    made.update_from_flattened_dict(fields)
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("shared")
    planted.benchmark(place / "set", ITEMS)
    for use in planted.USES:
        planted.plant(use, place / use)
    return place


def settings(place, *names):
    return config(**{
        "checkpoint": ",".join(str(place / name) for name in names), "base": str(place / names[0]),
        "benchmark": "jsonl", "folder": str(place / "set" / "items.jsonl"), "budget": 3, "rows": 24,
        "switches": "max_new_tokens=12", "conditions.names": "answer_blind_to_latents,donor_directed,oracle",
        "alignment.template": "",
    })  # fmt: skip


@pytest.fixture(scope="module")
def found(place):
    """`ignored` reads the image alone, `partly` the latents too: the planted weights differ in one query alone."""
    return shared.run(settings(place, "ignored", "partly"), place / "run", progress=False)


def network(found, host, donor, part):
    return next(t for t in found["transplants"] if (t["host"], t["donor"], t["part"]) == (host, donor, part))


def test_own_latents_change_nothing(found):
    for name in ("ignored", "partly"):
        own = found["latents"][name][name]
        assert own["items"] == ITEMS and own["changed"] == own["gained"] == own["lost"] == 0
        assert network(found, name, None, "nothing")["conditions"][f"latents_of_{name}"] == own
        assert network(found, name, None, "nothing")["latents_like"][name] == pytest.approx(1)


def test_what_reads_latents_follows_anothers_and_what_does_not_ignores_them(found):
    swapped = {name: network(found, name, None, "nothing")["conditions"]["donor_directed"]["changed"]
               for name in ("ignored", "partly")}  # fmt: skip
    assert swapped["ignored"] == 0 and swapped["partly"] > ITEMS / 4


def test_the_query_that_was_planted_takes_the_use_of_latents_along(found):
    """Attention is all that the two differ in: its transplant is the donor, whatever else was moved is the host."""
    for host, donor in (("ignored", "partly"), ("partly", "ignored")):
        moved, intact = network(found, host, donor, "attention"), network(found, donor, None, "nothing")
        assert moved["clean"] == intact["clean"] and moved["cosine"] == intact["cosine"]
        for name in ("answer_blind_to_latents", "donor_directed", "oracle"):
            assert moved["conditions"][name] == intact["conditions"][name]
        assert moved["answers_like"][donor] == 1 and moved["latents_like"][donor] == pytest.approx(1)
        equal = {t["part"] for t in found["transplants"] if t["equal"] and t["host"] == host}
        assert {"vision", "embedding", "norm", "mlp"} <= equal and "block 0" not in equal


def test_the_difference_is_found_in_that_matrix_alone(found):
    changed = [row for row in found["spectra"]["partly"]["matrices"] if row["moved"]]
    assert [(row["parameter"], row["layer"]) for row in changed] == [("text/blocks/q", 0)]
    assert changed[0]["rank"] == pytest.approx(1)
    assert not any(row["moved"] for row in found["spectra"]["ignored"]["matrices"])


def test_the_result_is_a_file_that_a_second_run_leaves_as_it_is(found, place):
    written = (place / "run" / "shared.json").read_bytes()
    assert json.loads(written) == found
    assert shared.run(settings(place, "ignored", "partly"), place / "run", progress=False) == found
    assert (place / "run" / "shared.json").read_bytes() == written


def test_checkpoints_that_cannot_be_compared_are_refused_in_one_line(place, tmp_path):
    with pytest.raises(experiment.PrismError, match="carrier and ignored differ in attention, expected checkpoints of"):
        shared.run(settings(place, "ignored", "carrier"), tmp_path, progress=False)
    with pytest.raises(experiment.PrismError, match="expected two folders at least"):
        shared.run(settings(place, "ignored"), tmp_path, progress=False)
    none = settings(place, "ignored", "partly")
    none.groups = 0
    with pytest.raises(experiment.PrismError, match="groups is 0, expected 1 or more"):
        shared.run(none, tmp_path, progress=False)
    assert not list(tmp_path.iterdir()), "nothing was run"
