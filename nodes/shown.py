"""What a node tells people: on itself in the browser, and among its outputs for clients without one."""

from comfy_api.latest import io, ui


def show(node: type[io.ComfyNode], text: str) -> ui.PreviewText:
    """Write a text on the node that runs; the answer is for `io.NodeOutput(ui=...)`.

    The frontend draws the outputs' text on nodes of core alone. What it draws on every node is the text of progress,
    and for that the server wants the node's id: the schema has to ask for io.Hidden.unique_id.
    """
    if node.hidden.unique_id:
        from server import PromptServer

        server = getattr(PromptServer, "instance", None)  # graphs may also be run without a server
        if server is not None:
            server.send_progress_text(text, node.hidden.unique_id)
    return ui.PreviewText(text)
