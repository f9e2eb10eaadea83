"""What happens between the subjects."""

import hashlib
import os
from pathlib import Path

import comfy.utils
import folder_paths
from comfy_api.latest import io
from typing_extensions import override

from ..idcrafter.relations import relate as relations
from ..idcrafter.relations import table as tables
from ..idcrafter.relations.compose import WORDINGS
from ..idcrafter.relations.picture import graph_picture
from ..idcrafter.relations.store import AnswerStore
from .shown import show
from .types import CastType, VLMType

TYPED = "(the text)"


class Relate(io.ComfyNode):
    """Cast + action -> prompt, and the relation graph that it is from."""

    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterRelate",
            display_name="Relate (IDCrafter)",
            category="IDCrafter/relate",
            description="Turns an action into a prompt that describes each subject the same way every time. Without a "
            "VLM the action must use the subjects' names; a VLM looks at all photos and finds out who is meant, who "
            "does what to whom, and what everybody looks like. The same inputs always give the same prompt.",
            search_aliases=[
                "idcrafter", "prompt", "action", "interaction", "caption", "relation", "story", "vlm", "scene graph",
            ],
            inputs=[
                CastType.Input("cast", tooltip="Subjects that the action does not name are introduced as well."),
                io.String.Input(
                    "action",
                    default="",
                    multiline=True,
                    tooltip="What happens, with the subjects' names: 'Ada hugs Bo. Ada smiles.' A name counts as a "
                    "whole word with its case, so 'Will will wait' keeps its verb. With a VLM people may also be "
                    "spoken of by what their photos show: 'the one with the hat'.",
                ),
                io.Combo.Input(
                    "wording",
                    options=list(WORDINGS),
                    default="descriptions",
                    tooltip="'descriptions' puts each description in the place of the name (Phantom, SkyReels-V3, "
                    "RefAlign, HuMo, VACE). 'ordinals' first lists them ('The first is ...') and then says 'the first' "
                    "(nano); 'people' does so with 'the first person' (the Identity-GRPO LoRAs). 'images' "
                    "adds 'from image0', 'from image1' to the descriptions (Bernini).",
                ),
                VLMType.Input(
                    "vlm",
                    optional=True,
                    tooltip="From Load VLM. It is asked once about all photos and the action, and once more when its "
                    "answer cannot be used; if that fails too, the prompt is made without it and the note says so.",
                ),
                io.Combo.Input(
                    "descriptions",
                    options=list(relations.DESCRIPTIONS),
                    default=relations.DESCRIPTIONS[0],
                    optional=True,
                    tooltip="'typed' keeps what you have typed into the Subject nodes and lets the VLM describe only "
                    "those where nothing is typed; 'photos' takes the VLM's description of everybody.",
                ),
                io.Float.Input(
                    "temperature",
                    default=0.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="0 takes the VLM's likeliest word each time. Higher values tell the same story in other "
                    "words, and make more mistakes.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    optional=True,
                    advanced=True,
                    tooltip="Which words are drawn at a temperature above 0; at 0 it does nothing.",
                ),
                io.Int.Input(
                    "max_tokens",
                    default=relations.MAX_TOKENS,
                    min=64,
                    max=8192,
                    optional=True,
                    advanced=True,
                    tooltip="An answer of the VLM is cut here. About 50 tokens a subject and 40 a relation are used.",
                ),
                io.String.Input(
                    "graph",
                    multiline=True,
                    optional=True,
                    force_input=True,
                    tooltip="A relation graph as JSON: this node's own output, copied into a String node and edited. "
                    "While there is one, it makes the prompt: neither the action nor the VLM is used.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="prompt"),
                io.String.Output(
                    display_name="graph", tooltip="JSON that can be edited and connected to 'graph' of this node."
                ),
                io.Image.Output(display_name="picture", tooltip="Everybody with a thumbnail, arrows for relations."),
                io.String.Output(display_name="note", tooltip="How the prompt came about, and what went wrong."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    @override
    def execute(
        cls,
        cast,
        action,
        wording="descriptions",
        vlm=None,
        descriptions=relations.DESCRIPTIONS[0],
        temperature=0.0,
        seed=0,
        max_tokens=relations.MAX_TOKENS,
        graph="",
    ) -> io.NodeOutput:
        if graph.strip():
            related = relations.relate_given(cast, graph)
        else:
            asking = relations.Asking(descriptions, temperature, seed, max_tokens)
            kept = AnswerStore(Path(folder_paths.get_output_directory()) / "idcrafter" / "relations")
            progress = comfy.utils.ProgressBar(max_tokens)
            related = relations.relate(cast, action, vlm, asking, kept, on_token=lambda: progress.update(1))
        prompt = related.prompt(cast, action, wording)
        note = "\n".join(related.notes)
        picture = graph_picture(cast, related.graph, related.notes[0])
        return io.NodeOutput(prompt, related.graph.to_json(), picture, note, ui=show(cls, f"{prompt}\n\n{note}"))


class ReadTable(io.ComfyNode):
    """CSV + row -> a cell, for batches."""

    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterReadTable",
            display_name="Read Table (IDCrafter)",
            category="IDCrafter/relate",
            description="Reads one cell of a table of shots (CSV). With 'row' on increment every run of the graph "
            "takes the next row, so a queue of as many runs as there are rows renders the whole table.",
            search_aliases=["idcrafter", "csv", "batch", "spreadsheet", "rows", "queue", "headless", "table"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=_table_files(),
                    default=TYPED,
                    tooltip="A .csv or .tsv file in ComfyUI's input folder, or the text below. Refresh the node list "
                    "after adding one.",
                ),
                io.String.Input(
                    "text",
                    default="action,seed\nAda hugs Bo.,1\nBo waves at Ada.,2",
                    multiline=True,
                    tooltip="The table itself, used when no file is chosen: the first line names the columns; commas, "
                    "semicolons or tabs separate cells; a cell with one of them in it needs quotes.",
                ),
                io.Int.Input(
                    "row",
                    default=0,
                    min=0,
                    max=0x7FFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.increment,
                    tooltip="Counted from 0; after the last row it begins again.",
                ),
                io.String.Input("column", default="action", tooltip="Which column the cell is taken from."),
            ],
            outputs=[
                io.String.Output(display_name="cell"),
                io.Int.Output(display_name="number", tooltip="The cell as a whole number, 0 when it is none."),
                io.Int.Output(display_name="rows", tooltip="How many rows the table has."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def fingerprint_inputs(cls, file, text, row, column):
        """What the file holds counts, not its name."""
        return hashlib.sha256(repr((_table_text(file, text), row, column)).encode()).hexdigest()

    @classmethod
    @override
    def execute(cls, file, text, row, column) -> io.NodeOutput:
        table = tables.read_table(_table_text(file, text))
        cell = tables.cell(table, row, column.strip())
        said = f"row {row % len(table)} of {len(table)}: {cell}"
        return io.NodeOutput(cell, tables.whole_number(cell), len(table), ui=show(cls, said))


def _table_files() -> list[str]:
    folder = folder_paths.get_input_directory()
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return [TYPED, *sorted(name for name in names if name.lower().endswith((".csv", ".tsv")))]


def _table_text(file: str, text: str) -> str:
    """Raises ValueError for a file that is none of the listed ones, or that is not UTF-8."""
    if file == TYPED:
        return text
    if file not in _table_files():
        raise ValueError(f"There is no table '{file}' in ComfyUI's input folder; put it there and refresh.")
    try:
        return (Path(folder_paths.get_input_directory()) / file).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"The table '{file}' is not UTF-8 ({error.reason}); save it as 'CSV UTF-8'.") from error


NODES = [Relate, ReadTable]
