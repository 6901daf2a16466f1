"""What `delta app` and `delta bench app` print."""

import sys
from pathlib import Path

from delta_pipelines import console
from delta_pipelines.app_site import Site


def built(folder: Path, site: Site) -> None:
    """Show the site's parts and their sizes, then its folder."""
    parts = {
        "app": console.size_text(site.app_bytes),
        "runtime": console.size_text(site.bytes_of("ort/")),
        "models": console.size_text(site.bytes_of("models/")),
        "examples and icons": console.size_text(site.bytes_of("examples/", "icons/")),
        "version": site.version,
    }
    console.facts("the app", parts)
    print(folder)


def serving(address: str, site: Site, https: bool) -> None:
    """Show where the app is; for phones as a QR code too."""
    if https:
        _show_code(address)
        console.say("The certificate was made for this run, so the browser asks once whether to go on.")
    console.say(f"Delta {site.version}, until Ctrl-C:")
    print(address, flush=True)


def _show_code(address: str) -> None:
    try:
        import segno
    except ImportError:
        console.say("(pip install 'delta-depth[app]' shows a QR code here)")
        return
    segno.make(address, error="m").terminal(out=sys.stderr, compact=True)
