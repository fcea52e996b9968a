"""VBench's names: `{prompt}-{index}.mp4`, all samples of a prompt counted from 0.

    DIR/videos/three cats chasing two dogs-0.mp4      `videos` is what VBench takes as `--videos_path`
        prompts.json                                  each video's name with its prompt

A slash in a prompt becomes `_`, and one too long for a file's name is cut; prompts.json, which VBench takes as
`--prompt_file`, has them whole.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence

from cluster.dataset.store import Store
from cluster.export.config import ExportConfig, Exported
from cluster.export.copying import Report, Video, copy_videos
from cluster.export.countbench import Row, asked_of, prompts_of
from cluster.export.selection import Selection
from cluster.rows import python_rows
from cluster.storage.protocol import Files

LONGEST = 255 - len("-0000.mp4")  # bytes of a prompt in a name: filesystems end at 255


def write(store: Store, files: Files, selection: Selection, config: ExportConfig, report: Report) -> Exported:
    """The export."""
    rows = python_rows(selection.rows.drop_columns(selection.set_columns))
    named = dict(_named(rows))
    videos = [
        Video(source=row["file_name"], name=f"videos/{name}", sha256=row["video_sha256"])
        for name, row in sorted(named.items())
    ]
    lost = copy_videos(store, files, videos, report)
    prompts = {name: asked_of(row).prompt for name, row in sorted(named.items()) if row["file_name"] not in lost}
    files.replace("prompts.json", (json.dumps(prompts, ensure_ascii=False, indent=1) + "\n").encode())
    cut = sum(not name.startswith(prompt) for name, prompt in prompts.items())
    note = f"{cut} names differ from their prompts; give VBench prompts.json as --prompt_file"
    return Exported(clips=len(prompts), lost=lost, notes=(note,) if cut else ())


def _named(rows: Sequence[Row]) -> Iterator[tuple[str, Row]]:
    """Each clip's name. Prompts that differ in what a name can't hold have names of their own."""
    places = {asked: place for place, asked in enumerate(prompts_of(rows))}
    taken: dict[str, str] = {}  # names without regard to case, as some filesystems have it
    clips: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: (places[asked_of(row)], row["sample"] or 0, row["key"])):
        prompt = asked_of(row).prompt
        name = file_prompt(prompt)
        if taken.setdefault(name.lower(), prompt) != prompt:
            name = file_prompt(prompt, mark=True)
        index = clips[prompt] = clips.get(prompt, -1) + 1
        yield f"{name}-{index}.mp4", row


def file_prompt(prompt: str, *, mark: bool = False) -> str:
    """A prompt as part of a file's name; cut or marked, it ends with a digest of the whole."""
    name = "".join("_" if letter in "/\\" or ord(letter) < 32 else letter for letter in prompt)
    name = f"_{name[1:]}" if name.startswith(".") else name
    if not mark and len(name.encode()) <= LONGEST:
        return name
    digest = hashlib.blake2b(prompt.encode(), digest_size=4).hexdigest()
    return f"{name.encode()[: LONGEST - 9].decode(errors='ignore').rstrip()} {digest}"
