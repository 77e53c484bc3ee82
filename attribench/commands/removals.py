"""``attribench removals``: what becomes of groups of queries without the images that methods rank first for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attribench.commands.parsing import configured, new_parser, runtime_of, whole_numbers
from attribench.commands.writable import writable_folder

if TYPE_CHECKING:
    from attribench.settings import RemovalSettings


def add_removal_options(parser: Any) -> None:
    """What is asked, and how many of everything."""
    from attribench.settings import RemovalSettings

    usual = RemovalSettings()
    parser.add_argument("--ask", type=str, default=usual.asked, help="generation: groups of generated images that are alike; "
                        "class: of held-out images of one class, all train images of which are right; copies: of held-out "
                        "images that are copied into the train set first.")  # fmt: skip
    parser.add_argument("--groups", type=int, default=usual.num_groups, help="How many groups.")
    parser.add_argument("--group-size", "--group_size", type=int, default=usual.group_size, help="Queries a group.")
    parser.add_argument("--removed", type=str, help="How many train images are removed, as '[25, 50, 100]' (default: 5, 10 and "
                        "20 percent of them; a quarter, a half and all of a class; half of the copies, all but one of each, "
                        "all of them).")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=usual.num_seeds, help="Retrainings of each.")
    parser.add_argument("--copies", type=int, default=usual.num_copies, help="Copies of each image, for --ask copies.")


def settings_of(options: Any) -> RemovalSettings:
    """What those options say.

    Raises:
        UsageError: one of them is out of range.
    """
    from attribench.settings import RemovalSettings

    return RemovalSettings(
        options.ask,
        options.groups,
        options.group_size,
        tuple(whole_numbers("--removed", options.removed, "[25, 50, 100]")) if options.removed else (),
        options.seeds,
        options.copies,
    )


def removals(arguments: list[str]) -> int:
    parser = new_parser(
        "removals",
        "Remove the train images that methods rank first for a group of queries, retrain, and measure how far the group moves, "
        "beyond queries of other groups, and beyond what as many random images do. One retraining a method, group, number and "
        "seed; prints the table.",
    )
    add_removal_options(parser)
    parser.add_argument("--results", type=str, default="results", help="Folder the records are filed in.")
    parser.add_argument("--clip_model", type=str, default="ViT-B-32", help="CLIP model that compares images.")
    parser.add_argument("--clip_pretrained", type=str, default="openai", help="open_clip's tag of its weights.")
    parser.add_argument("--clip_checkpoint", type=str, help="A local file with its weights, in place of the download.")
    given = configured(parser, arguments, methods=True)
    if given is None:
        return 0
    options, config, broken = given

    from attribench.computing.progress import terminal_progress
    from attribench.reporting.formats import render
    from attribench.reporting.removal_tables import removal_tables
    from attribench.workflows.counterfactual import Clip
    from attribench.workflows.removals import run

    settings = settings_of(options)
    clip = Clip(options.clip_model, options.clip_pretrained, options.clip_checkpoint)
    results = writable_folder("--results", options.results)
    outcome = run(config, settings, runtime_of(options), results, terminal_progress(), clip)
    print(render(removal_tables(outcome.records), "terminal").rstrip())
    for name, reason in {**outcome.skipped, **broken}.items():
        print(f"{name} was skipped: {reason}")
    return 0 if any(record.kind == "method" for record in outcome.records) else 1
