"""What holds for every built-in data set: its name, and that its parameters are options with a type and a help text."""

from __future__ import annotations

import inspect
import io
from contextlib import redirect_stdout

import pytest
from jsonargparse import ArgumentParser

from attribench.data import AttributionDataModule
from attribench.registry import DATAMODULES, load_datamodule

NAMES = [
    "celeba",
    "cifar10",
    "cifar2",
    "cifar2-jpeg",
    "digits",
    "digits-base",
    "digits-lora",
    "fashion-mnist",
    "image-folder",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_file_name_and_the_registered_name_agree(name: str) -> None:
    cls = load_datamodule(name)
    assert issubclass(cls, AttributionDataModule)
    assert DATAMODULES.name_of(cls) == name


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_an_option_with_help(name: str) -> None:
    cls = load_datamodule(name)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "data")
    with redirect_stdout(io.StringIO()) as printed:
        parser.print_help()
    shown = " ".join(printed.getvalue().split())
    documented = "\n".join(
        inspect.getdoc(base) or "" for base in cls.__mro__ if base.__module__.startswith("attribench")
    )
    for parameter in inspect.signature(cls).parameters:
        assert f"--data.{parameter} " in shown
        assert f"    {parameter}: " in documented
        first_words = " ".join(documented.split(f"    {parameter}: ", 1)[1].split()[:4])
        assert first_words in shown


def test_command_line_values_arrive_typed() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(load_datamodule("image-folder"), "data")
    values = parser.parse_args(["--data.root=some/where", "--data.image_size=64", "--data.channels=grey"]).data
    assert (values.root, values.image_size, values.channels) == ("some/where", 64, "grey")
