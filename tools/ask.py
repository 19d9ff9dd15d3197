"""Asks a checkpoint one question about one picture and shows its latents: where they point and what they would say.

    python tools/ask.py
    python tools/ask.py --conditions zero,noise=0.3,donor --save answer.png
    python tools/ask.py --checkpoint LVR-7B --image photo.jpg --question "What colour is the cup?" --options red,blue

Without --image a generated scene is asked about, without --checkpoint the tiny one that ships with the package. The
reply is printed while it is decoded, [latent 0] where a latent is fed. Then come, for each latent, the image token that
it is nearest to and the words that the LM head reads in it, and a table of the answers under --conditions: names as
audits use them (zero, donor, mean, oracle, noise=0.3, zero@0, ...).

Exit status: 0 done, 1 failed, 2 bad input.
"""

import argparse
import io
import os
import re
import string
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import lvr_jax
from lvr_jax.command.start import start_program

SCENES = 8          # the one that is asked about, and donors
MOST_SCENES = 10**9
SMALL = 50e6        # bytes of a checkpoint


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="ask", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", default=lvr_jax.TINY_LVR, metavar="DIR", help="Hugging Face or Orbax (default: tiny_lvr)")
    add("--image", action="append", metavar="FILE", help="a picture; again for a question about several")
    add("--question", metavar="TEXT", help="without options and instruction")
    add("--options", metavar="A,B,..", help='texts of the options, "in quotes" where one has commas; none: open')
    add("--answer", metavar="TEXT", help="the right option, where it is known")
    add("--box", metavar="X0,Y0,X1,Y1", help="where the answer is, 0..1 of width and height: for oracle and wrong_box")
    add("--conditions", metavar="C,C,..", help="also answer under these")
    add("--donor", action="append", default=[], metavar="FILE", help="another picture, for its latents")
    add("--scene", type=int, default=0, metavar="N", help="which generated scene, without --image (default: 0)")
    add("--budget", type=int, metavar="N", help="latents a block (default: the checkpoint's, else 8)")
    add("--system", metavar="NAME", help="latent system (default: what config.json says)")
    add("--force-latents", action="store_true", help="end the prompt with the start marker: a block is always opened")
    add("--max-new-tokens", type=int, metavar="N", help="of the reply (default: 512)")
    add("--dtype", choices=("float32", "bfloat16"), help="of the computation (default: float32 on a CPU)")
    add("--save", metavar="FILE", help="picture, heat map of each latent and answers, as png, pdf or svg")
    options = parser.parse_args(arguments)
    if options.image and not options.question:
        parser.error("--question is missing, expected one about --image")
    if not 0 <= options.scene <= MOST_SCENES:
        parser.error(f"--scene is {options.scene}, expected 0 to {MOST_SCENES}")
    of_the_question = (options.options, options.answer, options.box, options.donor or None)
    if options.question is None and any(given is not None for given in of_the_question):
        parser.error("--options, --answer, --box and --donor are of a --question, which is missing")
    if options.save and Path(options.save).suffix.lower() not in (".png", ".pdf", ".svg"):
        parser.error(f"--save is {options.save!r}, expected a name that ends in .png, .pdf or .svg")
    if options.save and not Path(options.save).absolute().parent.is_dir():
        parser.error(f"--save is {options.save!r}, and its folder does not exist")
    return options


def compile_for_one_question(checkpoint: str) -> None:
    """A small network is compiled without XLA's optimisations, which would take longer than all that they save in one
    answer. To be said before JAX is imported; whoever has set XLA_FLAGS has the last word."""
    folder = Path(checkpoint)
    # Weights lie in the folder itself or in params/; whatever else was named may be a whole disk.
    held = [*folder.glob("*.safetensors"), *(folder / "params").rglob("*")]
    size = sum(path.stat().st_size for path in held if path.is_file())
    if 0 < size < SMALL:
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


def items_of(options: argparse.Namespace) -> list:
    """What is asked, first, and what donors and means are made of. Pictures are read here, before any weights."""
    from lvr_jax.api.questions import Item, ItemError, Picture, options_of
    from lvr_jax.data.digit_scenes import DigitSearch
    from lvr_jax.data.images import load_image
    from lvr_jax.files.image_io import is_turned

    choices = None if options.options is None else options_of(options.options)
    try:
        box = [float(x) for x in options.box.split(",")] if options.box is not None else None
    except ValueError:
        raise ItemError(f"--box is {options.box!r}, expected four numbers such as 0.1,0.2,0.4,0.5") from None
    drawn = DigitSearch(size=options.scene + SCENES, split="test")      # those of lvr_jax.scenes
    scenes = [] if options.image else [drawn[n] for n in range(options.scene, options.scene + SCENES)]
    pictures: list[Picture] = [load_image(each) for each in options.image or ()] or list(scenes[0].images)
    for turned in filter(is_turned, options.image or ()):
        print(f"ask: {turned} is shown to the model as it is stored, its EXIF rotation ignored", file=sys.stderr)
    if options.question is None:
        return scenes
    donors: list[Picture] = [load_image(each) for each in options.donor] or [scene.images[0] for scene in scenes[1:]]
    asked = Item(pictures, options.question, choices, options.answer, box, id=options.image[0] if options.image else "")
    return [asked, *(Item(each, options.question, choices) for each in donors)]


def ask(options: argparse.Namespace) -> None:
    """Asks as the options say and prints reply, latents and the answers under conditions."""
    items = items_of(options)
    compile_for_one_question(options.checkpoint)
    # Imported after the pictures were read: JAX takes a second or two.
    from lvr_jax.api.conditions import condition, needs_others
    from lvr_jax.files.whole_file import write_whole
    from lvr_jax.latents.conditions import ConditionError
    from lvr_jax.training.compilation import use_compilation_cache

    wanted = [condition(name) for name in names_of(options.conditions)] if options.conditions else []
    for each in wanted:
        if needs_others(each) and len(items) < 2:
            raise ConditionError(f"condition {each.name!r} needs other pictures' latents, expected --donor FILE")
    use_compilation_cache("auto", ".")
    model = lvr_jax.open(
        options.checkpoint, system=options.system, budget=options.budget, max_new_tokens=options.max_new_tokens,
        force_latents=options.force_latents, dtype=options.dtype,
    )  # fmt: skip
    print(f"{'model':10} {options.checkpoint}: {model.subject.spec.name}, {model.latents} latents a block")
    print(asked_of(items[0]), flush=True)
    stream = model.stream(items[0])
    print(f"{'reply':10} ", end="", flush=True)
    for text in indented(map(str, stream)):
        print(text, end="", flush=True)
    reply = stream.reply
    print()
    print(shown(reply), flush=True)
    found = model.sweep(items, wanted) if wanted else None
    table = rows_of(found) if found else ""
    if table:
        print(f"\n{table}")
    if options.save:
        picture = io.BytesIO()
        reply.draw(table).savefig(picture, dpi=200, format=Path(options.save).suffix[1:].lower())
        write_whole(options.save, picture.getvalue())
        print(f"\n{options.save}")


def names_of(text: str) -> list[str]:
    """Names of conditions out of one text: a comma before a number is of a name, as in zero@0,2."""
    return re.split(r",(?!\s*\d+\s*(?:,|$))", text)


def asked_of(item) -> str:
    """The question and its lettered options as text."""
    choices = "".join(f"\n{'':11}({letter}) {text}" for letter, text in zip(string.ascii_uppercase, item.options or ()))
    question = item.question.split("\n(A)")[0] if choices else item.question
    return f"{'question':10} {indent(question.strip())}{choices}"


def indent(text: str) -> str:
    """Lines after the first begin below it."""
    return text.replace("\n", "\n" + " " * 11)


def indented(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces of a text, indented; space at both ends is left out."""
    held, begun = "", False
    for piece in pieces:
        text = held + piece
        kept = text.rstrip()
        held = text[len(kept) :]
        kept = kept if begun else kept.lstrip()
        if kept:
            begun = True
            yield indent(kept)


def shown(reply) -> str:
    """Answer, attention, and a line a latent."""
    lines = []
    right = "" if reply.right is None else "  right" if reply.right else "  wrong"
    answer = " ".join(filter(None, (reply.letter, reply.content))) or "none that can be read"
    lines.append(f"{'answer':10} {answer}{right}" + "".join(
        f"   {letter} {p:.2f}" for letter, p in (reply.probabilities or {}).items()))  # fmt: skip
    if reply.attention:
        names = ("image", "latents", "text", "reply")
        shares = ", ".join(f"{name} {getattr(reply.attention, name):.0%}" for name in names)
        lines.append(f"{'attention':10} {shares}, of the position that picks the answer")
    if not len(reply.latents):
        return "\n".join([*lines, "no latent was fed (--force-latents opens a block)"])
    lines += ["", f"{'latent':8}{'nearest image token, x and y in pixels, cosine':50}likeliest words"]
    for z, (nearest, words) in enumerate(zip(reply.nearest, reply.lens)):
        (x0, y0, x1, y1), best = nearest[0].box, nearest[0]
        place = f"{x0:.0f}..{x1:.0f}, {y0:.0f}..{y1:.0f}" + (f" of picture {best.image}" if best.image else "")
        spoken = ", ".join(f"{word!r} {p:.2f}" for word, p in words[:3])
        lines.append(f"{z:<8}{f'{place}   {best.cosine:.2f}':50}{spoken}")
    return "\n".join(lines)


def rows_of(found) -> str:
    """The asked item's answer under every condition."""
    lines = [f"{'condition':28}{'answer':24}{'':8}{'margin':>8}   latents of"]
    for name in found:
        reply, clean = found[name][0], found["clean"][0]
        answer = " ".join(filter(None, (reply.letter, reply.content))) or "none"
        margin = "" if reply.margin is None else f"{reply.margin:+.2f}"
        note = "nothing to feed" if reply.missing else reply.donor or ""
        lines.append(f"{name:28}{answer:24}{'changed' if reply.content != clean.content else '':8}{margin:>8}   {note}"
                     .rstrip())  # fmt: skip
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):            # where the terminal's encoding lacks a character
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        ask(options)
    except KeyboardInterrupt:
        print("\nask: stopped", file=sys.stderr)
        return 1
    except BrokenPipeError:                                 # nobody reads on: `ask | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"ask: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except ValueError as error:
        # What this package refuses is a ValueError of its own; any other one is a fault of the program.
        if not type(error).__module__.startswith("lvr_jax."):
            raise
        print(f"ask: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    start_program("ask", then="nothing was kept")
    sys.exit(main())
