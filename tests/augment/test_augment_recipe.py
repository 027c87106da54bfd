"""Settings of a recipe as users give them."""

import pytest
from wristaugment.augment.recipe import RECIPES, change_recipe, get_recipe
from wristaugment.readers.errors import SourceError


def test_settings_take_the_type_of_the_field():
    recipe = change_recipe(
        get_recipe("official"), ["steps=20", "guidance=4", "static=False", "prompt=a = b"]
    )
    assert (recipe.steps, recipe.guidance, recipe.static) == (20, 4.0, False)
    assert recipe.prompt == "a = b"
    assert recipe.clip == RECIPES["official"].clip


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("step=20", r"no recipe setting 'step'; set one of steps, guidance"),
        ("steps=many", r"steps is a whole number from 1; write it as steps=50"),
        ("steps=0", r"whole number from 1"),
        ("steps", r"whole number from 1"),
        ("guidance=nan", r"guidance is a number"),
        ("edge=-1", r"edge is a number"),
        ("static=yes", r"static is true or false; write it as static=true"),
        ("geometry=mesh", r"geometry is depth or points"),
        ("form=paper", r"no recipe setting 'form'"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(setting, says):
    with pytest.raises(SourceError, match=says):
        change_recipe(get_recipe("official"), [setting])
