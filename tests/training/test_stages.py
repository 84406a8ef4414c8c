"""The recipes' numbers and what options do to them."""

import random

import pytest

from ulmfit import train_language_model
from ulmfit.config import ClassifierConfig, LMConfig
from ulmfit.errors import UserError
from ulmfit.limits import MOST_STEPS
from ulmfit.training.stages import DISCRIMINATIVE, Stage, fit_length, narrow_quick, recipe_for, share_steps


def test_blog_recipe_has_the_posts_numbers():
    lm = recipe_for(LMConfig(recipe="blog"), pretrained=True)
    assert [(s.freeze_to, s.epochs, s.lr) for s in lm.stages] == [(-1, 1, 1e-2), (0, 2, 1e-3)]
    assert (lm.batch_size, lm.drop_mult) == (48, 0.3)
    clf = recipe_for(ClassifierConfig(recipe="blog"), pretrained=True)
    assert [(s.freeze_to, s.epochs, s.lr) for s in clf.stages] == [
        (-1, 1, 1.45e-3),
        (-2, 1, 1.45e-3),
        (-3, 1, 1e-3),
        (0, 2, 1e-3),
    ]
    assert [s.lr_divisor for s in clf.stages] == [1.0] + [DISCRIMINATIVE] * 3
    assert (clf.batch_size, clf.drop_mult) == (48, 0.5)
    assert all(s.momentum == (0.8, 0.7) and s.schedule == "one-cycle" for s in (*lm.stages, *clf.stages))


def test_ulmfit_recipe_has_fastais_numbers():
    lm = recipe_for(LMConfig(recipe="ulmfit"), pretrained=True)
    assert [(s.epochs, s.lr) for s in lm.stages] == [(1, 2e-2), (10, 2e-3)]
    assert (lm.batch_size, lm.drop_mult, lm.weight_decay, lm.clip) == (256, 1.0, 0.1, 0.1)
    clf = recipe_for(ClassifierConfig(recipe="ulmfit"), pretrained=True)
    assert [s.lr for s in clf.stages] == [0.1, 0.05, 0.025, 0.005]
    assert (clf.batch_size, clf.drop_mult, clf.weight_decay) == (128, 0.5, 0.1)


def test_options_override_and_earlier_rates_keep_their_ratio():
    config = ClassifierConfig(recipe="ulmfit", lr=0.01, epochs=5, batch_size=7, clip=0.3, schedule="stlr")
    recipe = recipe_for(config, pretrained=True)
    assert [s.lr for s in recipe.stages] == pytest.approx([0.2, 0.1, 0.05, 0.01])
    assert [s.epochs for s in recipe.stages] == [1, 1, 1, 5]
    assert (recipe.batch_size, recipe.clip, recipe.drop_mult) == (7, 0.3, 0.5)
    assert {s.schedule for s in recipe.stages} == {"stlr"}


def test_random_weights_are_never_frozen():
    for config in (LMConfig(recipe="blog"), ClassifierConfig(recipe="ulmfit"), ClassifierConfig()):
        assert {s.freeze_to for s in recipe_for(config, pretrained=False).stages} == {0}


def test_recipe_none_asks_for_what_it_needs():
    with pytest.raises(UserError, match="--lr and --epochs"):
        recipe_for(LMConfig(recipe="none"), pretrained=False)
    recipe = recipe_for(LMConfig(recipe="none", lr=0.1, max_steps=5), pretrained=False)
    assert [(s.lr, s.freeze_to) for s in recipe.stages] == [(0.1, 0)]


@pytest.mark.parametrize(
    ("task", "pretrained", "steps_per_epoch", "epochs"),
    [
        ("clf", True, 10, 12),  # few texts: as many epochs as ever
        ("clf", True, 70, 5),  # about 350 steps
        ("clf", True, 267, 3),  # MR
        ("clf", True, 400, 2),
        ("clf", True, 743, 1),  # IMDb
        ("clf", True, 100_000, 1),
        ("clf", False, 743, 3),
        ("lm", True, 100_000, 2),
    ],
)
def test_the_length_of_quick_goes_by_the_data(task, pretrained, steps_per_epoch, epochs):
    config = ClassifierConfig() if task == "clf" else LMConfig()
    recipe = recipe_for(config, pretrained=pretrained)
    found = fit_length(recipe, config, steps_per_epoch)
    assert found.stages[-1].epochs == epochs and found.stages[:-1] == recipe.stages[:-1]


def test_a_length_that_is_told_is_kept():
    for told in (ClassifierConfig(epochs=7), ClassifierConfig(max_steps=9), ClassifierConfig(recipe="ulmfit")):
        recipe = recipe_for(told, pretrained=True)
        assert fit_length(recipe, told, 10) == fit_length(recipe, told, 10_000) == recipe


def test_shared_steps_add_up_and_leave_no_stage_out():
    recipes = [
        recipe_for(config(recipe=name), pretrained=True).stages
        for config in (LMConfig, ClassifierConfig)
        for name in ("quick", "blog", "ulmfit")
    ]
    rng = random.Random(0)
    drawn = [
        tuple(Stage(str(i), 0, 10 ** rng.uniform(-3, 3), 1.0) for i in range(rng.randint(1, 8))) for _ in range(300)
    ]
    for stages in recipes + drawn:
        for max_steps in [*range(1, 30), 101, 1000, 10**6, MOST_STEPS]:
            steps = share_steps(stages, max_steps)
            assert sum(steps) == max_steps and len(steps) == len(stages)
            assert min(steps) >= (1 if max_steps >= len(stages) else 0), (stages, max_steps, steps)
            total = sum(stage.epochs for stage in stages)
            if all(max_steps * stage.epochs / total >= 1 for stage in stages):  # nothing had to be raised
                assert all(
                    abs(n - max_steps * stage.epochs / total) <= 1 + max_steps * 1e-12
                    for n, stage in zip(steps, stages, strict=True)
                )


def test_the_head_of_the_ulmfit_recipe_gets_a_step_of_five():
    assert share_steps(recipe_for(LMConfig(recipe="ulmfit"), pretrained=True).stages, 5) == [1, 4]


def test_a_corpus_of_a_few_rows_gets_fewer_rows_a_step_unless_their_number_is_given():
    config = LMConfig()
    recipe = recipe_for(config, pretrained=False)
    assert [narrow_quick(recipe, config, pairs).batch_size for pairs in (1, 6, 63, 64, 10_000)] == [1, 4, 32, 64, 64]
    for told in (LMConfig(batch_size=64), LMConfig(recipe="blog")):
        recipe = recipe_for(told, pretrained=False)
        assert narrow_quick(recipe, told, 6) == recipe


def test_two_short_texts_train_a_language_model(tmp_path):
    config = LMConfig(
        data=["a good film", "a bad one"], output_dir=tmp_path / "run", preset="tiny", threads=1, epochs=1
    )
    assert train_language_model(config).state == "done"
    assert train_language_model(config).state == "done"  # the stored number of rows is that of the run
