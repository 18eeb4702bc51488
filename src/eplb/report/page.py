"""The page: one HTML file that needs nothing else, no network and no script."""

from importlib import resources

from eplb import __version__
from eplb.errors import MissingExtraError
from eplb.report.charts import draw
from eplb.report.figures import Figures
from eplb.report.story import tell


def render_page(figures: Figures) -> str:
    """The report as HTML; the same figures give the same page.

    Raises:
        MissingExtraError: Jinja or matplotlib is not installed.
    """
    try:
        from jinja2 import BaseLoader, Environment, StrictUndefined
    except ImportError:
        raise MissingExtraError("jinja2", "report", "a report's page") from None
    from markupsafe import Markup

    def drawn(svg: str) -> Markup:
        # What charts write is drawn from figures; names of files are in none of them.
        return Markup(svg)

    folder = resources.files("eplb.report") / "templates"
    environment = Environment(
        loader=BaseLoader(),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawn"] = drawn
    template = environment.from_string((folder / "report.html.jinja").read_text("utf-8"))
    style = Markup((folder / "style.css").read_text("utf-8"))
    return template.render(
        story=tell(figures), charts=draw(figures), style=style, version=__version__
    )
