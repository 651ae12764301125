"""The page: Gradio's controls around `photos`. It loads nothing from other hosts."""

import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scops_jax.demo.photos import Look, Network, Photo, draw, drawn_faces, open_photos, pack

# The browser itself refuses what a later version of Gradio might want to load from elsewhere.
_POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
_FONTS = ["system-ui", "sans-serif"]
_CSS = """
.gradio-container { max-width: 1200px !important; margin: auto; }
.results .grid-wrap { height: auto; max-height: none; padding-top: 28px; }
.results .caption-label { top: 0; bottom: auto !important; }  /* not on the legend */
@media (max-width: 600px) { .results .grid-container { grid-template-columns: 1fr !important; } }
"""
_TEXT = """# Parts of your photos
Drop photos of what the network was trained on. Every part keeps its colour and number from photo to photo.
"""


class _OwnHostOnly:
  """Adds a content security policy to every answer."""

  def __init__(self, app: ASGIApp) -> None:
    self._app = app

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    async def send_with_policy(message: Message) -> None:
      if message["type"] == "http.response.start":
        message = {**message, "headers": [*message["headers"], (b"content-security-policy", _POLICY)]}
      await send(message)

    await self._app(scope, receive, send_with_policy)


@contextmanager
def serve(networks: Sequence[Network], *, port: int) -> Iterator[str]:
  """Serves the page to this machine's browsers while the context is open; yields its address.

  Raises:
    OSError: the port can't be opened.
  """
  page = build(networks)
  try:
    _, address, _ = page.launch(
      server_name="127.0.0.1",
      server_port=port,
      share=False,
      quiet=True,
      prevent_thread_lock=True,
      ssr_mode=False,
      footer_links=[],
      theme=gr.themes.Default(font=_FONTS, font_mono=["monospace"]),
      css=_CSS,
      app_kwargs={"middleware": [Middleware(_OwnHostOnly)]},
    )
    yield address
  finally:
    page.close(verbose=False)


def build(networks: Sequence[Network]) -> gr.Blocks:
  """Returns the page for one network, or for two side by side."""
  num_parts = max(network.num_parts for network in networks)
  names = networks[0].part_names if len(networks) == 1 else ()
  every = list(range(1, num_parts + 1))
  choices = [(f"{part} {names[part - 1]}" if names else str(part), part) for part in every]

  with gr.Blocks(title="scops_jax", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
    photos = gr.State([])
    gr.Markdown(_TEXT, elem_id="title")
    with gr.Row():
      files = gr.File(label="Photos", file_count="multiple", type="filepath", height=140, elem_id="photos")
    examples = gr.Button(
      "Use three drawn faces", size="sm", visible=any(network.knows_drawn_faces for network in networks)
    )
    with gr.Row():
      # On a phone the results come before the controls.
      with gr.Column(scale=3, min_width=320), gr.Row():
        galleries = [
          gr.Gallery(
            label=network.title,
            columns=2 if len(networks) == 1 else 1,
            object_fit="contain",
            buttons=["download", "fullscreen"],
            interactive=False,
            elem_id=f"results-{index}",
            elem_classes="results",
          )
          for index, network in enumerate(networks)
        ]
      with gr.Column(scale=1, min_width=290):
        parts = gr.CheckboxGroup(choices, value=every, label="Parts", elem_id="parts")
        with gr.Row():
          all_parts = gr.Button("All parts", size="sm", min_width=80)
          no_parts = gr.Button("No parts", size="sm", min_width=80)
        with gr.Group():
          numbers = gr.Checkbox(True, label="Numbered centres")
          legend = gr.Checkbox(True, label="Legend")
          crf = gr.Checkbox(
            False, label="Sharpen along edges (CRF)", info="The first time takes up to a minute."
          )
          opacity = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity")
        packing = gr.Button("Pack results to download")
        packed = gr.File(label="Overlays, index maps, table of parts", visible=False, elem_id="packed")

    look = [parts, opacity, numbers, legend, crf]

    def show(shown: list[Photo], *values: Any) -> Any:
      drawn = (draw(network, shown, Look(*values)) for network in networks)
      captions = [photo.name for photo in shown]
      results = [list(zip(pictures, captions, strict=True)) for pictures in drawn]
      return results if len(results) > 1 else results[0]  # Gradio wants no list around a single output

    def opened(paths: list[str] | None) -> list[Photo]:
      found, problems = open_photos(paths or [])
      for problem in problems:
        gr.Warning(problem, duration=None)
      return found

    def archive(shown: list[Photo], *values: Any) -> Any:
      if not shown:
        raise gr.Error("There are no photos yet.", print_exception=False)
      # In Gradio's folder, from which it serves files and which is deleted at the end.
      folder = pathlib.Path(tempfile.mkdtemp(dir=page.GRADIO_CACHE))
      path = folder / "parts.zip"
      path.write_bytes(pack(networks, shown, Look(*values)))
      return gr.File(str(path), visible=True)

    options: dict[str, Any] = {"api_visibility": "private"}
    for event, source in ((files.change, files), (examples.click, None)):
      event(opened if source else drawn_faces, inputs=source, outputs=photos, **options).then(
        show, inputs=[photos, *look], outputs=galleries, **options
      )
    all_parts.click(lambda: every, outputs=parts, **options)
    no_parts.click(list, outputs=parts, **options)
    for control in (parts, numbers, legend, crf):
      control.change(show, inputs=[photos, *look], outputs=galleries, **options)
    opacity.release(show, inputs=[photos, *look], outputs=galleries, **options)
    packing.click(archive, inputs=[photos, *look], outputs=packed, **options)
  return page
