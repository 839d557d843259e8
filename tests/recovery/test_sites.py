"""Windows, sites and restorations as data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.recovery.sites import (
    ACTIVATION_SITES,
    NOTHING,
    PARAMETER_SITES,
    SITES,
    Restoration,
    SiteName,
    check_positions,
    make_windows,
)


def layers_of(found: list[Restoration]) -> list[tuple[int, ...]]:
    return [item.layers for item in found]


def test_windows_of_five_in_eighteen_layers():
    """Edge windows have 3 and 4 layers."""
    found = make_windows("coef", num_layers=18)
    assert layers_of(found)[:3] == [(0, 1, 2), (0, 1, 2, 3), (0, 1, 2, 3, 4)]
    assert layers_of(found)[9] == (7, 8, 9, 10, 11)
    assert layers_of(found)[-3:] == [(13, 14, 15, 16, 17), (14, 15, 16, 17), (15, 16, 17)]
    assert [item.centre for item in found] == list(range(18))
    assert {item.site for item in found} == {"coef"}


def test_windows_of_one_and_of_all():
    assert layers_of(make_windows("attn", num_layers=3, window=1)) == [(0,), (1,), (2,)]
    assert layers_of(make_windows("attn", num_layers=3, window=3)) == [(0, 1), (0, 1, 2), (1, 2)]
    assert layers_of(make_windows("attn", num_layers=1, window=1)) == [(0,)]


@given(num_layers=st.integers(1, 40), reach=st.integers(0, 19))
def test_windows_are_the_definition(num_layers, reach):
    window = 2 * reach + 1
    if window > num_layers:
        return
    for centre, item in enumerate(make_windows("value", num_layers=num_layers, window=window)):
        around = set(range(centre - reach, centre + reach + 1))
        assert set(item.layers) == around & set(range(num_layers))
        assert list(item.layers) == sorted(item.layers)
        assert item.centre == centre


def test_the_unembedding_alone_has_one_place():
    (only,) = make_windows("unembed", num_layers=18)
    assert (only.layers, only.centre) == ((), 18)
    assert len(make_windows("unembed+norms", num_layers=18)) == 18


@pytest.mark.parametrize("window", [0, -1, 2, 4, 7, 19])
def test_windows_that_cannot_be(window):
    with pytest.raises(ValueError, match=f"odd .* between 1 and 6 .*not {window}$"):
        make_windows("coef", num_layers=6, window=window)


def test_sites_joined_stand_in_one_order():
    assert SiteName.parse("coef") == SiteName(sites=("coef",))
    assert (
        SiteName.parse("attn+coef").sites
        == SiteName.parse("coef+attn").sites
        == (
            "coef",
            "attn",
        )
    )
    assert SiteName.parse("unembed+value+resid").sites == ("resid", "value", "unembed")
    assert make_windows("attn+coef", num_layers=3, window=1)[0].site == "coef+attn"


@pytest.mark.parametrize("name", ["", "mlp", "coef+", "coef+mlp", "Coef", "coef attn"])
def test_what_is_no_site(name):
    with pytest.raises(ValueError, match=r"unknown site .*valid: coef, attn, .*unembed"):
        SiteName.parse(name)


def test_a_site_twice():
    with pytest.raises(ValueError, match=r"duplicate part in the site 'coef\+attn\+coef'"):
        SiteName.parse("coef+attn+coef")


def test_single_layers_and_units():
    assert SiteName.parse("coef@3") == SiteName(sites=("coef",), layer=3)
    assert SiteName.parse("head[2,0]") == SiteName(sites=("head",), units=(0, 2))
    assert SiteName.parse("coef@12[17]") == SiteName(sites=("coef",), layer=12, units=(17,))
    assert SiteName.parse("attn@2+coef@2") == SiteName(sites=("coef", "attn"), layer=2)
    for name in ("coef@3[0,17]", "head[5]", "coef@2+attn@2", "resid"):
        assert str(SiteName.parse(name)) == name
    # One layer, whatever the window; a window of units has the same in each of its layers.
    (alone,) = make_windows("coef@3+attn@3", num_layers=6, window=5)
    assert (alone.layers, alone.centre, alone.site) == ((3,), 3, "coef+attn")
    first = make_windows("head[1,3]", num_layers=6, window=3)[0]
    assert (first.layers, first.units, first.site) == ((0, 1), ((1, 3), (1, 3)), "head[1,3]")
    assert (first.units_of(1), NOTHING.units) == ((1, 3), None)
    apart = Restoration(sites=("coef",), layers=(2, 5), units=((17, 203), (4,)))
    assert apart.site == "coef[2:17,203;5:4]"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("value[3]", "of the sites coef and head, each alone, not of value"),
        ("coef[3]+attn", r"each alone, not of coef\+attn"),
        ("coef@3+attn", "must be of the same layer"),
        ("coef@3+attn@4", "must be of the same layer"),
        ("coef@", "unknown site 'coef@'"),
        ("head[]", "unknown site"),
        ("head[-1]", "unknown site"),
    ],
)
def test_what_is_no_layer_or_unit(name, message):
    with pytest.raises(ValueError, match=message):
        SiteName.parse(name)


def test_layers_and_units_that_do_not_fit():
    with pytest.raises(ValueError, match=r"layer 6 of the site 'coef@6' is out of range 0 to 5"):
        make_windows("coef@6", num_layers=6)
    with pytest.raises(ValueError, match="for each of the 2 layers, not for 1"):
        Restoration(sites=("coef",), layers=(1, 2), units=((1,),))


def test_the_sites_of_the_definitions():
    assert set(ACTIVATION_SITES) == {"coef", "attn", "head", "mlp_out", "resid"}
    assert set(PARAMETER_SITES) == {"value", "key", "attn_weights", "norms", "unembed"}
    assert set(SITES) == set(ACTIVATION_SITES) | set(PARAMETER_SITES)


def test_restorations_are_values():
    one = Restoration(sites=("coef",), layers=(1, 2))
    assert one == Restoration(sites=("coef",), layers=(1, 2))
    assert len({one, Restoration(sites=("coef",), layers=(1, 2)), NOTHING}) == 2
    assert one != Restoration(sites=("coef",), layers=(1, 2), positions="prompt")
    with pytest.raises(AttributeError):
        one.layers = (1,)  # type: ignore[misc]
    assert Restoration(sites=("coef", "unembed"), layers=(1,)).layer_sites == {"coef"}


@pytest.mark.parametrize("layers", [(2, 1), (1, 1)])
def test_layers_ascend(layers):
    with pytest.raises(ValueError, match="ascending and distinct"):
        Restoration(sites=("coef",), layers=layers)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_restoration():
    with pytest.raises(ValueError, match="unknown site 'mlp'"):
        Restoration(sites=("mlp",), layers=(1,))
    for call in (
        lambda: check_positions("last"),
        lambda: Restoration(sites=("coef",), layers=(1,), positions="last"),  # type: ignore[arg-type]
        lambda: make_windows("coef", num_layers=6, positions="last"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=r"'last'; valid: all, prompt, answer"):
            call()
