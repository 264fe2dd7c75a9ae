from engine.memory.page import make_layout


def test_every_layer_has_a_place_of_its_own() -> None:
    windows = [None, 512, 512, None, 512]
    layout = make_layout(windows, page_tokens=16, kv_heads=2, head_dim=8, element_bytes=4)
    places = layout.places()
    assert sorted(places) == list(range(len(windows)))
    assert len(set(places.values())) == len(windows)
    for layer, (group, plane) in places.items():
        assert layout.groups[group].layers[plane] == layer
        assert (group in layout.windowed()) == (windows[layer] is not None)
