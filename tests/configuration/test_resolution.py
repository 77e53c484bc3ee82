from __future__ import annotations

import os
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Optional, Union

import pytest
import yaml

from attribench.cli import main
from attribench.configuration.files import DatasetConfig, dataset_config, read_yaml, shipped
from attribench.configuration.options import option_defaults, typed
from attribench.configuration.resolution import method_config, resolve
from attribench.errors import UsageError
from attribench.registry import DATAMODULES
from attribench.settings import ModelSettings


class Example:
    """A configurable class.

    Args:
        root: required.
        top_k: a number.
        sizes: one or several.
        kind: one of two.
    """

    def __init__(
        self, root: str, top_k: int = 5, sizes: int | list[int] = 3, kind: Literal["dot", "cosine"] = "dot"
    ) -> None: ...


def test_text_becomes_what_the_signature_says() -> None:
    values = typed(Example, "method", {"root": "a", "top_k": "7", "sizes": "[1, 2]"})
    assert values == {"root": "a", "top_k": 7, "sizes": [1, 2], "kind": "dot"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"root": "a", "topk": 1}, r"--method\.topk: no such option\. Did you mean 'top_k'"),
        ({"root": "a", "top_k": "x"}, r"--method\.top_k: expected int, got 'x'"),
        ({"root": "a", "sizes": "[1.5]"}, r"--method\.sizes: expected int or list\[int\], got '\[1\.5\]'"),
        ({"root": "a", "kind": "dott"}, r"--method\.kind: expected one of 'dot', 'cosine', got 'dott'"),
        ({}, r"--method\.root is required"),
    ],
)
def test_a_wrong_option_gives_one_plain_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        typed(Example, "method", values)
    assert "\n" not in str(caught.value)


class Texts:
    """Options that are text, in every way that signatures say so."""

    def __init__(
        self,
        name: str,
        label: str | None = None,
        root: str | os.PathLike[str] | None = None,
        file: Path | None = None,
        folder: Optional[Union[Path, str]] = None,  # noqa: UP007, UP045
    ) -> None: ...


class PartlyTyped:
    """Its ``device`` has a type that only type checkers know."""

    def __init__(self, root: str | None = None, device: Unknown | None = None) -> None:  # type: ignore[name-defined]  # noqa: F821
        self.root, self.device = root, device


@pytest.mark.parametrize(
    "text",
    ["Trip: Rome", "[x]", "{x}", "null", "none", "~", "# z", "1e3", "0x10", "yes", "2026-01-01", "- x", "'x'", "a: [", "%x",
     "@x", " x ", "${x}", "x\ny", ""],
)  # fmt: skip
@pytest.mark.parametrize("option", ["name", "label", "root", "file", "folder"])
def test_text_stays_as_it_was_given(option: str, text: str) -> None:
    value = typed(Texts, "data", {"name": "a", option: text})[option]
    assert value == (Path(text) if isinstance(value, Path) else text)
    assert isinstance(value, Path) or option != "file"


def test_another_option_of_unknown_type_changes_nothing() -> None:
    assert typed(PartlyTyped, "data", {"root": "# z"})["root"] == "# z"


def test_in_yaml_null_is_nothing_and_a_quoted_null_is_text(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("name: 'null'\nlabel: null\nroot: '[x]'\n")
    values = typed(Texts, "data", read_yaml(file))
    assert (values["name"], values["label"], values["root"]) == ("null", None, "[x]")


def test_text_options_of_a_data_set_and_of_a_method_go_through_the_configuration(tmp_path: Path) -> None:
    config = resolve(
        "image-folder", "smoke", ["clip"], {"data": {"root": "[x]", "name": "null"}, "method": {"checkpoint": "# z"}}
    )
    assert (config.data["root"], config.data["name"]) == ("[x]", "null")
    assert config.methods[0].options["checkpoint"] == "# z"
    assert config.methods[0].changed == {"checkpoint": "# z"}
    again = typed(config.methods[0].cls, "method", config.methods[0].options)
    assert again == config.methods[0].options


def test_later_layers_win(tmp_path: Path) -> None:
    assert resolve("digits", "small", [], {}).settings.training.epochs == 150
    changed = resolve("digits", "small", [], {"training": {"epochs": "3"}})
    assert changed.settings.training.epochs == 3
    assert changed.overrides == {"training.epochs": 3}
    assert changed.settings.training.batch_size == 64, "the rest of the section stays"


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "transformer-engine", "float32", ""])
def test_a_precision_that_models_cannot_be_trained_with_is_refused_with_those_that_can(precision: str) -> None:
    with pytest.raises(UsageError, match=r"32-true, bf16-mixed, 16-mixed, 64-true") as caught:
        resolve("digits", "small", [], {"training": {"precision": precision}})
    assert f"--training.precision {precision!r}" in str(caught.value)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "64-true", "32", "bf16", "16", "64"])
def test_a_precision_keeps_its_name(precision: str) -> None:
    """Models are filed under it, those trained under Lightning's older names too."""
    assert (
        resolve("digits", "small", [], {"training": {"precision": precision}}).settings.training.precision == precision
    )


def test_an_option_set_to_the_preset_s_own_value_changes_nothing() -> None:
    assert resolve("digits", "small", [], {"training": {"epochs": "150"}}).overrides == {}
    # Nor are defaults that the preset leaves as they are.
    same = {"training": {"weight_decay": "1e-6", "seed": 42}, "generation": {"eta": "0.0"}, "data": {"num_train": 500}}
    assert resolve("digits", "small", [], same).overrides == {}
    assert resolve("digits", "small", [], {"training": {"weight_decay": "1e-5"}}).overrides == {
        "training.weight_decay": 1e-5
    }


def test_a_data_set_s_options_for_a_method_apply_and_say_what_they_were_tuned_on() -> None:
    (method,) = resolve("digits", "small", ["nda"], {}).methods
    shipped_options = yaml.safe_load(shipped("datasets")["digits"].read_text())["methods"]["nda"]["small"]
    assert {key: method.options[key] for key in shipped_options} == shipped_options
    assert "validation" in method.tuned_on
    (changed,) = resolve("digits", "small", ["nda"], {"method": {"top_k": "5"}}).methods
    assert changed.changed == {"top_k": 5}


def test_a_named_configuration_and_a_file_of_the_user_s_set_a_method_s_options(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("method: pixel\nsimilarity: dot\n")
    for name, row in (("pixel-dot", "pixel-dot"), (str(file), "mine")):
        (method,) = resolve("digits", "smoke", [name], {}).methods
        assert (method.name, method.options["similarity"]) == (row, "dot")


def test_a_data_set_may_have_options_for_a_named_configuration() -> None:
    methods = {"trak": {"small": {"regularization": 0.5}}, "trak-converged": {"small": {"num_timesteps": 50}}}
    tuned_on = {"trak": {"small": "one"}, "trak-converged": {"small": "two"}}
    base = DatasetConfig("digits", "small", {}, methods, tuned_on)
    plain, named = (method_config(name, base, "small", {}) for name in ("trak", "trak-converged"))
    assert (plain.options["num_timesteps"], plain.options["regularization"], plain.tuned_on) == (10, 0.5, "one")
    assert (named.options["num_timesteps"], named.options["regularization"], named.tuned_on) == (50, 0.5, "two")
    assert named.changed == {}
    assert method_config("trak-converged", base, "smoke", {}).options["num_timesteps"] == 100


def test_a_yaml_that_says_all_tuned_options_otherwise_was_tuned_on_nothing(tmp_path: Path) -> None:
    base = DatasetConfig(
        "digits", "small", {}, {"trak": {"small": {"regularization": 0.5}}}, {"trak": {"small": "all queries"}}
    )
    path = tmp_path / "mine.yaml"
    path.write_text("method: trak\nregularization: 5.0\n", "utf-8")
    assert method_config(str(path), base, "small", {}).tuned_on == ""
    path.write_text("method: trak\nnum_timesteps: 3\n", "utf-8")
    assert method_config(str(path), base, "small", {}).tuned_on == "all queries"


def test_what_was_tuned_and_then_set_by_hand_is_said() -> None:
    methods = {"trak": {"small": {"regularization": 0.5, "noise_draws": 2, "num_timesteps": 20}}}  # 10 in its own file
    base = DatasetConfig("digits", "small", {}, methods, {"trak": {"small": "all queries"}})

    def tuned_on(**changed: object) -> str:
        return method_config("trak", base, "small", changed).tuned_on

    assert tuned_on(num_timesteps=7) == "all queries", "no tuned option"
    assert tuned_on(regularization=0.5) == "all queries", "the same value"
    assert tuned_on(regularization=0.1) == "all queries, then changed by hand: regularization"
    assert tuned_on(regularization=0.1, noise_draws=3) == "", "nothing of the tuning is left"


def test_where_a_search_begins() -> None:
    methods = {"trak": {"small": {"regularization": 0.5}}, "nda": {"small": {"timesteps": [100, 200], "patch_size": 3}}}
    tuned = DatasetConfig("digits", "small", {}, methods, {"trak": {"small": "all"}, "nda": {"small": "all"}})
    trak = method_config("trak", tuned, "small", {"noise_draws": "3"})
    defaults = option_defaults(trak.cls)
    assert trak.start(unchosen=False) == {**defaults, "num_timesteps": 10, "regularization": 0.5, "noise_draws": 3}
    assert trak.start(unchosen=True) == {**defaults, "num_timesteps": 10, "noise_draws": 3}
    assert method_config("trak", replace(tuned, tuned_on={}), "small", {}).start(unchosen=True)["regularization"] == 0.5

    # Timesteps set by hand say what is tried: they are where no search begins, so that patch sizes go with the configured ones.
    nda = method_config("nda", tuned, "small", {"timesteps": [50], "top_k": 7})
    assert nda.held == ["top_k"]
    assert (nda.start(unchosen=False)["timesteps"], nda.start(unchosen=False)["top_k"]) == ([100, 200], 7)
    assert nda.start(unchosen=True) == {**typed(nda.cls, "method", {}), "top_k": 7}


@pytest.mark.parametrize(
    ("dataset", "preset", "methods", "options", "message"),
    [
        ("digts", None, [], {}, "Did you mean 'digits'"),
        ("digits", "smal", [], {}, "Did you mean 'small'"),
        ("digits", "paper", [], {}, "has no preset 'paper'"),
        ("digits", "smoke", ["pixl"], {}, "Did you mean 'pixel"),
        ("digits", "smoke", [], {"trainig": {"epochs": 1}}, "Did you mean 'training'"),
        ("digits", "smoke", [], {"training": {"epoch": 1}}, "Did you mean 'epochs'"),
        ("digits", "smoke", ["pixel", "random"], {"method": {"seed": 1}}, "exactly one --method"),
        ("digits", "smoke", [], {"ground_truth": {"num_subsets": 1}}, "at least 2"),
        ("digits", "smoke", [], {"model": {"block_out_channels": [8]}}, "one entry for each of the 1 levels"),
        ("image-folder", "smoke", [], {}, r"--data\.root is required"),
        ("absent.yaml", None, [], {}, "Cannot read absent.yaml"),
    ],
)
def test_a_wrong_configuration_is_refused(
    dataset: str, preset: str | None, methods: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(dataset, preset, methods, options)


@pytest.mark.parametrize("name", sorted(set(DATAMODULES.names())))
def test_every_shipped_data_set_resolves_in_every_preset(name: str) -> None:
    config = dataset_config(name)
    assert {"small", "smoke"} <= set(config.presets)
    for preset in config.presets:
        options = {"data": {"root": "somewhere"}} if name == "image-folder" else {}
        resolve(name, preset, ["nda", "pixel", "random"], options)


@pytest.mark.parametrize("name", ["cifar2", "cifar10", "celeba"])
def test_paper_presets_are_the_protocol_s(name: str) -> None:
    config = resolve(name, "paper", [], {})
    settings = config.settings
    assert settings.training.stated == {
        "epochs": 200,
        "batch_size": 128,
        "learning_rate": 1e-4,
        "weight_decay": 1e-6,
        "warmup_fraction": 0.1,
        "gradient_clip": 1.0,
        "horizontal_flip": True,
        "num_checkpoints": 4,
        "precision": "32-true",
        "seed": 42,
    }
    truth = settings.ground_truth
    assert (truth.num_subsets, truth.num_seeds) == (64, 3)
    assert (len(truth.timesteps), truth.num_noise_draws, truth.seed, truth.subset_fraction) == (1000, 3, 42, 0.5)
    assert settings.generation.stated == {"num_images": 1000, "num_inference_steps": 50, "eta": 0.0}
    assert config.data["num_train"] == (50000 if name == "cifar10" else 5000)
    assert config.data["num_queries"] == 1000
    model = settings.model
    if name == "celeba":
        assert model.block_out_channels == [128, 128, 256, 256, 512, 512]
        assert model.down_block_types.index("AttnDownBlock2D") == 4
        assert model.up_block_types.index("AttnUpBlock2D") == 1
        assert (model.attention_head_dim, model.norm_eps, model.downsample_padding) == (8, 1e-5, 1)
        assert (model.flip_sin_to_cos, model.freq_shift) == (True, 0)
    else:
        assert model.block_out_channels == [128, 256, 256, 256]
        assert model.down_block_types.index("AttnDownBlock2D") == 1
        assert model.up_block_types.index("AttnUpBlock2D") == 2
        assert (model.attention_head_dim, model.norm_eps, model.downsample_padding) == (None, 1e-6, 0)
        assert (model.flip_sin_to_cos, model.freq_shift) == (False, 1)
    assert (model.layers_per_block, model.norm_num_groups, model.dropout) == (2, 32, 0.1)


def test_a_row_named_by_a_file_whose_name_is_not_utf_8_can_be_written(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9.yaml")
    file.write_text("method: pixel\n")
    (method,) = resolve("digits", None, [str(file)], {}).methods
    assert method.name == r"caf\xe9"


def of_docs(language: str) -> list[str]:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "train-lora.md").read_text("utf-8")
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def test_the_base_of_the_docs_goes_with_a_preset_that_describes_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (described,) = of_docs("yaml")
    Path("lora.yaml").write_text(described)
    (command,) = (line for line in "".join(of_docs("console")).splitlines() if "lora.yaml" in line)
    assert main([*shlex.split(command)[1:], "--print_config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["model"] == vars(ModelSettings(base="pretrained/ddpm", dropout=0.0))
    assert (shown["training"]["lora_rank"], shown["training"]["epochs"]) == (16, 50)


@pytest.mark.parametrize("name", sorted(shipped("datasets").keys() - {"generic"}))
def test_a_base_goes_with_all_presets(name: str) -> None:
    data = {"root": "somewhere"} if name == "image-folder" else {}
    for preset in dataset_config(name).presets:
        options = {"model": {"base": "folder/base"}, "training": {"lora_rank": "2"}, "data": data}
        config = resolve(name, preset, [], options)
        assert config.settings.model == ModelSettings(base="folder/base", dropout=config.settings.model.dropout)
        assert config.settings.stated["model"].keys() == {"base", "dropout"}


def test_what_the_caller_says_of_the_network_is_refused_with_a_base() -> None:
    options = {"model": {"base": "folder/base", "layers_per_block": "3"}, "training": {"lora_rank": "2"}}
    with pytest.raises(UsageError, match=r"--model.layers_per_block with --model.base: the base says"):
        resolve("digits", "small", [], options)
