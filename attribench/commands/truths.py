"""``attribench ground-truth``: make a ground truth, pass it on, take it up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attribench.commands.bundle_lines import described
from attribench.commands.imports import import_dattri, import_dtrak
from attribench.commands.parsing import add_runtime_options, configured, new_parser, parse, runtime_of, split_dotted
from attribench.commands.writable import new_folder, writable_file
from attribench.errors import BundleError, UsageError

if TYPE_CHECKING:
    from attribench.truth.bundle import Bundle


def ground_truth(arguments: list[str]) -> int:
    """Without a verb: train the models and measure their losses."""
    if arguments and arguments[0] in VERBS:
        return VERBS[arguments[0]](arguments[1:])
    verbs = ", ".join(VERBS)
    parser = new_parser(
        "ground-truth",
        "Train the target and subset models, generate queries, measure losses; nothing else. "
        f"What is made can be passed on: attribench ground-truth VERB --help, with VERB one of {verbs}.",
    )
    given = configured(parser, arguments, methods=False, truth=False)
    if given is None:
        return 0
    options, config, _ = given

    from attribench.computing.progress import terminal_progress
    from attribench.settings import QUERY_SETS
    from attribench.workflows.opening import open_experiment

    experiment = open_experiment(config, runtime_of(options), terminal_progress())
    experiment.prepare()
    for name in QUERY_SETS:
        truth = experiment.ground_truth(name)
        subsets, seeds, queries = truth.losses.shape
        print(f"{name}: {subsets} subsets × {seeds} seed(s) × {queries} queries, ground truth {truth.hash}")
    return 0


def export(arguments: list[str]) -> int:
    parser = new_parser(
        "ground-truth export", "Write a ground truth as one file: nothing of it need be retrained elsewhere."
    )
    parser.add_argument("--out", type=str, help="The file, as digits.truth.")
    parser.add_argument("--name", type=str, help="What it is called (default: the file's name).")
    given = configured(parser, arguments, methods=False, truth=False)
    if given is None:
        return 0
    options, config, _ = given
    if not options.out:
        raise UsageError("--out FILE is needed, as --out digits.truth.")
    out = writable_file("--out", options.out)

    from attribench.computing.progress import terminal_progress
    from attribench.workflows.truths import export as write

    header = write(config, runtime_of(options), out, options.name, terminal_progress())
    print(f"{out}: {header.name}, {out.stat().st_size / 2**20:.1f} MiB, {len(header.files)} files")
    for line in described(header):
        print(f"  {line}")
    return 0


def import_(arguments: list[str]) -> int:
    parser = new_parser("ground-truth import", "Take a ground truth into a work directory, verified.")
    parser.add_argument("file", type=str, help="A file, or an address that fsspec opens (https, s3, …).")
    parser.add_argument("--sha256", type=str, help="What the file must be.")
    options = _own(parser, arguments)
    if options is None:
        return 0

    from attribench.truth.catalog import import_file

    bundle = import_file(options.file, Path(options.workdir), options.sha256)
    print(f"{bundle.header.name}: in {bundle.path}; use it with --ground-truth {bundle.header.name}")
    return 0


def list_(arguments: list[str]) -> int:
    parser = new_parser("ground-truth list", "Which ground truths are at hand.")
    options = _own(parser, arguments)
    if options is None:
        return 0

    from attribench.truth.bundle import Bundle
    from attribench.truth.catalog import imported, shipped

    for found, where in ((shipped(), "ships with attribench"), (imported(Path(options.workdir)), "")):
        for name, path in found.items():
            print(f"{name}  ({where or path})")
            try:
                lines = described(Bundle(path).header)
            except BundleError as error:
                lines = [str(error)]
            for line in lines:
                print(f"  {line}")
    if not found:
        print(f"None imported into {options.workdir}: attribench ground-truth import FILE takes one up.")
    return 0


def show(arguments: list[str]) -> int:
    parser = new_parser(
        "ground-truth show",
        "Say what a ground truth holds; write its images, so that other code can compute scores. What of them it may not hold "
        "is read from the data set, whose options are given as --data.root DIR.",
    )
    parser.add_argument("--images", type=str, help="A new folder for train images and queries, with an index.")
    given = _opened(parser, arguments)
    if given is None:
        return 0
    options, dotted, bundle = given
    if not options.images:
        print(f"{bundle.header.name}  ({bundle.path})")
        for line in described(bundle.header):
            print(f"  {line}")
        return 0
    folder = new_folder("--images", options.images)

    from attribench.computing.progress import terminal_progress
    from attribench.data.writing import write_image_sets
    from attribench.workflows.truths import image_sets

    progress = terminal_progress()
    found = image_sets(bundle, options.dataset, dotted, progress)
    index = write_image_sets(found, folder, progress)
    print(
        f"{folder}: {', '.join(f'{len(images)} {name}' for name, images in found.items())} images; in order in {index}"
    )
    return 0


def verify(arguments: list[str]) -> int:
    parser = new_parser(
        "ground-truth verify", "Check every file of a ground truth; retrain some of its models, and compare."
    )
    parser.add_argument("--retrain", type=int, default=0, help="So many of its subset models are trained anew.")
    given = _opened(parser, arguments)
    if given is None:
        return 0
    options, dotted, bundle = given

    from attribench.computing.progress import terminal_progress
    from attribench.workflows.truths import retrain

    bundle.verify()
    print(f"{bundle.path}: all {len(bundle.header.files)} files are what they should be, and so are the hashes.")
    if options.retrain:
        runtime, progress = runtime_of(options), terminal_progress()
        for line in retrain(bundle, options.dataset, dotted, runtime, options.retrain, progress):
            print(line)
    return 0


def _opened(parser: Any, arguments: list[str]) -> tuple[Any, dict[str, dict[str, Any]], Bundle] | None:
    """The ground truth that a verb is about, its options, and those of the data set; None as :func:`_own`."""
    parser.add_argument("file", type=str, help="A file, or the name of a shipped or imported one.")
    parser.add_argument("--dataset", type=str, help="The data set (default: the one that the ground truth names).")
    own, dotted = split_dotted(arguments)
    options = _own(parser, own)
    if options is None:
        return None

    from attribench.truth.bundle import Bundle
    from attribench.truth.catalog import find

    bundle = Bundle(find(options.file, Path(options.workdir)))
    options.dataset = options.dataset or bundle.header.dataset
    return options, dotted, bundle


def _own(parser: Any, arguments: list[str]) -> Any | None:
    """The options of a verb that needs no configuration; None when help was asked for, and has been printed."""
    add_runtime_options(parser)
    if "-h" in arguments or "--help" in arguments:
        print(parser.format_help().rstrip())
        return None
    return parse(parser, arguments)


VERBS: dict[str, Callable[[list[str]], int]] = {
    "export": export,
    "import": import_,
    "import-dtrak": import_dtrak,
    "import-dattri": import_dattri,
    "list": list_,
    "show": show,
    "verify": verify,
}
