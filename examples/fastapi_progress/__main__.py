"""Upload a CSV file and watch a live bar, in a plain page of a FastAPI application.

    pip install milepost fastapi uvicorn python-multipart
    python examples/fastapi_progress

Open the address that it prints, choose a CSV file (any will do) and press the button. The bar moves with every row. Look at three
things: how `start_import` gives the page a token that shows this one run, and two keys of its metadata; how little JavaScript the page
has; and how the bar goes on by itself after the network was away.

The command starts the Milepost server and a worker too. In production these run by themselves; the application needs
MILEPOST_API_URL and MILEPOST_SECRET_KEY, and the server MILEPOST_CORS_ORIGINS with the application's origin.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import uvicorn
from fastapi import FastAPI, UploadFile
from fastapi.responses import HTMLResponse
from import_tasks import Upload, import_rows

import milepost
from milepost import auth

HERE = Path(__file__).parent
PAGE = (HERE / "page.html").read_text(encoding="utf-8")
app = FastAPI()


@app.get("/")
def page() -> HTMLResponse:
    """The page with the form."""
    return HTMLResponse(PAGE.replace("{{ milepost }}", os.environ["MILEPOST_API_URL"]))


@app.post("/imports")
async def start_import(file: UploadFile) -> dict[str, str]:
    """Keep the file, begin a run, and tell the page how to watch it."""
    path = Path(os.environ["EXAMPLE_FOLDER"]) / f"{os.urandom(8).hex()}.csv"
    path.write_bytes(await file.read())
    handle = await import_rows.atrigger(Upload(path=str(path), name=file.filename or "the file"))
    token = auth.create_public_token(
        {"read": {"runs": [handle.id]}}, expires_in="1h", metadata_keys=["progress", "status"]
    )
    return {"run": handle.id, "token": token}


def main() -> None:
    """Start Milepost, then the application."""
    parser = argparse.ArgumentParser(description="A live bar in a page of a FastAPI application.")
    parser.add_argument("--port", type=int, default=8000)
    listening = socket.create_server(("127.0.0.1", parser.parse_args().port))
    origin = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EXAMPLE_FOLDER"] = folder
        command = [
            str(Path(sys.executable).with_name("milepost")), "dev", str(HERE / "import_tasks.py"),
            "--port", "0", "--data", folder, "--json",
        ]  # fmt: skip
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "MILEPOST_CORS_ORIGINS": origin}
        )
        try:
            assert server.stdout is not None
            ready = json.loads(server.stdout.readline())
            os.environ["MILEPOST_API_URL"] = ready["url"]
            milepost.configure(api_url=ready["url"], secret_key=ready["secret_key"])
            print(f"Open {origin}  (the dashboard: {ready['dashboard']})", flush=True)
            uvicorn.run(app, fd=listening.fileno(), log_level="warning")
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
