"""The drawing of the house is that of the code: committed as the script makes it, floors without circles."""

import xml.etree.ElementTree

import pytest

import draw_house


def test_the_committed_drawing_is_what_the_script_makes():
    assert draw_house.DRAWING.read_text() == draw_house.draw(), "run python tools/draw_house.py"


def test_the_drawing_is_xml_with_every_room_and_station():
    drawn = xml.etree.ElementTree.fromstring(draw_house.draw())
    texts = {element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert set(draw_house.rooms()) <= texts and {record for _, record, _ in draw_house.STATIONS} <= texts


def test_every_import_goes_down_a_floor():
    below = draw_house.graph()
    floors = draw_house.floors(below)
    assert all(floors[room] > floors[other] for room, others in below.items() for other in others)
    assert floors["models"] < floors["latents"] < min(floors["training"], floors["evaluation"]) < floors["prism"]


def test_a_circle_of_imports_is_refused_by_name():
    with pytest.raises(ValueError, match="circle: a -> b -> a"):
        draw_house.floors({"a": {"b"}, "b": {"a"}})


def test_arrows_that_follow_from_others_are_left_out():
    assert draw_house.needed({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == [("a", "b"), ("b", "c")]


def test_a_station_that_is_not_in_the_code_is_refused(monkeypatch):
    monkeypatch.setattr(draw_house, "STATIONS", (("data.sample", "Gone", ""),))
    with pytest.raises(ValueError, match="lvr_jax.data.sample has no Gone"):
        draw_house.draw()
