# Django has no types of its own.
# pyright: basic, reportAttributeAccessIssue=false, reportArgumentType=false
"""A live bar and a live text in a Django template: two elements, no JavaScript of your own.

    pip install milepost django
    python examples/django_progress

Open the address that it prints and press the button. Look at `templates/report.html`, where the two elements are all that the page
needs, and at `report`, which gives the template a token that shows this one run.

The command starts the Milepost server and a worker too. In production these run by themselves; the application needs
MILEPOST_API_URL and MILEPOST_SECRET_KEY, and the server MILEPOST_CORS_ORIGINS with the application's origin.
"""

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path
from wsgiref.simple_server import make_server

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import path
from report_tasks import make_report

import milepost
from milepost import auth

HERE = Path(__file__).parent
settings.configure(
    SECRET_KEY=secrets.token_urlsafe(32),
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
    ],
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": [HERE / "templates"]}],
)
django.setup()


def report(request: HttpRequest) -> HttpResponse:
    """The page, with the report that this visitor has begun."""
    if request.method == "POST":
        request.session["run"] = make_report.trigger("Ada").id
        return redirect("/")
    run_id = request.session.get("run")
    # A fresh token with each page, so that it may be short; it shows the run of this visitor only.
    token = auth.create_public_token({"read": {"runs": [run_id]}}, expires_in="15m") if run_id else ""
    return render(
        request, "report.html", {"milepost": os.environ["MILEPOST_API_URL"], "run_id": run_id, "token": token}
    )


urlpatterns = [path("", report)]


def main() -> None:
    """Start Milepost, then the application."""
    parser = argparse.ArgumentParser(description="A live bar and a live text in a Django template.")
    parser.add_argument("--port", type=int, default=8000)
    with (
        tempfile.TemporaryDirectory() as folder,
        make_server("127.0.0.1", parser.parse_args().port, get_wsgi_application()) as web,
    ):
        origin = f"http://127.0.0.1:{web.server_port}"
        command = [
            str(Path(sys.executable).with_name("milepost")), "dev", str(HERE / "report_tasks.py"),
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
            web.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
